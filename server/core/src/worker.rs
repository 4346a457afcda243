//! Work in the background, supervised: a worker that fails or panics is started again, and the
//! server is not ready until it works.
//!
//! Invariants:
//! - A worker ends when [`Workers::stop`] says so, and never for good before.
//! - One that fails again and again is started less and less often, every 5 s in the end.
//! - Nothing is cut off in the middle: a stopping worker finishes its round.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, Micros, micros};

/// Pause before the first restart; it doubles with each failure in a row.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause before a restart.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A worker that is silent for this long beyond its own pause hangs.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The workers of a process; cheap to clone.
#[derive(Clone)]
pub struct Workers {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    stopped: CancellationToken,
    tasks: TaskTracker,
    states: Mutex<BTreeMap<&'static str, State>>,
}

/// What is known of a worker.
#[derive(Debug, Clone, Copy)]
struct State {
    /// It failed and has not passed since.
    failed: bool,
    /// Failures since it passed.
    failures: u32,
    /// Until when it must have passed again.
    due: Micros,
}

/// Whether a worker works; see [`Workers::health`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Its name.
    pub name: &'static str,
    /// It neither failed since it last passed, nor hangs.
    pub up: bool,
}

impl Workers {
    /// No workers yet.
    pub fn new(clock: Clock) -> Self {
        let inner = Inner {
            clock,
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
            states: Mutex::default(),
        };
        Workers {
            inner: Arc::new(inner),
        }
    }

    /// Does `round` now, and again `interval` after the end of each; a round that fails comes
    /// again after the pause of a restart.
    pub fn every<F, E>(
        &self,
        name: &'static str,
        interval: Duration,
        round: impl FnMut() -> F + Send + 'static,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        // A worker's rounds are done one after the other, so the lock is always free.
        let round = Arc::new(Mutex::new(round));
        self.spawn(name, move |turn| {
            let round = round.clone();
            async move {
                loop {
                    let next = {
                        let mut round = round.lock().unwrap_or_else(PoisonError::into_inner);
                        round()
                    };
                    next.await?;
                    turn.passed_for(interval);
                    if !turn.pause(interval).await {
                        return Ok::<(), E>(());
                    }
                }
            }
        });
    }

    /// Starts a worker with a loop of its own, and again whenever it ends before it is told to.
    ///
    /// The worker calls [`Turn::passed`] after each round that went well, and waits by
    /// [`Turn::pause`].
    pub fn spawn<F, E>(&self, name: &'static str, mut work: impl FnMut(Turn) -> F + Send + 'static)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let workers = self.clone();
        workers.begin(name);
        self.inner.tasks.spawn(async move {
            loop {
                let turn = Turn {
                    name,
                    workers: workers.clone(),
                };
                // The call is inside too: it may panic before there is a future.
                let running = AssertUnwindSafe(async { work(turn).await }).catch_unwind();
                let (cause, said) = match running.await {
                    _ if workers.inner.stopped.is_cancelled() => return,
                    Ok(Ok(())) => ("ended", "it ended by itself".to_owned()),
                    Ok(Err(error)) => ("error", error.to_string()),
                    // The hook of the process logs what it said.
                    Err(_) => ("panic", "it panicked".to_owned()),
                };
                let pause = workers.failed(name, cause);
                tracing::error!(worker = name, cause, ?pause, "a worker failed: {said}");
                let slept = workers.inner.clock.sleep(pause);
                if workers
                    .inner
                    .stopped
                    .run_until_cancelled(slept)
                    .await
                    .is_none()
                {
                    return;
                }
            }
        });
    }

    /// All workers by name.
    pub fn health(&self) -> Vec<Health> {
        let now = self.inner.clock.now();
        let health = |(name, state): (&&'static str, &State)| Health {
            name,
            up: !state.failed && now <= state.due,
        };
        self.states().iter().map(health).collect()
    }

    /// Tells the workers to stop; [`Workers::stop`] also waits for them.
    pub fn begin_stop(&self) {
        self.inner.stopped.cancel();
        self.inner.tasks.close();
    }

    /// Stops the workers, each after the round that it is in.
    pub async fn stop(&self) {
        self.begin_stop();
        self.inner.tasks.wait().await;
    }

    fn begin(&self, name: &'static str) {
        let due = self.inner.clock.now() + micros(SILENCE_MAX);
        let state = State {
            failed: false,
            failures: 0,
            due,
        };
        let before = self.states().insert(name, state);
        if before.is_some() {
            tracing::error!(worker = name, "two workers have the same name");
        }
        metrics::gauge!("hub_worker_up", "worker" => name).set(1.0);
        for cause in ["ended", "error", "panic"] {
            metrics::counter!("hub_worker_restarts_total", "worker" => name, "cause" => cause)
                .increment(0);
        }
    }

    /// Notes a failure; returns how long to wait before the restart.
    fn failed(&self, name: &'static str, cause: &'static str) -> Duration {
        metrics::gauge!("hub_worker_up", "worker" => name).set(0.0);
        metrics::counter!("hub_worker_restarts_total", "worker" => name, "cause" => cause)
            .increment(1);
        let mut states = self.states();
        let Some(state) = states.get_mut(name) else {
            return PAUSE_MAX;
        };
        state.failed = true;
        state.failures = state.failures.saturating_add(1);
        let doubled = 2u32.saturating_pow(state.failures - 1);
        PAUSE_MIN.saturating_mul(doubled).min(PAUSE_MAX)
    }

    fn passed(&self, name: &'static str, next_within: Duration) {
        let due = self.inner.clock.now() + micros(next_within.saturating_add(SILENCE_MAX));
        let mut states = self.states();
        let Some(state) = states.get_mut(name) else {
            return;
        };
        if state.failed {
            metrics::gauge!("hub_worker_up", "worker" => name).set(1.0);
            tracing::info!(worker = name, "a worker works again");
        }
        *state = State {
            failed: false,
            failures: 0,
            due,
        };
    }

    fn states(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, State>> {
        self.inner
            .states
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One start of a worker.
#[derive(Clone)]
pub struct Turn {
    name: &'static str,
    workers: Workers,
}

impl Turn {
    /// A round went well. A worker that is silent for more than a minute beyond its pause hangs.
    pub fn passed(&self) {
        self.passed_for(Duration::ZERO);
    }

    /// A round went well, and the next one ends `pause` later, or within a minute after.
    pub fn passed_for(&self, pause: Duration) {
        self.workers.passed(self.name, pause);
    }

    /// Sleeps; false if the worker is to stop now.
    pub async fn pause(&self, length: Duration) -> bool {
        let slept = self.workers.inner.clock.sleep(length);
        let stopped = &self.workers.inner.stopped;
        stopped.run_until_cancelled(slept).await.is_some()
    }

    /// Cancelled when the worker is to stop.
    pub fn stopped(&self) -> &CancellationToken {
        &self.workers.inner.stopped
    }
}

#[cfg(test)]
mod tests;
