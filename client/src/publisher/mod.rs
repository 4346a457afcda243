//! Publishing over one stream: many events at once, each acknowledged after its commit.

mod driver;
mod frame;
mod options;
mod outbox;
mod results;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hub_proto::hub::event_bus::v1::CloudEvent;
use hub_proto::hub::event_bus::v1::PublishWarning;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::Code;

use crate::call::Transport;
use crate::error::{Error, Result};
use driver::Driver;
pub use options::PublisherOptions;
use outbox::{Entry, Item};

/// Largest event that is sent at all; the hub itself refuses events above 1 MiB.
const EVENT_BYTES_MAX: usize = 4 << 20;
/// What an event costs in the queue beside its bytes.
const EVENT_OVERHEAD_BYTES: usize = 128;

/// Publishes events in the order in which they were sent; cheap to clone.
///
/// Events that wait are sent together, as one frame of up to 256 events or 256 KiB; nothing waits
/// for a timer. When the stream breaks, the publisher opens a new one and sends again what was not
/// acknowledged: Hub stores each event once, by product, `source` and `id`.
///
/// Dropping the last clone lets a task of its own send what is waiting, as long as the runtime
/// lives; use [`close`](Publisher::close) to wait for it.
#[derive(Debug, Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: mpsc::UnboundedSender<Item>,
    /// Bytes that may still enter the queue; what bounds it.
    room: Arc<Semaphore>,
    room_max: usize,
    state: watch::Receiver<PublisherState>,
}

/// What the hub did with an event. It is durable: the commit is on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// It had been stored before, maybe by this publisher, before it sent again.
    pub duplicate: bool,
    /// Things to know; the event is stored all the same.
    pub warnings: Vec<PublishWarning>,
    /// Position in the tenant's bus; with [`PublisherOptions::full_results`].
    pub sequence: Option<u64>,
    /// The hub's id, `evt_...`; with [`PublisherOptions::full_results`].
    pub event_id: Option<String>,
}

/// What a publisher is doing.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum PublisherState {
    /// There is nothing to send, and no stream.
    Idle,
    /// A stream is being opened.
    Connecting,
    /// Events flow.
    Live,
    /// The stream ended; the next one is opened later.
    Waiting {
        /// When.
        until: Instant,
        /// Why; `None` if the hub asked to reconnect.
        error: Option<Error>,
    },
    /// All clones were dropped and everything is settled.
    Closed,
}

/// The answer to an event that was sent; resolves after its commit.
///
/// Dropping it does not take the event back. If such an event is refused,
/// [`Publisher::flush`] tells.
#[derive(Debug)]
#[must_use = "an event that is refused is only known from its receipt"]
pub struct PendingReceipt {
    reply: oneshot::Receiver<Result<Receipt>>,
}

impl Publisher {
    pub(crate) fn start(transport: Transport, runtime: &Handle, options: PublisherOptions) -> Self {
        let (queue, items) = mpsc::unbounded_channel();
        let (state_sender, state) = watch::channel(PublisherState::Idle);
        let room_max = options.queue_bytes_max;
        let room = Arc::new(Semaphore::new(room_max));
        runtime.spawn(Driver::new(transport, options, items, room.clone(), state_sender).run());
        Publisher {
            shared: Arc::new(Shared {
                queue,
                room,
                room_max,
                state,
            }),
        }
    }

    /// Publishes an event and waits until it is durable. To keep many in flight, call it from many
    /// tasks or use [`send`](Publisher::send).
    ///
    /// There is no deadline but [`PublisherOptions::delivery_timeout`]. If the future is dropped,
    /// the event may still be published: publish it again with the same id when in doubt.
    ///
    /// # Errors
    /// As Publish of the contract: `EVENT_INVALID`, `EVENT_TOO_LARGE`, `SCHEMA_VIOLATION`,
    /// `EVENT_SOURCE_NOT_ALLOWED`, `EVENT_ID_REUSED`, `QUOTA_EXCEEDED`, and those of the key.
    /// Failures that pass are only returned after the delivery timeout. `Cancelled` without a
    /// reason: the publisher was closed.
    pub async fn publish(&self, event: CloudEvent) -> Result<Receipt> {
        self.send(event).await?.await
    }

    /// Hands over an event and returns its receipt to come. Waits only while the queue is full.
    ///
    /// # Errors
    /// `EVENT_TOO_LARGE` above 4 MiB. `Cancelled` without a reason: the publisher was closed.
    pub async fn send(&self, event: CloudEvent) -> Result<PendingReceipt> {
        let event = frame::encode_event(&event);
        if event.len() > EVENT_BYTES_MAX {
            return Err(Error::event_too_large(event.len(), EVENT_BYTES_MAX));
        }
        let cost = (event.len() + EVENT_OVERHEAD_BYTES).min(self.shared.room_max);
        // Both bounds are far below 4 GiB.
        let permits = u32::try_from(cost).unwrap_or(u32::MAX);
        let room = self
            .shared
            .room
            .acquire_many(permits)
            .await
            .map_err(|_| closed())?;
        let (reply, receipt) = oneshot::channel();
        let entry = Entry {
            event,
            cost,
            reply,
            accepted: Instant::now(),
        };
        self.shared
            .queue
            .send(Item::Event(entry))
            .map_err(|_| ended())?;
        // Given back when the event is settled.
        room.forget();
        Ok(PendingReceipt { reply: receipt })
    }

    /// Waits until every event that was sent before is stored or refused.
    ///
    /// # Errors
    /// The first error of an event since the last flush whose [`PendingReceipt`] had been dropped.
    pub async fn flush(&self) -> Result<()> {
        let (reply, done) = oneshot::channel();
        self.shared
            .queue
            .send(Item::Flush(reply))
            .map_err(|_| ended())?;
        done.await.map_err(|_| ended())?
    }

    /// Takes no more events, also not from clones, and waits as [`flush`](Publisher::flush) does.
    ///
    /// # Errors
    /// As [`flush`](Publisher::flush).
    pub async fn close(self) -> Result<()> {
        self.shared.room.close();
        self.flush().await
    }

    /// What the publisher is doing, now and from now on.
    pub fn state(&self) -> watch::Receiver<PublisherState> {
        self.shared.state.clone()
    }
}

fn closed() -> Error {
    Error::local(
        Code::Cancelled,
        "The publisher was closed. Make another one.",
    )
}

/// Only when the runtime is shut down.
fn ended() -> Error {
    let message = "The publisher's task ended before the answer came. The event may be stored; \
                   publish it again with the same id.";
    Error::local(Code::Cancelled, message)
}

impl Future for PendingReceipt {
    type Output = Result<Receipt>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.reply)
            .poll(context)
            .map(|reply| reply.unwrap_or_else(|_| Err(ended())))
    }
}
