//! Why an event does not match a filter.

use bytes::Bytes;
use hub_proto::wire::CloudEventView;
use prost::Message;

use super::{Filter, Pattern, Segment};
use crate::routing::Event;

/// A condition that an event does not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// `types`, `products`, or the name of an attribute.
    pub condition: String,
    /// What the filter takes.
    pub wanted: String,
    /// What the event has; empty if it has no such attribute.
    pub seen: String,
}

impl Filter {
    /// The first condition that an encoded event does not meet; `None` if it matches.
    pub fn mismatch(&self, event: Event<'_>, bytes: &Bytes) -> Option<Mismatch> {
        let mismatch = |condition: &str, wanted: String, seen: &str| Mismatch {
            condition: condition.to_owned(),
            wanted,
            seen: seen.to_owned(),
        };
        if !self.types.is_empty() && !self.types.iter().any(|type_| type_.matches(event.kind)) {
            let types: Vec<String> = self.types.iter().map(Pattern::text).collect();
            return Some(mismatch("types", types.join(" "), event.kind));
        }
        if !self.products.is_empty() && !self.products.iter().any(|slug| slug == event.source) {
            return Some(mismatch("products", self.products.join(" "), event.source));
        }
        let view = CloudEventView::decode(bytes.clone()).ok()?;
        let mut conditions = self.attributes.iter();
        let failed = conditions.find(|condition| !condition.matches(&view))?;
        let seen = failed.value_of(&view).unwrap_or_default();
        let star = if failed.prefix { "*" } else { "" };
        let wanted = format!("{}{star}", failed.value);
        Some(mismatch(
            &failed.name,
            wanted,
            &String::from_utf8_lossy(&seen),
        ))
    }
}

impl Pattern {
    fn text(&self) -> String {
        let segments = self.0.iter().map(|segment| match segment {
            Segment::Literal(text) => text.as_str(),
            Segment::One => "*",
            Segment::Rest => "**",
        });
        segments.collect::<Vec<_>>().join(".")
    }
}
