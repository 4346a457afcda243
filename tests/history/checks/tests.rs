//! Each check is fed histories that are wrong in one place, and has to say so.

mod consumers;
mod explained;
mod positions;
mod published;
mod redelivered;
mod sample;
mod subscriptions;

use super::{CHECKS, all};
use crate::history::records::Happening;
use crate::history::tracks::History;
use sample::Sample;

/// What the check of this name finds, and that the others find nothing.
fn found(history: &History, check: &str) -> Vec<String> {
    let (own, others): (Vec<_>, Vec<_>) = all(history)
        .into_iter()
        .partition(|violation| violation.check == check);
    assert!(others.is_empty(), "others than {check} found: {others:#?}");
    own.into_iter().map(|violation| violation.text).collect()
}

/// The check of this name, and perhaps others, find what contains these words.
fn expect(history: &History, check: &str, words: &str) {
    let found = all(history);
    let told = found
        .iter()
        .any(|one| one.check == check && one.text.contains(words));
    assert!(told, "{check} did not say {words:?}, but: {found:#?}");
}

#[test]
fn a_good_history_passes() {
    for sample in [Sample::new(), Sample::consumed(), Sample::redelivered()] {
        let found = all(&sample.history());
        assert!(found.is_empty(), "{found:#?}");
    }
}

#[test]
fn a_panic_is_found() {
    let mut sample = Sample::new();
    let panicked = Happening::Panicked("thread panicked at".to_owned());
    sample.world.records.push(sample::at(5.0, panicked));
    assert_eq!(found(&sample.history(), "panics"), ["thread panicked at"]);
}

#[test]
fn checks_have_names_of_their_own() {
    let mut names: Vec<_> = CHECKS.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CHECKS.len());
}
