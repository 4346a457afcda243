//! Where events go that subscriptions of products' own take: told when they are published, and for
//! ever in the log.

use std::time::{Duration, Instant};

use hub_client::start_at::At;
use hub_core::clock::Clock;
use hub_proto::hub::event_bus::v1::get_event_request::Event as Asked;
use hub_proto::hub::event_bus::v1::{
    EventDelivery, EventDeliveryState, EventFilter, EventLogFilter, ListEventsRequest,
    NotRoutedReason, PublishRequest, PublishWarning, Subscription,
};
use hub_proto::hub::platform::v1::SetIntegrationRequest;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::owner::{Owner, named, starting, status};
use super::subscriptions_seek::reach;
use super::{Product, batch, earliest, event, numbered, of_types, text, ticket, with_attributes};
use crate::support::{Backend, TestHub, config};

/// What takes longer has failed. That it is a second at most is shown where epochs are believed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Publishes an event, and says to how many subscriptions it went.
async fn destinations(product: &Product, kind: &str, id: &str) -> u32 {
    let published = product.publish(vec![event(kind, id)]).await;
    let result = &published.results[0];
    let no_route = result.warnings.contains(&PublishWarning::NoRoute.into());
    assert_eq!(no_route, result.destinations == 0);
    result.destinations
}

/// Where the event with an id of the log stands for a subscription; none if it does not have it.
async fn delivery(product: &Product, seq: u64, id: &str) -> Option<EventDelivery> {
    let entry = product.get(Asked::Sequence(seq)).await.unwrap();
    let mut deliveries = entry.deliveries.into_iter();
    deliveries.find(|delivery| delivery.subscription_id == id)
}

async fn auditor(hub: &TestHub) -> Product {
    let key = hub.first_tenant().admin_key.clone();
    Product {
        bus: hub.client(&key).event_bus(),
        key,
    }
}

/// Sequences of the events that a subscription has, oldest first.
async fn has(hub: &TestHub, id: &str) -> Vec<u64> {
    let request = ListEventsRequest {
        filter: Some(EventLogFilter {
            subscription_id: id.to_owned(),
            ..EventLogFilter::default()
        }),
        ..ListEventsRequest::default()
    };
    let page = auditor(hub).await.list(request).await.unwrap();
    let records = page.entries.iter().map(|entry| entry.record.as_ref());
    records
        .rev()
        .map(|record| record.unwrap().sequence)
        .collect()
}

both_databases! {
    async fn it_takes_what_its_filter_matches_from_its_creation_on(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let crm = Owner::new(&hub, "crm").await;
        assert_eq!(destinations(&psa, "deal.won", "1").await, 0);
        let made = crm.create(named("deals", of_types(&["deal.*"]))).await;
        let id = &made.subscription_id;
        let start = status(&made).settled_sequence;
        assert_eq!(start, 2, "behind the event that tells of it");
        assert_eq!(destinations(&psa, "deal.won", "2").await, 1);
        assert_eq!(destinations(&psa, "quote.sent", "3").await, 0);
        assert_eq!(has(&hub, id).await, [3]);
        let auditor = auditor(&hub).await;
        assert!(delivery(&auditor, 1, id).await.is_none());
        let queued = delivery(&auditor, 3, id).await.unwrap();
        assert_eq!((queued.state(), &*queued.product), (EventDeliveryState::Queued, "crm"));
        // A type of the catalogue goes only where the catalogue sends it.
        crm.create(named("all", EventFilter::default())).await;
        let ticket = psa.publish(vec![ticket("4")]).await;
        assert_eq!(ticket.results[0].destinations, 2, "portal and hub");
        let portal = Owner::new(&hub, "portal").await;
        portal.create(named("tickets", of_types(&["ticket.**"]))).await;
        assert_eq!(destinations(&psa, "ticket.created", "5").await, 3);
        let both = destinations(&psa, "ticket.closed", "6").await;
        assert_eq!(both, 2, "crm's all, portal's tickets");
    }

    async fn one_that_begins_in_the_past_has_the_past(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let crm = Owner::new(&hub, "crm").await;
        for id in numbered("d", 4) {
            psa.publish(vec![event("deal.won", &id)]).await;
        }
        let deals = of_types(&["deal.won"]);
        let all = crm.create(starting("all", deals.clone(), earliest())).await;
        assert_eq!((status(&all).settled_sequence, status(&all).backlog), (0, 4));
        assert_eq!(has(&hub, &all.subscription_id).await, [1, 2, 3, 4]);
        let some = crm.create(starting("some", deals.clone(), At::AfterSequence(2))).await;
        assert_eq!(has(&hub, &some.subscription_id).await, [3, 4]);
        let cursor = psa.publish(vec![event("deal.won", "last")]).await.cursor;
        let none = crm.create(starting("none", deals, At::Cursor(cursor))).await;
        assert_eq!(has(&hub, &none.subscription_id).await, [0; 0]);
        assert_eq!(status(&none).backlog, 0);
    }

    async fn a_changed_filter_decides_about_events_not_yet_reached(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let crm = Owner::new(&hub, "crm").await;
        let made = crm.create(named("deals", of_types(&["deal.won"]))).await;
        let id = made.subscription_id.clone();
        for kind in ["deal.won", "deal.lost"] {
            psa.publish(vec![event(kind, kind)]).await;
        }
        assert_eq!(has(&hub, &id).await, [2]);
        // Events up to the first deal were reached.
        reach(&hub, &id, 2).await;
        let lost = Subscription {
            subscription_id: id.clone(),
            filter: Some(of_types(&["deal.lost"])),
            ..Subscription::default()
        };
        let changed = crm.update(lost, &["filter"]).await.unwrap();
        assert_eq!(changed.filter, Some(of_types(&["deal.lost"])));
        assert_eq!(has(&hub, &id).await, [2, 3]);
        assert_eq!(destinations(&psa, "deal.won", "3").await, 0);
        assert_eq!(destinations(&psa, "deal.lost", "4").await, 1);
        // Nothing was reached since: the newest filter replaces the one before.
        let both = Subscription {
            subscription_id: id.clone(),
            filter: Some(of_types(&["deal.**"])),
            ..Subscription::default()
        };
        crm.update(both, &["filter"]).await.unwrap();
        assert_eq!(has(&hub, &id).await, [2, 3, 5, 6]);
        crm.delete(&id, "").await.unwrap();
        assert_eq!(destinations(&psa, "deal.won", "5").await, 0);
        assert!(delivery(&auditor(&hub).await, 2, &id).await.is_none());
    }

    async fn attributes_are_looked_at_event_by_event(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let crm = Owner::new(&hub, "crm").await;
        let filter = EventFilter {
            attributes: [("subject".to_owned(), "acme/*".to_owned())].into(),
            ..EventFilter::default()
        };
        let id = crm.create(named("acme", filter)).await.subscription_id;
        let about = |id: &str, subject: &str| {
            with_attributes(event("deal.won", id), &[("subject", text(subject))])
        };
        let published = psa.publish(vec![
            about("1", "acme/1"),
            about("2", "umbrella/1"),
            about("3", "acme/2"),
        ]).await;
        let counts: Vec<u32> = published.results.iter().map(|one| one.destinations).collect();
        assert_eq!(counts, [1, 0, 1]);
        assert_eq!(has(&hub, &id).await, [2, 4]);
    }

    async fn switches_and_the_product_itself_stand_before_a_filter(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let (crm, own) = (Owner::new(&hub, "crm").await, Owner::new(&hub, "psa").await);
        let id = crm.create(named("deals", of_types(&["deal.*"]))).await.subscription_id;
        own.create(named("deals", of_types(&["deal.*"]))).await;
        let request = SetIntegrationRequest {
            source: "psa".to_owned(),
            destination: "crm".to_owned(),
            enabled: false,
            ..SetIntegrationRequest::default()
        };
        let admin = hub.client(&hub.first_tenant().admin_key);
        admin.platform().set_integration(request).await.unwrap();
        let published = psa.publish(vec![event("deal.won", "1")]).await;
        assert_eq!(published.results[0].destinations, 0);
        let seq = published.results[0].sequence;
        let off = delivery(&auditor(&hub).await, seq, &id).await.unwrap();
        assert_eq!(off.state(), EventDeliveryState::NotRouted);
        assert_eq!(off.not_routed_reason(), NotRoutedReason::IntegrationOff);
    }

    async fn a_repetition_is_counted_where_it_is_stored(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let crm = Owner::new(&hub, "crm").await;
        let deal = || vec![event("deal.won", "1")];
        assert_eq!(psa.publish(deal()).await.results[0].destinations, 0);
        crm.create(named("deals", of_types(&["deal.*"]))).await;
        let again = psa.publish(deal()).await;
        assert!(again.results[0].duplicate);
        assert_eq!(again.results[0].destinations, 0, "it is from before the subscription");
        crm.create(starting("all", of_types(&["deal.*"]), earliest())).await;
        assert_eq!(psa.publish(deal()).await.results[0].destinations, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_known_at_another_server_within_a_second() {
    let hub = TestHub::start(Backend::Postgres).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(hub.database_url());
    let shutdown = CancellationToken::new();
    let second = hub_server::start(config, listener, Clock::system(), shutdown).await;
    let second = second.unwrap();
    let key = hub.key("psa", &["hub:events.publish"]).await;
    let there = hub_client::Hub::builder(format!("http://{}", second.addr)).api_key(&key);
    let psa = Product {
        bus: there.connect_lazy().unwrap().event_bus(),
        key,
    };
    assert_eq!(destinations(&psa, "deal.won", "1").await, 0);
    let crm = Owner::new(&hub, "crm").await;
    let deals = of_types(&["deal.*"]);
    let made = crm.create(named("deals", deals)).await;
    let asked = PublishRequest {
        validate_only: true,
        ..batch(vec![event("deal.won", "2")])
    };
    let known = async |count: u32| {
        let since = Instant::now();
        while psa.send(asked.clone()).await.unwrap().results[0].destinations != count {
            assert!(since.elapsed() < PATIENCE);
        }
    };
    known(1).await;
    crm.delete(&made.subscription_id, "").await.unwrap();
    known(0).await;
    second.drain().await;
}
