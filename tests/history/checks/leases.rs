//! Leases: what is leased is in the log and for the subscription; attempts count and wait as the
//! retry policy says; acks in time work, and late ones do not.

use super::Tenant;
use super::stories::{Step, Story};
use crate::history::records::{Consumption, Durable, How, Micros, Outcome, State};

pub fn check(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = gaps(tenant);
    for durable in &tenant.durables {
        let Some(stories) = tenant.stories.get(durable.subscription_id.as_str()) else {
            continue;
        };
        let mut by_event: Vec<&Story<'_>> = stories.iter().collect();
        // Stable: those of one event stay in the order in which they began.
        by_event.sort_by_key(|story| story.sequence());
        for of_one in by_event.chunk_by(|one, two| one.sequence() == two.sequence()) {
            let leases = Leases {
                tenant,
                durable,
                stories: of_one,
            };
            leases.check(&mut found);
        }
    }
    found
}

/// Nothing is said to be lost that is there.
fn gaps(tenant: &Tenant<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for consumer in &tenant.consumers {
        for record in &consumer.records {
            if let Consumption::Gap { from, to, .. } = record.record
                && to >= tenant.earliest()
            {
                found.push(format!(
                    "{}: at {} a gap from {from} to {to}, but the log begins at {}",
                    consumer.header.name,
                    tenant.when(record.at),
                    tenant.earliest()
                ));
            }
        }
    }
    found
}

/// The leases of one event, in the order in which they began.
struct Leases<'a> {
    tenant: &'a Tenant<'a>,
    durable: &'a Durable,
    stories: &'a [&'a Story<'a>],
}

impl Leases<'_> {
    fn check(&self, found: &mut Vec<String>) {
        for (at, story) in self.stories.iter().enumerate() {
            found.extend(self.content(story));
            let next = self.stories.get(at + 1).copied();
            for step in &story.steps {
                found.extend(self.fenced(story, step, next));
                found.extend(self.in_time(story, step));
                found.extend(next.and_then(|next| self.retried(story, step, next)));
            }
        }
    }

    fn name(&self, story: &Story<'_>) -> String {
        format!(
            "{}: {} leased to {} at {} ({}, attempt {})",
            self.durable.name,
            story.sequence(),
            story.consumer,
            self.tenant.when(story.began),
            story.leased.lease,
            story.leased.attempt
        )
    }

    fn content(&self, story: &Story<'_>) -> Vec<String> {
        let mut found = Vec::new();
        let event = &story.leased.event;
        let name = self.name(story);
        match self.tenant.at(event.sequence) {
            Some(logged) if logged.seen == event => {}
            Some(logged) => {
                let logged = logged.seen;
                found.push(format!("{name} is {event:?}, but the log has {logged:?}"));
            }
            None if event.sequence < self.tenant.earliest() => {}
            None => found.push(format!("{name} is not in the log")),
        }
        let row = self
            .tenant
            .row(event.sequence, &self.durable.subscription_id);
        match row {
            None if event.sequence < self.tenant.earliest() => {}
            None => found.push(format!("{name} is none of the subscription's")),
            Some(row) if row.state == State::NotRouted => {
                found.push(format!("{name} was not routed"));
            }
            Some(_) => {}
        }
        let most = self.durable.delays.len() + 1;
        if story.leased.attempt as usize > most || story.leased.attempt == 0 {
            found.push(format!("{name}: there are {most} attempts"));
        }
        found
    }

    /// What was said to be done was done with the lease in force.
    fn fenced(
        &self,
        story: &Story<'_>,
        step: &Step<'_>,
        next: Option<&Story<'_>>,
    ) -> Option<String> {
        let Some((_, Outcome::Ok)) = step.told else {
            return None;
        };
        let (name, at) = (self.name(story), self.tenant.when(step.at));
        if let Some(next) = next.filter(|next| next.began < step.at) {
            let since = self.tenant.when(next.began);
            let whose = next.consumer;
            return Some(format!(
                "{name}: {:?} at {at} was OK, but {whose} had it since {since}",
                step.how
            ));
        }
        let is_extend = |step: &&Step<'_>| matches!(step.how, How::Extend { .. });
        let extended = story.steps.iter().any(|step| is_extend(&step));
        let late = step.at >= story.leased.until && !extended;
        late.then(|| {
            let until = self.tenant.when(story.leased.until);
            format!(
                "{name}: {:?} at {at} was OK, but the lease ended at {until}",
                step.how
            )
        })
    }

    /// What was done in time is not refused.
    fn in_time(&self, story: &Story<'_>, step: &Step<'_>) -> Option<String> {
        let (told, outcome) = step.told?;
        let refused = matches!(outcome, Outcome::LeaseExpired | Outcome::Unknown);
        let troubles = &self.tenant.troubles;
        let held = story.held_until(troubles);
        // A step ends what is certain by itself, so that it counts as held up to it.
        let first = story
            .steps
            .iter()
            .find(|step| !matches!(step.how, How::Extend { .. }));
        let is_first = first.is_none_or(|first| step.at <= first.at);
        let in_time = is_first && told < story.leased.until && step.at <= held;
        (refused && in_time && step.is_of_its_owner).then(|| {
            format!(
                "{}: {:?} at {} was answered {outcome:?} at {}, but the lease ends at {}",
                self.name(story),
                step.how,
                self.tenant.when(step.at),
                self.tenant.when(told),
                self.tenant.when(story.leased.until)
            )
        })
    }

    /// A retry that was confirmed waits as long as it has to, counts, and tells the error.
    fn retried(&self, story: &Story<'_>, step: &Step<'_>, next: &Story<'_>) -> Option<String> {
        let How::Retry { after, error } = step.how else {
            return None;
        };
        // It was over, and begins anew.
        if next.leased.redelivery && !story.leased.redelivery {
            return None;
        }
        if !story.confirms || !matches!(step.told, Some((_, Outcome::Ok))) {
            return None;
        }
        let attempt = story.leased.attempt;
        let policy = self.durable.delays.get(attempt as usize - 1).copied();
        let delay: Micros = after.or(policy)?;
        let (name, other) = (self.name(story), self.name(next));
        if next.began < step.at + delay {
            let at = self.tenant.when(step.at);
            return Some(format!(
                "{name} was nacked at {at} for {delay} us, but: {other}"
            ));
        }
        if next.leased.attempt <= attempt {
            return Some(format!("{name} was nacked, and did not count: {other}"));
        }
        let told = &next.leased.previous_error;
        (next.leased.attempt == attempt + 1 && told != error)
            .then(|| format!("{other} tells the error {told:?} of {name}, not {error:?}"))
    }
}
