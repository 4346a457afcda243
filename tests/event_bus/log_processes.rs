//! GetEvent and ListEvents at a process that does not have the subscriptions at work: they tell
//! what their owners know, which may not be stored yet.

use std::time::Duration;

use hub_core::storage::{Sql, Tx};
use hub_proto::hub::event_bus::v1::get_event_request::Event as Asked;
use hub_proto::hub::event_bus::v1::{
    EventDelivery, EventDeliveryState, EventLogEntry, EventLogFilter, NackAction,
};

use super::consume_processes::{another, at, subscription_of};
use super::consumer::{Consumer, open};
use super::explain_processes::other_of;
use super::log::{admin, of};
use super::owner::{Owner, status};
use super::{Product, numbered, ticket};
use crate::support::{Backend, TestHub};

/// What takes longer hangs: an owner that does not answer is waited for a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// Locks the rows of all subscriptions, so that no checkpoint is stored.
const HOLD: Sql = Sql::same("update subscription_positions set floor = floor");

async fn without_checkpoints(hub: &TestHub) -> Tx {
    let mut tx = hub.core.db.begin().await.unwrap();
    tx.query(HOLD).execute().await.unwrap();
    tx
}

fn portal(entry: &EventLogEntry) -> EventDelivery {
    let mut deliveries = entry.deliveries.iter();
    let found = deliveries.find(|delivery| delivery.product == "portal");
    found.expect("it goes to Portal").clone()
}

/// Where the events stand for Portal, the oldest first, by a list and one by one.
async fn states(log: &Product, count: usize) -> Vec<(EventDeliveryState, String)> {
    let page = log.list(of(EventLogFilter::default())).await.unwrap();
    let tickets = page.entries.iter().rev();
    let tickets =
        tickets.filter(|entry| entry.deliveries.iter().any(|one| one.product == "portal"));
    let listed: Vec<EventDelivery> = tickets.map(portal).collect();
    assert_eq!(listed.len(), count);
    for delivery in &listed {
        let one = log
            .get(Asked::EventId(delivery.event_id.clone()))
            .await
            .unwrap();
        assert_eq!(portal(&one), *delivery);
    }
    let told = listed.into_iter();
    told.map(|delivery| (delivery.state(), delivery.last_error))
        .collect()
}

/// Waits until the owner has taken what it was told.
async fn left(hub: &TestHub, count: u64) {
    let (admin, id) = (Owner::admin(hub), subscription_of(hub).await);
    while status(&admin.get(&id).await.unwrap()).backlog != count {
        tokio::task::yield_now().await;
    }
}

/// Acks one, skips one, fails one, and lets one be tried again; one stays leased.
async fn settle(hub: &TestHub, consumer: &mut Consumer) {
    let events = consumer.events(5).await;
    consumer.ack(&events[..1]).await;
    consumer
        .nack(&events[1], NackAction::Skip, "not ours")
        .await;
    consumer.nack(&events[2], NackAction::Fail, "refused").await;
    consumer.nack(&events[3], NackAction::Retry, "busy").await;
    left(hub, 2).await;
    while status(
        &Owner::admin(hub)
            .get(&subscription_of(hub).await)
            .await
            .unwrap(),
    )
    .retrying
        == 0
    {
        tokio::task::yield_now().await;
    }
}

fn settled() -> Vec<(EventDeliveryState, String)> {
    use EventDeliveryState as State;
    let told = |state, error: &str| (state, error.to_owned());
    vec![
        told(State::Delivered, ""),
        told(State::Skipped, "not ours"),
        told(State::Failed, "refused"),
        told(State::RetryWait, "busy"),
        told(State::InFlight, ""),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_just_acknowledged_at_one_process_is_listed_so_at_another() {
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let psa = Product::new(&hub, "psa").await;
    let here = Product::new(&hub, "portal").await;
    let mut consumer = at(second.addr, &here).consume(open("portal", 100)).await;
    psa.publish_each(numbered("t", 5)).await;
    let held = without_checkpoints(&hub).await;
    settle(&hub, &mut consumer).await;
    let log = admin(&hub).await;
    let states_here = states(&log, 5).await;
    let states_there = states(&at(second.addr, &log), 5).await;
    assert_eq!(states_here, settled());
    assert_eq!(states_there, settled());
    let failed = of(EventLogFilter {
        states: vec![EventDeliveryState::InFlight.into()],
        subscription_id: subscription_of(&hub).await,
        ..EventLogFilter::default()
    });
    let listed = log.list(failed).await.unwrap().entries;
    assert_eq!(listed.len(), 1);
    drop(held);
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_hangs_holds_up_no_list_for_long() {
    let hub = TestHub::start(Backend::Postgres).await;
    let other = other_of(&hub).await;
    let psa = Product::new(&hub, "psa").await;
    let here = Product::new(&hub, "portal").await;
    let mut consumer = at(other.addr(), &here).consume(open("portal", 100)).await;
    psa.publish(vec![ticket("t")]).await;
    consumer.events(1).await;
    let log = admin(&hub).await;
    assert_eq!(states(&log, 1).await[0].0, EventDeliveryState::InFlight);
    other.signal("STOP");
    let listed = tokio::time::timeout(PATIENCE, log.list(of(EventLogFilter::default()))).await;
    let listed = listed.expect("it does not hang").unwrap();
    let stored = portal(&listed.entries[0]).state();
    // As far as it was stored.
    let known = [EventDeliveryState::Queued, EventDeliveryState::InFlight];
    assert!(known.contains(&stored), "{stored:?}");
}

both_databases! {
    async fn what_was_just_settled_is_listed_so(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let mut consumer = Product::new(&hub, "portal").await.consume(open("portal", 100)).await;
        psa.publish_each(numbered("t", 5)).await;
        settle(&hub, &mut consumer).await;
        assert_eq!(states(&admin(&hub).await, 5).await, settled());
    }
}
