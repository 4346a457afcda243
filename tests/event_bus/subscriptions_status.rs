//! What a subscription's status says: how far it is, what holds it back, and what it is about to
//! lose.

use std::time::Duration;

use hub_client::start_at::At;
use hub_core::clock::timestamp;
use hub_event_bus::leasing::{Key, Saved};
use hub_proto::hub::event_bus::v1::{
    EventFilter, NackAction, PauseSubscriptionRequest, SubscriptionState, SubscriptionStatus,
};
use hub_proto::hub::platform::v1::SetProductSubscriptionRequest;

use super::consume_shared::{acks_of, backend_of_all, pull_of};
use super::consumer::open;
use super::owner::{Owner, named, paused, starting, state, status};
use super::subscriptions_seek::{fail, place, reach, waiting};
use super::{Product, earliest, event, numbered, of_types, text, ticket, with_attributes};
use crate::support::{Backend, TestHub};

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn publish_deals(hub: &TestHub, count: usize) -> Product {
    let psa = Product::new(hub, "psa").await;
    let deals = numbered("d", count);
    for some in deals.chunks(1000) {
        psa.publish(some.iter().map(|id| event("deal.won", id)).collect())
            .await;
    }
    psa
}

/// The status of Portal's default subscription once it is in this state.
async fn consumer_state(admin: &Owner, wanted: SubscriptionState) -> SubscriptionStatus {
    let found = async {
        loop {
            let all = admin.list(Default::default()).await.unwrap().0;
            let portal = all.iter().find(|one| one.product == "portal").unwrap();
            if state(portal) == wanted {
                return status(portal).clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(20), found).await;
    found.unwrap_or_else(|_| panic!("it never was {wanted:?}"))
}

both_databases! {
    async fn the_backlog_counts_what_is_not_settled(hub: TestHub) {
        let psa = publish_deals(&hub, 3).await;
        let crm = Owner::new(&hub, "crm").await;
        let made = crm.create(starting("deals", of_types(&["deal.*"]), earliest())).await;
        let id = made.subscription_id.clone();
        psa.publish(vec![event("quote.sent", "q"), event("deal.won", "last")]).await;
        let found = crm.get(&id).await.unwrap();
        assert_eq!(state(&found), SubscriptionState::NoConsumer);
        let told = status(&found);
        assert_eq!((told.settled_sequence, told.head_sequence, told.backlog), (0, 6, 4));
        assert_eq!(told.reason, "4 events wait and no consumer is connected.");
        assert!(told.oldest_unsettled_time.is_some() && told.members.is_empty());
        place(&hub, &id, 3, &[waiting(2, 0)]).await;
        let told = status(&crm.get(&id).await.unwrap());
        assert_eq!((told.settled_sequence, told.backlog), (1, 2));
        reach(&hub, &id, 6).await;
        let found = crm.get(&id).await.unwrap();
        let told = status(&found);
        assert_eq!((state(&found), told.backlog), (SubscriptionState::Live, 0));
        assert_eq!((told.oldest_unsettled_time, told.retention_deadline), (None, None));
    }

    async fn many_events_are_counted_up_to_a_bound(hub: TestHub) {
        publish_deals(&hub, 10_200).await;
        let crm = Owner::new(&hub, "crm").await;
        let all = of_types(&["deal.*"]);
        let behind = crm.create(starting("behind", all.clone(), earliest())).await;
        assert_eq!(status(&behind).backlog, 10_000);
        let near = crm.create(starting("near", all, At::AfterSequence(300))).await;
        assert_eq!(status(&near).backlog, 9_900);
        let (listed, _) = crm.list(Default::default()).await.unwrap();
        let backlogs: Vec<u64> = listed.iter().map(|one| status(one).backlog).collect();
        assert_eq!(backlogs, [10_000, 0, 9_900]);
        assert!(status(&listed[0]).oldest_unsettled_time.is_some());
    }

    async fn failed_events_and_blocked_keys_are_named(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let crm = Owner::new(&hub, "crm").await;
        let about = |id: &str, subject: &str| {
            with_attributes(event("deal.won", id), &[("subject", text(subject))])
        };
        psa.publish(vec![
            about("1", "acme"),
            about("2", "acme"),
            about("3", "umbrella"),
            about("4", "umbrella"),
            about("5", "umbrella"),
        ]).await;
        let made = crm.create(starting("deals", of_types(&["deal.*"]), earliest())).await;
        let id = made.subscription_id;
        let of = |seq, attempts, key| Saved { key: Some(Key(key)), ..waiting(seq, attempts) };
        // The first one failed and holds its key; the third waits for its retry.
        fail(&hub, &id, 1, 1).await;
        let leased = Saved { in_flight: true, ..of(5, 0, 3) };
        place(&hub, &id, 5, &[of(2, 0, 1), of(3, 2, 2), of(4, 0, 2), leased]).await;
        let found = crm.get(&id).await.unwrap();
        let told = status(&found);
        assert_eq!((told.backlog, told.failed, told.retrying, told.in_flight), (4, 1, 1, 1));
        assert_eq!(told.last_error, "refused");
        let blocked: Vec<_> = told
            .blocked_keys
            .iter()
            .map(|one| (&*one.key, one.attempts, one.waiting, one.next_attempt_time.is_some()))
            .collect();
        assert_eq!(blocked, [("acme", 5, 1, false), ("umbrella", 2, 1, true)]);
        assert!(told.blocked_keys.iter().all(|one| one.event_id.starts_with("evt_")));
    }

    async fn what_stops_delivery_is_told_first(hub: TestHub) {
        let crm = Owner::new(&hub, "crm").await;
        let admin = Owner::admin(&hub);
        let made = crm.create(named("deals", EventFilter::default())).await;
        let id = made.subscription_id;
        crm.pause(paused(&id, "a new release")).await.unwrap();
        let request = SetProductSubscriptionRequest {
            product: "crm".to_owned(),
            active: false,
            ..SetProductSubscriptionRequest::default()
        };
        admin.hub.platform().set_product_subscription(request.clone()).await.unwrap();
        let found = admin.get(&id).await.unwrap();
        assert_eq!(state(&found), SubscriptionState::NotEntitled);
        assert_eq!(status(&found).reason, "The tenant's subscription to crm is not active.");
        let request = SetProductSubscriptionRequest { active: true, ..request };
        admin.hub.platform().set_product_subscription(request).await.unwrap();
        let found = admin.get(&id).await.unwrap();
        assert_eq!(state(&found), SubscriptionState::Paused);
        let reason = status(&found).reason;
        assert!(reason.starts_with("Paused by key_"), "{reason}");
        assert!(reason.ends_with(": a new release"), "{reason}");
        let resumed = crm.resume(&id).await.unwrap();
        assert_ne!(state(&resumed), SubscriptionState::Paused);
    }

    async fn a_default_one_is_dormant_and_what_goes_to_the_hub_is_settled(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        psa.publish(vec![ticket("1")]).await;
        let all = Owner::admin(&hub).list(Default::default()).await.unwrap().0;
        let of = |product: &str| all.iter().find(|one| one.product == product).unwrap();
        assert_eq!(state(of("portal")), SubscriptionState::Dormant);
        assert_eq!(status(of("portal")).backlog, 1);
        assert_eq!(state(of("hub")), SubscriptionState::Live);
        let told = status(of("hub"));
        assert_eq!((told.settled_sequence, told.backlog), (told.head_sequence, 0));
        // Until somebody uses it.
        let pulled = Product::new(&hub, "portal").await.pull(pull_of(1, 10)).await;
        assert_eq!(pulled.events.len(), 1);
        let used = Owner::admin(&hub).get(&of("portal").subscription_id).await.unwrap();
        assert_ne!(state(&used), SubscriptionState::Dormant);
        assert_eq!(status(&used).in_flight, 1);
    }

    async fn a_pause_ends_by_itself(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let crm = Owner::new(&hub, "crm").await;
        let id = crm.create(named("deals", of_types(&["deal.*"]))).await.subscription_id;
        let until = hub.clock.now() + 60_000_000;
        let request = PauseSubscriptionRequest {
            until: Some(timestamp(until)),
            ..paused(&id, "lunch")
        };
        let first = crm.pause(request.clone()).await.unwrap();
        assert_eq!(state(&first), SubscriptionState::Paused);
        let at = timestamp(until);
        assert!(status(&first).reason.ends_with(&format!(" until {at}: lunch")));
        assert_eq!(crm.pause(request.clone()).await.unwrap(), first, "a repetition");
        hub.clock.advance(Duration::from_secs(59));
        assert_eq!(state(&crm.get(&id).await.unwrap()), SubscriptionState::Paused);
        hub.clock.advance(Duration::from_secs(1));
        assert_eq!(state(&crm.get(&id).await.unwrap()), SubscriptionState::Live);
        let error = crm.pause(request).await.unwrap_err();
        assert_eq!(error.reason(), Some("FIELD_INVALID"), "until lies in the past");
    }

    async fn retention_is_a_risk_in_its_last_fifth(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        publish_deals(&hub, 1).await;
        let recorded = hub.clock.now();
        let crm = Owner::new(&hub, "crm").await;
        let made = crm.create(starting("deals", of_types(&["deal.*"]), earliest())).await;
        let told = status(&made);
        let month = 30 * 24 * 3600 * 1_000_000;
        assert_eq!(told.oldest_unsettled_time, Some(timestamp(recorded)));
        assert_eq!(told.retention_deadline, Some(timestamp(recorded + month)));
        hub.clock.advance(DAY * 24);
        let id = made.subscription_id;
        assert_eq!(state(&crm.get(&id).await.unwrap()), SubscriptionState::NoConsumer);
        hub.clock.advance(Duration::from_secs(1));
        let found = crm.get(&id).await.unwrap();
        assert_eq!(state(&found), SubscriptionState::RetentionRisk);
        reach(&hub, &id, 1).await;
        assert_eq!(state(&crm.get(&id).await.unwrap()), SubscriptionState::Live);
    }

    async fn who_pulls_is_told_the_state_that_others_see(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let psa = Product::new(&hub, "psa").await;
        let portal = Product::new(&hub, "portal").await;
        let admin = Owner::admin(&hub);
        let told = async |count, wanted| {
            let pulled = portal.pull(pull_of(count, 0)).await;
            assert_eq!(pulled.state(), wanted);
            assert_eq!(consumer_state(&admin, wanted).await.backlog, pulled.backlog);
            pulled.events
        };
        told(1, SubscriptionState::Live).await;
        psa.publish(vec![ticket("1"), ticket("2")]).await;
        assert_eq!(told(1, SubscriptionState::CatchingUp).await.len(), 1);
        // All that is left is under way.
        assert_eq!(told(5, SubscriptionState::Live).await.len(), 1);
        hub.clock.advance(DAY * 24);
        let again = told(5, SubscriptionState::Failing).await;
        assert!(again.is_empty(), "the leases expired");
        hub.clock.advance(Duration::from_secs(3600));
        let again = told(5, SubscriptionState::RetentionRisk).await;
        assert_eq!(again.len(), 2);
        let acks = acks_of(&again);
        portal.acknowledge("portal", acks).await;
        told(5, SubscriptionState::Live).await;
        let all = backend_of_all(&hub).await.pull(pull_of(5, 0)).await;
        assert_eq!((all.state(), all.backlog), (SubscriptionState::Unspecified, 0));
    }

    async fn a_consumer_that_answers_nothing_fails_and_one_that_skips_does_not(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let psa = Product::new(&hub, "psa").await;
        let portal = Product::new(&hub, "portal").await;
        psa.publish(vec![ticket("hangs")]).await;
        let mut consumer = portal.consume(open("portal", 1)).await;
        consumer.events(1).await;
        hub.clock.advance(Duration::from_secs(30));
        let admin = Owner::admin(&hub);
        let told = consumer_state(&admin, SubscriptionState::Failing).await;
        assert_eq!(told.last_error, "the lease expired");
        // The first retry, with its jitter.
        hub.clock.advance(Duration::from_secs(90));
        for leased in consumer.events(1).await {
            consumer.nack(&leased, NackAction::Skip, "not ours").await;
        }
        consumer_state(&admin, SubscriptionState::Live).await;
    }

    async fn a_consumer_that_is_lost_with_the_same_event_again_and_again_fails(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let portal = Product::new(&hub, "portal").await;
        psa.publish(vec![ticket("poison")]).await;
        let admin = Owner::admin(&hub);
        for losses in 0..3 {
            let mut consumer = portal.consume(open("portal", 1)).await;
            consumer.events(1).await;
            let told = consumer_state(&admin, SubscriptionState::Live).await;
            assert_eq!((told.in_flight, &*told.last_error), (1, ""), "after {losses} losses");
            drop(consumer);
        }
        let told = consumer_state(&admin, SubscriptionState::Failing).await;
        assert!(told.last_error.starts_with("the connection was lost again"), "{told:?}");
        assert!(told.reason.ends_with(&told.last_error), "{told:?}");
    }

    async fn after_a_restart_all_is_as_it_was(hub: TestHub) {
        let mut hub = hub;
        publish_deals(&hub, 3).await;
        let key = hub.key("crm", &["hub:subscriptions.read", "hub:subscriptions.write"]).await;
        let crm = Owner { hub: hub.client(&key) };
        let deals = starting("deals", of_types(&["deal.*"]), earliest());
        let id = crm.create(deals).await.subscription_id;
        place(&hub, &id, 2, &[waiting(2, 1)]).await;
        crm.pause(paused(&id, "a new release")).await.unwrap();
        let before = crm.get(&id).await.unwrap();
        hub.restart().await;
        let crm = Owner { hub: hub.client(&key) };
        assert_eq!(crm.get(&id).await.unwrap(), before);
    }
}
