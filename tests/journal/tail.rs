//! What readers see at the end of a log while several processes write to it (PostgreSQL).

use std::sync::Arc;
use std::time::Duration;

use hub_core::clock::Clock;
use hub_core::journal::{Log, Outcome, TenantRef};
use hub_core::limits::Limits;
use tokio_util::sync::CancellationToken;

use super::checked_log::CheckedLog;
use super::random::{Random, Seed};
use super::reader;
use super::store::{Store, event, event_with};
use crate::support::{Backend, Database};

const PATIENCE: Duration = Duration::from_secs(20);

/// Two processes on one database, and a tenant.
async fn two_processes(database: &Database) -> ([Store; 2], TenantRef) {
    let open = || Store::open(database, Limits::default(), Clock::system());
    let stores = [open().await, open().await];
    let tenant = stores[0].tenant("shared").await;
    (stores, tenant)
}

async fn logs(stores: &[Store; 2], tenant: &TenantRef) -> [Arc<Log>; 2] {
    [
        stores[0].journal.log(tenant).await.unwrap(),
        stores[1].journal.log(tenant).await.unwrap(),
    ]
}

async fn wait_for(log: &Arc<Log>, seq: u64) {
    let mut head = log.watch();
    let reached = head.wait_for(|head| head.seq >= seq);
    let reached = tokio::time::timeout(PATIENCE, reached).await;
    drop(reached.expect("readers see it").unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_that_append_at_once_give_their_readers_the_same_log() {
    let seed = Seed::choose();
    let database = Database::new(Backend::Postgres).await;
    let (stores, tenant) = two_processes(&database).await;
    let logs = logs(&stores, &tenant).await;
    let written = CancellationToken::new();
    let mut readers = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (journal, log) = (stores[number % 2].journal.clone(), logs[number % 2].clone());
        let random = Random::new(seed.0, number as u64);
        readers.spawn(reader::read(journal, log, 0, random, written.clone()));
    }
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (journal, log) = (stores[number % 2].journal.clone(), logs[number % 2].clone());
        writers.spawn(async move {
            for step in 0..50 {
                // Half of the events are published by both processes.
                let name = match step % 2 {
                    0 => format!("shared {step}"),
                    _ => format!("{number} {step}"),
                };
                let append = super::store::batch(&log, vec![event(&name)]);
                journal.append(append).await.unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    let expected = 25 + 4 * 25;
    for log in &logs {
        wait_for(log, expected).await;
    }
    written.cancel();
    let readings = tokio::time::timeout(PATIENCE, readers.join_all())
        .await
        .unwrap();
    let checked = [CheckedLog::read(&stores[0].db, &tenant).await];
    assert_eq!(checked[0].events.len() as u64, expected);
    for reading in readings {
        reading.check(&checked);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hole_in_the_tail_is_filled_from_the_database() {
    let database = Database::new(Backend::Postgres).await;
    let (stores, tenant) = two_processes(&database).await;
    let [one, two] = logs(&stores, &tenant).await;
    stores[0].append(&one, vec![event("a")]).await;
    stores[0].append(&one, vec![event("b")]).await;
    let third = stores[1].append(&two, vec![event("c")]).await;
    assert_eq!(third.outcomes, [Outcome::Stored { seq: 3 }]);
    assert_eq!(
        two.head().seq,
        3,
        "what the other process wrote is there too"
    );
    let names = reader::names(&stores[1].journal, &two, 0).await;
    assert_eq!(names, ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_sees_what_another_process_wrote_although_its_own_writes_nothing() {
    let database = Database::new(Backend::Postgres).await;
    let (stores, tenant) = two_processes(&database).await;
    let [one, two] = logs(&stores, &tenant).await;
    stores[0].append(&one, vec![event("a"), event("b")]).await;
    wait_for(&two, 2).await;
    assert_eq!(reader::names(&stores[1].journal, &two, 0).await, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_of_another_process_s_event_is_told_and_readable() {
    let database = Database::new(Backend::Postgres).await;
    let (stores, tenant) = two_processes(&database).await;
    let [one, two] = logs(&stores, &tenant).await;
    let first = stores[0].append(&one, vec![event("a")]).await;
    let again = stores[1].append(&two, vec![event("a")]).await;
    assert_eq!(again.outcomes, [Outcome::Duplicate(first.position)]);
    wait_for(&two, 1).await;
    let other = stores[1]
        .append(&two, vec![event_with("a", 2, "psa")])
        .await;
    assert_eq!(other.outcomes, [Outcome::Reused { seq: 1 }]);
}
