//! How long a durable subscription stands still when the process that owns it is killed.
//!
//! `cargo run --release -p hub-benches --bin ownership`; `--help` for the rest. Processes on one
//! PostgreSQL; the consumer and the publisher are connected to one that does not own the
//! subscription. Then that one owns it, the killed one is started again, and they change roles.

use std::time::{Duration, Instant};

use clap::Parser;
use hub_benches::hub::event;
use hub_benches::options::Setting;
use hub_benches::postgres::Postgres;
use hub_benches::process::{self, Process, product_key};
use hub_benches::report::{self, Table};
use hub_benches::stats::Series;
use hub_benches::{PATIENCE, PAYLOAD_BYTES, Result, until_interrupted};
use hub_client::{Answer, Consumer, ConsumerState, Data, Hub, LeasedEvent};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// Seconds in which half of the deliveries are to begin again.
const GOAL: f64 = 2.0;
/// Pause between two looks at the metrics.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long events are delivered before a kill, at least.
const STEADY: Duration = Duration::from_secs(1);
/// A process says that it lives about twice a second; kills are spread over that time.
const BEAT_MILLIS: usize = 500;
/// Step of the spreading; it has no divisor in common with the time.
const STEP_MILLIS: usize = 137;
const GROUPS: &str = "hub_event_bus_groups_open";
const PROCESSES: &str = "hub_processes_live";

/// Measures how long a new owner takes.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    setting: Setting,
    /// Processes on the database, at least 2.
    #[arg(long, default_value_t = 2)]
    processes: usize,
    /// How often the owner is killed.
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Events published in a second.
    #[arg(long, default_value_t = 100)]
    rate: u32,
}

/// What all rounds share.
struct Bench {
    hubs: Vec<Process>,
    portal_key: String,
    psa_key: String,
    began: Instant,
    /// When the newest event that was delivered had been published, in nanoseconds.
    newest: watch::Sender<u64>,
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
    let mut bench = Bench {
        portal_key: product_key(&admin, "portal").await?,
        psa_key: product_key(&admin, "psa").await?,
        hubs,
        began: Instant::now(),
        newest: watch::Sender::new(0),
    };
    let mut seconds = Series::default();
    let mut consumer = bench.consumer(0).await?;
    for kill in 0..arguments.kills {
        let (owner, survivor) = bench.roles(kill);
        let moved = bench.consumer(survivor).await?;
        consumer.shutdown().await?;
        consumer = moved;
        let took = bench.kill(owner, survivor, arguments, kill).await?;
        eprintln!("kill {}: {:.2} s", kill + 1, took.as_secs_f64());
        seconds.push(took.as_secs_f64());
        let dir = process::folder(&scratch, owner);
        let again = Process::serve(&binary, &dir, postgres.url()).await?;
        bench.hubs.insert(owner, again);
        bench.is_seen(owner).await?;
    }
    consumer.shutdown().await?;
    let text = format!(
        "{}; {} processes, {} events/s.\n\n{}",
        report::machine(),
        bench.hubs.len(),
        arguments.rate,
        table(arguments.kills, &seconds).text()
    );
    drop(bench);
    arguments.setting.publish("ownership", &text)
}

fn table(kills: usize, seconds: &Series) -> Table {
    let mut table = Table::new(&["kills of the owner", "seconds until delivery", "goal"]);
    let median = seconds.median().unwrap_or(f64::INFINITY);
    let verdict = if median <= GOAL { "held" } else { "MISSED" };
    table.row(&[
        kills.to_string(),
        seconds.show(|seconds| format!("{seconds:.2}")),
        format!("median {GOAL} s: {verdict}"),
    ]);
    table
}

impl Bench {
    /// Who owns the subscription at a kill, and who is to own it after that.
    fn roles(&self, kill: usize) -> (usize, usize) {
        let hubs = self.hubs.len();
        (kill % hubs, (kill + 1) % hubs)
    }

    /// A consumer that is connected to this process and acks everything.
    async fn consumer(&self, hub: usize) -> Result<Consumer> {
        let newest = self.newest.clone();
        let builder = self.hubs[hub].client(&self.portal_key)?.consume("portal");
        let consumer = builder.run(move |leased: LeasedEvent| {
            newest.send_if_modified(|newest| {
                let sent = sent(&leased);
                let newer = sent > *newest;
                *newest = sent.max(*newest);
                newer
            });
            async { Answer::Ack }
        });
        let mut state = consumer.state();
        let live = state.wait_for(|state| matches!(state, ConsumerState::Live));
        timeout(PATIENCE, live).await??;
        Ok(consumer)
    }

    /// Kills the owner; returns how long it took until an event was delivered that was published
    /// after that.
    async fn kill(
        &mut self,
        owner: usize,
        survivor: usize,
        arguments: &Arguments,
        kill: usize,
    ) -> Result<Duration> {
        for (number, hub) in self.hubs.iter().enumerate() {
            let groups = hub.metrics().await?.get(GROUPS).copied().unwrap_or(0.0);
            if (groups > 0.0) != (number == owner) {
                return Err(format!("process {number} owns {groups} subscriptions").into());
            }
        }
        let client = self.hubs[survivor].client(&self.psa_key)?;
        let publishing = Publishing::start(&client, arguments.rate, self.began);
        let spread = kill * STEP_MILLIS % BEAT_MILLIS;
        sleep(STEADY + Duration::from_millis(spread as u64)).await;
        let mut newest = self.newest.subscribe();
        if self.nanos().saturating_sub(*newest.borrow()) > STEADY.as_nanos() as u64 {
            return Err("nothing was delivered before the kill".into());
        }
        let process = self.hubs.remove(owner);
        let (killed, at) = (Instant::now(), self.nanos());
        drop(process);
        timeout(PATIENCE, newest.wait_for(|newest| *newest > at)).await??;
        let took = killed.elapsed();
        publishing.stop().await?;
        Ok(took)
    }

    /// Waits until the others know of the one that was started again; it has known them since then.
    async fn is_seen(&self, again: usize) -> Result<()> {
        let others = self.hubs.iter().enumerate();
        let others = others.filter(|(number, _)| *number != again);
        let seen = async {
            for (_, hub) in others {
                while hub.metrics().await?.get(PROCESSES).copied() != Some(self.hubs.len() as f64) {
                    sleep(LOOK_INTERVAL).await;
                }
            }
            Ok(())
        };
        timeout(PATIENCE, seen).await?
    }

    fn nanos(&self) -> u64 {
        nanos(self.began)
    }
}

fn nanos(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// When an event was published; 0 if that is not in it.
fn sent(leased: &LeasedEvent) -> u64 {
    match leased.event().and_then(|event| event.data.as_ref()) {
        Some(Data::BinaryData(payload)) => payload
            .first_chunk()
            .map_or(0, |sent| u64::from_be_bytes(*sent)),
        _ => 0,
    }
}

/// Events at a steady pace.
struct Publishing {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
}

impl Publishing {
    fn start(client: &Hub, rate: u32, began: Instant) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let publisher = client.publisher();
        let task = tokio::spawn(async move {
            let mut pace = interval(Duration::from_secs(1) / rate.max(1));
            pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut receipts = Vec::new();
            loop {
                tokio::select! {
                    _ = pace.tick() => {}
                    _ = &mut stopped => break,
                }
                let mut payload = vec![b'x'; PAYLOAD_BYTES];
                let now = nanos(began);
                payload[..8].copy_from_slice(&now.to_be_bytes());
                let event = event(now.to_string(), payload.into());
                receipts.push(publisher.send(event).await?);
            }
            for receipt in receipts {
                receipt.await?;
            }
            Ok(publisher.close().await?)
        });
        Publishing { stop, task }
    }

    /// Waits until all was acknowledged.
    async fn stop(self) -> Result<()> {
        // It has failed if it does not listen.
        let _ = self.stop.send(());
        self.task.await?
    }
}
