//! The leases that settled their event, so that a repeated ack is told from a late one.

use super::LeaseId;

/// Room for a few at first; a subscription that is seldom used needs no more.
const LEN_MIN: usize = 64;

/// A ring of settled leases, by their number.
#[derive(Debug)]
pub(super) struct Remembered {
    max: usize,
    /// The number and the event of each; 0 = none. As long as no lease has a number beyond the
    /// length, the ring may grow without moving any.
    slots: Vec<(u64, u64)>,
}

impl Remembered {
    pub(super) fn new(max: usize) -> Self {
        Remembered {
            max,
            slots: Vec::new(),
        }
    }

    /// Another size. What is remembered is forgotten if it changes.
    pub(super) fn set_max(&mut self, max: usize) {
        if max != self.max {
            *self = Remembered {
                max,
                slots: vec![(0, 0); max],
            };
        }
    }

    /// The lease settled its event. In its place goes the lease that was given `max` before it.
    pub(super) fn push(&mut self, lease: LeaseId) {
        let number = lease.number as usize;
        let len = self.slots.len();
        if number >= len && len < self.max {
            let grown = (number + 1).next_power_of_two().max(LEN_MIN);
            self.slots.resize(grown.min(self.max), (0, 0));
        }
        let slot = self.slot(lease.number);
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = (lease.number, lease.seq);
        }
    }

    pub(super) fn contains(&self, lease: LeaseId) -> bool {
        let slot = self.slots.get(self.slot(lease.number));
        lease.number != 0 && slot == Some(&(lease.number, lease.seq))
    }

    fn slot(&self, number: u64) -> usize {
        number as usize % self.slots.len().max(1)
    }
}
