//! What ExplainEvent says of many events and destinations, of each kind some.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use hub_client::Hub;
use hub_client::proto::hub::event_bus::v1::ExplainEventRequest;
use hub_client::proto::hub::event_bus::v1::explain_event_request::Event as Asked;

use super::filter::catalogue;
use super::records::{Explained, Line, State};
use super::tracks::Recorder;
use crate::journal::random::Random;

/// Pairs of a tenant that are asked for.
const PAIRS: usize = 520;
/// Pairs in one combination of states, if there are enough others.
const OF_A_KIND: usize = 50;
/// Calls at a time.
const AT_ONCE: usize = 8;
/// A product that nothing is routed to.
const BYSTANDER: &str = "crm";
/// One bystander for so many events.
const BYSTANDER_EVERY: u64 = 20;

/// Event by sequence, and the slug of the destination.
type Pair = (u64, String);

/// Asks for some, and notes what is said. `ids` are the hub's, by sequence.
pub async fn explain(
    hub: &Hub,
    recorder: &mut Recorder<(), Line>,
    ids: &BTreeMap<u64, String>,
    random: &mut Random,
) {
    let pairs = choose(recorder, random);
    let asked = pairs.into_iter().map(|(sequence, destination)| {
        let request = ExplainEventRequest {
            event: Some(Asked::EventId(ids[&sequence].clone())),
            destination: destination.clone(),
        };
        async move {
            let answer = hub.event_bus().explain_event(request).await;
            let said = answer.unwrap().into_inner().explanation.unwrap_or_default();
            Explained {
                sequence,
                destination,
                verdict: said.verdict().as_str_name().to_owned(),
                primary_cause: said.primary_cause,
            }
        }
    });
    let mut answers = futures_util::stream::iter(asked).buffered(AT_ONCE);
    while let Some(explained) = answers.next().await {
        recorder.note(Line::Explained(explained));
    }
}

/// Some of each combination of states, then any.
fn choose(recorder: &Recorder<(), Line>, random: &mut Random) -> Vec<Pair> {
    let mut states: BTreeMap<Pair, Vec<State>> = BTreeMap::new();
    for line in recorder.records() {
        match &line.record {
            Line::Listed(row) => {
                let pair = (row.sequence, row.product.clone());
                states.entry(pair).or_default().push(row.state);
            }
            // Outside the catalogue a product may have what it likes.
            Line::Event { seen, .. }
                if seen.sequence.is_multiple_of(BYSTANDER_EVERY)
                    && catalogue(&seen.kind).is_some() =>
            {
                states
                    .entry((seen.sequence, BYSTANDER.to_owned()))
                    .or_default();
            }
            _ => {}
        }
    }
    let mut kinds: BTreeMap<Vec<State>, Vec<Pair>> = BTreeMap::new();
    for (pair, mut states) in states {
        states.sort_unstable();
        kinds.entry(states).or_default().push(pair);
    }
    let (mut chosen, mut others) = (Vec::new(), Vec::new());
    for mut pairs in kinds.into_values() {
        for _ in 0..OF_A_KIND.min(pairs.len()) {
            chosen.push(pairs.swap_remove(random.below(pairs.len())));
        }
        others.append(&mut pairs);
    }
    while chosen.len() < PAIRS && !others.is_empty() {
        chosen.push(others.swap_remove(random.below(others.len())));
    }
    chosen
}
