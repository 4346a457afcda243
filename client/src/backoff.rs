//! How long to wait before the next attempt.

use std::time::Duration;

/// First wait, before jitter.
const FIRST: Duration = Duration::from_millis(100);
/// Longest wait of its own; a server may ask for more.
const LONGEST: Duration = Duration::from_secs(10);

/// Waits that double from 100 ms to 10 s, each shortened by up to a half at random, so that
/// clients which lost the same server do not return at once.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// Failures in a row.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The stream works: the next failure is a first one.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The wait after one more failure, at least what the server asked for.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Duration {
        // 2^7 * 100 ms is beyond the longest wait.
        let doublings = self.attempts.min(7);
        self.attempts = self.attempts.saturating_add(1);
        let wait = FIRST.saturating_mul(1 << doublings).min(LONGEST);
        let own = wait.mul_f64(0.5 + 0.5 * random());
        asked.map_or(own, |asked| own.max(spread(asked)))
    }
}

/// A wait that the server asked for, lengthened by up to a tenth.
pub(crate) fn spread(asked: Duration) -> Duration {
    asked.saturating_add(asked.mul_f64(0.1 * random()))
}

/// In [0, 1); 0.5 if the system has no randomness to give.
fn random() -> f64 {
    getrandom::u32().map_or(0.5, |bits| f64::from(bits) / (f64::from(u32::MAX) + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_ten_seconds_with_at_least_half_of_them() {
        let mut backoff = Backoff::default();
        for milliseconds in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            let full = Duration::from_millis(milliseconds);
            let wait = backoff.next(None);
            assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
        }
        assert_eq!(backoff.attempts(), 9);
        backoff.reset();
        assert!(backoff.next(None) <= FIRST);
    }

    #[test]
    fn a_wait_that_the_server_asked_for_is_never_shortened() {
        let asked = Duration::from_secs(60);
        let wait = Backoff::default().next(Some(asked));
        assert!(wait >= asked && wait <= asked.mul_f64(1.1), "{wait:?}");
    }
}
