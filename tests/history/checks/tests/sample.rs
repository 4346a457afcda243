//! A small history without fault, to be spoiled by the tests.
//!
//! Tenant 0: psa publishes four batches of tickets, 1 | 2 3 | 4 5 6 | 7; number 5 is sent twice.
//! Each takes a second, from second 1 on. A subscriber reads all of it with one reconnection.

use crate::history::filter::{TICKET, Wanted};
use crate::history::records::{
    About, Consuming, Consumption, Delivery, Durable, Event, Happening, How, Leased, Line, Micros,
    Ordering, Outcome, Publication, Publishing, Reading, Redelivering, Redelivery, Seen, Settling,
    Start, State, Stored, Subscribing,
};
use crate::history::tracks::{
    At, Consumer, Dump, Header, History, Publisher, Redeliverer, Subscriber, Track, World,
};

pub const SECOND: Micros = 1_000_000;
/// The portal's default subscription, and the hub's.
pub const PORTAL: &str = "sub_portal";
pub const HUB: &str = "sub_hub";

/// Batches, by the sequences of their events.
const BATCHES: [&[u64]; 4] = [&[1], &[2, 3], &[4, 5, 6], &[7]];
pub const EVENTS: u64 = 7;

pub struct Sample {
    pub world: World,
    pub publisher: Publisher,
    pub subscriber: Subscriber,
    /// Of the portal's default subscription, if it is consumed.
    pub consumers: Vec<Consumer>,
    pub redeliverers: Vec<Redeliverer>,
    pub dump: Dump,
}

pub fn at<R>(seconds: f64, record: R) -> At<R> {
    #[expect(clippy::cast_possible_truncation, reason = "small")]
    let at = (seconds * 1e6) as Micros;
    At { at, record }
}

fn track<A, R>(name: &str, about: A, records: Vec<At<R>>) -> Track<A, R> {
    let header = Header {
        name: name.to_owned(),
        tenant: 0,
        about,
    };
    Track { header, records }
}

pub fn event(sequence: u64) -> Event {
    Event {
        id: format!("e{sequence}"),
        kind: TICKET.to_owned(),
        key: key(sequence),
        digest: sequence * 100,
        altered: false,
    }
}

/// Odd and even ones share a key.
pub fn key(sequence: u64) -> String {
    if sequence.is_multiple_of(2) {
        "even"
    } else {
        "odd"
    }
    .to_owned()
}

pub fn seen(sequence: u64) -> Seen {
    let event = event(sequence);
    Seen {
        sequence,
        id: event.id,
        kind: event.kind,
        product: "psa".to_owned(),
        key: event.key,
        digest: event.digest,
    }
}

pub fn stored(sequence: u64) -> Stored {
    Stored {
        sequence,
        duplicate: false,
        destinations: 2,
    }
}

pub fn delivery(sequence: u64, subscription: &str, product: &str) -> Delivery {
    Delivery {
        sequence,
        subscription_id: subscription.to_owned(),
        product: product.to_owned(),
        state: State::Delivered,
        attempts: 1,
        last_error: String::new(),
    }
}

pub fn durable(id: &str, name: &str) -> Durable {
    Durable {
        subscription_id: id.to_owned(),
        name: name.to_owned(),
        product: name.to_owned(),
        default: true,
        wanted: Wanted::default(),
        ordering: Ordering::ByKey,
        delays: Vec::new(),
        block_key: false,
        lease: 30 * SECOND,
        consumed: false,
        redelivered: false,
    }
}

impl Sample {
    pub fn new() -> Sample {
        let about = About {
            seed: 1,
            database: "none".to_owned(),
            processes: 1,
            tenants: 1,
        };
        let subscribed = |durable| Happening::Subscribed { tenant: 0, durable };
        let world = vec![
            at(0.0, subscribed(durable(PORTAL, "portal"))),
            at(0.0, subscribed(durable(HUB, "hub"))),
        ];
        Sample {
            world: track("world", about, world),
            publisher: publisher(),
            subscriber: subscriber(),
            consumers: Vec::new(),
            redeliverers: Vec::new(),
            dump: dump(),
        }
    }

    /// The same with a consumer at the portal's default subscription, which retries once after a
    /// second: 2 is nacked once, 4 fails, 6 is skipped, the others are acked.
    pub fn consumed() -> Sample {
        let mut sample = Sample::new();
        let portal = sample.durable();
        (portal.consumed, portal.delays) = (true, vec![SECOND]);
        sample.consumers.push(consumer());
        let failed = sample.listed(4, "portal");
        (failed.state, failed.last_error) = (State::Failed, "broken".to_owned());
        sample.listed(6, "portal").state = State::Skipped;
        sample
    }

    /// The same, and 2 is asked for again at 6 by a job that ends at 6.5, and is acked at 6.4.
    pub fn redelivered() -> Sample {
        let mut sample = Sample::consumed();
        let mut again = handled(6.3, 2, 3, How::Ack);
        if let Consumption::Leased(leased) = &mut again[0].record {
            (leased[0].attempt, leased[0].redelivery) = (1, true);
            leased[0].previous_error = String::new();
        }
        sample.consumption().extend(again);
        let about = Redelivering {
            subscription_id: PORTAL.to_owned(),
        };
        let (job, events) = (1, vec![(2, State::Delivered)]);
        let ended = Redelivery::Ended {
            job,
            state: "JOB_STATE_SUCCEEDED".to_owned(),
            queued: 1,
        };
        let records = vec![
            at(6.0, Redelivery::Asked { job, events }),
            at(6.1, Redelivery::Accepted { job }),
            at(6.5, ended),
        ];
        sample
            .redeliverers
            .push(track("redeliverer-0", about, records));
        sample
    }

    /// The portal's default subscription.
    pub fn durable(&mut self) -> &mut Durable {
        match &mut self.world.records[0].record {
            Happening::Subscribed { durable, .. } => durable,
            other => panic!("{other:?}"),
        }
    }

    /// The records of the consumer.
    pub fn consumption(&mut self) -> &mut Vec<At<Consumption>> {
        &mut self.consumers[0].records
    }

    /// The lease of an event and attempt, as the consumer has it.
    pub fn leased(&mut self, sequence: u64, attempt: u32) -> &mut Leased {
        let name = lease(sequence, attempt);
        let mut all =
            self.consumers[0]
                .records
                .iter_mut()
                .filter_map(|record| match &mut record.record {
                    Consumption::Leased(leased) => Some(leased),
                    _ => None,
                });
        let found = all.find_map(|leased| leased.iter_mut().find(|leased| leased.lease == name));
        found.unwrap()
    }

    /// What was told about the lease of an event and attempt.
    pub fn told(&mut self, sequence: u64, attempt: u32) -> &mut Outcome {
        let name = lease(sequence, attempt);
        let mut all =
            self.consumers[0]
                .records
                .iter_mut()
                .filter_map(|record| match &mut record.record {
                    Consumption::Outcomes(outcomes) => Some(outcomes),
                    _ => None,
                });
        let found = all.find_map(|outcomes| outcomes.iter_mut().find(|(lease, _)| *lease == name));
        &mut found.unwrap().1
    }

    pub fn history(self) -> History {
        History {
            world: self.world,
            publishers: vec![self.publisher],
            subscribers: vec![self.subscriber],
            consumers: self.consumers,
            redeliverers: self.redeliverers,
            dumps: vec![self.dump],
        }
    }

    /// The record of the log about a sequence.
    pub fn logged(&mut self, sequence: u64) -> &mut Seen {
        let mut lines = self.dump.records.iter_mut().map(|line| &mut line.record);
        let found = lines.find_map(|line| match line {
            Line::Event { seen, .. } if seen.sequence == sequence => Some(seen),
            _ => None,
        });
        found.unwrap()
    }

    /// What ListEvents says of a sequence and a product.
    pub fn listed(&mut self, sequence: u64, product: &str) -> &mut Delivery {
        let mut lines = self.dump.records.iter_mut().map(|line| &mut line.record);
        let found = lines.find_map(|line| match line {
            Line::Listed(row) if row.sequence == sequence && row.product == product => Some(row),
            _ => None,
        });
        found.unwrap()
    }

    /// Takes an event out of the log, with its rows.
    pub fn lose(&mut self, sequence: u64) {
        self.dump.records.retain(|line| match &line.record {
            Line::Event { seen, .. } => seen.sequence != sequence,
            Line::Listed(row) => row.sequence != sequence,
            _ => true,
        });
    }

    /// The frames of the subscriber, as it got them.
    pub fn frames(&mut self) -> &mut Vec<At<Reading>> {
        &mut self.subscriber.records
    }
}

fn publisher() -> Publisher {
    let mut records = Vec::new();
    for (number, sequences) in BATCHES.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let second = number as f64 + 1.0;
        let batch = number as u64;
        let attempt = |attempt, events| Publication::Sent {
            batch,
            attempt,
            atomic: true,
            process: 0,
            events,
        };
        let mut results: Vec<_> = sequences.iter().map(|one| stored(*one)).collect();
        let events = sequences.iter().map(|one| event(*one)).collect();
        records.push(at(second, attempt(1, events)));
        if number == 2 {
            let error = "cut".to_owned();
            records.push(at(second + 0.1, Publication::Unknown { batch, error }));
            records.push(at(second + 0.2, attempt(2, Vec::new())));
            results.iter_mut().for_each(|one| one.duplicate = true);
        }
        records.push(at(second + 0.5, Publication::Acked { batch, results }));
    }
    let product = "psa".to_owned();
    track("publisher-0", Publishing { product }, records)
}

fn subscriber() -> Subscriber {
    let about = Subscribing {
        product: "portal".to_owned(),
        all_products: false,
        wanted: Wanted::default(),
    };
    let asked = |start| Reading::Asked {
        start,
        process: 0,
        max_events: 0,
    };
    let records = vec![
        at(0.1, asked(Start::Earliest)),
        at(0.2, Reading::Opened { head: 0 }),
        at(0.2, Reading::CaughtUp(0)),
        at(1.5, Reading::Events(vec![seen(1)])),
        at(1.6, Reading::Progress(1)),
        at(2.5, Reading::Events(vec![seen(2), seen(3)])),
        at(2.6, Reading::Broken("cut".to_owned())),
        at(2.7, asked(Start::Cursor(3))),
        at(2.8, Reading::Opened { head: 3 }),
        at(3.5, Reading::Events(vec![seen(4), seen(5), seen(6)])),
        at(4.5, Reading::Events(vec![seen(7)])),
        at(4.6, Reading::Progress(7)),
        at(4.7, Reading::Closing("Draining".to_owned())),
    ];
    track("subscriber-0", about, records)
}

/// Name of a lease: the first owner, numbered as the attempt.
pub fn lease(sequence: u64, attempt: u32) -> String {
    format!("1-{sequence:x}-1-{attempt:x}")
}

/// A lease of 30 s that begins at a second.
pub fn leased(seconds: f64, sequence: u64, attempt: u32) -> Leased {
    let length = 30 * SECOND;
    Leased {
        lease: lease(sequence, attempt),
        event: seen(sequence),
        attempt,
        until: at(seconds, ()).at + length,
        length,
        previous_error: if attempt > 1 { "busy" } else { "" }.to_owned(),
        redelivery: false,
    }
}

/// A lease that is settled 0.05 s later, which is confirmed 0.1 s later.
pub fn handled(seconds: f64, sequence: u64, attempt: u32, how: How) -> [At<Consumption>; 3] {
    let lease = lease(sequence, attempt);
    let outcome = (lease.clone(), Outcome::Ok);
    [
        at(
            seconds,
            Consumption::Leased(vec![leased(seconds, sequence, attempt)]),
        ),
        at(
            seconds + 0.05,
            Consumption::Settling(vec![Settling { lease, how }]),
        ),
        at(seconds + 0.1, Consumption::Outcomes(vec![outcome])),
    ]
}

pub fn consumer_named(name: &str, records: Vec<At<Consumption>>) -> Consumer {
    let about = Consuming {
        subscription_id: PORTAL.to_owned(),
        member: name.to_owned(),
        pulls: false,
    };
    let asked = Consumption::Asked {
        process: 0,
        confirms: true,
    };
    let mut all = vec![at(0.3, asked), at(0.3, Consumption::Opened)];
    all.extend(records);
    track(name, about, all)
}

fn consumer() -> Consumer {
    let retry = How::Retry {
        after: None,
        error: "busy".to_owned(),
    };
    let fail = How::Fail {
        error: "broken".to_owned(),
    };
    let records = [
        handled(1.6, 1, 1, How::Ack),
        handled(2.6, 2, 1, retry),
        handled(2.8, 3, 1, How::Ack),
        handled(3.7, 2, 2, How::Ack),
        handled(3.9, 4, 1, fail),
        handled(4.1, 5, 1, How::Ack),
        handled(4.3, 6, 1, How::Skip),
        handled(4.8, 7, 1, How::Ack),
    ];
    consumer_named("consumer-0", records.into_iter().flatten().collect())
}

fn dump() -> Dump {
    let mut records = Vec::new();
    for (number, sequences) in BATCHES.iter().enumerate() {
        let record_time = (number as Micros + 1) * SECOND + SECOND / 4;
        for sequence in *sequences {
            let seen = seen(*sequence);
            records.push(at(9.0, Line::Event { seen, record_time }));
        }
    }
    for sequence in 1..=EVENTS {
        for (id, product) in [(HUB, "hub"), (PORTAL, "portal")] {
            records.push(at(9.5, Line::Listed(delivery(sequence, id, product))));
        }
    }
    track("log-0", (), records)
}
