//! How a change of a subscription ends: told in the tenant's log and committed, all in one, and
//! then known to who works on it.

use std::sync::Arc;

use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::hub_event::HubEvent;
use hub_core::journal::{Append, Log, Outcome};
use hub_core::module::Core;
use hub_core::storage::Tx;

use super::{Stored, Subscriptions};
use crate::owners::Altered;

/// Where the events about subscriptions come from.
const SOURCE: &str = "/hub/subscriptions";

/// What the hub tells of a change.
pub(crate) struct Told<'a> {
    /// The tenant's log.
    pub(crate) log: &'a Arc<Log>,
    /// E.g. `subscription.paused`.
    pub(crate) kind: &'static str,
    /// What tells this change of the subscription from every other one.
    pub(crate) change: String,
    /// The subscription.
    pub(crate) stored: &'a Stored,
    /// Key that did it, or `hub`.
    pub(crate) actor: &'a str,
    /// When.
    pub(crate) time: Micros,
    /// More about it: an object.
    pub(crate) more: serde_json::Value,
}

impl Told<'_> {
    /// As the journal stores it.
    fn append(self) -> Append {
        let tenant = self.log.tenant();
        let mut json = serde_json::json!({
            "subscriptionId": self.stored.id,
            "product": self.stored.product,
            "name": self.stored.name,
        });
        if let (Some(json), serde_json::Value::Object(more)) = (json.as_object_mut(), self.more) {
            json.extend(more);
        }
        let event = HubEvent {
            log: tenant,
            source: SOURCE,
            kind: self.kind,
            id: format!("{}.{}", self.stored.id, self.change),
            subject: &self.stored.id,
            tenant_id: tenant.id(),
            actor: self.actor,
            time: self.time,
            json: json.to_string(),
        };
        Append {
            events: vec![event.encode()],
            log: self.log.clone(),
            independent: false,
            row: None,
        }
    }
}

impl Subscriptions {
    /// Ends `tx` with the event that tells of it; the owner follows before this returns. In a task
    /// of its own: a caller that goes away must not leave an owner that goes on as before.
    ///
    /// Errors: `STORE_BUSY`.
    pub(crate) async fn commit(&self, tx: Tx, told: Told<'_>, what: Altered) -> Result<()> {
        let (core, owners) = (self.core.clone(), self.owners.clone());
        let (tenant, id) = (told.log.tenant().clone(), told.stored.id.clone());
        let append = told.append();
        let committing = tokio::spawn(async move {
            let done = commit_with(&core, tx, append).await;
            // Also if it is not known whether it was committed.
            owners.changed(&tenant, &id, what).await;
            done
        });
        committing.await.map_err(Error::internal)?
    }
}

/// Ends `tx` with the event that tells of it. Errors: `STORE_BUSY`.
async fn commit_with(core: &Core, tx: Tx, append: Append) -> Result<()> {
    let appended = core.journal.commit(tx, vec![append]).await?;
    let mut outcomes = appended.iter().flat_map(|one| &one.outcomes);
    match outcomes.all(|outcome| matches!(outcome, Outcome::Stored { .. })) {
        true => Ok(()),
        false => Err(Error::internal("the event of a change was not new")),
    }
}

/// Tells of what was committed before; once, however often it is called. Errors: `STORE_BUSY`.
pub(super) async fn tell(core: &Core, told: Told<'_>) -> Result<()> {
    core.journal.append(told.append()).await?;
    Ok(())
}
