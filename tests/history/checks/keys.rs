//! Order: an event is first handed out after the earlier ones of its key were settled, and at most
//! one event of a key is leased at a time.

use std::collections::HashMap;

use super::Tenant;
use super::routes::takes;
use super::stories::{Story, may_have_moved};
use crate::history::records::{Durable, Micros, Ordering, State};

pub fn check(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for durable in &tenant.durables {
        let Some(stories) = tenant.stories.get(durable.subscription_id.as_str()) else {
            continue;
        };
        found.extend(successive(tenant, durable, stories));
        found.extend(exclusive(tenant, durable, stories));
    }
    found
}

/// By what an event is ordered; `None` = by nothing.
fn key_of<'a>(durable: &Durable, key: &'a str) -> Option<&'a str> {
    match durable.ordering {
        Ordering::ByKey => Some(key).filter(|key| !key.is_empty()),
        Ordering::Total => Some(""),
        Ordering::None => None,
    }
}

/// A predecessor in the way: when it was settled at the earliest, and its sequence.
type Before = (Micros, u64);

fn successive(tenant: &Tenant<'_>, durable: &Durable, stories: &[Story<'_>]) -> Vec<String> {
    let mut by_event: HashMap<u64, Vec<&Story<'_>>> = HashMap::new();
    for story in stories {
        by_event.entry(story.sequence()).or_default().push(story);
    }
    let mut latest: HashMap<&str, Before> = HashMap::new();
    let mut found = Vec::new();
    for event in &tenant.log {
        let sequence = event.seen.sequence;
        let row = tenant.row(sequence, &durable.subscription_id);
        let routed = row.is_some_and(|row| row.state != State::NotRouted);
        let Some(key) = key_of(durable, &event.seen.key).filter(|_| routed) else {
            continue;
        };
        let stories = by_event.get(&sequence).map_or(&[][..], Vec::as_slice);
        let before = latest.entry(key).or_insert((Micros::MIN, 0));
        if let Some(first) = stories.first().filter(|first| first.began < before.0) {
            let settled = match before.0 {
                Micros::MAX => "never settled".to_owned(),
                at => format!("settled at {} at the earliest", tenant.when(at)),
            };
            found.push(format!(
                "{}: {sequence} of key {key:?} was leased to {} at {}, but {} before it was {}",
                durable.name,
                first.consumer,
                tenant.when(first.began),
                before.1,
                settled
            ));
        }
        // What is delivered again may be behind what came after it.
        if tenant.again(sequence, &durable.subscription_id).is_some() {
            continue;
        }
        // A key does not go on behind a failure that blocks it.
        let settled = settled(tenant, durable, (sequence, stories), !durable.block_key);
        *before = (*before).max((settled, sequence));
    }
    found
}

/// When an event was settled at the earliest, or failed if that counts; the beginning of time, if
/// nobody who writes was there.
pub fn settled(
    tenant: &Tenant<'_>,
    durable: &Durable,
    (sequence, stories): (u64, &[&Story<'_>]),
    or_failed: bool,
) -> Micros {
    let settled = stories
        .iter()
        .filter_map(|story| story.settled(durable, or_failed));
    let seen = stories
        .iter()
        .map(|story| story.leased.attempt)
        .max()
        .unwrap_or(0);
    let row = tenant.row(sequence, &durable.subscription_id);
    // The last attempt was lost on its way to the consumer.
    let unseen = row.is_some_and(|row| match row.state {
        State::Failed => or_failed && row.attempts > seen,
        State::Expired => true,
        _ => false,
    });
    match unseen {
        true => Micros::MIN,
        false => settled.min().unwrap_or(Micros::MAX),
    }
}

fn exclusive(tenant: &Tenant<'_>, durable: &Durable, stories: &[Story<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    let mut held: HashMap<(u64, &str), Vec<&Story<'_>>> = HashMap::new();
    for story in stories {
        let event = &story.leased.event;
        let place = match key_of(durable, &event.key) {
            Some(key) => (0, key),
            None => (event.sequence, ""),
        };
        let others = held.entry(place).or_default();
        others.retain(|other| other.held_until(&tenant.troubles) > story.began);
        for other in others.iter() {
            let moved = other.epoch() != story.epoch()
                && may_have_moved(&tenant.troubles, other.began, story.began);
            if moved {
                continue;
            }
            found.push(format!(
                "{}: {} was leased to {} at {} ({}), while {} was leased to {} from {} to {} ({})",
                durable.name,
                event.sequence,
                story.consumer,
                tenant.when(story.began),
                story.leased.lease,
                other.sequence(),
                other.consumer,
                tenant.when(other.began),
                tenant.when(other.held_until(&tenant.troubles)),
                other.leased.lease
            ));
        }
        others.push(story);
    }
    found
}

/// Events that a subscription was to deliver, for the checks of what became of them.
pub fn routed<'a>(
    tenant: &'a Tenant<'_>,
    durable: &'a Durable,
) -> impl Iterator<Item = (u64, &'a crate::history::records::Delivery)> {
    let mine = tenant.log.iter().filter(|event| takes(durable, event));
    mine.filter_map(|event| {
        let row = tenant.row(event.seen.sequence, &durable.subscription_id)?;
        Some((event.seen.sequence, row))
    })
}
