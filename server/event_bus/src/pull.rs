//! Pull and Acknowledge: what Consume does, for those who cannot keep a stream.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use hub_core::auth::Caller;
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::module::Core;
use hub_core::peers::moving;
use hub_proto::hub::event_bus::v1::{
    AckOutcome, AckResult, AcknowledgeRequest, PullRequest, SubscriptionState,
};
use hub_proto::wire::{LeasedEvent, PullResponse};
use tonic::{Code, Status};

use crate::acks::{self, Found};
use crate::forward::{self, Failed, Search};
use crate::group::{Group, PULLING, Taken, Want};
use crate::groups::{Groups, Place};
use crate::seat::{News, Seat};
use crate::subscriptions;

/// Events of a pull that does not say how many.
const EVENTS: u32 = 100;
/// Bytes of events of a pull; one larger event goes alone.
const BYTES_MAX: u64 = 1 << 20;

/// How long a pull that waits for all tenants waits here before it asks the other processes, in
/// microseconds.
const ELSEWHERE: Micros = 500_000;
/// How long a pull that another process passed on gives the subscriptions here, in microseconds.
const VISIT: Micros = 100_000;

/// How long a pull that does not wait gives the subscription to look at its log.
const FIRST_LOOK: Duration = Duration::from_millis(500);

/// Leases some events, waiting if there are none.
///
/// Errors: `SUBSCRIPTION_NOT_FOUND`, `FIELD_INVALID`, `STORE_BUSY`.
pub(crate) async fn pull(
    core: &Core,
    groups: &Arc<Groups>,
    caller: &Caller,
    request: PullRequest,
) -> Result<PullResponse, Status> {
    let product = caller.product()?;
    let seat = Seat::new(&request.member, caller.tenant.is_none());
    let events = match request.max_events {
        0 => EVENTS,
        events => events,
    };
    seat.set_credit(Seat::default_credit(), events, BYTES_MAX);
    let Some(tenant) = &caller.tenant else {
        let visit = Visit::all(groups, caller, &request.subscription, seat)?;
        return pull_all(core, visit, caller, request).await;
    };
    let found = groups.resolve(tenant, Some(&**product), &request.subscription);
    let (settings, forwarded) = (found.await?, caller.origin.forwarded);
    let until = core.clock.now() + request.wait.as_ref().map_or(0, acks::length);
    let mut search = Search::begin();
    loop {
        let visits = |group: &Arc<Group>| group.visit(&seat);
        let pulled = match groups.reach(tenant, &settings, forwarded, visits).await? {
            Place::Here(group) => {
                let (seat, at) = (seat.clone(), At::One(group));
                let pulled = pull_here(core, Visit { seat, at }, &request, until).await;
                // It worked until then.
                search = Search::begin();
                pulled.map_err(|error| forward::sort(error.into(), "itself"))
            }
            Place::Elsewhere(owner) => {
                let mut request = request.clone();
                let left = (until - core.clock.now()).max(0).unsigned_abs();
                request.wait = prost_types::Duration::try_from(Duration::from_micros(left)).ok();
                forward::pull(core, &owner, caller, request).await
            }
        };
        match pulled {
            Ok(pulled) => return Ok(pulled),
            Err(failed) => search.again(groups, &settings.id, failed).await?,
        }
    }
}

/// Pulls from the subscriptions of all tenants: from those that are at work here, and if they have
/// nothing, from those of the other processes in turn, until something comes or the wait is over.
async fn pull_all(
    core: &Core,
    visit: Visit,
    caller: &Caller,
    request: PullRequest,
) -> Result<PullResponse, Status> {
    let length = request.lease_duration.as_ref().map(acks::length);
    let until = core.clock.now() + request.wait.as_ref().map_or(0, acks::length);
    let forwarded = caller.origin.forwarded;
    let peers = core.processes.watch();
    loop {
        let others = match forwarded {
            true => Vec::new(),
            false => peers.borrow().keys().cloned().collect::<Vec<_>>(),
        };
        let left = (until - core.clock.now()).max(0);
        let wait = match (forwarded, others.is_empty()) {
            (true, _) => VISIT,
            (false, true) => left,
            (false, false) => left.min(ELSEWHERE),
        };
        let mut pulled = PullResponse {
            events: hand_over(visit.collect(core, wait, length).await?),
            // There are as many states as tenants.
            backlog: 0,
            state: SubscriptionState::Unspecified.into(),
        };
        for process_id in others {
            if !pulled.events.is_empty() {
                break;
            }
            let request = PullRequest {
                wait: None,
                ..request.clone()
            };
            match forward::pull(core, &process_id, caller, request).await {
                Ok(there) => pulled.events = there.events,
                Err(Failed::Answered(status)) => return Err(status),
                // What it has will be at work here, or in another one.
                Err(Failed::Moving(_)) => {}
            }
        }
        let is_over = until <= core.clock.now() || core.draining.is_cancelled();
        if forwarded || is_over || !pulled.events.is_empty() {
            return Ok(pulled);
        }
    }
}

async fn pull_here(
    core: &Core,
    visit: Visit,
    request: &PullRequest,
    until: Micros,
) -> Result<PullResponse> {
    let length = request.lease_duration.as_ref().map(acks::length);
    let wait = (until - core.clock.now()).max(0);
    let taken = visit.collect(core, wait, length).await?;
    let (backlog, state) = match &visit.at {
        At::One(group) => group.pulled().await?,
        At::All { .. } => (0, SubscriptionState::Unspecified),
    };
    Ok(PullResponse {
        backlog,
        state: state.into(),
        events: hand_over(taken),
    })
}

fn hand_over(taken: Vec<Taken>) -> Vec<LeasedEvent> {
    taken.into_iter().flat_map(Taken::hand_over).collect()
}

/// Settles or extends leases; returns once that is on disk.
///
/// Errors: `SUBSCRIPTION_NOT_FOUND`, `FIELD_INVALID`, `STORE_BUSY`.
pub(crate) async fn acknowledge(
    groups: &Arc<Groups>,
    caller: &Caller,
    request: AcknowledgeRequest,
) -> Result<Vec<AckResult>, Status> {
    let Some(tenant) = &caller.tenant else {
        return acknowledge_all(groups, caller, request).await;
    };
    let asked = acks::read(request.acks.clone().unwrap_or_default())?;
    let product = caller.product.as_deref();
    let found = groups.resolve(tenant, product, &request.subscription);
    let (settings, forwarded) = (found.await?, caller.origin.forwarded);
    let (search, mut tried) = (Search::begin(), false);
    loop {
        // Put to work if it is nowhere: it knows which leases of before were settled.
        let works = |group: &Arc<Group>| !group.is_over();
        let here = match groups.reach(tenant, &settings, forwarded, works).await? {
            Place::Elsewhere(owner) => {
                let core = &groups.parts().core;
                match forward::acknowledge(core, &owner, caller, request.clone()).await {
                    Ok(answer) => return Ok(told(answer.results, &request, tried)),
                    Err(failed) => search.again(groups, &settings.id, failed).await?,
                }
                tried = true;
                continue;
            }
            Place::Here(group) => group,
        };
        let settled = acks::settle(asked, |number| match number == tenant.number() {
            true => Found::Here(here.clone()),
            false => Found::Foreign,
        });
        return Ok(told(settled.saved().await, &request, tried));
    }
}

/// The answer, if this call was passed on before to a process that did not answer. What is settled
/// then may be so by this call or by another one: its caller does not hear that it came too late.
fn told(mut results: Vec<AckResult>, request: &AcknowledgeRequest, tried: bool) -> Vec<AckResult> {
    let Some(batch) = request.acks.as_ref().filter(|_| tried) else {
        return results;
    };
    let nacked = batch.nack.iter().map(|nack| &nack.lease_id);
    let settled: HashSet<&String> = batch.ack.iter().chain(nacked).collect();
    for result in &mut results {
        if result.outcome() == AckOutcome::AlreadySettled && settled.contains(&result.lease_id) {
            result.set_outcome(AckOutcome::Retry);
        }
    }
    results
}

/// The same for the subscriptions of one name of all tenants, each where it is at work.
async fn acknowledge_all(
    groups: &Arc<Groups>,
    caller: &Caller,
    request: AcknowledgeRequest,
) -> Result<Vec<AckResult>, Status> {
    let (product, name) = (caller.product()?, request.subscription.as_str());
    is_name(name)?;
    let batch = request.acks.unwrap_or_default();
    acks::check(&batch)?;
    let tenants = acks::tenants(&batch);
    let mut owners = match caller.origin.forwarded {
        true => HashMap::new(),
        false => groups.owners(product, name, tenants.clone()).await?,
    };
    let mut here = HashMap::new();
    for tenant in tenants {
        if owners.contains_key(&tenant) {
            continue;
        }
        match groups.open_named(product, name, tenant).await {
            Ok(Some(Place::Here(group))) => drop(here.insert(tenant, Found::Here(group))),
            Ok(Some(Place::Elsewhere(owner))) => drop(owners.insert(tenant, owner)),
            Ok(None) => {}
            // The others go on.
            Err(error) if error.code() == Code::Unavailable => {
                tracing::debug!("a subscription was not put to work: {error}");
                here.insert(tenant, Found::Moving);
            }
            Err(error) => return Err(error.into()),
        }
    }
    if caller.origin.forwarded && !owners.is_empty() {
        return Err(moving("moved").into());
    }
    let order = acks::leases(&batch);
    let parts = acks::split(batch, |tenant| owners.get(&tenant).cloned());
    let mut outcomes = HashMap::new();
    for (owner, part) in parts {
        let results = match owner {
            Some(owner) => {
                let (core, leases) = (&groups.parts().core, acks::leases(&part));
                let request = AcknowledgeRequest {
                    subscription: name.to_owned(),
                    acks: Some(part),
                };
                match forward::acknowledge(core, &owner, caller, request).await {
                    Ok(answer) => answer.results,
                    Err(Failed::Answered(status)) if status.code() != Code::Unavailable => {
                        return Err(status);
                    }
                    Err(failed) => {
                        tracing::debug!(owner = &*owner, "acks were not taken: {failed:?}");
                        acks::all(leases, AckOutcome::Retry)
                    }
                }
            }
            None => {
                let find = |number| here.get(&number).cloned().unwrap_or(Found::Gone);
                acks::settle(acks::read(part)?, find).saved().await
            }
        };
        let results = results.into_iter();
        outcomes.extend(results.map(|result| (result.lease_id, result.outcome)));
    }
    let result = |lease_id: String| AckResult {
        outcome: outcomes.get(&lease_id).copied().unwrap_or_default(),
        lease_id,
    };
    Ok(order.into_iter().map(result).collect())
}

/// A key that serves all tenants gives a name. Errors: `FIELD_INVALID`.
pub(crate) fn is_name(subscription: &str) -> Result<()> {
    match subscriptions::is_id(subscription) {
        true => {
            let problem = "must be a name: each tenant has a subscription of its own";
            Err(Error::field("subscription", problem))
        }
        false => Ok(()),
    }
}

/// A pull at the subscriptions that it asks; it ends when this is dropped.
struct Visit {
    seat: Arc<Seat>,
    at: At,
}

enum At {
    One(Arc<Group>),
    All {
        groups: Arc<Groups>,
        product: Arc<str>,
        name: String,
    },
}

impl Drop for Visit {
    fn drop(&mut self) {
        match &self.at {
            At::One(group) => group.end_visit(&self.seat),
            At::All {
                groups,
                product,
                name,
            } => groups.go(product, name, &self.seat),
        }
    }
}

impl Visit {
    fn all(groups: &Arc<Groups>, caller: &Caller, name: &str, seat: Arc<Seat>) -> Result<Visit> {
        let product = caller.product()?;
        is_name(name)?;
        match caller.origin.forwarded {
            true => groups.visit(product, name, &seat),
            false => drop(groups.enter(product, name, &seat)),
        }
        Ok(Visit {
            seat,
            at: At::All {
                groups: groups.clone(),
                product: product.clone(),
                name: name.to_owned(),
            },
        })
    }

    /// What there is now; if that is nothing, the first that comes within `wait`.
    async fn collect(
        &self,
        core: &Core,
        wait: Micros,
        length: Option<Micros>,
    ) -> Result<Vec<Taken>> {
        // Even without a wait the log is looked at once; in time of its own, for a clock that
        // stands still must not hold the call.
        let until = core.clock.now() + wait;
        let patience = async {
            match wait {
                0 => tokio::time::sleep(FIRST_LOOK).await,
                _ => core.clock.sleep_until(until).await,
            }
        };
        tokio::pin!(patience);
        let mut taken = Vec::new();
        loop {
            while let Some((left, bytes)) = self.seat.credit_left()
                && let Some(group) = self.seat.next()
            {
                let want = Want {
                    member: PULLING,
                    events: left,
                    bytes,
                    length,
                };
                match group.take(&self.seat, want).await {
                    Ok(events) if events.is_empty() => {}
                    Ok(events) => taken.push(events),
                    Err(error) if taken.is_empty() => return Err(error),
                    // What there is goes out.
                    Err(_) => return Ok(taken),
                }
            }
            let (mut caught_up, mut closed) = (false, false);
            while let Some((_, news)) = self.seat.news() {
                caught_up |= news == News::CaughtUp(true);
                closed |= news == News::Closed;
            }
            if taken.is_empty() && closed && matches!(self.at, At::One(_)) {
                return Err(moving("moved"));
            }
            if !taken.is_empty() || (caught_up && wait == 0) {
                return Ok(taken);
            }
            tokio::select! {
                () = self.seat.called() => {}
                () = &mut patience => return Ok(taken),
                () = core.draining.cancelled() => return Ok(taken),
            }
        }
    }
}
