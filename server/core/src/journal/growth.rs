//! Who reads the logs of all tenants is told which of them have grown: without asking for each,
//! and without holding a reader open on each.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;

use super::Journal;
use crate::error::Result;
use crate::storage::Sql;

const HEADS: Sql = Sql::same("select tenant_no, head from journal_heads where tenant_no > 0");

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[HEADS];

/// The tenants whose logs have grown since they were last taken, each once.
#[derive(Debug, Default)]
pub struct Growth {
    grown: Mutex<BTreeSet<i64>>,
    told: Notify,
}

impl Growth {
    /// Waits for a log that has grown, and takes all that have, by number of the tenant.
    pub async fn next(&self) -> BTreeSet<i64> {
        loop {
            let grown = std::mem::take(&mut *self.lock());
            if !grown.is_empty() {
                return grown;
            }
            self.told.notified().await;
        }
    }

    fn tell(&self, tenant_no: i64) {
        if self.lock().insert(tenant_no) {
            self.told.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<i64>> {
        self.grown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who is told.
#[derive(Default)]
pub(super) struct Growths {
    any: AtomicBool,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    listeners: Vec<Weak<Growth>>,
    /// Heads that were told, of commits of other processes.
    heads: HashMap<i64, u64>,
    /// They are those of all logs.
    knows_all: bool,
}

impl Growths {
    fn lock(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, growth: &Arc<Growth>) {
        self.lock().listeners.push(Arc::downgrade(growth));
        self.any.store(true, Ordering::Release);
    }

    /// A log has grown.
    pub(super) fn tell(&self, tenant_no: i64) {
        if tenant_no <= 0 || !self.any.load(Ordering::Acquire) {
            return;
        }
        self.lock().tell(tenant_no);
    }

    /// These are the heads of all logs.
    pub(super) fn learn(&self, heads: impl Iterator<Item = (i64, u64)>) {
        let mut told = self.lock();
        // Who begins to listen looks at all logs itself after this.
        let first = !std::mem::replace(&mut told.knows_all, true);
        for (tenant_no, head) in heads {
            if told.heads.insert(tenant_no, head) != Some(head) && head > 0 && !first {
                told.tell(tenant_no);
            }
        }
    }

    /// Whether anybody is to be told of all logs.
    pub(super) fn is_wanted(&self) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let mut told = self.lock();
        told.listeners.retain(|growth| growth.strong_count() > 0);
        let any = !told.listeners.is_empty();
        self.any.store(any, Ordering::Release);
        if !any {
            told.heads.clear();
            told.knows_all = false;
        }
        any
    }

    fn knows_all(&self) -> bool {
        self.lock().knows_all
    }
}

impl Told {
    fn tell(&self, tenant_no: i64) {
        let listeners = self.listeners.iter().filter_map(Weak::upgrade);
        listeners.for_each(|growth| growth.tell(tenant_no));
    }
}

impl Journal {
    /// Tells of every log that grows from now on, whoever wrote into it: at once of commits of
    /// this process, within a second of those of others.
    ///
    /// Errors: `STORE_BUSY`.
    pub async fn growth(&self) -> Result<Arc<Growth>> {
        let growth = Arc::new(Growth::default());
        self.growths.add(&growth);
        // The commits of others are told by how the heads differ from those of before.
        if self.db.is_postgres() && !self.growths.knows_all() {
            self.look_for_growth().await?;
        }
        Ok(growth)
    }

    /// Looks at the heads of all logs by one statement, if anybody wants to know (PostgreSQL).
    pub(super) async fn look_for_growth(&self) -> Result<()> {
        if self.growths.is_wanted() {
            let heads: Vec<(i64, i64)> = self.db.query(HEADS).all().await?;
            let heads = heads.into_iter();
            let heads = heads.map(|(tenant_no, head)| (tenant_no, head.unsigned_abs()));
            self.growths.learn(heads);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_that_grew_twice_is_told_once_and_to_everybody() {
        let growths = Growths::default();
        growths.tell(1);
        let (one, two) = (Arc::new(Growth::default()), Arc::new(Growth::default()));
        growths.add(&one);
        growths.add(&two);
        for tenant_no in [3, 2, 3, 0] {
            growths.tell(tenant_no);
        }
        assert_eq!(one.next().await, BTreeSet::from([2, 3]));
        growths.tell(4);
        assert_eq!(one.next().await, BTreeSet::from([4]));
        assert_eq!(two.next().await, BTreeSet::from([2, 3, 4]));
        drop((one, two));
        assert!(!growths.is_wanted());
    }

    #[tokio::test]
    async fn the_first_log_of_all_is_told_though_there_was_none_to_compare_it_with() {
        let (growths, growth) = (Growths::default(), Arc::new(Growth::default()));
        growths.add(&growth);
        growths.learn([].into_iter());
        growths.learn([(1, 1)].into_iter());
        assert_eq!(growth.next().await, BTreeSet::from([1]));
    }
}
