//! NATS JetStream with `sync_interval: always`: an acknowledgement comes after the sync.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::contender::{Feed, Measured, OnEvent};
use crate::nats_connection::{Connection, Message, publish, publish_with_headers};
use crate::round::Run;
use crate::scratch::{Scratch, free_port};
use crate::server::Server;
use crate::{PAYLOAD_BYTES, Result};

/// Syncing before the acknowledgement exists since this version.
const VERSION_SYNC_ALWAYS: (u32, u32) = (2, 10);
/// Atomic batches exist since this version.
const VERSION_BATCHES: (u32, u32) = (2, 12);
/// Most messages of an atomic batch.
const BATCH_MAX: usize = 1000;
/// Messages that a consumer may have without an ack; NATS's default of 1,000 was no faster.
const ACK_PENDING_MAX: usize = 10_000;
/// Why a reader's stream is interrupted.
const STALLED: &str = "Nats-Consumer-Stalled:";

/// A server of its own.
#[derive(Debug)]
pub struct Nats {
    server: Server,
    port: u16,
    version: (u32, u32),
    names: AtomicU64,
}

impl Nats {
    /// Starts the newest `nats-server` of the path.
    ///
    /// # Errors
    /// There is none, it is too old, or it does not start.
    pub async fn start(scratch: &Scratch) -> Result<Self> {
        let (program, version) = newest().ok_or("nats-server is not installed")?;
        if version < VERSION_SYNC_ALWAYS {
            let (major, minor) = version;
            let why = format!("nats-server {major}.{minor} can't sync before it acknowledges");
            return Err(why.into());
        }
        let dir = scratch.dir("nats")?;
        let port = free_port()?;
        let config = dir.join("config");
        let store = dir.join("store");
        fs::write(
            &config,
            format!(
                "listen: \"127.0.0.1:{port}\"\n\
                 jetstream {{ store_dir: {store:?}, sync_interval: always }}\n"
            ),
        )?;
        let mut command = Command::new(program);
        command.arg("--config").arg(&config);
        let mut server = Server::start("NATS", &mut command, &dir.join("log"))?;
        server
            .until(async || Connection::open(port, "ready").await.ok())
            .await?;
        Ok(Nats {
            server,
            port,
            version,
            names: AtomicU64::new(0),
        })
    }

    /// Its process.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Whether atomic batches are used.
    pub fn batches(&self) -> bool {
        self.version >= VERSION_BATCHES
    }

    /// Keeps up to `window` messages in flight for `duration`: as atomic batches of that many
    /// (at most a thousand) where there are, else each acknowledged by itself.
    ///
    /// # Errors
    /// NATS fails.
    pub async fn publish(&self, window: usize, duration: Duration) -> Result<Run> {
        let mut stream = self.open().await?;
        let run = stream.publish(window, duration).await;
        stream.close().await?;
        run
    }

    /// As [`publish`](Nats::publish), with readers (ordered consumers), until all have everything.
    ///
    /// # Errors
    /// NATS fails.
    pub async fn fanout(&self, readers: usize, window: usize, duration: Duration) -> Result<Run> {
        let mut stream = self.open().await?;
        let mut tasks = JoinSet::new();
        let measured = Measured::new(readers);
        for reader in 0..readers {
            let consumer = self.consumer(&stream.name, ordered()).await?;
            tasks.spawn(read(consumer, false, measured.counter(reader)));
        }
        let started = Instant::now();
        let published = stream.publish(window, duration).await?;
        let run = measured.until_all_have(published.events, started, &mut tasks);
        let run = run.await;
        tasks.shutdown().await;
        stream.close().await?;
        run
    }

    /// As [`publish`](Nats::publish), with one durable consumer that acks each message, until it
    /// has everything.
    ///
    /// # Errors
    /// NATS fails.
    pub async fn consume(&self, window: usize, duration: Duration) -> Result<Run> {
        let mut stream = self.open().await?;
        let mut tasks = JoinSet::new();
        let measured = Measured::new(1);
        let durable = json!({
            "durable_name": "bench", "ack_policy": "explicit", "max_ack_pending": ACK_PENDING_MAX,
        });
        let consumer = self.consumer(&stream.name, durable).await?;
        tasks.spawn(read(consumer, true, measured.counter(0)));
        let started = Instant::now();
        let published = stream.publish(window, duration).await?;
        let run = measured.until_all_have(published.events, started, &mut tasks);
        let run = run.await;
        tasks.shutdown().await;
        stream.close().await?;
        run
    }

    /// Sends the events of `feed` to one reader.
    ///
    /// # Errors
    /// NATS fails.
    pub async fn latency(&self, mut feed: Feed) -> Result<()> {
        let mut stream = self.open().await?;
        let mut tasks = JoinSet::new();
        let consumer = self.consumer(&stream.name, ordered()).await?;
        tasks.spawn(read(consumer, false, feed.on_event()));
        while let Some(payload) = feed.next().await {
            let message = publish(&stream.name, &stream.connection.inbox, &payload);
            stream.connection.send(&message).await?;
            // Acknowledgements of earlier events; nobody waits for this one's.
            while stream.connection.arrived()?.is_some() {}
            if let Ok(message) = timeout(Duration::ZERO, stream.connection.message()).await {
                message?;
            }
        }
        let done = feed.until_all_arrived(&mut tasks).await;
        tasks.shutdown().await;
        done
    }

    fn name(&self) -> String {
        format!("bench{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    async fn open(&self) -> Result<Stream> {
        let name = self.name();
        let mut connection = Connection::open(self.port, &name).await?;
        let mut config = json!({
            "name": name, "subjects": [name], "storage": "file", "num_replicas": 1,
            "retention": "limits", "discard": "old",
        });
        if self.batches() {
            config["allow_atomic"] = json!(true);
        }
        let subject = format!("$JS.API.STREAM.CREATE.{name}");
        connection.call(&subject, &config).await?;
        Ok(Stream {
            connection,
            name,
            batches: self.batches(),
            batch: 0,
        })
    }

    /// A consumer that gets everything pushed.
    async fn consumer(&self, stream: &str, mut config: Value) -> Result<Connection> {
        let name = self.name();
        let mut connection = Connection::open(self.port, &name).await?;
        let deliver = format!("{name}.deliver");
        config["deliver_subject"] = json!(deliver);
        config["deliver_policy"] = json!("all");
        config["flow_control"] = json!(true);
        config["idle_heartbeat"] = json!(5_000_000_000u64);
        config["num_replicas"] = json!(1);
        let subject = match config["durable_name"].as_str() {
            Some(durable) => format!("$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{durable}"),
            None => format!("$JS.API.CONSUMER.CREATE.{stream}"),
        };
        let request = json!({"stream_name": stream, "config": config});
        connection
            .send(format!("SUB {deliver} 2\r\n").as_bytes())
            .await?;
        connection.call(&subject, &request).await?;
        Ok(connection)
    }
}

/// A stream of one round.
struct Stream {
    connection: Connection,
    name: String,
    batches: bool,
    batch: u64,
}

impl Stream {
    async fn publish(&mut self, window: usize, duration: Duration) -> Result<Run> {
        match self.batches && window > 1 {
            true => self.publish_batches(window.min(BATCH_MAX), duration).await,
            false => self.publish_each(window, duration).await,
        }
    }

    async fn publish_each(&mut self, window: usize, duration: Duration) -> Result<Run> {
        let message = publish(&self.name, &self.connection.inbox, &[b'x'; PAYLOAD_BYTES]);
        let messages = message.repeat(window);
        let started = Instant::now();
        let (mut in_flight, mut events) = (0, 0);
        loop {
            if started.elapsed() < duration {
                self.connection
                    .send(&messages[..(window - in_flight) * message.len()])
                    .await?;
                in_flight = window;
            }
            if in_flight == 0 {
                return Ok(Run::new(events, started.elapsed()));
            }
            acknowledged(&self.connection.message().await?.payload)?;
            let mut answered = 1;
            while let Some(message) = self.connection.arrived()? {
                acknowledged(&message.payload)?;
                answered += 1;
            }
            in_flight -= answered;
            events += answered as u64;
        }
    }

    async fn publish_batches(&mut self, size: usize, duration: Duration) -> Result<Run> {
        let started = Instant::now();
        let mut events = 0;
        while started.elapsed() < duration {
            let batch = self.encode_batch(size);
            self.connection.send(&batch).await?;
            acknowledged(&self.connection.message().await?.payload)?;
            events += size as u64;
        }
        Ok(Run::new(events, started.elapsed()))
    }

    fn encode_batch(&mut self, size: usize) -> Vec<u8> {
        self.batch += 1;
        let mut batch = Vec::with_capacity(size * (PAYLOAD_BYTES + 128));
        for sequence in 1..=size {
            let last = sequence == size;
            let commit = if last { "Nats-Batch-Commit: 1\r\n" } else { "" };
            let headers = format!(
                "NATS/1.0\r\nNats-Batch-Id: {}\r\nNats-Batch-Sequence: {sequence}\r\n{commit}\r\n",
                self.batch
            );
            let reply = if last { &self.connection.inbox } else { "" };
            let payload = [b'x'; PAYLOAD_BYTES];
            publish_with_headers(&mut batch, &self.name, reply, &headers, &payload);
        }
        batch
    }

    async fn close(mut self) -> Result<()> {
        let subject = format!("$JS.API.STREAM.DELETE.{}", self.name);
        self.connection.call(&subject, &json!({})).await.map(drop)
    }
}

/// Settings of a consumer that acknowledges nothing.
fn ordered() -> Value {
    json!({"ack_policy": "none", "max_deliver": 1, "mem_storage": true})
}

/// Reads everything; `acks` each message, all that have arrived in one write.
async fn read(mut connection: Connection, acks: bool, mut on_event: OnEvent) -> Result<()> {
    let mut answers = Vec::new();
    let mut acked = Vec::new();
    loop {
        let mut next = Some(connection.message().await?);
        while let Some(message) = next {
            match event_of(message, acks, &mut answers)? {
                Some(payload) if acks => acked.push(payload),
                Some(payload) => on_event(&payload),
                None => {}
            }
            next = connection.arrived()?;
        }
        if !answers.is_empty() {
            connection.send(&answers).await?;
            answers.clear();
        }
        acked.drain(..).for_each(|payload| on_event(&payload));
    }
}

/// The payload of a message that is an event; what it wants answered is added to `answers`.
fn event_of(message: Message, acks: bool, answers: &mut Vec<u8>) -> Result<Option<Bytes>> {
    let headers = String::from_utf8_lossy(&message.headers);
    let reply = message.reply.as_deref().map(std::str::from_utf8);
    let reply = reply.transpose()?;
    if headers.is_empty() || headers.contains("Nats-Batch-Id") {
        if acks {
            let subject = reply.ok_or("NATS wants no ack")?;
            answers.extend_from_slice(&publish(subject, "", b"+ACK"));
        }
        return Ok(Some(message.payload));
    }
    // Flow control: it goes on when this is answered.
    let stalled = headers.lines().find_map(|line| line.strip_prefix(STALLED));
    if let Some(subject) = reply.or(stalled.map(str::trim))
        && headers.starts_with("NATS/1.0 100")
    {
        answers.extend_from_slice(format!("PUB {subject} 0\r\n\r\n").as_bytes());
    }
    Ok(None)
}

fn acknowledged(payload: &[u8]) -> Result<()> {
    if payload.windows(7).any(|part| part == b"\"error\"") || payload.is_empty() {
        return Err(format!("NATS: {:?}", String::from_utf8_lossy(payload)).into());
    }
    Ok(())
}

/// The newest `nats-server` in the path, with its version.
fn newest() -> Option<(std::path::PathBuf, (u32, u32))> {
    let path = std::env::var_os("PATH")?;
    let programs = std::env::split_paths(&path).map(|dir| dir.join("nats-server"));
    let versions = programs
        .filter(|program| program.is_file())
        .filter_map(|program| {
            let output = Command::new(&program).arg("--version").output().ok()?;
            let text = String::from_utf8(output.stdout).ok()?;
            // "nats-server: v2.15.1"
            let mut numbers = text.rsplit('v').next()?.split('.');
            let major = numbers.next()?.trim().parse().ok()?;
            let minor = numbers.next()?.trim().parse().ok()?;
            Some((program, (major, minor)))
        });
    versions.max_by_key(|(_, version)| *version)
}
