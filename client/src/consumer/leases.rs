//! The events that a consumer holds: which wait, which are handled, and until when they are its.
//! No I/O here, and the time is told.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use hub_proto::hub::event_bus::v1::{self as proto, Credit, ExtendLease};
use prost::Message;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::LeasedEvent;
use super::server_clock::ServerClock;

/// Bounds of what an extension asks for: as long as the lease was when it came, and not less than
/// the hub's default. If this program ends, its leases return with its connection all the same.
const EXTENSION_LIMITS: (Duration, Duration) = (Duration::from_secs(30), Duration::from_hours(1));
/// A lease is not extended before; half of the shortest that the hub gives.
const FIRST_EXTENSION_MIN: Duration = Duration::from_millis(500);

/// An event, whoever's it is: tenant and sequence.
type EventKey = (String, u64);

/// A lease with its event.
#[derive(Debug)]
struct Held {
    lease_id: String,
    key: EventKey,
    bytes: u64,
    /// When it ends by the hub's clock, if the hub said so.
    until: Option<SystemTime>,
    /// It was extended, so that the time above no longer holds.
    extended: bool,
    /// How much longer it gets.
    length: Duration,
    /// When it ends, in our time.
    ends: Instant,
    /// When to do something about that.
    due: Instant,
    /// It is not extended after this time.
    extended_until: Instant,
    /// The hub has taken it back, or soon does: it ended, or its stream broke.
    lost: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Not begun.
    Waiting(Box<LeasedEvent>),
    /// At its handler.
    Running(AbortHandle),
}

/// Names a held event within its consumer.
pub(super) type Token = u64;

/// What to say and to tell after a look at the leases.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) extensions: Vec<ExtendLease>,
    /// Leases that ended.
    pub(super) expired: Vec<String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Leases {
    credit: Credit,
    extend_for: Duration,
    held: HashMap<Token, Held>,
    /// Not begun, in the order in which they came.
    waiting: VecDeque<Token>,
    running: usize,
    /// All that are held, by event.
    by_key: HashMap<EventKey, Token>,
    /// Those of which the lease is lost while their handler runs.
    lost: u32,
    lost_bytes: u64,
    next_token: Token,
    /// Not after anything is due.
    due: Option<Instant>,
}

impl Leases {
    pub(super) fn new(credit: Credit, extend_for: Duration) -> Self {
        Leases {
            credit,
            extend_for,
            held: HashMap::new(),
            waiting: VecDeque::new(),
            running: 0,
            by_key: HashMap::new(),
            lost: 0,
            lost_bytes: 0,
            next_token: 0,
            due: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// How much the hub may lease: what it does not know to be held is taken off.
    pub(super) fn credit(&self) -> Credit {
        Credit {
            events: self.credit.events.saturating_sub(self.lost),
            // Nothing would mean the default.
            bytes: self.credit.bytes.saturating_sub(self.lost_bytes).max(1),
        }
    }

    /// An event came. If it is held, the hub has taken back the lease of before, whether or not
    /// that is known here; the answer of its handler settles the new lease then: one event is never
    /// handled twice at once.
    pub(super) fn accept(&mut self, event: proto::LeasedEvent, clock: &ServerClock, now: Instant) {
        let until = event.lease_until.and_then(|until| until.try_into().ok());
        let record = event.record.unwrap_or_default();
        let key = (record.tenant_id.clone(), record.sequence);
        let token = self.by_key.get(&key);
        if let Some(held) = token.and_then(|token| self.held.get_mut(token)) {
            if std::mem::take(&mut held.lost) {
                self.lost -= 1;
                self.lost_bytes -= held.bytes;
            }
            if let Stage::Waiting(waiting) = &mut held.stage {
                waiting.attempt = event.attempt;
                waiting.previous_error = event.previous_error;
                waiting.redelivery = event.redelivery;
            }
            held.lease_id = event.lease_id;
            held.until = until;
            held.extended = false;
            held.time(clock, now);
            self.due = earliest(self.due, held.due);
            return;
        }
        self.by_key.insert(key.clone(), self.next_token);
        let mut held = Held {
            lease_id: event.lease_id,
            bytes: record.encoded_len() as u64,
            key,
            until,
            extended: false,
            length: Duration::ZERO,
            ends: now,
            due: now,
            extended_until: now + self.extend_for,
            lost: false,
            stage: Stage::Waiting(Box::new(LeasedEvent {
                record,
                attempt: event.attempt,
                previous_error: event.previous_error,
                redelivery: event.redelivery,
            })),
        };
        held.time(clock, now);
        self.due = earliest(self.due, held.due);
        self.held.insert(self.next_token, held);
        self.waiting.push_back(self.next_token);
        self.next_token += 1;
    }

    /// The next event to handle; `begin` hands it over.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        begin: impl FnOnce(Token, LeasedEvent) -> AbortHandle,
    ) -> bool {
        let Some(token) = self.waiting.pop_front() else {
            return false;
        };
        let Some(mut held) = self.held.remove(&token) else {
            return false;
        };
        if let Stage::Waiting(event) = held.stage {
            held.stage = Stage::Running(begin(token, *event));
            held.extended_until = now + self.extend_for;
            self.running += 1;
        }
        self.held.insert(token, held);
        true
    }

    /// A handler answered; returns the lease to settle.
    pub(super) fn finish(&mut self, token: Token) -> Option<String> {
        let held = self.held.remove(&token)?;
        if matches!(held.stage, Stage::Running(_)) {
            self.running -= 1;
        }
        self.by_key.remove(&held.key);
        if held.lost {
            self.lost_bytes -= held.bytes;
            self.lost -= 1;
        }
        Some(held.lease_id)
    }

    /// Takes back what was received and not begun; returns the leases to release.
    pub(super) fn give_up_waiting(&mut self) -> Vec<String> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting
            .into_iter()
            .filter_map(|token| self.finish(token))
            .collect()
    }

    /// Stops the handlers that run; returns the leases to release.
    pub(super) fn abort_running(&mut self) -> Vec<String> {
        let tokens: Vec<Token> = self.held.keys().copied().collect();
        let leases = tokens.into_iter().filter_map(|token| {
            if let Stage::Running(handler) = &self.held.get(&token)?.stage {
                handler.abort();
            }
            self.finish(token)
        });
        leases.collect()
    }

    /// The stream broke: the hub takes back its leases. What was not begun comes again.
    pub(super) fn stream_lost(&mut self) {
        self.give_up_waiting();
        let tokens: Vec<Token> = self.held.keys().copied().collect();
        for token in tokens {
            self.lose(token);
        }
        self.due = None;
    }

    /// The lease is over. What was not begun is given up, a handler goes on.
    fn lose(&mut self, token: Token) {
        let Some(held) = self.held.get_mut(&token) else {
            return;
        };
        match held.stage {
            Stage::Waiting(_) => {
                self.by_key.remove(&held.key);
                self.held.remove(&token);
                self.waiting.retain(|waiting| *waiting != token);
            }
            Stage::Running(_) if !held.lost => {
                held.lost = true;
                self.lost_bytes += held.bytes;
                self.lost += 1;
            }
            Stage::Running(_) => {}
        }
    }

    /// When to look at the leases.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Extends what has half of its time left.
    pub(super) fn extend(&mut self, now: Instant) -> Extended {
        let mut extended = Extended::default();
        let mut ended = Vec::new();
        let mut due = None;
        for (token, held) in &mut self.held {
            if held.lost {
                continue;
            }
            // What is due soon goes along.
            if held.due <= now + held.length / 8 {
                match now < held.extended_until {
                    true => extended.extensions.push(held.extend(now)),
                    false => held.due = held.ends,
                }
            }
            match held.ends <= now {
                true => ended.push(*token),
                false => due = earliest(due, held.due),
            }
        }
        for token in ended {
            let held = self.held.get(&token);
            extended
                .expired
                .extend(held.map(|held| held.lease_id.clone()));
            self.lose(token);
        }
        self.due = due;
        extended
    }

    /// The hub did not extend a lease: it is over. False if nothing is held by it.
    pub(super) fn not_extended(&mut self, lease_id: &str) -> bool {
        let token = self.token_of(lease_id);
        token.is_some_and(|token| {
            self.lose(token);
            true
        })
    }

    /// The hub wants an extension again.
    pub(super) fn extend_again(&mut self, lease_id: &str, at: Instant) {
        let token = self.token_of(lease_id);
        if let Some(held) = token.and_then(|token| self.held.get_mut(&token)) {
            held.due = at;
            self.due = earliest(self.due, at);
        }
    }

    /// Seldom needed, so leases have no index by id.
    fn token_of(&self, lease_id: &str) -> Option<Token> {
        let held = self.held.iter().find(|(_, held)| held.lease_id == lease_id);
        held.map(|(token, _)| *token)
    }

    /// The hub's clock is known better.
    pub(super) fn time_again(&mut self, clock: &ServerClock, now: Instant) {
        let untouched = |held: &&mut Held| !held.lost && !held.extended;
        for held in self.held.values_mut().filter(untouched) {
            held.time(clock, now);
            self.due = earliest(self.due, held.due);
        }
    }
}

impl Held {
    /// Works out when a lease ends that was not extended.
    fn time(&mut self, clock: &ServerClock, now: Instant) {
        let (least, most) = EXTENSION_LIMITS;
        let left = self.until.map(|until| clock.left(until, now));
        let left = left.unwrap_or_default().min(most);
        self.length = left.max(least);
        self.ends = now + left.max(FIRST_EXTENSION_MIN);
        self.due = now + (left / 2).max(FIRST_EXTENSION_MIN);
    }

    fn extend(&mut self, now: Instant) -> ExtendLease {
        self.extended = true;
        self.ends = now + self.length;
        self.due = now + self.length / 2;
        ExtendLease {
            lease_id: self.lease_id.clone(),
            duration: self.length.try_into().ok(),
        }
    }
}

fn earliest(due: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(due.map_or(other, |due| due.min(other)))
}
