//! Erasure below the API: what is in memory of a process goes too, also of another one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hub_core::clock::Clock;
use hub_core::journal::{Log, Page, TenantRef};
use hub_core::limits::Limits;

use super::store::{Store, event, event_with};
use crate::support::{Backend, Database};

/// What is promised to be seen everywhere within this time.
const EVERYWHERE: Duration = Duration::from_secs(1);

fn reduce(event: &[u8]) -> Option<Vec<u8>> {
    (event != b"erased").then(|| b"erased".to_vec())
}

/// The event at `seq` as a reader of the log gets it.
async fn read(store: &Store, log: &Arc<Log>, seq: u64) -> Vec<u8> {
    match store.journal.read_after(log, seq - 1).await.unwrap() {
        Page::Segments(segments) => {
            let found = segments[0].event_at(seq).unwrap().unwrap();
            found.event().to_vec()
        }
        other => panic!("{other:?}"),
    }
}

async fn erase(store: &Store, tenant: &TenantRef, mut seqs: Vec<u64>) -> Vec<u64> {
    let mut tx = store.db.begin().await.unwrap();
    let mut erased = Vec::new();
    while !seqs.is_empty() {
        let of_segment = store.journal.erase(&mut tx, tenant, &mut seqs, &reduce);
        erased.extend(of_segment.await.unwrap());
    }
    tx.commit().await.unwrap();
    erased
}

both_databases! {
    async fn single_events_change_and_their_neighbours_and_fingerprints_stay(backend: Backend) {
        let database = Database::new(backend).await;
        let store = Store::open(&database, Limits::default(), Clock::system()).await;
        let tenant = store.tenant("erased").await;
        let log = store.journal.log(&tenant).await.unwrap();
        store.append(&log, vec![event("1"), event("2"), event("3")]).await;
        store.append(&log, vec![event("4")]).await;
        let mut before = Vec::new();
        for seq in 1..=4 {
            before.push(store.journal.position_at(&log, seq).await.unwrap());
        }
        let first = read(&store, &log, 1).await;
        assert_eq!(erase(&store, &tenant, vec![4, 2, 3, 2, 9]).await, [2, 3, 4]);
        store.journal.forget(&log);
        assert_eq!(erase(&store, &tenant, vec![2, 3, 4]).await, [0; 0]);
        assert_eq!(read(&store, &log, 1).await, first);
        for seq in 2..=4 {
            assert_eq!(read(&store, &log, seq).await, b"erased");
        }
        for (seq, before) in (1..=4).zip(before) {
            assert_eq!(store.journal.position_at(&log, seq).await.unwrap(), before);
        }
        store.append(&log, vec![event("5")]).await;
        assert_eq!(log.head().seq, 5);
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_forgets_within_a_second() {
    let database = Database::new(Backend::Postgres).await;
    let open = || Store::open(&database, Limits::default(), Clock::system());
    let (here, there) = (open().await, open().await);
    let tenant = here.tenant("shared").await;
    let log = here.journal.log(&tenant).await.unwrap();
    let seen = there.journal.log(&tenant).await.unwrap();
    for round in 0..3u64 {
        let secret = event_with(&format!("secret {round}"), 1, "psa");
        here.append(&log, vec![secret]).await;
        let seq = round + 1;
        // It is in the tail of the other process, which reads it from there.
        there.journal.refresh(&seen).await.unwrap();
        assert_ne!(read(&there, &seen, seq).await, b"erased");
        assert_eq!(erase(&here, &tenant, vec![seq]).await, [seq]);
        let erased_at = Instant::now();
        while read(&there, &seen, seq).await != b"erased" {
            assert!(erased_at.elapsed() < EVERYWHERE, "it is still shown");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    here.close().await;
    there.close().await;
}
