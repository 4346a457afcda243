//! VerifyApiKey with 100,000 keys that have limits, beside a bare echo of the same messages; what
//! the keys take in memory; and the client's layer with a decision that it has.
//!
//! `cargo run --release -p hub-benches --bin verify`; `--help` for the rest.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use futures_util::{StreamExt, stream};
use hub_api_keys::Plaintext;
use hub_benches::echo::Echo;
use hub_benches::options::Setting;
use hub_benches::process::{self, Process, make_key, of_product};
use hub_benches::report::{self, Table};
use hub_benches::server::{Server, own_cpu};
use hub_benches::stats::{Series, number};
use hub_benches::{Result, echo, until_interrupted};
use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::{ApiKey, SetRateLimitRequest, VerifyApiKeyRequest};
use hub_core::storage::{self, Db, Sql};
use tokio::task::JoinSet;
use tonic::body::Body;
use tower::{Layer, Service, ServiceExt};

/// The calls at once for which something is expected beside the echo, and what.
const GOAL: (usize, f64) = (64, 0.85);
/// Calls at once while keys are made.
const AT_ONCE: usize = 32;
/// A key like another one of its tenant. Through the API a million would take an hour.
const COPY: Sql = Sql::same(
    "insert into api_keys (key_id, family, hash, tenant_no, tenant_id, product, hint, name, scopes,
         cidrs, labels, requests_per_minute, create_time, created_by, version)
     select $1, $1, $2, tenant_no, tenant_id, product, hint, name, scopes, cidrs, labels,
         requests_per_minute, create_time, created_by, version
     from api_keys where key_id = $3",
);
/// More than is asked for here.
const REQUESTS_PER_MINUTE: u32 = 1_000_000_000;
const KEYS_OF_TENANT: usize = 1_000;
const HOST: &str = "api.theonepsa.com";

/// Measures VerifyApiKey.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    setting: Setting,
    /// Keys, each with a limit of its own, of tenants with 1,000 keys and a limit.
    #[arg(long, default_value_t = 100_000)]
    keys: usize,
    /// Calls at once.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    windows: Vec<usize>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Rounds; hub and echo have one turn of each window in each.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Threads of the hub, of the echo and of this program, each. Where more threads are at work
    /// than there are cores, the two of a client mostly wake each other.
    #[arg(long, default_value = "1")]
    threads: NonZeroUsize,
    /// Serves the echo and nothing else.
    #[arg(long, hide = true)]
    echo: bool,
}

/// Calls of one kind.
#[derive(Clone)]
struct Caller {
    hub: Hub,
    keys: Arc<Vec<String>>,
    next: Arc<AtomicUsize>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(arguments.threads.get()).enable_all();
    let runtime = runtime.build()?;
    if arguments.echo {
        // In a task, so that it is on one of the threads that were asked for.
        return runtime.block_on(async { tokio::spawn(echo::serve()).await? });
    }
    runtime.block_on(until_interrupted(run(&arguments)))
}

async fn run(arguments: &Arguments) -> Result<()> {
    let binary = arguments.setting.binary()?;
    let scratch = arguments.setting.scratch()?;
    let dir = scratch.dir("hub")?;
    let database = format!("sqlite:{}", dir.join("hub.db").display());
    let process = Process::serve(&binary, &dir, &database).await?;
    let (verifier, first) = first(&process, arguments.keys).await?;
    drop(process);
    let began = Instant::now();
    let keys = Arc::new(copies(&database, first, arguments.keys).await?);
    eprintln!("keys made in {:.0} s", began.elapsed().as_secs_f64());
    // What was looked up while another part of the keys was: two generations.
    let options = [
        "--key-cache-max".to_owned(),
        (2 * keys.len()).to_string(),
        "--worker-threads".to_owned(),
        arguments.threads.to_string(),
    ];
    let process = Process::serve_with(&binary, &dir, &database, &options).await?;
    let before = process.server().resident_bytes()?;
    let verifier = process.client(&verifier)?;
    let hub = Caller {
        hub: verifier.clone(),
        keys: keys.clone(),
        next: Arc::default(),
    };
    // Once each, so that all are in memory.
    hub.count(AT_ONCE, keys.len()).await?;
    let after = process.server().resident_bytes()?;
    let echo = Echo::start(&scratch.dir("echo")?, arguments.threads).await?;
    let bare = Caller {
        hub: Hub::builder(echo.url()).api_key(&keys[0]).connect_lazy()?,
        keys,
        next: Arc::default(),
    };
    let windows = arguments.windows.iter();
    let mut rows: Vec<Row> = windows
        .map(|window| (*window, Default::default()))
        .collect();
    let servers = [process.server(), echo.server()];
    for round in 0..arguments.rounds.max(1) {
        for (window, turned) in &mut rows {
            let mut turns = [(0, &hub), (1, &bare)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for (who, caller) in turns {
                let turn = caller.turn(servers[who], *window, arguments.seconds);
                turned[who].push(turn.await?);
            }
        }
    }
    let layer = layer(&verifier, &hub.keys[0], arguments.seconds).await?;
    let text = format!(
        "{}; {} keys; {} rounds of {} s; threads of each: {}.\n\n{}\nResident memory: {:.0} MiB \
         after the start, {:.0} MiB with all keys in memory.\n\nThe client's layer, on one \
         thread, with a key that it knows: {:.0}k requests/s.\n",
        report::machine(),
        arguments.keys,
        arguments.rounds,
        arguments.seconds,
        arguments.threads,
        table(&rows).text(),
        mib(before),
        mib(after),
        layer / 1e3,
    );
    arguments.setting.publish("verify", &text)
}

/// Calls for a while.
struct Turn {
    per_second: f64,
    /// Microseconds of both processors per call: of the server, and of this process.
    server_cpu: f64,
    client_cpu: f64,
}

/// Calls at once, and what turns the hub and the echo had.
type Row = (usize, [Vec<Turn>; 2]);

fn series(turns: &[Turn], value: impl Fn(&Turn) -> f64) -> Series {
    let mut series = Series::default();
    turns.iter().for_each(|turn| series.push(value(turn)));
    series
}

fn table(rows: &[Row]) -> Table {
    let headings = [
        "calls at once",
        "Hub, calls/s",
        "bare echo, calls/s",
        "ratio",
        "Hub, CPU us/call",
        "echo, CPU us/call",
        "client, CPU us/call",
    ];
    let mut table = Table::new(&headings);
    let (expected, goal) = GOAL;
    for (window, [hub, bare]) in rows {
        let rates = |turns| series(turns, |turn| turn.per_second);
        let cpu = |turns, value: fn(&Turn) -> f64| {
            let median = series(turns, value).median();
            median.map_or("-".to_owned(), number)
        };
        let show = |series: &Series| series.show(|rate| format!("{:.2}k", rate / 1e3));
        let ratio = rates(hub).ratio(&rates(bare)).unwrap_or_default();
        let verdict = match (*window == expected, ratio >= goal) {
            (false, _) => String::new(),
            (_, true) => format!(" (goal {goal}: held)"),
            (_, false) => format!(" (goal {goal}: MISSED)"),
        };
        let client = |turns| cpu(turns, |turn| turn.client_cpu);
        table.row(&[
            window.to_string(),
            show(&rates(hub)),
            show(&rates(bare)),
            format!("{ratio:.2}{verdict}"),
            cpu(hub, |turn| turn.server_cpu),
            cpu(bare, |turn| turn.server_cpu),
            format!("{} of Hub, {} of the echo", client(hub), client(bare)),
        ]);
    }
    table
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The key of a backend, and for each tenant a key with limits.
async fn first(process: &Process, keys: usize) -> Result<(String, Vec<(String, String)>)> {
    let operator = process.operator()?;
    let mut first = Vec::new();
    for tenant in 0..keys.div_ceil(KEYS_OF_TENANT) {
        let created = process::tenant(&operator, &format!("Benchmarks {tenant}"), &[]).await?;
        let admin = process.client(&created.admin_key)?;
        let tenant_id = created.tenant.unwrap_or_default().tenant_id;
        limit(&process.operator_for(&tenant_id)?, "").await?;
        let (plaintext, key_id) = make_key(&admin, of_product("psa", &["psa:*"])).await?;
        limit(&admin, &key_id).await?;
        first.push((plaintext, key_id));
    }
    Ok((verifier(&operator).await?, first))
}

/// All keys: those of each tenant, and as many like it as there are to be in all.
async fn copies(database: &str, first: Vec<(String, String)>, count: usize) -> Result<Vec<String>> {
    let options = storage::Options {
        url: database.to_owned(),
        connections_max: 2,
        size_bytes_max: 0,
    };
    let db = Db::open(&options).await?;
    let mut keys = Vec::new();
    for (plaintext, key_id) in first {
        let more = count.saturating_sub(keys.len()).min(KEYS_OF_TENANT);
        keys.push(plaintext);
        let mut tx = db.begin().await?;
        for number in 1..more {
            let plaintext = Plaintext::generate()?;
            let copy = tx.query(COPY).bind(format!("{key_id}_{number}"));
            let copy = copy.bind(plaintext.hash().to_vec()).bind(key_id.as_str());
            copy.execute().await?;
            keys.push(plaintext.expose().to_owned());
        }
        tx.commit().await?;
    }
    Ok(keys)
}

async fn limit(admin: &Hub, key_id: &str) -> Result<()> {
    let request = SetRateLimitRequest {
        key_id: key_id.to_owned(),
        requests_per_minute: REQUESTS_PER_MINUTE,
    };
    let set = admin.api_keys().set_rate_limit(request).await;
    set.map(|_| ())
        .map_err(|error| hub_client::Error::from(error).into())
}

/// The key of a backend that verifies those of all tenants.
async fn verifier(operator: &Hub) -> Result<String> {
    let key = ApiKey {
        all_tenants: true,
        ..of_product("psa", &["hub:keys.verify"])
    };
    Ok(make_key(operator, key).await?.0)
}

impl Caller {
    async fn call(&self) -> Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let request = VerifyApiKeyRequest {
            key: self.keys[number % self.keys.len()].clone(),
            product: "psa".to_owned(),
            action: "tickets.read".to_owned(),
            host: HOST.to_owned(),
            path: "/tickets".to_owned(),
            ..VerifyApiKeyRequest::default()
        };
        let told = self.hub.api_keys().verify_api_key(request).await;
        let told = told.map_err(hub_client::Error::from)?.into_inner();
        match told.allowed {
            true => Ok(()),
            false => Err(format!("refused: {}", told.hint).into()),
        }
    }

    /// So many calls.
    async fn count(&self, window: usize, calls: usize) -> Result<()> {
        let calls = (0..calls).map(|_| self.call());
        let mut calls = stream::iter(calls).buffer_unordered(window);
        while let Some(called) = calls.next().await {
            called?;
        }
        Ok(())
    }

    /// Calls for a while, so many at once.
    async fn turn(&self, server: &Server, window: usize, seconds: f64) -> Result<Turn> {
        let before = (server.cpu(), own_cpu());
        let began = Instant::now();
        let until = began + Duration::from_secs_f64(seconds);
        let mut tasks = JoinSet::new();
        for _ in 0..window {
            let caller = self.clone();
            tasks.spawn(async move {
                let mut calls = 0u32;
                while Instant::now() < until {
                    caller.call().await?;
                    calls += 1;
                }
                Ok::<_, hub_benches::Error>(calls)
            });
        }
        let mut calls = 0;
        while let Some(done) = tasks.join_next().await {
            calls += done??;
        }
        let calls = f64::from(calls);
        let cpu = |now: Duration, before| now.saturating_sub(before).as_secs_f64() * 1e6 / calls;
        Ok(Turn {
            per_second: calls / began.elapsed().as_secs_f64(),
            server_cpu: cpu(server.cpu(), before.0),
            client_cpu: cpu(own_cpu(), before.1),
        })
    }
}

/// Requests a second through the client's layer, one after the other.
async fn layer(verifier: &Hub, key: &str, seconds: f64) -> Result<f64> {
    let layer = verifier.api_key_layer("psa").action("tickets.read");
    let layer = layer.host_of(|_| HOST.to_owned());
    let answer = tower::service_fn(async |_: http::Request<Body>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(Body::empty()))
    });
    let mut service = layer.layer(answer);
    let began = Instant::now();
    let mut calls = 0u32;
    while began.elapsed().as_secs_f64() < seconds {
        let request =
            http::Request::get("/tickets").header("authorization", format!("Bearer {key}"));
        let answer = service
            .ready()
            .await?
            .call(request.body(Body::empty())?)
            .await?;
        if !answer.status().is_success() {
            return Err(format!("the layer answers {}", answer.status()).into());
        }
        calls += 1;
    }
    Ok(f64::from(calls) / began.elapsed().as_secs_f64())
}
