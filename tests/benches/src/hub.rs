//! Hub: the release binary as a process of its own, and its client.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use hub_client::{
    Answer, CloudEvent, Consumer, ConsumerState, Data, Delivery, Hub, LeasedEvent, PendingReceipt,
    SubscribeOptions, Subscriber,
};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::contender::{Feed, Measured, OnEvent};
use crate::hub_reader::Reader;
use crate::process::{self, Process, product_key};
use crate::round::Run;
use crate::scratch::Scratch;
use crate::server::Server;
use crate::{EVENT_TYPE, PATIENCE, PAYLOAD_BYTES, Result};

/// A server of its own, with a tenant and keys.
#[derive(Debug)]
pub struct HubServer {
    process: Process,
    portal_key: String,
    psa: Hub,
    ids: AtomicU64,
}

/// What the journal has committed so far.
#[derive(Debug, Clone, Copy, Default)]
struct Commits {
    count: f64,
    seconds: f64,
}

impl HubServer {
    /// Starts `hub dev` on SQLite.
    ///
    /// # Errors
    /// It does not start.
    pub async fn sqlite(binary: &Path, scratch: &Scratch) -> Result<Self> {
        let process = Process::dev(binary, &scratch.dir("hub-sqlite")?).await?;
        let keys = &process.ready()["productKeys"];
        let key = |product: &str| keys[product].as_str().unwrap_or_default().to_owned();
        let (psa, portal) = (key("psa"), key("portal"));
        Self::connect(process, &psa, portal)
    }

    /// Starts `hub serve` on an empty PostgreSQL and makes a tenant with keys.
    ///
    /// # Errors
    /// It does not start.
    pub async fn postgres(binary: &Path, scratch: &Scratch, url: &str) -> Result<Self> {
        let dir = scratch.dir("hub-postgres")?;
        process::migrate(binary, &dir, url)?;
        let process = Process::serve(binary, &dir, url).await?;
        let created = process::tenant(&process.operator()?, "Benchmarks", &[]).await?;
        let admin = process.client(&created.admin_key)?;
        let psa = product_key(&admin, "psa").await?;
        let portal = product_key(&admin, "portal").await?;
        Self::connect(process, &psa, portal)
    }

    fn connect(process: Process, psa_key: &str, portal_key: String) -> Result<Self> {
        Ok(HubServer {
            psa: process.client(psa_key)?,
            process,
            portal_key,
            ids: AtomicU64::new(0),
        })
    }

    /// Its process.
    pub fn server(&self) -> &Server {
        self.process.server()
    }

    /// A connection of its own with the key of Portal, to which the events are routed.
    ///
    /// # Errors
    /// The URL can't be used.
    pub fn reader(&self) -> Result<Hub> {
        self.process.client(&self.portal_key)
    }

    /// Keeps `window` events in flight for `duration`, with the publisher of the client.
    ///
    /// # Errors
    /// Hub refuses an event.
    pub async fn publish(&self, window: usize, duration: Duration) -> Result<Run> {
        let publisher = self.psa.publisher();
        let before = self.commits().await?;
        let mut in_flight: VecDeque<PendingReceipt> = VecDeque::with_capacity(window);
        let started = Instant::now();
        let mut events = 0;
        loop {
            while in_flight.len() < window && started.elapsed() < duration {
                let payload = Bytes::from_static(&[b'x'; PAYLOAD_BYTES]);
                in_flight.push_back(publisher.send(self.event(payload)).await?);
            }
            let Some(oldest) = in_flight.pop_front() else {
                break;
            };
            oldest.await?;
            events += 1;
            while let Some(receipt) = in_flight.front_mut().and_then(FutureExt::now_or_never) {
                receipt?;
                in_flight.pop_front();
                events += 1;
            }
        }
        let mut run = Run::new(events, started.elapsed());
        publisher.close().await?;
        let after = self.commits().await?;
        run.commits = after.count - before.count;
        run.commit_time = Duration::from_secs_f64((after.seconds - before.seconds).max(0.0));
        Ok(run)
    }

    /// As [`publish`](HubServer::publish), with subscribers of another product on a connection
    /// each, until all have everything. `light` ones decode the payload only.
    ///
    /// # Errors
    /// Hub refuses something.
    pub async fn fanout(
        &self,
        readers: usize,
        light: bool,
        window: usize,
        duration: Duration,
    ) -> Result<Run> {
        let mut tasks = JoinSet::new();
        let measured = Measured::new(readers);
        for reader in 0..readers {
            let (hub, on_event) = (self.reader()?, measured.counter(reader));
            if light {
                let reader = Reader::live(hub.transport()).await?;
                tasks.spawn(reader.read(on_event));
            } else {
                let live = live(hub.subscribe(SubscribeOptions::default())).await?;
                tasks.spawn(read(live, on_event));
            }
        }
        let started = Instant::now();
        let published = self.publish(window, duration).await?;
        let run = measured.until_all_have(published.events, started, &mut tasks);
        let run = run.await;
        tasks.shutdown().await;
        Ok(Run {
            commits: published.commits,
            commit_time: published.commit_time,
            ..run?
        })
    }

    /// As [`publish`](HubServer::publish), with one consumer of Portal's durable subscription that
    /// handles up to `window` events at once, until the hub has taken all acks.
    ///
    /// # Errors
    /// Hub refuses something.
    pub async fn consume(&self, window: usize, duration: Duration) -> Result<Run> {
        let consumer = self.consumer(window).await?;
        let mut counts = consumer.counts();
        let started = Instant::now();
        let published = self.publish(window, duration).await?;
        let all = counts.wait_for(|counts| counts.acked >= published.events);
        timeout(PATIENCE, all).await??;
        consumer.shutdown().await?;
        let run = Run::new(published.events, started.elapsed());
        let counts = *counts.borrow();
        if (counts.received, counts.acked) != (run.events, run.events) {
            return Err(
                format!("{} events were not acked once each: {counts:?}", run.events).into(),
            );
        }
        Ok(Run {
            commits: published.commits,
            commit_time: published.commit_time,
            ..run
        })
    }

    /// A consumer of Portal that acks everything, on a connection of its own.
    ///
    /// # Errors
    /// It was not connected within [`PATIENCE`].
    pub async fn consumer(&self, concurrency: usize) -> Result<Consumer> {
        let builder = self.reader()?.consume("portal").concurrency(concurrency);
        let consumer = builder.run(acked);
        let mut state = consumer.state();
        let live = state.wait_for(|state| matches!(state, ConsumerState::Live));
        timeout(PATIENCE, live).await??;
        Ok(consumer)
    }

    /// Sends the events of `feed` to one subscriber.
    ///
    /// # Errors
    /// Hub refuses something.
    pub async fn latency(&self, mut feed: Feed) -> Result<()> {
        let publisher = self.psa.publisher();
        let mut tasks = JoinSet::new();
        let live = live(self.reader()?.subscribe(SubscribeOptions::default())).await?;
        tasks.spawn(read(live, feed.on_event()));
        while let Some(payload) = feed.next().await {
            // Whether it was refused is told by the end.
            drop(publisher.send(self.event(payload.into())).await?);
        }
        publisher.close().await?;
        let done = feed.until_all_arrived(&mut tasks).await;
        tasks.shutdown().await;
        done
    }

    fn event(&self, payload: Bytes) -> CloudEvent {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        event(id.to_string(), payload)
    }

    /// Number and duration of all commits.
    async fn commits(&self) -> Result<Commits> {
        let metrics = self.process.metrics().await?;
        let value = |name: &str| metrics.get(name).copied().unwrap_or_default();
        Ok(Commits {
            count: value("hub_journal_commit_seconds_count"),
            seconds: value("hub_journal_commit_seconds_sum"),
        })
    }
}

/// An event of PSA that is routed to Portal.
pub fn event(id: String, payload: Bytes) -> CloudEvent {
    CloudEvent {
        id,
        source: "/psa/tickets".into(),
        spec_version: "1.0".into(),
        r#type: EVENT_TYPE.into(),
        data: Some(Data::BinaryData(payload)),
        ..Default::default()
    }
}

/// Waits until what comes next is live.
///
/// # Errors
/// The subscriber ended, or was not live within [`PATIENCE`].
pub async fn live(mut subscriber: Subscriber) -> Result<Subscriber> {
    let caught_up = async {
        while let Some(delivery) = subscriber.next().await {
            if let Delivery::CaughtUp(_) = delivery? {
                return Ok(subscriber);
            }
        }
        Err("a subscriber ended".into())
    };
    timeout(PATIENCE, caught_up).await?
}

async fn acked(event: LeasedEvent) -> Answer {
    let data = event.event().and_then(|event| event.data.as_ref());
    match data {
        Some(Data::BinaryData(payload)) if payload.len() == PAYLOAD_BYTES => Answer::Ack,
        _ => Answer::fail("an event came without its payload"),
    }
}

async fn read(mut subscriber: Subscriber, mut on_event: OnEvent) -> Result<()> {
    while let Some(delivery) = subscriber.next().await {
        match delivery? {
            Delivery::Events(batch) => {
                for record in &batch.events {
                    let data = record.event.as_ref().and_then(|event| event.data.as_ref());
                    match data {
                        Some(Data::BinaryData(payload)) => on_event(payload),
                        _ => return Err("an event came without its payload".into()),
                    }
                }
            }
            Delivery::Gap(gap) => return Err(format!("events are missing: {gap:?}").into()),
            Delivery::Progress(_) | Delivery::CaughtUp(_) => {}
        }
    }
    Ok(())
}
