//! The pace of readers: an answer of which nothing is taken for too long gives up its memory.
//!
//! HTTP asks a body for more only once the client has taken what came before, so a body does not
//! notice by itself that nobody reads it. Beside the task of each HTTP/2 stream, and of each
//! HTTP/1 connection, runs one timer: [`Stream`]. When a frame was under way for the whole limit,
//! the body is asked for its last words, at which a reader of events says Closing, and is dropped.
//! Last words behind little data wait once more as long, in case that the client reads again;
//! otherwise the stream is reset, which frees also what HTTP/2 had queued.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hub_core::clock::{Clock, Micros, micros};

/// Frames of last words: what was ready, Closing, the trailers.
const LAST_FRAMES_MAX: usize = 4;
/// Bytes of last words.
const LAST_BYTES_MAX: usize = 4 << 10;
/// What may lie before last words: two of the frames that a reader gets who takes none.
const KEPT_BYTES_MAX: usize = 160 << 10;

tokio::task_local! {
    /// The answer of the stream whose task this is.
    static CURRENT: Arc<Current>;
}

struct Current {
    clock: Clock,
    /// The answer under way, while it lives.
    answer: Mutex<Weak<Mutex<Held>>>,
}

/// How long an answer may stand still.
#[derive(Clone)]
pub struct Paced {
    /// Measures the time.
    pub clock: Clock,
    /// How long a frame may be under way.
    pub limit: Duration,
}

/// A stream that was not given up.
pub struct Stream {
    current: Arc<Current>,
    limit: Duration,
    stream: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Stream {
    /// One that has had no turn yet.
    pub fn new(paced: &Paced, stream: impl Future<Output = ()> + Send + 'static) -> Self {
        Stream {
            current: Arc::new(Current {
                clock: paced.clock.clone(),
                answer: Mutex::default(),
            }),
            limit: paced.limit,
            stream: Box::pin(stream),
        }
    }

    /// One turn without the timer: most streams need no other.
    pub fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Stream {
            current, stream, ..
        } = self;
        CURRENT.sync_scope(current.clone(), || stream.as_mut().poll(cx))
    }

    /// Runs it to its end; drops it if its answer stands still for too long.
    pub async fn run(self) {
        let watching = self.current.given_up(self.limit);
        tokio::select! {
            biased;
            () = CURRENT.scope(self.current.clone(), self.stream) => {}
            () = watching => {}
        }
    }
}

impl Current {
    /// Ends when the answer is to be dropped.
    async fn given_up(&self, limit: Duration) {
        let limit = micros(limit);
        let mut moment = self.clock.now() + limit;
        loop {
            self.clock.sleep_until(moment).await;
            let now = self.clock.now();
            moment = now + limit;
            let Some(held) = lock(&self.answer).upgrade() else {
                continue;
            };
            let Some(since) = lock(&held).under_way else {
                continue;
            };
            if now - since < limit {
                moment = since + limit;
                continue;
            }
            let spoken = poll_fn(|cx| Poll::Ready(lock(&held).last_words(cx))).await;
            let mut held = lock(&held);
            let outcome = if spoken { "closed" } else { "reset" };
            metrics::counter!("hub_slow_readers_total", "outcome" => outcome).increment(1);
            let call = &*held.call;
            tracing::info!(call, outcome, "a reader took nothing for too long");
            if !spoken {
                return;
            }
            held.under_way = Some(self.clock.now());
        }
    }
}

/// Watches the body of the answer to a call of a [`Stream`].
pub fn watch(body: Body, call: Arc<str>) -> Body {
    let Ok(current) = CURRENT.try_with(Arc::clone) else {
        return body;
    };
    let held = Arc::new(Mutex::new(Held {
        call,
        clock: current.clock.clone(),
        body: Some(body),
        last: VecDeque::new(),
        under_way: None,
        sizes: [0; 2],
    }));
    *lock(&current.answer) = Arc::downgrade(&held);
    Body::new(Watched { held })
}

/// What an answer holds.
struct Held {
    call: Arc<str>,
    clock: Clock,
    /// None once it has said its last words.
    body: Option<Body>,
    last: VecDeque<Frame<Bytes>>,
    /// Since when nothing was asked for after a frame.
    under_way: Option<Micros>,
    /// Of the last two frames: one may be queued, one waits for room in the queue.
    sizes: [usize; 2],
}

type Polled = Poll<Option<Result<Frame<Bytes>, axum::Error>>>;

impl Held {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        self.under_way = None;
        let polled = match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(self.last.pop_front().map(Ok)),
        };
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.sizes = [self.sizes[1], data.len()];
            if !self.is_end() {
                self.under_way = Some(self.clock.now());
            }
        }
        polled
    }

    fn is_end(&self) -> bool {
        match &self.body {
            Some(body) => body.is_end_stream(),
            None => self.last.is_empty(),
        }
    }

    /// Ends the body; false if it ended before, if it does not end by itself, or if much lies
    /// before its end.
    fn last_words(&mut self, cx: &mut Context<'_>) -> bool {
        if self.body.is_none() || self.sizes[0] + self.sizes[1] > KEPT_BYTES_MAX {
            return false;
        }
        let mut left = LAST_BYTES_MAX;
        while let Some(body) = &mut self.body {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending | Poll::Ready(Some(Err(_))) => return false,
                Poll::Ready(None) => self.body = None,
                Poll::Ready(Some(Ok(frame))) => {
                    let size = frame.data_ref().map_or(0, Bytes::len);
                    if size > left || self.last.len() == LAST_FRAMES_MAX {
                        return false;
                    }
                    left -= size;
                    self.last.push_back(frame);
                    if body.is_end_stream() {
                        self.body = None;
                    }
                }
            }
        }
        true
    }
}

/// The body that HTTP asks.
struct Watched {
    held: Arc<Mutex<Held>>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        lock(&self.held).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.held).is_end()
    }

    fn size_hint(&self) -> SizeHint {
        match &lock(&self.held).body {
            Some(body) => body.size_hint(),
            None => SizeHint::default(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
