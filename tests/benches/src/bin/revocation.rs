//! How long a key is still let through after it was revoked: by the process that revokes it, and by
//! others on the same PostgreSQL.
//!
//! `cargo run --release -p hub-benches --bin revocation`; `--help` for the rest.

use std::time::{Duration, Instant};

use clap::Parser;
use hub_benches::options::Setting;
use hub_benches::postgres::Postgres;
use hub_benches::process::{self, make_key, of_product};
use hub_benches::report::{self, Table};
use hub_benches::{PATIENCE, Result, until_interrupted};
use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::{RevokeApiKeyRequest, WhoAmIRequest};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Within which every other process refuses.
const GOAL: Duration = Duration::from_secs(1);

/// Measures how long a revoked key works.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    setting: Setting,
    /// Processes on the database, at least 2.
    #[arg(long, default_value_t = 3)]
    processes: usize,
    /// Keys that are revoked, one after the other.
    #[arg(long, default_value_t = 100)]
    keys: usize,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    until_interrupted(run(&Arguments::parse())).await
}

async fn run(arguments: &Arguments) -> Result<()> {
    let binary = arguments.setting.binary()?;
    let scratch = arguments.setting.scratch()?;
    let postgres = Postgres::start(&report::repository(), scratch.path().join("postgres"))?;
    let hubs = process::fleet(&binary, &scratch, postgres.url(), arguments.processes).await?;
    let created = process::tenant(&hubs[0].operator()?, "Benchmarks", &[]).await?;
    let admin = hubs[0].client(&created.admin_key)?;
    // Of the process that revokes, of the others, and of the call itself.
    let (mut own, mut others, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.keys {
        let (key, key_id) = make_key(&admin, of_product("psa", &["psa:*"])).await?;
        let mut watching = JoinSet::new();
        for (place, hub) in hubs.iter().enumerate() {
            let caller = hub.client(&key)?;
            who_am_i(&caller).await?;
            watching.spawn(
                async move { Ok::<_, hub_benches::Error>((place, refused(&caller).await?)) },
            );
        }
        let began = Instant::now();
        revoke(&admin, &key_id).await?;
        calls.push(began.elapsed());
        while let Some(done) = timeout(PATIENCE, watching.join_next()).await? {
            let (place, at) = done??;
            let late = at.saturating_duration_since(began);
            match place {
                0 => own.push(late),
                _ => others.push(late),
            }
        }
    }
    let text = format!(
        "{}; {} processes, {} keys. Milliseconds from the call of RevokeApiKey.\n\n{}",
        report::machine(),
        hubs.len(),
        arguments.keys,
        table(own, others, calls).text()
    );
    drop(hubs);
    arguments.setting.publish("revocation", &text)
}

fn table(own: Vec<Duration>, others: Vec<Duration>, calls: Vec<Duration>) -> Table {
    let mut table = Table::new(&["until", "p50", "p99", "max", "goal"]);
    let worst = others.iter().max().copied().unwrap_or_default();
    let verdict = if worst <= GOAL { "held" } else { "MISSED" };
    let goal = format!("1 s: {verdict}");
    for (what, mut times, goal) in [
        ("refused by the process that revokes", own, "-"),
        ("refused by each other process", others, goal.as_str()),
        ("the revocation is answered", calls, "-"),
    ] {
        times.sort();
        let at = |part: f64| {
            let place = (times.len() as f64 * part) as usize;
            let time = times.get(place.min(times.len().saturating_sub(1)));
            format!(
                "{:.1}",
                time.copied().unwrap_or_default().as_secs_f64() * 1e3
            )
        };
        table.row(&[what.to_owned(), at(0.5), at(0.99), at(1.0), goal.to_owned()]);
    }
    table
}

async fn revoke(admin: &Hub, key_id: &str) -> Result<()> {
    let request = RevokeApiKeyRequest {
        key_id: key_id.to_owned(),
        reason: "benchmark".to_owned(),
    };
    let revoked = admin.api_keys().revoke_api_key(request).await;
    revoked
        .map(|_| ())
        .map_err(|error| hub_client::Error::from(error).into())
}

async fn who_am_i(caller: &Hub) -> Result<(), hub_client::Error> {
    let told = caller.api_keys().who_am_i(WhoAmIRequest::default()).await;
    told.map(|_| ()).map_err(hub_client::Error::from)
}

/// When a process refuses the key for the first time.
async fn refused(caller: &Hub) -> Result<Instant> {
    loop {
        match who_am_i(caller).await {
            Ok(()) => {}
            Err(error) if error.reason() == Some("KEY_REVOKED") => return Ok(Instant::now()),
            Err(error) => return Err(error.into()),
        }
    }
}
