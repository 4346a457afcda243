//! Durable subscriptions: those that products make themselves, and the default ones.

mod settings;

use hub_core::error::Result;
use hub_core::journal::TenantRef;
use hub_core::module::Core;

pub use self::settings::Settings;
use crate::routing::Configurations;
use crate::store::subscriptions as store;
pub use crate::store::subscriptions::{Pause, Stored};
use crate::{default_subscriptions, error};

/// What all ids of subscriptions begin with, and no name.
const ID_PREFIX: &str = "sub_";

/// Whether a text is an id, and not a name.
pub fn is_id(id_or_name: &str) -> bool {
    id_or_name.starts_with(ID_PREFIX)
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
