//! Any history of a subscription leads to the states that the model has.

mod checks;
mod owners;

use std::collections::VecDeque;

use super::super::*;
use super::SECOND;
use super::model::{Known, Model};
use super::random::{Random, Seed};
use owners::{Rows, Stored};

const STEPS: usize = 100_000;
const HISTORIES: usize = 90;
/// Small, so that it is often full.
const WINDOW: usize = 10;
/// Settled events that the model keeps, so that its looks are short.
const KNOWN_MAX: usize = 8;
/// Leases that may be acked, of all epochs.
const LEASES_MAX: usize = 30;
const MEMBERS: usize = 4;
/// Times are multiples of this, so that the slots of the speed limit are exact.
const SLOT: Micros = SECOND / 100;

#[test]
fn any_history_leads_to_the_states_of_the_model() {
    let seed = Seed::choose();
    for number in 0..HISTORIES {
        let mut history = History::new(&seed, number);
        for _ in 0..STEPS.div_ceil(HISTORIES) {
            history.step();
            history.check();
        }
    }
}

/// An event of the log; without a key too, and of no interest too.
#[derive(Debug, Clone, Copy)]
struct Logged {
    key: Option<Key>,
    bytes: u32,
    matches: bool,
}

struct History {
    number: usize,
    random: Random,
    log: Vec<Logged>,
    now: Micros,
    machine: Leasing,
    model: Model,
    rows: Rows,
    /// Changes wait so many steps until they are taken.
    untaken: usize,
    stored: Stored,
    /// The row of the subscription says so.
    paused: bool,
    floor: u64,
    leases: Vec<LeaseId>,
    done: VecDeque<String>,
}

impl Drop for History {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("history {}: {:#?}", self.number, self.model.rules);
            self.done.iter().for_each(|step| eprintln!("  {step}"));
        }
    }
}

impl History {
    fn new(seed: &Seed, number: usize) -> History {
        let mut random = Random::new(seed.0, number as u64);
        let orderings = [Ordering::ByKey, Ordering::Total, Ordering::None];
        let exhausted = [Exhausted::Fail, Exhausted::BlockKey, Exhausted::Pause];
        let rules = Rules {
            ordering: orderings[number % 3],
            delays: vec![10 * SECOND, 60 * SECOND][..random.below(3)].to_vec(),
            on_exhausted: exhausted[number / 3 % 3],
            lease: 30 * SECOND,
            max_per_second: [0, 0, 2, 7][random.below(4)],
            window_max: WINDOW,
            settled_remembered_max: [4, 64][random.below(2)],
        };
        let model = Model::new(&rules);
        History {
            number,
            random,
            log: Vec::new(),
            now: 1_000 * SECOND,
            machine: Leasing::new(rules, 1, Position::default(), &[], &[]),
            rows: Rows::default(),
            untaken: 0,
            stored: Stored::nothing(&model),
            model,
            paused: false,
            floor: 0,
            leases: Vec::new(),
            done: VecDeque::new(),
        }
    }

    fn note(&mut self, step: String) {
        self.done
            .push_back(format!("{} s: {step}", self.now as f64 / 1e6));
        if self.done.len() > 40 {
            self.done.pop_front();
        }
    }

    fn step(&mut self) {
        match self.random.below(200) {
            0..26 => self.publish(),
            26..56 => self.read(),
            56..60 => self.offer_again(),
            60..92 => self.lease(),
            92..116 => self.ack(),
            116..138 => self.nack(),
            138..144 => self.extend(),
            144..146 => self.gone(),
            146..160 => self.pass_time(),
            160..166 => self.tick(),
            166..172 => self.join(),
            172..177 => self.leave(),
            177..179 => self.pause(),
            179..187 => self.redeliver(),
            187..188 => self.retain(),
            188..189 => self.release_all(),
            189..190 => self.free(),
            190..191 => self.set_rules(),
            191..196 => self.checkpoint(),
            196..197 => self.untaken = 8,
            197..199 => self.fail_over(),
            _ => self.seek(),
        }
    }

    fn publish(&mut self) {
        for _ in 0..1 + self.random.below(3) {
            let key = self.random.below(5) as u64;
            self.log.push(Logged {
                key: (key > 0).then_some(Key(key)),
                bytes: 1 + self.random.below(10) as u32,
                matches: self.random.percent(80),
            });
        }
    }

    fn logged(&self, seq: u64) -> Logged {
        self.log[seq as usize - 1]
    }

    /// An event as the model knows it, in its ordering.
    fn known(&self, seq: u64) -> Known {
        let logged = self.logged(seq);
        let key = match self.model.rules.ordering {
            Ordering::ByKey => logged.key,
            Ordering::Total => Some(Key::ALL),
            Ordering::None => None,
        };
        Known::new(key, logged.bytes)
    }

    fn read(&mut self) {
        for _ in 0..1 + self.random.below(6) {
            let seq = self.model.position.cursor + 1;
            if seq > self.log.len() as u64 || self.machine.window_left() == 0 {
                return;
            }
            let logged = self.logged(seq);
            if logged.matches {
                self.note(format!("offer {seq} {:?}", logged.key));
                self.machine.offer(seq, logged.key, logged.bytes);
                self.model.events.insert(seq, self.known(seq));
            } else {
                self.machine.looked_through(seq);
            }
            self.model.position.cursor = seq;
        }
    }

    fn offer_again(&mut self) {
        let cursor = self.model.position.cursor;
        for seq in cursor.saturating_sub(3)..=cursor {
            self.machine.offer(seq, Some(Key(1)), 1);
            self.machine.looked_through(seq);
        }
    }

    fn member(&mut self) -> MemberId {
        MemberId(self.random.below(MEMBERS) as u64)
    }

    fn lease(&mut self) {
        let member = self.member();
        let events = self.random.below(5);
        let bytes = self.random.below(30) as u64;
        let length = self.random.percent(30).then_some(5 * SECOND);
        let until = self.now + length.unwrap_or(30 * SECOND);
        let left = self.model.rate_left(self.now);
        let leases = self.machine.lease(member, self.now, events, bytes, length);
        let seqs = self.model.lease(member, self.now, (events, bytes), until);
        self.note(format!(
            "{member:?} leases {seqs:?} of {events}, {bytes} bytes"
        ));
        let leased: Vec<u64> = leases.iter().map(|lease| lease.id.seq).collect();
        assert_eq!(leased, seqs, "what is leased");
        assert!(leased.len() <= left, "more than the speed limit");
        for lease in leases {
            let known = &self.model.events[&lease.id.seq];
            let held = known.held.unwrap();
            assert_eq!((lease.id.number, lease.until), (held.number, held.until));
            assert_eq!(lease.id.epoch, self.model.epoch);
            assert_eq!(lease.attempt, known.attempts + 1);
            assert_eq!(lease.previous_error.as_deref().unwrap_or(""), known.error);
            let again = lease.id.seq <= self.model.position.replay_until;
            assert_eq!(lease.redelivery, known.redelivery || again);
            self.leases.push(lease.id);
        }
        let spare = self.leases.len().saturating_sub(LEASES_MAX);
        self.leases.drain(..spare);
    }

    /// Any lease that was given, or one that never was.
    fn some_lease(&mut self) -> LeaseId {
        let count = self.leases.len();
        let recent = self.random.below(count.min(8) + 1);
        let at = match self.random.percent(80) {
            true => count.saturating_sub(recent + 1),
            false => self.random.below(count),
        };
        let head = self.log.len() as u64;
        let none = LeaseId {
            seq: head + 1,
            epoch: self.model.epoch,
            number: 1,
        };
        self.leases.get(at).copied().unwrap_or(none)
    }

    /// What the model says of a lease; a lease that settled its event is remembered.
    fn apply(&mut self, id: LeaseId, apply: impl FnOnce(&mut Model)) -> Outcome {
        if let Err(outcome) = self.model.current(id, self.now) {
            return outcome;
        }
        apply(&mut self.model);
        if self.model.events[&id.seq].ended.is_some() {
            let place = id.number % self.model.rules.settled_remembered_max as u64;
            self.model.settled.insert(place, id);
        }
        Outcome::Ok
    }

    fn ack(&mut self) {
        let id = self.some_lease();
        let outcome = self.machine.ack(id, self.now);
        self.note(format!("ack {id:?}: {outcome:?}"));
        let expected = self.apply(id, |model| {
            let error = model.events[&id.seq].error.clone();
            model.end(id.seq, Settled::Delivered, &error);
        });
        assert_eq!(outcome, expected, "an ack");
    }

    fn nack(&mut self) {
        let id = self.some_lease();
        let after = [None, None, Some(0), Some(3 * SECOND)][self.random.below(4)];
        let how = match self.random.below(10) {
            0..6 => Nack::Retry { after },
            6..8 => Nack::Release,
            8 => Nack::Fail,
            _ => Nack::Skip,
        };
        let error = ["", "no", "never"][self.random.below(3)];
        let (now, jitter) = (self.now, self.jitter());
        let outcome = self.machine.nack(id, how, error, now, jitter);
        self.note(format!("{how:?} {id:?} {error:?}: {outcome:?}"));
        let expected = self.apply(id, |model| {
            let before = model.events[&id.seq].clone();
            match how {
                Nack::Retry { after } => model.fail(id.seq, error, after, now, jitter),
                Nack::Release => model.release(id.seq, before.held.unwrap().member, now),
                Nack::Fail => model.exhaust(id.seq, error),
                Nack::Skip if error.is_empty() => {
                    model.end(id.seq, Settled::Skipped, &before.error);
                }
                Nack::Skip => model.end(id.seq, Settled::Skipped, error),
            }
        });
        assert_eq!(outcome, expected, "a nack");
    }

    fn jitter(&mut self) -> f64 {
        [0.0, 0.5, 1.0][self.random.below(3)]
    }

    fn extend(&mut self) {
        let id = self.some_lease();
        let length = [0, 10 * SECOND, 100 * SECOND][self.random.below(3)];
        let now = self.now;
        let outcome = self.machine.extend(id, length, now);
        self.note(format!("extend {id:?} by {length}: {outcome:?}"));
        let expected = self.apply(id, |model| {
            let held = &mut model.current(id, now).unwrap().held;
            held.as_mut().unwrap().until = now + length;
        });
        assert_eq!(outcome, expected, "an extension");
    }

    fn gone(&mut self) {
        let id = self.some_lease();
        self.machine.gone(id, self.now);
        if let Ok(event) = self.model.current(id, self.now) {
            (event.held, event.ended) = (None, Some(Settled::Expired));
        }
        self.note(format!("gone {id:?}"));
    }

    fn pass_time(&mut self) {
        let slots = [1, 50, 100, 500, 3_000, 7_000][self.random.below(6)];
        self.now += slots * SLOT;
        if self.random.percent(70) {
            self.tick();
        }
    }

    fn tick(&mut self) {
        let (now, jitter) = (self.now, self.jitter());
        self.note("tick".to_owned());
        self.machine.tick(now, jitter);
        for seq in self.model.expired(now) {
            self.model.fail(seq, "the lease expired", None, now, jitter);
        }
    }

    fn join(&mut self) {
        let member = self.member();
        self.note(format!("join {member:?}"));
        self.machine.join(member);
        if !self.model.members.contains(&member) {
            self.model.members.push(member);
        }
    }

    fn leave(&mut self) {
        let (member, now, jitter) = (self.member(), self.now, self.jitter());
        self.model.leave(member);
        if self.random.percent(20) {
            self.note(format!("retire {member:?}"));
            return self.machine.retire(member);
        }
        self.note(format!("leave {member:?}"));
        self.machine.leave(member, now, jitter);
        let events = self.model.events.iter();
        let leased = events.filter(|(_, known)| known.is_held_by(member));
        let leased = leased.map(|(seq, _)| *seq);
        for seq in leased.collect::<Vec<_>>() {
            let known = self.model.events.get_mut(&seq).unwrap();
            known.losses += 1;
            if known.losses >= 3 {
                let error = "the connection was lost again while the event was leased";
                self.model.fail(seq, error, None, now, jitter);
            } else {
                self.model.give_back(seq);
            }
        }
    }

    fn pause(&mut self) {
        self.take_changes();
        self.paused = self.random.percent(30);
        self.note(format!("paused: {}", self.paused));
        self.machine.set_paused(self.paused);
        self.model.paused = self.paused;
        self.rows.paused &= self.paused;
    }

    fn redeliver(&mut self) {
        let known: Vec<u64> = self.model.events.keys().copied().collect();
        let at = self.random.below(known.len());
        let Some(seq) = known.get(at).copied() else {
            return;
        };
        let known = self.model.events[&seq].clone();
        if self.machine.redelivery_left() == 0 {
            return;
        }
        self.take_changes();
        let derived = self.rows.in_range(seq).is_none() && self.random.percent(80);
        let Logged { key, bytes, .. } = self.logged(seq);
        let done = self.machine.redeliver(seq, key, bytes, derived);
        self.note(format!("redeliver {seq} {:?}: {done}", known.key));
        assert_eq!(done, self.model.redeliver(seq, derived), "a redelivery");
    }

    /// Retention passes some events.
    fn retain(&mut self) {
        let oldest = self.model.events.keys().next().copied().unwrap_or(0);
        let seq = oldest + self.random.below(20) as u64;
        let seq = seq.min(self.log.len() as u64);
        self.note(format!("retention passes {seq}"));
        self.pass_over(seq, Settled::Expired);
        self.machine.expire_through(seq, self.now);
        self.model.expire_through(seq);
    }

    /// Events that are never looked at end as a range.
    fn pass_over(&mut self, through: u64, state: Settled) {
        for seq in self.model.position.cursor + 1..=through {
            if self.logged(seq).matches {
                let mut known = self.known(seq);
                known.ended = Some(state);
                self.model.events.insert(seq, known);
            }
        }
    }

    fn release_all(&mut self) {
        self.note("release all".to_owned());
        self.machine.release_all(self.now);
        let events = self.model.events.iter();
        let leased = events.filter(|(_, known)| known.held.is_some());
        for seq in leased.map(|(seq, _)| *seq).collect::<Vec<_>>() {
            self.model.give_back(seq);
        }
    }

    fn free(&mut self) {
        let mut events = self.model.events.iter_mut();
        let held = events.find(|(_, known)| known.holds);
        if let Some((seq, known)) = held {
            known.holds = false;
            let seq = *seq;
            assert!(self.machine.free(seq));
            self.note(format!("free {seq}"));
        }
        assert!(!self.machine.free(self.log.len() as u64 + 1));
    }

    fn set_rules(&mut self) {
        self.model.rules.delays = vec![SECOND; self.random.below(4)];
        self.model.rules.max_per_second = [0, 3][self.random.below(2)];
        if self.model.rules.max_per_second > 0 {
            // Leases that were given without a limit were not counted.
            self.model.leased_at.clear();
            self.now += 2 * SECOND;
        }
        self.note(format!("rules {:?}", self.model.rules.delays));
        self.machine.set_rules(self.model.rules.clone());
        self.tick();
    }
}
