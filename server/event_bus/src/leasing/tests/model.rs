//! What a subscription does, in the plainest way: a list of events, each with its state, looked
//! through from one end to the other for every question.

use std::collections::BTreeMap;

use super::super::*;
use super::SECOND;

/// An event that matches, as far as it was looked at.
#[derive(Debug, Clone)]
pub struct Known {
    pub key: Option<Key>,
    pub bytes: u32,
    pub state: State,
    /// Times it was leased at a cost; while it is leased, without this time.
    pub attempts: u32,
    pub losses: u32,
    pub due: Micros,
    pub error: String,
    pub redelivery: bool,
    pub derived: bool,
    /// It failed, and holds its key back.
    pub holds: bool,
    /// Who released it, and until when it goes to others.
    pub released: Option<(MemberId, Micros)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Queued, behind its key, or in wait for a retry.
    Open,
    Leased {
        number: u64,
        until: Micros,
        member: MemberId,
    },
    Ended(Settled),
}

impl Known {
    pub fn new(key: Option<Key>, bytes: u32) -> Known {
        Known {
            key,
            bytes,
            state: State::Open,
            attempts: 0,
            losses: 0,
            due: 0,
            error: String::new(),
            redelivery: false,
            derived: true,
            holds: false,
            released: None,
        }
    }

    pub fn is_unsettled(&self) -> bool {
        !matches!(self.state, State::Ended(_))
    }

    pub fn is_leased(&self) -> bool {
        matches!(self.state, State::Leased { .. })
    }
}

#[derive(Debug, Clone)]
pub struct Model {
    pub rules: Rules,
    pub epoch: u64,
    pub events: BTreeMap<u64, Known>,
    pub position: Position,
    pub expired_through: u64,
    pub paused: bool,
    pub members: Vec<MemberId>,
    pub number: u64,
    /// Leases that settled their event, each until another one takes its place.
    pub settled: BTreeMap<u64, LeaseId>,
    pub leased_at: Vec<Micros>,
}

impl Model {
    pub fn unsettled(&self) -> impl Iterator<Item = (u64, &Known)> {
        let events = self.events.iter().map(|(seq, event)| (*seq, event));
        events.filter(|(_, event)| event.is_unsettled())
    }

    /// To be called after each step.
    pub fn move_floor(&mut self) {
        let floor = self.position.floor;
        let first = self.unsettled().find(|(seq, _)| *seq > floor);
        self.position.floor = first.map_or(self.position.cursor, |(seq, _)| seq - 1);
    }

    pub fn rate_left(&self, now: Micros) -> usize {
        let max = self.rules.max_per_second as usize;
        let recent = self.leased_at.iter().filter(|at| **at > now - SECOND);
        if max == 0 {
            usize::MAX
        } else {
            max.saturating_sub(recent.count())
        }
    }

    /// What keeps an event back: an unsettled one of its key that is older or leased, or a failed
    /// one that is older and holds the key.
    pub fn behind(&self, seq: u64) -> Option<u64> {
        let key = self.events[&seq].key?;
        let same = self.events.iter().filter(|(_, event)| event.key == Some(key));
        let mut others = same.filter(|(other, _)| **other != seq);
        let keeps = others.find(|(other, event)| {
            event.is_leased() || (**other < seq && (event.is_unsettled() || event.holds))
        });
        keeps.map(|(other, _)| *other)
    }

    pub fn is_ready(&self, seq: u64, now: Micros) -> bool {
        let event = &self.events[&seq];
        event.state == State::Open && event.due <= now && self.behind(seq).is_none()
    }

    pub fn deliverable(&self, now: Micros) -> bool {
        let nobody = self.rules.ordering == Ordering::Total && self.members.is_empty();
        let ready = self.unsettled().any(|(seq, _)| self.is_ready(seq, now));
        ready && !nobody && !self.paused && self.rate_left(now) > 0
    }

    pub fn outstanding(&self, by: MemberId) -> usize {
        let of = |event: &Known| matches!(event.state, State::Leased { member, .. } if member == by);
        self.unsettled().filter(|(_, event)| of(event)).count()
    }

    /// The sequences that are leased.
    pub fn lease(
        &mut self,
        member: MemberId,
        now: Micros,
        (events_max, bytes_max): (usize, u64),
        until: Micros,
    ) -> Vec<u64> {
        let total = self.rules.ordering == Ordering::Total;
        let standby = total && self.members.first() != Some(&member);
        if self.paused || standby {
            return Vec::new();
        }
        let events_max = events_max.min(self.rate_left(now));
        let idle = self.outstanding(member) == 0;
        let (mut leased, mut bytes) = (Vec::new(), 0);
        let open: Vec<u64> = self.unsettled().map(|(seq, _)| seq).collect();
        for seq in open {
            let released = self.events[&seq].released;
            let own = released.is_some_and(|(by, until)| by == member && until > now);
            if own || !self.is_ready(seq, now) {
                continue;
            }
            let event = self.events.get_mut(&seq).unwrap();
            bytes += u64::from(event.bytes);
            let alone = idle && leased.is_empty();
            if leased.len() == events_max || (bytes > bytes_max && !alone) {
                break;
            }
            self.number += 1;
            event.released = None;
            event.state = State::Leased {
                number: self.number,
                until,
                member,
            };
            leased.push(seq);
            self.leased_at.push(now);
        }
        leased
    }

    /// The event if the lease is its current one, else what the lease is.
    pub fn current(&mut self, id: LeaseId, now: Micros) -> Result<&mut Known, Outcome> {
        let settled = self.settled.values().any(|settled| *settled == id);
        let looked_at = id.seq <= self.position.cursor;
        let event = self.events.get_mut(&id.seq);
        let is = |event: &&mut Known| matches!(event.state, State::Leased { number, until, .. } if number == id.number && until > now);
        match event.filter(is) {
            _ if id.epoch != self.epoch => Err(Outcome::LeaseExpired),
            Some(event) => Ok(event),
            None if settled => Err(Outcome::AlreadySettled),
            None if looked_at => Err(Outcome::LeaseExpired),
            None => Err(Outcome::Unknown),
        }
    }

    /// The lease of an event ended without a cost.
    pub fn give_back(&mut self, seq: u64) {
        let passed = seq <= self.expired_through;
        let event = self.events.get_mut(&seq).unwrap();
        event.due = 0;
        event.state = if passed {
            State::Ended(Settled::Expired)
        } else {
            State::Open
        };
    }

    pub fn release(&mut self, seq: u64, member: MemberId, now: Micros) {
        self.give_back(seq);
        let others = self.members.iter().any(|other| *other != member);
        if others && self.rules.ordering != Ordering::Total && self.is_ready(seq, now) {
            let event = self.events.get_mut(&seq).unwrap();
            event.released = Some((member, now + SECOND));
        }
    }

    /// The lease of an event ended by a failure.
    pub fn fail(&mut self, seq: u64, error: &str, after: Option<Micros>, now: Micros, jitter: f64) {
        let event = self.events.get_mut(&seq).unwrap();
        let Some(delay) = self.rules.delays.get(event.attempts as usize) else {
            return self.exhaust(seq, error);
        };
        let jitter = (*delay as f64 * 0.1 * jitter) as Micros;
        let due = now + after.unwrap_or(delay + jitter);
        event.attempts += 1;
        event.error = error.to_owned();
        self.give_back(seq);
        self.events.get_mut(&seq).unwrap().due = due;
    }

    /// An event failed for good.
    pub fn exhaust(&mut self, seq: u64, error: &str) {
        let event = self.events.get_mut(&seq).unwrap();
        let block = self.rules.on_exhausted == Exhausted::BlockKey;
        event.holds = block && event.key.is_some() && seq > self.expired_through;
        self.end(seq, Settled::Failed, error);
        self.paused |= self.rules.on_exhausted == Exhausted::Pause;
    }

    /// A lease ends its event, so it counts.
    pub fn end(&mut self, seq: u64, state: Settled, error: &str) {
        let event = self.events.get_mut(&seq).unwrap();
        event.attempts += 1;
        event.due = 0;
        event.state = State::Ended(state);
        event.error = error.to_owned();
    }

    pub fn leave(&mut self, member: MemberId) {
        self.members.retain(|other| *other != member);
        let alone = self.members.len() <= 1;
        for event in self.events.values_mut() {
            event.released = event.released.filter(|(by, _)| *by != member && !alone);
        }
    }

    /// The leases that ended by now, those that ended first before the others.
    pub fn expired(&self, now: Micros) -> Vec<u64> {
        let ends = self.unsettled().filter_map(|(seq, event)| match event.state {
            State::Leased { until, .. } if until <= now => Some((until, seq)),
            _ => None,
        });
        let mut ends: Vec<_> = ends.collect();
        ends.sort();
        ends.into_iter().map(|(_, seq)| seq).collect()
    }

    pub fn expire_through(&mut self, seq: u64) {
        self.expired_through = self.expired_through.max(seq);
        for (_, event) in self.events.range_mut(..=seq) {
            event.holds = false;
            if event.state == State::Open {
                event.due = 0;
                event.state = State::Ended(Settled::Expired);
            }
        }
        self.position.cursor = self.position.cursor.max(seq);
    }

    pub fn redeliver(&mut self, seq: u64, derived: bool) -> bool {
        let passed = seq > self.position.cursor || seq <= self.expired_through;
        if passed || self.events[&seq].is_unsettled() {
            return false;
        }
        let event = self.events.get_mut(&seq).unwrap();
        *event = Known::new(event.key, event.bytes);
        event.redelivery = true;
        event.derived = derived;
        let key = event.key;
        for (_, other) in self.events.range_mut(seq + 1..) {
            if key.is_some() && other.key == key {
                other.released = None;
            }
        }
        true
    }
}
