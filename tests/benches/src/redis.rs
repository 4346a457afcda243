//! Redis Streams with `appendfsync always`: a reply comes after the sync.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::contender::{Feed, Measured, OnEvent};
use crate::redis_connection::{Connection, Reply, command};
use crate::round::Run;
use crate::scratch::{Scratch, free_port};
use crate::server::Server;
use crate::{PAYLOAD_BYTES, Result};

/// Entries that a reader takes at once.
const READ_ENTRIES: &[u8] = b"1000";
/// Name of a group and of its consumer.
const GROUP: &[u8] = b"bench";

/// A server of its own.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    port: u16,
    streams: AtomicU64,
}

impl Redis {
    /// Starts `redis-server` of the path.
    ///
    /// # Errors
    /// It is not installed or does not start.
    pub async fn start(scratch: &Scratch) -> Result<Self> {
        let dir = scratch.dir("redis")?;
        let port = free_port()?;
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
        command.args([
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--save",
            "",
        ]);
        // Otherwise it rewrites its log in the turn of another contender.
        command.args(["--auto-aof-rewrite-percentage", "0"]);
        command.arg("--dir").arg(&dir);
        let mut server = Server::start("Redis", &mut command, &dir.join("log"))?;
        server
            .until(async || {
                let mut connection = Connection::open(port).await.ok()?;
                connection.call(&[b"PING"]).await.ok()
            })
            .await?;
        let streams = AtomicU64::new(0);
        Ok(Redis {
            server,
            port,
            streams,
        })
    }

    /// Its process.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Sends `window` XADDs in one write and waits for all replies, again and again for `duration`.
    /// One XADD for each reply that came was no faster, and slower on a busy machine.
    ///
    /// # Errors
    /// Redis fails.
    pub async fn publish(&self, window: usize, duration: Duration) -> Result<Run> {
        let mut stream = self.open().await?;
        let run = stream.publish(window, duration).await;
        stream.close().await?;
        run
    }

    /// As [`publish`](Redis::publish), with readers (`XREAD BLOCK`), until all have everything.
    ///
    /// # Errors
    /// Redis fails.
    pub async fn fanout(&self, readers: usize, window: usize, duration: Duration) -> Result<Run> {
        let mut stream = self.open().await?;
        let mut tasks = JoinSet::new();
        let measured = Measured::new(readers);
        for reader in 0..readers {
            let connection = Connection::open(self.port).await?;
            let on_event = measured.counter(reader);
            tasks.spawn(read(connection, stream.key.clone(), on_event));
        }
        let started = Instant::now();
        let published = stream.publish(window, duration).await?;
        let run = measured.until_all_have(published.events, started, &mut tasks);
        let run = run.await;
        tasks.shutdown().await;
        stream.close().await?;
        run
    }

    /// As [`publish`](Redis::publish), with one consumer of a group (`XREADGROUP BLOCK`, `XACK`),
    /// until everything is acked.
    ///
    /// # Errors
    /// Redis fails.
    pub async fn consume(&self, window: usize, duration: Duration) -> Result<Run> {
        let mut stream = self.open().await?;
        let group: [&[u8]; 6] = [b"XGROUP", b"CREATE", &stream.key, GROUP, b"$", b"MKSTREAM"];
        stream.connection.call(&group).await?;
        let mut tasks = JoinSet::new();
        let measured = Measured::new(1);
        let connection = Connection::open(self.port).await?;
        tasks.spawn(consume(connection, stream.key.clone(), measured.counter(0)));
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
    /// Redis fails.
    pub async fn latency(&self, mut feed: Feed) -> Result<()> {
        let mut stream = self.open().await?;
        let mut tasks = JoinSet::new();
        let connection = Connection::open(self.port).await?;
        tasks.spawn(read(connection, stream.key.clone(), feed.on_event()));
        // A blocked reader is one that has sent its command.
        tokio::time::sleep(Duration::from_millis(50)).await;
        while let Some(payload) = feed.next().await {
            let add = stream.add(&payload);
            stream.connection.send(&add).await?;
            // Replies of earlier events; nobody waits for this one's.
            while stream.connection.arrived()?.is_some() {}
            if let Ok(reply) = timeout(Duration::ZERO, stream.connection.reply()).await {
                reply?;
            }
        }
        let done = feed.until_all_arrived(&mut tasks).await;
        tasks.shutdown().await;
        done
    }

    async fn open(&self) -> Result<Stream> {
        let number = self.streams.fetch_add(1, Ordering::Relaxed);
        Ok(Stream {
            connection: Connection::open(self.port).await?,
            key: format!("bench:{number}").into_bytes().into(),
        })
    }
}

/// A stream of one round; the next round has another one, so that memory stays bounded.
struct Stream {
    connection: Connection,
    key: Arc<[u8]>,
}

impl Stream {
    fn add(&self, payload: &[u8]) -> Vec<u8> {
        command(&[b"XADD", &self.key, b"*", b"d", payload])
    }

    async fn publish(&mut self, window: usize, duration: Duration) -> Result<Run> {
        let add = self.add(&[b'x'; PAYLOAD_BYTES]);
        let adds = add.repeat(window);
        let started = Instant::now();
        let mut events = 0;
        while started.elapsed() < duration {
            self.connection.send(&adds).await?;
            for _ in 0..window {
                self.connection.reply().await?;
            }
            events += window as u64;
        }
        Ok(Run::new(events, started.elapsed()))
    }

    async fn close(mut self) -> Result<()> {
        self.connection.call(&[b"DEL", &self.key]).await.map(drop)
    }
}

/// Reads everything that is added from the first event on.
async fn read(mut connection: Connection, key: Arc<[u8]>, mut on_event: OnEvent) -> Result<()> {
    let mut last = Bytes::from_static(b"0");
    loop {
        let ask = [
            b"XREAD",
            b"COUNT" as &[u8],
            READ_ENTRIES,
            b"BLOCK",
            b"0",
            b"STREAMS",
            &key,
            &last,
        ];
        // One stream: its name and its entries, each an id and a list of field and value.
        connection.call(&ask).await?;
        connection.reply().await?;
        connection.reply().await?;
        let Reply::Array(entries) = connection.reply().await? else {
            return Err("Redis sent no entries".into());
        };
        for _ in 0..entries {
            let (id, payload) = entry(&mut connection).await?;
            last = id;
            on_event(&payload);
        }
    }
}

/// The next entry of a reply: its id, and the value of its field.
async fn entry(connection: &mut Connection) -> Result<(Bytes, Bytes)> {
    connection.reply().await?;
    let id = connection.reply().await?;
    connection.reply().await?;
    connection.reply().await?;
    match (id, connection.reply().await?) {
        (Reply::Text(id), Reply::Text(payload)) => Ok((id, payload)),
        _ => Err("Redis sent an entry without id or value".into()),
    }
}

/// Takes everything that is added for a group, and acks it. The acks and the next read are one
/// write; what was read counts when Redis has answered its acks.
async fn consume(mut connection: Connection, key: Arc<[u8]>, mut on_event: OnEvent) -> Result<()> {
    let read = command(&[
        b"XREADGROUP",
        b"GROUP",
        GROUP,
        GROUP,
        b"COUNT",
        READ_ENTRIES,
        b"BLOCK",
        b"0",
        b"STREAMS",
        &key,
        b">",
    ]);
    connection.send(&read).await?;
    loop {
        connection.reply().await?;
        connection.reply().await?;
        connection.reply().await?;
        let Reply::Array(count) = connection.reply().await? else {
            return Err("Redis sent no entries".into());
        };
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            entries.push(entry(&mut connection).await?);
        }
        let mut acks: Vec<&[u8]> = vec![b"XACK", &key, GROUP];
        acks.extend(entries.iter().map(|(id, _)| &id[..]));
        let mut commands = command(&acks);
        commands.extend_from_slice(&read);
        connection.send(&commands).await?;
        connection.reply().await?;
        entries.iter().for_each(|(_, payload)| on_event(payload));
    }
}
