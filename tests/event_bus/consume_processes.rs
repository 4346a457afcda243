//! Durable subscriptions on several processes: each is at work in one of them, and is reached
//! through all.

use std::collections::BTreeSet;
use std::time::Duration;

use hub_client::Hub;
use hub_core::clock::Clock;
use hub_proto::hub::event_bus::v1::consume_response::Frame;
use hub_proto::hub::event_bus::v1::{
    AckOutcome, AckResult, EventDeliveryState, EventLogFilter, LeasedEvent, RedeliverRequest,
};
use hub_server::Running;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::consume_shared::{acks_of, backend_of_all, psa_of, pull_of};
use super::consumer::{Consumer, ids_of, open};
use super::{Product, numbered, ticket};
use crate::support::{Backend, Command, Database, Tenant, TestHub, TestProcess, config};

/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Another server on the database of the first; both have seen each other.
pub(super) async fn another(first: &TestHub) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(first.database_url());
    let shutdown = CancellationToken::new();
    let running = hub_server::start(config, listener, Clock::system(), shutdown).await;
    let second = running.unwrap();
    let ids = [first.core.processes.id(), second.core.processes.id()];
    for (core, other) in [(&first.core, ids[1]), (&second.core, ids[0])] {
        let mut peers = core.processes.watch();
        let seen = peers.wait_for(|peers| peers.contains_key(other));
        tokio::time::timeout(PATIENCE, seen)
            .await
            .expect("seen")
            .unwrap();
    }
    second
}

/// The same product at another address.
pub(super) fn at(address: std::net::SocketAddr, product: &Product) -> Product {
    let hub = Hub::builder(format!("http://{address}")).api_key(&product.key);
    Product {
        bus: hub.connect_lazy().unwrap().event_bus(),
        key: product.key.clone(),
    }
}

async fn pair(hub: &TestHub) -> (Product, Product) {
    (
        Product::new(hub, "psa").await,
        Product::new(hub, "portal").await,
    )
}

pub(super) fn outcomes(results: &[AckResult]) -> Vec<AckOutcome> {
    results.iter().map(AckResult::outcome).collect()
}

/// So many events of a stream that may end and begin again meanwhile; they are leased to the last.
async fn events_of(
    product: &Product,
    subscription: &str,
    count: usize,
) -> (Vec<LeasedEvent>, Consumer) {
    let reading = async {
        loop {
            let mut consumer = product.try_consume(open(subscription, 100)).await;
            let mut events = Vec::new();
            while let Ok(Some(frame)) = consumer.try_next_whole().await {
                if let Some(Frame::Events(leased)) = frame.frame {
                    events.extend(leased.events);
                }
                if events.len() >= count {
                    return (events, consumer);
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("they come")
}

/// Acks that are told to be on disk.
pub(super) async fn settle(product: &Product, events: &[LeasedEvent]) -> Vec<AckOutcome> {
    outcomes(&product.acknowledge("portal", acks_of(events)).await)
}

/// A consumer that takes nothing, so that the process has the subscription.
pub(super) async fn keep(product: &Product) -> Consumer {
    product.consume(open("portal", 0)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_at_two_processes_share_one_subscription() {
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let (psa, here) = pair(&hub).await;
    let there = at(second.addr, &here);
    let mut one = here.consume(open("portal", 2)).await;
    let mut two = there.consume(open("portal", 0)).await;
    psa.publish_each(numbered("t", 4)).await;
    let mine = one.events(2).await;
    two.credit(100).await;
    let others = two.events(2).await;
    assert_eq!(
        (ids_of(&mine), ids_of(&others)),
        (numbered("t", 2), vec!["t-2".into(), "t-3".into()])
    );
    // Each may ack what it has, and is told what became of that.
    two.ack(&others).await;
    two.ack(&others).await;
    assert_eq!(
        outcomes(&two.results().await),
        [AckOutcome::AlreadySettled; 2]
    );
    drop(one);
    let left = two.events(2).await;
    assert_eq!(ids_of(&left), numbered("t", 2));
    assert_eq!(left[0].attempt, 1, "a lost connection costs no attempt");
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_and_acknowledge_reach_the_owner_from_any_process() {
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let (psa, here) = pair(&hub).await;
    let there = at(second.addr, &here);
    psa.publish_each(numbered("t", 3)).await;
    let first = here.pull(pull_of(1, 5)).await;
    let next = there.pull(pull_of(10, 5)).await;
    assert_eq!(
        (ids_of(&first.events), ids_of(&next.events)),
        (numbered("t", 1), vec!["t-1".into(), "t-2".into()])
    );
    assert_eq!(next.backlog, 3);
    assert_eq!(settle(&there, &first.events).await, [AckOutcome::Ok]);
    assert_eq!(
        settle(&here, &first.events).await,
        [AckOutcome::AlreadySettled]
    );
    assert_eq!(settle(&here, &next.events).await, [AckOutcome::Ok; 2]);
    assert_eq!(
        settle(&there, &next.events).await,
        [AckOutcome::AlreadySettled; 2]
    );
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stops_leaves_its_subscriptions_to_the_others() {
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let (psa, here) = pair(&hub).await;
    let there = at(second.addr, &here);
    psa.publish_each(numbered("t", 3)).await;
    let _owner = keep(&here).await;
    let mut consumer = there.consume(open("portal", 100)).await;
    let events = consumer.events(3).await;
    // What is under way when a process stops may come again; this is on disk.
    assert_eq!(settle(&there, &events[..1]).await, [AckOutcome::Ok]);
    let closing = consumer.frame(|frame| matches!(frame, Frame::Closing(_)).then_some(()));
    let ((), ()) = tokio::join!(hub.stop(), closing);
    let (left, _last) = events_of(&there, "portal", 2).await;
    assert_eq!(ids_of(&left), ["t-1", "t-2"]);
    assert!(
        left.iter().all(|event| event.attempt == 1),
        "a stop costs no attempt"
    );
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_subscriptions_of_a_process_that_died_are_taken_over() {
    let hub = TestHub::start(Backend::Postgres).await;
    let same = Database::at(hub.database_url().to_owned());
    let mut other = TestProcess::start_on(Command::Serve, same, &[]).await;
    let (psa, here) = pair(&hub).await;
    psa.publish_each(numbered("t", 3)).await;
    let there = at(other.addr(), &here);
    let mut consumer = there.consume(open("portal", 100)).await;
    let events = consumer.events(3).await;
    // On disk before the process dies.
    assert_eq!(settle(&here, &events[..1]).await, [AckOutcome::Ok]);
    let mut relayed = here.consume(open("portal", 100)).await;
    other.kill().await;
    relayed
        .frame(|frame| matches!(frame, Frame::Closing(_)).then_some(()))
        .await;
    let (left, _last) = events_of(&here, "portal", 2).await;
    assert_eq!(ids_of(&left), ["t-1", "t-2"]);
    assert!(
        left.iter().all(|event| event.attempt == 1),
        "a death costs no attempt"
    );
    // Leases of before are void.
    assert_eq!(
        settle(&here, &events[1..]).await,
        [AckOutcome::LeaseExpired; 2]
    );
    assert_eq!(settle(&here, &left).await, [AckOutcome::Ok; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_delivered_again_by_the_process_that_has_the_subscription() {
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let (psa, here) = pair(&hub).await;
    let mut consumer = here.consume(open("portal", 100)).await;
    psa.publish_each(numbered("t", 3)).await;
    let events = consumer.events(3).await;
    assert_eq!(settle(&here, &events).await, [AckOutcome::Ok; 3]);
    // The job is worked off where it was made.
    let admin = Hub::builder(format!("http://{}", second.addr));
    let admin = admin
        .api_key(&hub.first_tenant().admin_key)
        .connect_lazy()
        .unwrap();
    let request = RedeliverRequest {
        filter: Some(EventLogFilter {
            states: vec![EventDeliveryState::Delivered.into()],
            ..EventLogFilter::default()
        }),
        subscription_id: subscription_of(&hub).await,
        ..RedeliverRequest::default()
    };
    admin.event_bus().redeliver(request).await.unwrap();
    let again = consumer.events(3).await;
    assert!(again.iter().all(|event| event.redelivery));
    let ids: BTreeSet<String> = ids_of(&again).into_iter().collect();
    assert_eq!(ids, numbered("t", 3).into_iter().collect());
    second.drain().await;
}

/// Id of Portal's default subscription at the first tenant.
pub(super) async fn subscription_of(hub: &TestHub) -> String {
    let tenant = hub.core.tenancy.find(&hub.first_tenant().id).await.unwrap();
    hub_event_bus::default_subscriptions::id(&tenant, "portal")
}

/// Tenants, each with PSA, that publish the same number of tickets.
pub(super) async fn tenants(hub: &TestHub, count: usize) -> Vec<(Tenant, Product)> {
    let mut tenants = Vec::new();
    for _ in 0..count {
        let tenant = hub.tenant().await;
        let psa = psa_of(hub, &tenant).await;
        tenants.push((tenant, psa));
    }
    tenants
}

/// Portal of one tenant.
pub(super) async fn portal_of(hub: &TestHub, tenant: &Tenant) -> Product {
    let admin = hub.client(&tenant.admin_key);
    let key = tenant.key(&admin, "portal", &["hub:events.read"]).await;
    Product {
        bus: hub.client(&key).event_bus(),
        key,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_all_tenants_serves_what_other_processes_have_at_work() {
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let tenants = tenants(&hub, 2).await;
    let (there, psa) = &tenants[0];
    let own = at(second.addr, &portal_of(&hub, there).await);
    let _owner = keep(&own).await;
    let mut all = backend_of_all(&hub)
        .await
        .consume(open("portal", 100))
        .await;
    psa.publish_each(numbered("there", 3)).await;
    let events = all.events(3).await;
    assert_eq!(ids_of(&events), numbered("there", 3));
    tenants[1].1.publish_each(numbered("here", 2)).await;
    let more = all.events(2).await;
    assert_eq!(ids_of(&more), numbered("here", 2));
    // A batch may have leases of several processes.
    let both = [events, more].concat();
    all.ack(&both).await;
    all.ack(&both).await;
    let (mut told, mut caught_up) = (Vec::new(), false);
    while told.len() < both.len() || !caught_up {
        match all.next().await {
            Frame::AckResults(results) => told.extend(outcomes(&results.results)),
            Frame::CaughtUp(_) => caught_up = true,
            _ => {}
        }
    }
    assert_eq!(told, [AckOutcome::AlreadySettled; 5]);
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credit_is_one_wherever_the_events_come_from() {
    const CREDIT: u32 = 3;
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let tenants = tenants(&hub, 3).await;
    let mut owners = Vec::new();
    for (tenant, _) in &tenants[..2] {
        owners.push(keep(&at(second.addr, &portal_of(&hub, tenant).await)).await);
    }
    for (number, (_, psa)) in tenants.iter().enumerate() {
        psa.publish_each(numbered(&format!("{number}"), 5)).await;
    }
    let mut all = backend_of_all(&hub)
        .await
        .consume(open("portal", CREDIT))
        .await;
    let mut seen = BTreeSet::new();
    while seen.len() < 15 {
        let mut events = Vec::new();
        while events.is_empty() {
            if let Frame::Events(leased) = all.next().await {
                events = leased.events;
            }
        }
        // All that is outstanding at once; a stream gives what it may.
        while events.len() < CREDIT as usize && seen.len() + events.len() < 15 {
            if let Frame::Events(leased) = all.next().await {
                events.extend(leased.events);
            }
        }
        assert!(events.len() <= CREDIT as usize, "{:?}", ids_of(&events));
        let new = ids_of(&events)
            .into_iter()
            .filter(|id| seen.insert(id.clone()));
        assert_eq!(new.count(), events.len(), "each comes once");
        all.ack(&events).await;
    }
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_all_tenants_at_two_processes_share_the_work() {
    const EVENTS: usize = 20;
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let tenants = tenants(&hub, 4).await;
    let here = backend_of_all(&hub).await;
    let there = at(second.addr, &here);
    let (mut one, mut two) = (
        here.consume(open("portal", 5)).await,
        there.consume(open("portal", 5)).await,
    );
    for (number, (_, psa)) in tenants.iter().enumerate() {
        psa.publish_each(numbered(&format!("{number}"), EVENTS / 4))
            .await;
    }
    let mut seen = Vec::new();
    let working = async {
        while seen.len() < EVENTS {
            let (frame, consumer) = tokio::select! {
                frame = one.next() => (frame, &one),
                frame = two.next() => (frame, &two),
            };
            if let Frame::Events(leased) = frame {
                consumer.ack(&leased.events).await;
                seen.extend(ids_of(&leased.events));
            }
        }
    };
    tokio::time::timeout(PATIENCE, working)
        .await
        .expect("all come");
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), EVENTS, "each comes once");
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_for_all_tenants_finds_events_and_leases_wherever_they_are() {
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let tenants = tenants(&hub, 2).await;
    let (there, psa) = &tenants[0];
    let own = at(second.addr, &portal_of(&hub, there).await);
    let _owner = keep(&own).await;
    psa.publish_each(numbered("there", 2)).await;
    let all = backend_of_all(&hub).await;
    let pulled = all.pull(pull_of(10, 20)).await;
    assert_eq!(ids_of(&pulled.events), numbered("there", 2));
    tenants[1].1.publish(vec![ticket("here")]).await;
    let more = all.pull(pull_of(10, 20)).await;
    assert_eq!(ids_of(&more.events), ["here"]);
    let both = [more.events, pulled.events].concat();
    assert_eq!(settle(&all, &both).await, [AckOutcome::Ok; 3]);
    assert_eq!(settle(&all, &both).await, [AckOutcome::AlreadySettled; 3]);
    second.drain().await;
}
