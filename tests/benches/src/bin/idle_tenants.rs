//! What 10,000 tenants cost that do nothing: memory and processor time of a hub on SQLite, without
//! streams, with one idle Consume stream of each product for all tenants, and after each tenant had
//! an event.
//!
//! `cargo run --release -p hub-benches --bin idle_tenants`; `--help` for the rest. Linux only.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use futures_util::{StreamExt, stream};
use hub_benches::backend::Backend;
use hub_benches::hub::event;
use hub_benches::options::Setting;
use hub_benches::process::{self, Process, backend_key};
use hub_benches::report::{self, Table};
use hub_benches::{PAYLOAD_BYTES, Result, until_interrupted};
use hub_client::Hub;
use hub_client::proto::hub::event_bus::v1::PublishRequest;
use hub_client::proto::hub::platform::v1::ListProductsRequest;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Request;

/// Resident memory that is allowed with idle streams.
const MIB_MAX: f64 = 300.0;
/// Calls at once.
const AT_ONCE: usize = 32;
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// It is idle when nothing happened for so many looks.
const QUIET_LOOKS: u32 = 20;
/// How long it may take until everything is settled.
const SETTLING: Duration = Duration::from_secs(1800);
const GROUPS: &str = "hub_event_bus_groups_open";

/// Measures what idle tenants cost.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    setting: Setting,
    /// Tenants, each with every product.
    #[arg(long, default_value_t = 10_000)]
    tenants: usize,
    /// Seconds over which processor time is measured; a hub looks for work every 30 s.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// What one state of the hub costs.
struct Cost {
    state: String,
    resident: u64,
    /// Processor time of each second.
    cpu: Duration,
    /// Bytes that were read in each second, from the disk or its cache.
    read: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    until_interrupted(run(&Arguments::parse())).await
}

async fn run(arguments: &Arguments) -> Result<()> {
    let binary = arguments.setting.binary()?;
    let scratch = arguments.setting.scratch()?;
    let dir = scratch.dir("hub")?;
    let database = format!("sqlite:{}", dir.join("hub.db").display());
    let mut costs = Vec::new();
    let hub = Process::serve(&binary, &dir, &database).await?;
    let operator = hub.operator()?;
    let products = products(&operator).await?;
    let began = Instant::now();
    let tenants = tenants(&operator, arguments.tenants).await?;
    eprintln!("tenants made in {:.0} s", began.elapsed().as_secs_f64());
    let mut keys = Vec::new();
    for product in &products {
        keys.push(backend_key(&operator, product).await?);
    }
    let state = format!("{} tenants were made", tenants.len());
    costs.push(cost(&hub, arguments, state).await?);
    // A process of its own for the rest: what making them left is not what they cost.
    drop(hub);
    let hub = Process::serve(&binary, &dir, &database).await?;
    costs.push(cost(&hub, arguments, "started again, no stream".to_owned()).await?);
    let delivered = Arc::new(AtomicU64::new(0));
    let mut streams = JoinSet::new();
    for (product, key) in products.iter().zip(&keys) {
        let backend = Backend::open(&hub.client(key)?, product).await?;
        let delivered = delivered.clone();
        streams.spawn(backend.work(move |_| {
            delivered.fetch_add(1, Ordering::Relaxed);
        }));
    }
    settled(&hub, &delivered, &mut streams).await?;
    let state = format!("{} streams", products.len());
    costs.push(cost(&hub, arguments, state).await?);
    let psa = products.iter().position(|product| product == "psa");
    let psa = hub.client(&keys[psa.ok_or("there is no psa")?])?;
    let (before, began) = (delivered.load(Ordering::Relaxed), Instant::now());
    publish(&psa, &tenants).await?;
    eprintln!("published in {:.0} s", began.elapsed().as_secs_f64());
    settled(&hub, &delivered, &mut streams).await?;
    let count = delivered.load(Ordering::Relaxed) - before;
    eprintln!(
        "idle again after {:.0} s; {:.0} MiB at most",
        began.elapsed().as_secs_f64(),
        mib(peak(&hub)?)
    );
    let state = format!("after an event of each, {count} deliveries");
    costs.push(cost(&hub, arguments, state).await?);
    streams.shutdown().await;
    drop(hub);
    let text = format!(
        "{}; {} tenants with {} products.\n\n{}",
        report::machine(),
        arguments.tenants,
        products.len(),
        table(&costs).text()
    );
    arguments.setting.publish("idle_tenants", &text)
}

async fn products(operator: &Hub) -> Result<Vec<String>> {
    let mut client = operator.platform();
    let listed = client.list_products(ListProductsRequest::default());
    let products = listed.await?.into_inner().products;
    Ok(products
        .into_iter()
        .map(|product| product.product)
        .collect())
}

/// So many new tenants with all products; their ids.
async fn tenants(operator: &Hub, count: usize) -> Result<Vec<String>> {
    let making = (0..count).map(async |number| {
        let created = process::tenant(operator, &format!("Benchmarks {number}"), &[]).await?;
        Ok::<_, hub_benches::Error>(created.tenant.ok_or("no tenant")?.tenant_id)
    });
    let mut making = stream::iter(making).buffer_unordered(AT_ONCE);
    let mut ids = Vec::new();
    while let Some(id) = making.next().await {
        ids.push(id?);
    }
    Ok(ids)
}

/// One event of each tenant.
async fn publish(psa: &Hub, tenants: &[String]) -> Result<()> {
    let client = psa.event_bus();
    let publishing = tenants.iter().map(|tenant| {
        let mut client = client.clone();
        async move {
            let mut request = Request::new(PublishRequest {
                events: vec![event("1".to_owned(), vec![b'x'; PAYLOAD_BYTES].into())],
                ..PublishRequest::default()
            });
            request
                .metadata_mut()
                .insert("x-hub-tenant", tenant.parse()?);
            client.publish(request).await?;
            Ok::<_, hub_benches::Error>(())
        }
    });
    let mut publishing = stream::iter(publishing).buffer_unordered(AT_ONCE);
    while let Some(done) = publishing.next().await {
        done?;
    }
    Ok(())
}

/// Waits until no subscription is at work and nothing is delivered any more.
async fn settled(
    hub: &Process,
    delivered: &AtomicU64,
    streams: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let settling = async {
        let (mut last, mut looks) = (0, 0);
        while looks < QUIET_LOOKS {
            sleep(LOOK_INTERVAL).await;
            if let Some(ended) = streams.try_join_next() {
                ended??;
            }
            let open = hub.metrics().await?.get(GROUPS).copied().unwrap_or(0.0);
            let now = delivered.load(Ordering::Relaxed);
            let quiet = now == last && open == 0.0;
            looks = if quiet { looks + 1 } else { 0 };
            last = now;
        }
        Ok(())
    };
    timeout(SETTLING, settling).await?
}

/// Memory and processor time of a hub to which nothing happens.
async fn cost(hub: &Process, arguments: &Arguments, state: String) -> Result<Cost> {
    sleep(Duration::from_secs(3)).await;
    let (before, read, began) = (cpu(hub)?, read_bytes(hub)?, Instant::now());
    sleep(Duration::from_secs(arguments.seconds.max(1))).await;
    let seconds = began.elapsed().as_secs_f64();
    let cost = Cost {
        resident: hub.server().resident_bytes()?,
        cpu: cpu(hub)?.saturating_sub(before).div_f64(seconds),
        read: ((read_bytes(hub)? - read) as f64 / seconds) as u64,
        state,
    };
    let (state, resident) = (&cost.state, mib(cost.resident));
    eprintln!("{state}: {resident:.0} MiB, {:?} of each second", cost.cpu);
    Ok(cost)
}

/// Processor time of the process with that of threads which have ended, in steps of 10 ms.
fn cpu(hub: &Process) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{}/stat", hub.server().pid()))?;
    // The name, in brackets, may have spaces; user and system time are the 12th and 13th after it.
    let (_, rest) = text.rsplit_once(')').ok_or("there is no name")?;
    let ticks = rest.split_whitespace().skip(11).take(2);
    let ticks = ticks.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(10 * ticks))
}

/// What the process has read by system calls.
fn read_bytes(hub: &Process) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{}/io", hub.server().pid()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("rchar:"));
    Ok(line.ok_or("there is no rchar")?.trim().parse()?)
}

/// The most that was resident so far.
fn peak(hub: &Process) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{}/status", hub.server().pid()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let line = line.ok_or("there is no VmHWM")?.trim();
    Ok(line.trim_end_matches("kB").trim().parse::<u64>()? << 10)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn table(costs: &[Cost]) -> Table {
    let mut table = Table::new(&[
        "",
        "resident MiB",
        "limit",
        "processor ms in each second",
        "KiB read in each second",
    ]);
    for cost in costs {
        let resident = mib(cost.resident);
        let verdict = match resident <= MIB_MAX {
            true => format!("{MIB_MAX} MiB: held"),
            false => format!("{MIB_MAX} MiB: EXCEEDED"),
        };
        table.row(&[
            cost.state.clone(),
            format!("{resident:.0}"),
            verdict,
            format!("{:.1}", cost.cpu.as_secs_f64() * 1e3),
            format!("{:.0}", cost.read as f64 / 1024.0),
        ]);
    }
    table
}
