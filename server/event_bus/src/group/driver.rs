//! What goes on by itself: reading ahead, leases that end, retries that begin.

use std::sync::{Arc, Weak};
use std::time::Duration;

use hub_core::clock::{Micros, micros};
use hub_core::error::Result;
use hub_core::journal::Position;
use tokio::sync::watch;

use super::reading::Read;
use super::{Group, PULLED, PULLING, State};
use crate::groups::Groups;
use crate::leasing::LEASE_EXPIRED;
use crate::seat::News;

/// Events that are read ahead of what consumers take.
const AHEAD_EVENTS_MAX: usize = 2048;
/// Bytes of them.
const AHEAD_BYTES_MAX: u64 = 4 << 20;
/// Events that one look at the log takes.
const READ_EVENTS_MAX: usize = 1000;
/// Pause after the database did not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long a group without a consumer stays, in microseconds.
const UNUSED: Micros = 30_000_000;
/// How long one stays that has nothing to do, if its consumers serve all tenants: they call it
/// again when its log grows.
const QUIET: Micros = 5_000_000;
/// Longest time without a look at the state; everything that changes it wakes the driver.
const LOOK: Duration = Duration::from_secs(10);

/// What a look at the state says to do next.
struct Next {
    /// Events that may be read ahead.
    room: usize,
    /// When leasing changes by itself, or the state is looked at anyway.
    due: Micros,
    cursor: u64,
    idle: bool,
    over: bool,
}

impl Group {
    /// Works until the group is over, then leaves what is unsettled to the next owner.
    pub(crate) async fn drive(self: Arc<Self>, groups: Weak<Groups>) {
        while let Err(error) = self.read_settings().await {
            tracing::debug!("the settings of a subscription could not be read: {error}");
            if error.reason() == "SUBSCRIPTION_NOT_FOUND" {
                self.lose();
            }
            if self.is_over() {
                return;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        let (mut head, mut floor) = (self.log.watch(), self.log.watch_floor());
        loop {
            if let Err(error) = self.look_at_entitlement().await {
                tracing::debug!("the tenant's products could not be read: {error}");
            }
            let next = self.look(*floor.borrow_and_update());
            if next.over {
                return;
            }
            if next.idle {
                if let Some(groups) = groups.upgrade() {
                    groups.close_idle(&self).await;
                }
                if self.is_over() {
                    return;
                }
            }
            let read = match next.room {
                0 => Ok(None),
                room => self.read(room.min(READ_EVENTS_MAX)).await.map(Some),
            };
            match read {
                Ok(Some(Read::Some)) => continue,
                Ok(Some(Read::AtEnd)) => self.is_at_end(),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!("a subscription could not read on: {error}");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
            self.wait(&next, &mut head, &mut floor).await;
        }
    }

    /// Lets pass what the time has brought. `floor`: retention removed everything up to it.
    fn look(self: &Arc<Self>, floor: u64) -> Next {
        let (now, jitter) = (self.now(), self.jitter());
        let mut state = self.lock();
        if state.over {
            return Next {
                room: 0,
                due: now,
                cursor: 0,
                idle: false,
                over: true,
            };
        }
        let paused = state.is_paused(now);
        state.leasing.set_paused(paused);
        if state.told_paused != paused {
            state.told_paused = paused;
            state
                .seats
                .iter()
                .for_each(|seat| seat.tell(self, News::State));
        }
        if state.leasing.tick(now, jitter) {
            state.outcomes.failed(LEASE_EXPIRED, now);
        }
        self.expire_removed(&mut state, floor, now);
        state.forget_pulled(now, PULLED);
        self.follow_up(&mut state);
        let (ready, bytes) = state.leasing.ready();
        if ready == 0 {
            state.held.clear();
        }
        let window = state.leasing.window_left();
        let room = match bytes < AHEAD_BYTES_MAX && !state.seats.is_empty() {
            true => AHEAD_EVENTS_MAX.saturating_sub(ready).min(window),
            false => 0,
        };
        let head = self.log.head().seq;
        let cursor = state.leasing.position().cursor;
        let room = if cursor < state.reach { window } else { room };
        let left = room == 0 && cursor < head || ready > 0 && (paused || state.is_out_of_credit());
        if left && state.told_caught_up {
            self.tell_caught_up(&mut state, false);
        }
        let idle_at = state.idle_at(now, cursor >= head);
        let paused_until = state.settings.paused(now).and_then(|pause| pause.until);
        let due = [state.leasing.next_due(), idle_at, paused_until];
        let look_at = now + micros(LOOK);
        Next {
            room,
            due: due.into_iter().flatten().fold(look_at, Micros::min),
            cursor,
            idle: idle_at.is_some_and(|at| at <= now),
            over: false,
        }
    }

    /// What was looked at and waits does not outlive its event, nor does a key that it blocks. What
    /// was not looked at is found by reading.
    fn expire_removed(self: &Arc<Self>, state: &mut State, floor: u64, now: Micros) {
        let removed = floor.min(state.leasing.position().cursor);
        if removed <= state.leasing.expired_through() {
            return;
        }
        if let Some((from, to)) = state.leasing.expire_through(removed, now) {
            self.tell_gap(state, from, to);
        }
    }

    pub(super) fn tell_gap(self: &Arc<Self>, state: &State, from: u64, to: u64) {
        let seats = state.seats.iter();
        seats.for_each(|seat| seat.tell(self, News::Gap { from, to }));
    }

    /// Nothing is left to read.
    fn is_at_end(self: &Arc<Self>) {
        let mut state = self.lock();
        let unsettled = state.leasing.counts().unsettled;
        if unsettled == 0 && !state.told_caught_up {
            self.tell_caught_up(&mut state, true);
        }
    }

    pub(super) fn tell_caught_up(self: &Arc<Self>, state: &mut State, caught_up: bool) {
        state.told_caught_up = caught_up;
        let news = News::CaughtUp(caught_up);
        state
            .seats
            .iter()
            .for_each(|seat| seat.tell(self, news.clone()));
    }

    /// Sleeps until something may have changed.
    async fn wait(
        &self,
        next: &Next,
        head: &mut watch::Receiver<Position>,
        floor: &mut watch::Receiver<u64>,
    ) {
        let clock = &self.parts.core.clock;
        let (room, cursor) = (next.room, next.cursor);
        tokio::select! {
            () = self.wake.notified() => {}
            _ = head.wait_for(|head| head.seq > cursor), if room > 0 => {}
            _ = floor.changed() => {}
            () = clock.sleep_until(next.due) => {}
        }
    }

    /// A product that the tenant has no more gets nothing.
    async fn look_at_entitlement(&self) -> Result<()> {
        let configurations = &self.parts.configurations;
        let entitled = configurations
            .current(&self.tenant)
            .await?
            .is_active(&self.product);
        self.lock().entitled = entitled;
        Ok(())
    }

    /// Nothing more happens here; consumers are told.
    pub(crate) fn end(self: &Arc<Self>) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.over, true) {
            return;
        }
        for seat in std::mem::take(&mut state.seats) {
            let (events, bytes) = state.leasing.outstanding(seat.member);
            seat.give_back(events, bytes);
            seat.tell(self, News::Closed);
        }
        state.held.clear();
        drop(state);
        self.wake.notify_one();
    }

    /// Everything that is leased returns and costs no attempt: the server stops.
    pub(crate) fn release(self: &Arc<Self>) {
        let now = self.now();
        let mut state = self.lock();
        state.leasing.release_all(now);
        self.follow_up(&mut state);
    }

    /// Ends it if this process was silent for so long that another one may have it by now. If none
    /// has, what was acked is stored all the same.
    pub(crate) fn end_with_its_term(self: &Arc<Self>) {
        if !self.parts.core.processes.is_in(self.term) {
            self.end();
        }
    }

    /// Ends it if nobody needs it; true if it is over now.
    pub(crate) fn end_if_idle(self: &Arc<Self>) -> bool {
        let idle = {
            let mut state = self.lock();
            let now = self.now();
            let at_end = state.leasing.position().cursor >= self.log.head().seq;
            state.idle_at(now, at_end).is_some_and(|at| at <= now)
        };
        if idle {
            self.end();
        }
        idle || self.is_over()
    }
}

impl State {
    /// When it may go, if nothing happens until then.
    fn idle_at(&mut self, now: Micros, at_end: bool) -> Option<Micros> {
        let counts = self.leasing.counts();
        let pulling = !self.pulled.is_empty() || self.leasing.outstanding(PULLING).0 > 0;
        let unused = self.seats.is_empty() && counts.in_flight == 0;
        let quiet = self.seats.iter().all(|seat| seat.all_tenants) && counts.unsettled == 0;
        let length = match (pulling, unused, quiet && at_end) {
            (false, true, _) => UNUSED,
            (false, false, true) => QUIET,
            _ => {
                self.idle_since = None;
                return None;
            }
        };
        Some(*self.idle_since.get_or_insert(now) + length)
    }
}
