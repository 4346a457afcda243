//! What is stored of a subscription, and what a new owner makes of it.

use std::collections::BTreeMap;

use super::super::super::*;
use super::super::model::Model;
use super::History;

/// The rows that a subscription has besides its position.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    pub exceptions: BTreeMap<u64, Exception>,
    pub ranges: Vec<(u64, u64, Settled)>,
    /// To be written to the row of the subscription.
    pub paused: bool,
}

impl Rows {
    pub fn in_range(&self, seq: u64) -> Option<Settled> {
        let mut ranges = self.ranges.iter();
        let range = ranges.find(|(first, last, _)| (*first..=*last).contains(&seq));
        range.map(|(_, _, state)| *state)
    }

    fn apply(&mut self, changes: Changes) {
        let put = changes.put.into_iter();
        self.exceptions
            .extend(put.map(|exception| (exception.seq, exception)));
        for seq in changes.removed {
            self.exceptions.remove(&seq);
        }
        for seq in changes.freed {
            self.exceptions.get_mut(&seq).unwrap().held_key = None;
        }
        self.ranges.extend(changes.ranges);
        self.paused |= changes.paused;
    }

    /// Events after this one were never delivered.
    fn cut(&mut self, last: u64) {
        self.exceptions.retain(|seq, _| *seq <= last);
        self.ranges.retain(|(first, _, _)| *first <= last);
        for (_, end, _) in &mut self.ranges {
            *end = last.min(*end);
        }
    }
}

/// What a new owner finds.
#[derive(Debug, Clone)]
pub struct Stored {
    pub rows: Rows,
    pub position: Position,
    pub unsettled: Vec<u8>,
    /// Without what was read ahead.
    pub short: bool,
    /// What the model was then.
    pub model: Model,
}

impl Stored {
    pub fn nothing(model: &Model) -> Stored {
        Stored {
            rows: Rows::default(),
            position: Position::default(),
            unsettled: Vec::new(),
            short: false,
            model: model.clone(),
        }
    }
}

impl History {
    pub(super) fn take_changes(&mut self) {
        self.untaken = 0;
        self.rows.apply(self.machine.take_changes());
    }

    pub(super) fn checkpoint(&mut self) {
        let short = self.random.percent(70);
        self.store(short);
    }

    /// `short`: without what was read ahead.
    fn store(&mut self, short: bool) {
        self.note(format!("checkpoint, short: {short}"));
        self.take_changes();
        self.paused |= std::mem::take(&mut self.rows.paused);
        let (position, unsettled) = match short {
            true => self.machine.save_short(),
            false => self.machine.save(),
        };
        assert!(!self.machine.is_dirty());
        let packed = pack(&unsettled);
        assert_eq!(unpack(&packed).as_ref(), Ok(&unsettled));
        let mut model = self.model.clone();
        // They come again, so nothing may have become of them.
        for (seq, event) in model.events.split_off(&(position.cursor + 1)) {
            assert!(event.ended.is_none() && event.held.is_none(), "{seq}");
        }
        self.stored = Stored {
            rows: self.rows.clone(),
            position,
            unsettled: packed,
            short,
            model,
        };
        // Now and then that is on disk, and the machine does not know it yet.
        if self.random.percent(70) {
            self.machine.stored(&self.machine.unstored());
            let events = self.model.events.values_mut();
            events.for_each(|event| event.unstored = false);
        }
    }

    /// Another owner goes on with what was stored; the rest is lost.
    pub(super) fn fail_over(&mut self) {
        if self.random.percent(50) {
            self.checkpoint();
        }
        self.take_over();
    }

    fn take_over(&mut self) {
        self.note("another owner".to_owned());
        let rules = self.model.rules.clone();
        let epoch = self.model.epoch + 1;
        let stored = self.stored.clone();
        let exceptions = stored.rows.exceptions.iter();
        let held = exceptions.filter_map(|(seq, of)| of.held_key.map(|key| (key, *seq)));
        let held: Vec<_> = held.collect();
        let unsettled = unpack(&stored.unsettled).unwrap();
        self.model = Model {
            epoch,
            paused: self.paused,
            position: stored.position,
            events: stored.model.events,
            ..Model::new(&rules)
        };
        for event in self.model.events.values_mut() {
            event.released = None;
            event.unstored = false;
            if event.held.take().is_some() {
                event.due = 0;
            }
        }
        self.machine = Leasing::new(rules, epoch, stored.position, &unsettled, &held);
        self.machine.set_paused(self.paused);
        self.rows = stored.rows;
        self.untaken = 0;
        self.floor = stored.position.floor;
    }

    pub(super) fn seek(&mut self) {
        self.store(false);
        let cursor = self.model.position.cursor;
        let to = cursor + self.random.below(12) as u64;
        let to = to.saturating_sub(self.random.below(20) as u64);
        let to = to.clamp(self.model.expired_through, self.log.len() as u64);
        self.note(format!("seek from {cursor} to {to}"));
        if to < cursor {
            self.seek_back(to);
        } else {
            self.seek_forward(to);
        }
        self.take_over();
    }

    fn seek_back(&mut self, to: u64) {
        let stored = &mut self.stored;
        let mut unsettled = unpack(&stored.unsettled).unwrap();
        unsettled.retain(|saved| saved.seq <= to);
        stored.unsettled = pack(&unsettled);
        stored.model.events.retain(|seq, _| *seq <= to);
        stored.rows.cut(to);
        let before = stored.position;
        stored.position = Position {
            floor: before.floor.min(to),
            cursor: to,
            replay_until: before.replay_until.max(before.cursor),
        };
    }

    fn seek_forward(&mut self, to: u64) {
        let cursor = self.stored.position.cursor;
        self.pass_over(to, Settled::Skipped);
        let stored = &mut self.stored;
        stored.model.events = self.model.events.clone();
        for exception in stored.rows.exceptions.values_mut() {
            exception.held_key = None;
        }
        for saved in unpack(&stored.unsettled).unwrap() {
            let exception = Exception {
                seq: saved.seq,
                state: Settled::Skipped,
                attempts: saved.attempts,
                error: saved.error,
                held_key: None,
                at: self.now,
            };
            stored.rows.exceptions.insert(saved.seq, exception);
        }
        for event in stored.model.events.values_mut() {
            event.holds = false;
            event.held = None;
            event.ended.get_or_insert(Settled::Skipped);
        }
        if cursor < to {
            let range = (cursor + 1, to, Settled::Skipped);
            stored.rows.ranges.push(range);
        }
        stored.unsettled = Vec::new();
        stored.position.floor = to;
        stored.position.cursor = to;
    }
}
