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
    /// `None`: it is unsettled.
    pub ended: Option<Settled>,
    pub held: Option<Held>,
    /// Times it was leased at a cost, without this time while it is leased.
    pub attempts: u32,
    pub losses: u32,
    /// When its retry is or was due; 0 = none.
    pub due: Micros,
    pub error: String,
    pub redelivery: bool,
    /// It was redelivered, and that is not stored yet.
    pub unstored: bool,
    pub derived: bool,
    /// It failed, and holds its key back.
    pub holds: bool,
    /// Who released it, and until when it goes to others.
    pub released: Option<(MemberId, Micros)>,
}

/// A lease.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub number: u64,
    pub until: Micros,
    pub member: MemberId,
}

impl Known {
    pub fn new(key: Option<Key>, bytes: u32) -> Known {
        Known {
            key,
            bytes,
            ended: None,
            held: None,
            attempts: 0,
            losses: 0,
            due: 0,
            error: String::new(),
            redelivery: false,
            unstored: false,
            derived: true,
            holds: false,
            released: None,
        }
    }

    pub fn is_held_by(&self, member: MemberId) -> bool {
        self.held.is_some_and(|held| held.member == member)
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
    pub fn new(rules: &Rules) -> Model {
        Model {
            rules: rules.clone(),
            epoch: 1,
            events: BTreeMap::new(),
            position: Position::default(),
            expired_through: 0,
            paused: false,
            members: Vec::new(),
            number: 0,
            settled: BTreeMap::new(),
            leased_at: Vec::new(),
        }
    }

    pub fn unsettled(&self) -> impl Iterator<Item = (u64, &Known)> {
        let events = self.events.iter().map(|(seq, event)| (*seq, event));
        events.filter(|(_, event)| event.ended.is_none())
    }

    /// To be called after each step.
    pub fn move_floor(&mut self) {
        let floor = self.position.floor;
        let first = self.unsettled().find(|(seq, _)| *seq > floor);
        self.position.floor = first.map_or(self.position.cursor, |(seq, _)| seq - 1);
    }

    pub fn rate_left(&self, now: Micros) -> usize {
        let recent = self.leased_at.iter().filter(|at| **at > now - SECOND);
        match self.rules.max_per_second as usize {
            0 => usize::MAX,
            max => max.saturating_sub(recent.count()),
        }
    }

    /// Whether an event is kept back by an unsettled one of its key that is older or leased, or by
    /// a failed one that is older and holds the key.
    pub fn is_behind(&self, seq: u64) -> bool {
        let key = self.events[&seq].key;
        let keeps = |(other, event): (&u64, &Known)| {
            let older = *other < seq && (event.ended.is_none() || event.holds);
            *other != seq && event.key == key && (older || event.held.is_some())
        };
        key.is_some() && self.events.iter().any(keeps)
    }

    pub fn is_ready(&self, seq: u64, now: Micros) -> bool {
        let event = &self.events[&seq];
        let waits = event.ended.is_none() && event.held.is_none();
        waits && event.due <= now && !event.unstored && !self.is_behind(seq)
    }

    pub fn deliverable(&self, now: Micros) -> bool {
        let nobody = self.rules.ordering == Ordering::Total && self.members.is_empty();
        let ready = self.unsettled().any(|(seq, _)| self.is_ready(seq, now));
        ready && !nobody && !self.paused && self.rate_left(now) > 0
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
        let idle = !self.events.values().any(|event| event.is_held_by(member));
        let (mut leased, mut bytes) = (Vec::new(), 0);
        for seq in self.events.keys().copied().collect::<Vec<_>>() {
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
            event.held = Some(Held {
                number: self.number,
                until,
                member,
            });
            leased.push(seq);
            self.leased_at.push(now);
        }
        leased
    }

    /// The event if the lease is its current one, else what the lease is.
    pub fn current(&mut self, id: LeaseId, now: Micros) -> Result<&mut Known, Outcome> {
        let settled = self.settled.values().any(|settled| *settled == id);
        let looked_at = id.seq <= self.position.cursor;
        let is = |held: Held| held.number == id.number && held.until > now;
        let unsettled = self.unsettled().any(|(seq, _)| seq == id.seq);
        let event = self.events.get_mut(&id.seq);
        match event.filter(|event| event.held.is_some_and(is)) {
            _ if id.epoch != self.epoch && looked_at && !unsettled => Err(Outcome::AlreadySettled),
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
        (event.held, event.due) = (None, 0);
        event.ended = passed.then_some(Settled::Expired);
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
        let attempts = self.events[&seq].attempts as usize;
        let Some(delay) = self.rules.delays.get(attempts).copied() else {
            return self.exhaust(seq, error);
        };
        let jitter = (delay as f64 * 0.1 * jitter) as Micros;
        self.give_back(seq);
        let event = self.events.get_mut(&seq).unwrap();
        event.attempts += 1;
        event.error = error.to_owned();
        event.due = now + after.unwrap_or(delay + jitter);
    }

    /// An event failed for good.
    pub fn exhaust(&mut self, seq: u64, error: &str) {
        self.end(seq, Settled::Failed, error);
        let event = self.events.get_mut(&seq).unwrap();
        let block = self.rules.on_exhausted == Exhausted::BlockKey;
        event.holds = block && event.key.is_some() && seq > self.expired_through;
        self.paused |= self.rules.on_exhausted == Exhausted::Pause;
    }

    /// A lease ends its event, so it counts.
    pub fn end(&mut self, seq: u64, state: Settled, error: &str) {
        let event = self.events.get_mut(&seq).unwrap();
        event.attempts += 1;
        (event.held, event.ended) = (None, Some(state));
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
        let held = self.events.iter();
        let held = held.filter_map(|(seq, event)| Some((event.held?.until, *seq)));
        let mut ends: Vec<_> = held.filter(|(until, _)| *until <= now).collect();
        ends.sort();
        ends.into_iter().map(|(_, seq)| seq).collect()
    }

    pub fn expire_through(&mut self, seq: u64) {
        self.expired_through = self.expired_through.max(seq);
        for (_, event) in self.events.range_mut(..=seq) {
            event.holds = false;
            if event.held.is_none() {
                event.ended.get_or_insert(Settled::Expired);
            }
        }
        self.position.cursor = self.position.cursor.max(seq);
    }

    pub fn redeliver(&mut self, seq: u64, derived: bool) -> bool {
        let event = self.events.get_mut(&seq).unwrap();
        if event.ended.is_none() || seq <= self.expired_through {
            return event.unstored && event.ended.is_none();
        }
        let key = event.key;
        *event = Known::new(key, event.bytes);
        (event.redelivery, event.unstored, event.derived) = (true, true, derived);
        let later = self.events.range_mut(seq + 1..);
        for (_, other) in later.filter(|(_, other)| key.is_some() && other.key == key) {
            other.released = None;
        }
        true
    }
}
