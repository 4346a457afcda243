//! A chunk of a job of redelivery: what a page of the log names is queued. What cannot be is an
//! error of the job, which goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hub_core::auth::Caller;
use hub_core::error::{Error, Result};
use hub_core::jobs::{Chunk, Ended, ItemError, Next, Run};
use hub_proto::hub::event_bus::v1::{EventLogEntry, RedeliverRequest};
use prost::Message;
use tonic::Code;

use super::page::Chosen;
use super::parameters::{Parameters, Progress};
use super::passing::{self, Again, Queued, Queueing};
use super::{Redelivery, Target};
use crate::group::{Group, key_of, ordering_key};
use crate::owners::Asking;

/// When a job looks again for room at a subscription.
const ROOM_PAUSE: Duration = Duration::from_secs(5);

/// What a chunk has done so far.
struct Round<'a> {
    redelivery: &'a Redelivery,
    caller: &'a Caller,
    request: &'a RedeliverRequest,
    chunk: Chunk,
    /// Subscriptions and events that were looked at; a call may name an event twice.
    queued: BTreeSet<(String, u64)>,
    /// Generations of groups that have to be on disk before the progress is.
    waits: BTreeMap<u64, (Arc<Group>, u64)>,
}

impl Redelivery {
    /// Delivers again what a page names, up to the event with which as many deliveries are done as
    /// the run has items left (`Run::items_max`), or for which a subscription has no room.
    pub(super) async fn work(&self, run: &Run) -> Result<Ended> {
        let parameters = Parameters::decode(run.parameters())?;
        let caller = parameters.caller(run.job(), run.tenant());
        let request = &parameters.request;
        let progress = Progress::decode(run.progress(), !request.event_ids.is_empty())?;
        let page = self.page(&Asking::of(&caller), request, progress).await?;
        let mut round = Round {
            redelivery: self,
            caller: &caller,
            request,
            chunk: Chunk::default(),
            queued: BTreeSet::new(),
            waits: BTreeMap::new(),
        };
        let (mut next, mut is_whole) = (page.begun, true);
        for chosen in page.entries {
            let place = chosen.place;
            let is_full = round.chunk.done >= i64::try_from(run.items_max()).unwrap_or(i64::MAX);
            if is_full {
                is_whole = false;
                break;
            }
            let mut after = match next.of == place {
                true => std::mem::take(&mut next.after),
                false => String::new(),
            };
            if !round.entry(chosen, &mut after).await? {
                is_whole = false;
                (next.of, next.after) = (place, after);
                break;
            }
            next.done = place;
        }
        let mut chunk = round.stored().await?;
        if is_whole {
            next.done = page.done;
            if page.is_last {
                chunk.next = Next::Finished;
            }
        }
        chunk.progress = Some(next.encode());
        Ok(Ended::Unsaved(chunk))
    }
}

impl Round<'_> {
    /// Queues an event wherever it goes today, but for the subscriptions up to `after`, and moves
    /// `after` on. False if a subscription has no room now.
    async fn entry(&mut self, chosen: Chosen, after: &mut String) -> Result<bool> {
        let event_id = chosen.event_id;
        let entry = match chosen.entry {
            Ok(entry) => entry,
            // Retention came first.
            Err(error) => return self.failed(event_id, error).map(|()| true),
        };
        let (redelivery, caller, request) = (self.redelivery, self.caller, self.request);
        let mut targets = redelivery.targets(caller, request, &entry).await?;
        targets.sort_unstable_by(|one, other| one.subscription_id.cmp(&other.subscription_id));
        for target in targets {
            if *target.subscription_id <= **after {
                continue;
            }
            match self.again(&entry, &target).await {
                Ok(queued) if queued.is_full() => {
                    self.chunk.pause = ROOM_PAUSE;
                    return Ok(false);
                }
                Ok(queued) => match queued.counter() {
                    Some(counter) => {
                        *self.chunk.counters.entry(counter.to_owned()).or_default() += 1;
                        self.chunk.done += 1;
                    }
                    None => self.note(out_of_reach(event_id.clone(), &target)),
                },
                Err(error) => self.failed(event_id.clone(), error)?,
            }
            after.clone_from(&target.subscription_id);
        }
        Ok(true)
    }

    /// The event or the subscription is there no more; any other error ends the chunk.
    fn failed(&mut self, event_id: String, error: Error) -> Result<()> {
        if error.code() != Code::NotFound {
            return Err(error);
        }
        self.note(ItemError {
            resource: event_id,
            reason: error.reason().to_owned(),
            message: error.message().to_owned(),
        });
        Ok(())
    }

    fn note(&mut self, error: ItemError) {
        self.chunk.done += 1;
        self.chunk.failed += 1;
        self.chunk.errors.push(error);
    }

    /// Queues one event for one subscription.
    async fn again(&mut self, entry: &EventLogEntry, target: &Target) -> Result<Queued> {
        let (product, id) = (Some(target.product.as_str()), &target.subscription_id);
        let (groups, tenant) = (&self.redelivery.groups, self.caller.tenant()?);
        let settings = groups.resolve(tenant, product, id).await?;
        let record = entry.record.as_ref();
        let (seq, bytes) = record.map_or((0, 0), |record| (record.sequence, record.encoded_len()));
        let event = record.and_then(|record| record.event.as_ref());
        let event = event.map_or_else(Bytes::new, |event| event.encode_to_vec().into());
        let key = ordering_key(event).map(|key| key_of(&key));
        let again = Again {
            subscription_id: id.clone(),
            seq,
            key: key.map(|key| key.0),
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            derived_delivered: target.derived_delivered,
        };
        if self.queued.contains(&(id.clone(), seq)) {
            return Ok(Queued::default());
        }
        let queued = match again.here(groups, tenant, &settings, false).await? {
            Queueing::Queued(group, generation) => {
                self.waits.insert(group.number, (group, generation));
                Queued::in_line()
            }
            Queueing::Unchanged => Queued::default(),
            Queueing::OutOfReach => Queued::out_of_reach(),
            Queueing::Full => Queued::full(),
            Queueing::Elsewhere(owner) => {
                passing::pass_on(groups, &owner, self.caller, again).await?
            }
        };
        if !queued.is_full() {
            self.queued.insert((id.clone(), seq));
        }
        Ok(queued)
    }

    /// The progress says that they are unsettled, so that has to be on disk before.
    async fn stored(self) -> Result<Chunk> {
        for (group, generation) in self.waits.values() {
            group.saved(*generation).await?;
        }
        Ok(self.chunk)
    }
}

/// The event was not routed to the subscription, which will come to it only after others.
fn out_of_reach(event_id: String, target: &Target) -> ItemError {
    let message = format!(
        "So many events before this one are unsettled that the subscription {} does not come to it \
         now. Redeliver it once they are settled.",
        target.subscription_id
    );
    ItemError {
        resource: event_id,
        reason: "QUOTA_EXCEEDED".to_owned(),
        message,
    }
}
