//! The event log of a large journal on SQLite: the newest 50 events of a type, by ListEvents.
//!
//! `cargo run --release -p hub-benches --bin listing`; `--help` for the rest. It fills a journal
//! directly, then starts a hub on it; nothing else runs beside it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use hub_benches::report::{self, Table};
use hub_benches::scratch::Scratch;
use hub_benches::{PAYLOAD_BYTES, Result};
use hub_client::Hub;
use hub_client::proto::hub::event_bus::v1::{EventFilter, EventLogFilter, ListEventsRequest};
use hub_client::proto::hub::platform::v1::CreateTenantRequest;
use hub_client::{CloudEvent, Data};
use hub_core::clock::Clock;
use hub_core::journal::{Append, Log, NewEvent};
use hub_server::{Config, Running};
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Appends that wait for their commit at once.
const WAITING: usize = 8;
/// Types beside the rare one, of equal frequency.
const TYPES: u64 = 40;
/// Longest time of the newest 50, in milliseconds.
const LIMIT_MS: f64 = 50.0;

/// Measures the listing of the newest events of a type.
#[derive(Debug, Parser)]
struct Arguments {
    /// Events in the journal.
    #[arg(long, default_value_t = 10_000_000)]
    events: u64,
    /// Events of a segment.
    #[arg(long, default_value_t = 500)]
    segment: u64,
    /// One event in so many is of the rare type.
    #[arg(long, default_value_t = 100_000)]
    rare: u64,
    /// Warm measurements of each type; the median is told.
    #[arg(long, default_value_t = 20)]
    calls: usize,
    /// File whose table of this program is replaced by the new one.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Directory for the data; else that of temporary files.
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let scratch = Scratch::new(arguments.dir.as_deref())?;
    let database = scratch.path().join("hub.db");
    let (running, admin_key) = fill(&arguments, &database).await?;
    running.drain().await;
    let headings = ["type", "events", "cold ms", "warm ms (median)", "limit"];
    let mut table = Table::new(&headings);
    for (name, kind) in [
        ("one in 40", "type.7"),
        ("rare", "rare.kind"),
        ("absent", "no.such"),
    ] {
        evict(&database)?;
        // A start reads its part of the file too; its pages are evicted again before the call.
        let running = start(&database).await?;
        evict(&database)?;
        let hub = connect(&running, &admin_key)?;
        let (count, cold) = newest(&hub, kind).await?;
        let mut warm = Vec::new();
        for _ in 0..arguments.calls.max(1) {
            warm.push(newest(&hub, kind).await?.1);
        }
        warm.sort_by(f64::total_cmp);
        let median = warm[warm.len() / 2];
        let held = if cold.max(median) < LIMIT_MS {
            "held"
        } else {
            "MISSED"
        };
        table.row(&[
            format!("`{kind}`, {name}"),
            count.to_string(),
            format!("{cold:.1}"),
            format!("{median:.1}"),
            format!("{LIMIT_MS} ms: {held}"),
        ]);
        running.drain().await;
    }
    report::publish("listing", table.text(), arguments.write.as_deref())
}

async fn start(database: &Path) -> Result<Running> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let config = Config::new(format!("sqlite:{}", database.display()));
    let shutdown = CancellationToken::new();
    Ok(hub_server::start(config, listener, Clock::system(), shutdown).await?)
}

fn connect(running: &Running, key: &str) -> Result<Hub> {
    let hub = Hub::builder(format!("http://{}", running.addr)).api_key(key);
    Ok(hub.connect_lazy()?)
}

/// A journal with so many events of one tenant, and the key of its administrator.
async fn fill(arguments: &Arguments, database: &Path) -> Result<(Running, String)> {
    let running = start(database).await?;
    let operator_key = running
        .operator_key
        .clone()
        .ok_or("the database is not new")?;
    let request = CreateTenantRequest {
        name: "listing".to_owned(),
        ..CreateTenantRequest::default()
    };
    let operator = connect(&running, &operator_key)?;
    let created = operator
        .platform()
        .create_tenant(request)
        .await?
        .into_inner();
    let tenant = created.tenant.ok_or("no tenant")?.tenant_id;
    let core = running.core.clone();
    let log = core.journal.log(&core.tenancy.find(&tenant).await?).await?;
    let started = Instant::now();
    let mut waiting = std::collections::VecDeque::new();
    let mut next = 0;
    while next < arguments.events {
        let count = arguments.segment.min(arguments.events - next);
        let append = segment(&log, next, count, arguments.rare);
        waiting.push_back(core.journal.submit(append).await?);
        next += count;
        while waiting.len() >= WAITING {
            if let Some(first) = waiting.pop_front() {
                first.wait().await?;
            }
        }
    }
    for last in waiting {
        last.wait().await?;
    }
    let filled = started.elapsed();
    while core.journal.listing_covered(log.tenant()).await? < arguments.events {
        core.journal.write_listing().await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let bytes = std::fs::metadata(database)?.len();
    println!(
        "{} events in {:.1} s, listed {:.1} s later; the file has {:.2} GB",
        arguments.events,
        filled.as_secs_f64(),
        (started.elapsed() - filled).as_secs_f64(),
        bytes as f64 / 1e9
    );
    Ok((running, created.admin_key))
}

/// Events that a commit stores as one segment.
fn segment(log: &Arc<Log>, first: u64, count: u64, rare: u64) -> Append {
    let event = |number: u64| {
        let kind = match number % rare.max(1) {
            0 => "rare.kind".to_owned(),
            _ => format!("type.{}", spread(number) as u64 % TYPES),
        };
        let event = CloudEvent {
            id: number.to_string(),
            source: "/listing".to_owned(),
            spec_version: "1.0".to_owned(),
            r#type: kind.clone(),
            data: Some(Data::BinaryData(vec![b'x'; PAYLOAD_BYTES].into())),
            ..CloudEvent::default()
        };
        NewEvent {
            product: "psa".into(),
            kind: Bytes::from(kind),
            event: event.encode_to_vec().into(),
            identity: spread(number),
            content: spread(!number),
        }
    };
    Append {
        log: log.clone(),
        events: (first..first + count).map(event).collect(),
        independent: false,
    }
}

/// Spread as a hash is, and different for each number.
fn spread(number: u64) -> u128 {
    let mix = |seed: u64| {
        let mixed = (number ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    };
    u128::from(mix(0x1234_5678)) << 64 | u128::from(mix(0))
}

/// How many of the newest 50 events of a type there are, and how long the call took, in ms.
async fn newest(hub: &Hub, kind: &str) -> Result<(usize, f64)> {
    let event = EventFilter {
        types: vec![kind.to_owned()],
        ..EventFilter::default()
    };
    let request = ListEventsRequest {
        filter: Some(EventLogFilter {
            event: Some(event),
            ..EventLogFilter::default()
        }),
        ..ListEventsRequest::default()
    };
    let started = Instant::now();
    let page = hub.event_bus().list_events(request).await?.into_inner();
    let elapsed = started.elapsed().as_secs_f64() * 1e3;
    let wrong = page.entries.iter().filter_map(|entry| {
        let event = entry.record.as_ref()?.event.as_ref()?;
        (event.r#type != kind).then_some(&event.r#type)
    });
    match wrong.count() {
        0 => Ok((page.entries.len(), elapsed)),
        wrong => Err(format!("{wrong} events are of another type").into()),
    }
}

/// Takes the files of a database out of the page cache of the system.
fn evict(database: &Path) -> Result<()> {
    for ending in ["", "-wal"] {
        let mut name = database.as_os_str().to_owned();
        name.push(ending);
        if !Path::new(&name).exists() {
            continue;
        }
        let mut input = std::ffi::OsString::from("if=");
        input.push(&name);
        let done = Command::new("dd")
            .arg(input)
            .args(["of=/dev/null", "iflag=nocache", "count=0", "status=none"])
            .status()?;
        if !done.success() {
            return Err("dd cannot evict the file".into());
        }
    }
    Ok(())
}
