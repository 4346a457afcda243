//! The listing index: events of a kind are found, the newest first, whatever happened to the log.

use std::sync::Arc;

use bytes::Bytes;
use hub_core::clock::Clock;
use hub_core::journal::{Log, NewEvent, TenantRef};
use hub_core::limits::Limits;

use super::store::{self, Store, event};
use crate::support::{Backend, Database};

fn of_kind(kind: &str, product: &str, name: u64) -> NewEvent {
    NewEvent {
        kind: Bytes::from(kind.to_owned()),
        product: product.into(),
        ..event(&format!("{kind} {product} {name}"))
    }
}

/// What the index has of a type and product before a sequence, the newest first.
async fn listed(
    store: &Store,
    tenant: &TenantRef,
    kind: &str,
    product: &str,
    before: u64,
) -> Vec<u64> {
    let mut kinds = store
        .journal
        .listed_kinds(tenant, Some(kind))
        .await
        .unwrap();
    kinds.retain(|listed| listed.kind.product == product);
    let mut listed = store.journal.listed(tenant, &kinds, before);
    let mut found = Vec::new();
    while let Some(seq) = listed.next(&store.journal).await.unwrap() {
        found.push(seq);
    }
    found
}

/// Publishes events of these kinds in turn; returns the sequences of each kind, newest first.
async fn publish(
    store: &Store,
    log: &Arc<Log>,
    kinds: &[(&str, &str)],
    count: u64,
) -> Vec<Vec<u64>> {
    let mut expected = vec![Vec::new(); kinds.len()];
    let first = log.head().seq + 1;
    let events: Vec<NewEvent> = (first..first + count)
        .map(|seq| {
            let at = (seq % kinds.len() as u64) as usize;
            expected[at].insert(0, seq);
            of_kind(kinds[at].0, kinds[at].1, seq)
        })
        .collect();
    for batch in events.chunks(7) {
        store.append(log, batch.to_vec()).await;
    }
    expected
}

both_databases! {
    async fn events_of_a_kind_are_found_across_rows_and_restarts(backend: Backend) {
        let database = Database::new(backend).await;
        let store = Store::open(&database, Limits::default(), Clock::system()).await;
        let tenant = store.tenant("listed").await;
        let log = store.journal.log(&tenant).await.unwrap();
        let kinds = [("a.b", "psa"), ("a.b", "crm"), ("a.c", "psa")];
        let mut expected = publish(&store, &log, &kinds, 1700).await;
        store.journal.write_listing().await.unwrap();
        assert_eq!(store.journal.listing_covered(&tenant).await.unwrap(), 1700);
        // The last row of each kind is filled up first.
        for (all, new) in expected.iter_mut().zip(publish(&store, &log, &kinds, 400).await) {
            all.splice(0..0, new);
        }
        store.journal.write_listing().await.unwrap();
        store.close().await;
        let store = Store::open(&database, Limits::default(), Clock::system()).await;
        for ((kind, product), expected) in kinds.iter().zip(&expected) {
            let found = listed(&store, &tenant, kind, product, u64::MAX >> 1).await;
            assert_eq!(found, *expected, "{kind} {product}");
            let before = expected[100];
            let found = listed(&store, &tenant, kind, product, before).await;
            assert_eq!(found, expected[101..], "{kind} {product} before {before}");
        }
        let kinds = store.journal.listed_kinds(&tenant, None).await.unwrap();
        let mut merged = store.journal.listed(&tenant, &kinds, 2101);
        for seq in (1..=2100).rev() {
            assert_eq!(merged.next(&store.journal).await.unwrap(), Some(seq));
        }
        assert_eq!(merged.next(&store.journal).await.unwrap(), None);
        let numbers = || kinds.iter().map(|listed| listed.number);
        for after in [0, 7, 511, 512, 1700, 2099, 2100, 9000] {
            let mut forward = store.journal.listed_after(&tenant, numbers(), after);
            for seq in after + 1..=2100 {
                assert_eq!(forward.next(&store.journal).await.unwrap(), Some(seq));
            }
            assert_eq!(forward.next(&store.journal).await.unwrap(), None, "after {after}");
        }
        store.close().await;
    }

    async fn more_kinds_than_one_transaction_takes_are_found_all_the_same(backend: Backend) {
        let database = Database::new(backend).await;
        let store = Store::open(&database, Limits::default(), Clock::system()).await;
        let tenant = store.tenant("kinds").await;
        let log = store.journal.log(&tenant).await.unwrap();
        let events = (1..=300).map(|seq| of_kind(&format!("kind.{seq}"), "psa", seq));
        store.append(&log, events.collect()).await;
        store.journal.write_listing().await.unwrap();
        let kinds = store.journal.listed_kinds(&tenant, None).await.unwrap();
        assert!((100..300).contains(&kinds.len()), "{}", kinds.len());
        for seq in [1, 128, 129, 300] {
            let found = listed(&store, &tenant, &format!("kind.{seq}"), "psa", 301).await;
            // Those without a list of their own are looked through.
            assert!(found.contains(&seq), "{seq}: {found:?}");
        }
        store.close().await;
    }

    async fn a_log_restored_from_a_backup_is_indexed_anew(backend: Backend) {
        let database = Database::new(backend).await;
        let store = Store::open(&database, Limits::default(), Clock::system()).await;
        let tenant = store.tenant("restored").await;
        let log = store.journal.log(&tenant).await.unwrap();
        publish(&store, &log, &[("old.a", "psa")], 30).await;
        store.journal.write_listing().await.unwrap();
        store.close().await;
        let number = tenant.number();
        let key = tenant.key(15);
        store::execute(
            &database,
            &format!(
                "delete from journal_segments where tenant_no = {number} and key >= {key};
                 update journal_heads set head = 14 where tenant_no = {number}"
            ),
        )
        .await;
        let store = Store::open(&database, Limits::default(), Clock::system()).await;
        let log = store.journal.log(&tenant).await.unwrap();
        publish(&store, &log, &[("new.b", "crm")], 30).await;
        store.journal.write_listing().await.unwrap();
        let expected: Vec<u64> = (15..=44).rev().collect();
        assert_eq!(listed(&store, &tenant, "new.b", "crm", 100).await, expected);
        let old: Vec<u64> = (1..=14).rev().collect();
        assert_eq!(listed(&store, &tenant, "old.a", "psa", 100).await, old);
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_list_each_event_once() {
    let database = Database::new(Backend::Postgres).await;
    let open = || Store::open(&database, Limits::default(), Clock::system());
    let stores = [open().await, open().await];
    let tenant = stores[0].tenant("two").await;
    let logs = [
        stores[0].journal.log(&tenant).await.unwrap(),
        stores[1].journal.log(&tenant).await.unwrap(),
    ];
    for round in 0..10 {
        for (store, log) in stores.iter().zip(&logs) {
            store.journal.refresh(log).await.unwrap();
            let product = if round % 2 == 0 { "psa" } else { "crm" };
            let events = (0..20).map(|_| {
                let name = uuid::Uuid::new_v4().as_u128() as u64;
                of_kind("a.b", product, name)
            });
            store.append(log, events.collect()).await;
        }
        let both = tokio::join!(
            stores[0].journal.write_listing(),
            stores[1].journal.write_listing()
        );
        both.0.unwrap();
        both.1.unwrap();
    }
    for (store, log) in stores.iter().zip(&logs) {
        store.journal.refresh(log).await.unwrap();
        store.journal.write_listing().await.unwrap();
    }
    let mut all = listed(&stores[0], &tenant, "a.b", "psa", 1000).await;
    all.extend(listed(&stores[0], &tenant, "a.b", "crm", 1000).await);
    all.sort_unstable();
    assert_eq!(all, (1..=400).collect::<Vec<u64>>());
    for store in stores {
        store.close().await;
    }
}
