//! What one contender did in one round.

use std::time::Duration;

/// Events that were acknowledged, or delivered to all, in a time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Run {
    /// How many.
    pub events: u64,
    /// From the first that was sent to the last answer.
    pub elapsed: Duration,
    /// Processor time of the server; zero if unknown.
    pub server_cpu: Duration,
    /// Processor time of this process: the client's.
    pub client_cpu: Duration,
    /// Commits of the journal; zero if unknown.
    pub commits: f64,
    /// Time in commits.
    pub commit_time: Duration,
}

impl Run {
    /// Without processor time and commits.
    pub fn new(events: u64, elapsed: Duration) -> Self {
        Run {
            events,
            elapsed,
            ..Run::default()
        }
    }

    /// Events in a second.
    pub fn rate(&self) -> f64 {
        self.events as f64 / self.elapsed.as_secs_f64()
    }

    /// A time in microseconds, for each event.
    pub fn micros_per_event(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.events.max(1) as f64
    }
}

/// Delays of events, from before they were sent until their subscriber had them.
#[derive(Debug, Clone, Default)]
pub struct Delays {
    /// Microseconds, sorted.
    pub micros: Vec<f64>,
}
