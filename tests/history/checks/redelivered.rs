//! What was asked for again is delivered again, whatever happens to the process that works on it;
//! and nothing else is.

use std::collections::{HashMap, HashSet};

use super::Tenant;
use super::stories::Story;
use crate::history::records::{Micros, Redelivery, State};
use crate::history::tracks::Redeliverer;

/// What was asked for of an event and a subscription.
#[derive(Debug, Clone)]
pub struct Again {
    /// Its state when it was chosen.
    pub before: State,
    /// When it was asked for, and when it was certainly done, if ever.
    pub from: Micros,
    pub until: Micros,
}

/// By subscription and sequence.
pub fn again<'a>(redeliverers: &[&'a Redeliverer]) -> HashMap<&'a str, HashMap<u64, Again>> {
    let mut all: HashMap<&'a str, HashMap<u64, Again>> = HashMap::new();
    for redeliverer in redeliverers {
        let id = redeliverer.header.about.subscription_id.as_str();
        let all = all.entry(id).or_default();
        let mut chosen: &[(u64, State)] = &[];
        for record in &redeliverer.records {
            match &record.record {
                Redelivery::Asked { events, .. } => {
                    chosen = events;
                    for (sequence, before) in events {
                        let again = Again {
                            before: *before,
                            from: record.at,
                            until: Micros::MAX,
                        };
                        all.insert(*sequence, again);
                    }
                }
                Redelivery::Ended { .. } => {
                    for (sequence, _) in chosen {
                        if let Some(again) = all.get_mut(sequence) {
                            again.until = record.at;
                        }
                    }
                }
                Redelivery::Accepted { .. } | Redelivery::Refused { .. } => {}
            }
        }
    }
    all
}

const SUCCEEDED: &str = "JOB_STATE_SUCCEEDED";

pub fn check(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for redeliverer in &tenant.redeliverers {
        let id = redeliverer.header.about.subscription_id.as_str();
        let stories = tenant.stories.get(id).map_or(&[][..], Vec::as_slice);
        let again = stories.iter().filter(|story| story.leased.redelivery);
        let delivered: HashSet<u64> = again.map(Story::sequence).collect();
        found.extend(jobs(tenant, redeliverer, &delivered));
    }
    for (id, stories) in &tenant.stories {
        let stories = stories.iter().filter(|story| story.leased.redelivery);
        found.extend(stories.filter_map(|story| unasked(tenant, id, story)));
    }
    found
}

/// Each job that the hub took has ended well, and did what it says.
fn jobs(tenant: &Tenant<'_>, redeliverer: &Redeliverer, delivered: &HashSet<u64>) -> Vec<String> {
    let (name, id) = (
        &redeliverer.header.name,
        &redeliverer.header.about.subscription_id,
    );
    let mut found = Vec::new();
    let mut open: Option<u64> = None;
    let mut chosen: &[(u64, State)] = &[];
    for record in &redeliverer.records {
        match &record.record {
            Redelivery::Asked { events, .. } => chosen = events,
            Redelivery::Refused { .. } => {}
            Redelivery::Accepted { job } => open = Some(*job),
            Redelivery::Ended { job, state, queued } => {
                open = None;
                if state != SUCCEEDED {
                    found.push(format!("{name}: job {job} ended as {state}"));
                }
                let (kept, missed): (Vec<u64>, Vec<u64>) = chosen
                    .iter()
                    .map(|(sequence, _)| *sequence)
                    .partition(|sequence| kept(tenant, id, *sequence, delivered));
                if (kept.len() as u64) < *queued {
                    let at = tenant.when(record.at);
                    found.push(format!(
                        "{name}: job {job} said at {at} that it queued {queued}, but of its \
                         events nobody got {missed:?}"
                    ));
                }
            }
        }
    }
    found.extend(open.map(|job| format!("{name}: job {job} did not end")));
    found
}

/// Somebody got it; or it is gone, or was lost on its way as often as it is tried.
fn kept(tenant: &Tenant<'_>, id: &str, sequence: u64, delivered: &HashSet<u64>) -> bool {
    let Some(row) = tenant.row(sequence, id) else {
        return sequence < tenant.earliest();
    };
    let had_failed = |again: &Again| again.before == State::Failed;
    let is_new = !tenant.again(sequence, id).is_some_and(had_failed);
    let is_lost = is_new && row.state == State::Failed && row.attempts > 0;
    delivered.contains(&sequence) || is_lost
}

/// Nothing is delivered again by itself.
fn unasked(tenant: &Tenant<'_>, id: &str, story: &Story<'_>) -> Option<String> {
    let again = tenant.again(story.sequence(), id);
    again.is_none_or(|again| again.from > story.began).then(|| {
        format!(
            "{} was leased again to {} at {}, and nobody had asked",
            story.sequence(),
            story.consumer,
            tenant.when(story.began)
        )
    })
}
