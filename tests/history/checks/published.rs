//! What was acknowledged is in the log: once, where it was said, as it was sent. The log is dense,
//! and has nothing that nobody sent.

use std::collections::HashMap;

use super::Tenant;
use super::routes::HUB;

pub fn check(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = dense(tenant);
    found.extend(content(tenant));
    found.extend(acknowledged(tenant));
    found.extend(refused(tenant));
    found.extend(destinations(tenant));
    found
}

/// Sequences follow each other, ids are there once, record times never decrease.
fn dense(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for two in tenant.log.windows(2) {
        let (one, two) = (&two[0], &two[1]);
        if two.seen.sequence != one.seen.sequence + 1 {
            let (before, after) = (one.seen.sequence, two.seen.sequence);
            found.push(format!("the log is not dense: {after} follows {before}"));
        }
        if two.record_time < one.record_time {
            found.push(format!(
                "record times decrease: {} at {} is recorded at {}, {} before it at {}",
                two.seen.id,
                two.seen.sequence,
                tenant.when(two.record_time),
                one.seen.id,
                tenant.when(one.record_time)
            ));
        }
    }
    let mut places: HashMap<&str, u64> = HashMap::new();
    for event in &tenant.log {
        let (id, sequence) = (event.seen.id.as_str(), event.seen.sequence);
        if let Some(before) = places.insert(id, sequence) {
            found.push(format!(
                "{id} is in the log twice: at {before} and at {sequence}"
            ));
        }
    }
    found
}

/// Every event of the log is one that somebody sent, as it was sent.
fn content(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    // The hub tells of changes by events of its own.
    let told = tenant.log.iter().filter(|event| event.seen.product != HUB);
    for event in told {
        let seen = event.seen;
        let at = format!("{} at {}", seen.id, seen.sequence);
        let Some(sent) = tenant.sent.get(seen.id.as_str()) else {
            found.push(format!("{at} was sent by nobody"));
            continue;
        };
        let made = sent.event;
        if (&made.kind, &made.key, made.digest) != (&seen.kind, &seen.key, seen.digest) {
            found.push(format!(
                "{at} is not as it was sent: {made:?}, but {seen:?}"
            ));
        }
        let product = tenant.batches[sent.batch].product;
        if product != seen.product {
            found.push(format!(
                "{at} is said to be of {}, not of {product}",
                seen.product
            ));
        }
    }
    found
}

fn acknowledged(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for (index, batch) in tenant.batches.iter().enumerate() {
        for (at, results) in &batch.acked {
            let whose = format!("{} batch {}", batch.publisher, batch.number);
            if results.len() != batch.events.len() {
                let (told, sent) = (results.len(), batch.events.len());
                found.push(format!("{whose}: {told} results for {sent} events"));
            }
            for (event, stored) in batch.events.iter().zip(*results) {
                let id = event.id.as_str();
                let said = format!("{id} of {whose}, acknowledged at {}", tenant.when(*at));
                if stored.sequence == 0 {
                    if !event.altered {
                        found.push(format!("{said}: refused without a reason"));
                    }
                    continue;
                }
                let place = tenant.place.get(id).copied();
                let removed = stored.sequence < tenant.earliest() && place.is_none();
                if event.altered {
                    found.push(format!("{said}: its id had been used with other data"));
                } else if place != Some(stored.sequence) && !removed {
                    let there = place.map_or("nowhere".into(), |place| format!("at {place}"));
                    found.push(format!("{said} at {}, but it is {there}", stored.sequence));
                }
                let first = &tenant.sent.get(id);
                let is_fresh = first.is_some_and(|first| first.batch == index);
                if stored.duplicate && is_fresh && batch.attempts == 1 {
                    found.push(format!("{said} as a duplicate, but it was sent once"));
                }
                let known = first.and_then(|first| first.acked);
                let before = known.filter(|(known, _)| *known < batch.sent);
                if let Some((known, _)) = before.filter(|_| !stored.duplicate) {
                    let known = tenant.when(known);
                    found.push(format!("{said} as new, but it was acknowledged at {known}"));
                }
            }
        }
    }
    found
}

/// Of a batch that was refused nothing is there.
fn refused(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for (index, batch) in tenant.batches.iter().enumerate() {
        let Some((at, reason)) = batch.refused else {
            continue;
        };
        let altered = batch.events.iter().any(|event| event.altered);
        if !altered || reason != "EVENT_ID_REUSED" {
            found.push(format!(
                "{} batch {} was refused at {} with {reason:?}, without a reason",
                batch.publisher,
                batch.number,
                tenant.when(at)
            ));
        }
        for event in tenant.fresh(index) {
            if let Some(place) = tenant.place.get(event.id.as_str()) {
                found.push(format!(
                    "{} of {} batch {} is at {place}, but was refused at {} with {reason}",
                    event.id,
                    batch.publisher,
                    batch.number,
                    tenant.when(at)
                ));
            }
        }
    }
    found
}

/// The acknowledgement counts the subscriptions that the log names.
fn destinations(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for batch in &tenant.batches {
        for (event, stored) in batch
            .acked
            .iter()
            .flat_map(|(_, results)| batch.events.iter().zip(*results))
        {
            let rows = tenant.listed.get(&stored.sequence);
            let Some(rows) = rows.filter(|_| !stored.duplicate) else {
                continue;
            };
            let flowing = rows.iter().filter(|row| tenant.was_routed(row));
            let count = flowing.count();
            if count != stored.destinations as usize {
                let told = stored.destinations;
                let (id, at) = (&event.id, stored.sequence);
                found.push(format!(
                    "{id} at {at} was acknowledged with {told} destinations, the log has {count}"
                ));
            }
        }
    }
    found
}
