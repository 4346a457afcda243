//! ExplainEvent at a process that knows nothing of it: what others refused, and what an owner that
//! hangs would know.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::StatusCode;
use hub_core::storage::Sql;
use serde_json::{Value, json};

use super::consume_processes::{another, at};
use super::consumer::open;
use super::explain::{CHECKS, Explained};
use super::{Product, batch, event, ticket};
use crate::support::{Backend, Command, Database, TestHub, TestProcess, post_json};

const EXPLAIN: &str = "hub.event_bus.v1.EventBus/ExplainEvent";

/// Before that, a process that stops does not count as dead. On a slow machine that may be noticed
/// before the question comes.
const LIVES_FOR: Duration = Duration::from_millis(900);
/// What takes longer hangs: another process is waited for a second.
const PATIENCE: Duration = Duration::from_secs(5);

const EARLIER: Sql = Sql::same("update journal_segments set record_time = record_time - $1");

async fn explained_at(hub: &TestHub, key: &str, address: SocketAddr, asked: &Value) -> Explained {
    let asked = asked.to_string();
    let answer = post_json(address, EXPLAIN, key, &asked);
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    let answer = answer.expect("it does not hang");
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert!(hub.core.processes.is_live());
    Explained(answer.json()["explanation"].clone())
}

fn searched(kind: &str) -> Value {
    json!({"search": {"type": kind}, "destination": "oncall"})
}

/// Another process of the program on the same database, which the first one has seen.
pub(super) async fn other_of(hub: &TestHub) -> TestProcess {
    let same = Database::at(hub.database_url().to_owned());
    let other = TestProcess::start_on(Command::Serve, same, &[]).await;
    let mut peers = hub.core.processes.watch();
    let seen = peers.wait_for(|peers| !peers.is_empty());
    let seen = tokio::time::timeout(PATIENCE, seen).await;
    drop(seen.expect("seen").unwrap());
    other
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_refused_is_explained_at_every_process() {
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let key = hub.first_tenant().admin_key.clone();
    let here = Product::new(&hub, "psa").await;
    let there = at(second.addr, &here);
    let alert = || batch(vec![event("alert.triggered", "1")]);
    here.send(alert()).await.unwrap_err();
    there
        .send(batch(vec![event("alert.raised", "")]))
        .await
        .unwrap_err();
    for (kind, address) in [("alert.triggered", second.addr), ("alert.raised", hub.addr)] {
        let refused = explained_at(&hub, &key, address, &searched(kind)).await;
        assert_eq!(
            (refused.verdict(), refused.cause()),
            ("BLOCKED", "EVT_VALID"),
            "{refused:?}"
        );
        assert_eq!(refused.codes(), CHECKS);
    }
    let refused = explained_at(&hub, &key, second.addr, &searched("alert.triggered")).await;
    let reason = refused.evidence("EVT_VALID", "reason");
    assert_eq!(reason, "EVENT_SOURCE_NOT_ALLOWED");
    // Told by the process that was asked, of its own tenant only.
    let stranger = hub.tenant().await.admin_key;
    let theirs = explained_at(&hub, &stranger, second.addr, &searched("alert.triggered")).await;
    assert_eq!(theirs.cause(), "EVT_RECEIVED");
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_had_before_is_explained_at_every_process() {
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let key = hub.first_tenant().admin_key.clone();
    let psa = Product::new(&hub, "psa").await;
    let first = psa.publish(vec![ticket("42")]).await;
    // As if it had come so long ago that another one is meant.
    let query = hub.core.db.query(EARLIER).bind(6 * 3600 * 1_000_000_i64);
    query.execute().await.unwrap();
    psa.publish(vec![ticket("42")]).await;
    let asked = json!({"search": {
        "type": "ticket.created",
        "around": hub_core::clock::timestamp(hub.clock.now()).to_string(),
    }});
    let repeated = explained_at(&hub, &key, second.addr, &asked).await;
    assert_eq!(repeated.cause(), "EVT_NOT_DEDUPED", "{repeated:?}");
    let before = repeated.evidence("EVT_NOT_DEDUPED", "first");
    assert_eq!(before, &json!(first.results[0].event_id));
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_does_not_say_what_it_refused_is_told_of() {
    let hub = TestHub::start(Backend::Postgres).await;
    let other = other_of(&hub).await;
    let key = hub.first_tenant().admin_key.clone();
    let psa = Product::new(&hub, "psa").await;
    let alert = batch(vec![event("alert.triggered", "1")]);
    at(other.addr(), &psa).send(alert).await.unwrap_err();
    let asked = searched("alert.triggered");
    let told = explained_at(&hub, &key, hub.addr, &asked).await;
    assert_eq!(told.cause(), "EVT_VALID", "{told:?}");
    other.signal("STOP");
    let started = Instant::now();
    let untold = explained_at(&hub, &key, hub.addr, &asked).await;
    assert!(started.elapsed() < PATIENCE);
    assert_eq!(untold.cause(), "EVT_RECEIVED", "{untold:?}");
    if !format!("{untold:?}").contains("silent_servers") {
        assert!(started.elapsed() > LIVES_FOR, "{untold:?}");
        return;
    }
    assert_eq!(untold.evidence("EVT_RECEIVED", "silent_servers"), "1");
    let detail = untold.check("EVT_RECEIVED")["detail"].as_str().unwrap();
    assert!(
        detail.ends_with("1 server of the hub did not say what it refused."),
        "{detail}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_hangs_holds_up_no_explanation_for_long_and_is_told_of() {
    let hub = TestHub::start(Backend::Postgres).await;
    let other = other_of(&hub).await;
    let key = hub.first_tenant().admin_key.clone();
    let psa = Product::new(&hub, "psa").await;
    let here = Product::new(&hub, "portal").await;
    let mut consumer = at(other.addr(), &here).consume(open("portal", 100)).await;
    let published = psa.publish(vec![ticket("t")]).await;
    consumer.events(1).await;
    let event_id = &published.results[0].event_id;
    let asked = json!({"eventId": event_id, "destination": "portal"});
    let told = explained_at(&hub, &key, hub.addr, &asked).await;
    assert_eq!(
        told.results("EVT_SUBSCRIBER_CONNECTED").0,
        "PASS",
        "{told:?}"
    );
    other.signal("STOP");
    let started = Instant::now();
    let untold = explained_at(&hub, &key, hub.addr, &asked).await;
    assert!(started.elapsed() < PATIENCE);
    let check = untold.check("EVT_SUBSCRIBER_CONNECTED");
    let now = untold.results("EVT_SUBSCRIBER_CONNECTED").1;
    if now == "FAIL" {
        assert!(started.elapsed() > LIVES_FOR, "{untold:?}");
        return;
    }
    let detail = check["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("which did not answer"), "{untold:?}");
    assert_eq!(now, "UNKNOWN");
}
