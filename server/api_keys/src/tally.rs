//! What a key was used for since the last batch of usage. It lies beside the key itself, so that a
//! call looks nothing up for it, and waits for nobody.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};

use hub_core::clock::Micros;

use crate::usage::MINUTE;

/// The requests that were allowed in one minute, and the last use.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Number of the minute in the upper half, requests in the lower one.
    allowed: AtomicU64,
    used_at: AtomicI64,
    /// Who writes the batch knows of it.
    is_told: AtomicBool,
}

/// Requests that were allowed in a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// When the minute began.
    pub minute: Micros,
    /// Not 0.
    pub requests: u32,
}

impl Allowed {
    fn pack(self) -> u64 {
        let minute = u64::from(u32::try_from(self.minute / MINUTE).unwrap_or(u32::MAX));
        minute << 32 | u64::from(self.requests)
    }

    fn unpack(packed: u64) -> Option<Allowed> {
        let requests = (packed & u64::from(u32::MAX)) as u32;
        let minute = (packed >> 32).cast_signed() * MINUTE;
        (requests > 0).then_some(Allowed { minute, requests })
    }

    /// None if they are not one number.
    fn and(self, other: Allowed) -> Option<Allowed> {
        let requests = self.requests.checked_add(other.requests);
        let requests = requests.filter(|_| self.minute == other.minute)?;
        Some(Allowed { requests, ..self })
    }
}

impl Tally {
    /// Counts requests. Returns what was here if these are not added to it: it has to go elsewhere.
    pub fn count(&self, new: Allowed) -> Option<Allowed> {
        let added = |packed| Allowed::unpack(packed).and_then(|old| old.and(new));
        let next = |packed| Some(added(packed).unwrap_or(new).pack());
        let before = self.allowed.fetch_update(SeqCst, SeqCst, next);
        let before = before.unwrap_or_else(|unchanged| unchanged);
        Allowed::unpack(before).filter(|_| added(before).is_none())
    }

    /// The key was used.
    pub fn used(&self, now: Micros) {
        self.used_at.fetch_max(now, SeqCst);
    }

    /// True for one caller after each [`Tally::take`]: he tells who writes the batch. To be asked
    /// after something was counted, so that whatever is not taken is told.
    pub fn is_to_be_told(&self) -> bool {
        !self.is_told.load(SeqCst) && !self.is_told.swap(true, SeqCst)
    }

    /// Who writes the batch had no room to be told: the next caller asks again.
    pub fn was_not_told(&self) {
        self.is_told.store(false, SeqCst);
    }

    /// What there is, and when the key was used last, if it was.
    pub fn take(&self) -> (Option<Allowed>, Option<Micros>) {
        self.is_told.store(false, SeqCst);
        let allowed = self.allowed.swap(0, SeqCst);
        let used_at = self.used_at.swap(0, SeqCst);
        (Allowed::unpack(allowed), (used_at > 0).then_some(used_at))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    fn allowed(minute: i64, requests: u32) -> Allowed {
        let minute = minute * MINUTE;
        Allowed { minute, requests }
    }

    #[test]
    fn requests_of_a_minute_are_added_and_those_of_another_are_handed_back() {
        let tally = Tally::default();
        assert_eq!(tally.count(allowed(7, 1)), None);
        assert_eq!(tally.count(allowed(7, 4)), None);
        assert_eq!(tally.count(allowed(8, 2)), Some(allowed(7, 5)));
        let many = allowed(8, u32::MAX);
        assert_eq!(
            tally.count(many),
            Some(allowed(8, 2)),
            "more than a number holds"
        );
        assert_eq!(tally.take(), (Some(many), None));
        assert_eq!(tally.take(), (None, None));
    }

    #[test]
    fn the_latest_use_is_kept_and_one_caller_tells_of_it() {
        let tally = Tally::default();
        for (now, tells) in [(5, true), (9, false), (7, false)] {
            tally.used(now);
            assert_eq!(tally.is_to_be_told(), tells);
        }
        assert_eq!(tally.take(), (None, Some(9)));
        assert!(tally.is_to_be_told());
    }

    #[test]
    fn of_many_threads_each_request_is_taken_once_by_whom_it_was_told_to() {
        let (tally, told) = (Tally::default(), AtomicU32::new(0));
        let (threads, each) = (4u32, 20_000);
        let counted = AtomicU32::new(0);
        let taken = std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for _ in 0..each {
                        tally.count(allowed(1, 1));
                        told.fetch_add(u32::from(tally.is_to_be_told()), SeqCst);
                        counted.fetch_add(1, SeqCst);
                    }
                });
            }
            let mut taken = 0;
            loop {
                let are_done = counted.load(SeqCst) == threads * each;
                // Only what was told is looked at, as by who writes.
                if told.swap(0, SeqCst) > 0 {
                    taken += tally.take().0.map_or(0, |allowed| allowed.requests);
                } else if are_done {
                    return taken;
                }
            }
        });
        assert_eq!(taken, threads * each);
    }
}
