//! Keys that are not in memory are looked up together: one query at a time for this process, for
//! many keys, so that a flood of unknown keys costs a bounded part of the database.
//!
//! Invariants:
//! - Whoever asks for the same key at once waits for one query.
//! - An answer is of a query that began after the last revocation that this process knew when it
//!   was given; else it is asked again. So no call that begins after a revocation is let through.
//! - Keys that were known a moment ago go before those that never were, and take their place where
//!   there is none.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hub_core::clock::Clock;
use hub_core::error::{Error, Result};
use hub_core::storage::Db;
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use crate::cache::{Cache, Fill, Known};
use crate::secret::plaintext::Hash;
use crate::store::{self, LOOKED_UP_MAX};
use crate::unknown::Unknown;

/// Hashes that wait for their query; with more, calls with keys that are not in memory are told to
/// come again.
pub(crate) const WAITING_MAX: usize = 10_000;
/// Queries for one key while revocations go on, and attempts to change one that others change; then
/// the call is told to come again.
pub(crate) const ATTEMPTS_MAX: u32 = 10;
/// How long one look-up may take, in time of its own.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

type Found = Result<Option<Arc<Known>>>;

/// Looks keys up by their hash; cheap to clone.
#[derive(Clone)]
pub(crate) struct Lookup(Arc<Inner>);

struct Inner {
    db: Db,
    clock: Clock,
    cache: Arc<Cache>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Hash>,
    flights: HashMap<Hash, Flight>,
    unknown: Unknown,
    /// A task takes from `waiting`.
    is_working: bool,
}

/// A key that is being looked up.
struct Flight {
    told: watch::Sender<Option<Found>>,
    attempts: u32,
}

impl Lookup {
    pub fn new(db: &Db, clock: &Clock, cache: &Arc<Cache>) -> Self {
        Lookup(Arc::new(Inner {
            db: db.clone(),
            clock: clock.clone(),
            cache: cache.clone(),
            state: Mutex::default(),
        }))
    }

    /// The key with this hash, mostly from memory. Errors: `STORE_BUSY`.
    pub async fn find(&self, hash: &Hash) -> Found {
        let now = self.0.clock.now();
        if let Some(known) = self.0.cache.by_hash(hash, now) {
            return Ok(Some(known));
        }
        let mut answer = {
            let mut state = self.0.state();
            if state.unknown.contains(hash, now) {
                metrics::counter!("hub_key_lookups_total", "from" => "unknown").increment(1);
                return Ok(None);
            }
            match self.0.board(&mut state, hash)? {
                (answer, false) => answer,
                (answer, true) => {
                    tokio::spawn(work(self.0.clone()));
                    answer
                }
            }
        };
        let told = answer.wait_for(Option::is_some).await;
        told.ok()
            .and_then(|told| told.clone())
            .unwrap_or_else(|| Err(busy("lookup_ended")))
    }

    /// A key was made: what was unknown may be one now.
    pub fn made(&self) {
        self.0.state().unknown.clear();
    }

    /// Looks a key up, and does something between the query and what is made of its answer.
    #[cfg(test)]
    pub async fn find_while(&self, hash: &Hash, meanwhile: impl Future<Output = ()>) -> Found {
        let inner = &self.0;
        let (mut answer, _) = inner.board(&mut inner.state(), hash)?;
        let hashes = inner.take();
        let fill = inner.cache.begin(inner.clock.now());
        let rows = store::by_hashes(&inner.db, &hashes).await?;
        meanwhile.await;
        let row = rows.iter().find(|(_, stored)| stored == hash);
        let found = row
            .map(|(key, _)| inner.cache.read(fill, *hash, key))
            .transpose();
        inner.land(*hash, fill, found);
        work(inner.clone()).await;
        let told = answer.wait_for(Option::is_some).await.unwrap().clone();
        told.unwrap()
    }

    /// Waits for a look-up that nobody does.
    #[cfg(test)]
    pub fn wait(&self, hash: &Hash) -> Result<watch::Receiver<Option<Found>>> {
        let answer = self.0.board(&mut self.0.state(), hash);
        answer.map(|(answer, _)| answer)
    }

    #[cfg(test)]
    pub fn remembered(&self) -> usize {
        let state = self.0.state();
        state.unknown.len() + state.flights.len() + state.waiting.len()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the flight of a key, or begins one; true if a task is needed for it.
    fn board(
        &self,
        state: &mut State,
        hash: &Hash,
    ) -> Result<(watch::Receiver<Option<Found>>, bool)> {
        if let Some(flight) = state.flights.get(hash) {
            return Ok((flight.told.subscribe(), false));
        }
        let was_known = self.cache.was_known(hash);
        let is_full = state.waiting.len() >= WAITING_MAX;
        if is_full && !(was_known && self.make_room(state)) {
            return Err(busy("lookups_full"));
        }
        let (told, answer) = watch::channel(None);
        state.flights.insert(*hash, Flight { told, attempts: 0 });
        match was_known {
            true => state.waiting.push_front(*hash),
            false => state.waiting.push_back(*hash),
        }
        Ok((answer, !std::mem::replace(&mut state.is_working, true)))
    }

    /// Tells the last key that waits and never was known to come again; false if it was known.
    fn make_room(&self, state: &mut State) -> bool {
        let last = state
            .waiting
            .pop_back_if(|last| !self.cache.was_known(last));
        let flight = last.and_then(|last| state.flights.remove(&last));
        if let Some(flight) = &flight {
            let _ = flight.told.send(Some(Err(busy("lookups_full"))));
        }
        flight.is_some()
    }

    /// What is asked for next; nothing ends the work.
    fn take(&self) -> Vec<Hash> {
        let mut state = self.state();
        let count = state.waiting.len().min(LOOKED_UP_MAX);
        state.is_working = count > 0;
        state.waiting.drain(..count).collect()
    }

    /// Ends the flight of a key with what a query found, or lets it be asked again.
    fn land(&self, hash: Hash, fill: Fill, found: Found) {
        let mut state = self.state();
        let kept = match &found {
            Ok(Some(known)) => self.cache.finish(fill, known),
            Ok(None) => {
                state.unknown.insert(hash, fill.began());
                true
            }
            Err(_) => true,
        };
        let Some(flight) = state.flights.get_mut(&hash) else {
            return;
        };
        flight.attempts += 1;
        let found = match kept {
            true => found,
            false if flight.attempts < ATTEMPTS_MAX => {
                state.waiting.push_front(hash);
                return;
            }
            false => Err(busy("keys_change")),
        };
        // Under the lock: who comes later begins a flight of its own.
        if let Some(flight) = state.flights.remove(&hash) {
            let _ = flight.told.send(Some(found));
        }
    }
}

/// Looks up what waits until nothing does.
async fn work(inner: Arc<Inner>) {
    let mut shift = Shift {
        inner: inner.clone(),
        ended: false,
    };
    loop {
        let hashes = inner.take();
        if hashes.is_empty() {
            shift.ended = true;
            return;
        }
        let fill = inner.cache.begin(inner.clock.now());
        metrics::counter!("hub_key_lookups_total", "from" => "database").increment(1);
        let looked = store::by_hashes(&inner.db, &hashes);
        // All that wait are behind this one statement, and its connection may be dead.
        let looked = tokio::time::timeout(ANSWERED_WITHIN, looked).await;
        let rows = looked.unwrap_or_else(|_| Err(busy("lookup_late")));
        for hash in hashes {
            let found = match &rows {
                Err(error) => Err(error.clone()),
                Ok(rows) => {
                    let row = rows.iter().find(|(_, stored)| stored.ct_eq(&hash).into());
                    row.map(|(key, _)| inner.cache.read(fill, hash, key))
                        .transpose()
                }
            };
            inner.land(hash, fill, found);
        }
    }
}

/// A task that ends early, by a panic or with its runtime, leaves nobody waiting.
struct Shift {
    inner: Arc<Inner>,
    /// It found nothing more to do; another task may be at work already.
    ended: bool,
}

impl Drop for Shift {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut state = self.inner.state();
        state.is_working = false;
        state.waiting.clear();
        state.flights.clear();
    }
}

pub(crate) fn busy(cause: &'static str) -> Error {
    Error::store_busy("The key could not be looked up now", cause)
}
