//! The machine alone, with time and jitter as arguments.

mod histories;
mod leases;
mod losses;
mod model;
mod order;
#[path = "../../../../tests/journal/random.rs"]
mod random;
mod redelivery;
mod retention;
mod retries;
mod saving;
mod seen_elsewhere;
mod speed;
mod status;
mod window;

use super::*;

const SECOND: Micros = 1_000_000;
const MINUTE: Micros = 60 * SECOND;
/// When the tests begin.
const START: Micros = 1_767_225_600 * SECOND;
const A: MemberId = MemberId(1);
const B: MemberId = MemberId(2);
/// Nothing was leased.
const NONE: [u64; 0] = [];
const RETRY: Nack = Nack::Retry { after: None };

/// The settings of a default subscription.
fn rules() -> Rules {
    Rules {
        ordering: Ordering::ByKey,
        delays: vec![MINUTE, 5 * MINUTE, 30 * MINUTE, 120 * MINUTE],
        on_exhausted: Exhausted::Fail,
        lease: 30 * SECOND,
        max_per_second: 0,
        window_max: 10_000,
        settled_remembered_max: 1000,
    }
}

/// A machine with its time, and what it stored.
struct Subject {
    machine: Leasing,
    now: Micros,
    held: Vec<(Key, u64)>,
}

impl Subject {
    fn new(rules: Rules) -> Subject {
        let mut machine = Leasing::new(rules, 1, Position::default(), &[], &[]);
        machine.join(A);
        Subject {
            machine,
            now: START,
            held: Vec::new(),
        }
    }

    /// With these events offered, each with its key; 0 = none.
    fn with(rules: Rules, events: &[(u64, u64)]) -> Subject {
        let mut subject = Subject::new(rules);
        subject.offer(events);
        subject
    }

    fn offer(&mut self, events: &[(u64, u64)]) {
        for (seq, key) in events {
            let key = (*key > 0).then_some(Key(*key));
            self.machine.offer(*seq, key, 100);
        }
    }

    fn lease_by(&mut self, member: MemberId, events: usize) -> Vec<Lease> {
        let bytes = u64::MAX;
        self.machine.lease(member, self.now, events, bytes, None)
    }

    fn lease(&mut self, events: usize) -> Vec<Lease> {
        self.lease_by(A, events)
    }

    fn lease_one(&mut self) -> Lease {
        self.lease(1).pop().expect("something to lease")
    }

    /// Leases all that there is.
    fn leased(&mut self) -> Vec<u64> {
        seqs(&self.lease(usize::MAX))
    }

    /// Queues a settled event again, and stores that.
    fn redeliver(&mut self, seq: u64, key: u64, derived_delivered: bool) -> bool {
        let key = Some(Key(key));
        let done = self.machine.redeliver(seq, key, 100, derived_delivered);
        self.machine.stored(&self.machine.unstored());
        done
    }

    fn ack(&mut self, lease: &Lease) -> Outcome {
        self.machine.ack(lease.id, self.now)
    }

    /// Without jitter.
    fn nack(&mut self, lease: &Lease, how: Nack, error: &str) -> Outcome {
        self.machine.nack(lease.id, how, error, self.now, 0.0)
    }

    fn pass(&mut self, time: Micros) {
        self.now += time;
        self.machine.tick(self.now, 0.0);
    }

    fn phase(&self, seq: u64) -> Option<Phase> {
        self.machine.state_of(seq).map(|state| state.phase)
    }

    /// The changes since the last call; remembers which keys are held.
    fn changes(&mut self) -> Changes {
        let changes = self.machine.take_changes();
        let gone = |seq: &u64| changes.removed.contains(seq) || changes.freed.contains(seq);
        self.held.retain(|(_, seq)| !gone(seq));
        let held = changes.put.iter();
        self.held
            .extend(held.filter_map(|put| Some((put.held_key?, put.seq))));
        changes
    }

    /// What a new owner makes of what is stored now.
    fn taken_over(&mut self) -> Subject {
        self.changes();
        let (position, saved) = self.machine.save();
        let saved = unpack(&pack(&saved)).unwrap();
        let rules = self.machine.rules.clone();
        let epoch = self.machine.epoch + 1;
        let mut machine = Leasing::new(rules, epoch, position, &saved, &self.held);
        machine.join(A);
        Subject {
            machine,
            now: self.now,
            held: self.held.clone(),
        }
    }

    /// Leases an event and lets all its attempts fail.
    fn exhaust(&mut self, seq: u64) {
        for _ in 0..=self.machine.rules.delays.len() {
            let lease = self.lease_one();
            assert_eq!(lease.id.seq, seq);
            assert_eq!(self.nack(&lease, RETRY, "no"), Outcome::Ok);
            self.pass(120 * MINUTE);
        }
        assert_eq!(self.phase(seq), None);
    }
}

fn seqs(leases: &[Lease]) -> Vec<u64> {
    leases.iter().map(|lease| lease.id.seq).collect()
}
