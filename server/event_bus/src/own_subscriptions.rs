//! The subscriptions that products made themselves, as routing needs them: whose, and which filter
//! from which sequence on.
//!
//! The list is always the present one, for old events too: a sequence tells which filter decided
//! about it. Making or deleting a subscription and changing a filter raise the routing epoch, by
//! which the lists are kept.

use std::sync::{Arc, LazyLock};

use hub_core::error::Result;
use hub_core::journal::TenantRef;
use hub_core::module::Core;
use hub_core::storage::Db;
use hub_core::tenancy::Versioned;

use crate::filter::Filter;
use crate::routing::Subscription;
use crate::store::subscription_filters as store;

/// Memory of the lists of all tenants.
const BYTES_MAX: usize = 32 << 20;

/// What all tenants whose products made none share.
static NONE: LazyLock<Arc<[Subscription]>> = LazyLock::new(|| Arc::from([]));

/// Loads the lists and keeps those in use.
pub(crate) struct OwnSubscriptions {
    db: Db,
    by_epoch: Versioned<[Subscription]>,
}

impl OwnSubscriptions {
    pub(crate) fn new(core: &Core) -> Self {
        let weigh =
            |list: &Arc<[Subscription]>| list.iter().map(Subscription::bytes).sum::<usize>();
        OwnSubscriptions {
            db: core.db.clone(),
            by_epoch: Versioned::new(BYTES_MAX, weigh),
        }
    }

    /// Those of a tenant whose present epoch is `present`, by product and name.
    /// Errors: `STORE_BUSY`.
    pub(crate) async fn at(&self, tenant: &TenantRef, present: u64) -> Result<Arc<[Subscription]>> {
        let load = || async {
            let rows = store::list(&self.db, tenant).await?;
            if rows.is_empty() {
                return Ok(NONE.clone());
            }
            let mut list: Vec<Subscription> = Vec::new();
            for row in rows {
                let filter = (row.from_seq, Filter::new(&row.filter)?);
                match list.last_mut() {
                    Some(last) if last.subscription_id == row.subscription_id => {
                        last.filters.push(filter);
                    }
                    _ => list.push(Subscription {
                        subscription_id: row.subscription_id,
                        product: row.product,
                        filters: vec![filter],
                    }),
                }
            }
            Ok(list.into())
        };
        self.by_epoch.get(tenant, present, load).await
    }

    /// Memory held now, about, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.by_epoch.bytes()
    }
}
