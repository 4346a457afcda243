//! How a subscription is doing, and where single events stand.

use std::collections::HashSet;
use std::sync::Arc;

use hub_core::clock::Micros;

use super::{Event, Key, Leasing, Place};

/// Events by what they wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Leased now.
    pub in_flight: usize,
    /// Failed, and to be tried again.
    pub retrying: usize,
    /// All, with these.
    pub unsettled: usize,
}

/// A key that a failing event holds back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// The key.
    pub key: Key,
    /// The failing event.
    pub seq: u64,
    /// Attempts that failed. 0 if the event failed for good: its exception has them.
    pub attempts: u32,
    /// Events that wait behind it.
    pub waiting: usize,
    /// When the next attempt is due, or was, if it is at work; `None` if the event failed for good.
    pub due: Option<Micros>,
}

/// Where an unsettled event stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsettledState {
    /// What it waits for.
    pub phase: Phase,
    /// Times it was leased, less those that cost no attempt.
    pub attempts: u32,
    /// Error of the last attempt.
    pub error: Option<Arc<str>>,
    /// Whether it was settled before.
    pub redelivery: bool,
}

/// What an unsettled event waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// For somebody who takes it.
    Queued,
    /// For another event of its key.
    KeyBlocked {
        /// That event: an unsettled one, or a failed one that holds the key.
        behind: u64,
    },
    /// For its retry.
    RetryWait {
        /// From then on it may be leased.
        due: Micros,
    },
    /// For its ack.
    InFlight {
        /// The end of the lease.
        until: Micros,
    },
}

impl Leasing {
    /// How many events there are.
    pub fn counts(&self) -> Counts {
        Counts {
            in_flight: self.leases.len(),
            retrying: self.retrying,
            unsettled: self.events.len(),
        }
    }

    /// The oldest unsettled event.
    pub fn oldest_unsettled(&self) -> Option<u64> {
        self.events.first_key_value().map(|(seq, _)| *seq)
    }

    /// The keys that failing events hold back, those of the oldest events first, at most `max`.
    /// One that waits for its retry is only told if events wait behind it. Costs O(n).
    pub fn blocked_keys(&self, max: usize) -> Vec<Blocked> {
        let held = self.keys.held().map(|(seq, key)| Blocked {
            key,
            seq,
            attempts: 0,
            waiting: self.waiting_behind(key, seq),
            due: None,
        });
        let lines = self.keys.lines().filter(|(_, line)| line.waiting > 0);
        let retried = lines.filter_map(|(key, line)| {
            let head = self.events.get(&line.head);
            let head = head.filter(|head| head.due != 0)?;
            let waiting = self.waiting_behind(key, line.head);
            (waiting > 0).then_some(Blocked {
                key,
                seq: line.head,
                attempts: head.attempts,
                waiting,
                due: Some(head.due),
            })
        });
        let mut blocked: Vec<Blocked> = held.chain(retried).collect();
        blocked.sort_unstable_by_key(|blocked| blocked.seq);
        // The oldest event of a key is the one to look at.
        let mut told = HashSet::new();
        blocked.retain(|blocked| told.len() < max && told.insert(blocked.key));
        blocked
    }

    /// Where an event stands; `None` if it is settled or was not looked at, and of a redelivered
    /// one until that is stored: what was said of it before holds until then.
    pub fn state_of(&self, seq: u64) -> Option<UnsettledState> {
        let event = self.events.get(&seq)?;
        if self.unstored.contains(&seq) {
            return None;
        }
        Some(UnsettledState {
            phase: self.phase(seq, event),
            attempts: event.attempts + u32::from(event.is_leased()),
            error: event.error.clone(),
            redelivery: event.redelivery || seq <= self.replay_until,
        })
    }

    fn phase(&self, seq: u64, event: &Event) -> Phase {
        match (event.place, event.key) {
            (Place::Leased, _) => Phase::InFlight { until: event.until },
            _ if event.due != 0 => Phase::RetryWait { due: event.due },
            (Place::Behind, Some(key)) => {
                let head = self.keys.line(key).map(|line| line.head);
                let head = head.filter(|head| *head != seq);
                let holder = self.keys.holder(key).filter(|holder| *holder < seq);
                let behind = head.into_iter().chain(holder).min();
                behind.map_or(Phase::Queued, |behind| Phase::KeyBlocked { behind })
            }
            _ => Phase::Queued,
        }
    }

    /// How many unsettled events of a key come after this one.
    fn waiting_behind(&self, key: Key, seq: u64) -> usize {
        let head = self.keys.line(key).is_some_and(|line| line.head > seq);
        self.keys.waiting_after(key, seq) + usize::from(head)
    }
}
