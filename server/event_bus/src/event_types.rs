//! The catalogue: who may publish a type, and to whom it goes.

/// An entry of the catalogue that comes with the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventType {
    /// CloudEvents type.
    pub name: &'static str,
    /// Slugs of products that may publish it; `*` = any.
    pub sources: &'static [&'static str],
    /// Slugs of products that it goes to; `*` = every product.
    pub destinations: &'static [&'static str],
    /// What it is for.
    pub purpose: &'static str,
}

/// The entries that come with the hub, by type.
pub const BUILT_IN: &[EventType] = &[
    EventType {
        name: "alert.triggered",
        sources: &["rmm", "security"],
        destinations: &["psa", "oncall"],
        purpose: "An alert opens a ticket and pages who is on call",
    },
    EventType {
        name: "company.updated",
        sources: &["*"],
        destinations: &["*"],
        purpose: "A company changed somewhere; every product follows",
    },
    EventType {
        name: "invoice.created",
        sources: &["books"],
        destinations: &["portal", "hub"],
        purpose: "A new invoice is shown to the customer",
    },
    EventType {
        name: "ticket.created",
        sources: &["psa"],
        destinations: &["portal", "hub"],
        purpose: "New ticket notification",
    },
];

/// The entry of a type, if it has one.
pub fn find(name: &str) -> Option<&'static EventType> {
    BUILT_IN.iter().find(|entry| entry.name == name)
}

impl EventType {
    /// Whether a product may publish it.
    pub fn may_publish(&self, product: &str) -> bool {
        names(self.sources, product)
    }

    /// Whether the catalogue names a product as a destination.
    pub fn goes_to(&self, product: &str) -> bool {
        names(self.destinations, product)
    }
}

fn names(list: &[&str], product: &str) -> bool {
    list.iter().any(|entry| *entry == "*" || *entry == product)
}
