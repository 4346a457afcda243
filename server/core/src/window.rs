//! Requests of the last minute: a sliding window.
//!
//! Requests are counted in slots of half a second. A slot counts until all of it is older than a
//! minute, so no minute, wherever it begins, has more requests than the limit; in return room
//! comes back up to half a second late.
//!
//! A window takes 16 bytes for each slot in use, at most 121 of them.

use std::collections::{BTreeMap, VecDeque};

use crate::clock::Micros;

/// The length of the window.
pub const LENGTH: Micros = 60_000_000;
/// The length of a slot.
const SLOT: Micros = 500_000;

/// The requests of one subject in the last minute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    /// Number of the slot, and requests in it; rising.
    slots: VecDeque<(i64, u32)>,
    used: u64,
}

impl Window {
    /// Drops what is older than a minute; call it before everything else.
    pub fn advance(&mut self, now: Micros) {
        let slot = now.div_euclid(SLOT);
        if let Some((last, _)) = self.slots.back()
            && *last > slot
        {
            // The clock was set back: what was counted is as if it were counted now.
            let by = *last - slot;
            self.slots.iter_mut().for_each(|(number, _)| *number -= by);
        }
        while let Some((number, requests)) = self.slots.front()
            && (number + 1) * SLOT + LENGTH <= now
        {
            self.used -= u64::from(*requests);
            self.slots.pop_front();
        }
    }

    /// A window with these slots, in any order.
    pub fn of_slots(slots: impl IntoIterator<Item = (i64, u32)>) -> Self {
        let mut sorted: BTreeMap<i64, u32> = BTreeMap::new();
        let mut used = 0;
        for (slot, requests) in slots {
            let counted = sorted.entry(slot).or_default();
            *counted = counted.saturating_add(requests);
            used += u64::from(requests);
        }
        let slots = sorted.into_iter().collect();
        Window { slots, used }
    }

    /// Number of each slot, and requests in it, the oldest first.
    pub fn slots(&self) -> impl Iterator<Item = (i64, u32)> + '_ {
        self.slots.iter().copied()
    }

    /// The number of the slot in which a time lies.
    pub fn slot(at: Micros) -> i64 {
        at.div_euclid(SLOT)
    }

    /// Requests in the window.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Counts requests.
    pub fn add(&mut self, requests: u32, now: Micros) {
        if requests == 0 {
            return;
        }
        let slot = now.div_euclid(SLOT);
        self.used += u64::from(requests);
        match self.slots.back_mut() {
            Some((last, counted)) if *last == slot => *counted = counted.saturating_add(requests),
            _ => self.slots.push_back((slot, requests)),
        }
    }

    /// When nothing is left in the window, if nothing is added.
    pub fn reset_at(&self, now: Micros) -> Micros {
        let last = self.slots.back();
        last.map_or(now, |(number, _)| (number + 1) * SLOT + LENGTH)
    }

    /// When `requests` fit below `limit`; the reset if they never do.
    pub fn fits_at(&self, requests: u32, limit: u32, now: Micros) -> Micros {
        let mut used = self.used;
        let mut at = now;
        for (number, counted) in &self.slots {
            if used + u64::from(requests) <= u64::from(limit) {
                return at;
            }
            used -= u64::from(*counted);
            at = (number + 1) * SLOT + LENGTH;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Micros = 1_000_000;

    /// Takes one request if there is room.
    fn take(window: &mut Window, limit: u64, now: Micros) -> bool {
        window.advance(now);
        let room = window.used() < limit;
        if room {
            window.add(1, now);
        }
        room
    }

    #[test]
    fn no_minute_has_more_than_the_limit_wherever_it_begins() {
        let (mut window, mut allowed) = (Window::default(), Vec::new());
        let mut now = 7_777_777;
        for number in 0..60_000i64 {
            // Bursts, pauses, and everything in between.
            now += (number * 7919) % 13_000;
            if take(&mut window, 100, now) {
                allowed.push(now);
            }
        }
        for (at, first) in allowed.iter().enumerate() {
            if let Some(later) = allowed.get(at + 100) {
                assert!(later - first >= LENGTH, "{first} {later}");
            }
        }
        assert!(window.slots.len() <= 122);
        // All of it can be used: 100 in each 60.5 s.
        let minutes = (allowed.last().unwrap() - allowed[0]) / (LENGTH + SLOT);
        assert!(allowed.len() as i64 >= 100 * minutes);
    }

    #[test]
    fn room_comes_back_when_the_oldest_slot_is_a_minute_old() {
        let mut window = Window::default();
        assert!(take(&mut window, 2, 0) && take(&mut window, 2, 10 * SECOND));
        assert!(!take(&mut window, 2, 59 * SECOND));
        assert_eq!(window.fits_at(1, 2, 59 * SECOND), 60 * SECOND + SLOT);
        assert_eq!(window.fits_at(2, 2, 59 * SECOND), 70 * SECOND + SLOT);
        assert_eq!(window.fits_at(3, 2, 59 * SECOND), 70 * SECOND + SLOT);
        assert_eq!(window.reset_at(59 * SECOND), 70 * SECOND + SLOT);
        assert!(!take(&mut window, 2, 60 * SECOND + SLOT - 1));
        assert!(take(&mut window, 2, 60 * SECOND + SLOT));
        assert!(!take(&mut window, 2, 60 * SECOND + SLOT));
    }

    #[test]
    fn a_clock_that_is_set_back_or_forward_neither_blocks_for_ever_nor_gives_a_second_limit() {
        let hour = 3600 * SECOND;
        let mut window = Window::default();
        assert!(take(&mut window, 1, hour));
        assert!(!take(&mut window, 1, SECOND), "set back: it still counts");
        assert!(take(&mut window, 1, SECOND + LENGTH + SLOT));
        assert!(take(&mut window, 1, 9 * hour), "set forward: it is over");
    }
}
