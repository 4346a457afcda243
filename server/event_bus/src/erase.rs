//! Erasure for data protection: what is left of an event are its sequence, its required attributes
//! and its deliveries.

use hub_core::audit::{self, Change, Changes};
use hub_core::auth::Caller;
use hub_core::error::{Error, Result};
use hub_core::id;
use hub_core::journal::Log;
use hub_core::module::Core;
use hub_core::storage::Tx;
use hub_proto::hub::event_bus::v1::CloudEvent;
use prost::Message;
use std::sync::Arc;

use crate::log;
use crate::visibility::Viewer;

/// Full name of the call, for the audit log.
const ACTION: &str = "hub.event_bus.v1.EventBus/EraseEvents";
/// Segments that one transaction rewrites, each of at most about 1 MiB.
const CHUNK_SEGMENTS_MAX: usize = 8;

/// Erases events of the caller's tenant, and returns how many had something to erase. All of them
/// are looked for before the first is erased. A product erases what it published; who sees all
/// events erases any.
///
/// Errors: `EVENT_NOT_FOUND`.
pub(crate) async fn erase(
    core: &Core,
    caller: &Caller,
    event_ids: &[String],
    reason: &str,
) -> Result<u32> {
    let log = core.journal.log(caller.tenant()?).await?;
    let mut seqs = find_all(core, caller, &log, event_ids).await?;
    let mut erased = 0;
    while !seqs.is_empty() {
        let mut tx = core.db.begin().await?;
        let mut changed = Vec::new();
        for _ in 0..CHUNK_SEGMENTS_MAX {
            let tenant = log.tenant();
            let of_segment = core.journal.erase(&mut tx, tenant, &mut seqs, &reduce);
            changed.append(&mut of_segment.await?);
        }
        for seq in &changed {
            record(core, caller, &mut tx, &log, *seq, reason).await?;
        }
        erased += changed.len();
        commit(core, tx, &log).await?;
    }
    Ok(u32::try_from(erased).unwrap_or(u32::MAX))
}

/// The sequences of events that exist and that the caller may erase.
async fn find_all(
    core: &Core,
    caller: &Caller,
    log: &Arc<Log>,
    event_ids: &[String],
) -> Result<Vec<u64>> {
    let viewer = Viewer::of(caller);
    let mut asked = Vec::with_capacity(event_ids.len());
    for event_id in event_ids {
        match log::of_id(log, event_id) {
            Some(seq) => asked.push(seq),
            None => return Err(log::not_found(core, log, event_id).await?),
        }
    }
    asked.sort_unstable();
    asked.dedup();
    let mut held = None;
    for seq in &asked {
        let holds = |held: &Arc<hub_core::journal::Segment>| held.last() >= *seq;
        if !held.as_ref().is_some_and(holds) {
            held = log::find(core, log, *seq).await?;
        }
        let stored = match &held {
            Some(segment) => segment.event_at(*seq).map_err(Error::internal)?,
            None => None,
        };
        if !stored.is_some_and(|stored| viewer.sees_product(stored.product)) {
            let event_id = id::event(log.tenant().key(*seq));
            return Err(log::not_found(core, log, &event_id).await?);
        }
    }
    Ok(asked)
}

async fn record(
    core: &Core,
    caller: &Caller,
    tx: &mut Tx,
    log: &Log,
    seq: u64,
    reason: &str,
) -> Result<()> {
    let event_id = id::event(log.tenant().key(seq));
    let changes = Changes::new()
        .field("event", "stored", "erased")
        .field("reason", "", reason);
    let change = Change {
        caller,
        action: ACTION,
        resource: &event_id,
        changes,
        time: core.clock.now(),
    };
    audit::record(tx, log.tenant(), change).await?;
    Ok(())
}

/// In a task of its own: a caller that goes away must not leave what was erased in memory.
async fn commit(core: &Core, tx: Tx, log: &Arc<Log>) -> Result<()> {
    let (journal, log) = (core.journal.clone(), log.clone());
    let committing = tokio::spawn(async move {
        let done = tx.commit().await;
        // Also if it is not known whether it was committed.
        journal.forget(&log);
        done
    });
    committing.await.map_err(Error::internal)??;
    Ok(())
}

/// The event without payload and without the attributes that CloudEvents does not require; `None`
/// if it has nothing else.
fn reduce(event: &[u8]) -> Option<Vec<u8>> {
    let event = CloudEvent::decode(event).ok()?;
    if event.attributes.is_empty() && event.data.is_none() {
        return None;
    }
    let left = CloudEvent {
        id: event.id,
        source: event.source,
        spec_version: event.spec_version,
        r#type: event.r#type,
        ..CloudEvent::default()
    };
    Some(left.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hub_proto::hub::event_bus::v1::cloud_event::Data;

    #[test]
    fn what_is_required_stays_and_an_event_is_erased_once() {
        let mut event = CloudEvent {
            id: "1".into(),
            source: "/psa".into(),
            spec_version: "1.0".into(),
            r#type: "ticket.created".into(),
            data: Some(Data::TextData("secret".into())),
            ..CloudEvent::default()
        };
        event
            .attributes
            .insert("subject".into(), Default::default());
        let left = reduce(&event.encode_to_vec()).unwrap();
        let decoded = CloudEvent::decode(left.as_slice()).unwrap();
        assert_eq!((&*decoded.id, &*decoded.r#type), ("1", "ticket.created"));
        assert!(decoded.data.is_none() && decoded.attributes.is_empty());
        assert_eq!(reduce(&left), None);
    }
}
