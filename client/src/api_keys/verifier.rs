//! Decides about requests: from the cache, else by asking the hub, once for all that wait for the
//! same answer.
//!
//! Invariants:
//! - Every request that is let through was counted by the hub before, except those of a key that is
//!   known while the hub can't be asked.
//! - What waits is bounded, and waits no longer than `ASK_TIMEOUT` for each call.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hub_proto::hub::api_keys::v1::api_keys_client::ApiKeysClient;
use hub_proto::hub::api_keys::v1::{ErrorReason, VerifyApiKeyResponse};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request};

use super::cache::{Answer, Cache, Decision};
use super::question::Question;
use crate::backoff::Backoff;
use crate::call::Transport;
use crate::error::{Error, Result};

/// Deadline of one call that asks.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Requests that may wait for answers; more are refused, because the hub does not keep up.
const WAITING_MAX: usize = 10_000;
/// Most requests that one call counts.
const COST_MAX: usize = 1000;
/// Calls for one answer: a connection that broke costs one, and so does a decision that is older
/// than a change which is known here.
const ATTEMPTS_MAX: u32 = 4;

type Outcome = Result<Decision>;

/// See the module.
pub(super) struct Verifier {
    client: ApiKeysClient<Transport>,
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    cache: Cache,
    /// Questions about which a task asks.
    flights: HashMap<Arc<Question>, Flight>,
    /// Requests in all of them.
    waiting: usize,
}

/// Requests that wait for the same answer.
struct Flight {
    waiting: VecDeque<oneshot::Sender<Outcome>>,
    /// Most requests that are counted ahead.
    portion_max: u32,
    /// Fewer than were asked for fit.
    cost_max: u32,
}

/// A call to make.
struct Ask {
    waiting: VecDeque<oneshot::Sender<Outcome>>,
    cost: u32,
    asked: Instant,
    generation: u64,
}

impl Verifier {
    pub(super) fn new(client: ApiKeysClient<Transport>, runtime: Handle) -> Self {
        Verifier {
            client,
            runtime,
            state: Mutex::default(),
        }
    }

    /// Decides about one request, and counts it if it is allowed. Errors: the hub could not be
    /// asked.
    pub(super) async fn decide(self: &Arc<Self>, asked: Question, portion_max: u32) -> Outcome {
        let answer = {
            let mut state = self.state();
            if let Some(decision) = state.cache.take(&asked, Instant::now()) {
                return Ok(decision);
            }
            let (sender, answer) = oneshot::channel();
            if let Some(asked) = state.join(asked, portion_max, sender)? {
                let asking = self.clone().ask_all(asked);
                self.runtime.spawn(asking);
            }
            answer
        };
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    /// What may be used again.
    pub(super) fn cache<T>(&self, change: impl FnOnce(&mut Cache) -> T) -> T {
        change(&mut self.state().cache)
    }

    /// Asks until nobody waits any more.
    async fn ask_all(self: Arc<Self>, asked: Arc<Question>) {
        loop {
            let Some(ask) = self.state().begin(&asked) else {
                return;
            };
            let answer = self.ask(&asked, ask.cost).await;
            self.state().land(&asked, ask, answer);
        }
    }

    /// One answer that knows all changes which are known here.
    async fn ask(&self, asked: &Question, cost: u32) -> Result<VerifyApiKeyResponse> {
        let (mut backoff, mut cost) = (Backoff::default(), cost);
        for _ in 0..ATTEMPTS_MAX {
            match self.call(asked, cost).await {
                Ok(told) if !self.state().cache.is_stale(&told) => return Ok(told),
                // It is counted: the next answer is only to decide again.
                Ok(told) if told.allowed => cost = 0,
                Ok(_) => {}
                Err(error) if broke(&error) && backoff.attempts() == 0 => {}
                Err(error) => return Err(error),
            }
            sleep(backoff.next(None)).await;
        }
        let message = "The hub does not know yet of a change of the key that it told of.";
        Err(Error::local(Code::Unavailable, message))
    }

    async fn call(&self, asked: &Question, cost: u32) -> Result<VerifyApiKeyResponse> {
        let mut request = Request::new(asked.call(cost));
        request.set_timeout(ASK_TIMEOUT);
        let mut client = self.client.clone();
        // Connecting is not part of the call's own deadline.
        match timeout(ASK_TIMEOUT, client.verify_api_key(request)).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => {
                let message = "The hub did not answer in time.";
                Err(Error::local(Code::DeadlineExceeded, message))
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Waits for an answer; returns the question if somebody has to ask it.
    fn join(
        &mut self,
        asked: Question,
        portion_max: u32,
        sender: oneshot::Sender<Outcome>,
    ) -> Result<Option<Arc<Question>>> {
        if self.waiting >= WAITING_MAX {
            let message = "Too many requests wait for the hub's decision.";
            return Err(Error::local(Code::Unavailable, message));
        }
        self.waiting += 1;
        if let Some(flight) = self.flights.get_mut(&asked) {
            flight.waiting.push_back(sender);
            return Ok(None);
        }
        let asked = Arc::new(asked);
        let flight = Flight {
            waiting: [sender].into(),
            portion_max,
            cost_max: u32::MAX,
        };
        self.flights.insert(asked.clone(), flight);
        Ok(Some(asked))
    }

    /// The next call; none if nobody waits.
    fn begin(&mut self, asked: &Arc<Question>) -> Option<Ask> {
        let now = Instant::now();
        let flight = self.flights.get_mut(asked)?;
        let before = flight.waiting.len();
        // Whoever has gone is not counted.
        flight.waiting.retain(|waiting| !waiting.is_closed());
        // Those who came while others were asked for may have their decision by now.
        while !flight.waiting.is_empty() {
            let Some(decision) = self.cache.take(asked, now) else {
                break;
            };
            let _ = flight.waiting.pop_front().map(|one| one.send(Ok(decision)));
        }
        self.waiting -= before - flight.waiting.len();
        if flight.waiting.is_empty() {
            self.flights.remove(asked);
            return None;
        }
        let count = flight.waiting.len().min(COST_MAX);
        let portion = self.cache.portion(asked, flight.portion_max, now);
        let cost = u32::try_from(count).unwrap_or(u32::MAX).max(portion);
        Some(Ask {
            waiting: flight.waiting.drain(..count).collect(),
            cost: cost.min(flight.cost_max),
            asked: now,
            generation: self.cache.generation(),
        })
    }

    /// Answers those who waited, and keeps what is left.
    fn land(&mut self, asked: &Arc<Question>, ask: Ask, answer: Result<VerifyApiKeyResponse>) {
        let Some(flight) = self.flights.get_mut(asked) else {
            return;
        };
        let now = Instant::now();
        let mut waiting = ask.waiting;
        let told = match answer {
            Ok(told) => Arc::new(told),
            Err(error) => {
                let known = self.cache.known(asked, now);
                self.waiting -= waiting.len();
                for sender in waiting {
                    let _ = sender.send(known.clone().ok_or_else(|| error.clone()));
                }
                return;
            }
        };
        let is_first = flight.cost_max == u32::MAX;
        if let Some(fits) = fewer(&told, ask.cost, is_first) {
            flight.cost_max = fits;
            prepend(flight, waiting);
            return;
        }
        flight.cost_max = u32::MAX;
        let mut left = ask.cost;
        // A denial holds for all who asked for it, whatever was counted.
        while left > 0 || !told.allowed {
            let Some(sender) = waiting.pop_front() else {
                break;
            };
            left = left.saturating_sub(1);
            self.waiting -= 1;
            let _ = sender.send(Ok(Decision {
                told: told.clone(),
                ahead: left,
                degraded: false,
            }));
        }
        prepend(flight, waiting);
        let answer = Answer {
            told,
            covers: ask.cost,
            left,
            asked: ask.asked,
            generation: ask.generation,
        };
        self.cache.keep(asked.clone(), answer, now);
    }
}

/// Before those who came later.
fn prepend(flight: &mut Flight, mut waiting: VecDeque<oneshot::Sender<Outcome>>) {
    waiting.append(&mut flight.waiting);
    flight.waiting = waiting;
}

/// How many requests to ask for instead, if only so many were too many. Where several processes
/// share a limit, the hub may say that more are left than one of them has: what it said is tried
/// first, and half of that from then on.
fn fewer(told: &VerifyApiKeyResponse, cost: u32, is_first: bool) -> Option<u32> {
    if told.allowed || told.reason() != ErrorReason::RateLimited || cost <= 1 {
        return None;
    }
    let remaining = told.rate_limit.as_ref().map_or(1, |left| left.remaining);
    let most = if is_first { cost - 1 } else { cost / 2 };
    (remaining > 0).then(|| remaining.min(most))
}

/// The connection broke before an answer came.
fn broke(error: &Error) -> bool {
    let code = error.code();
    error.is_retryable() && !matches!(code, Code::DeadlineExceeded | Code::ResourceExhausted)
}

/// Only when the runtime is shut down.
fn ended() -> Error {
    let message = "The task that asks the hub ended before the answer came.";
    Error::local(Code::Cancelled, message)
}
