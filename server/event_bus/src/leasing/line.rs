//! How events get in line to be leased, and out of it.

use std::sync::Arc;

use hub_core::clock::Micros;

use super::{Event, Exception, Exhausted, Key, Leasing, Place, Saved, Settled};

impl Leasing {
    /// An event that matches. Events come in rising sequence, so that everything before this one
    /// was looked at too; one that was looked at before is ignored.
    pub fn offer(&mut self, seq: u64, key: Option<Key>, bytes: u32) {
        if seq <= self.cursor {
            return;
        }
        self.cursor = seq;
        self.dirty = true;
        if self.known_ahead.remove(&seq) {
            self.pending.remove(seq);
        }
        self.enter(seq, Event::new(self.rules.ordering.key(key), bytes));
    }

    /// Everything up to here was looked at.
    pub fn looked_through(&mut self, seq: u64) {
        if seq > self.cursor {
            self.cursor = seq;
            self.dirty = true;
        }
    }

    /// Retention passed these events: what of them is not settled is expired, a leased one when its
    /// lease returns, and what was not looked at is a range. Costs O(log n) for each of them.
    /// Returns the first and the last of those that had been looked at and expired now.
    pub fn expire_through(&mut self, seq: u64, now: Micros) -> Option<(u64, u64)> {
        self.expired_through = self.expired_through.max(seq);
        let passed = self.events.range(..=seq);
        let passed = passed.filter(|(_, event)| !event.is_leased());
        let passed: Vec<u64> = passed.map(|(seq, _)| *seq).collect();
        for seq in &passed {
            self.settle(*seq, Settled::Expired, None, now);
        }
        // Nobody can redeliver them any more.
        let held = self.keys.held().take_while(|(holder, _)| *holder <= seq);
        let held: Vec<u64> = held.map(|(holder, _)| holder).collect();
        for holder in held {
            self.free(holder);
        }
        if self.cursor < seq {
            let first = self.cursor + 1;
            self.pending.range(first, seq, Settled::Expired);
            self.looked_through(seq);
        }
        Some((*passed.first()?, *passed.last()?))
    }

    /// An event that was leased when retention passed it: nobody gets it any more.
    pub(super) fn lose(&mut self, seq: u64, now: Micros) {
        self.settle(seq, Settled::Expired, None, now);
        let (first, last) = self.lost.unwrap_or((seq, seq));
        self.lost = Some((first.min(seq), last.max(seq)));
    }

    /// The first and the last of the events that were leased when retention passed them, and whose
    /// leases have ended since the last call. All between them are passed too.
    pub fn take_lost(&mut self) -> Option<(u64, u64)> {
        self.lost.take()
    }

    /// How far retention came, as far as is known.
    pub fn expired_through(&self) -> u64 {
        self.expired_through
    }

    /// An event that was looked at and is settled is queued again, with all its attempts, once that
    /// is [`Leasing::stored`]; its exception goes. `derived_delivered`: an ack needs no exception,
    /// because without one the event counts as delivered.
    ///
    /// False if nothing is to be stored: it was not settled, was never looked at, or retention
    /// passed it. Whether there is room is the caller's: [`Leasing::redelivery_left`].
    pub fn redeliver(
        &mut self,
        seq: u64,
        key: Option<Key>,
        bytes: u32,
        derived_delivered: bool,
    ) -> bool {
        let passed = seq > self.cursor || seq <= self.expired_through;
        if passed || self.events.contains_key(&seq) {
            // Who asks again, because it was not stored in time, waits for it again.
            return self.unstored.contains(&seq);
        }
        // The floor that was reached stays, also with an unsettled event below it.
        self.floor = self.position().floor;
        let mut event = Event::new(self.rules.ordering.key(key), bytes);
        event.redelivery = true;
        event.derived_delivered = derived_delivered;
        // From now on it holds its key back by being unsettled.
        let held = self.keys.free(seq);
        self.pending.remove(seq);
        self.dirty = true;
        let key = event.key;
        self.unstored.insert(seq);
        self.enter(seq, event);
        for key in [held, key].into_iter().flatten() {
            self.give_turn(key);
        }
        true
    }

    /// Whether an event was redelivered and that is not stored yet.
    pub fn is_unstored(&self, seq: u64) -> bool {
        self.unstored.contains(&seq)
    }

    /// A failed event does not hold its key back any more. False if it did not.
    pub(super) fn free(&mut self, seq: u64) -> bool {
        let Some(key) = self.keys.free(seq) else {
            return false;
        };
        self.pending.free(seq);
        self.give_turn(key);
        true
    }

    /// An event as it was saved.
    pub(super) fn restore(&mut self, saved: &Saved) {
        let mut event = Event::new(self.rules.ordering.key(saved.key), saved.bytes);
        event.attempts = saved.attempts;
        event.losses = saved.losses;
        event.due = saved.due;
        event.redelivery = saved.redelivery;
        event.derived_delivered = saved.derived_delivered;
        event.error = Some(saved.error.clone()).filter(|error| !error.is_empty());
        self.keys.free(saved.seq);
        self.enter(saved.seq, event);
    }

    fn enter(&mut self, seq: u64, event: Event) {
        self.redelivered += usize::from(event.redelivery);
        self.retrying += usize::from(event.is_retrying());
        let turn = event.key.is_none_or(|key| self.keys.enter(key, seq));
        self.events.insert(seq, event);
        if turn {
            self.expose(seq);
        }
    }

    /// An event that is not leased, and has the turn of its key, may be leased; unless the key is
    /// held, the retry is not due, or it is not stored that the event is unsettled.
    fn expose(&mut self, seq: u64) {
        let Some(event) = self.events.get_mut(&seq) else {
            return;
        };
        let held = event.key.is_some_and(|key| self.keys.is_held(key, seq));
        if event.place != Place::Behind || held || self.unstored.contains(&seq) {
            return;
        }
        if event.due == 0 {
            event.place = Place::Ready;
            self.ready.insert(seq);
        } else {
            event.place = Place::Waiting;
            self.waits.insert((event.due, seq));
        }
    }

    /// The smallest event of a key has its turn, but not while another one is leased.
    fn give_turn(&mut self, key: Key) {
        let Some(line) = self.keys.line(key) else {
            return;
        };
        let head = self.events.get_mut(&line.head);
        let Some(head) = head.filter(|head| !head.is_leased()) else {
            return;
        };
        let Some(first) = self.keys.sort(key) else {
            return self.expose(line.head);
        };
        let place = std::mem::replace(&mut head.place, Place::Behind);
        let (due, until) = (head.due, head.until);
        self.withdraw(line.head, place, due, until);
        self.expose(first);
    }

    /// An event whose lease ended, or that is stored now, is in line again.
    pub(super) fn line_up(&mut self, seq: u64, key: Option<Key>) {
        match key {
            Some(key) => self.give_turn(key),
            None => self.expose(seq),
        }
    }

    /// Takes an event out of the set that it is in.
    fn withdraw(&mut self, seq: u64, place: Place, due: Micros, until: Micros) {
        match place {
            Place::Behind => {}
            Place::Ready => {
                self.ready.remove(&seq);
            }
            Place::Waiting => {
                self.waits.remove(&(due, seq));
            }
            Place::Released => {
                self.released.remove(&seq);
                self.waits.remove(&(until, seq));
            }
            Place::Leased => {
                self.leases.remove(&(until, seq));
            }
        }
    }

    /// An event that is not unsettled any more, already out of `events`: the next one of its key
    /// has the turn.
    pub(super) fn left(&mut self, seq: u64, event: &Event) {
        self.dirty = true;
        self.settled_through = self.settled_through.max(seq);
        self.withdraw(seq, event.place, event.due, event.until);
        if event.is_leased() {
            self.members.returned(event.member, event.bytes);
        }
        self.redelivered -= usize::from(event.redelivery);
        self.unstored.remove(&seq);
        self.retrying -= usize::from(event.is_retrying());
        if let Some(key) = event.key
            && let Some(next) = self.keys.leave(key, seq)
        {
            self.expose(next);
        }
    }

    /// An event ends otherwise than by an ack; `error` replaces that of its last attempt.
    pub(super) fn settle(
        &mut self,
        seq: u64,
        state: Settled,
        error: Option<Arc<str>>,
        now: Micros,
    ) {
        let Some(event) = self.events.remove(&seq) else {
            return;
        };
        // What retention passed cannot be redelivered, so that it would hold the key for ever.
        let holds = state == Settled::Failed
            && self.rules.on_exhausted == Exhausted::BlockKey
            && seq > self.expired_through;
        let held_key = event.key.filter(|_| holds);
        if let Some(key) = held_key {
            self.keys.hold(key, seq);
        }
        self.left(seq, &event);
        self.pending.put(Exception {
            seq,
            state,
            attempts: event.attempts,
            error: error.or(event.error).unwrap_or_else(|| Arc::from("")),
            held_key,
            at: now,
        });
    }
}
