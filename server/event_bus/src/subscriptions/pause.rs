//! Pausing and resuming: events wait, and running leases may still be acked.

use hub_core::audit::{self, Change, Changes};
use hub_core::auth::Caller;
use hub_core::clock::{Micros, from_timestamp, timestamp};
use hub_core::error::{Error, Result};
use hub_core::journal::{TenantRef, lock_head};
use hub_core::module::Core;
use hub_proto::hub::event_bus::v1::{PauseSubscriptionRequest, Subscription};

use super::told::tell;
use super::{Pause, Stored, Subscriptions, Told, find_in};
use crate::owners::Altered;
use crate::store::subscriptions as store;

/// The RPCs, as their policies name them.
const PAUSE: &str = "hub.event_bus.v1.EventBus/PauseSubscription";
const RESUME: &str = "hub.event_bus.v1.EventBus/ResumeSubscription";
/// Who pauses a subscription by its retry policy.
const HUB: &str = "hub";

impl Subscriptions {
    /// Pauses a subscription. One that is paused keeps the time since when it is.
    ///
    /// Errors: `SUBSCRIPTION_NOT_FOUND`, `FIELD_INVALID`.
    pub(crate) async fn pause(
        &self,
        caller: &Caller,
        request: PauseSubscriptionRequest,
    ) -> Result<Subscription> {
        let found = self.changeable(caller, &request.subscription_id).await?;
        let now = self.core.clock.now();
        let until = request.until.as_ref().map(from_timestamp);
        if until.is_some_and(|until| until <= now) {
            return Err(Error::field("until", "must lie in the future"));
        }
        let pause = Pause {
            since: now,
            until,
            by: caller.key_id.to_string(),
            reason: request.reason,
        };
        self.set_pause(caller, &found.id, Some(pause), now).await
    }

    /// Ends the pause of a subscription. Errors: `SUBSCRIPTION_NOT_FOUND`.
    pub(crate) async fn resume(&self, caller: &Caller, id: &str) -> Result<Subscription> {
        let found = self.changeable(caller, id).await?;
        let now = self.core.clock.now();
        self.set_pause(caller, &found.id, None, now).await
    }

    async fn set_pause(
        &self,
        caller: &Caller,
        id: &str,
        pause: Option<Pause>,
        now: Micros,
    ) -> Result<Subscription> {
        let tenant = caller.tenant()?;
        let log = self.core.journal.log(tenant).await?;
        let mut tx = self.core.db.begin().await?;
        lock_head(&mut tx, tenant).await?;
        let before = find_in(&mut tx, tenant, id).await?;
        let held = before.pause.clone().filter(|pause| pause.holds(now));
        let pause = pause.map(|pause| Pause {
            since: held.as_ref().map_or(pause.since, |held| held.since),
            ..pause
        });
        if repeats(held.as_ref(), pause.as_ref()) {
            drop(tx);
            return self.shown(caller, before).await;
        }
        store::set_pause(&mut tx, tenant, id, pause.as_ref(), &caller.key_id).await?;
        let after = Stored {
            version: before.version + 1,
            pause,
            ..before
        };
        let (action, kind) = match after.pause {
            Some(_) => (PAUSE, "subscription.paused"),
            None => (RESUME, "subscription.resumed"),
        };
        let change = Change {
            caller,
            action,
            resource: id,
            changes: differences(held.as_ref(), after.pause.as_ref()),
            time: now,
        };
        audit::record(&mut tx, tenant, change).await?;
        let told = Told {
            log: &log,
            kind,
            change: after.version.to_string(),
            stored: &after,
            actor: &caller.key_id,
            time: now,
            more: more(after.pause.as_ref()),
        };
        self.commit(tx, told, Altered::Settings).await?;
        self.shown(caller, after).await
    }
}

/// Tells in the tenant's log that a subscription was paused by its retry policy. Its owner stores
/// such a pause with what else it knows of many tenants, where it must not wait for their logs.
///
/// Errors: `STORE_BUSY`.
pub(crate) async fn tell_exhausted(core: &Core, tenant: &TenantRef, id: &str) -> Result<()> {
    let found = store::find(&core.db, tenant, id).await?;
    let pause = found.as_ref().and_then(|found| found.pause.as_ref());
    let (Some(stored), Some(pause)) = (&found, pause.filter(|pause| pause.by == HUB)) else {
        return Ok(());
    };
    let log = core.journal.log(tenant).await?;
    let told = Told {
        log: &log,
        kind: "subscription.paused",
        change: format!("exhausted.{}", pause.since),
        stored,
        actor: HUB,
        time: pause.since,
        more: more(Some(pause)),
    };
    tell(core, told).await
}

/// Whether nothing changes. Who pauses again with other words is not the one who paused.
fn repeats(held: Option<&Pause>, pause: Option<&Pause>) -> bool {
    let said = |pause: &Pause| (pause.until, pause.reason.clone());
    held.map(said) == pause.map(said)
}

fn until(pause: Option<&Pause>) -> String {
    let until = pause.and_then(|pause| pause.until);
    until.map_or_else(String::new, |until| timestamp(until).to_string())
}

fn differences(before: Option<&Pause>, after: Option<&Pause>) -> Changes {
    let reason = |pause: Option<&Pause>| pause.map_or_else(String::new, |one| one.reason.clone());
    Changes::new()
        .field("paused", before.is_some(), after.is_some())
        .field("until", until(before), until(after))
        .field("reason", reason(before), reason(after))
}

fn more(pause: Option<&Pause>) -> serde_json::Value {
    match pause {
        Some(pause) => serde_json::json!({
            "reason": pause.reason,
            "until": until(Some(pause)),
        }),
        None => serde_json::json!({}),
    }
}
