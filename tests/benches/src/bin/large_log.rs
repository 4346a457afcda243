//! What a large log costs on SQLite: appends to a log of 10 million events beside those to an empty
//! one, and the delay of publishing while retention removes such a log.
//!
//! `cargo run --release -p hub-benches --bin large_log`; `--help` for the rest.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use hub_benches::large_log::{LargeLog, batch, connect, sqlite, start};
use hub_benches::process::product_key;
use hub_benches::report::{self, Table};
use hub_benches::scratch::Scratch;
use hub_benches::stats::{Series, number, percentile, rate};
use hub_benches::{EVENT_TYPE, PATIENCE, PAYLOAD_BYTES, Result};
use hub_client::proto::hub::platform::v1::{Tenant, UpdateTenantRequest};
use hub_client::{CloudEvent, Data, Publisher};
use hub_core::journal::Log;
use hub_server::Running;
use prost_types::FieldMask;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

/// Events of one commit.
const BATCHES: [u64; 3] = [1, 64, 1024];
/// What an append to the large log must reach of one to an empty log.
const GOAL: f64 = 0.8;
/// Time between two events whose delay is measured.
const PACE: Duration = Duration::from_millis(2);
/// How often it is asked whether to go on.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Delays that are told.
const PARTS: [(&str, f64); 4] = [
    ("p50 us", 0.5),
    ("p99 us", 0.99),
    ("p99.9 us", 0.999),
    ("max us", 1.0),
];

/// Measures appends to a large log.
#[derive(Debug, Parser)]
struct Arguments {
    /// Events in the large log.
    #[arg(long, default_value_t = 10_000_000)]
    events: u64,
    /// Events of a commit of it.
    #[arg(long, default_value_t = 500)]
    commit: u64,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Rounds of the comparison with an empty log.
    #[arg(long, default_value_t = 3)]
    rounds: u64,
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
    let database = scratch.path().join("large.db");
    let large = LargeLog::fill(
        &sqlite(&database),
        arguments.events,
        arguments.commit,
        100_000,
    )
    .await?;
    let appends = appends(&arguments, &scratch, &large).await?;
    let delays = delays(&arguments, &database, large).await?;
    let text = format!(
        "{}; {} rounds of {} s.\n\n{}\n{}",
        report::machine(),
        arguments.rounds,
        arguments.seconds,
        appends.text(),
        delays.text(),
    );
    report::publish("large-log", &text, arguments.write.as_deref())
}

/// Appends in turn to a new log and to the large one, which of them first changes from round to
/// round. Each begins when what the one before appended is listed, for which it would pay else.
async fn appends(arguments: &Arguments, scratch: &Scratch, large: &LargeLog) -> Result<Table> {
    let duration = Duration::from_secs_f64(arguments.seconds);
    let mut results: [[Series; BATCHES.len()]; 2] = Default::default();
    let mut next = arguments.events;
    for round in 0..arguments.rounds {
        let folder = scratch.dir(&format!("empty-{round}"))?;
        let empty = LargeLog::empty(&sqlite(&folder.join("hub.db"))).await?;
        for (at, size) in BATCHES.into_iter().enumerate() {
            let mut logs = [(&empty, 0), (large, 1)];
            if round % 2 == 1 {
                logs.reverse();
            }
            for (log, row) in logs {
                for log in [&empty, large] {
                    log.running.core.journal.write_listing().await?;
                }
                results[row][at].push(append(log, size, &mut next, duration).await?);
            }
        }
        empty.running.drain().await;
    }
    let mut headings = vec!["events appended/s".to_owned()];
    headings.extend(BATCHES.map(|size| format!("{size} a commit")));
    let mut table = Table::new(&headings);
    let [empty, large] = &results;
    let names = [
        "empty log".to_owned(),
        format!("{} events stored", arguments.events),
    ];
    for (name, series) in names.into_iter().zip([empty, large]) {
        let shown = series.iter().map(|series| series.show(rate));
        table.row(&std::iter::once(name).chain(shown).collect::<Vec<_>>());
    }
    let ratio = large.iter().zip(empty).map(|(large, empty)| {
        let ratio = large.ratio(empty).unwrap_or_default();
        let verdict = if ratio >= GOAL { "held" } else { "MISSED" };
        format!("{ratio:.2} (goal {GOAL:.2}: {verdict})")
    });
    let name = "ratio of medians".to_owned();
    table.row(&std::iter::once(name).chain(ratio).collect::<Vec<_>>());
    Ok(table)
}

/// Events a second, each commit after the one before.
async fn append(log: &LargeLog, size: u64, next: &mut u64, duration: Duration) -> Result<f64> {
    let journal = &log.running.core.journal;
    let started = Instant::now();
    let mut events = 0;
    let mut waited = Duration::ZERO;
    while started.elapsed() < duration {
        // What the publisher makes is not what is measured.
        let events_of_commit = batch(&log.log, *next, size, u64::MAX);
        *next += size;
        let submitted = Instant::now();
        journal.append(events_of_commit).await?;
        waited += submitted.elapsed();
        events += size;
    }
    Ok(events as f64 / waited.as_secs_f64())
}

/// The delay of publishing, alone and while the log is removed behind it.
async fn delays(arguments: &Arguments, database: &Path, large: LargeLog) -> Result<Table> {
    let mut headings = vec!["publish, 500 events/s", "seconds"];
    headings.extend(PARTS.map(|(heading, _)| heading));
    let mut table = Table::new(&headings);
    let key = product_key(&connect(&large.running, &large.admin_key)?, "psa").await?;
    let publisher = connect(&large.running, &key)?.publisher();
    let most = Duration::from_secs_f64(5.0 * arguments.seconds);
    let began = Instant::now();
    let micros = publish(&publisher, "alone", async || Ok(began.elapsed() < most)).await?;
    table.row(&row("without retention", began.elapsed(), &micros));
    keep_little(&large).await?;
    large.running.drain().await;
    // The first pass of retention begins with the server.
    let running = start(&sqlite(database)).await?;
    let publisher = connect(&running, &key)?.publisher();
    let log = running.core.journal.log(large.log.tenant()).await?;
    let began = Instant::now();
    let going = async || {
        let left = first_left(&running, &log).await?;
        if began.elapsed() > PATIENCE && left == 1 {
            return Err(hub_benches::Error::from("retention removes nothing"));
        }
        Ok(left < arguments.events)
    };
    let micros = publish(&publisher, "beside", going).await?;
    table.row(&row(
        "while retention removes the log",
        began.elapsed(),
        &micros,
    ));
    running.drain().await;
    Ok(table)
}

/// The first sequence that the log still has.
async fn first_left(running: &Running, log: &Log) -> Result<u64> {
    let earliest = running.core.journal.earliest(log).await?;
    Ok(earliest.map_or(u64::MAX, |(seq, _)| seq))
}

fn row(name: &str, elapsed: Duration, micros: &[f64]) -> Vec<String> {
    let mut row = vec![name.to_owned(), number(elapsed.as_secs_f64())];
    row.extend(PARTS.map(|(_, part)| number(percentile(micros, part))));
    row
}

/// From now on the tenant keeps next to nothing.
async fn keep_little(large: &LargeLog) -> Result<()> {
    let operator = connect(&large.running, &large.operator_key)?;
    let tenant = Tenant {
        tenant_id: large.tenant_id.clone(),
        retention_bytes: 1,
        ..Tenant::default()
    };
    let request = UpdateTenantRequest {
        tenant: Some(tenant),
        update_mask: Some(FieldMask {
            paths: vec!["retention_bytes".to_owned()],
        }),
    };
    operator.platform().update_tenant(request).await?;
    Ok(())
}

/// Publishes at a steady pace while `going`; returns the delays from when each event was due until
/// it was acknowledged, sorted.
async fn publish(
    publisher: &Publisher,
    name: &str,
    going: impl AsyncFn() -> Result<bool>,
) -> Result<Vec<f64>> {
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut waiting: VecDeque<JoinHandle<Result<f64>>> = VecDeque::new();
    let mut micros = Vec::new();
    let mut looked = Instant::now();
    for number in 0u64.. {
        let due = ticks.tick().await;
        if looked.elapsed() > LOOK_INTERVAL {
            looked = Instant::now();
            if !going().await? {
                break;
            }
        }
        let event = CloudEvent {
            id: format!("{name} {number}"),
            source: "/psa/tickets".to_owned(),
            spec_version: "1.0".to_owned(),
            r#type: EVENT_TYPE.to_owned(),
            data: Some(Data::BinaryData(vec![b'x'; PAYLOAD_BYTES].into())),
            ..CloudEvent::default()
        };
        let receipt = publisher.send(event).await?;
        waiting.push_back(tokio::spawn(async move {
            receipt.await?;
            Ok(due.elapsed().as_secs_f64() * 1e6)
        }));
        while waiting.front().is_some_and(JoinHandle::is_finished) {
            if let Some(done) = waiting.pop_front() {
                micros.push(done.await??);
            }
        }
    }
    for done in waiting {
        micros.push(done.await??);
    }
    micros.sort_by(f64::total_cmp);
    Ok(micros)
}
