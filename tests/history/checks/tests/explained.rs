//! Spoiled answers of ExplainEvent.

use super::found;
use super::sample::{Sample, at};
use crate::history::records::{Explained, Line};

/// What is found if this is said of an event and a product.
fn said(sequence: u64, destination: &str, verdict: &str, cause: &str) -> Vec<String> {
    let mut sample = Sample::consumed();
    let explained = Explained {
        sequence,
        destination: destination.to_owned(),
        verdict: verdict.to_owned(),
        primary_cause: cause.to_owned(),
    };
    sample
        .dump
        .records
        .push(at(9.9, Line::Explained(explained)));
    found(&sample.history(), "explained")
}

#[test]
fn what_the_states_call_for_is_accepted() {
    for (sequence, destination, verdict, cause) in [
        (1, "portal", "VERDICT_WORKING", ""),
        (1, "hub", "VERDICT_WORKING", ""),
        (4, "portal", "VERDICT_BLOCKED", "EVT_ACKED"),
        (6, "portal", "VERDICT_BLOCKED", "EVT_CONSUMER_OUTCOME"),
        (1, "crm", "VERDICT_BLOCKED", "EVT_ROUTE_MATCHED"),
    ] {
        assert_eq!(said(sequence, destination, verdict, cause), [""; 0]);
    }
}

#[test]
fn another_verdict_or_cause_is_found() {
    for (sequence, destination, verdict, cause) in [
        (1, "portal", "VERDICT_BLOCKED", "EVT_ACKED"),
        (4, "portal", "VERDICT_WORKING", ""),
        (4, "portal", "VERDICT_BLOCKED", "EVT_CONSUMER_OUTCOME"),
        (6, "portal", "VERDICT_INCONCLUSIVE", ""),
        (1, "crm", "VERDICT_WORKING", ""),
    ] {
        let found = said(sequence, destination, verdict, cause);
        let text = format!("{sequence} for {destination} is {verdict} because of");
        assert!(found.len() == 1 && found[0].contains(&text), "{found:?}");
    }
}
