//! Keys that were looked up lately, so that a call costs no query.
//!
//! Invariants:
//! - A look-up that began before a change of a key never puts the key back: [`Fill`] carries the
//!   epoch at which it began, and is dropped if there was a change since.
//! - Nothing is kept before this process hears of changes that others make: who revokes a key waits
//!   for those processes only that say how far they are.
//! - Nothing is believed for longer than the time to live since the database said that it is so, by
//!   the look-up itself or by [`Cache::renew`]; there is no "stale while revalidate".
//! - Two generations bound the memory: when the young one is half of the limit, it becomes the old
//!   one, and what was old is forgotten.

use std::borrow::Borrow;
use std::hash;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ahash::HashSet;
use hub_core::clock::{Micros, micros};
use hub_core::error::Result;
use subtle::ConstantTimeEq;

use crate::interned::Interned;
use crate::key::{Key, Record};
use crate::secret::plaintext::Hash;
use crate::tally::Tally;

/// The keys.
pub(crate) struct Cache {
    state: RwLock<State>,
    /// As of when all that is kept is known to be right.
    renewed_at: AtomicI64,
    /// The log tells no more of all that changes.
    is_cut_off: AtomicBool,
    /// A key was found since the last look.
    is_used: AtomicBool,
    generation_max: usize,
    ttl: Micros,
    interned: Interned,
}

#[derive(Default)]
struct State {
    epoch: u64,
    is_kept: bool,
    young: Generation,
    old: Generation,
}

#[derive(Default)]
struct Generation {
    by_hash: HashSet<ByHash>,
    by_id: HashSet<ById>,
}

/// A key as a look-up found it. One allocation: there may be a million.
#[derive(Debug)]
pub(crate) struct Known {
    record: Record,
    hash: Hash,
    /// When its look-up began.
    since: Micros,
    /// What it was used for.
    pub(crate) tally: Tally,
}

#[cfg(test)]
impl Known {
    /// One that no cache keeps.
    pub fn new(record: Record) -> Arc<Known> {
        Arc::new(Known {
            record,
            hash: [0; 32],
            since: 0,
            tally: Tally::default(),
        })
    }
}

impl Deref for Known {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.record
    }
}

/// A place in a table: the hash is in what it points to, not once more in the table.
struct ByHash(Arc<Known>);

/// The same by the id of the key.
struct ById(Arc<Known>);

impl Borrow<Hash> for ByHash {
    fn borrow(&self) -> &Hash {
        &self.0.hash
    }
}

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        &self.0.record.caller.key_id
    }
}

impl PartialEq for ByHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.hash == other.0.hash
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.record.caller.key_id == other.0.record.caller.key_id
    }
}

impl Eq for ByHash {}

impl Eq for ById {}

impl hash::Hash for ByHash {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        hash::Hash::hash(&self.0.hash, state);
    }
}

impl hash::Hash for ById {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        hash::Hash::hash(&*self.0.record.caller.key_id, state);
    }
}

/// A look-up that is under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fill {
    epoch: u64,
    began: Micros,
}

impl Cache {
    /// Will hold at most `keys_max` keys, each for `ttl`, after [`Cache::keep`].
    pub fn new(keys_max: usize, ttl: Duration) -> Self {
        let generation_max = (keys_max / 2).max(1);
        Cache {
            state: RwLock::default(),
            renewed_at: AtomicI64::new(Micros::MIN),
            is_cut_off: AtomicBool::new(false),
            is_used: AtomicBool::new(false),
            generation_max,
            ttl: micros(ttl),
            interned: Interned::default(),
        }
    }

    /// A key with this hash that a look-up read from the database, for [`Cache::finish`].
    pub fn read(&self, fill: Fill, hash: Hash, key: &Key) -> Result<Arc<Known>> {
        let mut record = Record::read(key)?;
        self.interned.share(&mut record.caller);
        Ok(Arc::new(Known {
            record,
            hash,
            since: fill.began,
            tally: Tally::default(),
        }))
    }

    /// Keeps keys from now on: changes of others are heard of.
    pub fn keep(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // A look-up of before may not have seen what was changed while nobody waited for this
        // process.
        state.epoch += 1;
        state.is_kept = true;
    }

    /// The key with this hash, if it is known and fresh.
    pub fn by_hash(&self, hash: &Hash, now: Micros) -> Option<Arc<Known>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let find = |of: &Generation| of.by_hash.get(hash).map(|found| found.0.clone());
        let known = find(&state.young).or_else(|| find(&state.old))?;
        let same = bool::from(known.hash.ct_eq(hash));
        (same && self.is_fresh(&known, now)).then_some(known)
    }

    /// The key with this id, if it is known and fresh.
    pub fn by_id(&self, key_id: &str, now: Micros) -> Option<Arc<Known>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let find = |of: &Generation| of.by_id.get(key_id).map(|found| found.0.clone());
        let known = find(&state.young).or_else(|| find(&state.old))?;
        self.is_fresh(&known, now).then_some(known)
    }

    /// A clock that was set back makes everything stale, not eternal.
    fn is_fresh(&self, known: &Known, now: Micros) -> bool {
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
        let known_at = known.since.max(self.renewed_at.load(Ordering::Acquire));
        (0..self.ttl).contains(&now.saturating_sub(known_at))
    }

    /// The database was asked at this time for the end of the log, and everything up to there was
    /// forgotten where it changed: what is kept was right then.
    pub fn renew(&self, asked_at: Micros) {
        if !self.is_cut_off.load(Ordering::Acquire) {
            self.renewed_at.store(asked_at, Ordering::Release);
        }
    }

    /// From now on only look-ups are believed: the log is not the one that was followed. False if
    /// that was so before.
    pub fn end_renewals(&self) -> bool {
        let is_first = !self.is_cut_off.swap(true, Ordering::AcqRel);
        self.renewed_at.store(Micros::MIN, Ordering::Release);
        is_first
    }

    /// Whether somebody asked for a key that is kept since this was asked last.
    pub fn was_used(&self) -> bool {
        self.is_used.swap(false, Ordering::Relaxed)
    }

    /// Begins a look-up: call it before the query.
    pub fn begin(&self, now: Micros) -> Fill {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Fill {
            epoch: state.epoch,
            began: now,
        }
    }

    /// Whether the key with this hash was known, however long ago.
    pub fn was_known(&self, hash: &Hash) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.young.by_hash.contains(hash) || state.old.by_hash.contains(hash)
    }

    /// Ends a look-up. What it found is not kept, and must not be used, if any key was changed
    /// since it began: then this is false.
    pub fn finish(&self, fill: Fill, found: &Arc<Known>) -> bool {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.epoch != fill.epoch {
            return false;
        }
        if !state.is_kept {
            return true;
        }
        if state.young.by_hash.len() >= self.generation_max {
            state.old = std::mem::take(&mut state.young);
        }
        // Not inserted: what is there of before would stay.
        state.young.by_hash.replace(ByHash(found.clone()));
        state.young.by_id.replace(ById(found.clone()));
        true
    }

    /// Forgets a key, and refuses what look-ups under way will find: call it after the commit.
    pub fn forget(&self, key_id: &str) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.epoch += 1;
        state.young.remove(key_id);
        state.old.remove(key_id);
    }

    /// The same for all keys that are meant.
    pub fn forget_all(&self, is_meant: impl Fn(&Record) -> bool) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.epoch += 1;
        state.young.retain(|record| !is_meant(record));
        state.old.retain(|record| !is_meant(record));
    }
}

impl Fill {
    /// When it began.
    pub fn began(&self) -> Micros {
        self.began
    }
}

impl Generation {
    fn remove(&mut self, key_id: &str) {
        if let Some(ById(known)) = self.by_id.take(key_id) {
            self.by_hash.remove(&known.hash);
        }
    }

    fn retain(&mut self, is_kept: impl Fn(&Record) -> bool) {
        self.by_hash.retain(|found| is_kept(&found.0.record));
        self.by_id.retain(|found| is_kept(&found.0.record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn cache(keys_max: usize) -> Cache {
        let cache = Cache::new(keys_max, TTL);
        cache.keep();
        cache
    }

    fn finish(cache: &Cache, fill: Fill, hash: Hash, key_id: &str) -> bool {
        let key = crate::key::Key {
            key_id: key_id.into(),
            ..crate::key::tests::key()
        };
        cache.finish(fill, &cache.read(fill, hash, &key).unwrap())
    }

    fn known(cache: &Cache, hash: u8, now: Micros) -> bool {
        cache.by_hash(&[hash; 32], now).is_some()
    }

    #[test]
    fn a_million_keys_take_some_hundred_megabytes() {
        // With the counts of the shared pointer and what an allocator adds.
        assert!(size_of::<Known>() <= 224, "{}", size_of::<Known>());
    }

    #[test]
    fn a_key_is_believed_for_its_time_to_live_and_not_a_moment_longer() {
        let cache = cache(10);
        finish(&cache, cache.begin(100), [1; 32], "key_1");
        assert!(known(&cache, 1, 100) && known(&cache, 1, 100 + micros(TTL) - 1));
        assert!(cache.by_id("key_1", 100).is_some());
        assert!(!known(&cache, 1, 100 + micros(TTL)));
        assert!(!known(&cache, 1, 99), "the clock was set back");
        assert!(cache.by_id("key_1", 100 + micros(TTL)).is_none());
    }

    #[test]
    fn what_is_renewed_is_believed_for_its_time_to_live_from_then() {
        let cache = cache(10);
        finish(&cache, cache.begin(100), [1; 32], "key_1");
        assert!(known(&cache, 1, 100) && cache.was_used() && !cache.was_used());
        cache.renew(200);
        assert!(known(&cache, 1, 200 + micros(TTL) - 1) && cache.was_used());
        assert!(!known(&cache, 1, 200 + micros(TTL)));
        assert!(!known(&cache, 1, 199), "the clock was set back");
        cache.renew(50);
        assert!(
            known(&cache, 1, 100 + micros(TTL) - 1),
            "its look-up was later"
        );
        cache.renew(200);
        assert!(cache.end_renewals() && !cache.end_renewals());
        cache.renew(200);
        assert!(
            !known(&cache, 1, 100 + micros(TTL)),
            "what is renewed is not believed any more"
        );
    }

    #[test]
    fn nothing_is_kept_before_changes_of_others_are_heard_of() {
        let cache = Cache::new(10, TTL);
        assert!(finish(&cache, cache.begin(0), [1; 32], "key_1"));
        assert!(!known(&cache, 1, 0));
        cache.keep();
        finish(&cache, cache.begin(0), [1; 32], "key_1");
        assert!(known(&cache, 1, 0));
    }

    #[test]
    fn a_look_up_that_began_before_a_revocation_does_not_put_the_key_back() {
        let cache = cache(10);
        let early = cache.begin(0);
        cache.forget("key_1");
        finish(&cache, early, [1; 32], "key_1");
        assert!(!known(&cache, 1, 0));
        finish(&cache, cache.begin(0), [1; 32], "key_1");
        assert!(known(&cache, 1, 0));
    }

    #[test]
    fn a_look_up_that_began_before_changes_were_heard_of_is_not_kept() {
        let cache = Cache::new(10, TTL);
        let early = cache.begin(0);
        cache.keep();
        finish(&cache, early, [1; 32], "key_1");
        assert!(!known(&cache, 1, 0));
    }

    #[test]
    fn a_forgotten_key_is_gone_from_both_generations() {
        let cache = cache(2);
        finish(&cache, cache.begin(0), [1; 32], "key_1");
        finish(&cache, cache.begin(0), [2; 32], "key_2");
        assert!(known(&cache, 1, 0) && known(&cache, 2, 0));
        cache.forget("key_1");
        assert!(!known(&cache, 1, 0) && known(&cache, 2, 0));
        cache.forget("key_2");
        assert!(!known(&cache, 2, 0) && cache.by_id("key_2", 0).is_none());
    }

    #[test]
    fn a_key_that_is_looked_up_again_is_forgotten_in_both_places() {
        let cache = cache(2);
        finish(&cache, cache.begin(0), [1; 32], "key_1");
        finish(&cache, cache.begin(0), [2; 32], "key_2");
        finish(&cache, cache.begin(1), [1; 32], "key_1");
        cache.forget("key_1");
        assert!(!known(&cache, 1, 1) && cache.by_id("key_1", 1).is_none());
    }

    #[test]
    fn no_more_keys_are_held_than_allowed() {
        let cache = cache(100);
        for number in 0..10_000u32 {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&number.to_be_bytes());
            finish(&cache, cache.begin(0), hash, &format!("key_{number}"));
        }
        let state = cache.state.read().unwrap();
        assert!(state.young.by_hash.len() + state.old.by_hash.len() <= 100);
        assert!(state.young.by_id.len() + state.old.by_id.len() <= 100);
    }
}
