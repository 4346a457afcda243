//! Durable subscriptions: those that products make themselves, and the default ones.
//!
//! What routing needs of them changes with the routing epoch; everything else is a row. A change
//! that must not meet an owner's checkpoint closes the subscription in this process first, then
//! fences it off in its transaction.

mod creation;
mod deletion;
mod listing;
mod pause;
mod settings;
mod told;
mod update;

use std::sync::Arc;

use hub_core::auth::Caller;
use hub_core::clock::timestamp;
use hub_core::error::Result;
use hub_core::journal::TenantRef;
use hub_core::module::Core;
use hub_core::storage::Tx;
use hub_proto::hub::event_bus::v1::{Subscription, SubscriptionStatus};

pub(crate) use self::creation::{CREATE, NAME_CHARS_MAX};
pub(crate) use self::deletion::{SWEEP_INTERVAL, sweep};
pub(crate) use self::pause::tell_exhausted;
pub use self::settings::Settings;
pub(crate) use self::told::Told;
use crate::owners::{Asking, Owners};
use crate::routing::Configurations;
use crate::store::subscriptions as store;
pub use crate::store::subscriptions::{Pause, Stored};
use crate::subscription_status::Statuses;
use crate::visibility::Viewer;
use crate::{default_subscriptions, error};

/// What all ids of subscriptions begin with, and no name.
const ID_PREFIX: &str = "sub_";

/// Whether a text is an id, and not a name.
pub fn is_id(id_or_name: &str) -> bool {
    id_or_name.starts_with(ID_PREFIX)
}

/// The subscriptions of a database.
pub(crate) struct Subscriptions {
    pub(crate) core: Core,
    pub(crate) configurations: Configurations,
    pub(crate) owners: Arc<dyn Owners>,
}

impl Subscriptions {
    pub(crate) fn new(
        core: &Core,
        configurations: Configurations,
        owners: Arc<dyn Owners>,
    ) -> Self {
        Subscriptions {
            core: core.clone(),
            configurations,
            owners,
        }
    }

    /// A subscription with its status. Errors: `SUBSCRIPTION_NOT_FOUND`.
    pub(crate) async fn get(&self, caller: &Caller, id: &str) -> Result<Subscription> {
        let tenant = caller.tenant()?;
        let viewer = Viewer::of(caller);
        let found = find(&self.core, &self.configurations, tenant, id).await?;
        match found.filter(|found| viewer.sees_product(&found.product)) {
            Some(found) => self.shown(caller, found).await,
            None => Err(error::subscription_not_found(id)),
        }
    }

    /// As it is now.
    pub(crate) async fn shown(&self, caller: &Caller, stored: Stored) -> Result<Subscription> {
        let (tenant, stored) = (caller.tenant()?, [stored]);
        let mut statuses = Statuses::new(self, tenant).await?;
        let status = statuses.of_all(&Asking::of(caller), &stored).await?;
        let status = status.into_iter().next();
        let [stored] = stored;
        Ok(show(stored, status))
    }

    /// A subscription that the caller may change: a product's key changes the product's own, an
    /// administrator and who sees all without speaking for a product any.
    ///
    /// Errors: `SUBSCRIPTION_NOT_FOUND`.
    pub(crate) async fn changeable(&self, caller: &Caller, id: &str) -> Result<Stored> {
        let found = find(&self.core, &self.configurations, caller.tenant()?, id).await?;
        match found.filter(|found| may_change(caller, &found.product)) {
            Some(found) => Ok(found),
            None => Err(error::subscription_not_found(id)),
        }
    }
}

fn may_change(caller: &Caller, product: &str) -> bool {
    let viewer = Viewer::of(caller);
    let any = caller.product.is_none() || caller.scopes.is_administrator();
    viewer.is(product) || (any && viewer.sees_product(product))
}

/// The subscription as it is within a transaction. Errors: `SUBSCRIPTION_NOT_FOUND`.
pub(crate) async fn find_in(tx: &mut Tx, tenant: &TenantRef, id: &str) -> Result<Stored> {
    let found = store::find_in(tx, tenant, id).await?;
    found.ok_or_else(|| error::subscription_not_found(id))
}

/// The message of the contract.
pub(crate) fn show(stored: Stored, status: Option<SubscriptionStatus>) -> Subscription {
    Subscription {
        ordering: stored.ordering.into(),
        retry: Some(settings::effective(&stored.retry)),
        lease_duration: Some(settings::duration(stored.lease_duration)),
        create_time: Some(timestamp(stored.create_time)),
        etag: stored.version.to_string(),
        filter: Some(stored.filter),
        subscription_id: stored.id,
        name: stored.name,
        product: stored.product,
        max_per_second: stored.max_per_second,
        labels: stored.labels,
        status,
    }
}

/// A subscription of a tenant by its id, or by its name within `product`. Who speaks for a product
/// reaches only that product's.
///
/// Errors: `SUBSCRIPTION_NOT_FOUND`, `STORE_BUSY`.
pub async fn resolve(
    core: &Core,
    configurations: &Configurations,
    tenant: &TenantRef,
    product: Option<&str>,
    id_or_name: &str,
) -> Result<Settings> {
    let found = match (is_id(id_or_name), product) {
        (true, _) => find(core, configurations, tenant, id_or_name).await?,
        (false, Some(product)) => {
            find_named(core, configurations, tenant, product, id_or_name).await?
        }
        (false, None) => None,
    };
    let of_product = |found: &Stored| product.is_none_or(|product| found.product == product);
    match found.filter(of_product) {
        Some(found) => Ok(Settings::of(&found)),
        None => Err(error::subscription_not_found(id_or_name)),
    }
}

/// A subscription by its id. The row of a default one is made if it is not there yet.
pub(crate) async fn find(
    core: &Core,
    configurations: &Configurations,
    tenant: &TenantRef,
    id: &str,
) -> Result<Option<Stored>> {
    if let Some(found) = store::find(&core.db, tenant, id).await? {
        return Ok(Some(found));
    }
    let present = configurations.current(tenant).await?;
    let Some(product) = default_subscriptions::product_of(&present, tenant, id) else {
        return Ok(None);
    };
    default_subscriptions::make(core, tenant, product).await?;
    store::find(&core.db, tenant, id).await
}

/// A subscription by its name. The default one has the name of its product.
async fn find_named(
    core: &Core,
    configurations: &Configurations,
    tenant: &TenantRef,
    product: &str,
    name: &str,
) -> Result<Option<Stored>> {
    match store::find_named(&core.db, tenant, product, name).await? {
        None if name == product => {
            let id = default_subscriptions::id(tenant, product);
            find(core, configurations, tenant, &id).await
        }
        found => Ok(found),
    }
}
