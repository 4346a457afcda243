//! Events of the load, and how they are read back.

use std::collections::BTreeMap;

use hub_client::{Attr, CloudEvent, CloudEventAttributeValue, Data, EventRecord};

use crate::history::filter::{ALERT, TICK, TICK_DEEP, TICKET, digest};
use crate::history::records::{Event, Seen};
use crate::journal::random::Random;

/// The attribute that orders by key.
const KEY: &str = "partitionkey";
/// Keys of a tenant.
const KEYS: usize = 40;
const DATA_BYTES_MAX: usize = 400;

/// A new event of a product.
pub fn make(random: &mut Random, product: &str, id: String) -> Event {
    let kind = match (product, random.below(10)) {
        ("psa", 0..=5) => TICKET,
        ("rmm", 0..=6) => ALERT,
        (_, 0..=8) => TICK,
        _ => TICK_DEEP,
    };
    let key = match random.below(KEYS + 4) {
        none if none >= KEYS => String::new(),
        key => format!("key-{key}"),
    };
    let digest = digest(&data(&id, false));
    Event {
        kind: kind.to_owned(),
        key,
        digest,
        altered: false,
        id,
    }
}

/// The same with other data, which has to be refused.
pub fn alter(event: &Event) -> Event {
    Event {
        digest: digest(&data(&event.id, true)),
        altered: true,
        ..event.clone()
    }
}

/// What goes out.
pub fn encode(event: &Event, source: &str) -> CloudEvent {
    let mut attributes = BTreeMap::new();
    if !event.key.is_empty() {
        let attr = Some(Attr::CeString(event.key.clone()));
        attributes.insert(KEY.to_owned(), CloudEventAttributeValue { attr });
    }
    CloudEvent {
        id: event.id.clone(),
        source: source.to_owned(),
        spec_version: "1.0".to_owned(),
        r#type: event.kind.clone(),
        attributes,
        data: Some(Data::TextData(data(&event.id, event.altered))),
    }
}

/// Follows from the id, so that it can be sent again.
fn data(id: &str, altered: bool) -> String {
    let bytes = usize::try_from(digest(id)).unwrap_or(usize::MAX) % DATA_BYTES_MAX;
    let letter = if altered { "y" } else { "x" };
    format!("{id} {letter}{}", letter.repeat(bytes))
}

/// What came in.
pub fn seen(record: EventRecord) -> Seen {
    let event = record.event.unwrap_or_default();
    let key = match event
        .attributes
        .get(KEY)
        .and_then(|value| value.attr.clone())
    {
        Some(Attr::CeString(key)) => key,
        _ => String::new(),
    };
    let digest = match &event.data {
        Some(Data::TextData(text)) => digest(text),
        _ => 0,
    };
    Seen {
        sequence: record.sequence,
        id: event.id,
        kind: event.r#type,
        product: record.product,
        key,
        digest,
    }
}
