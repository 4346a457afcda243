//! How a change of this domain ends: recorded, told in a log, and committed, all in one.

use std::sync::Arc;

use hub_core::auth::Caller;
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::hub_event::HubEvent;
use hub_core::journal::{Append, Log, NewEvent, Outcome};
use hub_core::module::Core;
use hub_core::storage::Tx;

/// Where the events about tenants, products and integrations come from.
pub(crate) const SOURCE: &str = "/hub/tenants";

/// What the hub tells of a change.
pub(crate) struct Told<'a> {
    /// Log that it goes into.
    pub log: &'a Arc<Log>,
    /// E.g. `integration.updated`.
    pub kind: &'static str,
    /// Unique for each change.
    pub id: String,
    /// The resource.
    pub subject: &'a str,
    /// Tenant that it belongs to; empty = none.
    pub tenant_id: &'a str,
    /// More about it.
    pub data: serde_json::Value,
}

impl Told<'_> {
    /// As the journal stores it.
    pub fn event(self, caller: &Caller, time: Micros) -> NewEvent {
        HubEvent {
            log: self.log.tenant(),
            source: SOURCE,
            kind: self.kind,
            id: self.id,
            subject: self.subject,
            tenant_id: self.tenant_id,
            actor: &caller.key_id,
            time,
            json: self.data.to_string(),
        }
        .encode()
    }
}

/// Ends `tx` with the events that tell of it.
pub(crate) async fn commit(
    core: &Core,
    tx: Tx,
    log: Arc<Log>,
    events: Vec<NewEvent>,
) -> Result<()> {
    let append = Append {
        log,
        events,
        independent: false,
        row: None,
    };
    commit_appends(core, tx, vec![append]).await
}

/// The same with an event in each of several logs.
pub(crate) async fn commit_all(
    core: &Core,
    tx: Tx,
    events: Vec<(Arc<Log>, NewEvent)>,
) -> Result<()> {
    let append = |(log, event)| Append {
        log,
        events: vec![event],
        independent: false,
        row: None,
    };
    let appends = events.into_iter().map(append).collect();
    commit_appends(core, tx, appends).await
}

async fn commit_appends(core: &Core, tx: Tx, appends: Vec<Append>) -> Result<()> {
    let appended = core.journal.commit(tx, appends).await?;
    let mut outcomes = appended.iter().flat_map(|one| &one.outcomes);
    match outcomes.all(|outcome| matches!(outcome, Outcome::Stored { .. })) {
        true => Ok(()),
        false => Err(Error::internal(format!(
            "the events of a change were not new: {appended:?}"
        ))),
    }
}
