//! What became of each event for each subscription, as the log tells: one of the final states, and
//! the one that its consumers brought about.

use std::collections::{HashMap, HashSet};

use super::Tenant;
use super::keys::routed;
use super::redelivered::Again;
use super::stories::{Step, Story};
use crate::history::records::{Delivery, Durable, How, Micros, State};

pub fn check(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for durable in &tenant.durables {
        let mut by_event: HashMap<u64, Vec<&Story<'_>>> = HashMap::new();
        let stories = tenant.stories.get(durable.subscription_id.as_str());
        for story in stories.into_iter().flatten() {
            by_event.entry(story.sequence()).or_default().push(story);
        }
        let mut blocked: HashSet<&str> = HashSet::new();
        for (sequence, row) in routed(tenant, durable) {
            let key = tenant.at(sequence).map_or("", |event| &event.seen.key);
            let stories = by_event.get(&sequence).map_or(&[][..], Vec::as_slice);
            // It may have been leased by an owner who was lost together with the ack of the event
            // before, which failed later.
            let mut confirmed = stories.iter().flat_map(|story| story.confirmed());
            let stays = confirmed.all(|(step, _)| matches!(step.how, How::Extend { .. }));
            let waits = blocked.contains(key) && stays;
            let fate = Fate {
                tenant,
                durable,
                row,
                stories,
                again: tenant.again(sequence, &durable.subscription_id),
            };
            found.extend(fate.ended(waits));
            found.extend(fate.possible());
            found.extend(fate.confirmed());
            if row.state == State::Failed && durable.block_key && !key.is_empty() {
                blocked.insert(key);
            }
        }
    }
    found.extend(same_told(tenant));
    found
}

/// ListEvents and GetEvent tell the same.
fn same_told(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for got in &tenant.got {
        let same = tenant.row(got.sequence, &got.subscription_id);
        if same != Some(*got) && !got.subscription_id.is_empty() {
            found.push(format!("GetEvent tells {got:?}, ListEvents {same:?}"));
        }
    }
    found
}

/// An event for a subscription.
struct Fate<'a> {
    tenant: &'a Tenant<'a>,
    durable: &'a Durable,
    row: &'a Delivery,
    stories: &'a [&'a Story<'a>],
    /// It was asked for again.
    again: Option<&'a Again>,
}

impl Fate<'_> {
    fn name(&self) -> String {
        format!(
            "{}: {} is {:?}",
            self.durable.name, self.row.sequence, self.row.state
        )
    }

    /// After everything was worked off, nothing is left.
    fn ended(&self, waits: bool) -> Option<String> {
        let state = self.row.state;
        let left = self.durable.consumed && !state.is_final() && !waits;
        let all = || format!("{} at the end, after {}", self.name(), self.leases());
        left.then(all)
    }

    fn leases(&self) -> String {
        let last = self.stories.last();
        let last = last.map_or(String::new(), |last| {
            let (consumer, at) = (last.consumer, self.tenant.when(last.began));
            format!(", the last one to {consumer} at {at}: {:?}", last.steps)
        });
        format!("{} leases{last}", self.stories.len())
    }

    fn did(&self, is: impl Fn(&How) -> bool) -> bool {
        let steps = self.stories.iter().flat_map(|story| &story.steps);
        steps
            .into_iter()
            .any(|step| is(step.how) && step.may_have_worked())
    }

    /// Somebody did what led to it.
    fn possible(&self) -> Option<String> {
        let row = self.row;
        let exhausted = row.attempts as usize > self.durable.delays.len();
        let possible = match row.state {
            State::Delivered => self.did(|how| *how == How::Ack),
            State::Skipped => self.did(|how| *how == How::Skip),
            State::Failed => self.did(|how| matches!(how, How::Fail { .. })) || exhausted,
            State::Expired => row.sequence < self.tenant.earliest(),
            State::Strange => false,
            _ => true,
        };
        (!possible && self.durable.consumed).then(|| {
            let attempts = row.attempts;
            format!(
                "{} after {attempts} attempts, and nobody did that: {}",
                self.name(),
                self.leases()
            )
        })
    }

    /// What the hub said that it did is what the log tells, and it is the end of it.
    fn confirmed(&self) -> Vec<String> {
        let mut found = Vec::new();
        for story in self.stories {
            for (step, told) in story.confirmed() {
                let Some(state) = self.leads_to(story, step) else {
                    continue;
                };
                // What is delivered again begins anew.
                if self.again.is_some_and(|again| again.until > step.at) {
                    continue;
                }
                let said = format!(
                    "{:?} by {} at {} was confirmed at {}",
                    step.how,
                    story.consumer,
                    self.tenant.when(step.at),
                    self.tenant.when(told)
                );
                if state != self.row.state {
                    found.push(format!("{}, but {said}", self.name()));
                }
                found.extend(
                    self.failure(story, step)
                        .map(|text| format!("{text}, but {said}")),
                );
                found.extend(self.again(told).map(|text| format!("{text}, but {said}")));
            }
        }
        found
    }

    fn leads_to(&self, story: &Story<'_>, step: &Step<'_>) -> Option<State> {
        match step.how {
            How::Ack => Some(State::Delivered),
            How::Skip => Some(State::Skipped),
            How::Fail { .. } => Some(State::Failed),
            How::Retry { .. } if story.is_last(self.durable) => Some(State::Failed),
            How::Retry { .. } | How::Release | How::Extend { .. } => None,
        }
    }

    /// A failure tells its attempts and its error.
    fn failure(&self, story: &Story<'_>, step: &Step<'_>) -> Option<String> {
        let (How::Fail { error } | How::Retry { error, .. }) = step.how else {
            return None;
        };
        let row = self.row;
        let same = row.attempts == story.leased.attempt && row.last_error == *error;
        (row.state == State::Failed && !same).then(|| {
            let (attempts, last) = (row.attempts, &row.last_error);
            format!("{} after {attempts} attempts with {last:?}", self.name())
        })
    }

    /// A lease that began after all was over.
    fn again(&self, told: Micros) -> Option<String> {
        let again = self.stories.iter().find(|story| story.began > told)?;
        Some(format!(
            "{} and was leased again to {} at {} ({})",
            self.name(),
            again.consumer,
            self.tenant.when(again.began),
            again.leased.lease
        ))
    }
}
