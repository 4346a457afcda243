//! What other processes do meanwhile, or did not do yet.

use hub_core::hub_event::HubEvent;
use hub_core::journal::Append;
use hub_core::storage::Sql;
use hub_core::tenancy::{Subscription, bump, put_subscription};

use super::verify::tickets;
use super::*;
use crate::follow;
use crate::store::followers;

const CUT_OFF: &str = "prc_cut_off";
/// Of the database's clock, so many microseconds ago.
const BEAT_AGO: Sql = Sql::same(
    "insert into processes (process_id, address, beat_time)
     values ($1, 'http://127.0.0.1:1',
        cast(extract(epoch from clock_timestamp()) * 1000000 as bigint) - $2)",
);

/// It may have keys in memory for five seconds more.
#[tokio::test]
async fn a_process_that_is_cut_off_has_not_confirmed_a_revocation() {
    let hub = TestKeys::open(true).await;
    let db = &hub.core.db;
    let beat = async |process_id: &str, ago: i64| {
        let mut tx = db.begin().await.unwrap();
        let query = tx.query(BEAT_AGO).bind(process_id.to_owned()).bind(ago);
        query.execute().await.unwrap();
        tx.commit().await.unwrap();
        followers::put(db, process_id, 7).await.unwrap();
    };
    beat(CUT_OFF, 3_000_000).await;
    beat("prc_dead", 20_000_000).await;
    // Another one starts meanwhile.
    followers::forget(db).await.unwrap();
    let behind = async |epoch| followers::behind(db, "prc_me", epoch, 6_500_000).await;
    assert_eq!(behind(7).await.unwrap(), 0);
    assert_eq!(behind(8).await.unwrap(), 1);
}

/// What only the database can know, it is asked for before.
#[tokio::test]
async fn a_decision_that_has_an_epoch_has_what_changed_up_to_it() {
    let hub = TestKeys::open(true).await;
    let (key, all) = (hub.create(&["psa:*"]).await, caller(None, &["hub:*"]));
    // With a journal of its own, and nothing that listens for it.
    let other = core(&hub.url, hub.core.clock.clone()).await;
    let there = keys(&other);
    let system = other.journal.log(&TenantRef::system()).await.unwrap();
    let at = follow::catch_up(&there, &system, 0).await.unwrap();
    let verify = async || there.verify(&all, &tickets(&key)).await.unwrap();
    assert!(verify().await.refusal.is_none());

    let changed = end_psa(&hub).await;
    other.journal.refresh(&system).await.unwrap();
    let at_end = follow::catch_up(&there, &system, at).await.unwrap();
    assert_eq!(at_end, changed);
    let verdict = verify().await;
    assert_eq!(verdict.epoch, changed);
    assert_eq!(verdict.refusal.unwrap().reason(), "SUBSCRIPTION_INACTIVE");
}

/// Ends the subscription of the tenant to PSA, and returns where the hub's log tells it.
async fn end_psa(hub: &TestKeys) -> u64 {
    let (core, now) = (&hub.core, hub.core.clock.now());
    let products = core.tenancy.products().await.unwrap();
    let system = core.journal.log(&TenantRef::system()).await.unwrap();
    let mut tx = core.db.begin().await.unwrap();
    let bumped = bump(&mut tx, &hub.tenant).await.unwrap();
    let ended = Subscription {
        product: products.require("psa").unwrap().number,
        active: false,
        update_time: now,
        updated_by: "key_caller".to_owned(),
    };
    put_subscription(&mut tx, &hub.tenant, bumped.epoch, &ended)
        .await
        .unwrap();
    let event = HubEvent {
        log: system.tenant(),
        source: "/hub/tenants",
        kind: "product_subscription.updated",
        id: "product_subscription.1".to_owned(),
        subject: "psa",
        tenant_id: hub.tenant.id(),
        actor: "key_caller",
        time: now,
        json: serde_json::json!({ "routingEpoch": bumped.epoch }).to_string(),
    };
    let append = Append {
        log: system.clone(),
        events: vec![event.encode()],
        independent: false,
        row: None,
    };
    core.journal.commit(tx, vec![append]).await.unwrap();
    system.head().seq
}

both_databases! {
    async fn a_denial_is_found_while_it_is_written(hub: TestKeys) {
        let key = hub.create(&["crm:*"]).await;
        let verdict = hub.keys.verify(&hub.administrator(), &tickets(&key)).await.unwrap();
        // Whoever writes waits for it.
        let mut blocking = hub.core.db.begin().await.unwrap();
        let table = Sql::each(
            "update key_denials set time = time",
            "lock table key_denials in share mode",
        );
        blocking.query(table).execute().await.unwrap();
        let (keys, db) = (hub.keys.clone(), hub.core.db.clone());
        let writing = tokio::spawn(async move { keys.denials.write(&db).await });
        for _ in 0..50 {
            // Meanwhile it comes to where it waits.
            hub.keys.get(&hub.administrator(), &key.key.key_id).await.unwrap();
            let found = hub.keys.denials.find(&hub.core.db, &verdict.call_id).await;
            assert!(found.unwrap().is_some());
        }
        drop(blocking);
        writing.await.unwrap().unwrap();
        let found = hub.keys.denials.find(&hub.core.db, &verdict.call_id).await;
        assert!(found.unwrap().is_some());
    }
}
