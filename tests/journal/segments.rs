//! How a commit is stored: in rows of a size, each a segment of whole batches.

use std::sync::Arc;

use hub_core::clock::Clock;
use hub_core::journal::{Append, Log, Outcome, TenantRef};
use hub_core::limits::Limits;
use hub_core::storage::Sql;

use super::checked_log::CheckedLog;
use super::store::{Store, batch, event};
use crate::support::{Backend, Database};

const BYTES_MAX: usize = 2_000;
const EVENTS: u32 = 100;
const MANY: usize = 10_000;
const SEGMENTS: Sql = Sql::same(
    "select n, cast(octet_length(ids) + octet_length(data) as bigint) from journal_segments
     where tenant_no = $1 order by key",
);

async fn open(database: &Database) -> (Store, TenantRef) {
    let limits = Limits {
        segment_bytes_max: BYTES_MAX,
        ..Limits::default()
    };
    let store = Store::open(database, limits, Clock::system()).await;
    let tenant = store.tenant("packed").await;
    (store, tenant)
}

/// Events and bytes of each segment.
async fn segments(store: &Store, tenant: &TenantRef) -> Vec<(i64, i64)> {
    let query = store.db.query(SEGMENTS).bind(tenant.number());
    query.all().await.unwrap()
}

fn events(log: &Arc<Log>) -> Append {
    batch(log, (0..EVENTS).map(|at| event(&at.to_string())).collect())
}

/// Every event is stored at its place, and read from there, before and after a restart.
async fn assert_whole(store: Store, database: &Database, tenant: &TenantRef, log: &Arc<Log>) {
    assert_eq!(log.head().seq, u64::from(EVENTS));
    let read = CheckedLog::read(&store.db, tenant).await;
    let names: Vec<&str> = read.events.iter().map(|event| &*event.name).collect();
    let sent: Vec<String> = (0..EVENTS).map(|at| at.to_string()).collect();
    assert_eq!(names, sent);
    store.close().await;

    let store = Store::open(database, Limits::default(), Clock::system()).await;
    let log = store.journal.log(tenant).await.unwrap();
    let again = store.journal.append(events(&log)).await.unwrap();
    let places = again.outcomes.iter().map(|outcome| match outcome {
        Outcome::Duplicate(position) => position.seq,
        other => panic!("{other:?}"),
    });
    assert!(
        places.eq(1..=u64::from(EVENTS)),
        "each is known at its place"
    );
    let more = store.append(&log, vec![event("more")]).await;
    assert_eq!(
        more.outcomes,
        [Outcome::Stored {
            seq: u64::from(EVENTS) + 1
        }]
    );
    store.close().await;
}

both_databases! {
    async fn a_large_commit_is_stored_in_segments_of_a_size(backend: Backend) {
        let database = Database::new(backend).await;
        let (store, tenant) = open(&database).await;
        let log = store.journal.log(&tenant).await.unwrap();
        let append = Append {
            independent: true,
            ..events(&log)
        };
        store.journal.append(append).await.unwrap();
        let stored = segments(&store, &tenant).await;
        assert!(stored.len() > 3, "{stored:?}");
        assert!(stored.iter().all(|(_, bytes)| *bytes <= BYTES_MAX as i64), "{stored:?}");
        let (_, rest) = stored.split_last().unwrap();
        assert!(rest.iter().all(|(_, bytes)| *bytes > BYTES_MAX as i64 * 9 / 10), "{stored:?}");
        assert_whole(store, &database, &tenant, &log).await;
    }

    async fn a_commit_of_very_many_segments_is_still_one_statement(backend: Backend) {
        let database = Database::new(backend).await;
        let limits = Limits {
            segment_bytes_max: 1,
            ..Limits::default()
        };
        let store = Store::open(&database, limits, Clock::system()).await;
        let tenant = store.tenant("packed").await;
        let log = store.journal.log(&tenant).await.unwrap();
        let append = Append {
            independent: true,
            ..batch(&log, (0..MANY).map(|at| event(&at.to_string())).collect())
        };
        store.journal.append(append).await.unwrap();
        let stored = segments(&store, &tenant).await;
        // More than a thousand, and as few as SQLite takes in a statement of seven values each.
        assert!((1_000..32_766 / 7).contains(&stored.len()), "{}", stored.len());
        assert_eq!(CheckedLog::read(&store.db, &tenant).await.events.len(), MANY);
        store.close().await;
    }

    async fn a_batch_is_in_one_segment_however_large_it_is(backend: Backend) {
        let database = Database::new(backend).await;
        let (store, tenant) = open(&database).await;
        let log = store.journal.log(&tenant).await.unwrap();
        store.journal.append(events(&log)).await.unwrap();
        let stored = segments(&store, &tenant).await;
        assert_eq!(stored.len(), 1);
        assert_eq!(stored[0].0, i64::from(EVENTS));
        assert!(stored[0].1 > BYTES_MAX as i64 * 3);
        assert_whole(store, &database, &tenant, &log).await;
    }
}
