//! Filters and the first catalogue, written a second time from the contract, so that what the hub
//! sends is held against something that is not its own code.

use serde::{Deserialize, Serialize};

use super::records::Seen;

/// Types that the load publishes: with the catalogue, and outside of it.
pub const TICKET: &str = "ticket.created";
pub const ALERT: &str = "alert.triggered";
pub const TICK: &str = "load.tick";
pub const TICK_DEEP: &str = "load.tick.deep";

/// Where the catalogue of a new hub sends a type; `None` = it does not know the type.
pub fn catalogue(kind: &str) -> Option<&'static [&'static str]> {
    match kind {
        TICKET => Some(&["portal", "hub"]),
        ALERT => Some(&["psa", "oncall"]),
        _ => None,
    }
}

/// Which events a reader wants; conditions are joined by AND, empty ones match everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Patterns: `*` is one segment, a last `**` any number.
    pub types: Vec<String>,
    /// Slugs of publishing products.
    pub products: Vec<String>,
    /// The `partitionkey` begins so.
    pub key_prefix: String,
}

impl Wanted {
    pub fn types(types: &[&str]) -> Wanted {
        Wanted {
            types: types.iter().map(|kind| (*kind).to_owned()).collect(),
            ..Wanted::default()
        }
    }

    /// Whether an event matches, wherever it goes.
    pub fn matches(&self, event: &Seen) -> bool {
        let product = self.products.is_empty() || self.products.contains(&event.product);
        let kind = self.types.is_empty() || self.names(&event.kind);
        let key = self.key_prefix.is_empty() || event.key.starts_with(&self.key_prefix);
        product && kind && key
    }

    /// Whether it names the type, which an empty one does not.
    pub fn names(&self, kind: &str) -> bool {
        self.types.iter().any(|pattern| covers(pattern, kind))
    }
}

fn covers(pattern: &str, kind: &str) -> bool {
    let (mut wanted, mut given) = (pattern.split('.'), kind.split('.'));
    loop {
        match (wanted.next(), given.next()) {
            (Some("**"), Some(_)) | (None, None) => return true,
            (Some(wanted), Some(given)) if wanted == "*" || wanted == given => {}
            _ => return false,
        }
    }
}

/// FNV-1a: enough to tell data from other data.
pub fn digest(data: &str) -> u64 {
    data.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[test]
fn patterns_match_by_segments() {
    for (pattern, kind, expected) in [
        ("ticket.created", "ticket.created", true),
        ("ticket.created", "ticket.closed", false),
        ("load.*", "load.tick", true),
        ("load.*", "load.tick.deep", false),
        ("load.**", "load.tick", true),
        ("load.**", "load.tick.deep", true),
        ("load.**", "loads.tick", false),
        ("load.tick", "load", false),
    ] {
        assert_eq!(covers(pattern, kind), expected, "{pattern} {kind}");
    }
}
