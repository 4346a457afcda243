//! The products of the suite, by slug: all that the domains know of them.

use tonic::Code;

use crate::error::{Error, Result};

/// The slugs, in the order in which people read them.
pub const SLUGS: [&str; 12] = [
    "psa", "crm", "books", "rmm", "security", "portal", "cmdb", "voice", "oncall", "hub", "defend",
    "backups",
];

/// Most edits between a slug and what was probably meant by it.
const TYPING_ERRORS_MAX: usize = 2;

/// Longest text that is compared with the slugs, in characters.
const COMPARED_MAX: usize = 32;

/// Whether a product has this slug.
pub fn exists(slug: &str) -> bool {
    SLUGS.contains(&slug)
}

/// `PRODUCT_NOT_FOUND` unless a product has this slug.
pub fn require(slug: &str) -> Result<()> {
    if exists(slug) {
        Ok(())
    } else {
        Err(not_found(slug))
    }
}

/// `PRODUCT_NOT_FOUND`, with the slug that was probably meant.
pub fn not_found(slug: &str) -> Error {
    let list = SLUGS.join(" ");
    let (hint, meant) = match nearest(slug) {
        Some(meant) => (
            format!("Did you mean {meant}? The products are: {list}."),
            Some(meant),
        ),
        None => (format!("Use one of: {list}."), None),
    };
    let message = format!("There is no product {slug:?}. {hint}");
    let error = Error::new(Code::NotFound, "hub.platform", "PRODUCT_NOT_FOUND", message)
        .with("product", slug);
    match meant {
        Some(meant) => error.with("didYouMean", meant),
        None => error,
    }
}

/// The slug that is at most two edits away, case and punctuation aside.
fn nearest(text: &str) -> Option<&'static str> {
    let plain: Vec<char> = text
        .chars()
        .filter(|c| c.is_alphanumeric())
        .take(COMPARED_MAX + 1)
        .flat_map(char::to_lowercase)
        .collect();
    if plain.is_empty() || plain.len() > COMPARED_MAX {
        return None;
    }
    let distances = SLUGS.iter().map(|slug| (edits(&plain, slug), *slug));
    // A short text is near to everything: at least half of it has to be right.
    let most = TYPING_ERRORS_MAX.min(plain.len() / 2);
    distances
        .filter(|(edits, _)| *edits <= most)
        .min_by_key(|(edits, _)| *edits)
        .map(|d| d.1)
}

/// Edits from one text to the other; two neighbours that were swapped are one edit.
fn edits(from: &[char], to: &str) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=from.len()).collect();
    let mut previous = None;
    for (above, wanted) in to.chars().enumerate() {
        let mut row = vec![above + 1];
        for (at, have) in from.iter().enumerate() {
            let replaced = last[at] + usize::from(*have != wanted);
            let mut least = replaced.min(last[at + 1] + 1).min(row[at] + 1);
            if at > 0 && Some(*have) == previous && from[at - 1] == wanted {
                least = least.min(before[at - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
        previous = Some(wanted);
    }
    last[from.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_slug_is_told_what_was_meant() {
        for (typed, meant) in [
            ("PSA", Some("psa")),
            ("on-call", Some("oncall")),
            ("potral", Some("portal")),
            ("pas", Some("psa")),
            ("backup", Some("backups")),
            ("book", Some("books")),
            ("", None),
            ("x", None),
            ("accounting", None),
            (&"a".repeat(100_000), None),
        ] {
            assert_eq!(nearest(typed), meant, "{:.20}", typed);
        }
    }

    #[test]
    fn an_unknown_product_is_refused_with_the_list() {
        assert!(require("psa").is_ok());
        let error = require("crmm").unwrap_err();
        assert_eq!(error.reason(), "PRODUCT_NOT_FOUND");
        assert!(error.message().contains("books"), "{}", error.message());
        let meant = error
            .metadata()
            .iter()
            .find(|(key, _)| *key == "didYouMean");
        assert_eq!(meant.map(|(_, slug)| slug.as_str()), Some("crm"));
    }
}
