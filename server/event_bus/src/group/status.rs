//! How a group is doing.

use std::collections::HashMap;
use std::sync::Arc;

use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_proto::hub::event_bus::v1::{NackAction, SubscriptionState};

use super::reading::Backlog;
use super::{Group, PULLED, Settling, State};
use crate::leasing::UnsettledState;
use crate::owners::{BLOCKED_MAX, Live, Said};
use crate::subscription_status::RISK_PART;

/// Failures alone for so long mean that it fails, in microseconds.
const FAILING: Micros = 60_000_000;

/// How long it is believed that retention is what it was, in microseconds.
const SAFE_FOR: Micros = 10_000_000;

/// Retention reaches no event from one on for a while.
#[derive(Debug, Clone, Copy)]
pub(super) struct Safe {
    from: u64,
    since: Micros,
    until: Micros,
}

impl Safe {
    fn holds(&self, oldest: u64, now: Micros) -> bool {
        oldest >= self.from && (self.since..self.until).contains(&now)
    }
}

/// What came of its attempts lately.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    last_error: String,
    acked_at: Option<Micros>,
    failed_at: Option<Micros>,
}

impl Outcomes {
    pub(super) fn note(&mut self, how: &Settling, now: Micros) {
        match how {
            // What is skipped was decided about, as what is acked.
            Settling::Ack
            | Settling::Nack {
                action: NackAction::Skip,
                ..
            } => self.acked_at = Some(now),
            Settling::Nack { action, error, .. } if *action != NackAction::Release => {
                self.failed(error, now);
            }
            _ => {}
        }
    }

    /// An attempt failed; nobody has to have said so.
    pub(super) fn failed(&mut self, error: &str, now: Micros) {
        if !error.is_empty() {
            error.clone_into(&mut self.last_error);
        }
        self.failed_at = Some(now);
    }

    /// Every attempt of the last minute failed, and there was one.
    fn is_failing(&self, now: Micros) -> bool {
        let recent = |at: Option<Micros>| at.is_some_and(|at| now - at < FAILING);
        recent(self.failed_at) && !recent(self.acked_at)
    }
}

impl Group {
    /// How it is doing; `None` if it is over.
    pub(crate) fn live(&self) -> Option<Live> {
        let now = self.now();
        let state = self.lock();
        if state.over {
            return None;
        }
        Some(Live {
            members: state.members(now),
            window_full: state.leasing.window_left() == 0,
            failing: state.outcomes.is_failing(now),
            last_error: state.outcomes.last_error.clone(),
            ..Live::of(&state.leasing)
        })
    }

    /// Where an event stands that is not settled; `None` if it is, or was not reached yet.
    pub(crate) fn state_of(&self, seq: u64) -> Option<UnsettledState> {
        let state = self.lock();
        match state.over {
            true => None,
            false => state.leasing.state_of(seq),
        }
    }

    /// Where events stand that it has come to; `None` if it is over.
    pub(crate) fn said(&self, seqs: &[u64]) -> Option<HashMap<u64, Said>> {
        let state = self.lock();
        if state.over {
            return None;
        }
        let cursor = state.leasing.position().cursor;
        let seqs = seqs.iter().copied();
        let said = seqs.filter_map(|seq| match state.leasing.state_of(seq) {
            Some(unsettled) => Some((seq, Said::Unsettled(unsettled))),
            None if seq > cursor => None,
            // One look at the database says whether it is stored, and so what became of it.
            None if state.leasing.is_unstored(seq) => Some((seq, state.unsaved.of(seq)?)),
            None => Some((seq, state.unsaved.of(seq).unwrap_or(Said::Passed))),
        });
        Some(said.collect())
    }

    /// Its state for those who consume it, who are there by being told.
    pub(crate) fn state(self: &Arc<Self>) -> SubscriptionState {
        let now = self.now();
        let state = self.lock();
        if !state.entitled {
            SubscriptionState::NotEntitled
        } else if state.settings.paused(now).is_some() {
            SubscriptionState::Paused
        } else if state.leasing.window_left() == 0 {
            SubscriptionState::WindowFull
        } else if state.outcomes.is_failing(now) {
            SubscriptionState::Failing
        } else if state.leasing.position().cursor < self.log.head().seq
            || state.leasing.counts().unsettled > 0
        {
            SubscriptionState::CatchingUp
        } else {
            SubscriptionState::Live
        }
    }

    /// Events that are not settled, of what was not looked at only about those of the next 1000 of
    /// the log; and the state, for who pulls: as a status tells it to others, but that it follows
    /// a change of retention only within 10 s. Errors: `STORE_BUSY`.
    pub(crate) async fn pulled(self: &Arc<Self>) -> Result<(u64, SubscriptionState)> {
        use SubscriptionState as State;
        let backlog = self.backlog().await?;
        let state = match self.state() {
            stopped @ (State::NotEntitled | State::Paused) => stopped,
            _ if self.is_at_risk(backlog).await? => State::RetentionRisk,
            held @ (State::WindowFull | State::Failing) => held,
            _ if self.has_waiting(backlog) => State::CatchingUp,
            _ => State::Live,
        };
        Ok((backlog.count, state))
    }

    /// Whether retention soon reaches an event that is not settled.
    async fn is_at_risk(&self, backlog: Backlog) -> Result<bool> {
        let (Some(oldest), now) = (backlog.first, self.now()) else {
            return Ok(false);
        };
        if self.lock().safe.is_some_and(|safe| safe.holds(oldest, now)) {
            return Ok(false);
        }
        let journal = &self.parts.core.journal;
        let Some(recorded) = journal.record_time(&self.tenant, oldest).await? else {
            return Ok(false);
        };
        let age = journal.retention_age(&self.tenant).await?;
        let until = recorded.saturating_add(age - age / RISK_PART);
        if until < now {
            return Ok(true);
        }
        self.lock().safe = Some(Safe {
            from: oldest,
            since: now,
            until: until.min(now.saturating_add(SAFE_FOR)),
        });
        Ok(false)
    }

    /// Whether events wait for nothing but a consumer.
    fn has_waiting(&self, backlog: Backlog) -> bool {
        let state = self.lock();
        let counts = state.leasing.counts();
        let under_way = (counts.in_flight + counts.retrying) as u64;
        if backlog.count <= under_way {
            return !backlog.whole;
        }
        let blocked = state.leasing.blocked_keys(BLOCKED_MAX).into_iter();
        let held_back: usize = blocked.map(|blocked| blocked.waiting).sum();
        !backlog.whole || backlog.count > under_way + held_back as u64
    }

    /// Newest sequence of the log, and up to where everything is settled.
    pub(crate) fn progress(&self) -> (u64, u64) {
        let floor = self.lock().leasing.position().floor;
        (self.log.head().seq, floor)
    }

    /// Events that are not settled or were not looked at yet, whether they come here or not, and
    /// the sequence of the first of them.
    pub(crate) fn behind(&self) -> (u64, u64) {
        let state = self.lock();
        let cursor = state.leasing.position().cursor;
        let ahead = self.log.head().seq.saturating_sub(cursor);
        let unsettled = state.leasing.counts().unsettled as u64;
        let oldest = state.leasing.oldest_unsettled().unwrap_or(cursor + 1);
        (unsettled + ahead, oldest)
    }

    /// When an event was recorded, if the log still has it. Errors: `STORE_BUSY`.
    pub(crate) async fn recorded(&self, seq: u64) -> Result<Option<Micros>> {
        let segment = self.parts.core.journal.segment_at(&self.log, seq).await?;
        Ok(segment.map(|segment| segment.record_time()))
    }

    /// Version of the settings by which it works.
    pub(crate) fn version(&self) -> u64 {
        self.lock().settings.version
    }
}

impl State {
    fn members(&self, now: Micros) -> Vec<String> {
        let pulled = self.pulled.iter().filter(|(_, at)| now - **at < PULLED);
        let pulled = pulled.map(|(name, _)| name.clone());
        let mut members: Vec<String> = self
            .seats
            .iter()
            .map(|seat| seat.name.clone())
            .chain(pulled)
            .collect();
        members.sort();
        members.dedup();
        members
    }
}
