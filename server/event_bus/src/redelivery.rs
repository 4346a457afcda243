//! Redeliver: events that are settled are delivered again, by today's routing.
//!
//! A call makes a job, and the job works through the log from the oldest event on, a page at a
//! time, so that the events of a key come again in their order. An event that is still to be
//! delivered is left alone, so that a chunk that is done twice delivers nothing twice.

mod page;
mod parameters;
mod passing;
mod round;

use std::sync::Arc;

use bytes::Bytes;
use hub_core::audit::{self, Changes};
use hub_core::auth::Caller;
use hub_core::error::{Error, Result};
use hub_core::jobs::{Kind, NewJob, Run, Working};
use hub_core::journal::TenantRef;
use hub_core::replay::{Begun, Call};
use hub_proto::hub::event_bus::v1::{
    EventDelivery, EventDeliveryState, EventLogEntry, EventLogFilter, RedeliverRequest,
    RedeliverResponse,
};
use prost::Message;

use crate::groups::Groups;
use crate::log_entry::{self, HUB};
use crate::routing::{self, Configuration, Event, Outcome};
use crate::standing::Standings;
use crate::visibility::Viewer;
use crate::{default_subscriptions, error, log, owners, subscriptions};
use parameters::Parameters;
pub(crate) use passing::Service;

/// Name of the kind of job.
pub(crate) const KIND: &str = "event_bus.redeliver";
/// Full name of the call, for the audit log and for retries.
const ACTION: &str = "hub.event_bus.v1.EventBus/Redeliver";
/// Speed of a job that does not say one, in deliveries a second.
const PER_SECOND: u32 = 100;
/// Events that a call looks at to count what matches; with more, the count is a lower bound.
const COUNTED_EVENTS_MAX: usize = 100_000;

/// Starts jobs, and works them off.
#[derive(Clone)]
pub(crate) struct Redelivery {
    groups: Arc<Groups>,
}

/// A settled delivery that is to be done again.
struct Target {
    subscription_id: String,
    product: String,
    /// By its position alone it counts as delivered.
    derived_delivered: bool,
}

impl Redelivery {
    pub(crate) fn new(groups: &Arc<Groups>) -> Redelivery {
        Redelivery {
            groups: groups.clone(),
        }
    }

    /// Counts what matches, and makes the job unless it is a dry run.
    ///
    /// Errors: `FILTER_EMPTY`, `FIELD_INVALID`, `EVENT_NOT_FOUND`, `SUBSCRIPTION_NOT_FOUND`,
    /// `REQUEST_ID_REUSED`, `QUOTA_EXCEEDED`.
    pub(crate) async fn start(
        &self,
        caller: &Caller,
        mut request: RedeliverRequest,
    ) -> Result<RedeliverResponse> {
        let request_id = std::mem::take(&mut request.request_id);
        let call = Call::new(caller, ACTION, &request_id, &request);
        check(&request)?;
        self.check_subscription(caller, &request.subscription_id)
            .await?;
        let matched = self.count(caller, &request).await?;
        if request.dry_run {
            return Ok(RedeliverResponse { matched, job: None });
        }
        self.make(caller, &request, matched, call).await
    }

    async fn make(
        &self,
        caller: &Caller,
        request: &RedeliverRequest,
        matched: u64,
        call: Option<Call>,
    ) -> Result<RedeliverResponse> {
        let core = &self.groups.parts().core;
        let (tenant, now) = (caller.tenant()?, core.clock.now());
        let mut tx = core.db.begin().await?;
        if let Some(call) = &call
            && let Begun::Again(answer) = call.begin(&mut tx, &core.sealer, now).await?
        {
            return answer.decode();
        }
        let resource = match request.subscription_id.as_str() {
            "" => "events",
            id => id,
        };
        let max_per_second = match request.max_per_second {
            0 => PER_SECOND,
            most => most,
        };
        let new = NewJob {
            kind: KIND,
            resource: resource.to_owned(),
            total: i64::try_from(matched).unwrap_or(i64::MAX),
            dry_run: false,
            max_per_second,
            parameters: Parameters::of(caller, request).encode(),
            created_by: caller.key_id.to_string(),
        };
        let job = core.jobs.create(&mut tx, tenant, new).await?;
        let change = audit::Change {
            caller,
            action: ACTION,
            resource: &job.job_id,
            changes: Changes::new()
                .field("matched", "", matched)
                .field("resource", "", resource),
            time: now,
        };
        audit::record(&mut tx, tenant, change).await?;
        let answer = RedeliverResponse {
            matched,
            job: Some(job.to_proto()),
        };
        if let Some(call) = &call {
            let message = answer.encode_to_vec();
            call.finish(&mut tx, &core.sealer, message, None).await?;
        }
        core.jobs.commit(tx).await?;
        Ok(answer)
    }

    /// Errors: `SUBSCRIPTION_NOT_FOUND`.
    async fn check_subscription(&self, caller: &Caller, id: &str) -> Result<()> {
        if id.is_empty() {
            return Ok(());
        }
        let parts = self.groups.parts();
        let (core, configurations) = (&parts.core, &parts.configurations);
        let found =
            subscriptions::resolve(core, configurations, caller.tenant()?, None, id).await?;
        match Viewer::of(caller).sees_product(&found.product) {
            true => Ok(()),
            false => Err(error::subscription_not_found(id)),
        }
    }

    /// How many deliveries match, as far as they are counted: of a filter from the newest event
    /// back.
    async fn count(&self, caller: &Caller, request: &RedeliverRequest) -> Result<u64> {
        let (mut matched, mut examined, mut before) = (0, 0, None);
        let owners = owners::Asking::of(caller);
        for ids in request.event_ids.chunks(page::EVENTS) {
            for chosen in self.of_ids(&owners, ids, 0).await {
                let entry = chosen.entry?;
                matched += self.targets(caller, request, &entry).await?.len() as u64;
            }
        }
        while let Some(filter) = &request.filter
            && request.event_ids.is_empty()
            && examined < COUNTED_EVENTS_MAX
        {
            let found = self.find(&owners, filter, 0, before).await?;
            for entry in &found.entries {
                matched += self.targets(caller, request, entry).await?.len() as u64;
            }
            if !found.more {
                break;
            }
            let from = before.unwrap_or(found.before);
            examined += usize::try_from(from - found.before).unwrap_or(0).max(1);
            before = Some(found.before);
        }
        Ok(matched)
    }

    /// Where an event goes today and is settled.
    async fn targets(
        &self,
        caller: &Caller,
        request: &RedeliverRequest,
        entry: &EventLogEntry,
    ) -> Result<Vec<Target>> {
        let tenant = caller.tenant()?;
        let present = self.groups.parts().configurations.current(tenant).await?;
        let viewer = Viewer::of(caller);
        let states = request
            .filter
            .as_ref()
            .map_or(&[][..], |filter| &filter.states);
        let of_filter = request
            .filter
            .as_ref()
            .map_or("", |filter| &filter.subscription_id);
        let mut targets = today(tenant, &present, entry);
        targets.retain(|target| {
            let delivery = entry.deliveries.iter();
            let delivery = delivery
                .into_iter()
                .find(|one| one.subscription_id == target.subscription_id);
            let asked = |id: &str| id.is_empty() || id == target.subscription_id;
            let state = delivery.map(EventDelivery::state);
            viewer.sees_product(&target.product)
                && asked(&request.subscription_id)
                && asked(of_filter)
                && state.is_none_or(is_settled)
                && (states.is_empty()
                    || delivery.is_some_and(|delivery| states.contains(&delivery.state)))
        });
        if !targets.is_empty() {
            let seq = entry.record.as_ref().map_or(0, |record| record.sequence);
            let derived = self.derived(tenant, seq).await?;
            for target in &mut targets {
                target.derived_delivered = derived.contains(&target.subscription_id);
            }
        }
        Ok(targets)
    }

    /// The subscriptions for which an event counts as delivered if nothing is stored of it. Those
    /// that it was not routed to are not among them, though they got it before by a call like this.
    async fn derived(&self, tenant: &TenantRef, seq: u64) -> Result<Vec<String>> {
        let parts = self.groups.parts();
        let (core, configurations) = (&parts.core, &parts.configurations);
        let log = core.journal.log(tenant).await?;
        let Some(segment) = log::find(core, &log, seq).await? else {
            return Ok(Vec::new());
        };
        let Some(stored) = segment.event_at(seq).map_err(Error::internal)? else {
            return Ok(Vec::new());
        };
        let then = configurations.at(tenant, segment.routing_epoch()).await?;
        let named = log_entry::destinations(tenant, &then, &stored);
        let standings = Standings::load(core, tenant, &*self.groups, None, &[seq]).await?;
        let derived = named.into_iter();
        let derived = derived.filter(|named| standings.derives_delivered(named, seq));
        Ok(derived.map(|named| named.subscription_id).collect())
    }
}

impl Kind for Redelivery {
    fn chunk<'a>(&'a self, run: &'a Run) -> Working<'a> {
        Box::pin(self.work(run))
    }
}

/// Errors: `FILTER_EMPTY`, `FIELD_INVALID`.
fn check(request: &RedeliverRequest) -> Result<()> {
    let filter = request.filter.clone().unwrap_or_default();
    match (
        request.event_ids.is_empty(),
        filter == EventLogFilter::default(),
    ) {
        (true, true) => Err(error::filter_empty()),
        (false, false) => Err(Error::field("filter", "cannot be given together with ids")),
        _ => Ok(()),
    }
}

fn is_settled(state: EventDeliveryState) -> bool {
    use EventDeliveryState::{Delivered, Failed, NotRouted, Skipped};
    matches!(state, Delivered | Failed | Skipped | NotRouted)
}

/// The subscriptions that an event would go to if it were published now.
fn today(tenant: &TenantRef, present: &Configuration, entry: &EventLogEntry) -> Vec<Target> {
    let Some(record) = &entry.record else {
        return Vec::new();
    };
    let Some(event) = &record.event else {
        return Vec::new();
    };
    let about = Event {
        kind: &event.r#type,
        source: &record.product,
    };
    let bytes = Bytes::from(event.encode_to_vec());
    let destinations =
        routing::destinations(present, about, None, |filter| filter.takes(about, &bytes));
    let flowing = destinations.into_iter().filter(|destination| {
        let hub = destination.product == HUB && destination.subscription.is_none();
        destination.outcome == Outcome::Flows && !hub
    });
    flowing
        .map(|destination| Target {
            subscription_id: match destination.subscription {
                Some(own) => own.subscription_id.clone(),
                None => default_subscriptions::id(tenant, destination.product),
            },
            product: destination.product.to_owned(),
            derived_delivered: false,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_or_a_filter_are_given_and_not_both() {
        let ids = RedeliverRequest {
            event_ids: vec!["evt_1".to_owned()],
            ..RedeliverRequest::default()
        };
        let filter = EventLogFilter {
            subscription_id: "sub_1".to_owned(),
            ..EventLogFilter::default()
        };
        assert!(check(&ids).is_ok());
        let reason = |request: &RedeliverRequest| check(request).unwrap_err().reason();
        assert_eq!(reason(&RedeliverRequest::default()), "FILTER_EMPTY");
        let both = RedeliverRequest {
            filter: Some(filter),
            ..ids
        };
        assert_eq!(reason(&both), "FIELD_INVALID");
    }
}
