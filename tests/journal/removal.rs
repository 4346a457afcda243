//! Retention: what a log does not keep is gone for every reader, and its identities are not.

use std::sync::Arc;
use std::time::Duration;

use hub_core::clock::Clock;
use hub_core::journal::{Log, Outcome, Page, Removed, TenantRef};
use hub_core::limits::Limits;
use hub_core::storage::Sql;

use super::store::{Store, event, event_with};
use crate::support::{Backend, Database};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const START: i64 = 1_767_225_600_000_000;

const KEEP: Sql =
    Sql::same("update tenants set retention = $2, retention_bytes = $3 where tenant_no = $1");
const ROWS: Sql = Sql::same("select count(*) from journal_segments where tenant_no = $1");
const BYTES: Sql = Sql::same(
    "select cast(coalesce(sum(length(data)), 0) as bigint) from journal_segments
     where tenant_no = $1",
);

async fn keep(store: &Store, tenant: &TenantRef, age: Duration, bytes: i64) {
    let mut tx = store.db.begin().await.unwrap();
    let query = tx.query(KEEP).bind(tenant.number());
    let age = i64::try_from(age.as_micros()).unwrap();
    query.bind(age).bind(bytes).execute().await.unwrap();
    tx.commit().await.unwrap();
}

async fn number(store: &Store, tenant: &TenantRef, sql: Sql) -> i64 {
    let row: (i64,) = store
        .db
        .query(sql)
        .bind(tenant.number())
        .one()
        .await
        .unwrap();
    row.0
}

/// Removes all that is to be removed; returns how many events, and in how many chunks.
async fn remove(store: &Store, tenant: &TenantRef, clock: &Clock) -> (u64, u32) {
    let kept = store.journal.kept(tenant.number() - 1).await.unwrap();
    let kept = &kept[0];
    assert_eq!(kept.tenant, *tenant);
    let (mut events, mut chunks) = (0, 0);
    loop {
        let removed = store.journal.remove_old(kept, clock.now()).await.unwrap();
        events += removed.events;
        chunks += u32::from(removed.events > 0);
        if !removed.more {
            return (events, chunks);
        }
    }
}

async fn publish(store: &Store, log: &Arc<Log>, names: impl IntoIterator<Item = u32>) {
    for name in names {
        let appended = store.append(log, vec![event(&name.to_string())]).await;
        assert!(matches!(appended.outcomes[0], Outcome::Stored { .. }));
    }
}

async fn assert_gone(store: &Store, log: &Arc<Log>, through: u64, head: u64) {
    let journal = &store.journal;
    let earliest = journal.earliest(log).await.unwrap();
    assert_eq!(earliest.map(|(seq, _)| seq), Some(through + 1));
    match journal.read_after(log, 0).await.unwrap() {
        Page::Gap { from, to } => assert_eq!((from, to), (1, through)),
        other => panic!("{other:?}"),
    }
    match journal.read_after(log, through).await.unwrap() {
        Page::Segments(segments) => assert_eq!(segments[0].first(), through + 1),
        other => panic!("{other:?}"),
    }
    let gone = journal.stored_segment(log.tenant(), through).await.unwrap();
    assert!(gone.is_none() && journal.segment_at(log, through).await.unwrap().is_none());
    assert_eq!(journal.first_since(log, 0).await.unwrap(), through + 1);
    let page = journal
        .page_before(log, head + 1, 1, 1 << 20)
        .await
        .unwrap();
    let listed: Vec<u64> = page.iter().map(|segment| segment.first()).collect();
    assert_eq!(listed, (through + 1..=head).rev().collect::<Vec<_>>());
}

both_databases! {
    async fn what_passed_its_age_is_gone_for_every_reader_and_is_still_a_duplicate(
        backend: Backend
    ) {
        let database = Database::new(backend).await;
        let clock = Clock::manual(START);
        let store = Store::open(&database, Limits::default(), clock.clone()).await;
        let tenant = store.tenant("kept").await;
        let log = store.journal.log(&tenant).await.unwrap();
        keep(&store, &tenant, HOUR, 0).await;
        publish(&store, &log, 1..=5).await;
        clock.advance(2 * HOUR);
        publish(&store, &log, 6..=8).await;
        assert_eq!(remove(&store, &tenant, &clock).await, (5, 1));
        assert_gone(&store, &log, 5, 8).await;
        assert_eq!(number(&store, &tenant, ROWS).await, 8, "identities stay");
        assert_eq!(remove(&store, &tenant, &clock).await, (0, 0));
        store.close().await;

        let store = Store::open(&database, Limits::default(), clock.clone()).await;
        let log = store.journal.log(&tenant).await.unwrap();
        assert_gone(&store, &log, 5, 8).await;
        let again = store.append(&log, vec![event("3")]).await;
        assert!(matches!(again.outcomes[0], Outcome::Duplicate(first) if first.seq == 3));
        let other = store.append(&log, vec![event_with("3", 2, "psa")]).await;
        assert_eq!(other.outcomes, [Outcome::Reused { seq: 3 }]);

        clock.advance(9 * DAY);
        assert_eq!(remove(&store, &tenant, &clock).await, (3, 1));
        assert_eq!(number(&store, &tenant, ROWS).await, 0, "the window is over");
        assert_eq!(store.journal.earliest(&log).await.unwrap(), None);
        publish(&store, &log, [100]).await;
        assert_eq!(log.head().seq, 9);
        assert_gone(&store, &log, 8, 9).await;
        store.close().await;
    }

    async fn a_log_of_which_nothing_is_left_goes_on_after_a_restart(backend: Backend) {
        let database = Database::new(backend).await;
        let clock = Clock::manual(START);
        let store = Store::open(&database, Limits::default(), clock.clone()).await;
        let tenant = store.tenant("empty").await;
        let log = store.journal.log(&tenant).await.unwrap();
        keep(&store, &tenant, HOUR, 0).await;
        publish(&store, &log, 1..=3).await;
        let before = log.head();
        clock.advance(2 * HOUR);
        assert_eq!(remove(&store, &tenant, &clock).await, (3, 1));
        assert!(matches!(
            store.journal.read_after(&log, 1).await.unwrap(),
            Page::Gap { from: 2, to: 3 }
        ));
        assert!(matches!(store.journal.read_after(&log, 3).await.unwrap(), Page::AtEnd));
        store.close().await;
        let store = Store::open(&database, Limits::default(), clock).await;
        let log = store.journal.log(&tenant).await.unwrap();
        assert_eq!(log.head(), before, "the fingerprint of the head is still known");
        assert_eq!(store.journal.first_since(&log, 0).await.unwrap(), 4);
        publish(&store, &log, [4]).await;
        assert_gone(&store, &log, 3, 4).await;
        store.close().await;
    }

    async fn the_oldest_go_when_a_log_is_larger_than_it_may_be(backend: Backend) {
        let database = Database::new(backend).await;
        let clock = Clock::manual(START);
        let store = Store::open(&database, Limits::default(), clock.clone()).await;
        let tenant = store.tenant("large").await;
        let log = store.journal.log(&tenant).await.unwrap();
        let text = "x".repeat(1000);
        let large = |name: u32| event_with(&name.to_string(), 1, &text);
        for name in 0..20 {
            store.append(&log, vec![large(name)]).await;
        }
        let each = number(&store, &tenant, BYTES).await / 20;
        keep(&store, &tenant, 30 * DAY, 5 * each).await;
        let (events, _) = remove(&store, &tenant, &clock).await;
        let left = number(&store, &tenant, BYTES).await;
        assert!(left <= 5 * each + each / 2, "{left} of {each} each");
        assert!((15..=16).contains(&events), "{events}");
        for name in 20..24 {
            store.append(&log, vec![large(name)]).await;
        }
        assert_eq!(remove(&store, &tenant, &clock).await.0, 4);
        assert_gone(&store, &log, events + 4, 24).await;
        keep(&store, &tenant, 30 * DAY, 0).await;
        publish(&store, &log, 100..110).await;
        assert_eq!(remove(&store, &tenant, &clock).await.0, 0);
        store.close().await;
    }

    async fn many_segments_go_in_chunks_and_each_by_one_process(backend: Backend) {
        let database = Database::new(backend).await;
        let clock = Clock::manual(START);
        let store = Store::open(&database, Limits::default(), clock.clone()).await;
        let tenant = store.tenant("chunks").await;
        let log = store.journal.log(&tenant).await.unwrap();
        keep(&store, &tenant, HOUR, 0).await;
        publish(&store, &log, 1..=600).await;
        clock.advance(2 * HOUR);
        let kept = &store.journal.kept(tenant.number() - 1).await.unwrap()[0];
        let now = clock.now();
        let both = tokio::join!(
            store.journal.remove_old(kept, now),
            store.journal.remove_old(kept, now)
        );
        let (one, two): (Removed, Removed) = (both.0.unwrap(), both.1.unwrap());
        assert!(one.more && two.more);
        let (rest, chunks) = remove(&store, &tenant, &clock).await;
        assert_eq!(one.events + two.events + rest, 600, "{one:?} {two:?}");
        assert!(chunks >= 1 && one.events <= 256 && two.events <= 256);
        store.close().await;
    }
}
