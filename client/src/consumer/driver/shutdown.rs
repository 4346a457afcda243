//! Ending a consumer: nothing new, the last answers, and goodbye.

use futures_util::StreamExt;
use hub_proto::hub::event_bus::v1::consume_response::Frame;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Code;

use super::{Driver, End, FINISHED_MAX, GOODBYE_TIMEOUT, Responses};
use crate::consumer::{Answer, ConsumerState};
use crate::error::{Error, Result};

impl Driver {
    /// Begins a shutdown.
    pub(super) fn drain(&mut self) {
        self.report.state(ConsumerState::Draining);
        self.drain_until = Some(Instant::now() + self.options.drain_timeout);
        self.release_waiting();
    }

    pub(super) fn release_waiting(&mut self) {
        let waiting = self.leases.give_up_waiting();
        self.release(waiting);
    }

    /// Cancels handlers that run for longer than a shutdown waits.
    pub(super) fn abort_late(&mut self, now: Instant) {
        if self.drain_until.is_some_and(|until| until <= now) {
            let running = self.leases.abort_running();
            self.release(running);
        }
    }

    pub(super) fn release(&mut self, lease_ids: Vec<String>) {
        for lease_id in lease_ids {
            self.report.answered(&Answer::Release);
            self.acks.answer(lease_id, Answer::Release);
        }
    }

    /// When the next step of a shutdown is due.
    pub(super) fn drain_due(&self) -> Option<Instant> {
        match self.leases.is_empty() {
            true => self.overdue_at(),
            false => self.drain_until,
        }
    }

    /// When a shutdown ends in any case.
    pub(super) fn overdue_at(&self) -> Option<Instant> {
        self.drain_until.map(|until| until + GOODBYE_TIMEOUT)
    }

    /// Whether it is shut down and there is nothing more to do.
    pub(super) fn is_drained(&self) -> bool {
        self.drain_until.is_some() && self.leases.is_empty() && self.acks.is_settled()
    }

    /// Ends our half of the stream and hears what the hub says to the last answers.
    pub(super) async fn goodbye(&mut self, responses: Responses) -> End {
        match timeout(GOODBYE_TIMEOUT, self.hear_last(responses)).await {
            // What the hub wants again goes on another stream.
            Ok(Ok(())) if !self.acks.is_settled() => End::Closing(None),
            Ok(Ok(())) => End::Finished,
            Ok(Err(error)) => End::Failed(error),
            Err(_) => End::Failed(untold()),
        }
    }

    async fn hear_last(&mut self, mut responses: Responses) -> Result<()> {
        while let Some(response) = responses.next().await {
            if let Some(Frame::AckResults(results)) = response?.frame {
                self.results(results);
            }
        }
        Ok(())
    }

    /// Lets handlers end whose answers nobody waits for any more.
    pub(super) async fn finish_handlers(&mut self) {
        self.leases.give_up_waiting();
        let until = self.drain_until;
        let until = until.unwrap_or_else(|| Instant::now() + self.options.drain_timeout);
        while !self.leases.is_empty() {
            tokio::select! {
                biased;
                _ = self.finished.recv_many(&mut self.inbox, FINISHED_MAX) => self.settle(),
                () = sleep_until(until) => {
                    self.leases.abort_running();
                }
            }
        }
    }
}

/// No stream broke, and yet the hub did not hear everything in time.
pub(super) fn untold() -> Error {
    let message = "The hub did not take the last answers within the drain timeout. Their events \
                   are delivered again.";
    Error::local(Code::DeadlineExceeded, message)
}
