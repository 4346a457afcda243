//! The decision: does an event flow to a product? A pure function, used by whoever asks.

use hub_core::products;

use crate::event_types::{self, EventType};

/// Whether an event of this type from `source` flows to `destination`.
///
/// `chosen` says that the reader's own filter names the type: types outside the catalogue go only
/// to readers that ask for them. A product is never routed its own events.
pub fn flows(kind: &str, source: &str, destination: &str, chosen: bool) -> bool {
    if source == destination {
        return false;
    }
    match event_types::find(kind) {
        Some(entry) => entry.goes_to(destination),
        None => chosen,
    }
}

/// Durable subscriptions that an event goes to: every product has its default one.
pub fn destinations(entry: Option<&EventType>, source: &str) -> u32 {
    let Some(entry) = entry else { return 0 };
    let count = products::SLUGS
        .iter()
        .filter(|product| **product != source && entry.goes_to(product))
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_catalogue_routes_as_the_guide_says() {
        for (kind, source, destination, expected) in [
            ("ticket.created", "psa", "portal", true),
            ("ticket.created", "psa", "hub", true),
            ("ticket.created", "psa", "crm", false),
            ("alert.triggered", "rmm", "psa", true),
            ("alert.triggered", "security", "oncall", true),
            ("company.updated", "crm", "books", true),
            ("company.updated", "crm", "crm", false),
            ("invoice.created", "books", "portal", true),
            ("unheard.of", "psa", "portal", false),
        ] {
            assert_eq!(
                flows(kind, source, destination, false),
                expected,
                "{kind} {destination}"
            );
        }
        assert!(flows("unheard.of", "psa", "portal", true));
        assert!(!flows("ticket.created", "psa", "crm", true));
        assert_eq!(destinations(event_types::find("ticket.created"), "psa"), 2);
        assert_eq!(
            destinations(event_types::find("company.updated"), "crm"),
            11
        );
    }
}
