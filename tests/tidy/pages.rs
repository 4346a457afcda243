//! Reasons and checks, and their pages.

use std::collections::BTreeSet;

use hub_proto::reasons::reasons;

use super::crates::domains;
use super::rules::keep;
use super::source::{Source, files, sources};

/// Said on the page of a reason that nothing returns yet.
const UNUSED: &str = "No RPC of this version returns it yet";

/// Names of the pages in a folder of `docs`.
fn pages(folder: &str) -> BTreeSet<String> {
    let files = files(&["md"]);
    let names = files.iter().filter_map(|file| {
        file.path
            .strip_prefix(folder)?
            .strip_suffix(".md")
            .map(str::to_owned)
    });
    names.collect()
}

/// Reasons of core and of the domains that are built.
fn built_reasons() -> BTreeSet<String> {
    let built: Vec<String> = domains().iter().map(|name| format!("hub.{name}")).collect();
    let of_built = |domain: &str| domain == "hub.core" || built.iter().any(|name| name == domain);
    let names = reasons().iter().filter(|reason| of_built(reason.domain));
    names.map(|reason| reason.name.to_owned()).collect()
}

/// Codes of checks: constants of a domain with the three letters of its prefix, as `EVT_…`.
fn check_codes(source: &Source) -> BTreeSet<String> {
    let server = source.path.starts_with("server/");
    let texts = source
        .tokens
        .iter()
        .filter(|token| server && !token.test && !token.word);
    let codes = texts.filter_map(|token| {
        let text = token.text.strip_prefix('"')?.strip_suffix('"')?;
        let (prefix, _) = text.split_once('_')?;
        let upper = text
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b == b'_' || b.is_ascii_digit());
        (["EVT", "WHK", "KEY", "ENT", "DUP"].contains(&prefix) && upper).then(|| text.to_owned())
    });
    codes.collect()
}

/// What is in one set and not in the other.
fn differences(named: &BTreeSet<String>, pages: &BTreeSet<String>, folder: &str) -> Vec<String> {
    let missing = named
        .difference(pages)
        .map(|name| format!("{folder}{name}.md is missing"));
    let orphans = pages
        .difference(named)
        .map(|name| format!("{folder}{name}.md is of nothing"));
    missing.chain(orphans).collect()
}

#[test]
fn every_reason_has_its_page_and_no_page_is_left_over() {
    let folder = "docs/errors/";
    keep(
        "pages",
        differences(&built_reasons(), &pages(folder), folder),
    );
}

#[test]
fn every_check_has_its_page_and_no_page_is_left_over() {
    let reasons: BTreeSet<String> = reasons().iter().map(|r| r.name.to_owned()).collect();
    let codes: BTreeSet<String> = sources().iter().flat_map(check_codes).collect();
    let codes: BTreeSet<String> = codes.difference(&reasons).cloned().collect();
    let folder = "docs/checks/";
    keep(
        "pages of checks",
        differences(&codes, &pages(folder), folder),
    );
}

/// A reason counts as returned where code that is not a test names it.
#[test]
fn a_page_says_that_nothing_returns_its_reason_as_long_as_that_is_so() {
    let sources = sources();
    let code = sources
        .iter()
        .filter(|source| source.path.starts_with("server/"));
    let texts = code.flat_map(|source| source.tokens.iter().filter(|token| !token.test));
    let returned: BTreeSet<&str> = texts.map(|token| token.text.trim_matches('"')).collect();
    let mut wrong = Vec::new();
    for file in files(&["md"]) {
        let name = file
            .path
            .strip_prefix("docs/errors/")
            .and_then(|n| n.strip_suffix(".md"));
        let Some(name) = name else { continue };
        let says_unused = file.text.contains(UNUSED);
        if returned.contains(name) == says_unused {
            let is = if says_unused {
                "is returned"
            } else {
                "is returned by nothing"
            };
            wrong.push(format!(
                "{}: {name} {is}, and the page says otherwise",
                file.path
            ));
        }
    }
    keep("pages", wrong);
}

#[test]
fn missing_pages_and_pages_of_nothing_are_found() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let found = differences(&set(&["A", "B"]), &set(&["B", "C"]), "docs/errors/");
    assert_eq!(
        found,
        [
            "docs/errors/A.md is missing",
            "docs/errors/C.md is of nothing"
        ]
    );
    let text = "const A: &str = \"EVT_INTEGRATION_ENABLED\"; // \"EVT_B\"\nfn f() { \"EVT_\"; }";
    let codes = check_codes(&Source::parse("server/event_bus/src/explain.rs", text));
    assert!(
        codes.contains("EVT_INTEGRATION_ENABLED") && !codes.contains("EVT_B"),
        "{codes:?}"
    );
}
