//! What a stream does with the acks of its client.

use std::time::Duration;

use futures_util::FutureExt;
use hub_core::error::Result;
use hub_proto::hub::event_bus::v1::{
    AckBatch, AckOutcome, AckResult, AckResults, AcknowledgeRequest,
};
use hub_proto::wire::consume_response::Frame;

use super::Session;
use super::place::{At, Sorted};
use crate::{acks, pull};

/// How long it may take to find who has a subscription, and to hear from there.
const NOWHERE_TIMEOUT: Duration = Duration::from_secs(10);

impl Session {
    /// Errors: `FIELD_INVALID`.
    pub(super) fn settle(&mut self, batch: AckBatch) -> Result<()> {
        let Some(place) = &mut self.place else {
            return Ok(());
        };
        let sorted = match &mut place.at {
            At::One(_) => Sorted {
                here: batch,
                nowhere: AckBatch::default(),
            },
            At::All(all) => all.pass_on(batch)?,
        };
        let settled = acks::settle(acks::read(sorted.here)?, |tenant| place.find(tenant));
        let confirm = place.confirm_acks;
        if confirm {
            self.confirming.push_back(settled.saved().boxed());
        } else {
            self.answer(acks::refused(settled.results));
        }
        if !acks::is_empty(&sorted.nowhere) {
            self.settle_nowhere(sorted.nowhere, confirm);
        }
        Ok(())
    }

    /// Acks of subscriptions that are at work where this stream does not know go the way of a call
    /// for them: whoever has one next knows which of its leases were settled. In a task of its own:
    /// a stream of which nothing is read stands still, and must not hold what that waits for.
    fn settle_nowhere(&mut self, batch: AckBatch, confirm: bool) {
        let (groups, caller) = (self.groups.clone(), self.caller.clone());
        let name = self.place.as_ref().map(|place| place.name().to_owned());
        let leases = acks::leases(&batch);
        let request = AcknowledgeRequest {
            subscription: name.unwrap_or_default(),
            acks: Some(batch),
        };
        let settling = async move { pull::acknowledge(&groups, &caller, request).await };
        let settling = tokio::spawn(tokio::time::timeout(NOWHERE_TIMEOUT, settling));
        let answer = async move {
            let results = match settling.await {
                Ok(Ok(Ok(results))) => results,
                failed => {
                    tracing::warn!("acks could not be settled anywhere: {failed:?}");
                    acks::all(leases, AckOutcome::Retry)
                }
            };
            match confirm {
                true => results,
                false => acks::refused(results),
            }
        };
        self.nowhere.push(answer.boxed());
    }

    pub(super) fn answer(&mut self, results: Vec<AckResult>) {
        if !results.is_empty() {
            self.say(Frame::AckResults(AckResults { results }));
        }
    }
}
