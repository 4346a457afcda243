//! The hub's clock as it is seen from here: lease ends are told in the hub's time.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Longest time that a lease is thought to have left until the hub has told its time.
const UNMEASURED_LEFT_MAX: Duration = Duration::from_secs(30);

/// See the module. Until the hub has told its time, its clock is taken to agree with this
/// machine's.
#[derive(Debug)]
pub(super) struct ServerClock {
    anchor: Instant,
    /// The hub's time at the anchor, or a little less.
    at_anchor: SystemTime,
    measured: bool,
    /// The present stream has told its time.
    fresh: bool,
}

impl ServerClock {
    pub(super) fn new() -> Self {
        ServerClock {
            anchor: Instant::now(),
            at_anchor: SystemTime::now(),
            measured: false,
            fresh: false,
        }
    }

    /// A new stream: another server may answer, with another clock.
    pub(super) fn restart(&mut self) {
        self.fresh = false;
    }

    /// The hub told its time; true for the first time on this stream.
    pub(super) fn heard(&mut self, server_time: SystemTime, now: Instant) -> bool {
        let first = !self.fresh;
        let Some(at_anchor) = server_time.checked_sub(now - self.anchor) else {
            return false;
        };
        // A frame that was long on its way tells too little; the most is nearest to the truth.
        self.at_anchor = match first {
            true => at_anchor,
            false => self.at_anchor.max(at_anchor),
        };
        self.measured = true;
        self.fresh = true;
        first
    }

    /// Something happened at this time of the hub: its clock is not behind that.
    pub(super) fn is_past(&mut self, server_time: SystemTime, now: Instant) {
        let present = self.at_anchor + (now - self.anchor);
        if let Ok(behind) = server_time.duration_since(present) {
            self.at_anchor += behind;
        }
    }

    /// How long it is from `now` to a time of the hub, at least nothing.
    pub(super) fn left(&self, until: SystemTime, now: Instant) -> Duration {
        let present = self.at_anchor + (now - self.anchor);
        let left = until.duration_since(present).unwrap_or_default();
        match self.measured {
            true => left,
            false => left.min(UNMEASURED_LEFT_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_measured_by_the_hubs_clock_once_that_is_known() {
        let mut clock = ServerClock::new();
        let now = Instant::now();
        // The hub's clock is an hour ahead.
        let server_time = SystemTime::now() + 3600 * SECOND;
        let until = server_time + 10 * SECOND;
        assert_eq!(clock.left(until, now), UNMEASURED_LEFT_MAX);
        assert!(clock.heard(server_time, now));
        assert_eq!(clock.left(until, now), 10 * SECOND);
        assert_eq!(clock.left(until, now + 4 * SECOND), 6 * SECOND);
        assert_eq!(clock.left(until, now + 40 * SECOND), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_shows_that_this_clock_is_behind_and_not_that_it_is_ahead() {
        let mut clock = ServerClock::new();
        let now = Instant::now();
        let recorded = SystemTime::now() + 3600 * SECOND;
        let until = recorded + 10 * SECOND;
        clock.is_past(recorded, now);
        assert_eq!(clock.left(until, now), 10 * SECOND);
        clock.is_past(recorded - 60 * SECOND, now);
        assert_eq!(clock.left(until, now), 10 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_was_long_on_its_way_does_not_put_the_clock_back() {
        let mut clock = ServerClock::new();
        let now = Instant::now();
        let server_time = SystemTime::now();
        let until = server_time + 10 * SECOND;
        assert!(clock.heard(server_time, now));
        assert!(!clock.heard(server_time, now + 5 * SECOND));
        assert_eq!(clock.left(until, now + 5 * SECOND), 5 * SECOND);
        // Another server is believed again.
        clock.restart();
        assert!(clock.heard(server_time, now + 5 * SECOND));
        assert_eq!(clock.left(until, now + 5 * SECOND), 10 * SECOND);
    }
}
