//! Decides, in order, which events of a commit are new.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::segment::{Builder, fingerprint};
use super::{Append, Outcome, Position};

/// Where an identity was first stored, and with which content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) key: i64,
    pub(crate) content: u128,
}

/// Identities are hashes already; hashing them again would only cost time.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}

/// Identities by hash.
pub(crate) type Seen = HashMap<u128, Known, BuildHasherDefault<PassThrough>>;

/// What is known while a commit is decided.
pub(crate) struct Ledger<'a> {
    /// Known, and claimed by this commit.
    pub(crate) seen: &'a mut Seen,
    /// Known from elsewhere.
    pub(crate) older: &'a Seen,
    /// Claimed by this commit: to be given back if it fails.
    pub(crate) claimed: Vec<u128>,
}

impl Ledger<'_> {
    fn claim(&mut self, identity: u128, known: Known) -> Option<Known> {
        if let Some(older) = self.older.get(&identity) {
            return Some(*older);
        }
        match self.seen.entry(identity) {
            std::collections::hash_map::Entry::Occupied(entry) => Some(*entry.get()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(known);
                self.claimed.push(identity);
                None
            }
        }
    }

    fn release_from(&mut self, mark: usize) {
        for identity in self.claimed.drain(mark..) {
            self.seen.remove(&identity);
        }
    }
}

/// Decides one append of a tenant and packs what is new. `next` is the tenant's next sequence.
/// A batch that must be stored whole and has a reused identity leaves no trace.
pub(crate) fn decide(
    append: &Append,
    ledger: &mut Ledger<'_>,
    next: &mut u64,
    builder: &mut Builder,
) -> Vec<Outcome> {
    let tenant = append.log.tenant();
    let (mark, first) = (ledger.claimed.len(), *next);
    let mut outcomes = Vec::with_capacity(append.events.len());
    let mut reused = false;
    for event in &append.events {
        let known = Known {
            key: tenant.key(*next),
            content: event.content,
        };
        outcomes.push(match ledger.claim(event.identity, known) {
            None => {
                *next += 1;
                Outcome::Stored { seq: *next - 1 }
            }
            Some(earlier) => {
                let seq = tenant.seq(earlier.key);
                if earlier.content == event.content {
                    let fingerprint = fingerprint(seq, event.identity, event.content);
                    Outcome::Duplicate(Position { seq, fingerprint })
                } else {
                    reused = true;
                    Outcome::Reused { seq }
                }
            }
        });
    }
    if reused && !append.independent {
        ledger.release_from(mark);
        *next = first;
        for outcome in &mut outcomes {
            match outcome {
                // The first one is of this batch, so it is nowhere.
                Outcome::Reused { seq } if *seq >= first => *seq = 0,
                Outcome::Reused { .. } => {}
                _ => *outcome = Outcome::NotStored,
            }
        }
        return outcomes;
    }
    let mut starts_batch = true;
    for (event, outcome) in append.events.iter().zip(&outcomes) {
        if matches!(outcome, Outcome::Stored { .. }) {
            builder.push(event, starts_batch || append.independent);
            starts_batch = false;
        }
    }
    outcomes
}
