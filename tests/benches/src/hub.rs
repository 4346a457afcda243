//! Hub: the release binary as a process of its own, and its client.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use hub_client::proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest};
use hub_client::proto::hub::platform::v1::CreateTenantRequest;
use hub_client::{
    Answer, CloudEvent, Consumer, ConsumerState, Data, Delivery, Hub, LeasedEvent, PendingReceipt,
    SubscribeOptions, Subscriber,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::contender::{Feed, Measured, OnEvent};
use crate::hub_reader::Reader;
use crate::round::Run;
use crate::scratch::Scratch;
use crate::server::Server;
use crate::{EVENT_TYPE, PATIENCE, PAYLOAD_BYTES, Result};

/// Base64 of 32 bytes.
const SEALING_KEY: &str = "YmVuY2ggYmVuY2ggYmVuY2ggYmVuY2ggYmVuY2ggb2s=";

/// A server of its own, with a tenant and keys.
#[derive(Debug)]
pub struct HubServer {
    server: Server,
    url: String,
    address: String,
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
        let dir = scratch.dir("hub-sqlite")?;
        let mut command = hub(binary, &dir);
        command.args(["dev", "--no-traffic", "--listen", "127.0.0.1:0"]);
        command.arg("--data-dir").arg(dir.join("data"));
        let (server, ready) = start(command, &dir).await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let keys = &ready["productKeys"];
        Self::connect(server, &ready, text(&keys["psa"]), text(&keys["portal"]))
    }

    /// Starts `hub serve` on an empty PostgreSQL and makes a tenant with keys.
    ///
    /// # Errors
    /// It does not start.
    pub async fn postgres(binary: &Path, scratch: &Scratch, url: &str) -> Result<Self> {
        let dir = scratch.dir("hub-postgres")?;
        let migrated = hub(binary, &dir)
            .args(["migrate", "--database", url])
            .output()?;
        if !migrated.status.success() {
            let why = String::from_utf8_lossy(&migrated.stderr).into_owned();
            return Err(format!("hub migrate: {}", why.trim()).into());
        }
        let mut command = hub(binary, &dir);
        command.args(["serve", "--listen", "127.0.0.1:0", "--database", url]);
        command.env("HUB_SEALING_KEY", SEALING_KEY);
        command.arg("--data-dir").arg(dir.join("data"));
        command
            .arg("--operator-key-file")
            .arg(dir.join("operator.key"));
        let (server, ready) = start(command, &dir).await?;
        let url = ready["http"].as_str().unwrap_or_default();
        let operator_key = ready["operatorKey"].as_str().unwrap_or_default();
        let operator = Hub::builder(url).api_key(operator_key).connect_lazy()?;
        let request = CreateTenantRequest {
            name: "Benchmarks".into(),
            ..Default::default()
        };
        let created = operator.platform().create_tenant(request).await;
        let created = created.map_err(hub_client::Error::from)?.into_inner();
        let admin = Hub::builder(url)
            .api_key(created.admin_key)
            .connect_lazy()?;
        let psa = product_key(&admin, "psa").await?;
        let portal = product_key(&admin, "portal").await?;
        Self::connect(server, &ready, psa, portal)
    }

    fn connect(server: Server, ready: &Value, psa_key: String, portal_key: String) -> Result<Self> {
        let text = |name: &str| ready[name].as_str().unwrap_or_default().to_owned();
        let url = text("http");
        let psa = Hub::builder(&url).api_key(&psa_key).connect_lazy()?;
        Ok(HubServer {
            server,
            url,
            address: text("grpc"),
            portal_key,
            psa,
            ids: AtomicU64::new(0),
        })
    }

    /// Its process.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// A connection of its own with the key of Portal, to which the events are routed.
    ///
    /// # Errors
    /// The URL can't be used.
    pub fn reader(&self) -> Result<Hub> {
        Ok(Hub::builder(&self.url)
            .api_key(&self.portal_key)
            .connect_lazy()?)
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
        CloudEvent {
            id: self.ids.fetch_add(1, Ordering::Relaxed).to_string(),
            source: "/psa/tickets".into(),
            spec_version: "1.0".into(),
            r#type: EVENT_TYPE.into(),
            data: Some(Data::BinaryData(payload)),
            ..Default::default()
        }
    }

    /// Number and duration of all commits, from `/metrics`.
    async fn commits(&self) -> Result<Commits> {
        let mut stream = TcpStream::connect(&self.address).await?;
        let request = format!(
            "GET /metrics HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            self.address
        );
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut text)).await??;
        let value = |name: &str| {
            let lines = text.lines().filter_map(|line| line.strip_prefix(name));
            lines
                .filter_map(|rest| rest.trim().parse::<f64>().ok())
                .sum()
        };
        Ok(Commits {
            count: value("hub_journal_commit_seconds_count"),
            seconds: value("hub_journal_commit_seconds_sum"),
        })
    }
}

/// The program, without the variables of this process that it would read.
fn hub(binary: &Path, dir: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HUB_") {
            command.env_remove(name);
        }
    }
    command.current_dir(dir);
    command
}

async fn start(mut command: Command, dir: &Path) -> Result<(Server, Value)> {
    let file: PathBuf = dir.join("ready.json");
    command.arg("--ready-file").arg(&file);
    let mut server = Server::start("hub", &mut command, &dir.join("log"))?;
    let ready = server
        .until(async || serde_json::from_slice(&fs::read(&file).ok()?).ok())
        .await?;
    Ok((server, ready))
}

/// A key with which a product may publish and read.
///
/// # Errors
/// Hub refuses it.
pub async fn product_key(admin: &Hub, product: &str) -> Result<String> {
    let request = CreateApiKeyRequest {
        api_key: Some(ApiKey {
            name: product.into(),
            product: product.into(),
            scopes: vec!["hub:events.publish".into(), "hub:events.read".into()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let created = admin.api_keys().create_api_key(request).await;
    let created = created.map_err(hub_client::Error::from)?;
    Ok(created.into_inner().plaintext)
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
