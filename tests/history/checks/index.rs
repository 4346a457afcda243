//! A tenant's part of a history, ordered for the checks.

use std::collections::HashMap;

use crate::history::filter::catalogue;
use crate::history::records::{
    Delivery, Durable, Event, Explained, Happening, Line, Micros, Publication, Seen, State, Stored,
};
use crate::history::tracks::{Consumer, History, Publisher, Redeliverer, Subscriber};

use super::redelivered::{Again, again};
use super::stories::{Stories, Trouble, stories, troubles};

/// What the checks look at.
pub struct Tenant<'a> {
    pub number: usize,
    /// Processes of the hub.
    pub processes: usize,
    /// When the run began, for texts.
    pub start: Micros,
    /// The log at the end, by sequence.
    pub log: Vec<Logged<'a>>,
    /// Sequences in the log, by id.
    pub place: HashMap<&'a str, u64>,
    pub batches: Vec<Batch<'a>>,
    /// Events that were sent, by id.
    pub sent: HashMap<&'a str, Sent<'a>>,
    pub publishers: Vec<&'a Publisher>,
    pub subscribers: Vec<&'a Subscriber>,
    pub consumers: Vec<&'a Consumer>,
    pub redeliverers: Vec<&'a Redeliverer>,
    /// What was asked for again, by subscription and sequence.
    pub again: HashMap<&'a str, HashMap<u64, Again>>,
    /// What processes logged of panics.
    pub panics: Vec<&'a str>,
    /// Leases, by the id of the subscription.
    pub stories: Stories<'a>,
    /// What was done to the hub.
    pub troubles: Vec<Trouble<'a>>,
    pub durables: Vec<&'a Durable>,
    /// What ListEvents says, by sequence.
    pub listed: HashMap<u64, Vec<&'a Delivery>>,
    /// What GetEvent says of some.
    pub got: Vec<&'a Delivery>,
    /// What ExplainEvent says of some.
    pub explained: Vec<&'a Explained>,
    /// Changes of integrations, by source and destination.
    pub switches: HashMap<(&'a str, &'a str), Vec<Switch>>,
}

/// An event of the log.
#[derive(Debug, Clone, Copy)]
pub struct Logged<'a> {
    pub seen: &'a Seen,
    pub record_time: Micros,
}

/// A batch of a publisher, with all that was said about it.
#[derive(Debug)]
pub struct Batch<'a> {
    pub publisher: &'a str,
    pub product: &'a str,
    pub number: u64,
    pub atomic: bool,
    pub events: &'a [Event],
    pub attempts: u32,
    /// The first attempt.
    pub sent: Micros,
    pub acked: Vec<(Micros, &'a [Stored])>,
    pub refused: Option<(Micros, &'a str)>,
}

/// An event of a publisher.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a> {
    pub event: &'a Event,
    /// Index of the batch that had it first.
    pub batch: usize,
    pub at: Micros,
    /// The first time that it was acknowledged, and where it is.
    pub acked: Option<(Micros, u64)>,
}

/// A change of an integration: it took effect somewhere between the two times.
#[derive(Debug, Clone, Copy)]
pub struct Switch {
    pub began: Micros,
    /// Never, if the call was not answered.
    pub ended: Micros,
    pub enabled: bool,
}

/// Whether an event goes to a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Yes,
    No,
    /// The history does not tell.
    Perhaps,
}

impl<'a> Tenant<'a> {
    /// Of one tenant of the run.
    pub fn index(history: &'a History, number: usize) -> Tenant<'a> {
        let consumers: Vec<&Consumer> = of(&history.consumers, number, |track| track.header.tenant);
        let redeliverers: Vec<&Redeliverer> =
            of(&history.redeliverers, number, |track| track.header.tenant);
        let mut tenant = Tenant {
            number,
            processes: history.world.header.about.processes,
            start: history.world.records.first().map_or(0, |first| first.at),
            log: Vec::new(),
            place: HashMap::new(),
            batches: Vec::new(),
            sent: HashMap::new(),
            publishers: of(&history.publishers, number, |track| track.header.tenant),
            subscribers: of(&history.subscribers, number, |track| track.header.tenant),
            stories: stories(&consumers),
            consumers,
            again: again(&redeliverers),
            redeliverers,
            panics: Vec::new(),
            troubles: troubles(history),
            durables: Vec::new(),
            listed: HashMap::new(),
            got: Vec::new(),
            explained: Vec::new(),
            switches: HashMap::new(),
        };
        tenant.read_world(history);
        tenant.read_dump(history);
        for publisher in tenant.publishers.clone() {
            tenant.read_batches(publisher);
        }
        tenant.read_events();
        tenant
    }

    fn read_world(&mut self, history: &'a History) {
        for record in &history.world.records {
            match &record.record {
                Happening::Subscribed { tenant, durable } if *tenant == self.number => {
                    self.durables.push(durable);
                }
                Happening::Panicked(text) => self.panics.push(text),
                Happening::Switching {
                    tenant,
                    source,
                    destination,
                    enabled,
                } if *tenant == self.number => {
                    let pair = self.switches.entry((source, destination)).or_default();
                    pair.push(Switch {
                        began: record.at,
                        ended: Micros::MAX,
                        enabled: *enabled,
                    });
                }
                Happening::Switched {
                    tenant,
                    source,
                    destination,
                    ..
                } if *tenant == self.number => {
                    let pair = self.switches.entry((source, destination)).or_default();
                    pair.last_mut().expect("it was switching").ended = record.at;
                }
                _ => {}
            }
        }
    }

    fn read_dump(&mut self, history: &'a History) {
        for line in &history.dumps[self.number].records {
            match &line.record {
                Line::Event { seen, record_time } => {
                    self.place.entry(&seen.id).or_insert(seen.sequence);
                    let record_time = *record_time;
                    self.log.push(Logged { seen, record_time });
                }
                Line::Listed(delivery) => {
                    let there = self.listed.entry(delivery.sequence).or_default();
                    there.push(delivery);
                }
                Line::Got(delivery) => self.got.push(delivery),
                Line::Explained(explained) => self.explained.push(explained),
            }
        }
    }

    fn read_batches(&mut self, publisher: &'a Publisher) {
        let first = self.batches.len();
        let mut known: HashMap<u64, usize> = HashMap::new();
        for record in &publisher.records {
            let (number, at) = (number(&record.record), record.at);
            let index = *known.entry(number).or_insert_with(|| {
                self.batches.push(Batch {
                    publisher: &publisher.header.name,
                    product: &publisher.header.about.product,
                    number,
                    atomic: true,
                    events: &[],
                    attempts: 0,
                    sent: at,
                    acked: Vec::new(),
                    refused: None,
                });
                self.batches.len() - 1
            });
            let batch = &mut self.batches[index];
            match &record.record {
                Publication::Sent { atomic, events, .. } => {
                    batch.attempts += 1;
                    batch.atomic = *atomic;
                    if !events.is_empty() {
                        batch.events = events;
                    }
                }
                Publication::Acked { results, .. } => batch.acked.push((at, results)),
                Publication::Refused { reason, .. } => batch.refused = Some((at, reason)),
                Publication::Unknown { .. } => {}
            }
        }
        self.batches[first..].sort_by_key(|batch| batch.number);
    }

    fn read_events(&mut self) {
        for (index, batch) in self.batches.iter().enumerate() {
            let genuine = batch.events.iter().filter(|event| !event.altered);
            for event in genuine {
                let sent = self.sent.entry(&event.id).or_insert(Sent {
                    event,
                    batch: index,
                    at: batch.sent,
                    acked: None,
                });
                if batch.sent < sent.at {
                    (sent.batch, sent.at) = (index, batch.sent);
                }
            }
            for (at, results) in &batch.acked {
                let told = batch.events.iter().zip(*results);
                for (event, stored) in told.filter(|(_, stored)| stored.sequence > 0) {
                    if let Some(sent) = self.sent.get_mut(event.id.as_str())
                        && sent.acked.is_none_or(|(before, _)| *at < before)
                    {
                        sent.acked = Some((*at, stored.sequence));
                    }
                }
            }
        }
    }

    /// A time, as seconds of the run.
    pub fn when(&self, at: Micros) -> String {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let seconds = (at - self.start) as f64 / 1e6;
        format!("{seconds:.3} s")
    }

    /// An event of the log, if it is still there.
    pub fn at(&self, sequence: u64) -> Option<&Logged<'a>> {
        let first = self.log.first()?.seen.sequence;
        let index = usize::try_from(sequence.checked_sub(first)?).ok()?;
        self.log.get(index)
    }

    /// What ListEvents says of an event and a subscription.
    pub fn row(&self, sequence: u64, subscription_id: &str) -> Option<&'a Delivery> {
        let rows = self.listed.get(&sequence)?;
        let row = rows
            .iter()
            .find(|row| row.subscription_id == subscription_id);
        row.copied()
    }

    /// What was asked for again of an event for a subscription.
    pub fn again(&self, sequence: u64, subscription_id: &str) -> Option<&Again> {
        self.again.get(subscription_id)?.get(&sequence)
    }

    /// Whether an event went to a subscription when it was recorded.
    pub fn was_routed(&self, row: &Delivery) -> bool {
        let again = self.again(row.sequence, &row.subscription_id);
        again.map_or(row.state, |again| again.before) != State::NotRouted
    }

    /// Newest sequence.
    pub fn head(&self) -> u64 {
        self.log.last().map_or(0, |last| last.seen.sequence)
    }

    /// Everything before was removed by retention.
    pub fn earliest(&self) -> u64 {
        self.log.first().map_or(1, |first| first.seen.sequence)
    }

    /// Events that a batch brought, and that no batch had brought before.
    pub fn fresh(&self, index: usize) -> impl Iterator<Item = &'a Event> {
        let events = self.batches[index].events.iter();
        events.filter(move |event| !event.altered && self.sent[event.id.as_str()].batch == index)
    }

    /// Whether an event is for a product at all: by the catalogue, or because a filter names it.
    pub fn is_for(event: &Seen, product: &str, chosen: bool) -> bool {
        let named = catalogue(&event.kind).map_or(chosen, |to| to.contains(&product));
        named && event.product != product
    }

    /// Whether the route to a product was on when an event was recorded.
    pub fn flows(&self, event: &Seen, product: &str) -> Flow {
        let rows = self.listed.get(&event.sequence).into_iter().flatten();
        let mut rows = rows.filter(|row| row.product == product);
        match rows.next() {
            Some(row) if !self.was_routed(row) => Flow::No,
            Some(_) => Flow::Yes,
            None if self.is_switched(&event.product, product) => Flow::Perhaps,
            None => Flow::Yes,
        }
    }

    fn is_switched(&self, source: &str, destination: &str) -> bool {
        self.switches.contains_key(&(source, destination))
    }
}

fn number(record: &Publication) -> u64 {
    match record {
        Publication::Sent { batch, .. }
        | Publication::Acked { batch, .. }
        | Publication::Refused { batch, .. }
        | Publication::Unknown { batch, .. } => *batch,
    }
}

fn of<T>(tracks: &[T], number: usize, tenant: impl Fn(&T) -> usize) -> Vec<&T> {
    tracks
        .iter()
        .filter(|track| tenant(track) == number)
        .collect()
}
