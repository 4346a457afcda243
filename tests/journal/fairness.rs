//! A tenant that floods the log delays itself only.

use std::sync::Arc;

use hub_core::clock::{Clock, Micros};
use hub_core::journal::{self, Log, Pending, TenantRef};
use hub_core::limits::Limits;
use hub_core::storage::{Sql, Tx};

use super::store::{Store, batch, event_with};
use crate::support::{Backend, Database};

/// Batches that wait when the first commit begins.
const WAITING: usize = 40;
/// Commits that were before that of the quiet tenant: the one that had begun when it came, and
/// its own, in which it may come second.
const GROUPS_MAX: usize = 2;
/// When each segment of a tenant was committed.
const TIMES: Sql =
    Sql::same("select record_time from journal_segments where tenant_no = $1 order by key");

fn limits() -> Limits {
    Limits {
        group_tenant_bytes_max: 4 << 10,
        group_tenants_max: 4,
        ..Limits::default()
    }
}

/// Keeps everything from being committed until it is dropped.
async fn hold(store: &Store, tenants: &[TenantRef]) -> Tx {
    let mut tx = store.db.begin().await.unwrap();
    for tenant in tenants {
        journal::lock_head(&mut tx, tenant).await.unwrap();
    }
    tx
}

/// Each batch is as large as one tenant's part of a commit.
async fn flood(store: &Store, log: &Arc<Log>, count: usize) -> Vec<Pending> {
    let mut waiting = Vec::new();
    for number in 0..count {
        let name = format!("{} {number} {}", log.tenant().id(), "x".repeat(4 << 10));
        let append = batch(log, vec![event_with(&name, 1, "psa")]);
        waiting.push(store.journal.submit(append).await.unwrap());
    }
    waiting
}

async fn times(store: &Store, tenant: &TenantRef) -> Vec<Micros> {
    let rows: Vec<(Micros,)> = store
        .db
        .query(TIMES)
        .bind(tenant.number())
        .all()
        .await
        .unwrap();
    rows.into_iter().map(|(time,)| time).collect()
}

async fn tenants(store: &Store, count: usize) -> Vec<TenantRef> {
    let mut tenants = Vec::new();
    for number in 0..count {
        tenants.push(store.tenant(&format!("tenant {number}")).await);
    }
    tenants
}

both_databases! {
    async fn a_flooding_tenant_delays_another_by_two_commits_at_most(backend: Backend) {
        let database = Database::new(backend).await;
        let store = Store::open(&database, limits(), Clock::system()).await;
        let tenants = tenants(&store, 2).await;
        let busy = store.journal.log(&tenants[0]).await.unwrap();
        let quiet = store.journal.log(&tenants[1]).await.unwrap();
        let held = hold(&store, &tenants).await;
        let flood = flood(&store, &busy, WAITING).await;
        let late = batch(&quiet, vec![event_with("late", 1, "psa")]);
        let late = store.journal.submit(late).await.unwrap();
        drop(held);
        late.wait().await.unwrap();
        for pending in flood {
            pending.wait().await.unwrap();
        }
        let late = times(&store, &tenants[1]).await[0];
        let busy = times(&store, &tenants[0]).await;
        assert_eq!(busy.len(), WAITING, "a commit for each batch, and nothing is lost");
        let before = busy.iter().filter(|time| **time <= late).count();
        assert!(before <= GROUPS_MAX, "the quiet tenant waited for {before} commits");
        store.close().await;
    }

    async fn more_tenants_than_fit_into_a_commit_take_turns(backend: Backend) {
        let database = Database::new(backend).await;
        let store = Store::open(&database, limits(), Clock::system()).await;
        let tenants = tenants(&store, 10).await;
        let held = hold(&store, &tenants).await;
        let mut waiting = Vec::new();
        for tenant in &tenants {
            let log = store.journal.log(tenant).await.unwrap();
            waiting.extend(flood(&store, &log, 10).await);
        }
        drop(held);
        for pending in waiting {
            pending.wait().await.unwrap();
        }
        let mut all = Vec::new();
        for tenant in &tenants {
            all.push(times(&store, tenant).await);
        }
        // Whoever comes last in a turn comes before anybody's turn after the next.
        for one in &all {
            for other in &all {
                for turn in 0..8 {
                    assert!(one[turn] < other[turn + 2], "turn {turn}: {all:?}");
                }
            }
        }
        store.close().await;
    }
}
