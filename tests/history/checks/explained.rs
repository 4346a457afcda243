//! The Explain oracle: the verdict of ExplainEvent is the one that the states of the log call for.

use super::Tenant;
use crate::history::records::{Delivery, Explained, State};

/// A verdict, with the causes that may be given for it.
type Expected = (&'static str, &'static [&'static str]);

/// Verdicts of a destination with several subscriptions: the first one of these that any has.
const WORST_FIRST: [&str; 5] = [BLOCKED, FIXED, IN_PROGRESS, INCONCLUSIVE, WORKING];

const WORKING: &str = "VERDICT_WORKING";
const IN_PROGRESS: &str = "VERDICT_IN_PROGRESS";
const BLOCKED: &str = "VERDICT_BLOCKED";
const FIXED: &str = "VERDICT_FIXED_SINCE";
const INCONCLUSIVE: &str = "VERDICT_INCONCLUSIVE";

pub fn check(tenant: &Tenant<'_>) -> Vec<String> {
    let all = tenant.explained.iter();
    all.filter_map(|explained| explain(tenant, explained))
        .collect()
}

/// What is expected of an event for one subscription, when the run is over: nobody consumes any
/// more, and all integrations are on.
fn expected(row: &Delivery) -> Expected {
    match row.state {
        State::Delivered => (WORKING, &[""]),
        State::Failed => (BLOCKED, &["EVT_ACKED"]),
        State::Skipped => (BLOCKED, &["EVT_CONSUMER_OUTCOME"]),
        State::Expired => (BLOCKED, &["EVT_DELIVERED"]),
        // The integration was off when it was recorded.
        State::NotRouted => (FIXED, &["EVT_INTEGRATION_ENABLED"]),
        // Nobody is there to take it.
        State::Queued | State::KeyBlocked => (
            BLOCKED,
            &["EVT_SUBSCRIBER_CONNECTED", "EVT_NOT_BLOCKED_BY_EARLIER"],
        ),
        State::InFlight | State::RetryWait => (IN_PROGRESS, &[""]),
        State::Strange => (INCONCLUSIVE, &[""]),
    }
}

/// Nothing names the product.
const NOT_NAMED: Expected = (BLOCKED, &["EVT_ROUTE_MATCHED"]);

fn explain(tenant: &Tenant<'_>, explained: &Explained) -> Option<String> {
    let rows = tenant.listed.get(&explained.sequence).into_iter().flatten();
    let rows: Vec<_> = rows
        .filter(|row| row.product == explained.destination)
        .collect();
    let mut all: Vec<Expected> = rows.iter().map(|row| expected(row)).collect();
    if all.is_empty() {
        all.push(NOT_NAMED);
    }
    let has = |verdict: &&&str| all.iter().any(|(expected, _)| expected == *verdict);
    let verdict = WORST_FIRST
        .iter()
        .find(has)
        .copied()
        .unwrap_or(INCONCLUSIVE);
    let mut causes = all.iter().filter(|(expected, _)| *expected == verdict);
    let cause = causes.any(|(_, causes)| causes.contains(&explained.primary_cause.as_str()));
    (verdict != explained.verdict || !cause).then(|| {
        let states: Vec<State> = rows.iter().map(|row| row.state).collect();
        format!(
            "{} for {} is {} because of {:?}, but {states:?} call for {verdict}",
            explained.sequence, explained.destination, explained.verdict, explained.primary_cause
        )
    })
}
