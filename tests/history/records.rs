//! What clients of the hub did and were told, and what the log says at the end.
//!
//! Times are microseconds of this machine's clock, which the hub under test shares. What a client
//! does is noted before it does it, what it is told after it was told, so that the truth of the hub
//! lies between the two.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::filter::Wanted;

/// Microseconds since 1970-01-01T00:00:00Z.
pub type Micros = i64;

/// The time now.
pub fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_micros()).unwrap()
}

/// What a run was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    pub seed: u64,
    pub database: String,
    pub processes: usize,
    /// Tenants of the run; clients name theirs by number.
    pub tenants: usize,
}

/// What the records of one client are about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publishing {
    /// Slug of the product that publishes.
    pub product: String,
}

/// An event as its publisher made it. Its id is its own within the tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub id: String,
    pub kind: String,
    /// The `partitionkey`; empty = none.
    pub key: String,
    /// Of the data.
    pub digest: u64,
    /// An id that was used before, with other data: it has to be refused.
    pub altered: bool,
}

/// What was told about one event of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// 0 = refused.
    pub sequence: u64,
    pub duplicate: bool,
    /// Durable subscriptions that it went to.
    pub destinations: u32,
}

/// A record of a publisher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Publication {
    /// A batch goes out, by a call or as a frame of a stream. Further attempts list no events.
    Sent {
        batch: u64,
        attempt: u32,
        /// All or none.
        atomic: bool,
        process: usize,
        events: Vec<Event>,
    },
    /// It is stored; one result for each event.
    Acked { batch: u64, results: Vec<Stored> },
    /// It is not stored, and that is final.
    Refused { batch: u64, reason: String },
    /// Nobody knows.
    Unknown { batch: u64, error: String },
}

/// What the records of a subscriber are about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribing {
    pub product: String,
    /// Everything of the tenant, not only what is routed to the product.
    pub all_products: bool,
    pub wanted: Wanted,
}

/// Where a subscriber starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    Earliest,
    Now,
    /// A cursor that came with this position.
    Cursor(u64),
    /// A cursor that came with the acknowledgement of this sequence.
    Acked(u64),
}

/// An event as a reader got it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub sequence: u64,
    pub id: String,
    pub kind: String,
    pub product: String,
    pub key: String,
    pub digest: u64,
}

/// A record of a subscriber.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reading {
    Asked {
        start: Start,
        process: usize,
        /// The stream ends after so many; 0 = never.
        max_events: u32,
    },
    Opened {
        head: u64,
    },
    Events(Vec<Seen>),
    /// Everything that matches up to here was sent.
    Progress(u64),
    CaughtUp(u64),
    Gap {
        from: u64,
        to: u64,
        reason: String,
    },
    /// The hub ends the stream.
    Closing(String),
    /// The stream ended otherwise; or the client gave it up.
    Broken(String),
}

/// Order of delivery of a durable subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ordering {
    ByKey,
    Total,
    None,
}

/// A durable subscription, as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durable {
    pub subscription_id: String,
    pub name: String,
    pub product: String,
    /// The product's default one, which takes what the catalogue names the product for.
    pub default: bool,
    pub wanted: Wanted,
    pub ordering: Ordering,
    /// Waits before each retry.
    pub delays: Vec<Micros>,
    /// A key with a failed event waits.
    pub block_key: bool,
    pub lease: Micros,
    /// Somebody works it off, so that nothing may be left of it.
    pub consumed: bool,
    /// Somebody asks for some of its events again.
    #[serde(default)]
    pub redelivered: bool,
}

/// What the records of a consumer are about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consuming {
    pub subscription_id: String,
    pub member: String,
    /// By Pull and Acknowledge instead of Consume.
    pub pulls: bool,
}

/// An event that was leased to a consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leased {
    pub lease: String,
    pub event: Seen,
    pub attempt: u32,
    pub until: Micros,
    /// How long it is; the lease began so long before `until`.
    pub length: Micros,
    pub previous_error: String,
    pub redelivery: bool,
}

/// What a consumer wants done with a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    Ack,
    /// The policy's delay, or a longer one.
    Retry {
        after: Option<Micros>,
        error: String,
    },
    Release,
    Fail {
        error: String,
    },
    Skip,
    Extend {
        length: Micros,
    },
}

/// Of one lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settling {
    pub lease: String,
    pub how: How,
}

/// What the hub says of a settling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Ok,
    LeaseExpired,
    AlreadySettled,
    Unknown,
    Retry,
}

/// A record of a consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consumption {
    /// A stream, or a call of Pull.
    Asked {
        process: usize,
        /// Acks are answered when they are on disk. Always so with Acknowledge.
        confirms: bool,
    },
    Opened,
    /// Everything up to here is settled.
    Progress(u64),
    /// The same, and nothing is left.
    CaughtUp(u64),
    Leased(Vec<Leased>),
    Settling(Vec<Settling>),
    /// For each lease of a batch in its order; without `confirms` only those that failed.
    Outcomes(Vec<(String, Outcome)>),
    State(String),
    Gap {
        from: u64,
        to: u64,
        reason: String,
    },
    Closing(String),
    /// The stream or call failed, or the client gave it up; what was not answered stays unknown.
    Broken(String),
}

/// What the records of a client that asks for events again are about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redelivering {
    pub subscription_id: String,
}

/// A record of a client that asks for events again, each one once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Redelivery {
    /// A job is asked for, of events that were over by then, with their states.
    Asked { job: u64, events: Vec<(u64, State)> },
    /// The hub has it.
    Accepted { job: u64 },
    /// The hub will not do it, and that is final.
    Refused { job: u64, error: String },
    /// The job has ended, and said how many it queued.
    Ended {
        job: u64,
        state: String,
        queued: u64,
    },
}

/// What is done to the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// SIGKILL and a new start.
    Kill(usize),
    /// SIGSTOP, later SIGCONT.
    Stop(usize),
    /// PostgreSQL killed and started again; on SQLite, somebody else's lock.
    Database,
    /// All connections to a process are cut.
    Cut(usize),
    /// Nothing comes through, in no direction, and then the connections are cut.
    HalfOpen(usize),
    /// Everything takes longer.
    Delay(usize),
}

/// What happens around the clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Happening {
    Began(Fault),
    Ended(Fault),
    /// The integration from a product to another is set, by a call that may take a while.
    Switching {
        tenant: usize,
        source: String,
        destination: String,
        enabled: bool,
    },
    Switched {
        tenant: usize,
        source: String,
        destination: String,
        enabled: bool,
    },
    Subscribed {
        tenant: usize,
        durable: Durable,
    },
    /// What a process logged of a panic.
    Panicked(String),
    /// Older events are removed from now on.
    Retention {
        tenant: usize,
        length: Micros,
    },
    /// No fault any more, and nothing is published; what is left is worked off.
    Calm,
    /// All clients have ended.
    Over,
}

/// State of an event for a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum State {
    Queued,
    InFlight,
    RetryWait,
    KeyBlocked,
    Delivered,
    Failed,
    Skipped,
    NotRouted,
    Expired,
    /// One that the contract does not know.
    Strange,
}

impl State {
    /// Whether nothing more happens by itself.
    pub fn is_final(self) -> bool {
        matches!(
            self,
            State::Delivered | State::Failed | State::Skipped | State::NotRouted | State::Expired
        )
    }
}

/// Of an event and a subscription, as the event log tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    pub sequence: u64,
    /// Empty for a product that never had a subscription.
    pub subscription_id: String,
    pub product: String,
    pub state: State,
    pub attempts: u32,
    pub last_error: String,
}

/// What ExplainEvent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    pub sequence: u64,
    /// Slug of the product.
    pub destination: String,
    pub verdict: String,
    pub primary_cause: String,
}

/// A record of the log at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Line {
    /// As Subscribe reads it.
    Event {
        seen: Seen,
        record_time: Micros,
    },
    /// As ListEvents tells.
    Listed(Delivery),
    /// As GetEvent tells, of some.
    Got(Delivery),
    Explained(Explained),
}
