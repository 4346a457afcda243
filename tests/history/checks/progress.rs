//! What consumers are told of a subscription's position: everything up to it is settled, and who is
//! told that nothing is left has seen what was there when it came.

use std::collections::HashMap;

use super::Tenant;
use super::keys::{routed, settled};
use super::stories::Story;
use crate::history::records::{Consumption, Durable, Micros};
use crate::history::tracks::Consumer;

/// What one process has stored is known to all others by then.
const KNOWN: Micros = 5_000_000;

pub fn check(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for durable in &tenant.durables {
        let settled = Settled::new(tenant, durable);
        let id = &durable.subscription_id;
        let consumers = tenant.consumers.iter();
        for consumer in consumers.filter(|one| one.header.about.subscription_id == *id) {
            found.extend(settled.check(tenant, consumer));
        }
    }
    found
}

/// The events of a subscription that were delivered once.
struct Settled<'a> {
    durable: &'a Durable,
    /// By sequence: until when any up to it was not settled, and which.
    until: Vec<(u64, Micros, u64)>,
}

impl<'a> Settled<'a> {
    fn new(tenant: &'a Tenant<'_>, durable: &'a Durable) -> Settled<'a> {
        let mut by_event: HashMap<u64, Vec<&Story<'_>>> = HashMap::new();
        let stories = tenant.stories.get(durable.subscription_id.as_str());
        for story in stories.into_iter().flatten() {
            by_event.entry(story.sequence()).or_default().push(story);
        }
        let mut until = Vec::new();
        let mut latest = (Micros::MIN, 0);
        for (sequence, row) in routed(tenant, durable) {
            let is_once = tenant.again(sequence, &durable.subscription_id).is_none();
            if is_once && tenant.was_routed(row) {
                let stories = by_event.get(&sequence).map_or(&[][..], Vec::as_slice);
                let at = settled(tenant, durable, (sequence, stories), true);
                latest = latest.max((at, sequence));
            }
            until.push((sequence, latest.0, latest.1));
        }
        Settled { durable, until }
    }

    fn check(&self, tenant: &Tenant<'_>, consumer: &Consumer) -> Vec<String> {
        let mut found = Vec::new();
        let (mut asked, mut published) = (0, 0);
        for record in &consumer.records {
            let (position, is_all) = match record.record {
                Consumption::Asked { .. } => {
                    asked = record.at;
                    published = stored(tenant, asked);
                    continue;
                }
                Consumption::Progress(position) => (position, false),
                Consumption::CaughtUp(position) => (position, true),
                _ => continue,
            };
            let tell = |text: String| {
                let (name, at) = (&consumer.header.name, tenant.when(record.at));
                let what = if is_all { "caught up" } else { "progress" };
                format!(
                    "{}: {name} was told {what} to {position} at {at}, but {text}",
                    self.durable.name
                )
            };
            let after = self
                .until
                .partition_point(|(sequence, ..)| *sequence <= position);
            let before = after.checked_sub(1).map(|last| self.until[last]);
            if let Some((_, until, sequence)) = before
                && until > record.at
            {
                found.push(tell(format!("{sequence} was not settled")));
            }
            if is_all && position < published {
                let since = tenant.when(asked);
                found.push(tell(format!(
                    "{published} was there before it came at {since}"
                )));
            }
        }
        found
    }
}

/// The newest event that was certainly stored before a time.
fn stored(tenant: &Tenant<'_>, at: Micros) -> u64 {
    let by = match tenant.processes {
        1 => at,
        _ => at - KNOWN,
    };
    let events = tenant.sent.values().filter_map(|sent| sent.acked);
    let before = events.filter(|(acked, _)| *acked <= by);
    before.map(|(_, sequence)| sequence).max().unwrap_or(0)
}
