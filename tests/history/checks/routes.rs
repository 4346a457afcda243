//! The event log has one row for each event and destination that the catalogue or a filter names,
//! and says NOT_ROUTED exactly where the integration was off.

use std::collections::HashMap;

use super::Tenant;
use super::index::Logged;
use crate::history::filter::catalogue;
use crate::history::records::{Delivery, Durable, Micros, State};

/// The hub itself as a product: what it gets is settled at once.
pub const HUB: &str = "hub";

pub fn check(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    if tenant.listed.is_empty() && !tenant.log.is_empty() {
        found.push("the event log lists nothing".to_owned());
    }
    for event in &tenant.log {
        let rows = tenant.listed.get(&event.seen.sequence);
        let rows = rows.map_or(&[][..], Vec::as_slice);
        found.extend(destinations(tenant, event, rows));
        for row in rows {
            found.extend(route(tenant, event, row));
        }
    }
    found
}

/// Whether a durable subscription has an event, on or off.
pub fn takes(durable: &Durable, event: &Logged<'_>) -> bool {
    let named = Tenant::is_for(event.seen, &durable.product, !durable.default);
    named && (durable.default || durable.wanted.matches(event.seen))
}

fn destinations(tenant: &Tenant<'_>, event: &Logged<'_>, rows: &[&Delivery]) -> Vec<String> {
    let mut found = Vec::new();
    let at = format!("{} at {}", event.seen.id, event.seen.sequence);
    let mut left: HashMap<&str, usize> = HashMap::new();
    for row in rows {
        *left.entry(&row.subscription_id).or_default() += 1;
    }
    for durable in &tenant.durables {
        let id = durable.subscription_id.as_str();
        let count = left.remove(id).unwrap_or(0);
        let expected = usize::from(takes(durable, event));
        if count != expected {
            let name = &durable.name;
            found.push(format!("{at} has {count} rows for {name}, not {expected}"));
        }
    }
    // Default subscriptions that the run does not work with.
    let named = catalogue(&event.seen.kind).unwrap_or_default();
    let known = |product: &str| {
        let mut defaults = tenant.durables.iter().filter(|durable| durable.default);
        defaults.any(|durable| durable.product == product)
    };
    let others = named
        .iter()
        .filter(|product| !known(product) && **product != event.seen.product);
    let (others, rest) = (others.count(), left.values().sum::<usize>());
    if others != rest {
        found.push(format!(
            "{at} has {rest} rows for other products, not {others}"
        ));
    }
    found
}

fn route(tenant: &Tenant<'_>, event: &Logged<'_>, row: &Delivery) -> Option<String> {
    let at = format!(
        "{} at {} for {}",
        event.seen.id, event.seen.sequence, row.product
    );
    if row.product == HUB && row.state != State::Delivered {
        return Some(format!(
            "{at} is {:?}, but the hub settles it at once",
            row.state
        ));
    }
    let sent = tenant.sent.get(event.seen.id.as_str())?;
    let until = sent.acked.map_or(Micros::MAX, |(at, _)| at);
    let (on, off) = possible(tenant, &event.seen.product, &row.product, sent.at, until);
    let routed = tenant.was_routed(row);
    let allowed = if routed { on } else { off };
    (!allowed).then(|| {
        format!(
            "{at} is {:?}, but the integration was {} from {} to {}, while it was published",
            row.state,
            if routed { "off" } else { "on" },
            tenant.when(sent.at),
            tenant.when(until)
        )
    })
}

/// Whether an integration can have been on, and off, at some time of a span.
fn possible(
    tenant: &Tenant<'_>,
    source: &str,
    destination: &str,
    from: Micros,
    to: Micros,
) -> (bool, bool) {
    let switches = tenant.switches.get(&(source, destination));
    let switches = switches.map_or(&[][..], Vec::as_slice);
    let (mut on, mut off) = (false, false);
    // A new pair is on.
    let mut state = (Micros::MIN, true);
    let ends = switches.iter().map(|switch| (switch.ended, Some(switch)));
    for (end, next) in ends.chain([(Micros::MAX, None)]) {
        let (begin, enabled) = state;
        if begin <= to && from <= end {
            on |= enabled;
            off |= !enabled;
        }
        if let Some(next) = next {
            state = (next.began, next.enabled);
        }
    }
    (on, off)
}
