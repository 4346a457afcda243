//! Who works on subscriptions: calls that change one tell its owner in this process. Calls that
//! show one ask its owner, wherever it is, what it knows that is not stored yet.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use hub_core::auth::Caller;
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_proto::hub::event_bus::v1::EventDeliveryState;

use crate::leasing::{self, Key, Leasing, Saved, UnsettledState};
use crate::store::progress::Held;
use crate::store::seeks::Stored;
use crate::subscriptions::Settings;

/// Blocked keys that are told.
pub(crate) const BLOCKED_MAX: usize = 20;

/// Events of which is told where they stand, at once: those of a page of the log.
pub const SEQS_MAX: usize = 1000;

/// What was changed of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Altered {
    /// Its settings, or its pause: who works on it goes on with those.
    Settings,
    /// Something that fences. Whoever began to work on it since it was closed began with what was
    /// stored before, and would notice at its next checkpoint only: it ends.
    Place,
}

/// One call that wants to know how subscriptions are doing. It waits once at most for a process
/// that does not answer, however many subscriptions that one has.
pub struct Asking<'a> {
    pub(crate) caller: &'a Caller,
    silent: Mutex<HashSet<Arc<str>>>,
}

/// What is known of a subscription at work.
#[derive(Debug, Clone)]
pub enum Known {
    /// By its owner.
    Told {
        /// How it is doing; empty if only events were asked for.
        live: Box<Live>,
        /// Where the events stand that were asked for and that it has come to.
        said: HashMap<u64, Said>,
    },
    /// Its owner, another process, did not answer.
    Silent,
}

/// What is wanted of subscriptions at work.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// How they are doing.
    pub live: bool,
    /// Where these events stand; at most [`SEQS_MAX`], of more nothing is said.
    pub seqs: &'a [u64],
}

/// Where an event stands that a subscription has come to, as its owner knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It is not settled.
    Unsettled(UnsettledState),
    /// It was settled so, which may not be stored yet.
    Settled {
        /// What became of it.
        state: EventDeliveryState,
        /// Times it was leased.
        attempts: u32,
        /// Error of the last attempt, or why it was skipped; may be empty.
        error: String,
        /// When, if it was not by its place alone.
        time: Option<Micros>,
    },
    /// What is stored of how it was settled is all there is: if that is nothing, it was
    /// acknowledged, if it was routed here.
    Passed,
}

/// The subscriptions at work, of this process and of the others.
pub trait Owners: Send + Sync {
    /// Stores what is known of a subscription and ends its leases; whoever takes events of it next
    /// begins with what is stored then. Called before a change that fences.
    ///
    /// Errors: `STORE_BUSY`; the change is not made then.
    fn close<'a>(&'a self, tenant: &'a TenantRef, id: &'a str) -> BoxFuture<'a, Result<()>>;

    /// A subscription was changed. Called after the commit; in this process the change holds once
    /// this is over.
    fn changed<'a>(
        &'a self,
        tenant: &'a TenantRef,
        id: &'a str,
        what: Altered,
    ) -> BoxFuture<'a, ()>;

    /// How subscriptions of the caller's tenant that are at work are doing now, and where events
    /// stand at them. One that is missing is not at work: what is stored of it is all there is.
    /// What they say is joined with what is read of the database after it.
    ///
    /// Errors: `STORE_BUSY`.
    fn live<'a>(
        &'a self,
        asking: &'a Asking<'a>,
        ids: &'a [&'a str],
        wanted: Wanted<'a>,
    ) -> BoxFuture<'a, Result<HashMap<String, Known>>>;
}

impl<'a> Asking<'a> {
    /// Nobody was asked yet.
    pub(crate) fn of(caller: &'a Caller) -> Asking<'a> {
        Asking {
            caller,
            silent: Mutex::default(),
        }
    }

    /// A process did not answer.
    pub(crate) fn missed(&self, process_id: &Arc<str>) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.insert(process_id.clone());
    }

    /// Whether a process did not answer this call before.
    pub(crate) fn has_missed(&self, process_id: &str) -> bool {
        let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.contains(process_id)
    }
}

/// How a subscription is doing, apart from what the log and its settings say. So its owner tells
/// it to other processes.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Live {
    /// Everything up to here is settled.
    #[prost(uint64, tag = "1")]
    pub floor: u64,
    /// Everything up to here was looked at.
    #[prost(uint64, tag = "2")]
    pub cursor: u64,
    /// Events that were looked at and are not settled.
    #[prost(uint64, tag = "3")]
    pub unsettled: u64,
    /// The oldest of them.
    #[prost(uint64, optional, tag = "4")]
    pub oldest_unsettled: Option<u64>,
    /// Of them, those that are leased.
    #[prost(uint32, tag = "5")]
    pub in_flight: u32,
    /// Of them, those that wait for a retry.
    #[prost(uint32, tag = "6")]
    pub retrying: u32,
    /// Keys that are held back, the longest first.
    #[prost(message, repeated, tag = "7")]
    pub blocked: Vec<Blocked>,
    /// Names of members that are connected, or pulled within the last minute.
    #[prost(string, repeated, tag = "8")]
    pub members: Vec<String>,
    /// So many events are unsettled that no more are looked at.
    #[prost(bool, tag = "9")]
    pub window_full: bool,
    /// There were attempts within the last minute, and all of them failed.
    #[prost(bool, tag = "10")]
    pub failing: bool,
    /// The last error that a consumer reported.
    #[prost(string, tag = "11")]
    pub last_error: String,
    /// Its owner, another process, did not answer: who its members are, and what they said, is not
    /// known.
    #[prost(bool, tag = "12")]
    pub is_silent: bool,
}

/// A key whose events are held back by a failing one.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Blocked {
    /// The failing event; its key is the key.
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    /// Its attempts so far; 0 if it failed for good.
    #[prost(uint32, tag = "2")]
    pub attempts: u32,
    /// Events that wait behind it.
    #[prost(uint64, tag = "3")]
    pub waiting: u64,
    /// When it is tried again; none if it failed for good.
    #[prost(int64, optional, tag = "4")]
    pub due: Option<Micros>,
}

impl Live {
    /// What the state machine of a subscription knows; members and errors are for its owner to add.
    pub fn of(leasing: &Leasing) -> Live {
        let (position, counts) = (leasing.position(), leasing.counts());
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let blocked = leasing.blocked_keys(BLOCKED_MAX).into_iter();
        Live {
            floor: position.floor,
            cursor: position.cursor,
            unsettled: counts.unsettled as u64,
            oldest_unsettled: leasing.oldest_unsettled(),
            in_flight: count(counts.in_flight),
            retrying: count(counts.retrying),
            blocked: blocked
                .map(|blocked| Blocked {
                    seq: blocked.seq,
                    attempts: blocked.attempts,
                    waiting: blocked.waiting as u64,
                    due: blocked.due,
                })
                .collect(),
            ..Live::default()
        }
    }

    /// What is stored of a subscription.
    pub(crate) fn stored(settings: &Settings, position: &Stored, held: &[Held]) -> Result<Live> {
        let unsettled = unsettled(position)?;
        let held: Vec<_> = held.iter().map(|held| (Key(held.key), held.seq)).collect();
        let place = leasing::Position {
            floor: position.floor,
            cursor: position.cursor,
            replay_until: position.replay_until,
        };
        let rules = settings.rules(usize::MAX, 0);
        let leasing = Leasing::new(rules, position.epoch, place, &unsettled, &held);
        let failed = unsettled.iter().filter(|event| !event.error.is_empty());
        let newest = failed.max_by_key(|event| event.due);
        let in_flight = unsettled.iter().filter(|event| event.in_flight).count();
        Ok(Live {
            // Leased by an owner that did not answer, or that is gone.
            in_flight: u32::try_from(in_flight).unwrap_or(u32::MAX),
            last_error: newest.map_or_else(String::new, |event| event.error.to_string()),
            ..Live::of(&leasing)
        })
    }
}

/// The events that are not settled at a stored place.
pub(crate) fn unsettled(position: &Stored) -> Result<Vec<Saved>> {
    leasing::unpack(&position.unsettled).map_err(Error::internal)
}
