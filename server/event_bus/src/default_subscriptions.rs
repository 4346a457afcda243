//! Each product that a tenant has or had active has a durable subscription named as the product, so
//! that the event log has a status for it before it ever connects.
//!
//! Its id follows from tenant and product: every process knows it without asking, before its row is
//! there and after a restart. The rows are made behind the configuration, by whichever process
//! comes first. Such a subscription begins at the first event of the log: what was recorded before
//! its product became active is not routed to it by the configuration of that time.

use std::collections::HashSet;
use std::time::Duration;

use hub_core::error::Result;
use hub_core::id;
use hub_core::journal::TenantRef;
use hub_core::module::Core;
use hub_core::worker::Turn;
use sha2::{Digest, Sha256};

use crate::routing::Configuration;
use crate::store::subscriptions as store;
pub use crate::store::subscriptions::{Pause, Stored};

/// How long after a change of configuration the rows are made, so that many changes are one look.
/// Only the status of a subscription needs them.
const PAUSE: Duration = Duration::from_secs(1);
/// How often they are looked for although nothing was seen to change: another process may have died
/// before it made them.
const SEARCH_INTERVAL: Duration = Duration::from_secs(60);
/// Tenants whose rows go into one transaction.
const CHUNK_TENANTS_MAX: usize = 20;

/// Id of a product's default subscription.
pub fn id(tenant: &TenantRef, product: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(b"hub default subscription");
    for part in [tenant.id(), product] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let half = hash
        .finalize()
        .iter()
        .take(16)
        .fold(0u128, |value, byte| value << 8 | u128::from(*byte));
    id::of("sub", half)
}

/// Whether a product has one: the tenant has or had the product active.
pub fn exists(configuration: &Configuration, product: &str) -> bool {
    let number = configuration.products.number(product);
    number.is_some_and(|number| configuration.entitlements.was_active(number))
}

/// The product whose default subscription has this id.
pub fn product_of<'a>(
    configuration: &'a Configuration,
    tenant: &TenantRef,
    subscription_id: &str,
) -> Option<&'a str> {
    let mut slugs = configuration
        .products
        .iter()
        .map(|product| product.slug.as_str());
    slugs.find(|slug| exists(configuration, slug) && id(tenant, slug) == subscription_id)
}

/// The subscriptions of a tenant whose rows are there, by product and name. Errors: `STORE_BUSY`.
pub async fn stored(core: &Core, tenant: &TenantRef) -> Result<Vec<Stored>> {
    store::list(&core.db, tenant).await
}

/// Makes the row of a product's default subscription, if it is not there yet.
/// Errors: `STORE_BUSY`.
pub(crate) async fn make(core: &Core, tenant: &TenantRef, product: &str) -> Result<()> {
    let mut tx = core.db.begin().await?;
    let id = id(tenant, product);
    store::add_default(&mut tx, tenant, &id, product, core.clock.now()).await?;
    tx.commit().await?;
    Ok(())
}

/// Makes the rows of a tenant that are not there yet. Errors: `STORE_BUSY`.
pub(crate) async fn make_missing_of(core: &Core, tenant: &TenantRef) -> Result<()> {
    let epoch = core.journal.routing_epoch(tenant).await?;
    let made: HashSet<String> = store::defaults(&core.db, tenant).await?;
    for product in products(core, tenant, epoch).await? {
        if !made.contains(&product) {
            make(core, tenant, &product).await?;
        }
    }
    Ok(())
}

/// Makes what is missing until it is stopped.
pub(crate) async fn run(core: Core, turn: Turn) -> Result<()> {
    let mut changes = core.journal.epochs_risen();
    loop {
        changes.mark_unchanged();
        make_missing(&core).await?;
        turn.passed_for(SEARCH_INTERVAL);
        let again = tokio::select! {
            _ = changes.changed() => turn.pause(PAUSE).await,
            again = turn.pause(SEARCH_INTERVAL) => again,
        };
        if !again {
            return Ok(());
        }
    }
}

/// Makes the rows of all tenants whose configuration changed since the last time.
/// Errors: `STORE_BUSY`.
async fn make_missing(core: &Core) -> Result<()> {
    let mut after = 0;
    loop {
        let behind = store::behind(&core.db, after).await?;
        let Some((last, _)) = behind.last() else {
            return Ok(());
        };
        after = last.number();
        for tenants in behind.chunks(CHUNK_TENANTS_MAX) {
            let mut missing = Vec::new();
            for (tenant, epoch) in tenants {
                missing.push((tenant, *epoch, products(core, tenant, *epoch).await?));
            }
            let now = core.clock.now();
            let mut tx = core.db.begin().await?;
            for (tenant, epoch, products) in missing {
                for product in products {
                    let id = id(tenant, &product);
                    store::add_default(&mut tx, tenant, &id, &product, now).await?;
                }
                store::done(&mut tx, tenant, epoch).await?;
            }
            tx.commit().await?;
        }
    }
}

/// Slugs of the products that the tenant has or had active.
async fn products(core: &Core, tenant: &TenantRef, epoch: u64) -> Result<Vec<String>> {
    let snapshot = core.tenancy.snapshot(tenant, epoch).await?;
    let products = core.tenancy.products().await?;
    let had = products
        .iter()
        .filter(|product| snapshot.was_active(product.number));
    Ok(had.map(|product| product.slug.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_of_one_product_of_one_tenant_and_always_the_same() {
        let (one, two) = (TenantRef::new(1, "tnt_1"), TenantRef::new(2, "tnt_2"));
        let psa = id(&one, "psa");
        // Stored in databases: it must never change.
        assert_eq!(psa, id(&TenantRef::new(9, "tnt_1"), "psa"));
        assert!(psa.starts_with("sub_") && psa.len() == 30, "{psa}");
        assert_ne!(psa, id(&one, "portal"));
        assert_ne!(psa, id(&two, "psa"));
    }
}
