//! How a consumer consumes.

use std::fmt;
use std::time::Duration;

use hub_proto::hub::event_bus::v1::Credit;
use hub_proto::hub::event_bus::v1::event_bus_client::EventBusClient;
use tokio::runtime::Handle;

use super::handling::Handling;
use super::report::Notify;
use super::{Answer, Consumer, ConsumerNotice, LeasedEvent};
use crate::call::Transport;

/// Most events that a consumer may handle at once, and most that the hub leases to it.
const EVENTS_MAX: usize = 10_000;
/// Events handled at once unless the builder says otherwise.
const CONCURRENCY: usize = 16;
/// Least credit unless the builder says otherwise; as the hub's own.
const CREDIT_EVENTS: usize = 100;
/// Credit in bytes unless the builder says otherwise; as the hub's own.
const CREDIT_BYTES: u64 = 4 << 20;
/// Longest number of the contract.
const BYTES_MAX: u64 = i64::MAX as u64;
/// How long a shutdown waits for handlers unless the builder says otherwise.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a lease is kept alive unless the builder says otherwise.
const EXTEND_FOR: Duration = Duration::from_hours(1);
/// Longest time of the two above; more is not told from for ever.
const TIME_MAX: Duration = Duration::from_hours(24 * 365);

/// Bounds and choices of a [`Consumer`]; the defaults suit most products. Values beyond a limit are
/// cut to it. Ends with [`run`](ConsumerBuilder::run).
#[must_use = "a consumer starts with `run`"]
pub struct ConsumerBuilder {
    client: EventBusClient<Transport>,
    runtime: Handle,
    options: ConsumerOptions,
    notify: Option<Notify>,
}

/// What the builder gathers.
#[derive(Debug, Clone)]
pub(super) struct ConsumerOptions {
    pub(super) subscription: String,
    pub(super) member: String,
    pub(super) concurrency: usize,
    pub(super) credit: Option<Credit>,
    pub(super) confirm_acks: bool,
    pub(super) drain_timeout: Duration,
    pub(super) extend_for: Duration,
}

impl ConsumerBuilder {
    pub(crate) fn new(
        client: EventBusClient<Transport>,
        runtime: Handle,
        subscription: String,
    ) -> Self {
        let options = ConsumerOptions {
            subscription,
            member: String::new(),
            concurrency: CONCURRENCY,
            credit: None,
            confirm_acks: false,
            drain_timeout: DRAIN_TIMEOUT,
            extend_for: EXTEND_FOR,
        };
        ConsumerBuilder {
            client,
            runtime,
            options,
            notify: None,
        }
    }

    /// Events that are handled at once, 16 by default, 1..10,000. Events of one key are never
    /// handled at once unless the subscription is of `ORDERING_NONE`.
    pub fn concurrency(mut self, events: usize) -> Self {
        self.options.concurrency = events.clamp(1, EVENTS_MAX);
        self
    }

    /// Most events and bytes that are leased to this consumer: those that are handled, and those
    /// that wait for a handler. By default twice the concurrency, at least 100, and 4 MiB; at most
    /// 10,000 events. An event that is larger than the bytes comes alone.
    pub fn credit(mut self, events: usize, bytes: u64) -> Self {
        self.options.credit = Some(credit(events, bytes));
        self
    }

    /// Names this consumer in the subscription's status and in Explain, e.g. `portal-7f9c`.
    pub fn member(mut self, name: impl Into<String>) -> Self {
        self.options.member = name.into();
        self
    }

    /// Has the hub confirm each ack after its commit, and sends again on a new stream what was not
    /// confirmed. Without it a crash of the hub, or a broken connection, may repeat the events
    /// whose acks were last sent. A shutdown waits for the confirmations.
    pub fn confirm_acks(mut self) -> Self {
        self.options.confirm_acks = true;
        self
    }

    /// How long a shutdown lets handlers finish, 30 s by default. Handlers that still run then are
    /// cancelled where they wait, and their events given back.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.options.drain_timeout = timeout.min(TIME_MAX);
        self
    }

    /// How long a lease is extended while its handler runs, 1 h by default, counted from when the
    /// handler began (before that, from when the event came). The lease of a handler that runs
    /// longer ends: its event is delivered again, and that attempt counts as failed. The handler is
    /// not cancelled.
    pub fn extend_for(mut self, longest: Duration) -> Self {
        self.options.extend_for = longest.min(TIME_MAX);
        self
    }

    /// Called with what there is to know besides events. It runs in the consumer's own task, so it
    /// must not block; a panic in it is ignored.
    pub fn on_notice(mut self, notice: impl Fn(ConsumerNotice) + Send + 'static) -> Self {
        self.notify = Some(Box::new(notice));
        self
    }

    /// Starts consuming: calls the handler with each event, for many events at once, and tells the
    /// hub what it answers. See [`Consumer`].
    pub fn run<H, F>(mut self, handler: H) -> Consumer
    where
        H: Fn(LeasedEvent) -> F + Send + Sync + 'static,
        F: Future<Output: Into<Answer>> + Send + 'static,
    {
        let concurrency = self.options.concurrency;
        self.options
            .credit
            .get_or_insert_with(|| credit((2 * concurrency).max(CREDIT_EVENTS), CREDIT_BYTES));
        let handling = Handling::new(handler, self.runtime.clone());
        Consumer::start(
            self.client,
            &self.runtime,
            self.options,
            handling,
            self.notify,
        )
    }
}

fn credit(events: usize, bytes: u64) -> Credit {
    let events = events.clamp(1, EVENTS_MAX);
    Credit {
        events: u32::try_from(events).unwrap_or(u32::MAX),
        bytes: bytes.clamp(1, BYTES_MAX),
    }
}

impl fmt::Debug for ConsumerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerBuilder")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
