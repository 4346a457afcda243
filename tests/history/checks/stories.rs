//! What the consumers know of each lease: when it began, what they did with it, and what the hub
//! said of that.

use std::collections::{BTreeMap, HashMap};

use crate::history::records::{
    Consumption, Durable, Fault, Happening, How, Leased, Micros, Outcome,
};
use crate::history::tracks::{Consumer, History};

/// After a fault is over, a subscription may still be on its way to another owner for so long.
const TAKEOVER: Micros = 10_000_000;

/// After a connection was cut, its end may take so long to be known everywhere.
const CLOSED: Micros = 2_000_000;

/// A lease as its consumer knows it.
#[derive(Debug)]
pub struct Story<'a> {
    pub consumer: &'a str,
    pub leased: &'a Leased,
    /// Where the consumer is connected; nowhere, if it pulled.
    pub process: usize,
    /// What was answered with OK is on disk.
    pub confirms: bool,
    /// When the hub leased it: the length of the lease before its end.
    pub began: Micros,
    /// When the consumer knew that its stream was over; never, for a pull.
    pub lost: Micros,
    pub steps: Vec<Step<'a>>,
}

/// Something that a consumer did with a lease.
#[derive(Debug)]
pub struct Step<'a> {
    pub at: Micros,
    pub how: &'a How,
    /// What the hub said, and when that came.
    pub told: Option<(Micros, Outcome)>,
    /// Whether the owner that leased the event said so, and no later one: the subscription's next
    /// lease is of the same.
    pub is_of_its_owner: bool,
    /// Whether the owner that leased the event may have done it and was lost with it: it was sent
    /// before a later owner leased anything, and was answered by none that is known to be it.
    pub may_be_lost: bool,
}

/// A fault, from its beginning to its end.
#[derive(Debug)]
pub struct Trouble<'a> {
    pub fault: &'a Fault,
    pub began: Micros,
    pub ended: Micros,
}

/// Leases by the id of the subscription, in the order in which they began.
pub type Stories<'a> = HashMap<&'a str, Vec<Story<'a>>>;

/// What the consumers of a tenant tell.
pub fn stories<'a>(consumers: &[&'a Consumer]) -> Stories<'a> {
    let mut all: Stories<'a> = HashMap::new();
    for consumer in consumers {
        let subscription = consumer.header.about.subscription_id.as_str();
        all.entry(subscription).or_default().extend(told(consumer));
    }
    for stories in all.values_mut() {
        stories.sort_by_key(|story| story.began);
        tell_owners(stories);
    }
    all
}

/// Finds out which answers are of the owner that leased the event.
fn tell_owners(stories: &mut [Story<'_>]) {
    let owners: Vec<(Micros, u64)> = stories
        .iter()
        .map(|story| (story.began, story.epoch()))
        .collect();
    let mut began: BTreeMap<u64, Micros> = BTreeMap::new();
    for (at, epoch) in &owners {
        began.entry(*epoch).or_insert(*at);
    }
    for story in stories {
        let own = story.epoch();
        let later = began.range(own + 1..).map(|(_, began)| *began).min();
        for step in &mut story.steps {
            step.is_of_its_owner = step.told.is_some_and(|(told, _)| {
                let next = owners.partition_point(|(began, _)| *began <= told);
                owners.get(next).is_some_and(|(_, epoch)| *epoch == own)
            });
            let was_there = later.is_some_and(|later| step.at < later);
            step.may_be_lost = was_there && !step.is_of_its_owner;
        }
    }
}

/// The faults of a run.
pub fn troubles(history: &History) -> Vec<Trouble<'_>> {
    let mut troubles: Vec<Trouble<'_>> = Vec::new();
    for record in &history.world.records {
        match &record.record {
            Happening::Began(fault) => troubles.push(Trouble {
                fault,
                began: record.at,
                ended: Micros::MAX,
            }),
            Happening::Ended(fault) => {
                let open = troubles
                    .iter_mut()
                    .rev()
                    .find(|trouble| trouble.fault == fault);
                open.expect("it began").ended = record.at;
            }
            _ => {}
        }
    }
    troubles
}

fn told(consumer: &Consumer) -> Vec<Story<'_>> {
    let mut stories: Vec<Story<'_>> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    // Leases and steps of the stream that is open.
    let (mut held, mut waiting) = (Vec::new(), Vec::new());
    let (mut process, mut confirms) = (0, false);
    let pulls = consumer.header.about.pulls;
    for record in &consumer.records {
        match &record.record {
            Consumption::Asked {
                process: to,
                confirms: are,
            } => (process, confirms) = (*to, *are),
            Consumption::Leased(leased) => {
                for leased in leased {
                    known.insert(&leased.lease, stories.len());
                    held.push(stories.len());
                    stories.push(Story {
                        consumer: &consumer.header.name,
                        leased,
                        process: if pulls { usize::MAX } else { process },
                        confirms,
                        began: leased.until - leased.length,
                        lost: Micros::MAX,
                        steps: Vec::new(),
                    });
                }
            }
            Consumption::Settling(settlings) => {
                for settling in settlings {
                    let story = known[settling.lease.as_str()];
                    waiting.push((settling.lease.as_str(), story, stories[story].steps.len()));
                    stories[story].steps.push(Step {
                        at: record.at,
                        how: &settling.how,
                        told: None,
                        is_of_its_owner: false,
                        may_be_lost: false,
                    });
                }
            }
            Consumption::Outcomes(outcomes) => {
                for (lease, outcome) in outcomes {
                    let of_it = |(waits, ..): &(&str, usize, usize)| waits == lease;
                    while let Some(found) = waiting.iter().position(of_it) {
                        let (_, story, step) = waiting.remove(found);
                        stories[story].steps[step].told = Some((record.at, *outcome));
                        // Without confirmation the ones before it were fine, or were not.
                        if confirms {
                            break;
                        }
                    }
                }
            }
            Consumption::Closing(_) | Consumption::Broken(_) => {
                waiting.clear();
                for story in held.drain(..).filter(|_| !pulls) {
                    let story: &mut Story<'_> = &mut stories[story];
                    story.lost = record.at;
                }
            }
            Consumption::Opened
            | Consumption::Progress(_)
            | Consumption::CaughtUp(_)
            | Consumption::State(_)
            | Consumption::Gap { .. } => {}
        }
    }
    stories
}

impl Step<'_> {
    /// Whether the hub may have done it, and stored that.
    pub fn may_have_worked(&self) -> bool {
        !matches!(
            self.told,
            Some((
                _,
                Outcome::LeaseExpired | Outcome::Unknown | Outcome::AlreadySettled
            ))
        )
    }

    /// Whether its key may have gone on with it: an owner that is lost before it has stored what
    /// it did leaves it to the next one to answer, which knows nothing of it and refuses.
    pub fn may_have_been_applied(&self) -> bool {
        self.may_have_worked() || self.may_be_lost
    }
}

impl Story<'_> {
    pub fn sequence(&self) -> u64 {
        self.leased.event.sequence
    }

    /// Who owned the subscription, as the lease tells: the third part of its id.
    pub fn epoch(&self) -> u64 {
        let part = self.leased.lease.split('-').nth(2).unwrap_or_default();
        u64::from_str_radix(part, 16).unwrap_or(0)
    }

    /// Whether no attempt is left after this one.
    pub fn is_last(&self, durable: &Durable) -> bool {
        self.leased.attempt as usize > durable.delays.len()
    }

    /// What the hub said that it did, for good, and when that was known.
    pub fn confirmed(&self) -> impl Iterator<Item = (&Step<'_>, Micros)> {
        let steps = self.steps.iter().filter(|_| self.confirms);
        steps.filter_map(|step| match step.told {
            Some((at, Outcome::Ok)) => Some((step, at)),
            _ => None,
        })
    }

    /// The earliest time at which the event can have been settled, or can have failed if that
    /// counts.
    pub fn settled(&self, durable: &Durable, or_failed: bool) -> Option<Micros> {
        let gives_up = or_failed && self.is_last(durable);
        let steps = self
            .steps
            .iter()
            .filter(|step| step.may_have_been_applied());
        let settling = steps.filter(|step| match step.how {
            How::Ack | How::Skip => true,
            How::Fail { .. } => or_failed,
            How::Retry { .. } => gives_up,
            How::Release | How::Extend { .. } => false,
        });
        // With its connection, if that was lost too often.
        let expired = gives_up.then_some(self.leased.until.min(self.lost));
        settling.map(|step| step.at).chain(expired).min()
    }

    /// Until then the lease was certainly held, unless its owner was lost.
    pub fn held_until(&self, troubles: &[Trouble<'_>]) -> Micros {
        let mut until = self.leased.until;
        for step in &self.steps {
            match (step.how, step.told) {
                (How::Extend { length }, Some((_, Outcome::Ok))) => until = step.at + length,
                (How::Extend { length }, _) => until = until.min(step.at + length),
                _ => {
                    return until
                        .min(step.at)
                        .min(self.lost)
                        .min(self.disturbed(troubles));
                }
            }
        }
        until.min(self.lost).min(self.disturbed(troubles))
    }

    /// When the connection to the process of the consumer was first in doubt.
    fn disturbed(&self, troubles: &[Trouble<'_>]) -> Micros {
        let own = troubles.iter().filter(|trouble| match trouble.fault {
            Fault::Kill(at) | Fault::Stop(at) | Fault::Cut(at) | Fault::HalfOpen(at) => {
                *at == self.process
            }
            Fault::Database | Fault::Delay(_) => false,
        });
        let later = own.filter(|trouble| trouble.ended.saturating_add(CLOSED) > self.began);
        later
            .map(|trouble| trouble.began)
            .min()
            .unwrap_or(Micros::MAX)
    }
}

/// Whether a subscription may have changed its owner between two times.
pub fn may_have_moved(troubles: &[Trouble<'_>], from: Micros, to: Micros) -> bool {
    let mut moving = troubles.iter().filter(|trouble| {
        matches!(
            trouble.fault,
            Fault::Kill(_) | Fault::Stop(_) | Fault::Database
        )
    });
    moving.any(|trouble| trouble.began < to && trouble.ended.saturating_add(TAKEOVER) > from)
}
