//! The deferred index survives a stop at each of its steps, and the loss of its file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::index::{Step, Steps};
use super::{Append, Journal, Log, NewEvent, Outcome, TenantRef};
use crate::clock::Clock;
use crate::limits::Limits;
use crate::processes::Processes;
use crate::storage::{Db, Options};

const FLUSH_AT: usize = 40;

struct Place {
    folder: std::path::PathBuf,
}

impl Place {
    fn new() -> Place {
        let folder = std::env::temp_dir().join(crate::id::new("hubtest"));
        std::fs::create_dir_all(&folder).unwrap();
        Place { folder }
    }

    async fn open(&self, steps: Option<Steps>) -> (Db, Arc<Journal>) {
        let url = format!("sqlite:{}", self.folder.join("hub.db").display());
        let options = Options {
            url,
            connections_max: 2,
            size_bytes_max: 0,
        };
        let db = Db::open(&options).await.unwrap();
        db.migrate(&super::migrations()).await.unwrap();
        let limits = Arc::new(Limits {
            identities_recent_max: FLUSH_AT,
            ..Limits::default()
        });
        let clock = Clock::manual(1_000_000);
        let processes = Processes::aside(&db, clock.clone());
        let journal = Journal::open_with(&db, clock, limits, processes, steps);
        let journal = journal.await.unwrap();
        (db, journal)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn event(n: u64) -> NewEvent {
    // Spread as hashes are.
    let spread = |n: u64| u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | u128::from(n);
    NewEvent {
        product: "psa".into(),
        kind: Bytes::from_static(b"ticket.created"),
        event: Bytes::from(n.to_string()),
        identity: spread(n),
        content: spread(n + 1),
    }
}

async fn append(journal: &Journal, log: &Arc<Log>, n: u64) -> Outcome {
    let append = Append {
        log: log.clone(),
        events: vec![event(n)],
        independent: false,
        row: None,
    };
    journal.append(append).await.unwrap().outcomes[0]
}

/// Publishes 0..count, then everything again: each must be told as a duplicate of its first.
async fn publish_all(journal: &Journal, log: &Arc<Log>, from: u64, count: u64) {
    for n in from..count {
        assert_eq!(
            append(journal, log, n).await,
            Outcome::Stored { seq: n + 1 },
            "event {n}"
        );
    }
}

async fn expect_duplicates(journal: &Journal, log: &Arc<Log>, count: u64) {
    for n in 0..count {
        match append(journal, log, n).await {
            Outcome::Duplicate(position) => assert_eq!(position.seq, n + 1),
            other => panic!("event {n} was published before, but {other:?}"),
        }
    }
}

async fn stop_at(step: Step) {
    let place = Place::new();
    let reached = Arc::new(AtomicBool::new(false));
    let steps: Steps = {
        let reached = reached.clone();
        Arc::new(move |at| {
            if at == step {
                reached.store(true, Ordering::SeqCst);
            }
            at != step && !reached.load(Ordering::SeqCst)
        })
    };
    // Enough runs for a merge.
    let published = 12 * FLUSH_AT as u64;
    {
        let (db, journal) = place.open(Some(steps)).await;
        let log = journal.log(&TenantRef::system()).await.unwrap();
        publish_all(&journal, &log, 0, published).await;
        expect_duplicates(&journal, &log, published).await;
        // Let a flush under way come to its step.
        for _ in 0..200 {
            if reached.load(Ordering::SeqCst) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            append(&journal, &log, 0).await;
        }
        assert!(reached.load(Ordering::SeqCst), "{step:?} was never reached");
        journal.close().await;
        db.close().await;
    }
    let (_db, journal) = place.open(None).await;
    let log = journal.log(&TenantRef::system()).await.unwrap();
    assert_eq!(log.head().seq, published);
    expect_duplicates(&journal, &log, published).await;
    publish_all(&journal, &log, published, published + 2 * FLUSH_AT as u64).await;
    expect_duplicates(&journal, &log, published + 2 * FLUSH_AT as u64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_before_a_run_is_written_loses_no_identity() {
    stop_at(Step::Begin).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_within_the_pages_of_a_run_loses_no_identity() {
    stop_at(Step::PagesWritten).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_before_the_commit_of_a_run_loses_no_identity() {
    stop_at(Step::CoveredWritten).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_after_the_commit_of_a_run_loses_no_identity() {
    stop_at(Step::Committed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_within_a_merge_loses_no_identity() {
    stop_at(Step::MergeWritten).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_after_a_merge_loses_no_identity() {
    stop_at(Step::MergeCommitted).await;
}

async fn spoil_the_file(spoil: impl Fn(&std::path::Path)) {
    let place = Place::new();
    let published = 3 * FLUSH_AT as u64 + 7;
    {
        let (db, journal) = place.open(None).await;
        let log = journal.log(&TenantRef::system()).await.unwrap();
        publish_all(&journal, &log, 0, published).await;
        journal.close().await;
        db.close().await;
    }
    spoil(&place.folder);
    let (_db, journal) = place.open(None).await;
    let log = journal.log(&TenantRef::system()).await.unwrap();
    expect_duplicates(&journal, &log, published).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_index_is_made_anew_from_the_segments() {
    spoil_the_file(|folder| {
        for ending in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(folder.join(format!("hub-index.db{ending}")));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_index_is_made_anew_from_the_segments() {
    spoil_the_file(|folder| {
        for ending in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(folder.join(format!("hub-index.db{ending}")));
        }
        std::fs::write(folder.join("hub-index.db"), vec![0x5a; 65536]).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_ahead_of_a_restored_journal_is_made_anew() {
    let place = Place::new();
    let copy = |from: &str, to: &str| {
        for ending in ["", "-wal", "-shm"] {
            let (from, to) = (format!("{from}{ending}"), format!("{to}{ending}"));
            let _ = std::fs::remove_file(place.folder.join(&to));
            if place.folder.join(&from).exists() {
                std::fs::copy(place.folder.join(&from), place.folder.join(&to)).unwrap();
            }
        }
    };
    let first = FLUSH_AT as u64;
    for (from, to) in [(0, first), (first, 4 * first)] {
        let (db, journal) = place.open(None).await;
        let log = journal.log(&TenantRef::system()).await.unwrap();
        publish_all(&journal, &log, from, to).await;
        journal.close().await;
        db.close().await;
        drop(journal);
        if from == 0 {
            copy("hub.db", "backup.db");
        }
    }
    copy("backup.db", "hub.db");
    let (_db, journal) = place.open(None).await;
    let log = journal.log(&TenantRef::system()).await.unwrap();
    assert_eq!(log.head().seq, first);
    expect_duplicates(&journal, &log, first).await;
    publish_all(&journal, &log, first, 2 * first).await;
}
