//! Pull and Acknowledge: what Consume does, for those who cannot keep a stream.

use std::sync::Arc;
use std::time::Duration;

use hub_core::auth::Caller;
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::module::Core;
use hub_proto::hub::event_bus::v1::{
    AckResult, AcknowledgeRequest, PullRequest, SubscriptionState,
};
use hub_proto::wire::{LeasedEvent, PullResponse};

use crate::acks::{self, Found};
use crate::group::{Group, PULLING, Want};
use crate::groups::{Groups, Place};
use crate::seat::{News, Seat};
use crate::subscriptions;

/// Events of a pull that does not say how many.
const EVENTS: u32 = 100;
/// Bytes of events of a pull; one larger event goes alone.
const BYTES_MAX: u64 = 1 << 20;

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
) -> Result<PullResponse> {
    let product = caller.product()?;
    let seat = Seat::new(&request.member, caller.tenant.is_none());
    let events = match request.max_events {
        0 => EVENTS,
        events => events,
    };
    seat.set_credit(Seat::default_credit(), events, BYTES_MAX);
    let visit = match &caller.tenant {
        Some(tenant) => {
            let visits = |group: &Arc<Group>| group.visit(&seat);
            let group = groups.reach(tenant, product, &request.subscription, visits);
            let at = At::One(group.await?);
            Visit { seat, at }
        }
        None => Visit::all(groups, product, &request.subscription, seat)?,
    };
    let length = request.lease_duration.as_ref().map(acks::length);
    let wait = request.wait.as_ref().map_or(0, acks::length);
    let events = visit.collect(core, wait, length).await?;
    let (backlog, state) = match &visit.at {
        At::One(group) => (group.backlog().await?, group.state()),
        At::All { .. } => (0, SubscriptionState::Live),
    };
    Ok(PullResponse {
        backlog,
        state: state.into(),
        events,
    })
}

/// Settles or extends leases; returns once that is on disk.
///
/// Errors: `SUBSCRIPTION_NOT_FOUND`, `FIELD_INVALID`, `STORE_BUSY`.
pub(crate) async fn acknowledge(
    groups: &Arc<Groups>,
    caller: &Caller,
    request: AcknowledgeRequest,
) -> Result<Vec<AckResult>> {
    let asked = acks::read(request.acks.unwrap_or_default())?;
    let name = request.subscription.as_str();
    let settled = match &caller.tenant {
        Some(tenant) => {
            let product = caller.product.as_deref();
            let parts = groups.parts();
            let (core, configurations) = (&parts.core, &parts.configurations);
            let found = subscriptions::resolve(core, configurations, tenant, product, name);
            // Who has the leases answers: that another process has them does not end them.
            let Place::Here(group) = groups.open(tenant, found.await?).await? else {
                let what = "The subscription is at work on another server";
                return Err(Error::store_busy(what, "moved"));
            };
            acks::settle(asked, |number| match number == tenant.number() {
                true => Found::Here(group.clone()),
                false => Found::Foreign,
            })
        }
        None => {
            let product = caller.product()?;
            is_name(name)?;
            acks::settle(asked, |number| {
                match groups.find_named(number, product, name) {
                    Some(group) => Found::Here(group),
                    None => Found::Gone,
                }
            })
        }
    };
    Ok(settled.saved().await)
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
    fn all(groups: &Arc<Groups>, product: &Arc<str>, name: &str, seat: Arc<Seat>) -> Result<Visit> {
        is_name(name)?;
        groups.enter(product, name, &seat);
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
    ) -> Result<Vec<LeasedEvent>> {
        // Even without a wait the log is looked at once; in time of its own, for a clock that
        // stands still must not hold the call.
        let patience = async {
            match wait {
                0 => tokio::time::sleep(FIRST_LOOK).await,
                wait => {
                    core.clock
                        .sleep(Duration::from_micros(wait.unsigned_abs()))
                        .await
                }
            }
        };
        tokio::pin!(patience);
        let mut events = Vec::new();
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
                events.append(&mut group.take(&self.seat, want).await?.events);
            }
            let mut caught_up = false;
            while let Some((_, news)) = self.seat.news() {
                caught_up |= news == News::CaughtUp(true);
            }
            if !events.is_empty() || (caught_up && wait == 0) {
                return Ok(events);
            }
            tokio::select! {
                () = self.seat.called() => {}
                () = &mut patience => return Ok(events),
                () = core.draining.cancelled() => return Ok(events),
            }
        }
    }
}
