//! The catalogue: who may publish a type, to whom it goes, and what its data looks like. A tenant's
//! own entries lie over those that come with the hub.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, LazyLock};

use sha2::{Digest, Sha256};

/// Any product, or every one.
pub const ALL: &str = "*";

/// An entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventType {
    /// CloudEvents type.
    pub name: String,
    /// What it is for.
    pub purpose: String,
    /// Slugs of products that may publish it; `*` = any.
    pub sources: Vec<String>,
    /// Slugs of products that it goes to; `*` = every product.
    pub destinations: Vec<String>,
    /// JSON Schema of the data; empty = none.
    pub json_schema: Arc<str>,
    /// Data to copy from.
    pub example: String,
    /// It comes with the hub.
    pub built_in: bool,
    /// It will go away.
    pub deprecated: bool,
    /// Routing epoch that it is of; 0 if it comes with the hub.
    pub epoch: u64,
}

impl EventType {
    /// Whether a product may publish it.
    pub fn may_publish(&self, product: &str) -> bool {
        names(&self.sources, product)
    }

    /// Whether any product may publish it.
    pub fn comes_from_all(&self) -> bool {
        self.sources.iter().any(|slug| slug == ALL)
    }

    /// Whether it goes to every product.
    pub fn goes_to_all(&self) -> bool {
        self.destinations.iter().any(|slug| slug == ALL)
    }

    /// Whether the catalogue names a product as a destination.
    pub fn goes_to(&self, product: &str) -> bool {
        names(&self.destinations, product)
    }

    /// Whether both say the same, whenever they were stored.
    pub fn says_as(&self, other: &EventType) -> bool {
        let neutral = |entry: &EventType| EventType {
            built_in: false,
            epoch: 0,
            ..entry.clone()
        };
        neutral(self) == neutral(other)
    }

    /// Opaque version: another one after each change.
    pub fn etag(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.epoch.to_be_bytes());
        let lists = self.sources.iter().chain(&self.destinations);
        let texts = [&self.name, &self.purpose, &self.example];
        for part in texts.into_iter().chain(lists) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.update([u8::from(self.deprecated)]);
        hash.update(self.json_schema.as_bytes());
        let digest = hash.finalize();
        digest.iter().take(8).fold(String::new(), |mut hex, byte| {
            // Writing to a text cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// Memory that it takes, about, in bytes.
    fn bytes(&self) -> usize {
        let lists = self.sources.iter().chain(&self.destinations);
        let lists: usize = lists.map(|slug| slug.len() + size_of::<String>()).sum();
        let texts = self.name.len() * 2 + self.purpose.len() + self.example.len();
        size_of::<Self>() + texts + lists + self.json_schema.len()
    }
}

fn names(list: &[String], product: &str) -> bool {
    list.iter().any(|entry| entry == ALL || entry == product)
}

/// The catalogue of one tenant at one routing epoch.
#[derive(Debug)]
pub struct Catalogue {
    entries: BTreeMap<String, Arc<EventType>>,
    /// Memory of the tenant's own entries, about.
    own_bytes: usize,
    has_schemas: bool,
}

/// What all tenants without entries of their own share.
static BUILT_IN: LazyLock<Arc<Catalogue>> = LazyLock::new(|| {
    let entries = built_in()
        .into_iter()
        .map(|entry| (entry.name.clone(), Arc::new(entry)));
    Arc::new(Catalogue {
        entries: entries.collect(),
        own_bytes: 0,
        // Their data is not for the hub to say.
        has_schemas: false,
    })
});

impl Catalogue {
    /// The one of tenants without entries of their own.
    pub fn built_in() -> Arc<Catalogue> {
        BUILT_IN.clone()
    }

    /// The hub's with a tenant's own entries over it.
    pub fn with(own: Vec<EventType>) -> Arc<Catalogue> {
        if own.is_empty() {
            return Catalogue::built_in();
        }
        let has_schemas = own.iter().any(|entry| !entry.json_schema.is_empty());
        let mut entries = BUILT_IN.entries.clone();
        let own_bytes = own.iter().map(EventType::bytes).sum::<usize>();
        let shared = entries.len() * (size_of::<Arc<EventType>>() + 64);
        entries.extend(
            own.into_iter()
                .map(|entry| (entry.name.clone(), Arc::new(entry))),
        );
        Arc::new(Catalogue {
            entries,
            own_bytes: own_bytes + shared,
            has_schemas,
        })
    }

    /// The entry of a type, if it has one.
    pub fn find(&self, name: &str) -> Option<&Arc<EventType>> {
        self.entries.get(name)
    }

    /// The entries behind one name, by name.
    pub fn after(&self, name: &str) -> impl Iterator<Item = &Arc<EventType>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let behind = (Excluded(name.to_owned()), Unbounded);
        self.entries.range(behind).map(|(_, entry)| entry)
    }

    /// Whether the data of some types is checked.
    pub fn has_schemas(&self) -> bool {
        self.has_schemas
    }

    /// Memory that it takes beside the hub's, about, in bytes.
    pub fn bytes(&self) -> usize {
        self.own_bytes
    }
}

/// The entries that come with the hub.
fn built_in() -> Vec<EventType> {
    let entry = |name: &str, sources: &[&str], destinations: &[&str], purpose: &str| EventType {
        name: name.to_owned(),
        purpose: purpose.to_owned(),
        sources: sources.iter().map(|slug| (*slug).to_owned()).collect(),
        destinations: destinations.iter().map(|slug| (*slug).to_owned()).collect(),
        built_in: true,
        ..EventType::default()
    };
    let with_example = |entry: EventType, example: &str| EventType {
        example: example.to_owned(),
        ..entry
    };
    vec![
        with_example(
            entry(
                "alert.triggered",
                &["rmm", "security"],
                &["psa", "oncall"],
                "An alert opens a ticket and pages who is on call",
            ),
            r#"{"id":"al_7","severity":"critical","device":"srv-01","message":"Disk is full"}"#,
        ),
        with_example(
            entry(
                "company.updated",
                &[ALL],
                &[ALL],
                "A company changed somewhere; every product follows",
            ),
            r#"{"id":17,"name":"Acme Ltd","changed":["name"]}"#,
        ),
        with_example(
            entry(
                "invoice.created",
                &["books"],
                &["portal", "hub"],
                "A new invoice is shown to the customer",
            ),
            r#"{"id":"inv_2026_0042","company":17,"total":"119.00","currency":"EUR"}"#,
        ),
        with_example(
            entry(
                "ticket.created",
                &["psa"],
                &["portal", "hub"],
                "New ticket notification",
            ),
            r#"{"id":42,"title":"Printer is offline","priority":"normal","company":17}"#,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(name: &str) -> EventType {
        EventType {
            name: name.to_owned(),
            sources: vec!["psa".to_owned()],
            epoch: 3,
            ..EventType::default()
        }
    }

    #[test]
    fn own_entries_lie_over_those_of_the_hub() {
        let catalogue = Catalogue::with(vec![own("ticket.created"), own("ticket.solved")]);
        assert!(!catalogue.find("ticket.created").unwrap().built_in);
        assert!(catalogue.find("invoice.created").unwrap().built_in);
        let names: Vec<&str> = catalogue
            .after("company")
            .map(|entry| &*entry.name)
            .collect();
        let all = [
            "company.updated",
            "invoice.created",
            "ticket.created",
            "ticket.solved",
        ];
        assert_eq!(names, all);
        assert_eq!(catalogue.after("ticket.solved").count(), 0);
    }

    #[test]
    fn tenants_without_own_entries_share_one_catalogue() {
        let (one, two) = (Catalogue::with(Vec::new()), Catalogue::built_in());
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(one.bytes(), 0);
        assert!(Catalogue::with(vec![own("a")]).bytes() > size_of::<EventType>());
    }

    #[test]
    fn examples_of_the_hub_are_json() {
        for entry in built_in() {
            assert!(serde_json::from_str::<serde_json::Value>(&entry.example).is_ok());
        }
    }

    #[test]
    fn an_etag_is_of_the_content_and_of_its_epoch() {
        let entry = own("a");
        assert_eq!(entry.etag(), own("a").etag());
        let others = [
            EventType {
                epoch: 4,
                ..own("a")
            },
            EventType {
                deprecated: true,
                ..own("a")
            },
            EventType {
                json_schema: "{}".into(),
                ..own("a")
            },
            EventType {
                destinations: vec!["psa".to_owned()],
                sources: vec![],
                ..own("a")
            },
        ];
        for other in &others[..3] {
            assert_ne!(entry.etag(), other.etag());
        }
        assert!(entry.says_as(&others[0]) && !entry.says_as(&others[3]));
    }
}
