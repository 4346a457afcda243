//! Time as an argument: the system's, or one that a test moves by hand.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::error::Elapsed;

/// Microseconds since 1970-01-01T00:00:00Z.
pub type Micros = i64;

/// Where the time comes from; cheap to clone.
#[derive(Debug, Clone)]
pub struct Clock {
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    System,
    Manual(Arc<watch::Sender<Micros>>),
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Clock {
            source: Source::System,
        }
    }

    /// A clock that stands still until [`Clock::advance`].
    pub fn manual(start: Micros) -> Self {
        Clock {
            source: Source::Manual(Arc::new(watch::Sender::new(start))),
        }
    }

    /// The time now.
    pub fn now(&self) -> Micros {
        match &self.source {
            Source::System => {
                let since = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
            }
            Source::Manual(now) => *now.borrow(),
        }
    }

    /// Moves a manual clock forward and wakes who sleeps on it; does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(now) = &self.source {
            now.send_modify(|now| *now += micros(by));
        }
    }

    /// Sleeps for `wait` of this clock.
    pub async fn sleep(&self, wait: Duration) {
        self.sleep_until(self.now().saturating_add(micros(wait)))
            .await;
    }

    /// Sleeps until a moment of this clock. Who has looked at the time to know how long to wait
    /// names the moment: a clock that moves in between is not missed.
    pub async fn sleep_until(&self, moment: Micros) {
        match &self.source {
            Source::System => {
                let left = moment.saturating_sub(self.now()).max(0);
                tokio::time::sleep(Duration::from_micros(left.unsigned_abs())).await;
            }
            Source::Manual(now) => {
                // The sender lives in `self`, so the wait cannot fail.
                let mut seen = now.subscribe();
                let _ = seen.wait_for(|now| *now >= moment).await.map(|_| ());
            }
        }
    }
}

/// A length of time in microseconds.
pub fn micros(length: Duration) -> Micros {
    i64::try_from(length.as_micros()).unwrap_or(i64::MAX)
}

/// As a protobuf timestamp.
pub fn timestamp(at: Micros) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at.div_euclid(1_000_000),
        nanos: i32::try_from(at.rem_euclid(1_000_000) * 1000).unwrap_or(0),
    }
}

/// From a protobuf timestamp; finer than a microsecond is cut.
pub fn from_timestamp(at: &prost_types::Timestamp) -> Micros {
    at.seconds
        .saturating_mul(1_000_000)
        .saturating_add(i64::from(at.nanos) / 1000)
}

/// What a future answers, unless it takes longer: in real time, as tokio's own. Its timer is set
/// only once there is something to wait for: that takes longer than much that is ready at once.
///
/// # Errors
/// It took longer.
pub async fn timeout<F: Future>(
    limit: Duration,
    mut future: Pin<&mut F>,
) -> Result<F::Output, Elapsed> {
    match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        Poll::Ready(answer) => Ok(answer),
        Poll::Pending => tokio::time::timeout(limit, future).await,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn what_is_ready_is_answered_whatever_the_limit_and_what_never_is_ends() {
        let ready = pin!(async { 1 });
        assert_eq!(timeout(Duration::ZERO, ready).await.ok(), Some(1));
        let late = pin!(tokio::task::yield_now());
        assert!(timeout(Duration::from_secs(600), late).await.is_ok());
        let never = pin!(std::future::pending::<()>());
        assert!(timeout(Duration::from_millis(1), never).await.is_err());
    }

    #[tokio::test]
    async fn a_clock_that_moves_before_the_sleep_begins_is_not_missed() {
        let clock = Clock::manual(0);
        let moment = clock.now() + 10;
        clock.advance(Duration::from_micros(10));
        clock.sleep_until(moment).await;
        assert_eq!(clock.now(), moment);
    }

    #[tokio::test]
    async fn who_sleeps_wakes_at_the_moment_and_not_before() {
        let clock = Clock::manual(0);
        let mut sleep = std::pin::pin!(clock.sleep_until(10));
        for moved in [9, 1] {
            let polled = std::future::poll_fn(|cx| {
                std::task::Poll::Ready(sleep.as_mut().poll(cx).is_ready())
            });
            assert!(!polled.await);
            clock.advance(Duration::from_micros(moved));
        }
        sleep.await;
    }
}
