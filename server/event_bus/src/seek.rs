//! Seek: a subscription goes on at another place of the log.
//!
//! Everything up to the place is settled then, and nothing that is routed after it. Going forward,
//! events that are passed become skipped: those that were looked at one by one, the rest as a
//! range. Going back, what became of later events is forgotten, and they are delivered again. All
//! leases end.
//!
//! What the subscription had only because somebody asked for it by Redeliver does not come again:
//! what became of it stays, and what is not settled of it becomes skipped.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use hub_core::audit::{self, Change, Changes};
use hub_core::auth::Caller;
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::journal::{self, Log, Segment, TenantRef, lock_head};
use hub_core::replay::{Begun, Call};
use hub_core::storage::Tx;
use hub_proto::hub::event_bus::v1::{
    EventDeliveryState, SeekSubscriptionRequest, SeekSubscriptionResponse, Subscription,
    SubscriptionStatus,
};
use prost::Message;

use crate::leasing::Saved;
use crate::log_entry::HUB;
use crate::matching::{Budget, Passed, Target, Walk};
use crate::owners::{Altered, unsettled};
use crate::routing::Configuration;
use crate::start;
use crate::store::progress::{self, Failed};
use crate::store::seeks::{self, Exception, Range, Stored as Position};
use crate::store::subscription_filters;
use crate::subscription_status::Statuses;
use crate::subscriptions::{Stored, Subscriptions, Told, find_in, show};

/// The RPC, as its policy names it.
pub(crate) const SEEK: &str = "hub.event_bus.v1.EventBus/SeekSubscription";
/// Events that one call examines to count what it repeats and skips; what is beyond is not counted.
const EXAMINED_MAX: usize = 100_000;
/// Looks that one call takes, while more is stored of events after the place. Most of that is of
/// events that are routed here and fail meanwhile, which is forgotten anyway; so the last one does.
const LOOKS_MAX: usize = 3;
/// What the log says of events that a seek passed.
const SKIPPED: &str = "skipped by SeekSubscription";

/// What a seek does, or would do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counted {
    replayed: u64,
    skipped: u64,
}

impl Subscriptions {
    /// Moves a subscription to a place, or tells what that would do.
    ///
    /// Errors: `SUBSCRIPTION_NOT_FOUND`, `FIELD_INVALID`, `CURSOR_EXPIRED`, `CURSOR_INVALID`,
    /// `LOG_REWOUND`, `SEQUENCE_AHEAD`, `REQUEST_ID_REUSED`.
    pub(crate) async fn seek(
        &self,
        caller: &Caller,
        request: SeekSubscriptionRequest,
        retry: Option<Call>,
    ) -> Result<SeekSubscriptionResponse> {
        let tenant = caller.tenant()?;
        let found = self.changeable(caller, &request.subscription_id).await?;
        if found.is_default && found.product == HUB {
            let problem = "is of the hub itself, which settles every event at once";
            return Err(Error::field("subscription_id", problem));
        }
        if let Some(answer) = self.answered(retry.as_ref()).await? {
            return Ok(answer);
        }
        let log = self.core.journal.log(tenant).await?;
        let at = request.to.and_then(|to| to.at);
        let at = at.ok_or_else(|| Error::field("to", "must name a place"))?;
        let to = start::kept(&self.core, &log, Some(at)).await?.seq;
        if request.dry_run {
            let (seek, _) = self.look(&log, found, to).await?;
            return Ok(answer(self.shown(caller, seek.found).await?, seek.counted));
        }
        self.owners.close(tenant, &found.id).await?;
        let mut looks = 0;
        loop {
            looks += 1;
            let (mut seek, target) = self.look(&log, found.clone(), to).await?;
            seek.is_last_look = looks >= LOOKS_MAX;
            let status = self.status_after(tenant, &seek, target).await?;
            let commit = self.commit_seek(caller, &log, seek, status, retry.as_ref());
            if let Some(answer) = commit.await? {
                return Ok(answer);
            }
        }
    }

    /// The answer to a call that came before. Looked for first: a retry ends no leases.
    async fn answered(&self, retry: Option<&Call>) -> Result<Option<SeekSubscriptionResponse>> {
        let Some(call) = retry else {
            return Ok(None);
        };
        let now = self.core.clock.now();
        let mut tx = self.core.db.begin().await?;
        match call.begin(&mut tx, &self.core.sealer, now).await? {
            Begun::First => Ok(None),
            Begun::Again(answer) => answer.decode().map(Some),
        }
    }

    /// What going to a place would do, by what is stored, and what the subscription takes then.
    async fn look(&self, log: &Arc<Log>, found: Stored, to: u64) -> Result<(Seek, Target)> {
        let tenant = log.tenant();
        let ids = [found.id.as_str()];
        let mut positions = progress::positions(&self.core.db, tenant, &ids).await?;
        let position = positions.remove(&found.id).unwrap_or_default();
        // Only now, so that what is settled meanwhile is seen in one of both.
        let after = seeks::exceptions_after(&self.core.db, &found.id, to).await?;
        let looked_at = ahead(&unsettled(&position)?, &after, to);
        let present = self.configurations.current(tenant).await?;
        let mut target = Target::of(&present, &found);
        target.reach_back(to + 1);
        let redelivered = self.not_routed(log, &mut target, &looked_at).await?;
        let failed = after.iter().filter(|one| {
            let is_kept = redelivered.binary_search(&one.seq).is_ok();
            one.is_failed && is_kept
        });
        let failed_after: Vec<u64> = failed.map(|one| one.seq).collect();
        let going = (to, redelivered.as_slice());
        let counted = self.count(log, &mut target, &position, going).await?;
        let seek = Seek {
            found,
            to,
            counted,
            looked_at,
            redelivered,
            failed_after,
            is_last_look: false,
        };
        Ok((seek, target))
    }

    /// Of events those that are not routed to the subscription.
    async fn not_routed(
        &self,
        log: &Arc<Log>,
        target: &mut Target,
        events: &BTreeSet<u64>,
    ) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        let mut known: Option<(Arc<Segment>, Arc<Configuration>)> = None;
        for &seq in events {
            // They rise, and many lie in one segment.
            known = known.filter(|(segment, _)| seq <= segment.last());
            if known.is_none()
                && let Some(segment) = self.core.journal.segment_at(log, seq).await?
            {
                let epoch = segment.routing_epoch();
                let then = self.configurations.at(log.tenant(), epoch).await?;
                known = Some((segment, then));
            }
            let Some((segment, then)) = &known else {
                continue;
            };
            let event = segment.event_at(seq).map_err(Error::internal)?;
            if event.is_some_and(|event| !target.has(then, &event)) {
                found.push(seq);
            }
        }
        Ok(found)
    }

    /// What going to a place repeats and skips. `redelivered`: see [`Seek`].
    async fn count(
        &self,
        log: &Arc<Log>,
        target: &mut Target,
        position: &Position,
        (to, redelivered): (u64, &[u64]),
    ) -> Result<Counted> {
        let unsettled = unsettled(position)?;
        let skipped = unsettled.iter();
        let skipped = skipped.filter(|event| is_skipped(event.seq, to, redelivered));
        let skipped = skipped.count() as u64;
        let waiting: HashSet<u64> = unsettled.iter().map(|event| event.seq).collect();
        let budget = Budget {
            events: EXAMINED_MAX,
            bytes: self.core.limits.listing_bytes_max,
        };
        let mut passed = 0;
        let each = |event: Passed<'_>| {
            let is_settled = !waiting.contains(&event.event.seq);
            passed += u64::from(is_settled && target.has(event.configuration, event.event));
            true
        };
        let mut walk = Walk::new(&self.core, &self.configurations, log, budget);
        let (low, high) = (to.min(position.cursor), to.max(position.cursor));
        walk.back(low, high, each).await?;
        Ok(match to > position.cursor {
            true => Counted {
                replayed: 0,
                skipped: skipped + passed,
            },
            false => Counted {
                replayed: passed,
                skipped,
            },
        })
    }

    /// How the subscription will be doing. Before the transaction: this may read much of the log.
    async fn status_after(
        &self,
        tenant: &TenantRef,
        seek: &Seek,
        target: Target,
    ) -> Result<SubscriptionStatus> {
        let ids = [seek.found.id.as_str()];
        let failed = progress::failed(&self.core.db, tenant, &ids, seek.to).await?;
        let mut failed: Failed = failed.get(&seek.found.id).copied().unwrap_or_default();
        failed.count += seek.failed_after.len() as u64;
        failed.newest = seek.failed_after.last().copied().unwrap_or(failed.newest);
        let mut statuses = Statuses::new(self, tenant).await?;
        let status = statuses.of_place(&seek.found, target, seek.to, failed);
        status.await
    }

    /// None if there is something now that has not been looked at, and will be.
    async fn commit_seek(
        &self,
        caller: &Caller,
        log: &Arc<Log>,
        seek: Seek,
        status: SubscriptionStatus,
        retry: Option<&Call>,
    ) -> Result<Option<SeekSubscriptionResponse>> {
        let (tenant, now) = (log.tenant(), self.core.clock.now());
        let earliest = self.core.journal.earliest(log).await?;
        let earliest = earliest.map_or(seek.to + 1, |(seq, _)| seq);
        let mut tx = self.core.db.begin().await?;
        if let Some(call) = retry
            && let Begun::Again(answer) = call.begin(&mut tx, &self.core.sealer, now).await?
        {
            return answer.decode().map(Some);
        }
        let head = lock_head(&mut tx, tenant).await?;
        let found = find_in(&mut tx, tenant, &seek.found.id).await?;
        let position = seeks::fence(&mut tx, tenant, &found.id, now).await?;
        let after = seeks::exceptions_after_in(&mut tx, &found.id, seek.to).await?;
        let stored = ahead(&unsettled(&position)?, &after, seek.to);
        if !seek.is_last_look && !stored.is_subset(&seek.looked_at) {
            return Ok(None);
        }
        if subscription_filters::reach_back(&mut tx, &found.id, seek.to + 1).await? {
            // It has events from then on that it did not have before.
            journal::bump(&mut tx, tenant).await?;
        }
        move_to(&mut tx, tenant, &position, &seek, earliest, now).await?;
        let status = SubscriptionStatus {
            head_sequence: head + 1,
            ..status
        };
        let answer = answer(show(found.clone(), Some(status)), seek.counted);
        if let Some(call) = retry {
            let message = answer.encode_to_vec();
            call.finish(&mut tx, &self.core.sealer, message, None)
                .await?;
        }
        let change = Change {
            caller,
            action: SEEK,
            resource: &found.id,
            changes: Changes::new()
                .field("cursor", position.cursor, seek.to)
                .field("replayed", 0, seek.counted.replayed)
                .field("skipped", 0, seek.counted.skipped),
            time: now,
        };
        audit::record(&mut tx, tenant, change).await?;
        let told = Told {
            log,
            kind: "subscription.sought",
            change: format!("sought.{}", position.epoch),
            stored: &found,
            actor: &caller.key_id,
            time: now,
            more: serde_json::json!({
                "fromSequence": position.cursor,
                "toSequence": seek.to,
                "replayed": seek.counted.replayed,
                "skipped": seek.counted.skipped,
            }),
        };
        self.commit(tx, told, Altered::Place).await?;
        Ok(Some(answer))
    }
}

/// A seek about to be committed.
struct Seek {
    found: Stored,
    to: u64,
    counted: Counted,
    /// Later events of which it was looked at whether they are routed here.
    looked_at: BTreeSet<u64>,
    /// Those of them that are not, in their order: what became of them stays.
    redelivered: Vec<u64>,
    /// Those of them that failed.
    failed_after: Vec<u64>,
    /// Nothing is looked for that was stored meanwhile.
    is_last_look: bool,
}

/// Events after a place that the subscription may have had by Redeliver alone: something is stored
/// of them.
fn ahead(unsettled: &[Saved], after: &[Exception], to: u64) -> BTreeSet<u64> {
    let queued = unsettled
        .iter()
        .filter(|event| event.seq > to && event.redelivery && !event.derived_delivered)
        .map(|event| event.seq);
    queued.chain(after.iter().map(|one| one.seq)).collect()
}

fn answer(subscription: Subscription, counted: Counted) -> SeekSubscriptionResponse {
    SeekSubscriptionResponse {
        subscription: Some(subscription),
        replayed: counted.replayed,
        skipped: counted.skipped,
    }
}

/// Whether a seek makes an unsettled event a skipped one.
fn is_skipped(seq: u64, to: u64, redelivered: &[u64]) -> bool {
    seq <= to || redelivered.binary_search(&seq).is_ok()
}

/// Moves a fenced subscription. The log has the events from `earliest` on.
async fn move_to(
    tx: &mut Tx,
    tenant: &TenantRef,
    position: &Position,
    seek: &Seek,
    earliest: u64,
    now: Micros,
) -> Result<()> {
    let (id, to, redelivered) = (seek.found.id.as_str(), seek.to, &seek.redelivered);
    seeks::forget_after(tx, id, to, redelivered).await?;
    let passed: Vec<(u64, u32)> = unsettled(position)?
        .into_iter()
        .filter(|event| is_skipped(event.seq, to, redelivered))
        .map(|event| (event.seq, event.attempts))
        .collect();
    seeks::skip(tx, tenant, id, &passed, SKIPPED, now).await?;
    if to >= position.cursor {
        // Who goes past everything does not want to wait for what failed before.
        seeks::release_keys(tx, id).await?;
    }
    let first = position.cursor + 1;
    let kept = earliest.clamp(first, to.max(position.cursor) + 1);
    for (from, until, state) in [
        (first, kept - 1, EventDeliveryState::Expired),
        (kept, to, EventDeliveryState::Skipped),
    ] {
        if from <= until {
            let range = Range {
                from,
                to: until,
                state,
            };
            seeks::add_range(tx, tenant, id, range, now).await?;
        }
    }
    let replay_until = match to < position.cursor {
        true => position.replay_until.max(position.cursor),
        false => position.replay_until,
    };
    seeks::go_to(tx, id, to, replay_until, now).await
}
