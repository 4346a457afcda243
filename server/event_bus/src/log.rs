//! The event log: one event, by its id, its sequence or its producer's identity.

use std::sync::Arc;

use hub_core::error::{Error, Result};
use hub_core::id;
use hub_core::journal::{Log, Segment};
use hub_core::module::Core;
use hub_proto::hub::event_bus::v1::get_event_request::Event as Asked;
use hub_proto::hub::event_bus::v1::{EventIdentity, EventLogEntry};

use crate::log_entry::Entries;
use crate::owners::Asking;
use crate::routing::Configurations;
use crate::standing::{AtWork, Standings};
use crate::visibility::Viewer;
use crate::{error, event};

/// An event with its deliveries. What the caller may not see is not found.
///
/// Errors: `EVENT_NOT_FOUND`, `FIELD_INVALID`.
pub(crate) async fn get(
    core: &Core,
    configurations: &Configurations,
    at_work: &dyn AtWork,
    owners: &Asking<'_>,
    asked: Option<Asked>,
) -> Result<EventLogEntry> {
    let tenant = owners.caller.tenant()?;
    let log = core.journal.log(tenant).await?;
    let viewer = Viewer::of(owners.caller);
    let asked = asked.ok_or_else(|| Error::field("event", "is required"))?;
    let name = name_of(&log, &asked);
    let found = match sequence(core, &log, &viewer, asked).await? {
        Some(seq) => find(core, &log, seq).await?.map(|segment| (seq, segment)),
        None => None,
    };
    let Some((seq, segment)) = found else {
        return Err(not_found(core, &log, &name).await?);
    };
    let mut entries = Entries::new(configurations, tenant, &viewer, false);
    let stored = segment.event_at(seq).map_err(Error::internal)?;
    let stored = stored.ok_or_else(|| Error::internal("a segment lacks its event"))?;
    let named = entries.destinations(&segment, &stored).await?;
    let events = [(seq, named.as_slice())];
    let standings = Standings::now(core, owners, at_work, None, &events).await?;
    let deliveries = entries.deliveries(&standings, &segment, seq, &named);
    if !viewer.sees(stored.product, &deliveries) {
        return Err(not_found(core, &log, &name).await?);
    }
    entries.entry(&segment, &stored, deliveries)
}

/// The sequence that is asked for; it may not exist.
async fn sequence(
    core: &Core,
    log: &Arc<Log>,
    viewer: &Viewer,
    asked: Asked,
) -> Result<Option<u64>> {
    match asked {
        Asked::EventId(text) => Ok(of_id(log, &text)),
        Asked::Sequence(seq) => Ok(Some(seq)),
        Asked::Identity(identity) => {
            let product = match (identity.product.as_str(), viewer.product()) {
                ("", Some(own)) => own,
                ("", None) => {
                    let problem = "is required of a key that speaks for no product";
                    return Err(Error::field("identity.product", problem));
                }
                (named, _) => named,
            };
            let (source, id) = (identity.source.as_bytes(), identity.id.as_bytes());
            let identity = event::identity(log.tenant(), product, source, id);
            core.journal.find_identity(log, identity).await
        }
    }
}

/// The sequence in an id of an event of this log.
pub(crate) fn of_id(log: &Log, event_id: &str) -> Option<u64> {
    let key = id::parse_event(event_id)?;
    let seq = log.tenant().seq(key);
    (log.tenant().key(seq) == key).then_some(seq)
}

/// What the caller named, for the error.
fn name_of(log: &Log, asked: &Asked) -> String {
    // An id has 40 bits for the sequence.
    const SEQ_MAX: u64 = (1 << 40) - 1;
    match asked {
        Asked::EventId(event_id) => event_id.clone(),
        Asked::Sequence(seq) => id::event(log.tenant().key((*seq).min(SEQ_MAX))),
        Asked::Identity(EventIdentity { source, id, .. }) => format!("{id} of {source}"),
    }
}

/// The segment that holds an event, as the database has it now.
pub(crate) async fn find(core: &Core, log: &Arc<Log>, seq: u64) -> Result<Option<Arc<Segment>>> {
    // Another process may have written what this one has not seen yet.
    if seq == 0 || (seq > log.head().seq && seq > core.journal.refresh(log).await?.seq) {
        return Ok(None);
    }
    core.journal.stored_segment(log.tenant(), seq).await
}

/// `EVENT_NOT_FOUND`.
pub(crate) async fn not_found(core: &Core, log: &Arc<Log>, event_id: &str) -> Result<Error> {
    let earliest = core.journal.earliest(log).await?;
    let earliest = earliest.map_or(log.head().seq + 1, |(seq, _)| seq);
    Ok(error::event_not_found(event_id, earliest))
}
