//! The order within keys: which event has its key's turn, and which wait behind it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Key;

/// The unsettled events by key, and the failed events that hold keys back.
#[derive(Debug, Default)]
pub(super) struct Keys {
    lines: HashMap<Key, Line>,
    /// All events that do not have the turn.
    behind: BTreeSet<(Key, u64)>,
    holds: BTreeSet<(Key, u64)>,
    holders: BTreeMap<u64, Key>,
}

/// The unsettled events of one key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    /// The event that has the turn: the smallest, unless a greater one is leased.
    pub(super) head: u64,
    /// Events behind it.
    pub(super) waiting: u32,
}

impl Keys {
    /// An event lines up. True if it has the turn.
    pub(super) fn enter(&mut self, key: Key, seq: u64) -> bool {
        let line = self.lines.entry(key).or_insert(Line {
            head: seq,
            waiting: 0,
        });
        if line.head == seq {
            return true;
        }
        if self.behind.insert((key, seq)) {
            line.waiting += 1;
        }
        false
    }

    /// An event is settled. Returns the one that has the turn now, if it changed.
    pub(super) fn leave(&mut self, key: Key, seq: u64) -> Option<u64> {
        let Entry::Occupied(mut entry) = self.lines.entry(key) else {
            return None;
        };
        let line = entry.get_mut();
        if line.head != seq {
            if self.behind.remove(&(key, seq)) {
                line.waiting -= 1;
            }
            return None;
        }
        // Most keys have one event.
        if line.waiting == 0 {
            entry.remove();
            return None;
        }
        let (_, next) = *self.behind.range((key, 0)..=(key, u64::MAX)).next()?;
        self.behind.remove(&(key, next));
        line.head = next;
        line.waiting -= 1;
        Some(next)
    }

    /// The events of a key.
    pub(super) fn line(&self, key: Key) -> Option<Line> {
        self.lines.get(&key).copied()
    }

    /// All keys with unsettled events, in no order.
    pub(super) fn lines(&self) -> impl Iterator<Item = (Key, Line)> {
        self.lines.iter().map(|(key, line)| (*key, *line))
    }

    /// Gives the turn to the smallest event. Returns it, if it was another that had the turn.
    pub(super) fn sort(&mut self, key: Key) -> Option<u64> {
        let line = self.lines.get_mut(&key)?;
        let first = self.behind.range((key, 0)..(key, line.head)).next();
        let (_, first) = *first?;
        self.behind.remove(&(key, first));
        self.behind.insert((key, line.head));
        line.head = first;
        Some(first)
    }

    /// Events of a key after this one, besides the one that has the turn. Costs O(answer).
    pub(super) fn waiting_after(&self, key: Key, seq: u64) -> usize {
        let after = (key, seq.saturating_add(1));
        self.behind.range(after..=(key, u64::MAX)).count()
    }

    /// A failed event holds its key.
    pub(super) fn hold(&mut self, key: Key, seq: u64) {
        self.holds.insert((key, seq));
        self.holders.insert(seq, key);
    }

    /// A failed event does not hold its key any more. Returns the key, if it did.
    pub(super) fn free(&mut self, seq: u64) -> Option<Key> {
        let key = self.holders.remove(&seq)?;
        self.holds.remove(&(key, seq));
        Some(key)
    }

    /// Whether a failed event before this one holds the key.
    pub(super) fn is_held(&self, key: Key, seq: u64) -> bool {
        self.holds.range((key, 0)..(key, seq)).next().is_some()
    }

    /// How many events hold a key.
    pub(super) fn held_count(&self) -> usize {
        self.holders.len()
    }

    /// The failed events that hold keys, in rising sequence.
    pub(super) fn held(&self) -> impl Iterator<Item = (u64, Key)> {
        self.holders.iter().map(|(seq, key)| (*seq, *key))
    }

    /// The oldest failed event that holds a key.
    pub(super) fn holder(&self, key: Key) -> Option<u64> {
        let first = self.holds.range((key, 0)..=(key, u64::MAX)).next();
        first.map(|(_, seq)| *seq)
    }
}
