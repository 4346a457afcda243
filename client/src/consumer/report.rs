//! What a consumer tells about itself.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hub_proto::hub::core::v1::{CaughtUp, Gap};
use hub_proto::hub::event_bus::v1::SubscriptionState;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Answer;
use crate::error::Error;

/// What a consumer is doing.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ConsumerState {
    /// A stream is being opened.
    Connecting,
    /// Events come as they are leased.
    Live,
    /// The stream broke; the next one is opened later. Handlers go on.
    Waiting {
        /// When.
        until: Instant,
        /// Why; `None` if the hub asked to reconnect.
        error: Option<Error>,
    },
    /// It was shut down: no new events, and the handlers that run may finish.
    Draining,
    /// It ended.
    Ended {
        /// Why, unless it was shut down and everything is settled.
        error: Option<Error>,
    },
}

/// What a consumer did since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerCounts {
    /// Streams that the hub opened; all but the first are reconnections.
    pub streams: u64,
    /// Leases received.
    pub received: u64,
    /// Handlers that answered Ack.
    pub acked: u64,
    /// Handlers that answered Retry, with those that panicked.
    pub retried: u64,
    /// Events given back: by handlers, and by a shutdown.
    pub released: u64,
    /// Handlers that answered Fail.
    pub failed: u64,
    /// Handlers that answered Skip.
    pub skipped: u64,
    /// Handlers that panicked.
    pub panicked: u64,
    /// Extensions of leases that were sent.
    pub extended: u64,
    /// Leases that ended before they were settled: their events are or will be delivered again.
    pub expired: u64,
}

/// Something to know; the consumer goes on by itself.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ConsumerNotice {
    /// An ack, a nack or an extension came too late, or a lease ended because its handler ran
    /// longer than [`extend_for`](crate::ConsumerBuilder::extend_for) allows. The event is or will
    /// be delivered again.
    LeaseExpired {
        /// The lease.
        lease_id: String,
    },
    /// Positions were lost to retention before they were delivered.
    Gap {
        /// Whose, `tnt_...`, with a key that serves all tenants; else empty.
        tenant_id: String,
        /// Which.
        gap: Gap,
    },
    /// The subscription's state changed: paused, not entitled, ...
    Subscription {
        /// Whose, `tnt_...`, with a key that serves all tenants; else empty.
        tenant_id: String,
        /// The state.
        state: SubscriptionState,
    },
    /// The backlog is worked off.
    CaughtUp {
        /// Whose, `tnt_...`, with a key that serves all tenants; else empty.
        tenant_id: String,
        /// Position reached.
        caught_up: CaughtUp,
    },
}

pub(super) type Notify = Box<dyn Fn(ConsumerNotice) + Send>;

/// Where a consumer tells it.
pub(super) struct Report {
    state: watch::Sender<ConsumerState>,
    /// What is counted; told when the consumer comes to it.
    pub(super) counts: ConsumerCounts,
    told_counts: watch::Sender<ConsumerCounts>,
    notify: Option<Notify>,
}

impl Report {
    pub(super) fn new(
        state: watch::Sender<ConsumerState>,
        counts: watch::Sender<ConsumerCounts>,
        notify: Option<Notify>,
    ) -> Self {
        Report {
            state,
            counts: ConsumerCounts::default(),
            told_counts: counts,
            notify,
        }
    }

    pub(super) fn state(&self, state: ConsumerState) {
        self.state.send_replace(state);
    }

    pub(super) fn tell_counts(&self) {
        self.told_counts.send_if_modified(|told| {
            let changed = *told != self.counts;
            *told = self.counts;
            changed
        });
    }

    pub(super) fn answered(&mut self, answer: &Answer) {
        let count = match answer {
            Answer::Ack => &mut self.counts.acked,
            Answer::Retry { .. } => &mut self.counts.retried,
            Answer::Release => &mut self.counts.released,
            Answer::Fail { .. } => &mut self.counts.failed,
            Answer::Skip { .. } => &mut self.counts.skipped,
        };
        *count += 1;
    }

    pub(super) fn expired(&mut self, lease_id: String) {
        self.counts.expired += 1;
        self.notice(ConsumerNotice::LeaseExpired { lease_id });
    }

    pub(super) fn notice(&self, notice: ConsumerNotice) {
        if let Some(notify) = &self.notify {
            // The program's own code must not end the consumer.
            let _ = catch_unwind(AssertUnwindSafe(|| notify(notice)));
        }
    }
}
