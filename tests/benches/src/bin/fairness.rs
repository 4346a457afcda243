//! One Consume stream for all tenants: how long 999 quiet tenants wait for their events, alone and
//! beside one that publishes 10,000 events a second.
//!
//! `cargo run --release -p hub-benches --bin fairness`; `--help` for the rest.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use futures_util::{FutureExt, StreamExt, stream};
use hub_benches::backend::Backend;
use hub_benches::hub::event;
use hub_benches::options::Setting;
use hub_benches::process::{self, Process, backend_key};
use hub_benches::report::{self, Table};
use hub_benches::stats::{Series, percentile, rate};
use hub_benches::{PATIENCE, PAYLOAD_BYTES, Result, until_interrupted};
use hub_client::proto::hub::event_bus::v1::{EventRecord, PublishRequest};
use hub_client::{Hub, PublisherOptions};
use tokio::runtime;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};

/// How many times longer the quiet tenants may wait beside the busy one.
const GOAL: f64 = 2.0;
/// The products that the tenants have: who publishes, and who consumes.
const PRODUCTS: [&str; 2] = ["psa", "portal"];
/// Tenants that are made at once.
const MAKING: usize = 16;
/// Pause between two bursts of the busy tenant.
const BURST: Duration = Duration::from_millis(1);
/// Events of a round before this are not measured.
const WARM_UP: Duration = Duration::from_secs(2);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Ids of the events of the quiet tenants begin so.
const QUIET: &str = "quiet";

/// Measures how evenly tenants are served.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    setting: Setting,
    /// Tenants that publish one event a second.
    #[arg(long, default_value_t = 999)]
    tenants: usize,
    /// Events a second of the tenant that floods.
    #[arg(long, default_value_t = 10_000)]
    flood: u64,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Rounds; in each it is measured without and with the flood.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// A hub with its tenants.
struct Bench {
    hub: Process,
    psa_key: String,
    tenants: Vec<MetadataValue<Ascii>>,
    busy: String,
    /// Events of the busy tenant that were delivered.
    flooded: Arc<AtomicU64>,
    /// Of the measurement that runs.
    times: Arc<Mutex<Arc<Times>>>,
}

/// When the events of the quiet tenants were sent, acknowledged and delivered, in nanoseconds since
/// the round began; 0 = not yet.
struct Times {
    number: u64,
    began: Instant,
    sent: Vec<AtomicU64>,
    acked: Vec<AtomicU64>,
    delivered: Vec<AtomicU64>,
}

/// What was measured with or without the flood, in milliseconds by round.
#[derive(Default)]
struct Measured {
    delivery: [Series; 2],
    publish: [Series; 2],
    flood: Series,
}

// The consumer and the quiet publishers are on this thread, the busy one is on another.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    until_interrupted(run(&Arguments::parse())).await
}

async fn run(arguments: &Arguments) -> Result<()> {
    let binary = arguments.setting.binary()?;
    let scratch = arguments.setting.scratch()?;
    let dir = scratch.dir("hub")?;
    let database = format!("sqlite:{}", dir.join("hub.db").display());
    let hub = Process::serve(&binary, &dir, &database).await?;
    eprintln!("hub: process {}", hub.server().pid());
    let operator = hub.operator()?;
    let mut tenants = tenants(&operator, arguments.tenants + 1).await?;
    let portal_key = backend_key(&operator, "portal").await?;
    let bench = Bench {
        psa_key: backend_key(&operator, "psa").await?,
        busy: tenants.pop().ok_or("there is no tenant")?,
        tenants: tenants
            .iter()
            .map(|id| Ok(id.parse()?))
            .collect::<Result<_>>()?,
        flooded: Arc::default(),
        times: Arc::new(Mutex::new(Arc::new(Times::new(0, 0)))),
        hub,
    };
    let reader = bench.hub.client(&portal_key)?;
    let mut working = bench.consume(&reader).await?;
    // Puts all subscriptions to work, and may take as long as it likes.
    bench.measure(0, None, &mut working).await?;
    let mut results = [Measured::default(), Measured::default()];
    for round in 0..arguments.rounds {
        let floods = [None, Some(arguments.flood)];
        for (flood, measured) in floods.into_iter().zip(&mut results) {
            let seconds = arguments.seconds;
            let (times, flood) = bench.measure(seconds, flood, &mut working).await?;
            let first = bench.tenants.len() * WARM_UP.as_secs() as usize;
            let told = measured.take(&times, first, flood);
            eprintln!("round {}: {told}", round + 1);
        }
    }
    working.shutdown().await;
    drop(bench);
    let text = format!(
        "{}; {} tenants of 1 event/s; {} rounds of {} s.\n\n{}",
        report::machine(),
        arguments.tenants,
        arguments.rounds,
        arguments.seconds,
        table(arguments, &results).text()
    );
    arguments.setting.publish("fairness", &text)
}

/// So many new tenants; their ids.
async fn tenants(operator: &Hub, count: usize) -> Result<Vec<String>> {
    let making = (0..count).map(async |number| {
        let created = process::tenant(operator, &format!("Benchmarks {number}"), &PRODUCTS).await?;
        Ok::<_, hub_benches::Error>(created.tenant.ok_or("no tenant")?.tenant_id)
    });
    let mut making = stream::iter(making).buffered(MAKING);
    let mut ids = Vec::new();
    while let Some(id) = making.next().await {
        ids.push(id?);
    }
    Ok(ids)
}

impl Bench {
    /// The stream that serves all tenants, for all measurements.
    async fn consume(&self, reader: &Hub) -> Result<JoinSet<Result<()>>> {
        let backend = Backend::open(reader, "portal").await?;
        let (times, flooded) = (self.times.clone(), self.flooded.clone());
        let mut working = JoinSet::new();
        working.spawn(backend.work(move |record| {
            let times = times.lock().unwrap_or_else(PoisonError::into_inner);
            if !times.note(record) {
                flooded.fetch_add(1, Ordering::Relaxed);
            }
        }));
        Ok(working)
    }

    /// One measurement: the times of its events, and the events a second of the busy tenant.
    async fn measure(
        &self,
        seconds: u64,
        flood: Option<u64>,
        working: &mut JoinSet<Result<()>>,
    ) -> Result<(Arc<Times>, Option<f64>)> {
        let events = self.tenants.len() * (WARM_UP.as_secs() + seconds) as usize;
        let times = {
            let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
            *times = Arc::new(Times::new(times.number + 1, events));
            times.clone()
        };
        let before = self.flooded.load(Ordering::Relaxed);
        let flood = flood.map(|rate| Flood::start(self, rate, before));
        self.publish(&times).await?;
        let flood = match flood {
            Some(flood) => Some(flood.stop().await?),
            None => None,
        };
        let sent = before + flood.map_or(0, |(events, _)| events);
        let all = async {
            loop {
                if times.are_all_delivered() && self.flooded.load(Ordering::Relaxed) >= sent {
                    return Ok(());
                }
                if let Some(ended) = working.try_join_next() {
                    return ended?;
                }
                sleep(LOOK_INTERVAL).await;
            }
        };
        timeout(PATIENCE, all).await??;
        Ok((times, flood.map(|(_, rate)| rate)))
    }

    /// An event of each tenant in each second.
    async fn publish(&self, times: &Arc<Times>) -> Result<()> {
        let client = self.hub.client(&self.psa_key)?.event_bus();
        let mut pace = interval(Duration::from_secs(1) / u32::try_from(self.tenants.len())?);
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut publishing: JoinSet<Result<()>> = JoinSet::new();
        for slot in 0..times.sent.len() {
            pace.tick().await;
            let id = format!("{QUIET} {slot} {}", times.number);
            let events = vec![event(id, vec![b'x'; PAYLOAD_BYTES].into())];
            let mut request = Request::new(PublishRequest {
                events,
                ..PublishRequest::default()
            });
            let tenant = self.tenants[slot % self.tenants.len()].clone();
            request.metadata_mut().insert("x-hub-tenant", tenant);
            let (mut client, times) = (client.clone(), times.clone());
            publishing.spawn(async move {
                times.sent[slot].store(times.now(), Ordering::Relaxed);
                client.publish(request).await?;
                times.acked[slot].store(times.now(), Ordering::Relaxed);
                Ok(())
            });
            while let Some(done) = publishing.try_join_next() {
                done??;
            }
        }
        while let Some(done) = publishing.join_next().await {
            done??;
        }
        Ok(())
    }
}

impl Times {
    fn new(number: u64, events: usize) -> Self {
        let zeros = || (0..events).map(|_| AtomicU64::new(0)).collect();
        Times {
            number,
            began: Instant::now(),
            sent: zeros(),
            acked: zeros(),
            delivered: zeros(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Notes when an event of a quiet tenant came; false if it is not one.
    fn note(&self, record: &EventRecord) -> bool {
        let id = record.event.as_ref().map_or("", |event| &event.id);
        let mut words = id.split(' ');
        if words.next() != Some(QUIET) {
            return false;
        }
        let slot = words.next().and_then(|slot| slot.parse::<usize>().ok());
        if let Some(delivered) = slot.and_then(|slot| self.delivered.get(slot)) {
            delivered.store(self.now(), Ordering::Relaxed);
        }
        true
    }

    fn are_all_delivered(&self) -> bool {
        let mut delivered = self.delivered.iter().rev();
        delivered.all(|time| time.load(Ordering::Relaxed) > 0)
    }

    /// Milliseconds between two times of each event from `first` on, sorted.
    fn between(&self, from: &[AtomicU64], to: &[AtomicU64], first: usize) -> Vec<f64> {
        let nanos = |time: &AtomicU64| time.load(Ordering::Relaxed);
        let pairs = from.iter().zip(to).skip(first);
        // The event may come before the answer to its publisher.
        let mut millis: Vec<f64> = pairs
            .map(|(from, to)| nanos(to).saturating_sub(nanos(from)) as f64 / 1e6)
            .collect();
        millis.sort_by(f64::total_cmp);
        millis
    }
}

impl Measured {
    /// Takes the figures of a round; returns what to tell a person.
    fn take(&mut self, times: &Times, first: usize, flood: Option<f64>) -> String {
        let delivery = times.between(&times.acked, &times.delivered, first);
        let publish = times.between(&times.sent, &times.acked, first);
        for (series, millis) in [
            (&mut self.delivery, &delivery),
            (&mut self.publish, &publish),
        ] {
            series[0].push(percentile(millis, 0.5));
            series[1].push(percentile(millis, 0.99));
        }
        if let Some(flood) = flood {
            self.flood.push(flood);
        }
        format!(
            "delivery p50 {:.2} ms, p99 {:.2} ms; publish p99 {:.2} ms; {:.0} events/s of one",
            percentile(&delivery, 0.5),
            percentile(&delivery, 0.99),
            percentile(&publish, 0.99),
            flood.unwrap_or_default(),
        )
    }
}

fn table(arguments: &Arguments, [without, with]: &[Measured; 2]) -> Table {
    let mut table = Table::new(&[
        "",
        "flood, events/s",
        "ack to delivery, p50 ms",
        "p99 ms",
        "publish to ack, p50 ms",
        "p99 ms",
    ]);
    let millis = |value: f64| format!("{value:.2}");
    let names = ["alone".to_owned(), format!("beside {}/s", arguments.flood)];
    for (name, measured) in names.into_iter().zip([without, with]) {
        let mut row = vec![name, measured.flood.show(rate)];
        let series = measured.delivery.iter().chain(&measured.publish);
        row.extend(series.map(|series| series.show(millis)));
        table.row(&row);
    }
    let ratio = |with: &Series, without: &Series| with.ratio(without).unwrap_or(f64::INFINITY);
    let p99 = ratio(&with.delivery[1], &without.delivery[1]);
    let publish = [0, 1].map(|at| ratio(&with.publish[at], &without.publish[at]));
    let verdict = if p99 <= GOAL { "held" } else { "MISSED" };
    table.row(&[
        "ratio of medians".to_owned(),
        "-".to_owned(),
        // Of next to nothing: most events come before the answer.
        "-".to_owned(),
        format!("{p99:.2} (goal {GOAL}: {verdict})"),
        format!("{:.2}", publish[0]),
        format!("{:.2}", publish[1]),
    ]);
    table
}

/// A tenant that publishes much, on a thread of its own so that it does not delay the clock of the
/// others.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<(u64, f64)>>,
}

impl Flood {
    /// Begins with the event of this number.
    fn start(bench: &Bench, rate: u64, first: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (url, key) = (bench.hub.url().to_owned(), bench.psa_key.clone());
        let tenant = bench.busy.clone();
        let thread = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let hub = Hub::builder(url).api_key(key).connect_lazy()?;
                let options = PublisherOptions::default().tenant(tenant);
                flood(&hub, options, rate, first, &stopped).await
            })
        });
        Flood { stop, thread }
    }

    /// How many events were acknowledged, and how many in a second.
    async fn stop(self) -> Result<(u64, f64)> {
        self.stop.store(true, Ordering::Relaxed);
        while !self.thread.is_finished() {
            sleep(LOOK_INTERVAL).await;
        }
        let done = self.thread.join();
        done.map_err(|_| hub_benches::Error::from("the flood panicked"))?
    }
}

async fn flood(
    hub: &Hub,
    options: PublisherOptions,
    rate: u64,
    first: u64,
    stopped: &AtomicBool,
) -> Result<(u64, f64)> {
    let publisher = hub.publisher_with(options);
    let mut pace = interval(BURST);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let began = Instant::now();
    let mut receipts = VecDeque::new();
    let mut sent = 0;
    while !stopped.load(Ordering::Relaxed) {
        pace.tick().await;
        let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
        while sent < due {
            let id = format!("busy {}", first + sent);
            let payload = vec![b'x'; PAYLOAD_BYTES];
            receipts.push_back(publisher.send(event(id, payload.into())).await?);
            sent += 1;
        }
        while let Some(receipt) = receipts.front_mut().and_then(FutureExt::now_or_never) {
            receipt?;
            receipts.pop_front();
        }
    }
    for receipt in receipts {
        receipt.await?;
    }
    let rate = sent as f64 / began.elapsed().as_secs_f64();
    publisher.close().await?;
    Ok((sent, rate))
}
