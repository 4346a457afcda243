//! The limits of the tenants that keys of no tenant are used for: the row of such a key has none.
//!
//! Invariants:
//! - A look-up that began before a change of a limit never puts the old one back.
//! - While the database answers, none is believed for longer than a key is.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hub_core::clock::{Micros, micros};
use hub_core::journal::TenantRef;
use hub_core::tenancy::LOOKED_UP_WITHIN;
use tokio::time::timeout;

use crate::key::Record;
use crate::keys::Keys;
use crate::limits::{self, Limit};
use crate::store;

/// Tenants in memory; past this all are looked up again.
const TENANTS_MAX: usize = 10_000;

/// What is known.
#[derive(Default)]
pub(crate) struct TenantLimits(Mutex<State>);

#[derive(Default)]
struct State {
    /// Rises with each change.
    epoch: u64,
    known: HashMap<i64, Known>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    /// 0 = the default.
    per_minute: u32,
    since: Micros,
    changed: bool,
}

impl TenantLimits {
    /// The limit of some tenant was changed: call it after the commit.
    pub fn forget(&self) {
        let mut state = self.state();
        state.epoch += 1;
        state
            .known
            .values_mut()
            .for_each(|known| known.changed = true);
    }

    /// What is known of a tenant, however old, and whether it may be believed.
    fn find(&self, tenant_no: i64, now: Micros, ttl: Duration) -> (Option<u32>, bool) {
        let known = self.state().known.get(&tenant_no).copied();
        let fresh =
            |known: &Known| !known.changed && (0..micros(ttl)).contains(&(now - known.since));
        (
            known.map(|known| known.per_minute),
            known.as_ref().is_some_and(fresh),
        )
    }

    fn begin(&self) -> u64 {
        self.state().epoch
    }

    /// Ends a look-up that began at `since`; it is not kept if a limit was changed meanwhile.
    fn finish(&self, epoch: u64, tenant_no: i64, per_minute: u32, since: Micros) {
        let mut state = self.state();
        if state.epoch != epoch {
            return;
        }
        if state.known.len() >= TENANTS_MAX && !state.known.contains_key(&tenant_no) {
            state.known.clear();
        }
        let known = Known {
            per_minute,
            since,
            changed: false,
        };
        state.known.insert(tenant_no, known);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    /// The limits that hold for a request with a key for a tenant.
    pub(crate) async fn limits(&self, record: &Record, tenant: Option<&TenantRef>) -> Vec<Limit> {
        let set = match tenant {
            Some(tenant) if record.caller.tenant.is_none() => self.limit_of(tenant).await,
            _ => record.limits.tenant,
        };
        let per_minute = match set {
            0 => self.core.limits.tenant_requests_per_minute,
            set => set,
        };
        limits::of(record, tenant.map(TenantRef::number), per_minute)
    }

    /// The limit of a tenant, mostly from memory; 0 = the default. While the database is away it
    /// is what was known last.
    async fn limit_of(&self, tenant: &TenantRef) -> u32 {
        let (known, now) = (&self.tenant_limits, self.core.clock.now());
        let number = tenant.number();
        let (last, is_fresh) = known.find(number, now, self.core.limits.key_cache_ttl);
        if is_fresh {
            return last.unwrap_or_default();
        }
        let epoch = known.begin();
        let looked = store::limits::of_tenant(&self.core.db, tenant);
        let looked = match last {
            Some(_) => timeout(LOOKED_UP_WITHIN, looked).await,
            // Who knows nothing waits on.
            None => Ok(looked.await),
        };
        match looked {
            Ok(Ok(per_minute)) => {
                known.finish(epoch, number, per_minute, now);
                per_minute
            }
            _ => last.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    #[test]
    fn a_look_up_that_began_before_a_change_is_not_kept() {
        let limits = TenantLimits::default();
        let early = limits.begin();
        limits.forget();
        limits.finish(early, 1, 7, 0);
        assert_eq!(limits.find(1, 0, TTL), (None, false));
        limits.finish(limits.begin(), 1, 8, 0);
        assert_eq!(limits.find(1, 0, TTL), (Some(8), true));
        assert_eq!(limits.find(1, micros(TTL), TTL), (Some(8), false));
        limits.forget();
        assert_eq!(limits.find(1, 0, TTL), (Some(8), false));
    }

    #[test]
    fn no_more_tenants_are_held_than_allowed() {
        let limits = TenantLimits::default();
        for number in 0..3 * TENANTS_MAX as i64 {
            limits.finish(limits.begin(), number, 1, 0);
        }
        assert!(limits.state().known.len() <= TENANTS_MAX);
    }
}
