//! The state of one durable subscription, as a pure machine: which events are unsettled, who has
//! which of them, when they are tried again, and what is to be stored of it. No IO and no clock:
//! the time and the jitter are arguments.
//!
//! Invariants:
//! - `floor <= cursor`, and neither falls; only a seek, which is a new machine, lowers them.
//! - Of a key at most one event is leased, and a lease is given only to the smallest unsettled one
//!   that no failed event of the key holds back.
//! - A lease of another epoch, or one that ended, changes nothing.
//! - An event ends as exactly one of delivered, failed, skipped and expired.
//! - A redelivered event is leased only once it is stored that it is unsettled again: until then a
//!   crash would leave what was said of it before, though a consumer had it.
//!
//! All that is settled by an ack is derived from the position, so that it costs no row. What ends
//! otherwise goes into [`Changes`]. An operation costs O(log n) of the unsettled events, which the
//! window bounds; exceptions are named where they are.

mod changes;
mod credit;
mod keys;
mod leases;
mod line;
mod members;
mod rate;
mod remembered;
mod saved;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hub_core::clock::Micros;

pub use changes::{Changes, Exception, Settled};
pub(crate) use leases::{CONNECTION_LOST, LEASE_EXPIRED};
pub use saved::{Damaged, Saved, pack, unpack};
pub use status::{Blocked, Counts, Phase, UnsettledState};

use changes::Pending;
use keys::Keys;
use members::Members;
use rate::Rate;
use remembered::Remembered;

/// Losses of the connection by which an event is suspected to be their cause: this one and each
/// later one costs an attempt.
pub const LOSSES_MAX: u8 = 3;
/// Longest text of an error that is kept, in bytes; more is cut.
pub const ERROR_BYTES_MAX: usize = 1024;

/// A hash of an ordering key, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u64);

impl Key {
    /// The one key of all events in total order.
    pub const ALL: Key = Key(u64::MAX);
}

/// Which events wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    /// Those of the same key.
    ByKey,
    /// All, and one member gets them.
    Total,
    /// None.
    None,
}

impl Ordering {
    /// What stands for the key of an event.
    fn key(self, key: Option<Key>) -> Option<Key> {
        match self {
            Ordering::ByKey => key,
            Ordering::Total => Some(Key::ALL),
            Ordering::None => None,
        }
    }
}

/// What happens when an event failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// Its key goes on.
    Fail,
    /// Its key waits until the event is redelivered and settled.
    BlockKey,
    /// Nothing more is leased until the subscription is resumed; then its key goes on.
    Pause,
}

/// The settings of a subscription, and the limits of the hub.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Fixed for the life of a subscription.
    pub ordering: Ordering,
    /// The wait before each retry. An event that failed more often than this is long is exhausted.
    pub delays: Vec<Micros>,
    /// What then happens.
    pub on_exhausted: Exhausted,
    /// Length of a lease that names none.
    pub lease: Micros,
    /// Most leases in any second; 0 = no limit.
    pub max_per_second: u32,
    /// Most unsettled events and held keys, and as many redelivered events besides.
    pub window_max: usize,
    /// How many settled leases are remembered, to answer a repeated ack.
    pub settled_remembered_max: usize,
}

/// Names a member: a stream, or a consumer that pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// Names a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId {
    /// The event.
    pub seq: u64,
    /// The ownership in which the lease was given.
    pub epoch: u64,
    /// Counts the leases of the epoch, from 1.
    pub number: u64,
}

/// An event that is a member's until the lease ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Names the lease.
    pub id: LeaseId,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// From then on acks come too late.
    pub until: Micros,
    /// Why the attempt before failed.
    pub previous_error: Option<Arc<str>>,
    /// Whether a seek or a redelivery caused it.
    pub redelivery: bool,
    /// Size of the event.
    pub bytes: u32,
}

/// What an ack, a nack or an extension did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied.
    Ok,
    /// It came too late; the event is or will be leased again.
    LeaseExpired,
    /// The event was settled by this lease before.
    AlreadySettled,
    /// There is no such lease.
    Unknown,
}

/// What to do with an event that was not processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nack {
    /// Try again, after this long instead of the delay of the rules.
    Retry {
        /// Replaces the delay, without jitter.
        after: Option<Micros>,
    },
    /// Give it to another member at once; costs no attempt.
    Release,
    /// Give up the attempts that are left.
    Fail,
    /// Never deliver it.
    Skip,
}

/// How far a subscription is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Everything up to here is settled. Redelivered events do not move it back.
    pub floor: u64,
    /// Everything up to here was looked at.
    pub cursor: u64,
    /// Events up to here were delivered before a seek led back.
    pub replay_until: u64,
}

/// The state of one subscription.
#[derive(Debug)]
pub struct Leasing {
    rules: Rules,
    epoch: u64,
    /// What the floor was when it was last stored; [`Leasing::position`] finds what it is.
    floor: u64,
    cursor: u64,
    replay_until: u64,
    /// The newest event that was settled, or looked at by an owner before.
    settled_through: u64,
    /// Retention passed these events.
    expired_through: u64,
    paused: bool,
    /// The unsettled events.
    events: BTreeMap<u64, Event>,
    keys: Keys,
    /// Events that may be leased now.
    ready: BTreeSet<u64>,
    /// Events that may be leased now, but not by the member that released them.
    released: BTreeMap<u64, MemberId>,
    /// Events that may be leased later: when a retry is due, or when everybody may have a released
    /// one.
    waits: BTreeSet<(Micros, u64)>,
    /// The ends of the leases.
    leases: BTreeSet<(Micros, u64)>,
    /// Counts events that wait for a retry.
    retrying: usize,
    /// Counts unsettled events that were settled before.
    redelivered: usize,
    /// Those of them of which that is not stored yet.
    unstored: BTreeSet<u64>,
    /// Events that were not looked at yet, of which it is stored what became of them before.
    known_ahead: BTreeSet<u64>,
    members: Members,
    /// Of the newest lease.
    number: u64,
    remembered: Remembered,
    rate: Rate,
    /// The speed limit is reached until then, as of the last lease or tick.
    limited_until: Option<Micros>,
    pending: Pending,
    /// The first and the last event that expired while they were leased, since it was asked.
    lost: Option<(u64, u64)>,
    dirty: bool,
}

/// Where an unsettled event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Behind another event of its key, behind a failed one that holds the key, or not stored yet.
    Behind,
    /// In `ready`.
    Ready,
    /// In `waits`, at `due`.
    Waiting,
    /// In `released`, and in `waits` at `until`.
    Released,
    /// In `leases`, at `until`.
    Leased,
}

/// An unsettled event.
#[derive(Debug)]
struct Event {
    key: Option<Key>,
    place: Place,
    losses: u8,
    /// It was settled before.
    redelivery: bool,
    /// An ack needs no exception: what is not said otherwise is delivered.
    derived_delivered: bool,
    bytes: u32,
    /// Attempts that failed.
    attempts: u32,
    /// When the retry is due, or was, if it is leased for that; 0 = none.
    due: Micros,
    /// The end of the lease, or of the time for which a member is passed over that released it.
    until: Micros,
    number: u64,
    member: MemberId,
    error: Option<Arc<str>>,
}

impl Event {
    fn new(key: Option<Key>, bytes: u32) -> Self {
        Event {
            key,
            place: Place::Behind,
            losses: 0,
            redelivery: false,
            derived_delivered: true,
            bytes,
            attempts: 0,
            due: 0,
            until: 0,
            number: 0,
            member: MemberId(0),
            error: None,
        }
    }

    fn is_leased(&self) -> bool {
        self.place == Place::Leased
    }

    fn is_retrying(&self) -> bool {
        self.due != 0 && !self.is_leased()
    }
}

impl Leasing {
    /// A machine that goes on where another was saved. Events that were leased are queued again,
    /// without cost. `epoch` is the caller's ownership; `held` are the keys of failed events that
    /// hold them back, with the events.
    pub fn new(
        rules: Rules,
        epoch: u64,
        position: Position,
        unsettled: &[Saved],
        held: &[(Key, u64)],
    ) -> Leasing {
        let remembered = Remembered::new(rules.settled_remembered_max);
        let mut leasing = Leasing {
            rules,
            epoch,
            floor: position.floor,
            cursor: position.cursor.max(position.floor),
            replay_until: position.replay_until,
            settled_through: position.cursor.max(position.floor),
            expired_through: 0,
            paused: false,
            events: BTreeMap::new(),
            keys: Keys::default(),
            ready: BTreeSet::new(),
            released: BTreeMap::new(),
            waits: BTreeSet::new(),
            leases: BTreeSet::new(),
            retrying: 0,
            redelivered: 0,
            unstored: BTreeSet::new(),
            known_ahead: BTreeSet::new(),
            members: Members::default(),
            number: 0,
            remembered,
            rate: Rate::default(),
            limited_until: None,
            pending: Pending::default(),
            lost: None,
            dirty: false,
        };
        for (key, seq) in held {
            if let Some(key) = leasing.rules.ordering.key(Some(*key)) {
                leasing.keys.hold(key, *seq);
            }
        }
        for saved in unsettled {
            leasing.restore(saved);
        }
        leasing
    }

    /// Of these events, which were not looked at yet, it is stored what became of them before: they
    /// were redelivered, and then a seek led back. If one comes after all, that is forgotten.
    pub fn know_ahead(&mut self, seqs: Vec<u64>) {
        self.known_ahead = seqs.into_iter().collect();
    }

    /// Takes over changed settings; what was decided stays. The ordering never changes.
    pub fn set_rules(&mut self, rules: Rules) {
        let ordering = self.rules.ordering;
        self.remembered.set_max(rules.settled_remembered_max);
        self.rules = Rules { ordering, ..rules };
    }

    /// Paused: nothing is leased, running leases may be settled. A machine also pauses by itself,
    /// by [`Exhausted::Pause`]; who does not know that yet, because it is among the changes that
    /// were not taken, does not take it back.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Whether it is paused, by whoever it was.
    pub fn is_paused(&self) -> bool {
        self.paused || self.pending.is_paused()
    }

    /// How far it is.
    pub fn position(&self) -> Position {
        let first = self.events.range(self.floor.saturating_add(1)..).next();
        Position {
            floor: first.map_or(self.cursor, |(seq, _)| seq - 1),
            cursor: self.cursor,
            replay_until: self.replay_until,
        }
    }

    /// How many more events may be offered. 0 = the window is full of unsettled events and held
    /// keys; redelivered events do not count.
    pub fn window_left(&self) -> usize {
        let offered = self.events.len() - self.redelivered;
        let taken = offered + self.keys.held_count();
        self.rules.window_max.saturating_sub(taken)
    }

    /// How many more events may be redelivered.
    pub fn redelivery_left(&self) -> usize {
        self.rules.window_max.saturating_sub(self.redelivered)
    }

    /// Whether something changed since the last [`Leasing::save`] and [`Leasing::take_changes`].
    pub fn is_dirty(&self) -> bool {
        self.dirty || !self.pending.is_empty()
    }

    /// What is to be stored with the changes, in one transaction. Costs O(n).
    pub fn save(&mut self) -> (Position, Vec<Saved>) {
        let position = self.position();
        self.floor = position.floor;
        self.dirty = false;
        let none: Arc<str> = Arc::from("");
        let saved = |(seq, event): (&u64, &Event)| Saved {
            seq: *seq,
            key: event.key,
            bytes: event.bytes,
            attempts: event.attempts,
            losses: event.losses,
            due: if event.is_leased() { 0 } else { event.due },
            in_flight: event.is_leased(),
            redelivery: event.redelivery,
            derived_delivered: event.derived_delivered,
            error: event.error.as_ref().unwrap_or(&none).clone(),
        };
        (position, self.events.iter().map(saved).collect())
    }

    /// The redelivered events that wait until a save with them is stored.
    pub fn unstored(&self) -> Vec<u64> {
        self.unstored.iter().copied().collect()
    }

    /// A save with these [`Leasing::unstored`] events is stored: they may be leased.
    pub fn stored(&mut self, seqs: &[u64]) {
        for seq in seqs {
            if self.unstored.remove(seq)
                && let Some(event) = self.events.get(seq)
            {
                self.line_up(*seq, event.key);
            }
        }
    }

    /// What is to be stored besides [`Leasing::save`]; each change is given once.
    pub fn take_changes(&mut self) -> Changes {
        let changes = self.pending.take();
        self.paused |= changes.paused;
        changes
    }
}

/// An error as it is kept; `None` if it says nothing.
fn kept_error(error: &str) -> Option<Arc<str>> {
    let end = error.floor_char_boundary(ERROR_BYTES_MAX);
    (end > 0).then(|| Arc::from(&error[..end]))
}
