//! Immutable configuration by tenant and routing epoch, loaded when it is needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::journal::TenantRef;

/// What an entry of the map takes beside the value, about.
const ENTRY_BYTES: usize = 64;

/// A cache of what belongs to one tenant at one epoch. An entry is never wrong, so nothing is ever
/// taken back; what was not used lately makes room.
pub struct Versioned<T: ?Sized> {
    generations: Mutex<Generations<T>>,
    bytes_max: usize,
    weigh: fn(&Arc<T>) -> usize,
}

/// Entries are put into the young generation. Once it holds half of the memory it becomes the old
/// one, and what was old is dropped.
struct Generations<T: ?Sized> {
    young: HashMap<(i64, u64), Arc<T>>,
    old: HashMap<(i64, u64), Arc<T>>,
    young_bytes: usize,
    old_bytes: usize,
}

impl<T: ?Sized> Versioned<T> {
    /// At most `bytes_max` of memory; `weigh` says what a value takes.
    pub fn new(bytes_max: usize, weigh: fn(&Arc<T>) -> usize) -> Self {
        let generations = Generations {
            young: HashMap::new(),
            old: HashMap::new(),
            young_bytes: 0,
            old_bytes: 0,
        };
        Versioned {
            generations: Mutex::new(generations),
            bytes_max,
            weigh,
        }
    }

    /// The configuration of a tenant at an epoch, from `load` if it is not in memory.
    pub async fn get<L, F>(&self, tenant: &TenantRef, epoch: u64, load: L) -> Result<Arc<T>>
    where
        L: FnOnce() -> F,
        F: Future<Output = Result<Arc<T>>>,
    {
        let key = (tenant.number(), epoch);
        if let Some(found) = self.find(key) {
            return Ok(found);
        }
        let value = load().await?;
        self.put(key, value.clone());
        Ok(value)
    }

    /// The same, if it is in memory.
    pub fn known(&self, tenant: &TenantRef, epoch: u64) -> Option<Arc<T>> {
        self.find((tenant.number(), epoch))
    }

    fn find(&self, key: (i64, u64)) -> Option<Arc<T>> {
        let mut generations = self.lock();
        if let Some(found) = generations.young.get(&key) {
            return Some(found.clone());
        }
        let found = generations.old.get(&key).cloned()?;
        self.put_in(&mut generations, key, found.clone());
        Some(found)
    }

    fn put(&self, key: (i64, u64), value: Arc<T>) {
        self.put_in(&mut self.lock(), key, value);
    }

    fn put_in(&self, generations: &mut Generations<T>, key: (i64, u64), value: Arc<T>) {
        let bytes = ENTRY_BYTES + (self.weigh)(&value);
        if generations.young_bytes + bytes > self.bytes_max / 2 {
            generations.old = std::mem::take(&mut generations.young);
            generations.old_bytes = std::mem::take(&mut generations.young_bytes);
        }
        if generations.young.insert(key, value).is_none() {
            generations.young_bytes += bytes;
        }
    }

    /// Memory held now, about, in bytes.
    pub fn bytes(&self) -> usize {
        let generations = self.lock();
        generations.young_bytes + generations.old_bytes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations<T>> {
        self.generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn tenant(number: i64) -> TenantRef {
        TenantRef::new(number, "tnt")
    }

    #[tokio::test]
    async fn each_tenant_and_epoch_is_loaded_once() {
        let cache = Versioned::new(1 << 20, |_| 8);
        let loads = AtomicUsize::new(0);
        for _ in 0..3 {
            for (number, epoch) in [(1, 0), (1, 1), (2, 0)] {
                let load = || async {
                    loads.fetch_add(1, Ordering::Relaxed);
                    Ok(Arc::new((number, epoch)))
                };
                let found = cache.get(&tenant(number), epoch, load).await.unwrap();
                assert_eq!(*found, (number, epoch));
            }
        }
        assert_eq!(loads.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn memory_is_bounded_and_what_is_in_use_stays() {
        let cache = Versioned::new(100 * (ENTRY_BYTES + 36), |_| 36);
        let loads = AtomicUsize::new(0);
        for number in 0..10_000 {
            for tenant_no in [0, number] {
                let load = || async {
                    loads.fetch_add(1, Ordering::Relaxed);
                    Ok(Arc::new(tenant_no))
                };
                cache.get(&tenant(tenant_no), 0, load).await.unwrap();
            }
            assert!(
                cache.bytes() <= 100 * (ENTRY_BYTES + 36),
                "{}",
                cache.bytes()
            );
        }
        assert_eq!(
            loads.load(Ordering::Relaxed),
            10_000,
            "tenant 0 was loaded once"
        );
    }
}
