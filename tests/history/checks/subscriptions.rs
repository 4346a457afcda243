//! A reader gets everything that matches and nothing else, in order, each once, from where it
//! started to what the hub says it has sent; a cursor continues where it was taken.

use std::collections::HashMap;

use super::Tenant;
use super::index::Flow;
use crate::history::records::{Micros, Reading, Seen, Start};
use crate::history::tracks::{At, Subscriber};

pub fn check(tenant: &Tenant<'_>) -> Vec<String> {
    let batches = batches(tenant);
    let mut found = Vec::new();
    for subscriber in &tenant.subscribers {
        let expected = Expected::of(tenant, subscriber);
        let is_start = |record: &At<Reading>| matches!(record.record, Reading::Asked { .. });
        let mut records = subscriber.records.as_slice();
        while let Some(start) = records.iter().position(is_start) {
            let rest = &records[start + 1..];
            let end = rest.iter().position(is_start).unwrap_or(rest.len());
            let mut session = Session {
                tenant,
                expected: &expected,
                batches: &batches,
                name: &subscriber.header.name,
                asked: &records[start],
                opened: None,
                at: None,
                events: 0,
                last_of_frame: None,
                found: Vec::new(),
            };
            for record in &rest[..end] {
                session.read(record);
            }
            if end == rest.len() {
                session.end();
            }
            found.append(&mut session.found);
            records = &rest[end..];
        }
    }
    found
}

/// Batches that are not split, by the sequences of their events.
fn batches(tenant: &Tenant<'_>) -> HashMap<u64, usize> {
    let mut batches = HashMap::new();
    for (index, batch) in tenant.batches.iter().enumerate() {
        if batch.atomic {
            let places = tenant.fresh(index);
            let places = places.filter_map(|event| tenant.place.get(event.id.as_str()));
            batches.extend(places.map(|place| (*place, index)));
        }
    }
    batches
}

/// What a subscriber has to see, by sequence.
struct Expected {
    must: Vec<u64>,
    perhaps: Vec<u64>,
}

impl Expected {
    fn of(tenant: &Tenant<'_>, subscriber: &Subscriber) -> Expected {
        let about = &subscriber.header.about;
        let mut expected = Expected {
            must: Vec::new(),
            perhaps: Vec::new(),
        };
        for event in &tenant.log {
            let chosen = about.wanted.names(&event.seen.kind);
            let flow = if about.all_products {
                Flow::Yes
            } else if Tenant::is_for(event.seen, &about.product, chosen) {
                tenant.flows(event.seen, &about.product)
            } else {
                Flow::No
            };
            match flow {
                Flow::Yes if about.wanted.matches(event.seen) => {
                    expected.must.push(event.seen.sequence);
                }
                Flow::Perhaps if about.wanted.matches(event.seen) => {
                    expected.perhaps.push(event.seen.sequence);
                }
                _ => {}
            }
        }
        expected
    }

    /// What has to be seen after `from`, up to `to`.
    fn between(&self, from: u64, to: u64) -> &[u64] {
        let end = self.must.partition_point(|sequence| *sequence <= to);
        let start = self.must.partition_point(|sequence| *sequence <= from);
        &self.must[start.min(end)..end]
    }

    fn allows(&self, sequence: u64) -> bool {
        let is_in = |all: &[u64]| all.binary_search(&sequence).is_ok();
        is_in(&self.must) || is_in(&self.perhaps)
    }
}

/// One stream of a subscriber.
struct Session<'a> {
    tenant: &'a Tenant<'a>,
    expected: &'a Expected,
    batches: &'a HashMap<u64, usize>,
    name: &'a str,
    asked: &'a At<Reading>,
    opened: Option<Micros>,
    /// Everything up to here was sent; `None` until it is known.
    at: Option<u64>,
    events: u32,
    last_of_frame: Option<u64>,
    found: Vec<String>,
}

impl Session<'_> {
    fn read(&mut self, record: &At<Reading>) {
        match &record.record {
            Reading::Asked { .. } => {}
            Reading::Opened { .. } => self.open(record.at),
            Reading::Events(events) => self.events(record.at, events),
            Reading::Progress(to) | Reading::CaughtUp(to) => self.passed(record.at, *to),
            Reading::Gap { from, to, .. } => self.gap(record.at, *from, *to),
            Reading::Closing(reason) => self.closing(record.at, reason),
            Reading::Broken(_) => {}
        }
    }

    fn tell(&mut self, at: Micros, text: &str) {
        let (asked, at) = (self.tenant.when(self.asked.at), self.tenant.when(at));
        let name = self.name;
        self.found
            .push(format!("{name}, opened at {asked}: at {at} {text}"));
    }

    fn open(&mut self, at: Micros) {
        self.opened = Some(at);
        let Reading::Asked { start, .. } = self.asked.record else {
            return;
        };
        self.at = match start {
            Start::Earliest => Some(0),
            Start::Cursor(position) | Start::Acked(position) => Some(position),
            Start::Now => None,
        };
    }

    /// A reader that starts now begins somewhere between its call and the first answer.
    fn begin_before(&mut self, at: Micros, first: u64) {
        let tenant = self.tenant;
        let opened = self.opened.unwrap_or(at);
        let sent = |sequence: u64| {
            let event = tenant.at(sequence)?;
            tenant.sent.get(event.seen.id.as_str())
        };
        let passed = self.expected.between(0, first - 1).iter().rev();
        let missed = passed
            .copied()
            .find(|missed| sent(*missed).is_some_and(|sent| sent.at > opened));
        if let Some(missed) = missed {
            self.tell(
                at,
                &format!("{missed} is missing, which was sent after it was open"),
            );
        }
        let early = sent(first).and_then(|sent| sent.acked);
        if early.is_some_and(|(acked, _)| acked < self.asked.at) {
            self.tell(
                at,
                &format!("it starts before {first}, which was stored before it was opened"),
            );
        }
        self.at = Some(first - 1);
    }

    fn events(&mut self, at: Micros, events: &[Seen]) {
        if let Some(first) = events.first()
            && self.at.is_none()
        {
            self.begin_before(at, first.sequence);
        }
        self.whole(at, events);
        for event in events {
            let sequence = event.sequence;
            let before = self.at.unwrap_or(0);
            if sequence <= before {
                self.tell(
                    at,
                    &format!("{sequence} came, but everything up to {before} had come"),
                );
                continue;
            }
            if self.expected.allows(sequence) {
                self.same(at, event);
            } else if sequence >= self.tenant.earliest() {
                self.tell(
                    at,
                    &format!("{sequence} came, which it did not ask for: {event:?}"),
                );
            }
            self.missing(at, sequence - 1);
            self.at = Some(sequence);
            self.events += 1;
        }
        self.last_of_frame = events.last().map(|event| event.sequence);
    }

    /// The event is as the log has it.
    fn same(&mut self, at: Micros, event: &Seen) {
        let differs = self
            .tenant
            .at(event.sequence)
            .is_some_and(|logged| logged.seen != event);
        if differs {
            self.tell(
                at,
                &format!(
                    "{} came otherwise than the log has it: {event:?}",
                    event.sequence
                ),
            );
        }
    }

    /// A frame does not begin within a batch, unless the reader started there.
    fn whole(&mut self, at: Micros, events: &[Seen]) {
        let (Some(last), Some(first)) = (self.last_of_frame, events.first()) else {
            return;
        };
        let batch = self.batches.get(&last);
        if last < first.sequence && batch.is_some() && batch == self.batches.get(&first.sequence) {
            let next = first.sequence;
            self.tell(at, &format!("a batch was split between {last} and {next}"));
        }
    }

    fn missing(&mut self, at: Micros, to: u64) {
        let from = self.at.unwrap_or(to).max(self.tenant.earliest() - 1);
        let missing = self.expected.between(from, to);
        if let Some(first) = missing.first() {
            let (count, first) = (missing.len(), *first);
            self.tell(
                at,
                &format!("{count} events are missing from {first} on, up to {to}"),
            );
        }
    }

    /// The hub says that everything up to here was sent.
    fn passed(&mut self, at: Micros, to: u64) {
        if self.at.is_none() {
            self.begin_before(at, to + 1);
        }
        let before = self.at.unwrap_or(0);
        if to < before {
            self.tell(at, &format!("progress falls back from {before} to {to}"));
            return;
        }
        if to > self.tenant.head() {
            let head = self.tenant.head();
            self.tell(at, &format!("progress to {to}, but the log ends at {head}"));
        }
        self.missing(at, to);
        self.at = Some(to);
    }

    fn gap(&mut self, at: Micros, from: u64, to: u64) {
        let before = self.at.unwrap_or(from.saturating_sub(1));
        if to >= self.tenant.earliest() {
            let earliest = self.tenant.earliest();
            self.tell(
                at,
                &format!("a gap from {from} to {to}, but the log begins at {earliest}"),
            );
        }
        if from != before + 1 {
            self.tell(
                at,
                &format!("a gap from {from} on, but everything up to {before} had come"),
            );
        }
        self.at = Some(to);
    }

    /// The last stream of a reader that goes on where it was sees the end of the log.
    fn end(&mut self) {
        let Reading::Asked { start, .. } = self.asked.record else {
            return;
        };
        let steady = matches!(start, Start::Earliest | Start::Cursor(_));
        let (seen, head) = (self.at.unwrap_or(0), self.tenant.head());
        if steady && seen < head {
            let text = format!("it ended at {seen}, but the log ends at {head}");
            self.tell(self.asked.at, &text);
        }
    }

    fn closing(&mut self, at: Micros, reason: &str) {
        let Reading::Asked { max_events, .. } = self.asked.record else {
            return;
        };
        if max_events > 0 && reason == "Done" && self.events != max_events {
            let events = self.events;
            self.tell(
                at,
                &format!("it is done after {events} events, not {max_events}"),
            );
        }
        if max_events > 0 && self.events > max_events {
            self.tell(at, &format!("more than {max_events} events came"));
        }
    }
}
