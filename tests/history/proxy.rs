//! A TCP proxy before each process: its address stays while processes die and start again
//! elsewhere, and it can cut, delay and silence what goes through it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What is read at once.
const CHUNK_BYTES: usize = 16 << 10;

/// What happens to what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    /// Nothing goes on, in no direction; nobody is told.
    Silent,
    /// Each piece waits.
    Delayed(Duration),
}

/// What the connections of a proxy look at.
#[derive(Clone)]
struct Rules {
    upstream: watch::Sender<SocketAddr>,
    mode: watch::Sender<Mode>,
    /// Counts cuts; a connection lives in one of them.
    cuts: watch::Sender<u64>,
}

/// Ends when it is dropped.
pub struct Proxy {
    /// Where clients connect to.
    pub address: SocketAddr,
    rules: Rules,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(upstream: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let rules = Rules {
            upstream: watch::Sender::new(upstream),
            mode: watch::Sender::new(Mode::Open),
            cuts: watch::Sender::new(0),
        };
        let serving = rules.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serving.clone().connection(client));
            }
        });
        Proxy {
            address,
            rules,
            task,
        }
    }

    /// New connections go there.
    pub fn lead_to(&self, upstream: SocketAddr) {
        self.rules.upstream.send_replace(upstream);
    }

    /// Closes all connections, on both sides at once.
    pub fn cut(&self) {
        self.rules.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// From now on nothing goes through, and nobody is told.
    pub fn silence(&self) {
        self.rules.mode.send_replace(Mode::Silent);
    }

    /// From now on each piece waits.
    pub fn delay(&self, by: Duration) {
        self.rules.mode.send_replace(Mode::Delayed(by));
    }

    /// From now on all goes through.
    pub fn open(&self) {
        self.rules.mode.send_replace(Mode::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

impl Rules {
    /// Both directions of a connection, until one ends or it is cut.
    async fn connection(self, client: TcpStream) {
        let mut cuts = self.cuts.subscribe();
        cuts.mark_unchanged();
        let upstream = *self.upstream.borrow();
        let Ok(server) = TcpStream::connect(upstream).await else {
            return;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            () = self.pump(from_client, to_server) => {}
            () = self.pump(from_server, to_client) => {}
            _ = cuts.changed() => {}
        }
    }

    async fn pump(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut mode = self.mode.subscribe();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            // An end is silenced too.
            let read = from.read(&mut chunk).await.unwrap_or(0);
            let now = *mode.borrow_and_update();
            match now {
                Mode::Open => {}
                Mode::Silent => {
                    if mode.wait_for(|mode| *mode != Mode::Silent).await.is_err() {
                        return;
                    }
                }
                Mode::Delayed(by) => tokio::time::sleep(by).await,
            }
            if read == 0 || to.write_all(&chunk[..read]).await.is_err() {
                return;
            }
        }
    }
}
