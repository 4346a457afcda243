//! Leases: who gets which events, and what becomes of them.

use std::collections::btree_map::Entry;
use std::sync::Arc;

use hub_core::clock::Micros;

use super::{
    Event, Exception, Exhausted, LOSSES_MAX, Lease, LeaseId, Leasing, MemberId, Nack, Ordering,
    Outcome, Place, Settled, kept_error,
};

/// For so long a released event goes to other members only, if there are any.
const PASSED_OVER: Micros = 1_000_000;
/// Released events that a lease looks at to find one of another member.
const RELEASED_LOOKED_AT_MAX: usize = 100;
/// The part of a delay by which jitter lengthens it at most.
const JITTER: f64 = 0.1;

/// The error of an attempt that was not answered in time.
pub(crate) const LEASE_EXPIRED: &str = "the lease expired";
/// The error of an attempt that ended with the connection too often.
pub(crate) const CONNECTION_LOST: &str = "the connection was lost again while the event was leased";

impl Leasing {
    /// A member is here. In total order the one that joined before all others gets the events.
    pub fn join(&mut self, member: MemberId) {
        self.members.join(member);
    }

    /// A member lost its connection: its leases return without costing an attempt, but an event
    /// that was held at [`LOSSES_MAX`] losses is retried as after a nack. Costs O(leases) if it has
    /// any. Returns whether an attempt failed.
    pub fn leave(&mut self, member: MemberId, now: Micros, jitter: f64) -> bool {
        self.retire(member);
        let mut failed = false;
        let leased = match self.members.outstanding(member) {
            0 => Vec::new(),
            _ => self.leased(Some(member)),
        };
        for seq in leased {
            let Some(event) = self.end_lease(seq) else {
                continue;
            };
            event.losses = event.losses.saturating_add(1);
            if event.losses >= LOSSES_MAX {
                self.fail_attempt(seq, Some(Arc::from(CONNECTION_LOST)), None, now, jitter);
                failed = true;
            } else {
                self.queue_again(seq, now);
            }
        }
        failed
    }

    /// A member is not here any more; its leases go on.
    pub(super) fn retire(&mut self, member: MemberId) {
        self.members.leave(member);
        let alone = self.members.joined() <= 1;
        let released = self.released.iter();
        let released = released.filter(|(_, by)| alone || **by == member);
        let released: Vec<u64> = released.map(|(seq, _)| *seq).collect();
        for seq in released {
            self.released.remove(&seq);
            if let Some(event) = self.events.get_mut(&seq) {
                self.waits.remove(&(event.until, seq));
                event.place = Place::Ready;
                self.ready.insert(seq);
            }
        }
    }

    /// Leases events to a member, the oldest first: up to `events_max`, and up to `bytes_max`
    /// together. An event that is larger goes alone, if the member has nothing outstanding.
    /// `length` replaces that of the rules.
    pub fn lease(
        &mut self,
        member: MemberId,
        now: Micros,
        events_max: usize,
        bytes_max: u64,
        length: Option<Micros>,
    ) -> Vec<Lease> {
        self.wake(now);
        let standby = self.is_total() && self.members.first() != Some(member);
        if standby || self.is_paused() {
            return Vec::new();
        }
        let rate_left = self.rate.left(self.rules.max_per_second, now);
        let events_max = events_max.min(rate_left);
        let until = now.saturating_add(length.unwrap_or(self.rules.lease));
        let idle = self.members.outstanding(member) == 0;
        let mut bytes_left = bytes_max;
        let found = self.ready.len() + self.released.len();
        let mut leases = Vec::with_capacity(events_max.min(found));
        while leases.len() < events_max
            && let Some(seq) = self.next_for(member)
        {
            let alone = idle && leases.is_empty();
            let bytes_max = if alone { u64::MAX } else { bytes_left };
            let Some(lease) = self.lease_one(seq, member, until, bytes_max) else {
                break;
            };
            bytes_left = bytes_left.saturating_sub(u64::from(lease.bytes));
            leases.push(lease);
        }
        if !leases.is_empty() {
            self.dirty = true;
            let bytes = leases.iter().map(|lease| u64::from(lease.bytes)).sum();
            self.members.leased(member, leases.len(), bytes);
            if self.rules.max_per_second > 0 {
                self.rate.count(leases.len(), now);
            }
        }
        self.look_at_rate(now);
        leases
    }

    /// Whether [`Leasing::lease`] would give somebody something. An event that was released is for
    /// the other members first, so the answer may still be empty for one of them.
    pub fn deliverable(&self, now: Micros) -> bool {
        let due = self.waits.first().is_some_and(|(at, _)| *at <= now);
        let some = due || !self.ready.is_empty() || !self.released.is_empty();
        let nobody = self.is_total() && self.members.first().is_none();
        some && !nobody && !self.is_paused() && self.rate.left(self.rules.max_per_second, now) > 0
    }

    /// The event was processed.
    pub fn ack(&mut self, id: LeaseId, now: Micros) -> Outcome {
        let current = self.epoch == id.epoch;
        let event = match self.events.entry(id.seq) {
            Entry::Occupied(entry) if current && is_current(entry.get(), id, now) => entry.remove(),
            _ => return self.not_current(id),
        };
        self.remembered.push(id);
        self.left(id.seq, &event);
        if !event.derived_delivered {
            self.pending.put(Exception {
                seq: id.seq,
                state: Settled::Delivered,
                attempts: event.attempts + 1,
                error: event.error.unwrap_or_else(|| Arc::from("")),
                held_key: None,
                at: now,
            });
        }
        Outcome::Ok
    }

    /// The event was not processed. `error` is kept up to [`super::ERROR_BYTES_MAX`]; `jitter` from
    /// 0 to 1 lengthens a delay of the rules by up to a tenth.
    pub fn nack(
        &mut self,
        id: LeaseId,
        how: Nack,
        error: &str,
        now: Micros,
        jitter: f64,
    ) -> Outcome {
        if let Some(outcome) = self.refused(id, now) {
            return outcome;
        }
        let seq = id.seq;
        let Some(event) = self.end_lease(seq) else {
            return Outcome::Unknown;
        };
        let (error, member) = (kept_error(error), event.member);
        match how {
            Nack::Retry { after } => self.fail_attempt(seq, error, after, now, jitter),
            Nack::Release => {
                self.queue_again(seq, now);
                self.pass_over(seq, member, now);
            }
            Nack::Fail => {
                event.attempts += 1;
                self.exhaust(seq, error, now);
            }
            Nack::Skip => {
                event.attempts += 1;
                self.settle(seq, Settled::Skipped, error, now);
            }
        }
        if !self.events.contains_key(&seq) {
            self.remembered.push(id);
        }
        Outcome::Ok
    }

    /// The lease ends `length` from now.
    pub fn extend(&mut self, id: LeaseId, length: Micros, now: Micros) -> Outcome {
        if let Some(outcome) = self.refused(id, now) {
            return outcome;
        }
        if let Some(event) = self.events.get_mut(&id.seq) {
            self.leases.remove(&(event.until, id.seq));
            event.until = now.saturating_add(length);
            self.leases.insert((event.until, id.seq));
        }
        Outcome::Ok
    }

    /// The leased event is not in the log any more, so that it could not be handed over.
    pub fn gone(&mut self, id: LeaseId, now: Micros) {
        if self.refused(id, now).is_none() && self.end_lease(id.seq).is_some() {
            self.lose(id.seq, now);
        }
    }

    /// All leases return, without costing an attempt: the server drains.
    pub fn release_all(&mut self, now: Micros) {
        for seq in self.leased(None) {
            self.end_lease(seq);
            self.queue_again(seq, now);
        }
    }

    /// Time passed: expired leases end as after a nack, and due retries may be leased. Returns
    /// whether a lease expired.
    pub fn tick(&mut self, now: Micros, jitter: f64) -> bool {
        let mut expired = false;
        while let Some((until, seq)) = self.leases.pop_first() {
            if until > now {
                self.leases.insert((until, seq));
                break;
            }
            self.end_lease(seq);
            self.fail_attempt(seq, Some(Arc::from(LEASE_EXPIRED)), None, now, jitter);
            expired = true;
        }
        self.wake(now);
        self.look_at_rate(now);
        expired
    }

    /// When [`Leasing::tick`] next changes something, or the speed limit lets more through; in the
    /// past if it was not called since.
    pub fn next_due(&self) -> Option<Micros> {
        let first = [self.leases.first(), self.waits.first()];
        let first = first.into_iter().flatten().map(|(at, _)| *at);
        let some = !self.ready.is_empty() || !self.released.is_empty();
        let limited = self.limited_until.filter(|_| some && !self.is_paused());
        first.chain(limited).min()
    }

    fn is_total(&self) -> bool {
        self.rules.ordering == Ordering::Total
    }

    /// Due retries may be leased, and released events by everybody.
    fn wake(&mut self, now: Micros) {
        while let Some((at, seq)) = self.waits.first().copied()
            && at <= now
        {
            self.waits.pop_first();
            if let Some(event) = self.events.get_mut(&seq) {
                if event.place == Place::Released {
                    self.released.remove(&seq);
                }
                event.place = Place::Ready;
                self.ready.insert(seq);
            }
        }
    }

    fn look_at_rate(&mut self, now: Micros) {
        let limited = self.rate.left(self.rules.max_per_second, now) == 0;
        let next = limited.then(|| self.rate.next(now));
        self.limited_until = next.flatten();
    }

    /// The oldest event that a member may lease.
    fn next_for(&self, member: MemberId) -> Option<u64> {
        let mut first = self.ready.first().copied();
        if !self.released.is_empty() {
            let mut released = self.released.iter().take(RELEASED_LOOKED_AT_MAX);
            let others = released.find(|(_, by)| **by != member);
            first = first.into_iter().chain(others.map(|(seq, _)| *seq)).min();
        }
        first
    }

    /// `None` if the event is too large.
    fn lease_one(
        &mut self,
        seq: u64,
        member: MemberId,
        until: Micros,
        bytes_max: u64,
    ) -> Option<Lease> {
        let event = self.events.get_mut(&seq)?;
        if u64::from(event.bytes) > bytes_max {
            return None;
        }
        if event.place == Place::Released {
            self.released.remove(&seq);
            self.waits.remove(&(event.until, seq));
        } else {
            self.ready.pop_first();
        }
        self.retrying -= usize::from(event.due != 0);
        self.number += 1;
        event.place = Place::Leased;
        event.until = until;
        event.number = self.number;
        event.member = member;
        self.leases.insert((until, seq));
        Some(Lease {
            id: LeaseId {
                seq,
                epoch: self.epoch,
                number: self.number,
            },
            attempt: event.attempts + 1,
            until,
            previous_error: event.error.clone(),
            redelivery: event.redelivery || seq <= self.replay_until,
            bytes: event.bytes,
        })
    }

    /// The leased events, of one member or of all.
    fn leased(&self, member: Option<MemberId>) -> Vec<u64> {
        let leases = self.leases.iter().map(|(_, seq)| *seq);
        let of = |seq: &u64| {
            let event = self.events.get(seq);
            member.is_none() || event.map(|event| event.member) == member
        };
        let mut leased: Vec<u64> = leases.filter(of).collect();
        leased.sort_unstable();
        leased
    }

    /// What a lease that is not the current one of its event is.
    fn not_current(&self, id: LeaseId) -> Outcome {
        let settled = id.seq <= self.cursor && !self.events.contains_key(&id.seq);
        if id.epoch != self.epoch && settled {
            // Perhaps by this very lease, of which the answer was lost with the owner before: it
            // does not come again.
            Outcome::AlreadySettled
        } else if id.epoch != self.epoch {
            Outcome::LeaseExpired
        } else if self.remembered.contains(id) {
            Outcome::AlreadySettled
        } else if id.seq <= self.cursor {
            Outcome::LeaseExpired
        } else {
            Outcome::Unknown
        }
    }

    /// Why a lease has no effect; `None` if it has.
    fn refused(&self, id: LeaseId, now: Micros) -> Option<Outcome> {
        let event = self.events.get(&id.seq);
        let current = event.is_some_and(|event| is_current(event, id, now));
        (!current || id.epoch != self.epoch).then(|| self.not_current(id))
    }

    /// The event is not leased any more; the caller decides what becomes of it.
    fn end_lease(&mut self, seq: u64) -> Option<&mut Event> {
        let event = self.events.get_mut(&seq)?;
        self.leases.remove(&(event.until, seq));
        self.members.returned(event.member, event.bytes);
        event.place = Place::Behind;
        event.due = 0;
        self.dirty = true;
        Some(event)
    }

    /// An event whose lease ended is queued as before the lease; if retention passed it meanwhile,
    /// it is expired.
    fn queue_again(&mut self, seq: u64, now: Micros) {
        if seq <= self.expired_through {
            return self.lose(seq, now);
        }
        let key = self.events.get(&seq).and_then(|event| event.key);
        self.line_up(seq, key);
    }

    /// A member does not get an event again that it released, while others may take it.
    fn pass_over(&mut self, seq: u64, member: MemberId, now: Micros) {
        if !self.is_total()
            && self.members.others(member) > 0
            && let Some(event) = self.events.get_mut(&seq)
            && event.place == Place::Ready
        {
            event.place = Place::Released;
            event.until = now.saturating_add(PASSED_OVER);
            self.ready.remove(&seq);
            self.released.insert(seq, member);
            self.waits.insert((event.until, seq));
        }
    }

    /// An attempt failed: the event waits for its retry, or is exhausted.
    fn fail_attempt(
        &mut self,
        seq: u64,
        error: Option<Arc<str>>,
        after: Option<Micros>,
        now: Micros,
        jitter: f64,
    ) {
        let Some(event) = self.events.get_mut(&seq) else {
            return;
        };
        event.attempts += 1;
        let Some(delay) = self.rules.delays.get(event.attempts as usize - 1) else {
            return self.exhaust(seq, error, now);
        };
        event.error = error;
        if seq <= self.expired_through {
            return self.lose(seq, now);
        }
        let delay = after.unwrap_or_else(|| lengthened(*delay, jitter));
        // 0 means that there is none.
        event.due = now.saturating_add(delay).max(1);
        self.retrying += 1;
        let key = event.key;
        self.line_up(seq, key);
    }

    /// An event failed for good.
    fn exhaust(&mut self, seq: u64, error: Option<Arc<str>>, now: Micros) {
        // The error before is not why it failed now.
        let error = error.unwrap_or_else(|| Arc::from(""));
        self.settle(seq, Settled::Failed, Some(error), now);
        if self.rules.on_exhausted == Exhausted::Pause {
            self.pending.pause();
        }
    }
}

fn is_current(event: &Event, id: LeaseId, now: Micros) -> bool {
    event.is_leased() && event.number == id.number && now < event.until
}

fn lengthened(delay: Micros, jitter: f64) -> Micros {
    delay.saturating_add((delay as f64 * JITTER * jitter.clamp(0.0, 1.0)) as Micros)
}
