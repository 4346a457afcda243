//! The present routing epoch of each tenant: the version of the configuration by which its events
//! are routed.
//!
//! Each commit of this process tells the epoch that it was made under, so a change made here is
//! seen at once. What other processes changed (PostgreSQL) is asked for again before it is a second
//! old: of all tenants in use with each beat (`follow.rs`), of one that was not in use when it is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::{Journal, TenantRef};
use crate::clock::{Micros, micros};
use crate::error::Result;
use crate::storage::{Failure, Sql, Tx};

/// Longest time for which an epoch is believed without asking, in microseconds. With the time that
/// asking takes, a change is effective within a second.
const BELIEVED: Micros = 800_000;

const EPOCH: Sql = Sql::same("select routing_epoch from journal_heads where tenant_no = $1");
const BUMP: Sql = Sql::same(
    "update journal_heads set routing_epoch = routing_epoch + 1 where tenant_no = $1
     returning routing_epoch, head",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[EPOCH, BUMP];

/// A log whose epoch was raised; see [`bump`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bumped {
    /// The new epoch: the changed configuration is stored with it.
    pub epoch: u64,
    /// The last sequence before the change. The first event that the transaction stores gets the
    /// next one.
    pub head: u64,
}

/// Locks a log until the transaction ends, and raises its routing epoch.
///
/// Whatever is committed before has the old epoch, whatever comes later the new one. The
/// transaction must end in [`Journal::commit`] with an event in this log: by that this process and
/// the readers of the log learn of it.
pub async fn bump(tx: &mut Tx, tenant: &TenantRef) -> Result<Bumped, Failure> {
    let (epoch, head): (i64, i64) = tx.query(BUMP).bind(tenant.number()).one().await?;
    Ok(Bumped {
        epoch: epoch.unsigned_abs(),
        head: head.unsigned_abs(),
    })
}

/// What is known; as many as tenants in use since the start, about 100 bytes each.
pub(super) struct Epochs {
    known: RwLock<HashMap<i64, Arc<Known>>>,
    /// Counts how often one was seen to have risen.
    risen: watch::Sender<u64>,
    /// What was asked for before is not believed any more.
    doubted_at: AtomicI64,
}

struct Known {
    epoch: AtomicU64,
    checked_at: AtomicI64,
    /// Asked for since the last look.
    used: AtomicBool,
}

impl Default for Epochs {
    fn default() -> Self {
        Epochs {
            known: RwLock::default(),
            risen: watch::Sender::default(),
            doubted_at: AtomicI64::new(Micros::MIN),
        }
    }
}

impl Epochs {
    /// When the epoch that is known was asked for, if that is believed.
    fn checked_at(&self, known: &Known) -> Option<Micros> {
        let checked_at = known.checked_at.load(Ordering::Acquire);
        let doubted_at = self.doubted_at.load(Ordering::Acquire);
        (checked_at != Micros::MIN && checked_at >= doubted_at).then_some(checked_at)
    }

    /// A commit of this process was made under this epoch.
    pub(super) fn observe(&self, tenant_no: i64, epoch: u64) {
        let known = self.known_of(tenant_no);
        if known.epoch.fetch_max(epoch, Ordering::AcqRel) < epoch {
            self.tell_risen();
        }
    }

    /// `asked_at` is before the statement ran: what was committed later may not be in its answer.
    pub(super) fn learn(&self, tenant_no: i64, epoch: u64, asked_at: Micros) -> u64 {
        let known = self.known_of(tenant_no);
        let before = known.epoch.load(Ordering::Acquire);
        let epoch = known.learn(epoch, asked_at);
        if before < epoch {
            self.tell_risen();
        }
        epoch
    }

    fn tell_risen(&self) {
        self.risen.send_modify(|times| *times += 1);
    }

    fn known_of(&self, tenant_no: i64) -> Arc<Known> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&tenant_no) {
            return known.clone();
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let unknown = || {
            Arc::new(Known {
                epoch: AtomicU64::new(0),
                checked_at: AtomicI64::new(Micros::MIN),
                used: AtomicBool::new(false),
            })
        };
        known.entry(tenant_no).or_insert_with(unknown).clone()
    }

    /// Tenants asked for since the last look.
    pub(super) fn in_use(&self) -> Vec<i64> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let used = known
            .iter()
            .filter(|(_, known)| known.used.swap(false, Ordering::AcqRel));
        used.map(|(tenant_no, _)| *tenant_no).collect()
    }
}

impl Known {
    /// `alone`: no other process can have changed it, so that once asked is enough.
    fn fresh(&self, checked_at: Option<Micros>, now: Micros, alone: bool) -> Option<u64> {
        self.used.store(true, Ordering::Release);
        let age = now - checked_at?;
        // A clock that was set back says nothing of the age.
        (alone || (0..BELIEVED).contains(&age)).then(|| self.epoch.load(Ordering::Acquire))
    }

    fn learn(&self, epoch: u64, asked_at: Micros) -> u64 {
        let before = self.epoch.fetch_max(epoch, Ordering::AcqRel);
        self.checked_at.store(asked_at, Ordering::Release);
        before.max(epoch)
    }
}

impl Journal {
    /// The tenant's present routing epoch: exact for changes made by this process, less than a
    /// second old for those of others. Errors: `STORE_BUSY`, `TENANT_NOT_FOUND`.
    pub async fn routing_epoch(&self, tenant: &TenantRef) -> Result<u64> {
        let now = self.clock.now();
        let known = self.epochs.known_of(tenant.number());
        let checked_at = self.epochs.checked_at(&known);
        if let Some(epoch) = known.fresh(checked_at, now, !self.db.is_postgres()) {
            return Ok(epoch);
        }
        let row: Option<(i64,)> = self
            .db
            .query(EPOCH)
            .bind(tenant.number())
            .optional()
            .await?;
        let (epoch,) = row.ok_or_else(|| crate::tenancy::not_found(tenant.id()))?;
        let epoch = epoch.unsigned_abs();
        Ok(self.epochs.learn(tenant.number(), epoch, now))
    }

    /// The epoch that was known last, if that was less than `Limits::key_cache_ttl` ago: for calls
    /// that go on for so long while the database is away.
    pub fn routing_epoch_lately(&self, tenant: &TenantRef) -> Option<u64> {
        let known = self.epochs.known_of(tenant.number());
        let age = self.clock.now() - self.epochs.checked_at(&known)?;
        let is_late = (0..micros(self.limits.key_cache_ttl)).contains(&age);
        is_late.then(|| known.epoch.load(Ordering::Acquire))
    }

    /// All epochs are asked for again: changes were missed.
    pub fn doubt_epochs(&self) {
        let now = self.clock.now();
        self.epochs.doubted_at.store(now, Ordering::Release);
    }

    /// The tenant has this epoch, as its log or that of the hub tells.
    pub fn observe_epoch(&self, tenant: &TenantRef, epoch: u64) {
        self.epochs.observe(tenant.number(), epoch);
    }

    /// Changes when the epoch of some tenant has risen, as far as this process has seen.
    pub fn epochs_risen(&self) -> watch::Receiver<u64> {
        self.epochs.risen.subscribe()
    }

    /// The greatest epoch that this process has seen of a tenant, without asking: not less than
    /// that of any of its own commits.
    pub fn seen_epoch(&self, tenant: &TenantRef) -> u64 {
        let known = self.epochs.known_of(tenant.number());
        known.epoch.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_never_goes_back_and_is_believed_for_less_than_a_second() {
        let epochs = Epochs::default();
        let known = epochs.known_of(7);
        let fresh = |now, alone| known.fresh(epochs.checked_at(&known), now, alone);
        assert_eq!(fresh(0, true), None, "never asked for");
        epochs.observe(7, 3);
        assert_eq!(known.learn(2, 1_000), 3);
        assert_eq!(fresh(1_000, false), Some(3));
        assert_eq!(fresh(1_000 + BELIEVED, false), None);
        assert_eq!(fresh(999, false), None, "the clock was set back");
        assert_eq!(fresh(Micros::MAX, true), Some(3));
        epochs.observe(7, 4);
        assert_eq!(fresh(1_001, false), Some(4));
        epochs.doubted_at.store(1_002, Ordering::Release);
        assert_eq!(fresh(1_003, true), None, "changes were missed");
        known.learn(4, 1_002);
        assert_eq!(fresh(1_003, true), Some(4));
    }

    #[test]
    fn only_tenants_in_use_are_looked_at() {
        let epochs = Epochs::default();
        epochs.observe(1, 1);
        assert_eq!(epochs.in_use(), [0; 0]);
        epochs.known_of(1).fresh(None, 0, false);
        assert_eq!(epochs.in_use(), [1]);
        assert_eq!(epochs.in_use(), [0; 0]);
    }
}
