//! Reading events as a stream that outlives its connections.

mod reader;
#[cfg(test)]
mod tests;

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt, stream};
use hub_proto::hub::core::v1::{CaughtUp, Gap, Progress};
use hub_proto::hub::event_bus::v1::event_bus_client::EventBusClient;
use hub_proto::hub::event_bus::v1::{EventBatch, EventFilter, StartAt, start_at};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::call::Transport;
use crate::error::{Error, Result};
use reader::Reader;

/// What to read, and from where.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SubscribeOptions {
    /// Which of the events routed to the key's product; empty = all of them. At most 100 types.
    pub filter: EventFilter,
    /// Where to start; `None` = only events recorded from now on.
    pub start: Option<StartAt>,
    /// All events of the tenant, not only those routed to the key's product. Needs the scope
    /// `hub:events.read_all`.
    pub all_products: bool,
    /// Events without payload.
    pub omit_data: bool,
    /// End with `CURSOR_EXPIRED` instead of a [`Delivery::Gap`].
    pub fail_on_gap: bool,
    /// End after this many events; 0 = never.
    pub max_events: u32,
    /// End when caught up, e.g. to dump the log.
    pub stop_when_caught_up: bool,
}

/// What came from the hub, with the position after it.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// Events in rising sequence, at most 1000.
    Events(EventBatch),
    /// Everything that matches up to here was delivered: a quiet filter moves on too.
    Progress(Progress),
    /// The end of the log was reached; what follows is live. Comes again after falling behind.
    CaughtUp(CaughtUp),
    /// The log no longer has these positions; the stream goes on after them.
    Gap(Gap),
}

/// What a subscriber is doing.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SubscriberState {
    /// A stream is being opened.
    Connecting,
    /// Events recorded before are read.
    CatchingUp {
        /// Positions between what was delivered and the end of the log, whoever they are for.
        lag: u64,
    },
    /// New events arrive as they are recorded.
    Live,
    /// The stream broke; the next one is opened later.
    Waiting {
        /// When.
        until: Instant,
        /// Why; `None` if the hub asked to reconnect.
        error: Option<Error>,
    },
    /// The stream ended, as asked or with an error that does not pass.
    Ended,
}

/// Deliveries from the hub, in order and each event once, over as many connections as it takes.
///
/// When a stream breaks or is silent for two heartbeat intervals, the next one resumes after the
/// last delivery that was taken from here. Store [`Delivery::cursor`] after processing, and give it
/// to [`SubscribeOptions::after`] when the program starts again.
///
/// It does something only while it is polled. A reader that takes nothing for a minute loses its
/// stream, and resumes with the next poll. It ends after `max_events` or `stop_when_caught_up`, or
/// with an error that does not pass: `FILTER_INVALID`, `CURSOR_EXPIRED`, `CURSOR_FILTER_MISMATCH`,
/// `LOG_REWOUND`, and those of the key.
#[must_use = "a subscriber does nothing unless it is polled"]
pub struct Subscriber {
    deliveries: Pin<Box<dyn Stream<Item = Result<Delivery>> + Send>>,
    state: watch::Receiver<SubscriberState>,
}

impl SubscribeOptions {
    /// Only events of these types; `ticket.*` matches one more segment, `ticket.**` any number.
    #[must_use]
    pub fn types<T: Into<String>>(mut self, types: impl IntoIterator<Item = T>) -> Self {
        self.filter.types = types.into_iter().map(Into::into).collect();
        self
    }

    /// These events only.
    #[must_use]
    pub fn filter(mut self, filter: EventFilter) -> Self {
        self.filter = filter;
        self
    }

    /// Starts after a stored cursor. The filter has to be the one that the cursor was made with.
    #[must_use]
    pub fn after(self, cursor: impl Into<String>) -> Self {
        self.start_at(start_at::At::Cursor(cursor.into()))
    }

    /// Starts at the oldest event still kept.
    #[must_use]
    pub fn earliest(self) -> Self {
        self.start_at(start_at::At::Earliest(true))
    }

    /// Starts at this position.
    #[must_use]
    pub fn start_at(mut self, at: start_at::At) -> Self {
        self.start = Some(StartAt { at: Some(at) });
        self
    }

    /// See [`SubscribeOptions::all_products`].
    #[must_use]
    pub fn all_products(mut self) -> Self {
        self.all_products = true;
        self
    }

    /// See [`SubscribeOptions::omit_data`].
    #[must_use]
    pub fn omit_data(mut self) -> Self {
        self.omit_data = true;
        self
    }

    /// See [`SubscribeOptions::fail_on_gap`].
    #[must_use]
    pub fn fail_on_gap(mut self) -> Self {
        self.fail_on_gap = true;
        self
    }

    /// See [`SubscribeOptions::max_events`].
    #[must_use]
    pub fn max_events(mut self, events: u32) -> Self {
        self.max_events = events;
        self
    }

    /// See [`SubscribeOptions::stop_when_caught_up`].
    #[must_use]
    pub fn stop_when_caught_up(mut self) -> Self {
        self.stop_when_caught_up = true;
        self
    }
}

impl Delivery {
    /// The position after it: store it once it is processed, to go on from there.
    pub fn cursor(&self) -> &str {
        match self {
            Delivery::Events(batch) => &batch.cursor,
            Delivery::Progress(progress) => &progress.cursor,
            Delivery::CaughtUp(caught_up) => &caught_up.cursor,
            Delivery::Gap(gap) => &gap.cursor,
        }
    }
}

impl Subscriber {
    pub(crate) fn new(client: EventBusClient<Transport>, options: SubscribeOptions) -> Self {
        let (reader, state) = Reader::new(client, options);
        let deliveries = stream::unfold(reader, |mut reader| async move {
            let delivery = reader.next().await?;
            Some((delivery, reader))
        });
        Subscriber {
            deliveries: deliveries.boxed(),
            state,
        }
    }

    /// What the subscriber is doing, now and from now on.
    pub fn state(&self) -> watch::Receiver<SubscriberState> {
        self.state.clone()
    }
}

impl Stream for Subscriber {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.deliveries.as_mut().poll_next(context)
    }
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber")
            .field("state", &*self.state.borrow())
            .finish_non_exhaustive()
    }
}
