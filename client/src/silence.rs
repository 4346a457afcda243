//! Notices a stream on which nothing comes any more.

use std::pin::Pin;
use std::time::Duration;

use hub_proto::hub::core::v1::Opened;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, Streaming};

use crate::error::{Error, Result};

/// Longest silence of a stream until the hub says otherwise.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// The time since the last frame of a stream, against two heartbeat intervals.
pub(crate) struct Silence {
    longest: Duration,
    since: Instant,
    /// Moved only when it fires, because frames come far more often.
    alarm: Pin<Box<Sleep>>,
}

impl Silence {
    pub(crate) fn new() -> Self {
        let longest = 2 * HEARTBEAT_INTERVAL;
        let since = Instant::now();
        Silence {
            longest,
            since,
            alarm: Box::pin(sleep_until(since + longest)),
        }
    }

    /// The hub told its interval.
    pub(crate) fn opened(&mut self, opened: &Opened) {
        let interval = opened
            .heartbeat_interval
            .and_then(|told| Duration::try_from(told).ok());
        if let Some(interval) = interval.filter(|interval| !interval.is_zero()) {
            self.longest = interval.saturating_mul(2);
            self.heard();
            self.alarm.as_mut().reset(self.since + self.longest);
        }
    }

    /// A frame came.
    pub(crate) fn heard(&mut self) {
        self.since = Instant::now();
    }

    /// The next message of the stream. Errors: it broke, it ended, which a hub does only after it
    /// said why, or nothing came for two intervals.
    pub(crate) async fn next<T>(&mut self, stream: &mut Streaming<T>) -> Result<T> {
        let message = tokio::select! {
            biased;
            message = stream.message() => message?,
            silent = self.wait() => return Err(Error::silent(silent)),
        };
        self.heard();
        message.ok_or_else(|| {
            let message = "The hub ended the stream without saying why.";
            Error::local(Code::Unavailable, message)
        })
    }

    /// Ends when it was silent for two intervals, and returns how long that is.
    pub(crate) async fn wait(&mut self) -> Duration {
        loop {
            self.alarm.as_mut().await;
            let end = self.since + self.longest;
            if Instant::now() >= end {
                return self.longest;
            }
            self.alarm.as_mut().reset(end);
        }
    }
}
