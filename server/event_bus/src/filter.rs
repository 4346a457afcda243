//! Which events a reader wants: conditions joined by AND, values of one condition by OR.

mod mismatch;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hub_core::error::Result;
use hub_core::journal::Kind;
use hub_proto::hub::event_bus::v1::EventFilter;
use hub_proto::wire::{AttributeValue, CloudEventView, attribute_value::Attr};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::error;
use crate::routing::{self, Configuration, Event, Outcome};
pub use mismatch::Mismatch;

const TYPES_MAX: usize = 100;
const ATTRIBUTES_MAX: usize = 10;
const PATTERN_CHARS_MAX: usize = 255;

/// A filter, checked and ready to match.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    types: Vec<Pattern>,
    products: Vec<String>,
    attributes: Vec<Condition>,
}

/// A pattern of a type: literal segments, `*` for one, a last `**` for any number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern(Vec<Segment>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    One,
    Rest,
}

#[derive(Debug, Clone)]
struct Condition {
    name: String,
    value: String,
    prefix: bool,
}

/// Whose events a reader sees.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The reader's product.
    pub product: String,
    /// All events of the tenant, not only those routed to the product.
    pub all_products: bool,
}

impl Filter {
    /// Checks a filter. Errors: `FILTER_INVALID`.
    pub fn new(filter: &EventFilter) -> Result<Filter> {
        if filter.types.len() > TYPES_MAX {
            return Err(error::filter_invalid(
                "types",
                TYPES_MAX,
                "stands after the first 100",
            ));
        }
        if filter.attributes.len() > ATTRIBUTES_MAX {
            let problem = "has more than 10 conditions";
            return Err(error::filter_invalid("attributes", ATTRIBUTES_MAX, problem));
        }
        let types = filter
            .types
            .iter()
            .map(|text| Pattern::new(text))
            .collect::<Result<_>>()?;
        for product in &filter.products {
            let slug = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if product.is_empty() || !product.bytes().all(slug) {
                return Err(error::filter_invalid(
                    product,
                    0,
                    "is not the slug of a product",
                ));
            }
        }
        let attributes = filter
            .attributes
            .iter()
            .map(|(n, v)| Condition::new(n, v))
            .collect::<Result<_>>()?;
        Ok(Filter {
            types,
            products: filter.products.clone(),
            attributes,
        })
    }

    /// Whether all events of this product and type are out, whatever their attributes.
    /// Without a configuration events are not routed: the reader sees those of all products.
    pub fn admits(
        &self,
        kind: &Kind,
        scope: &Scope,
        configuration: Option<&Configuration>,
    ) -> bool {
        let named = self.types.iter().any(|pattern| pattern.matches(&kind.kind));
        if !self.types.is_empty() && !named {
            return false;
        }
        if !self.products.is_empty() && !self.products.contains(&kind.product) {
            return false;
        }
        let event = Event {
            kind: &kind.kind,
            source: &kind.product,
        };
        configuration.is_none_or(|configuration| {
            routing::flows(configuration, event, &scope.product, named) == Some(Outcome::Flows)
        })
    }

    /// Whether an encoded event matches, wherever it goes.
    pub fn takes(&self, event: Event<'_>, bytes: &Bytes) -> bool {
        self.covers(event.kind, event.source)
            && (!self.has_attributes() || self.matches_attributes(bytes.clone()))
    }

    /// Whether events of this type and product match, attributes aside, wherever they go.
    pub fn covers(&self, kind: &str, product: &str) -> bool {
        let of_type = self.types.iter().any(|pattern| pattern.matches(kind));
        let of_product = self.products.iter().any(|named| named == product);
        (self.types.is_empty() || of_type) && (self.products.is_empty() || of_product)
    }

    /// Whether it names types or products.
    pub fn narrows_kinds(&self) -> bool {
        !self.types.is_empty() || !self.products.is_empty()
    }

    /// The types, if it names some and none by a pattern; each once.
    pub fn literal_types(&self) -> Option<std::collections::BTreeSet<String>> {
        if self.types.is_empty() {
            return None;
        }
        self.types.iter().map(Pattern::literal).collect()
    }

    /// Whether an event has to be looked into.
    pub fn has_attributes(&self) -> bool {
        !self.attributes.is_empty()
    }

    /// Memory that it takes, about, in bytes.
    pub fn bytes(&self) -> usize {
        let segment = |segment: &Segment| match segment {
            Segment::Literal(text) => size_of::<Segment>() + text.len(),
            Segment::One | Segment::Rest => size_of::<Segment>(),
        };
        let of_type =
            |pattern: &Pattern| size_of::<Pattern>() + pattern.0.iter().map(segment).sum::<usize>();
        let of_attribute = |condition: &Condition| {
            size_of::<Condition>() + condition.name.len() + condition.value.len()
        };
        let of_product = |product: &String| size_of::<String>() + product.len();
        size_of::<Filter>()
            + self.types.iter().map(of_type).sum::<usize>()
            + self.products.iter().map(of_product).sum::<usize>()
            + self.attributes.iter().map(of_attribute).sum::<usize>()
    }

    /// Whether the attributes of an encoded event match.
    pub fn matches_attributes(&self, event: Bytes) -> bool {
        let Ok(view) = CloudEventView::decode(event) else {
            return false;
        };
        self.attributes
            .iter()
            .all(|condition| condition.matches(&view))
    }

    /// Tells filters apart in cursors; never 0, which means "any".
    pub fn fingerprint(filter: &EventFilter, scope: &Scope) -> u64 {
        let mut sorted = filter.clone();
        sorted.types.sort();
        sorted.types.dedup();
        sorted.products.sort();
        sorted.products.dedup();
        let mut hash = Sha256::new();
        hash.update([u8::from(scope.all_products)]);
        hash.update(scope.product.as_bytes());
        hash.update([0]);
        hash.update(sorted.encode_to_vec());
        let digest = hash.finalize();
        digest[..8]
            .iter()
            .fold(0, |value, b| value << 8 | u64::from(*b))
            | 1
    }
}

impl Pattern {
    fn new(text: &str) -> Result<Pattern> {
        if text.is_empty() || text.chars().count() > PATTERN_CHARS_MAX {
            return Err(error::filter_invalid(
                text,
                0,
                "must have 1 to 255 characters",
            ));
        }
        let last = text.split('.').count() - 1;
        let mut position = 0;
        let mut segments = Vec::with_capacity(last + 1);
        for (index, part) in text.split('.').enumerate() {
            let problem = match part {
                "" => Some("has an empty segment"),
                "**" if index != last => Some("has ** before its end"),
                "*" | "**" => None,
                part if part.contains('*') => Some("has a * that is not a whole segment"),
                part if part.chars().any(|c| c.is_whitespace() || c.is_control()) => {
                    Some("has a space")
                }
                _ => None,
            };
            if let Some(problem) = problem {
                return Err(error::filter_invalid(text, position, problem));
            }
            position += part.len() + 1;
            segments.push(match part {
                "*" => Segment::One,
                "**" => Segment::Rest,
                literal => Segment::Literal(literal.to_owned()),
            });
        }
        Ok(Pattern(segments))
    }

    /// The type, if it is one without wildcard.
    fn literal(&self) -> Option<String> {
        let mut parts = Vec::with_capacity(self.0.len());
        for segment in &self.0 {
            let Segment::Literal(text) = segment else {
                return None;
            };
            parts.push(text.as_str());
        }
        Some(parts.join("."))
    }

    fn matches(&self, kind: &str) -> bool {
        let mut parts = kind.split('.');
        for segment in &self.0 {
            let matched = match segment {
                Segment::Rest => return true,
                Segment::One => parts.next().is_some(),
                Segment::Literal(literal) => parts.next() == Some(literal),
            };
            if !matched {
                return false;
            }
        }
        parts.next().is_none()
    }
}

impl Condition {
    fn new(name: &str, value: &str) -> Result<Condition> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            return Err(error::filter_invalid(
                name,
                0,
                "is not the name of an attribute",
            ));
        }
        let (value, prefix) = match value.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (value, false),
        };
        if let Some(position) = value.find('*') {
            return Err(error::filter_invalid(
                value,
                position,
                "has a * before its end",
            ));
        }
        Ok(Condition {
            name: name.into(),
            value: value.into(),
            prefix,
        })
    }

    fn matches(&self, view: &CloudEventView) -> bool {
        self.value_of(view).is_some_and(|value| self.holds(&value))
    }

    /// The attribute that it is about.
    fn value_of(&self, view: &CloudEventView) -> Option<Bytes> {
        let plain = match self.name.as_str() {
            "id" => Some(&view.id),
            "source" => Some(&view.source),
            "type" => Some(&view.r#type),
            "specversion" => Some(&view.spec_version),
            _ => None,
        };
        if let Some(plain) = plain {
            return Some(plain.clone());
        }
        // A map entry may come twice on the wire: the last one counts, as for every decoder.
        let entry = view
            .attributes
            .iter()
            .rev()
            .find(|entry| entry.key == self.name.as_bytes());
        let value = entry.and_then(|entry| entry.value.as_ref());
        value.and_then(text)
    }

    fn holds(&self, value: &[u8]) -> bool {
        match self.prefix {
            true => value.starts_with(self.value.as_bytes()),
            false => value == self.value.as_bytes(),
        }
    }
}

/// An attribute as CloudEvents writes it as a string.
fn text(value: &AttributeValue) -> Option<Bytes> {
    Some(match value.attr.as_ref()? {
        Attr::CeBoolean(value) => Bytes::from(value.to_string()),
        Attr::CeInteger(value) => Bytes::from(value.to_string()),
        Attr::CeString(value) | Attr::CeUri(value) | Attr::CeUriRef(value) => value.clone(),
        Attr::CeBytes(value) => Bytes::from(STANDARD.encode(value)),
        Attr::CeTimestamp(value) => Bytes::from(value.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> Kind {
        Kind {
            product: "psa".into(),
            kind: name.into(),
        }
    }

    fn all(product: &str) -> Scope {
        Scope {
            product: product.into(),
            all_products: true,
        }
    }

    fn filter(types: &[&str]) -> Result<Filter> {
        let types = types.iter().map(|t| (*t).to_owned()).collect();
        Filter::new(&EventFilter {
            types,
            ..Default::default()
        })
    }

    #[test]
    fn one_star_is_one_segment_and_two_are_any_number() {
        for (pattern, name, expected) in [
            ("ticket.created", "ticket.created", true),
            ("ticket.*", "ticket.created", true),
            ("ticket.*", "ticket.note.added", false),
            ("ticket.*", "ticket", false),
            ("ticket.**", "ticket.note.added", true),
            ("ticket.**", "tickets.created", false),
            ("*.created", "ticket.created", true),
            ("**", "anything.at.all", true),
        ] {
            let admitted = filter(&[pattern])
                .unwrap()
                .admits(&kind(name), &all("crm"), None);
            assert_eq!(admitted, expected, "{pattern} {name}");
        }
    }

    #[test]
    fn malformed_patterns_are_refused_with_their_position() {
        for (pattern, position) in [
            ("", "0"),
            ("ticket..x", "7"),
            ("**.x", "0"),
            ("a.tick*", "2"),
            ("a b", "0"),
        ] {
            let error = filter(&[pattern]).unwrap_err();
            assert_eq!(error.reason(), "FILTER_INVALID");
            assert_eq!(error.metadata()[1].1, position, "{pattern}");
        }
        assert!(filter(&vec!["a"; 101]).is_err());
    }

    #[test]
    fn attributes_match_exactly_or_by_prefix() {
        use hub_proto::hub::event_bus::v1::CloudEvent;
        use hub_proto::hub::event_bus::v1::cloud_event::cloud_event_attribute_value::Attr;
        let mut event = CloudEvent {
            id: "7".into(),
            ..Default::default()
        };
        let subject = hub_proto::hub::event_bus::v1::cloud_event::CloudEventAttributeValue {
            attr: Some(Attr::CeString("ticket/42".into())),
        };
        event.attributes.insert("subject".into(), subject);
        let bytes = Bytes::from(event.encode_to_vec());
        for (name, value, expected) in [
            ("subject", "ticket/42", true),
            ("subject", "ticket/*", true),
            ("subject", "ticket/4", false),
            ("id", "7", true),
            ("time", "*", false),
        ] {
            let attributes = [(name.to_owned(), value.to_owned())].into();
            let filter = Filter::new(&EventFilter {
                attributes,
                ..Default::default()
            })
            .unwrap();
            assert_eq!(
                filter.matches_attributes(bytes.clone()),
                expected,
                "{name} {value}"
            );
            let plain = Event {
                kind: "ticket.created",
                source: "psa",
            };
            let mismatch = filter.mismatch(plain, &bytes);
            let seen = if name == "time" { "" } else { "ticket/42" };
            let failed = (!expected).then(|| Mismatch {
                condition: name.to_owned(),
                wanted: value.to_owned(),
                seen: seen.to_owned(),
            });
            assert_eq!(mismatch, failed);
        }
    }

    #[test]
    fn the_order_of_values_does_not_change_a_filter() {
        let make = |types: &[&str]| EventFilter {
            types: types.iter().map(|t| (*t).to_owned()).collect(),
            ..Default::default()
        };
        let scope = all("crm");
        let one = Filter::fingerprint(&make(&["a", "b"]), &scope);
        assert_eq!(one, Filter::fingerprint(&make(&["b", "a", "a"]), &scope));
        assert_ne!(one, Filter::fingerprint(&make(&["a"]), &scope));
    }
}
