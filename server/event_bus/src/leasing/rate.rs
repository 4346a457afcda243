//! The speed limit of a subscription: at most n leases in any second.

use std::collections::VecDeque;

use hub_core::clock::Micros;

const SECOND: Micros = 1_000_000;
/// Leases within so long count as given at the last of them, so that a second has at most 101
/// entries; the limit is never exceeded, but up to 1 % of it may be left unused.
const SLOT: Micros = SECOND / 100;

/// The leases of the last second. It is not stored: a new owner begins with none.
#[derive(Debug, Default)]
pub(super) struct Rate {
    slots: VecDeque<Slot>,
}

#[derive(Debug)]
struct Slot {
    first: Micros,
    last: Micros,
    leases: usize,
}

impl Rate {
    /// How many leases may be given now; `max` 0 = no limit.
    pub(super) fn left(&self, max: u32, now: Micros) -> usize {
        if max == 0 {
            return usize::MAX;
        }
        let recent = self.slots.iter().rev();
        let recent = recent.take_while(|slot| is_recent(slot, now));
        let leases: usize = recent.map(|slot| slot.leases).sum();
        (max as usize).saturating_sub(leases)
    }

    /// Leases were given.
    pub(super) fn count(&mut self, leases: usize, now: Micros) {
        while self.slots.front().is_some_and(|slot| !is_recent(slot, now)) {
            self.slots.pop_front();
        }
        match self.slots.back_mut() {
            Some(slot) if (0..SLOT).contains(&(now - slot.first)) => {
                slot.last = now;
                slot.leases += leases;
            }
            _ => self.slots.push_back(Slot {
                first: now,
                last: now,
                leases,
            }),
        }
    }

    /// When more leases may be given than at `now`.
    pub(super) fn next(&self, now: Micros) -> Option<Micros> {
        let mut recent = self.slots.iter().filter(|slot| is_recent(slot, now));
        recent.next().map(|slot| slot.last + SECOND)
    }
}

/// A slot in the future is of before the clock was set back, and does not count.
fn is_recent(slot: &Slot, now: Micros) -> bool {
    (0..SECOND).contains(&(now - slot.last))
}
