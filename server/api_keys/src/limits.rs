//! Rate limits: how many requests a key, and all keys of a tenant together, may make in a minute.
//!
//! Invariants:
//! - Of the limits of a request all are counted or none; a denial counts nothing.
//! - What is told of a limit is told of the one with the least left.
//! - Only keys that are known have a window, so nobody fills the memory with keys that he made up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hub_core::clock::Micros;
use hub_core::window::{self, Window};

use crate::key::Record;

/// Windows in memory; past this, a key or tenant that has none is let through uncounted.
const WINDOWS_MAX: usize = 200_000;

/// Whose requests are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    /// Those of a key and of all that it was rotated from.
    Family(Arc<str>),
    /// Those of all keys of a tenant, by its number.
    Tenant(i64),
}

/// A limit that holds for a request.
#[derive(Debug, Clone)]
pub(crate) struct Limit {
    pub subject: Subject,
    pub per_minute: u32,
    /// Id of the key if it is the key's own.
    pub key_id: Option<Arc<str>>,
}

/// A limit and what is left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Left {
    pub limit: u32,
    pub remaining: u32,
    /// When the full limit is available again.
    pub reset_at: Micros,
    pub key_id: Option<Arc<str>>,
}

/// What became of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The limit with the least left; none if there is no limit.
    pub left: Option<Left>,
    /// It was denied, and fits again after so long.
    pub denied: Option<Duration>,
    /// It was let through without being counted.
    pub degraded: bool,
}

/// The windows of this process.
#[derive(Default)]
pub(crate) struct Limiter {
    windows: Mutex<HashMap<Subject, Window>>,
}

impl Limiter {
    /// Counts `cost` requests against all limits, or denies them; with `dry_run` it only tells.
    pub fn take(&self, limits: &[Limit], cost: u32, dry_run: bool, now: Micros) -> Taken {
        let mut windows = self.windows();
        let mut denied: Option<Micros> = None;
        for limit in limits {
            let Some(window) = windows.get_mut(&limit.subject) else {
                if cost > limit.per_minute {
                    denied = denied.max(Some(now + window::LENGTH));
                }
                continue;
            };
            window.advance(now);
            if window.used() + u64::from(cost) > u64::from(limit.per_minute) && cost > 0 {
                let at = window.fits_at(cost, limit.per_minute, now);
                denied = denied.max(Some(at));
            }
        }
        let mut degraded = false;
        if denied.is_none() && !dry_run && cost > 0 {
            for limit in limits {
                degraded |= !count(&mut windows, &limit.subject, cost, now);
            }
        }
        let left = limits.iter().map(|limit| left(&windows, limit, now));
        Taken {
            left: left.min_by_key(|left| left.remaining),
            denied: denied.map(|at| Duration::from_micros((at - now).max(1).unsigned_abs())),
            degraded,
        }
    }

    /// Forgets windows that are empty.
    pub fn sweep(&self, now: Micros) {
        let mut windows = self.windows();
        sweep(&mut windows, now);
        metrics::gauge!("hub_rate_windows").set(windows.len() as f64);
    }

    fn windows(&self) -> MutexGuard<'_, HashMap<Subject, Window>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sweep(windows: &mut HashMap<Subject, Window>, now: Micros) {
    windows.retain(|_, window| {
        window.advance(now);
        window.used() > 0
    });
}

/// False if there is no room for another window.
fn count(windows: &mut HashMap<Subject, Window>, of: &Subject, cost: u32, now: Micros) -> bool {
    if windows.len() >= WINDOWS_MAX && !windows.contains_key(of) {
        return false;
    }
    windows.entry(of.clone()).or_default().add(cost, now);
    true
}

fn left(windows: &HashMap<Subject, Window>, limit: &Limit, now: Micros) -> Left {
    let window = windows.get(&limit.subject);
    let used = window.map_or(0, Window::used);
    let remaining = u64::from(limit.per_minute).saturating_sub(used);
    Left {
        limit: limit.per_minute,
        remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
        reset_at: window.map_or(now, |window| window.reset_at(now)),
        key_id: limit.key_id.clone(),
    }
}

/// The limits of a request with this key for this tenant: the key's own if it has one, then the
/// tenant's. A key that serves all tenants has a tenant's limit only where a tenant is named.
pub(crate) fn of(record: &Record, tenant_no: Option<i64>, tenant_default: u32) -> Vec<Limit> {
    let mut limits = Vec::with_capacity(2);
    if record.limits.own > 0 {
        limits.push(Limit {
            subject: Subject::Family(record.family.clone()),
            per_minute: record.limits.own,
            key_id: Some(record.caller.key_id.clone()),
        });
    }
    if let Some(number) = tenant_no {
        limits.push(Limit {
            subject: Subject::Tenant(number),
            per_minute: match record.limits.tenant {
                0 => tenant_default,
                set => set,
            },
            key_id: None,
        });
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Micros = 1_000_000;

    fn limits(own: u32, tenant: u32) -> Vec<Limit> {
        let own = Limit {
            subject: Subject::Family("key_1".into()),
            per_minute: own,
            key_id: Some("key_1".into()),
        };
        let tenant = Limit {
            subject: Subject::Tenant(1),
            per_minute: tenant,
            key_id: None,
        };
        vec![own, tenant]
    }

    fn remaining(taken: &Taken) -> (u32, bool) {
        let left = taken.left.as_ref().unwrap();
        (left.remaining, left.key_id.is_some())
    }

    #[test]
    fn the_limit_with_the_least_left_is_told() {
        let limiter = Limiter::default();
        assert_eq!(
            remaining(&limiter.take(&limits(5, 100), 1, false, 0)),
            (4, true)
        );
        assert_eq!(
            remaining(&limiter.take(&limits(500, 100), 1, false, 0)),
            (98, false)
        );
    }

    #[test]
    fn both_limits_are_counted_or_none() {
        let limiter = Limiter::default();
        for _ in 0..2 {
            assert_eq!(limiter.take(&limits(2, 10), 1, false, 0).denied, None);
        }
        for _ in 0..50 {
            let denied = limiter.take(&limits(2, 10), 1, false, SECOND);
            assert!(denied.denied.is_some());
            assert_eq!(remaining(&denied), (0, true));
        }
        let tenant = limiter.take(&limits(2, 10)[1..], 0, false, SECOND);
        assert_eq!(remaining(&tenant), (8, false), "denials count nothing");
    }

    #[test]
    fn a_cost_fits_whole_or_not_at_all_and_a_dry_run_counts_nothing() {
        let limiter = Limiter::default();
        let only = &limits(0, 10)[1..];
        assert_eq!(remaining(&limiter.take(only, 7, true, 0)), (10, false));
        assert_eq!(remaining(&limiter.take(only, 7, false, 0)), (3, false));
        let denied = limiter.take(only, 4, false, SECOND);
        assert_eq!(remaining(&denied), (3, false));
        assert_eq!(denied.denied, Some(Duration::from_millis(59_500)));
        assert_eq!(remaining(&limiter.take(only, 3, false, SECOND)), (0, false));
        assert_eq!(limiter.take(only, 0, false, SECOND).denied, None);
        assert!(
            limiter
                .take(only, 11, true, 10 * 60 * SECOND)
                .denied
                .is_some()
        );
    }

    #[test]
    fn windows_that_are_empty_take_no_memory() {
        let limiter = Limiter::default();
        limiter.take(&limits(5, 5), 1, false, 0);
        assert_eq!(limiter.windows().len(), 2);
        limiter.sweep(59 * SECOND);
        assert_eq!(limiter.windows().len(), 2);
        limiter.sweep(61 * SECOND);
        assert_eq!(limiter.windows().len(), 0);
    }

    #[test]
    fn of_many_threads_no_more_are_let_through_than_allowed() {
        let limiter = Limiter::default();
        let only = &limits(0, 1000)[1..];
        let allowed: usize = std::thread::scope(|scope| {
            let run = || {
                let taken = (0..500).map(|_| limiter.take(only, 1, false, 0));
                taken.filter(|taken| taken.denied.is_none()).count()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(allowed, 1000);
    }
}
