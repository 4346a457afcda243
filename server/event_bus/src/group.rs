//! A durable subscription at work in this process: it reads the log ahead, leases events to its
//! consumers, and takes their acks.
//!
//! All that is decided is decided by `leasing`, under a lock that is never held across an await. A
//! task of its own (`group/driver.rs`) reads ahead, lets leases end and retries begin, and calls
//! the consumers; what changes is stored by `checkpoint.rs`. There is one owner of a subscription
//! among all processes: it is shut out by a higher epoch, and then drops all it has.

mod driver;
mod reading;
mod saving;
mod settings;
mod status;
mod taking;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering as Order};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hub_core::clock::Micros;
use hub_core::journal::{Log, TenantRef};
use hub_core::module::Core;
use hub_core::processes::Term;
use hub_proto::hub::event_bus::v1::{AckOutcome, NackAction};
use tokio::sync::{Notify, watch};

pub(crate) use reading::{key_of, ordering_key};
pub(crate) use saving::{Change, Prepared, Saved, Unsaved};
pub(crate) use settings::rules;
pub(crate) use taking::{Taken, Want};

use crate::checkpoint::Checkpoints;
use crate::leasing::{self, CONNECTION_LOST, LeaseId, Leasing, MemberId, Nack, Outcome};
use crate::routing::Configurations;
use crate::seat::{News, Seat};
use crate::subscriptions::Settings;
use reading::Held;

/// Who leases by Pull: leases that no connection holds.
pub(crate) const PULLING: MemberId = MemberId(1);
/// How long a consumer that pulls counts as one, in microseconds.
const PULLED: Micros = 60_000_000;
/// Names of consumers that pulled lately which are kept.
const PULLED_MAX: usize = 100;
/// Leases whose end is remembered, to tell a repeated ack from a late one.
const SETTLED_REMEMBERED_MAX: usize = 10_000;

/// A subscription at work.
#[derive(Debug)]
pub(crate) struct Group {
    /// Unique in this process.
    pub(crate) number: u64,
    pub(crate) tenant: TenantRef,
    /// Id of the subscription.
    pub(crate) id: Arc<str>,
    pub(crate) product: Arc<str>,
    pub(crate) name: Arc<str>,
    is_default: bool,
    /// Number under which this process owns it.
    pub(crate) epoch: u64,
    /// It owns it for no longer.
    term: Term,
    parts: Parts,
    log: Arc<Log>,
    state: Mutex<State>,
    /// Wakes the driver.
    wake: Notify,
    saved: watch::Sender<Saved>,
    /// Everything up to there was looked at, for who waits for that.
    looked: watch::Sender<u64>,
    /// Head of the log when its row was read last.
    row_read_at: AtomicU64,
}

/// What a group works with.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) core: Core,
    pub(crate) configurations: Configurations,
    pub(crate) checkpoints: Arc<Checkpoints>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parts")
    }
}

#[derive(Debug)]
struct State {
    leasing: Leasing,
    settings: Settings,
    seats: Vec<Arc<Seat>>,
    /// Who pulled, and when.
    pulled: BTreeMap<String, Micros>,
    held: Held,
    /// Up to there the log is looked at, whether or not somebody consumes.
    reach: u64,
    /// The tenant has the product.
    entitled: bool,
    /// What the consumers were told last.
    told_caught_up: bool,
    told_paused: bool,
    outcomes: status::Outcomes,
    safe: Option<status::Safe>,
    unsaved: saving::Unsaved,
    /// Nothing more happens here.
    over: bool,
    idle_since: Option<Micros>,
}

/// An ack, nack or extend.
#[derive(Debug, Clone)]
pub(crate) enum Settling {
    Ack,
    Nack {
        action: NackAction,
        after: Option<Micros>,
        error: String,
    },
    Extend(Micros),
}

impl Group {
    /// Takes up a subscription where it was left. Nothing is read before `driver` runs.
    pub(crate) fn new(
        parts: Parts,
        log: Arc<Log>,
        settings: Settings,
        mut leasing: Leasing,
        (epoch, term): (u64, Term),
    ) -> Arc<Group> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // The settings were read before anybody could tell the group that they change: nothing is
        // leased until the driver has read them again and looked at them.
        leasing.set_paused(true);
        Arc::new(Group {
            number: NEXT.fetch_add(1, Order::Relaxed),
            tenant: log.tenant().clone(),
            id: settings.id.as_str().into(),
            product: settings.product.as_str().into(),
            name: settings.name.as_str().into(),
            is_default: settings.is_default,
            epoch,
            term,
            parts,
            log,
            state: Mutex::new(State {
                leasing,
                settings,
                seats: Vec::new(),
                pulled: BTreeMap::new(),
                held: Held::default(),
                reach: 0,
                entitled: true,
                told_caught_up: false,
                told_paused: false,
                outcomes: status::Outcomes::default(),
                safe: None,
                unsaved: saving::Unsaved::default(),
                over: false,
                idle_since: None,
            }),
            wake: Notify::new(),
            saved: watch::Sender::new(Saved::default()),
            looked: watch::Sender::default(),
            row_read_at: AtomicU64::new(0),
        })
    }

    /// The head of the log, for [`Group::row_was_read`], and whether another process may have
    /// changed the subscription since its row was read: who changes it writes an event in the same
    /// transaction.
    pub(crate) fn may_have_changed(&self) -> (u64, bool) {
        let head = self.log.head().seq;
        (head, head != self.row_read_at.load(Order::Relaxed))
    }

    /// Its row was read after the log had this head.
    pub(crate) fn row_was_read(&self, head: u64) {
        self.row_read_at.store(head, Order::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Micros {
        self.parts.core.clock.now()
    }

    /// From 0 to 1: how much of the largest jitter a delay gets.
    fn jitter(&self) -> f64 {
        let most = f64::from(self.parts.core.limits.retry_jitter_percent.min(10)) / 10.0;
        most * crate::random_fraction()
    }

    /// Whether it still works; one that does not was closed, or another process has or may have it.
    pub(crate) fn is_over(self: &Arc<Self>) -> bool {
        self.end_with_its_term();
        self.lock().over
    }

    /// Whether its consumers know that they are caught up; who is not is told once it is.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.lock().told_caught_up
    }

    /// A consumer takes its place. False if the group is over.
    pub(crate) fn join(self: &Arc<Self>, seat: &Arc<Seat>) -> bool {
        let mut state = self.lock();
        if state.over {
            return false;
        }
        state.leasing.join(seat.member);
        state.seats.push(seat.clone());
        // What the others know already.
        if state.is_paused(self.now()) {
            seat.tell(self, News::State);
        }
        // Who is told that he is caught up has nothing more to come: what another consumer left, or
        // what was published since, is not yet looked at.
        let unsettled = state.leasing.counts().unsettled;
        let behind = unsettled > 0 || state.leasing.position().cursor < self.log.head().seq;
        if behind && state.told_caught_up {
            self.tell_caught_up(&mut state, false);
        } else {
            seat.tell(self, News::CaughtUp(state.told_caught_up));
        }
        seat.ring(self);
        drop(state);
        self.wake.notify_one();
        true
    }

    /// A consumer is gone: its leases return, and cost no attempt.
    pub(crate) fn leave(self: &Arc<Self>, seat: &Seat) {
        let (now, jitter) = (self.now(), self.jitter());
        let mut state = self.lock();
        if state.leasing.leave(seat.member, now, jitter) {
            state.outcomes.failed(CONNECTION_LOST, now);
        }
        state.seats.retain(|other| other.member != seat.member);
        self.changed(&mut state);
    }

    /// A pull waits for events, without being a member.
    pub(crate) fn visit(self: &Arc<Self>, seat: &Arc<Seat>) -> bool {
        let mut state = self.lock();
        if state.over {
            return false;
        }
        state.note_pull(&seat.name, self.now());
        state.seats.push(seat.clone());
        // Nothing is left to read, and nothing came since that was told.
        if state.told_caught_up && state.leasing.position().cursor >= self.log.head().seq {
            seat.tell(self, News::CaughtUp(true));
        }
        seat.ring(self);
        drop(state);
        self.wake.notify_one();
        true
    }

    /// A pull ends; what it leased stays leased.
    pub(crate) fn end_visit(self: &Arc<Self>, seat: &Seat) {
        let mut state = self.lock();
        state.seats.retain(|other| other.member != seat.member);
        drop(state);
        self.wake.notify_one();
    }

    /// Applies acks in their order. The second value is what [`Group::saved`] waits for.
    pub(crate) fn settle(
        self: &Arc<Self>,
        settlings: impl IntoIterator<Item = (LeaseId, Settling)>,
    ) -> (Vec<AckOutcome>, u64) {
        let (now, jitter) = (self.now(), self.jitter());
        self.end_with_its_term();
        let mut state = self.lock();
        let mut outcomes = Vec::new();
        for (id, settling) in settlings {
            outcomes.push(if state.over {
                // What was applied before may be stored yet; who has it next knows.
                AckOutcome::Retry
            } else {
                state.apply(id, settling, now, jitter)
            });
        }
        let generation = self.changed(&mut state);
        (outcomes, generation)
    }

    /// After each change of `leasing` from outside of the driver, which may have more to do now.
    fn changed(self: &Arc<Self>, state: &mut State) -> u64 {
        self.wake.notify_one();
        self.follow_up(state)
    }

    /// After each change of `leasing`: credit returns, consumers are called, the next checkpoint
    /// has it. Returns its generation.
    fn follow_up(self: &Arc<Self>, state: &mut State) -> u64 {
        for (member, (events, bytes)) in state.leasing.take_ended() {
            let seat = state.seats.iter().find(|seat| seat.member == member);
            if let Some(seat) = seat {
                seat.give_back(events, bytes);
            }
        }
        if let Some((from, to)) = state.leasing.take_lost() {
            self.tell_gap(state, from, to);
        }
        if state.leasing.deliverable(self.now()) {
            state.seats.iter().for_each(|seat| seat.ring(self));
        }
        if state.leasing.is_dirty() && !state.over {
            let changes = state.leasing.take_changes();
            if changes.paused {
                state.pause_by_policy(self.now());
            }
            state.unsaved.add(changes);
            self.parts.checkpoints.add(self, &mut state.unsaved);
        }
        state.unsaved.generation()
    }

    /// Whether one more event may be redelivered.
    pub(crate) fn has_room_to_redeliver(&self) -> bool {
        self.lock().leasing.redelivery_left() > 0
    }

    /// Marks an event of the past to be delivered again; false if it was not settled. It is leased
    /// once what was returned is [`Group::saved`]. `None` if the group is over.
    pub(crate) fn redeliver(
        self: &Arc<Self>,
        seq: u64,
        key: Option<leasing::Key>,
        bytes: u32,
        derived_delivered: bool,
    ) -> Option<(bool, u64)> {
        let mut state = self.lock();
        if state.over {
            return None;
        }
        let again = state.leasing.redeliver(seq, key, bytes, derived_delivered);
        Some((again, self.changed(&mut state)))
    }
}

impl State {
    fn apply(&mut self, id: LeaseId, how: Settling, now: Micros, jitter: f64) -> AckOutcome {
        let outcome = match how {
            Settling::Ack => self.leasing.ack(id, now),
            Settling::Extend(length) => self.leasing.extend(id, length, now),
            Settling::Nack {
                action,
                after,
                ref error,
            } => {
                let nack = match action {
                    NackAction::Retry | NackAction::Unspecified => Nack::Retry { after },
                    NackAction::Release => Nack::Release,
                    NackAction::Fail => Nack::Fail,
                    NackAction::Skip => Nack::Skip,
                };
                self.leasing.nack(id, nack, error, now, jitter)
            }
        };
        if outcome == Outcome::Ok {
            self.outcomes.note(&how, now);
        }
        match outcome {
            Outcome::Ok => AckOutcome::Ok,
            Outcome::LeaseExpired => AckOutcome::LeaseExpired,
            Outcome::AlreadySettled => AckOutcome::AlreadySettled,
            Outcome::Unknown => AckOutcome::Unknown,
        }
    }

    /// Nobody may be given anything now.
    fn is_out_of_credit(&self) -> bool {
        self.seats.iter().all(|seat| seat.credit_left().is_none())
    }

    fn is_paused(&self, now: Micros) -> bool {
        self.settings.paused(now).is_some() || !self.entitled
    }

    /// Somebody of this name pulls.
    fn note_pull(&mut self, name: &str, now: Micros) {
        if self.pulled.len() >= PULLED_MAX {
            self.forget_pulled(now, PULLED / 60);
        }
        if self.pulled.len() < PULLED_MAX || self.pulled.contains_key(name) {
            self.pulled.insert(name.to_owned(), now);
        }
    }

    /// Those who did not pull for `longer` than this count no more.
    fn forget_pulled(&mut self, now: Micros, longer: Micros) {
        self.pulled.retain(|_, at| now - *at < longer);
        if self.pulled.is_empty() && self.leasing.outstanding(PULLING).0 == 0 {
            self.leasing.leave(PULLING, now, 0.0);
        }
    }
}
