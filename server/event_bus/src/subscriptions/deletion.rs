//! How a subscription goes, with its position and failures.

use std::time::Duration;

use hub_core::audit::{self, Change, Changes};
use hub_core::auth::Caller;
use hub_core::error::{Error, Result};
use hub_core::journal;
use hub_core::module::Core;

use super::{Stored, Subscriptions, Told, find_in};
use crate::owners::Altered;
use crate::store::{seeks, subscription_filters, subscriptions as store};

/// The RPC, as its policy names it.
const DELETE: &str = "hub.event_bus.v1.EventBus/DeleteSubscription";
/// Rows of each table that one transaction deletes: it holds the writer of SQLite.
const CHUNK_ROWS_MAX: u32 = 2000;
/// How often rows are looked for that a call did not delete before its process ended.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);

impl Subscriptions {
    /// Deletes a subscription that a product made. Its owner is fenced off, since its position is
    /// gone.
    ///
    /// Errors: `SUBSCRIPTION_NOT_FOUND`, `FIELD_INVALID`, `ETAG_MISMATCH`.
    pub(crate) async fn delete(&self, caller: &Caller, id: &str, etag: &str) -> Result<()> {
        let tenant = caller.tenant()?;
        let found = self.changeable(caller, id).await?;
        if found.is_default {
            let problem = "is a default subscription, which its product always has; pause it, or \
                           end the product's subscription by SetProductSubscription";
            return Err(Error::field("subscription_id", problem));
        }
        check_etag(&found, etag)?;
        let log = self.core.journal.log(tenant).await?;
        self.owners.close(tenant, id).await?;
        let now = self.core.clock.now();
        let mut tx = self.core.db.begin().await?;
        journal::bump(&mut tx, tenant).await?;
        let found = find_in(&mut tx, tenant, id).await?;
        check_etag(&found, etag)?;
        // First: who takes its position keeps it from being deleted until that is committed.
        store::delete(&mut tx, tenant, id).await?;
        seeks::delete(&mut tx, id).await?;
        subscription_filters::delete(&mut tx, id).await?;
        let more = seeks::delete_outcomes(&mut tx, id, CHUNK_ROWS_MAX).await?;
        let change = Change {
            caller,
            action: DELETE,
            resource: id,
            changes: Changes::new().field("name", &found.name, "").field(
                "product",
                &found.product,
                "",
            ),
            time: now,
        };
        audit::record(&mut tx, tenant, change).await?;
        let told = Told {
            log: &log,
            kind: "subscription.deleted",
            change: (found.version + 1).to_string(),
            stored: &found,
            actor: &caller.key_id,
            time: now,
            more: serde_json::json!({}),
        };
        self.commit(tx, told, Altered::Place).await?;
        if more {
            // The subscription is gone whatever comes of this: the sweep deletes what is left.
            let left = delete_outcomes(&self.core, id).await;
            left.unwrap_or_else(|error| tracing::debug!("failures of {id} are left: {error}"));
        }
        Ok(())
    }
}

fn check_etag(found: &Stored, etag: &str) -> Result<()> {
    match etag.is_empty() || etag == found.version.to_string() {
        true => Ok(()),
        false => Err(Error::etag_mismatch(found.version)),
    }
}

/// Deletes what became of events for a subscription that is gone.
async fn delete_outcomes(core: &Core, id: &str) -> Result<()> {
    loop {
        let mut tx = core.db.begin().await?;
        let more = seeks::delete_outcomes(&mut tx, id, CHUNK_ROWS_MAX).await?;
        tx.commit().await?;
        if !more {
            return Ok(());
        }
    }
}

/// Deletes what calls left that did not come to their end. Errors: `STORE_BUSY`.
pub(crate) async fn sweep(core: &Core) -> Result<()> {
    while let Some(id) = seeks::orphan(&core.db).await? {
        if core.draining.is_cancelled() {
            break;
        }
        delete_outcomes(core, &id).await?;
    }
    Ok(())
}
