//! Resident memory of Hub on SQLite: idle, and for each of 10,000 idle Subscribe streams.
//!
//! `cargo run --release -p hub-benches --bin idle`; `--help` for the rest.

use std::time::Duration;

use clap::Parser;
use futures_util::StreamExt;
use hub_benches::hub::{HubServer, live};
use hub_benches::options::{Contender, Name, Options};
use hub_benches::report::Table;
use hub_benches::server::Server;
use hub_benches::{PATIENCE, Result, until_interrupted};
use hub_client::SubscribeOptions;
use tokio::task::JoinSet;

/// Memory is read so long after the last stream was opened or closed.
const SETTLE: Duration = Duration::from_secs(2);
/// Streams that are opened at once.
const OPENING_MAX: usize = 100;
const IDLE_MIB_MAX: u64 = 60;
const STREAM_KIB_MAX: u64 = 40;

/// Measures memory.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Idle streams.
    #[arg(long, default_value_t = 10_000)]
    streams: usize,
    /// Connections that carry them, in turn.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1000])]
    connections: Vec<usize>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    until_interrupted(run(&Arguments::parse())).await
}

async fn run(arguments: &Arguments) -> Result<()> {
    let mut table = Table::new(&["", "resident MiB", "KiB per stream", "limit"]);
    for (turn, connections) in arguments.connections.iter().enumerate() {
        // A process of its own each time: what one turn left would hide what the next one takes.
        let contenders = arguments.options.start(&[Name::HubSqlite]).await?;
        let Some((_, Contender::Hub(hub, _))) = contenders.started.first() else {
            return Err("hub was not started".into());
        };
        tokio::time::sleep(SETTLE).await;
        let idle = hub.server().resident_bytes()?;
        if turn == 0 {
            let shown = limit(idle >> 20, IDLE_MIB_MAX, "MiB");
            table.row(&["idle".to_owned(), mib(idle), "-".to_owned(), shown]);
        }
        let full = with_streams(hub, arguments.streams, *connections).await?;
        let each = full.saturating_sub(idle) as f64 / 1024.0 / arguments.streams.max(1) as f64;
        table.row(&[
            format!("{} streams on {connections} connections", arguments.streams),
            mib(full),
            format!("{each:.1}"),
            limit(each.ceil() as u64, STREAM_KIB_MAX, "KiB"),
        ]);
    }
    arguments.options.setting.publish("idle", table.text())
}

/// Resident memory with so many streams that wait for events.
async fn with_streams(hub: &HubServer, streams: usize, connections: usize) -> Result<u64> {
    let clients = (0..connections.max(1)).map(|_| hub.reader());
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let mut opening = JoinSet::new();
    let mut open = JoinSet::new();
    for stream in 0..streams {
        let client = clients[stream % clients.len()].clone();
        opening.spawn(async move { live(client.subscribe(SubscribeOptions::default())).await });
        while opening.len() >= OPENING_MAX || (stream + 1 == streams && !opening.is_empty()) {
            let Some(subscriber) = opening.join_next().await else {
                break;
            };
            let mut subscriber = subscriber??;
            // Heartbeats are taken as they come.
            open.spawn(async move { while subscriber.next().await.is_some() {} });
        }
    }
    tokio::time::sleep(SETTLE).await;
    let resident = resident(hub.server(), streams, open.len());
    tokio::time::timeout(PATIENCE, open.shutdown()).await?;
    resident
}

fn resident(server: &Server, streams: usize, open: usize) -> Result<u64> {
    match open == streams {
        true => server.resident_bytes(),
        false => Err(format!("{open} of {streams} streams are open").into()),
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

fn limit(value: u64, most: u64, unit: &str) -> String {
    match value <= most {
        true => format!("{most} {unit}: held"),
        false => format!("{most} {unit}: EXCEEDED"),
    }
}
