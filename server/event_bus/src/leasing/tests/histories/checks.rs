//! What holds after each step.

use std::collections::{BTreeMap, BTreeSet};

use super::super::super::*;
use super::super::SECOND;
use super::super::model::Known;
use super::{History, KNOWN_MAX, WINDOW};

impl History {
    pub(super) fn check(&mut self) {
        self.model.move_floor();
        self.check_position();
        self.check_counts();
        self.check_keys();
        self.check_time();
        // The changes of some steps are taken together.
        self.untaken = self.untaken.saturating_sub(1);
        if self.untaken == 0 {
            self.take_changes();
            self.check_dirty();
        }
        for (seq, known) in &self.model.events {
            self.check_event(*seq, known);
        }
        self.forget();
    }

    fn check_position(&mut self) {
        let position = self.machine.position();
        assert_eq!(position, self.model.position, "the position");
        assert!(position.floor <= position.cursor);
        assert!(position.floor >= self.floor, "the floor fell");
        self.floor = position.floor;
    }

    fn check_counts(&self) {
        let (mut offered, mut redelivered) = (0, 0);
        let (mut in_flight, mut retrying) = (0, 0);
        for (_, known) in self.model.unsettled() {
            offered += usize::from(!known.redelivery);
            redelivered += usize::from(known.redelivery);
            in_flight += usize::from(known.held.is_some());
            retrying += usize::from(known.due != 0 && known.held.is_none());
        }
        let holds = self.model.events.values().filter(|known| known.holds);
        assert!(offered <= WINDOW, "the window has {offered}");
        let left = WINDOW.saturating_sub(offered + holds.count());
        assert_eq!(self.machine.window_left(), left, "the window");
        assert_eq!(self.machine.redelivery_left(), WINDOW - redelivered);
        let counts = Counts {
            in_flight,
            retrying,
            unsettled: offered + redelivered,
        };
        assert_eq!(self.machine.counts(), counts);
        let oldest = self.model.unsettled().next().map(|(seq, _)| seq);
        assert_eq!(self.machine.oldest_unsettled(), oldest);
        assert_eq!(self.machine.is_paused(), self.model.paused);
    }

    fn check_keys(&self) {
        let mut leased = BTreeSet::new();
        for (seq, event) in &self.machine.events {
            let key = event.key.filter(|_| event.is_leased());
            assert!(
                key.is_none_or(|key| leased.insert(key)),
                "{seq} is leased too"
            );
        }
        let mut blocked = BTreeMap::new();
        for (seq, known) in &self.model.events {
            let Some(key) = known.key.filter(|_| self.blocks(*seq, known)) else {
                continue;
            };
            let after = |(other, event): &(u64, &Known)| event.key == Some(key) && other > seq;
            let waiting = self.model.unsettled().filter(after).count();
            if known.holds || waiting > 0 {
                blocked.entry(key).or_insert(Blocked {
                    key,
                    seq: *seq,
                    attempts: if known.holds { 0 } else { known.attempts },
                    waiting,
                    due: (!known.holds).then_some(known.due),
                });
            }
        }
        let mut blocked: Vec<Blocked> = blocked.into_values().collect();
        blocked.sort_by_key(|blocked| blocked.seq);
        assert_eq!(self.machine.blocked_keys(usize::MAX), blocked);
        blocked.truncate(1);
        assert_eq!(self.machine.blocked_keys(1), blocked);
    }

    /// Whether an event holds its key, or has the turn of its key and failed before.
    fn blocks(&self, seq: u64, known: &Known) -> bool {
        if known.holds || known.due == 0 || known.ended.is_some() {
            return known.holds;
        }
        let same = |(_, other): &(u64, &Known)| other.key == known.key;
        let of_key: Vec<_> = self.model.unsettled().filter(same).collect();
        let leased = of_key.iter().find(|(_, other)| other.held.is_some());
        let turn = leased.or(of_key.first()).map(|(turn, _)| *turn);
        turn == Some(seq)
    }

    fn check_time(&self) {
        let (now, model) = (self.now, &self.model);
        assert_eq!(self.machine.deliverable(now), model.deliverable(now));
        let mut times = Vec::new();
        let mut ready = false;
        for (seq, known) in model.unsettled() {
            ready |= model.is_ready(seq, now);
            let released = known.released.map(|(_, until)| until);
            match known.held {
                Some(held) => times.push(held.until),
                None if model.is_ready(seq, now) => times.extend(released.filter(|at| *at > now)),
                None if !model.is_behind(seq) && !known.unstored => times.push(known.due),
                None => {}
            }
        }
        if ready && !model.paused && model.rate_left(now) == 0 {
            let recent = model.leased_at.iter().filter(|at| **at > now - SECOND);
            times.extend(recent.min().map(|at| at + SECOND));
        }
        let due = self.machine.next_due();
        // What is due already was not looked at since.
        if due.is_none_or(|due| due > now) {
            assert_eq!(due, times.into_iter().min(), "the next time");
        }
    }

    /// What is not dirty is as it was stored.
    fn check_dirty(&mut self) {
        if self.machine.is_dirty() || !self.random.percent(10) {
            return;
        }
        let (mut position, mut saved) = self.machine.save();
        let mut stored = unpack(&self.stored.unsettled).unwrap();
        if self.stored.short {
            position.cursor = self.stored.position.cursor;
            saved.retain(|saved| saved.seq <= position.cursor);
        }
        for saved in saved.iter_mut().chain(&mut stored) {
            saved.in_flight = false;
        }
        assert_eq!(
            (position, saved),
            (self.stored.position, stored),
            "not dirty"
        );
    }

    fn check_event(&self, seq: u64, known: &Known) {
        let state = self.machine.state_of(seq);
        let Some(ended) = known.ended else {
            assert_eq!(state.is_none(), known.unstored, "whether {seq} is stored");
            return state
                .into_iter()
                .for_each(|state| self.check_unsettled(seq, known, state));
        };
        assert_eq!(state, None, "{seq} is settled");
        assert!(seq <= self.model.position.cursor);
        if self.untaken > 0 {
            return;
        }
        // As the log derives it from what is stored.
        let exception = self.rows.exceptions.get(&seq);
        let derived = exception.map(|exception| exception.state);
        let derived = derived.or_else(|| self.rows.in_range(seq));
        assert_eq!(
            derived.unwrap_or(Settled::Delivered),
            ended,
            "how {seq} ended"
        );
        let held = exception.is_some_and(|exception| exception.held_key.is_some());
        assert_eq!(held, known.holds, "whether {seq} holds its key");
        if let Some(exception) = exception {
            assert_eq!(exception.attempts, known.attempts, "attempts of {seq}");
            assert_eq!(*exception.error, known.error, "error of {seq}");
        }
        if ended == Settled::Delivered && known.derived {
            assert_eq!(exception, None, "{seq} needs no exception");
        }
    }

    fn check_unsettled(&self, seq: u64, known: &Known, state: UnsettledState) {
        let expected = match (known.held, state.phase) {
            (Some(held), _) => Phase::InFlight { until: held.until },
            _ if known.due != 0 => Phase::RetryWait { due: known.due },
            (_, blocked @ Phase::KeyBlocked { .. }) if self.model.is_behind(seq) => blocked,
            _ => Phase::Queued,
        };
        assert_eq!(state.phase, expected, "{seq}: {known:?}");
        let leased = u32::from(known.held.is_some());
        assert_eq!(state.attempts, known.attempts + leased, "attempts of {seq}");
        assert_eq!(state.error.as_deref().unwrap_or(""), known.error);
        if self.untaken == 0 {
            let exception = self.rows.exceptions.get(&seq);
            assert_eq!(exception, None, "{seq} is not settled");
        }
    }

    /// Old events of the model, which nothing looks at any more.
    fn forget(&mut self) {
        let events = self.model.events.iter();
        let mut settled = events.filter(|(_, known)| known.ended.is_some() && !known.holds);
        let first = settled.next().map(|(seq, _)| *seq);
        if settled.count() > KNOWN_MAX {
            first.and_then(|seq| self.model.events.remove(&seq));
        }
        let now = self.now;
        self.model.leased_at.retain(|at| *at > now - SECOND);
    }
}
