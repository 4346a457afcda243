//! How a subscription is doing, asked at a process that does not have it at work.

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use hub_client::Hub;
use hub_proto::hub::event_bus::v1::{
    AckBatch, ListSubscriptionsRequest, NackAction, SubscriptionState,
};
use serde_json::json;

use super::consume_processes::{another, at, subscription_of};
use super::consume_shared::pull_of;
use super::consumer::{nack, of_key, open};
use super::explain::{CHECKS, Explained};
use super::owner::{Owner, named, state, status};
use super::{Product, numbered, of_types, ticket};
use crate::support::{Backend, Command, Database, TestHub, TestProcess, post_json};

const EXPLAIN: &str = "hub.event_bus.v1.EventBus/ExplainEvent";

/// More than one question to an owner has.
const MANY: usize = 120;

/// What takes longer hangs: an owner that does not answer is waited for a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// The administrator of the first tenant, at one process.
fn admin_at(hub: &TestHub, address: SocketAddr) -> Owner {
    let client = Hub::builder(format!("http://{address}")).api_key(&hub.first_tenant().admin_key);
    Owner {
        hub: client.connect_lazy().unwrap(),
    }
}

/// How many of Portal's subscriptions are in a state.
async fn count_of(owner: &Owner, state: SubscriptionState) -> usize {
    let request = ListSubscriptionsRequest {
        product: "portal".to_owned(),
        states: vec![state.into()],
        ..ListSubscriptionsRequest::default()
    };
    owner.list(request).await.unwrap().0.len()
}

async fn explained_at(hub: &TestHub, address: SocketAddr, event_id: &str) -> Explained {
    let asked = json!({"eventId": event_id, "destination": "portal"}).to_string();
    let answer = post_json(address, EXPLAIN, &hub.first_tenant().admin_key, &asked).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    Explained(answer.json()["explanation"].clone())
}

/// What both processes say of an event.
async fn explained_alike(hub: &TestHub, other: SocketAddr, event_id: &str) -> Explained {
    let here = explained_at(hub, hub.addr, event_id).await;
    let there = explained_at(hub, other, event_id).await;
    for code in CHECKS {
        assert_eq!(there.results(code), here.results(code), "{code}");
    }
    assert_eq!(there.verdict(), here.verdict());
    assert_eq!(there.summary(), here.summary());
    there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_and_what_it_does_is_seen_at_every_process() {
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let psa = Product::new(&hub, "psa").await;
    let here = Product::new(&hub, "portal").await;
    let mut consumer = here.consume(open("portal", 100)).await;
    psa.publish_each(numbered("t", 3)).await;
    let events = consumer.events(3).await;
    let there = admin_at(&hub, second.addr);
    let id = subscription_of(&hub).await;
    let found = there.get(&id).await.unwrap();
    let told = status(&found);
    assert_eq!(state(&found), SubscriptionState::Live, "{told:?}");
    assert_eq!(told.members, ["test"]);
    assert_eq!((told.backlog, told.in_flight), (3, 3));
    assert_eq!(count_of(&there, SubscriptionState::Live).await, 1);
    assert_eq!(count_of(&there, SubscriptionState::NoConsumer).await, 0);
    let event_id = events[0].record.as_ref().unwrap().event_id.clone();
    let explained = explained_alike(&hub, second.addr, &event_id).await;
    assert_eq!(
        explained.evidence("EVT_SUBSCRIBER_CONNECTED", "member"),
        "test"
    );
    assert_eq!(explained.results("EVT_DELIVERED"), ("PASS", "PASS"));
    // Told to the owner through the other process, which is answered when it is done.
    let acks = AckBatch {
        nack: vec![nack(&events[0], NackAction::Retry, "refused")],
        ..AckBatch::default()
    };
    at(second.addr, &here).acknowledge("portal", acks).await;
    let found = there.get(&id).await.unwrap();
    assert_eq!(state(&found), SubscriptionState::Failing);
    assert!(status(&found).reason.ends_with("the last one by: refused"));
    assert_eq!(count_of(&there, SubscriptionState::Failing).await, 1);
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_window_is_seen_at_every_process() {
    let options = TestHub::options(Backend::Postgres);
    let options = options.limits(|limits| limits.subscription_window_max = 2);
    let hub = options.start().await;
    let second = another(&hub).await;
    let psa = Product::new(&hub, "psa").await;
    let here = Product::new(&hub, "portal").await;
    psa.publish(vec![of_key("a", "ticket/1")]).await;
    psa.publish(vec![of_key("b", "ticket/1")]).await;
    let third = psa.publish(vec![of_key("c", "ticket/2")]).await;
    let leases = here.pull(pull_of(5, 10)).await.events;
    let acks = AckBatch {
        nack: vec![nack(&leases[0], NackAction::Retry, "busy")],
        ..AckBatch::default()
    };
    here.acknowledge("portal", acks).await;
    let there = admin_at(&hub, second.addr);
    let found = there.get(&subscription_of(&hub).await).await.unwrap();
    assert_eq!(state(&found), SubscriptionState::WindowFull);
    assert_eq!(status(&found).members, ["puller"]);
    let explained = explained_alike(&hub, second.addr, &third.results[0].event_id).await;
    assert_eq!(explained.results("EVT_CURSOR_PASSED").1, "FAIL");
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_subscriptions_than_one_question_has_are_asked_for_at_once() {
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let crm = Owner::new(&hub, "crm").await;
    let here = Product::new(&hub, "crm").await;
    let names = numbered("many", MANY);
    for name in &names {
        crm.create(named(name, of_types(&["deal.*"]))).await;
    }
    let there = at(second.addr, &here);
    let mut consumers = Vec::new();
    for name in &names {
        consumers.push(there.consume(open(name, 0)).await);
    }
    let request = ListSubscriptionsRequest {
        product: "crm".to_owned(),
        page_size: 1000,
        ..ListSubscriptionsRequest::default()
    };
    let (listed, pages) = crm.list(request).await.unwrap();
    let own = listed.iter().filter(|one| one.name.starts_with("many-"));
    let members: Vec<Vec<String>> = own.map(|one| status(one).members).collect();
    assert_eq!((members.len(), pages), (MANY, 1));
    assert!(
        members.iter().all(|members| members == &["test"]),
        "{members:?}"
    );
    drop(consumers);
    second.drain().await;
}

/// From when its owner is gone until that is noticed, it is not said that a subscription has no
/// consumer.
async fn asked_until_noticed(gone: impl AsyncFnOnce(&mut TestProcess)) {
    let hub = TestHub::start(Backend::Postgres).await;
    let same = Database::at(hub.database_url().to_owned());
    let mut other = TestProcess::start_on(Command::Serve, same, &[]).await;
    let psa = Product::new(&hub, "psa").await;
    let here = Product::new(&hub, "portal").await;
    let mut consumer = at(other.addr(), &here).consume(open("portal", 100)).await;
    psa.publish(vec![ticket("t")]).await;
    consumer.events(1).await;
    let admin = Owner::admin(&hub);
    let id = subscription_of(&hub).await;
    assert_eq!(status(&admin.get(&id).await.unwrap()).members, ["test"]);
    gone(&mut other).await;
    loop {
        let asked = tokio::time::timeout(PATIENCE, admin.get(&id)).await;
        let found = asked.expect("it does not hang").unwrap();
        if state(&found) == SubscriptionState::NoConsumer {
            return;
        }
        let told = status(&found);
        // It had said so before it was gone.
        if told.members == ["test"] {
            continue;
        }
        assert_eq!(state(&found), SubscriptionState::CatchingUp, "{told:?}");
        let reason = &told.reason;
        assert!(reason.ends_with("consumers are not known now."), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_owner_that_died_it_is_not_said_that_nobody_consumes_until_that_is_noticed() {
    asked_until_noticed(TestProcess::kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_hangs_holds_up_nobody_for_long() {
    asked_until_noticed(async |other: &mut TestProcess| other.signal("STOP")).await;
}
