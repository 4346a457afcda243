//! What the system log tells of keys, and of what else a cached decision depends on.

use std::sync::Arc;

use hub_core::error::{Error, Result};
use hub_core::journal::Segment;
use hub_proto::hub::event_bus::v1::CloudEvent;
use hub_proto::hub::event_bus::v1::cloud_event::Data;
use hub_proto::hub::event_bus::v1::cloud_event::cloud_event_attribute_value::Attr;
use prost::Message;

/// The type of the event that tells of a new key.
pub(crate) const CREATED: &str = "key.created";
/// The limit of all keys of a tenant was changed.
pub(crate) const TENANT_LIMITED: &str = "key.tenant_limited";
/// The limit of a key, and of those that it was rotated from, was changed.
pub(crate) const LIMITED: &str = "key.limited";
/// Types of events after which decisions about a key may be others.
const OF_KEYS: &str = "key.";
/// Types of events after which decisions about all keys may be others.
const OF_ALL: &str = "product.";
/// A subscription of a tenant to a product began or ended.
const OF_TENANT: &str = "product_subscription.";

/// Whose decisions are void.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Those of one key.
    Key(Arc<str>),
    /// Those of all keys of the tenant of the change; of all keys if there is none.
    All,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Its sequence in the system log.
    pub epoch: u64,
    /// Type of the event.
    pub kind: String,
    pub whose: Whose,
    /// Id of the tenant; empty = none.
    pub tenant_id: String,
    /// Routing epoch of the tenant, or of the hub, under which it is in force.
    pub routing_epoch: Option<u64>,
}

/// The changes in a segment of the system log behind a sequence.
pub(crate) fn read(segment: &Segment, after: u64) -> Result<Vec<Change>> {
    let damaged = |_| Error::internal("a segment of the system log is damaged");
    let run = segment.run().map_err(damaged)?;
    let mut changes = Vec::new();
    for (entry, seq) in run.entries.iter().zip(segment.first()..) {
        let kind = run.kinds.get(usize::from(entry.kind));
        let kind = kind.map_or("", |kind| kind.kind.as_str());
        let is_of_one = kind.starts_with(OF_KEYS);
        let is_of_all = kind.starts_with(OF_ALL) || kind.starts_with(OF_TENANT);
        if seq <= after || !(is_of_one || is_of_all) {
            continue;
        }
        let place = entry.event_start as usize..entry.event_end as usize;
        let event = run.records.get(place).unwrap_or_default();
        let event = CloudEvent::decode(event).map_err(Error::internal)?;
        let is_of_one = is_of_one && kind != TENANT_LIMITED && kind != LIMITED;
        changes.push(Change {
            epoch: seq,
            kind: kind.to_owned(),
            whose: match is_of_one {
                true => Whose::Key(text(&event, "subject").into()),
                false => Whose::All,
            },
            tenant_id: text(&event, "tenantid").to_owned(),
            routing_epoch: routing_epoch(&event),
        });
    }
    Ok(changes)
}

/// Of a change of what a tenant may use, or of the products.
fn routing_epoch(event: &CloudEvent) -> Option<u64> {
    let Some(Data::TextData(json)) = &event.data else {
        return None;
    };
    let data: serde_json::Value = serde_json::from_str(json).ok()?;
    data.get("routingEpoch")?.as_u64()
}

fn text<'a>(event: &'a CloudEvent, name: &str) -> &'a str {
    let value = event.attributes.get(name);
    match value.and_then(|value| value.attr.as_ref()) {
        Some(Attr::CeString(text)) => text,
        _ => "",
    }
}
