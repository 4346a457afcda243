//! One timer for everything that a consumer does later.

use std::pin::Pin;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is set anew for each wait and seldom moved: it only has to ring early enough.
pub(super) struct Alarm {
    sleep: Pin<Box<Sleep>>,
}

impl Alarm {
    pub(super) fn new() -> Self {
        Alarm {
            sleep: Box::pin(sleep_until(Instant::now())),
        }
    }

    /// Ends at this time; never without one.
    pub(super) async fn wait(&mut self, due: Option<Instant>) {
        let Some(due) = due else {
            return std::future::pending().await;
        };
        if due < self.sleep.deadline() {
            self.sleep.as_mut().reset(due);
        }
        loop {
            self.sleep.as_mut().await;
            if Instant::now() >= due {
                return;
            }
            self.sleep.as_mut().reset(due);
        }
    }
}
