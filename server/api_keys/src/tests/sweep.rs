//! What is kept no longer is removed, however much it is.

use super::*;
use crate::denials::{Denial, KEPT};
use crate::rollup::{CHUNK_ROWS, roll_up};
use crate::store::usage::{Batch, Span};
use crate::store::{denials, standings, usage};
use crate::sweep::sweep;
use crate::usage::{ALLOWED, Counted, DAY, MINUTE};

/// More than two transactions of a sweep remove.
const OLD: i64 = 2_500;

/// Counts in minutes from a time on, and denials and standings at that time.
async fn fill(hub: &TestKeys, writer_id: &str, from: i64, rows: i64) {
    let (db, tenant_no) = (&hub.core.db, hub.tenant.number());
    let counted = |at| Counted {
        tenant_no,
        family: "key_1".into(),
        span: MINUTE,
        start: from + at * MINUTE,
        outcome: ALLOWED.into(),
        requests: 1,
    };
    let counted: Vec<Counted> = (0..rows).map(counted).collect();
    let batch = Batch {
        writer_id,
        number: 1,
    };
    usage::add(db, batch, counted, from).await.unwrap();
    roll_up(db, from + 10 * DAY, CHUNK_ROWS, || true)
        .await
        .unwrap();
    let denial = |at| Denial {
        call_id: format!("call_{from}_{at}"),
        tenant_no,
        time: from,
        ..Denial::default()
    };
    let denied: Vec<Denial> = (0..rows).map(denial).collect();
    denials::insert(db, &denied).await.unwrap();
    let standing = |at| (format!("key:{from}_{at}"), false, "[]".to_owned());
    let mut changed: Vec<_> = (0..rows).map(standing).collect();
    let mut tx = db.begin().await.unwrap();
    assert!(standings::put(&mut tx, &mut changed, from).await.unwrap());
    tx.commit().await.unwrap();
}

/// How many minutes are counted.
async fn minutes(hub: &TestKeys) -> usize {
    let span = Span {
        length: MINUTE,
        since: 0,
        until: START + DAY,
    };
    let rows = usage::read(&hub.core.db, &hub.tenant, None, &span).await;
    rows.unwrap().len()
}

async fn is_known(hub: &TestKeys, from: i64, at: i64) -> bool {
    let call_id = format!("call_{from}_{at}");
    denials::find(&hub.core.db, &call_id)
        .await
        .unwrap()
        .is_some()
}

/// How many subjects have standings.
async fn subjects(hub: &TestKeys) -> usize {
    let names = |from| (0..OLD).map(move |at| format!("key:{from}_{at}"));
    let names: Vec<String> = names(START).chain(names(START - 10 * DAY)).collect();
    let mut tx = hub.core.db.begin().await.unwrap();
    standings::lock(&mut tx, &names).await.unwrap().len()
}

both_databases! {
    async fn one_sweep_removes_all_that_is_old_and_nothing_else(hub: TestKeys) {
        let old = START - 10 * DAY;
        fill(&hub, "wrt_old", old, OLD).await;
        fill(&hub, "wrt_new", START, 10).await;
        sweep(&hub.core.db, START, || true).await.unwrap();
        assert_eq!(minutes(&hub).await, 10);
        for at in 0..OLD {
            assert!(!is_known(&hub, old, at).await, "{at}");
        }
        assert!(is_known(&hub, START, 9).await);
        if hub.core.db.is_postgres() {
            assert_eq!(subjects(&hub).await, 10);
        }
    }

    async fn what_is_exactly_as_old_as_it_is_kept_stays(hub: TestKeys) {
        fill(&hub, "wrt_1", START, 1).await;
        sweep(&hub.core.db, START + KEPT, || true).await.unwrap();
        assert_eq!((minutes(&hub).await, is_known(&hub, START, 0).await), (1, true));
        sweep(&hub.core.db, START + KEPT + 1, || true).await.unwrap();
        assert_eq!((minutes(&hub).await, is_known(&hub, START, 0).await), (0, false));
    }

    async fn a_sweep_ends_after_the_transaction_that_it_is_in_if_it_is_told_to(hub: TestKeys) {
        fill(&hub, "wrt_old", START - 10 * DAY, OLD).await;
        sweep(&hub.core.db, START, || false).await.unwrap();
        assert_eq!(minutes(&hub).await, 1_500);
    }

    async fn two_processes_sweep_at_once(hub: TestKeys) {
        fill(&hub, "wrt_old", START - 10 * DAY, OLD).await;
        let sweeps = [(), ()].map(|()| {
            let db = hub.core.db.clone();
            tokio::spawn(async move { sweep(&db, START, || true).await })
        });
        for swept in sweeps {
            swept.await.unwrap().unwrap();
        }
        assert_eq!(minutes(&hub).await, 0);
        assert!(!is_known(&hub, START - 10 * DAY, OLD - 1).await);
    }
}

#[tokio::test]
async fn a_standing_that_is_refreshed_during_a_sweep_stays_and_is_not_waited_for() {
    let hub = TestKeys::open(true).await;
    let db = &hub.core.db;
    let put = async |was_there, now| {
        let mut tx = db.begin().await.unwrap();
        let mut changed = [("tenant 1".to_owned(), was_there, "{}".to_owned())];
        assert!(standings::put(&mut tx, &mut changed, now).await.unwrap());
        tx
    };
    put(false, 1).await.commit().await.unwrap();
    let refreshing = put(true, 100).await;
    standings::sweep(db, 50).await.unwrap();
    refreshing.commit().await.unwrap();
    standings::sweep(db, 50).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    let names = ["tenant 1".to_owned()];
    let kept = standings::lock(&mut tx, &names).await.unwrap();
    assert_eq!(kept.len(), 1);
}
