//! How long a key is still let through after it was revoked: by the process that revokes it, and by
//! others on the same PostgreSQL, all of which are asked all the time; and how soon watching
//! backends of products are told while nothing else happens.
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
use hub_client::proto::hub::api_keys::v1::watch_api_keys_response::Frame;
use hub_client::proto::hub::api_keys::v1::{
    ApiKey, RevokeApiKeyRequest, WatchApiKeysRequest, WatchApiKeysResponse, WhoAmIRequest,
};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Streaming;

/// Within which every other process refuses.
const REFUSED_GOAL: Duration = Duration::from_secs(1);
/// Within which whoever watches keys is told.
const TOLD_GOAL: Duration = Duration::from_millis(100);

/// Between two calls with a key: what it measures is not to be what the calls take.
const ASKED_EACH: Duration = Duration::from_millis(2);

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

/// Times from the call of RevokeApiKey.
#[derive(Default)]
struct Times {
    /// By the process that revokes, and by each other: it refuses.
    refused: [Vec<Duration>; 2],
    /// The same for the push to who watches there.
    told: [Vec<Duration>; 2],
    answered: Vec<Duration>,
}

async fn run(arguments: &Arguments) -> Result<()> {
    let binary = arguments.setting.binary()?;
    let scratch = arguments.setting.scratch()?;
    let postgres = Postgres::start(&report::repository(), scratch.path().join("postgres"))?;
    let hubs = process::fleet(&binary, &scratch, postgres.url(), arguments.processes).await?;
    let operator = hubs[0].operator()?;
    let created = process::tenant(&operator, "Benchmarks", &[]).await?;
    let admin = hubs[0].client(&created.admin_key)?;
    let backend = ApiKey {
        all_tenants: true,
        ..of_product("psa", &["hub:keys.verify"])
    };
    let (backend, _) = make_key(&operator, backend).await?;
    let mut times = Times::default();
    for _ in 0..arguments.keys {
        let (key, key_id) = make_key(&admin, of_product("psa", &["psa:*"])).await?;
        let mut waiting = JoinSet::new();
        for (place, hub) in hubs.iter().enumerate() {
            let caller = hub.client(&key)?;
            who_am_i(&caller).await?;
            waiting.spawn(async move { Ok((place, refused(&caller).await?)) });
        }
        let began = Instant::now();
        revoke(&admin, &key_id).await?;
        times.answered.push(began.elapsed());
        collect(&mut waiting, began, &mut times.refused).await?;
    }
    for _ in 0..arguments.keys {
        let (_, key_id) = make_key(&admin, of_product("psa", &["psa:*"])).await?;
        let mut waiting = JoinSet::new();
        for (place, hub) in hubs.iter().enumerate() {
            let watched = watched(&hub.client(&backend)?).await?;
            let key_id = key_id.clone();
            waiting.spawn(async move { Ok((place, told(watched, &key_id).await?)) });
        }
        let began = Instant::now();
        revoke(&admin, &key_id).await?;
        collect(&mut waiting, began, &mut times.told).await?;
    }
    let text = format!(
        "{}; {} processes, {} keys. Milliseconds from the call of RevokeApiKey.\n\n{}",
        report::machine(),
        hubs.len(),
        arguments.keys,
        table(times).text()
    );
    drop(hubs);
    arguments.setting.publish("revocation", &text)
}

/// When each process did what is waited for: the one that revokes, and the others.
async fn collect(
    waiting: &mut JoinSet<Result<(usize, Instant)>>,
    began: Instant,
    times: &mut [Vec<Duration>; 2],
) -> Result<()> {
    while let Some(done) = timeout(PATIENCE, waiting.join_next()).await? {
        let (place, at) = done??;
        times[place.min(1)].push(at.saturating_duration_since(began));
    }
    Ok(())
}

fn table(times: Times) -> Table {
    let mut table = Table::new(&["until", "p50", "p99", "max", "goal"]);
    let [own, others] = times.refused;
    let [told, told_others] = times.told;
    for (what, mut times, goal) in [
        ("refused by the process that revokes", own, None),
        ("refused by each other process", others, Some(REFUSED_GOAL)),
        ("told to who watches that process", told, Some(TOLD_GOAL)),
        ("told to who watches another", told_others, Some(TOLD_GOAL)),
        ("the revocation is answered", times.answered, None),
    ] {
        times.sort();
        let at = |part: f64| {
            let place = (times.len() as f64 * part) as usize;
            let time = times.get(place.min(times.len().saturating_sub(1)));
            time.copied().unwrap_or_default()
        };
        let goal = goal.map_or("-".to_owned(), |goal| {
            let verdict = if at(1.0) <= goal { "held" } else { "MISSED" };
            format!("{} ms: {verdict}", goal.as_millis())
        });
        let show = |part: f64| format!("{:.1}", at(part).as_secs_f64() * 1e3);
        table.row(&[what.to_owned(), show(0.5), show(0.99), show(1.0), goal]);
    }
    table
}

/// What a backend hears of keys from now on.
async fn watched(backend: &Hub) -> Result<Streaming<WatchApiKeysResponse>> {
    let request = WatchApiKeysRequest::default();
    let opened = backend.api_keys().watch_api_keys(request).await;
    let mut frames = opened.map_err(hub_client::Error::from)?.into_inner();
    loop {
        match frames.message().await? {
            Some(frame) if matches!(frame.frame, Some(Frame::CaughtUp(_))) => return Ok(frames),
            Some(_) => {}
            None => return Err("the stream of keys ended".into()),
        }
    }
}

/// When the stream names the key.
async fn told(mut frames: Streaming<WatchApiKeysResponse>, key_id: &str) -> Result<Instant> {
    while let Some(frame) = frames.message().await? {
        if let Some(Frame::Changes(changes)) = frame.frame
            && changes.key_ids.iter().any(|changed| changed == key_id)
        {
            return Ok(Instant::now());
        }
    }
    Err("the stream of keys ended".into())
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
            Ok(()) => sleep(ASKED_EACH).await,
            Err(error) if error.reason() == Some("KEY_REVOKED") => return Ok(Instant::now()),
            Err(error) => return Err(error.into()),
        }
    }
}
