//! How the settings of a subscription change.

use hub_core::audit::{self, Change};
use hub_core::auth::Caller;
use hub_core::error::{Error, Result};
use hub_core::field_mask;
use hub_core::journal::{self, TenantRef, lock_head};
use hub_core::storage::Tx;
use hub_proto::hub::event_bus::v1::{EventFilter, Subscription, UpdateSubscriptionRequest};

use super::settings::{self, Changed};
use super::{Stored, Subscriptions, Told, find_in};
use crate::filter::Filter;
use crate::owners::Altered;
use crate::store::{seeks, subscription_filters, subscriptions as store};

/// The RPC, as its policy names it.
const UPDATE: &str = "hub.event_bus.v1.EventBus/UpdateSubscription";

impl Subscriptions {
    /// Changes settings. A changed filter decides about events that were not looked at yet; the
    /// leases end then, since events that were looked at may wait in memory.
    ///
    /// Errors: `SUBSCRIPTION_NOT_FOUND`, `FIELD_INVALID`, `FILTER_INVALID`, `ETAG_MISMATCH`,
    /// `QUOTA_EXCEEDED`.
    pub(crate) async fn update(
        &self,
        caller: &Caller,
        request: UpdateSubscriptionRequest,
    ) -> Result<Subscription> {
        let tenant = caller.tenant()?;
        let wanted = request.subscription.unwrap_or_default();
        let before = self.changeable(caller, &wanted.subscription_id).await?;
        let etag = wanted.etag.clone();
        let changed = changed(&before, wanted, request.update_mask.as_ref())?;
        let refilters = refilters(&before, &changed)?;
        let log = self.core.journal.log(tenant).await?;
        let oldest = self.core.journal.earliest(&log).await?;
        if refilters {
            self.owners.close(tenant, &before.id).await?;
        }
        let now = self.core.clock.now();
        let mut tx = self.core.db.begin().await?;
        lock_head(&mut tx, tenant).await?;
        let before = find_in(&mut tx, tenant, &before.id).await?;
        if !etag.is_empty() && etag != before.version.to_string() {
            return Err(Error::etag_mismatch(before.version));
        }
        let mut after = before.clone();
        changed.apply(&mut after)?;
        if after == before {
            drop(tx);
            return self.shown(caller, before).await;
        }
        after.version += 1;
        if after.filter != before.filter {
            journal::bump(&mut tx, tenant).await?;
            let oldest = oldest.map_or(log.head().seq + 1, |(seq, _)| seq);
            self.put_filter(&mut tx, tenant, &after, oldest).await?;
        }
        store::update(&mut tx, tenant, &after, &caller.key_id).await?;
        let change = Change {
            caller,
            action: UPDATE,
            resource: &after.id,
            changes: settings::differences(&before, &after),
            time: now,
        };
        audit::record(&mut tx, tenant, change).await?;
        let told = Told {
            log: &log,
            kind: "subscription.updated",
            change: after.version.to_string(),
            stored: &after,
            actor: &caller.key_id,
            time: now,
            more: serde_json::json!({ "filterChanged": after.filter != before.filter }),
        };
        let what = match after.filter == before.filter {
            true => Altered::Settings,
            false => Altered::Place,
        };
        self.commit(tx, told, what).await?;
        self.shown(caller, after).await
    }

    /// The new filter decides from behind the place up to which events were looked at.
    async fn put_filter(
        &self,
        tx: &mut Tx,
        tenant: &TenantRef,
        after: &Stored,
        oldest: u64,
    ) -> Result<()> {
        let now = self.core.clock.now();
        let position = seeks::fence(tx, tenant, &after.id, now).await?;
        let from = position.cursor + 1;
        subscription_filters::keep(tx, &after.id, from, oldest).await?;
        settings::check_filters(tx, tenant, &after.id, &after.filter).await?;
        subscription_filters::add(tx, tenant, &after.id, from, &after.filter).await
    }
}

/// The settings that a request changes. What is fixed may be sent along as it is.
fn changed(
    before: &Stored,
    wanted: Subscription,
    mask: Option<&prost_types::FieldMask>,
) -> Result<Changed> {
    let known = [
        ("filter", wanted.filter.is_some()),
        ("retry", wanted.retry.is_some()),
        ("lease_duration", wanted.lease_duration.is_some()),
        ("max_per_second", wanted.max_per_second != 0),
        ("labels", !wanted.labels.is_empty()),
    ];
    let fields = field_mask::fields(mask, &known)?;
    let fixed = "is fixed when the subscription is made; make another one";
    if !wanted.name.is_empty() && wanted.name != before.name {
        return Err(Error::field("subscription.name", fixed));
    }
    if wanted.ordering != 0 && wanted.ordering != i32::from(before.ordering) {
        return Err(Error::field("subscription.ordering", fixed));
    }
    let named = |name| fields.contains(&name);
    let all = Changed::all(wanted);
    Ok(Changed {
        filter: all.filter.filter(|_| named("filter")),
        retry: all.retry.filter(|_| named("retry")),
        lease_duration: all.lease_duration.filter(|_| named("lease_duration")),
        max_per_second: all.max_per_second.filter(|_| named("max_per_second")),
        labels: all.labels.filter(|_| named("labels")),
    })
}

/// Whether the filter becomes another one. Errors: `FILTER_INVALID`, `FIELD_INVALID`.
fn refilters(before: &Stored, changed: &Changed) -> Result<bool> {
    let Some(filter) = &changed.filter else {
        return Ok(false);
    };
    if before.is_default && *filter != EventFilter::default() {
        let problem = "of a default subscription is the catalogue; make a subscription of your own";
        return Err(Error::field("subscription.filter", problem));
    }
    Filter::new(filter)?;
    Ok(*filter != before.filter)
}
