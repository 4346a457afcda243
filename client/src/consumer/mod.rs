//! Working off a durable subscription: events go to a handler, and its answers to the hub.

mod acks;
mod alarm;
mod answer;
mod builder;
mod driver;
mod handling;
mod leases;
mod report;
mod server_clock;
#[cfg(test)]
mod tests;

use std::fmt;

use hub_proto::hub::event_bus::v1::event_bus_client::EventBusClient;
use hub_proto::hub::event_bus::v1::{CloudEvent, EventRecord};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Code;

use crate::call::Transport;
use crate::error::{Error, Result};
pub use answer::Answer;
pub use builder::ConsumerBuilder;
use builder::ConsumerOptions;
use driver::Driver;
use handling::{Finished, Handling};
pub use report::{ConsumerCounts, ConsumerNotice, ConsumerState};
use report::{Notify, Report};

/// An event that is this consumer's until its handler answers.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct LeasedEvent {
    /// The event as the hub stored it.
    pub record: EventRecord,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// Error of the attempt before; empty if there was none.
    pub previous_error: String,
    /// Redeliver or SeekSubscription caused it: it may have been handled before.
    pub redelivery: bool,
}

/// Consumes a durable subscription, at least once, until it is shut down; made by
/// [`Hub::consume`](crate::Hub::consume).
///
/// The hub leases events as [`credit`](ConsumerBuilder::credit) allows, in order within each key
/// and never two of one key at once, unless the subscription is of `ORDERING_NONE`. Each event goes
/// to the handler in a task of its own. Its answer settles the event; acks are sent together, and
/// at once when nothing else happens. A handler that panics answers a retry with the panic's text.
/// Leases are extended while handlers run, see [`extend_for`](ConsumerBuilder::extend_for).
///
/// When the stream breaks or is silent for two heartbeat intervals, the next one is opened by
/// itself. Handlers go on meanwhile, and their answers are sent on the next stream. An event that
/// comes again while its handler runs is not handled twice at once: the answer settles the new
/// lease too. Acks that come too late are counted and told, see [`ConsumerCounts::expired`] and
/// [`ConsumerNotice::LeaseExpired`]; those events are handled again, so handlers have to bear that.
///
/// With a key that serves all tenants it works off the subscription of that name of every tenant;
/// [`LeasedEvent::tenant_id`] says whose an event is.
///
/// Dropping it shuts it down without waiting for it.
#[must_use = "a consumer that is dropped shuts down"]
pub struct Consumer {
    /// Dropped, or sent to: shut down.
    stop: oneshot::Sender<()>,
    state: watch::Receiver<ConsumerState>,
    counts: watch::Receiver<ConsumerCounts>,
}

impl LeasedEvent {
    /// Whose event it is, `tnt_...`.
    pub fn tenant_id(&self) -> &str {
        &self.record.tenant_id
    }

    /// What its producer published; the hub always sends it.
    pub fn event(&self) -> Option<&CloudEvent> {
        self.record.event.as_ref()
    }
}

impl Consumer {
    fn start(
        client: EventBusClient<Transport>,
        runtime: &Handle,
        options: ConsumerOptions,
        (handling, finished): (Handling, mpsc::UnboundedReceiver<Finished>),
        notify: Option<Notify>,
    ) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (state_sender, state) = watch::channel(ConsumerState::Connecting);
        let (counts_sender, counts) = watch::channel(ConsumerCounts::default());
        let report = Report::new(state_sender, counts_sender, notify);
        runtime.spawn(Driver::new(client, options, handling, finished, stopped, report).run());
        Consumer {
            stop,
            state,
            counts,
        }
    }

    /// Takes no more events, lets running handlers finish for up to the
    /// [drain timeout](ConsumerBuilder::drain_timeout), tells the hub their answers, gives back
    /// what was received and not begun, and ends.
    ///
    /// # Errors
    /// Why not everything could be told: the hub could not be reached within the drain timeout.
    /// Those events are handled again. Or the error that had ended it before, see
    /// [`wait`](Consumer::wait).
    pub async fn shutdown(self) -> Result<()> {
        let Consumer {
            stop, mut state, ..
        } = self;
        // Fails if it has ended, which the state tells.
        let _ = stop.send(());
        ended(&mut state).await
    }

    /// Waits until it ends by itself, which it does with an error that does not pass.
    ///
    /// # Errors
    /// `SUBSCRIPTION_NOT_FOUND`, and those of the key.
    pub async fn wait(&mut self) -> Result<()> {
        ended(&mut self.state).await
    }

    /// What the consumer is doing, now and from now on.
    pub fn state(&self) -> watch::Receiver<ConsumerState> {
        self.state.clone()
    }

    /// What it did, now and from now on.
    pub fn counts(&self) -> watch::Receiver<ConsumerCounts> {
        self.counts.clone()
    }
}

async fn ended(state: &mut watch::Receiver<ConsumerState>) -> Result<()> {
    let ended = |state: &ConsumerState| matches!(state, ConsumerState::Ended { .. });
    match state.wait_for(ended).await.as_deref() {
        Ok(ConsumerState::Ended { error: Some(error) }) => Err(error.clone()),
        Ok(_) => Ok(()),
        // Only when the runtime is shut down.
        Err(_) => {
            let message = "The consumer's task ended. Events that it held are delivered again.";
            Err(Error::local(Code::Cancelled, message))
        }
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("state", &*self.state.borrow())
            .field("counts", &*self.counts.borrow())
            .finish_non_exhaustive()
    }
}
