//! What the next checkpoint stores besides the position and the unsettled events.

use std::collections::BTreeMap;
use std::sync::Arc;

use hub_core::clock::Micros;

use super::Key;

/// How an event ended, or a range of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It failed for good.
    Failed,
    /// The consumer skipped it.
    Skipped,
    /// Retention passed it.
    Expired,
    /// It was acked, though what is stored of it would say something else.
    Delivered,
}

/// An event that did not end by an ack, or whose ack must be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    /// The event.
    pub seq: u64,
    /// How it ended.
    pub state: Settled,
    /// Times it was leased, less those that cost no attempt.
    pub attempts: u32,
    /// Error of the last attempt, or why it was skipped; may be empty.
    pub error: Arc<str>,
    /// The key that it holds back.
    pub held_key: Option<Key>,
    /// When it ended.
    pub at: Micros,
}

/// To be stored by the next checkpoint. An event is in at most one of `put`, `removed` and
/// `freed`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Exceptions to put, in the place of those of the same events.
    pub put: Vec<Exception>,
    /// Exceptions to remove, if there are any: their events are unsettled again.
    pub removed: Vec<u64>,
    /// Exceptions that stay, but do not hold their key any more.
    pub freed: Vec<u64>,
    /// Ranges to add, first and last included: events never looked at.
    pub ranges: Vec<(u64, u64, Settled)>,
    /// An exhausted event paused the subscription.
    pub paused: bool,
}

/// The changes that were not taken yet; the last one of an event counts.
#[derive(Debug, Default)]
pub(super) struct Pending {
    exceptions: BTreeMap<u64, Change>,
    ranges: Vec<(u64, u64, Settled)>,
    paused: bool,
}

#[derive(Debug)]
enum Change {
    Put(Exception),
    Remove,
    Free,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.exceptions.is_empty() && self.ranges.is_empty() && !self.paused
    }

    pub(super) fn put(&mut self, exception: Exception) {
        self.exceptions
            .insert(exception.seq, Change::Put(exception));
    }

    pub(super) fn remove(&mut self, seq: u64) {
        self.exceptions.insert(seq, Change::Remove);
    }

    /// The event does not hold its key any more.
    pub(super) fn free(&mut self, seq: u64) {
        match self.exceptions.entry(seq).or_insert(Change::Free) {
            Change::Put(exception) => exception.held_key = None,
            Change::Remove | Change::Free => {}
        }
    }

    /// Ranges come in rising order; one that continues the last is one with it.
    pub(super) fn range(&mut self, first: u64, last: u64, state: Settled) {
        match self.ranges.last_mut() {
            Some(before) if before.1 + 1 == first && before.2 == state => before.1 = last,
            _ => self.ranges.push((first, last, state)),
        }
    }

    pub(super) fn pause(&mut self) {
        self.paused = true;
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn take(&mut self) -> Changes {
        let pending = std::mem::take(self);
        let mut changes = Changes {
            ranges: pending.ranges,
            paused: pending.paused,
            ..Changes::default()
        };
        for (seq, change) in pending.exceptions {
            match change {
                Change::Put(exception) => changes.put.push(exception),
                Change::Remove => changes.removed.push(seq),
                Change::Free => changes.freed.push(seq),
            }
        }
        changes
    }
}
