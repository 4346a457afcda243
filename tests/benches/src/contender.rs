//! What all contenders do in the same way: count what their readers get, and pace what is sent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use crate::round::{Delays, Run};
use crate::{PATIENCE, PAYLOAD_BYTES, Result};

/// Called with the payload of each event that a reader gets.
pub type OnEvent = Box<dyn FnMut(&[u8]) + Send>;

/// Pause between two looks at the counters.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Counts what each of several readers got.
#[derive(Debug)]
pub struct Measured {
    counters: Arc<[AtomicU64]>,
}

impl Measured {
    /// Counters at zero.
    pub fn new(readers: usize) -> Self {
        Measured {
            counters: (0..readers).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Counts the events of a reader.
    pub fn counter(&self, reader: usize) -> OnEvent {
        let counters = self.counters.clone();
        Box::new(move |_| {
            counters[reader].fetch_add(1, Ordering::Relaxed);
        })
    }

    /// Waits until every reader has `events` events; they are tasks that don't end.
    ///
    /// # Errors
    /// A reader failed, or some did not get everything within [`PATIENCE`].
    pub async fn until_all_have(
        &self,
        events: u64,
        started: Instant,
        readers: &mut JoinSet<Result<()>>,
    ) -> Result<Run> {
        let waiting = Instant::now();
        loop {
            let counts = self.counters.iter();
            let least = counts.map(|count| count.load(Ordering::Relaxed)).min();
            let least = least.unwrap_or(events);
            if least >= events {
                return Ok(Run::new(events, started.elapsed()));
            }
            check(readers)?;
            if waiting.elapsed() > PATIENCE {
                return Err(format!("a reader got {least} of {events} events").into());
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
}

/// A reader that has ended has failed.
fn check(readers: &mut JoinSet<Result<()>>) -> Result<()> {
    match readers.try_join_next() {
        Some(Ok(Err(error))) => Err(error),
        Some(Ok(Ok(()))) => Err("a reader ended".into()),
        Some(Err(error)) => Err(error.into()),
        None => Ok(()),
    }
}

/// Events at a steady rate that carry the time at which they were sent.
#[derive(Debug)]
pub struct Feed {
    pace: Interval,
    started: Instant,
    left: u64,
    sent: u64,
    delays: Arc<Mutex<Vec<f64>>>,
}

impl Feed {
    /// One event every `interval` for `duration`.
    pub fn new(every: Duration, duration: Duration) -> Self {
        let mut pace = interval(every);
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let left = duration.as_nanos() / every.as_nanos().max(1);
        Feed {
            pace,
            started: Instant::now(),
            left: u64::try_from(left).unwrap_or(u64::MAX),
            sent: 0,
            delays: Arc::default(),
        }
    }

    /// Waits for the time of the next event; `None` after the last one. To be sent at once.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        if self.left == 0 {
            return None;
        }
        if self.sent == 0 {
            self.pace.reset_immediately();
        }
        self.pace.tick().await;
        self.left -= 1;
        self.sent += 1;
        let mut payload = vec![b'x'; PAYLOAD_BYTES];
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        payload[..8].copy_from_slice(&now.to_be_bytes());
        Some(payload)
    }

    /// Notes how long each event took.
    pub fn on_event(&self) -> OnEvent {
        let (started, delays) = (self.started, self.delays.clone());
        Box::new(move |payload| {
            let now = started.elapsed().as_nanos() as f64;
            let sent = payload
                .first_chunk()
                .map_or(0, |sent| u64::from_be_bytes(*sent));
            let micros = (now - sent as f64) / 1e3;
            let mut delays = delays.lock().unwrap_or_else(PoisonError::into_inner);
            delays.push(micros);
        })
    }

    /// Waits until everything that was sent has arrived.
    ///
    /// # Errors
    /// The reader failed, or did not get everything within [`PATIENCE`].
    pub async fn until_all_arrived(&self, readers: &mut JoinSet<Result<()>>) -> Result<()> {
        let waiting = Instant::now();
        loop {
            let arrived = self.lock().len() as u64;
            if arrived >= self.sent {
                return Ok(());
            }
            check(readers)?;
            if waiting.elapsed() > PATIENCE {
                return Err(format!("{arrived} of {} events arrived", self.sent).into());
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Where the delays will be found.
    pub fn delays(&self) -> impl FnOnce() -> Delays + use<> {
        let delays = self.delays.clone();
        move || {
            let mut micros = delays
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            micros.sort_by(f64::total_cmp);
            Delays { micros }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<f64>> {
        self.delays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
