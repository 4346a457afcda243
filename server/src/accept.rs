//! Connections: HTTP/1.1 and HTTP/2, with TLS or with prior knowledge, on one listener, each within
//! bounds.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use hub_core::clock::Clock;
use hub_core::limits::Limits;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Peer;
use crate::bounds::Connection;
use crate::corked::cork;
use crate::listen::Stack;
use crate::pace::{Paced, Stream};
use crate::tls::{Tls, Verified};
use crate::turns::{Arrivals, Turns};

/// A connection without life is noticed within interval + timeout.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// What a connection without life may take to be noticed.
const NOTICED_AFTER_MAX: Duration = Duration::from_secs(25);
const _: () =
    assert!(PING_INTERVAL.as_secs() + PING_TIMEOUT.as_secs() <= NOTICED_AFTER_MAX.as_secs());
/// The same for HTTP/1, by the kernel's probes: 15 s, then two at 5 s.
const PROBE_IDLE: Duration = Duration::from_secs(15);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBES: u32 = 2;
/// How long a client may take to begin to speak, and to send the head of a request (HTTP/1).
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Headers of an HTTP/1 request; HTTP/2 bounds their size only.
const HEADERS_MAX: usize = 100;
/// Largest HTTP/2 frame that clients may send. With the default of 16 KiB a batch of 256 events
/// comes in six frames, each read and put together by itself.
const FRAME_BYTES_MAX: u32 = 64 << 10;
/// How long an ended connection is kept for the client to read the rest.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after the listener failed, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// With TLS or without.
type Transport = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Serves connections until it is told to stop.
pub struct Acceptor {
    stack: Stack,
    paced: Paced,
    head_bytes_max: u32,
    streams_max: u32,
    calls_max: usize,
    slots: Arc<Semaphore>,
    tls: Option<Arc<Tls>>,
    open: TaskTracker,
    /// Finish what runs, take nothing new.
    finish: CancellationToken,
    /// Close all connections now.
    close: CancellationToken,
}

impl Acceptor {
    /// Serves `stack` on at most `connections_max` connections at once.
    pub fn new(
        stack: Stack,
        limits: &Limits,
        clock: Clock,
        connections_max: usize,
        tls: Option<Arc<Tls>>,
    ) -> Self {
        let paced = Paced {
            clock,
            limit: limits.slow_reader_timeout,
        };
        Acceptor {
            stack,
            paced,
            head_bytes_max: limits.header_bytes_max,
            streams_max: limits.connection_streams_max,
            calls_max: limits.connection_requests_max,
            slots: Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS))),
            tls,
            open: TaskTracker::new(),
            finish: CancellationToken::new(),
            close: CancellationToken::new(),
        }
    }

    /// Accepts until [`Acceptor::finish`].
    pub async fn run(&self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.finish.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.accept(stream, peer),
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Takes no more connections and tells the open ones to end after what runs.
    pub fn finish(&self) {
        self.finish.cancel();
        self.open.close();
    }

    /// Waits until all connections have ended.
    pub async fn finished(&self) {
        self.open.wait().await;
    }

    /// Closes the connections that are left.
    pub fn close(&self) {
        self.close.cancel();
    }

    fn accept(&self, stream: TcpStream, peer: SocketAddr) {
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            // Closed at once, so that the client tries another server instead of waiting here.
            metrics::counter!("hub_connections_refused_total").increment(1);
            tracing::warn!(%peer, "a connection was refused: all --connections-max are in use");
            return;
        };
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%peer, "cannot set socket options: {error}");
        }
        let serving = Stream::new(&self.paced, self.serve(stream, peer, slot));
        self.open.spawn(serving.run());
    }

    /// The protocol of a connection whose streams go to `arrivals`.
    fn protocol(&self, arrivals: Arrivals) -> Builder<Arrivals> {
        let mut builder = Builder::new(arrivals);
        let head_bytes = usize::try_from(self.head_bytes_max).unwrap_or(usize::MAX);
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(HEADERS_MAX)
            // The buffer of a head; hyper asks for 8 KiB at least.
            .max_buf_size(head_bytes.max(8 << 10));
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_header_list_size(self.head_bytes_max)
            .max_concurrent_streams(self.streams_max);
        builder
    }

    fn serve(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        slot: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (finish, close) = (self.finish.clone(), self.close.clone());
        let arrivals = Arrivals::new(self.paced.clone());
        let (protocol, stack) = (self.protocol(arrivals.clone()), self.stack.clone());
        // Those of this moment: they may be replaced while the hub runs.
        let tls = self.tls.as_ref().map(|tls| tls.acceptor());
        let calls = Arc::new(Semaphore::new(self.calls_max.min(Semaphore::MAX_PERMITS)));
        let connection = Connection {
            calls,
            calls_max: self.calls_max,
        };
        async move {
            let _slot = slot;
            let _open = Open::begin();
            let kept = SockRef::from(&stream).try_clone();
            let greeting = tokio::time::timeout(HEAD_TIMEOUT, greet(stream, tls, peer));
            let greeted = tokio::select! {
                greeted = greeting => greeted.ok().flatten(),
                () = finish.cancelled() => None,
            };
            let Some((stream, verified)) = greeted else {
                return;
            };
            let service = service_fn(move |mut request: hyper::Request<Incoming>| {
                request.extensions_mut().insert(Peer(peer));
                request.extensions_mut().insert(connection.clone());
                if let Some(verified) = verified {
                    request.extensions_mut().insert(verified);
                }
                // Boxed: it is large, and HTTP moves it a few times before it begins.
                let answer = Box::pin(stack.clone().call(request));
                answer.map(Ok::<_, Infallible>)
            });
            let (stream, cork) = cork(stream);
            let mut turns = Turns::new(arrivals, cork);
            let mut serving =
                std::pin::pin!(protocol.serve_connection(TokioIo::new(stream), service));
            let mut finishing = false;
            let kept = loop {
                tokio::select! {
                    ended = poll_fn(|cx| turns.poll(serving.as_mut(), cx)) => {
                        if let Err(error) = ended {
                            tracing::debug!(%peer, "a connection ended: {error}");
                        } else if finishing && let Ok(kept) = kept {
                            break kept;
                        }
                        return;
                    }
                    () = finish.cancelled(), if !finishing => {
                        finishing = true;
                        serving.as_mut().graceful_shutdown();
                    }
                    () = close.cancelled() => return,
                }
            };
            tokio::select! {
                _ = tokio::time::timeout(LINGER_TIMEOUT, linger(kept)) => {}
                () = close.cancelled() => {}
            }
        }
    }
}

/// Waits until the client speaks, then makes the handshake of TLS; none if that fails.
async fn greet(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    peer: SocketAddr,
) -> Option<(Transport, Option<Verified>)> {
    stream.peek(&mut [0]).await.ok()?;
    let Some(tls) = tls else {
        return Some((Either::Left(stream), None));
    };
    match tls.accept(stream).await {
        Ok(stream) => {
            let shown = stream.get_ref().1.peer_certificates();
            let verified = shown.is_some_and(|chain| !chain.is_empty());
            Some((
                Either::Right(Box::new(stream)),
                verified.then_some(Verified),
            ))
        }
        Err(error) => {
            metrics::counter!("hub_tls_handshakes_failed_total").increment(1);
            tracing::debug!(%peer, "a TLS handshake failed: {error}");
            None
        }
    }
}

/// Reads what the client still sends until it closes too. A socket that is closed with bytes
/// unread, a window update of HTTP/2 say, resets the connection, and a reset takes from the client
/// what it has not read yet: the end of its streams (RFC 1122, 4.2.2.13).
async fn linger(kept: Socket) -> std::io::Result<()> {
    kept.shutdown(Shutdown::Write)?;
    kept.set_nonblocking(true)?;
    let mut stream = TcpStream::from_std(kept.into())?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// Counts a connection as open until it is dropped.
struct Open;

impl Open {
    fn begin() -> Self {
        metrics::gauge!("hub_connections_open").increment(1.0);
        Open
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("hub_connections_open").decrement(1.0);
    }
}

/// Small answers leave at once, and a dead peer is noticed also where HTTP has no pings.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(PROBE_IDLE)
        .with_interval(PROBE_INTERVAL);
    SockRef::from(stream).set_tcp_keepalive(&keepalive.with_retries(PROBES))
}
