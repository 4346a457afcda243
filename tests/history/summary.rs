//! What a history has in it, to be read and pasted.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Write};

use super::checks::{CHECKS, Tenant, Violation};
use super::records::{Consumption, Happening, How, Line, Publication, Reading, Redelivery, State};
use super::tracks::History;

/// Violations that are told one by one.
const TOLD_MAX: usize = 20;

/// Counts by name.
#[derive(Default)]
struct Counts(BTreeMap<String, u64>);

impl Counts {
    fn add(&mut self, name: impl Into<String>, count: usize) {
        *self.0.entry(name.into()).or_default() += count as u64;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self
            .0
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        f.write_str(&parts.join(", "))
    }
}

/// Several lines.
pub fn summary(history: &History, violations: &[Violation]) -> String {
    let about = &history.world.header.about;
    let mut text = format!(
        "history of {} with {} processes, {} tenants, {} s, seed {}\n",
        about.database,
        about.processes,
        about.tenants,
        seconds(history),
        about.seed
    );
    let parts = [
        ("faults", faults(history)),
        ("published", published(history)),
        ("subscribed", subscribed(history)),
        ("consumed", consumed(history)),
        ("outcomes", outcomes(history)),
        ("redelivered", redelivered(history)),
        ("log", log(history)),
        ("deliveries", deliveries(history)),
    ];
    for (name, counts) in parts {
        let _ = writeln!(text, "  {name}: {counts}");
    }
    let mut found = Counts::default();
    for (check, _) in CHECKS {
        let of_it = violations
            .iter()
            .filter(|violation| violation.check == *check);
        found.add(*check, of_it.count());
    }
    let _ = writeln!(text, "  violations: {} ({found})", violations.len());
    for violation in violations.iter().take(TOLD_MAX) {
        let _ = writeln!(text, "    {violation}");
    }
    text
}

/// From the first happening to the last.
fn seconds(history: &History) -> i64 {
    let records = &history.world.records;
    let span = records.first().zip(records.last());
    span.map_or(0, |(first, last)| (last.at - first.at) / 1_000_000)
}

fn faults(history: &History) -> Counts {
    let mut counts = Counts::default();
    for record in &history.world.records {
        match &record.record {
            Happening::Began(fault) => {
                let name = format!("{fault:?}");
                let name = name.split('(').next().unwrap_or_default().to_lowercase();
                counts.add(name, 1);
            }
            Happening::Switched { .. } => counts.add("integrations switched", 1),
            _ => {}
        }
    }
    counts
}

fn published(history: &History) -> Counts {
    let mut counts = Counts::default();
    let records = history.publishers.iter().flat_map(|track| &track.records);
    for record in records {
        match &record.record {
            Publication::Sent { attempt, .. } => {
                counts.add("batches", usize::from(*attempt == 1));
                counts.add("attempts", 1);
            }
            Publication::Acked { results, .. } => {
                let duplicates = results.iter().filter(|one| one.duplicate).count();
                counts.add("acknowledged events", results.len() - duplicates);
                counts.add("duplicates", duplicates);
            }
            Publication::Refused { .. } => counts.add("refused", 1),
            Publication::Unknown { .. } => counts.add("unknown outcomes", 1),
        }
    }
    counts
}

fn subscribed(history: &History) -> Counts {
    let mut counts = Counts::default();
    let records = history.subscribers.iter().flat_map(|track| &track.records);
    for record in records {
        match &record.record {
            Reading::Asked { .. } => counts.add("streams", 1),
            Reading::Events(events) => counts.add("events", events.len()),
            Reading::Progress(_) | Reading::CaughtUp(_) => counts.add("progress frames", 1),
            Reading::Gap { .. } => counts.add("gaps", 1),
            Reading::Closing(_) => counts.add("closed by the hub", 1),
            Reading::Broken(how) if !how.starts_with("left") => counts.add("broken", 1),
            Reading::Opened { .. } | Reading::Broken(_) => {}
        }
    }
    counts
}

fn consumed(history: &History) -> Counts {
    let mut counts = Counts::default();
    counts.add("owners", owners(history));
    for consumer in &history.consumers {
        let name = if consumer.header.about.pulls {
            "calls"
        } else {
            "streams"
        };
        for record in &consumer.records {
            match &record.record {
                Consumption::Asked { .. } => counts.add(name, 1),
                Consumption::Leased(leased) => counts.add("leases", leased.len()),
                Consumption::Settling(settlings) => {
                    for settling in settlings {
                        counts.add(settled(&settling.how), 1);
                    }
                }
                Consumption::Gap { .. } => counts.add("gaps", 1),
                Consumption::CaughtUp(_) => counts.add("caught up", 1),
                Consumption::Progress(_) => counts.add("progress frames", 1),
                Consumption::Closing(_) => counts.add("closed by the hub", 1),
                Consumption::Broken(how) if how != "left" => counts.add("broken", 1),
                _ => {}
            }
        }
    }
    counts
}

/// Owners that subscriptions had, one after the other, as the leases tell.
fn owners(history: &History) -> usize {
    let tenants = 0..history.dumps.len();
    let tenants = tenants.map(|number| Tenant::index(history, number));
    let owners = tenants.map(|tenant| {
        let stories = tenant.stories.iter();
        let owners: HashSet<_> = stories
            .flat_map(|(id, stories)| stories.iter().map(move |story| (*id, story.epoch())))
            .collect();
        owners.len()
    });
    owners.sum()
}

fn settled(how: &How) -> &'static str {
    match how {
        How::Ack => "acks",
        How::Retry { .. } => "nacks to retry",
        How::Release => "releases",
        How::Fail { .. } => "nacks to fail",
        How::Skip => "skips",
        How::Extend { .. } => "extends",
    }
}

fn outcomes(history: &History) -> Counts {
    let mut counts = Counts::default();
    let records = history.consumers.iter().flat_map(|track| &track.records);
    for record in records {
        if let Consumption::Outcomes(outcomes) = &record.record {
            for (_, outcome) in outcomes {
                counts.add(format!("{outcome:?}"), 1);
            }
        }
    }
    counts
}

fn redelivered(history: &History) -> Counts {
    let mut counts = Counts::default();
    let leases = history.consumers.iter().flat_map(|track| &track.records);
    for record in leases {
        if let Consumption::Leased(leased) = &record.record {
            let again = leased.iter().filter(|one| one.redelivery);
            counts.add("leases", again.count());
        }
    }
    let records = history.redeliverers.iter().flat_map(|track| &track.records);
    for record in records {
        match &record.record {
            Redelivery::Asked { events, .. } => {
                counts.add("jobs", 1);
                for (_, state) in events {
                    counts.add(format!("{state:?}").to_lowercase(), 1);
                }
            }
            Redelivery::Accepted { .. } => {}
            Redelivery::Refused { .. } => counts.add("refused", 1),
            Redelivery::Ended { queued, .. } => {
                counts.add("queued", usize::try_from(*queued).unwrap_or(usize::MAX));
            }
        }
    }
    counts
}

fn log(history: &History) -> Counts {
    let mut counts = Counts::default();
    for line in history.dumps.iter().flat_map(|dump| &dump.records) {
        match &line.record {
            Line::Event { .. } => counts.add("events", 1),
            Line::Listed(_) => counts.add("rows listed", 1),
            Line::Got(_) => counts.add("rows got", 1),
            Line::Explained(said) => counts.add(said.verdict.to_lowercase(), 1),
        }
    }
    counts
}

fn deliveries(history: &History) -> Counts {
    let mut counts = Counts::default();
    let mut states: BTreeMap<State, usize> = BTreeMap::new();
    for line in history.dumps.iter().flat_map(|dump| &dump.records) {
        if let Line::Listed(row) = &line.record {
            *states.entry(row.state).or_default() += 1;
        }
    }
    for (state, count) in states {
        counts.add(format!("{state:?}"), count);
    }
    counts
}
