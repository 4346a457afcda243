//! What was acknowledged before something else was sent is before it in the log; and what one
//! publisher sent is there in the order in which it sent it.

use std::collections::HashMap;

use super::Tenant;
use crate::history::records::Micros;

pub fn check(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = real_time(tenant);
    found.extend(sessions(tenant));
    found
}

fn real_time(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    // Of all events up to a place, the one that was sent last.
    let mut latest: Option<(Micros, &str)> = None;
    for event in &tenant.log {
        let id = event.seen.id.as_str();
        let Some(sent) = tenant.sent.get(id) else {
            continue;
        };
        if let (Some((acked, _)), Some((began, other))) = (sent.acked, latest)
            && acked < began
        {
            found.push(format!(
                "{id} was acknowledged at {}, before {other} was sent at {}, but is behind it \
                 at {}",
                tenant.when(acked),
                tenant.when(began),
                event.seen.sequence
            ));
        }
        if latest.is_none_or(|(began, _)| sent.at > began) {
            latest = Some((sent.at, id));
        }
    }
    found
}

fn sessions(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut last: HashMap<&str, (u64, &str)> = HashMap::new();
    for (index, batch) in tenant.batches.iter().enumerate() {
        for event in tenant.fresh(index) {
            let Some(place) = tenant.place.get(event.id.as_str()).copied() else {
                continue;
            };
            let before = last.insert(batch.publisher, (place, &event.id));
            if let Some((before, id)) = before.filter(|(before, _)| *before >= place) {
                found.push(format!(
                    "{} sent {id} before {}, but they are at {before} and {place}",
                    batch.publisher, event.id
                ));
            }
        }
    }
    found
}
