//! Who works on subscriptions: calls that change one tell its owner in this process, and ask what
//! it knows that is not stored yet.

use std::collections::HashMap;

use futures_util::future::BoxFuture;
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;

use crate::leasing::{self, Key, Leasing, Saved};
use crate::store::progress::Held;
use crate::store::seeks::Stored;
use crate::subscriptions::Settings;

/// Blocked keys that are told.
const BLOCKED_MAX: usize = 20;

/// What was changed of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Its settings, or its pause: who works on it goes on with those.
    Settings,
    /// Something that fences. Whoever began to work on it since it was closed began with what was
    /// stored before, and would notice at its next checkpoint only: it ends.
    Place,
}

/// The subscriptions at work, of this process and, as far as it can ask them, of others.
pub trait Owners: Send + Sync {
    /// Stores what is known of a subscription and ends its leases; whoever takes events of it next
    /// begins with what is stored then. Called before a change that fences.
    ///
    /// Errors: `STORE_BUSY`; the change is not made then.
    fn close<'a>(&'a self, tenant: &'a TenantRef, id: &'a str) -> BoxFuture<'a, Result<()>>;

    /// A subscription was changed. Called after the commit; in this process the change holds once
    /// this is over.
    fn changed<'a>(&'a self, tenant: &'a TenantRef, id: &'a str, what: What) -> BoxFuture<'a, ()>;

    /// How subscriptions that are at work are doing now. One that is missing is not at work: what
    /// is stored of it is all there is.
    fn live<'a>(
        &'a self,
        tenant: &'a TenantRef,
        ids: &'a [&'a str],
    ) -> BoxFuture<'a, HashMap<String, Live>>;
}

/// How a subscription is doing, apart from what the log and its settings say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Live {
    /// Everything up to here is settled.
    pub floor: u64,
    /// Everything up to here was looked at.
    pub cursor: u64,
    /// Events that were looked at and are not settled.
    pub unsettled: u64,
    /// The oldest of them.
    pub oldest_unsettled: Option<u64>,
    /// Of them, those that are leased.
    pub in_flight: u32,
    /// Of them, those that wait for a retry.
    pub retrying: u32,
    /// Keys that are held back, the longest first.
    pub blocked: Vec<Blocked>,
    /// Names of members that are connected, or pulled within the last minute.
    pub members: Vec<String>,
    /// So many events are unsettled that no more are looked at.
    pub window_full: bool,
    /// There were attempts within the last minute, and all of them failed.
    pub failing: bool,
    /// The last error that a consumer reported.
    pub last_error: String,
}

/// A key whose events are held back by a failing one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// The failing event; its key is the key.
    pub seq: u64,
    /// Its attempts so far; 0 if it failed for good.
    pub attempts: u32,
    /// Events that wait behind it.
    pub waiting: u64,
    /// When it is tried again; none if it failed for good.
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
            // Leased by an owner that this process cannot ask, or that is gone.
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
