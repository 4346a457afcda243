//! The event log of a large journal: the newest 50 events of a type, by ListEvents.
//!
//! `cargo run --release -p hub-benches --bin listing`; `--help` for the rest. It fills a journal
//! directly, then starts a hub on it; nothing else runs beside it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Parser;
use hub_benches::Result;
use hub_benches::large_log::{LargeLog, connect, sqlite, start};
use hub_benches::postgres::Postgres;
use hub_benches::report::{self, Table};
use hub_benches::scratch::Scratch;
use hub_client::Hub;
use hub_client::proto::hub::event_bus::v1::{EventFilter, EventLogFilter, ListEventsRequest};

/// Longest time of the newest 50, in milliseconds.
const LIMIT_MS: f64 = 50.0;

/// Measures the listing of the newest events of a type.
#[derive(Debug, Parser)]
struct Arguments {
    /// On PostgreSQL instead of SQLite; cold is after a restart of both, with what the system has
    /// of its files.
    #[arg(long)]
    postgres: bool,
    /// Events in the journal.
    #[arg(long, default_value_t = 10_000_000)]
    events: u64,
    /// Events of a commit.
    #[arg(long, default_value_t = 500)]
    commit: u64,
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
    let database = Database::new(&scratch, arguments.postgres)?;
    let (commit, rare) = (arguments.commit, arguments.rare);
    let url = database.url();
    let filled = LargeLog::fill(&url, arguments.events, commit, rare).await?;
    filled.running.drain().await;
    let headings = ["type", "events", "cold ms", "warm ms (median)", "limit"];
    let mut table = Table::new(&headings);
    for (name, kind) in [
        ("one in 40", "type.7"),
        ("rare", "rare.kind"),
        ("absent", "no.such"),
    ] {
        database.cool()?;
        let running = start(&url).await?;
        if let Database::Sqlite(file) = &database {
            // A start reads its part of the file too.
            evict(file)?;
        }
        let hub = connect(&running, &filled.admin_key)?;
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

/// Where the journal is.
enum Database {
    Sqlite(PathBuf),
    Postgres(Postgres),
}

impl Database {
    fn new(scratch: &Scratch, postgres: bool) -> Result<Self> {
        Ok(match postgres {
            true => {
                let folder = scratch.path().join("postgres");
                Database::Postgres(Postgres::start(&report::repository(), folder)?)
            }
            false => Database::Sqlite(scratch.path().join("hub.db")),
        })
    }

    fn url(&self) -> String {
        match self {
            Database::Sqlite(file) => sqlite(file),
            Database::Postgres(server) => server.url().to_owned(),
        }
    }

    /// Nothing of it is in the memory of a process.
    fn cool(&self) -> Result<()> {
        match self {
            Database::Sqlite(file) => evict(file),
            Database::Postgres(server) => server.restart(),
        }
    }
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
