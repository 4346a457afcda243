//! What went wrong in other systems must not go wrong here. Each test names where it was seen; what
//! the state machine of a subscription alone decides is tested beside it.

use std::collections::BTreeMap;
use std::time::Duration;

use hub_core::journal::lock_head;
use hub_proto::hub::event_bus::v1::consume_response::Frame;
use hub_proto::hub::event_bus::v1::get_event_request::Event as Asked;
use hub_proto::hub::event_bus::v1::subscribe_response::Frame as Read;
use hub_proto::hub::event_bus::v1::{RedeliverRequest, SubscribeRequest};

use super::consume_processes::tenants;
use super::consume_shared::backend_of_all;
use super::consumer::{ids_of, open};
use super::log::admin;
use super::{
    Product, batch, earliest, event, from, ids, large_ticket, numbered, of_types, sequences, ticket,
};
use crate::support::{Backend, TestHub};

const DAY: Duration = Duration::from_secs(24 * 3600);

both_databases! {
    /// Marten: readers took an event whose transaction was slow for one that never comes, after a
    /// while, and skipped it.
    async fn what_takes_long_to_commit_is_not_skipped(backend: Backend) {
        let options = TestHub::options(backend).manual_clock();
        let hub = options.limits(|limits| limits.stream_age_max = 30 * DAY).start().await;
        let psa = Product::new(&hub, "psa").await;
        let portal = Product::new(&hub, "portal").await;
        let mut reader = portal.subscribe(from(earliest())).await;
        assert_eq!(reader.caught_up().await, 0);
        let tenant = hub.core.tenancy.find(&hub.first_tenant().id).await.unwrap();
        let mut slow = hub.core.db.begin().await.unwrap();
        lock_head(&mut slow, &tenant).await.unwrap();
        let (first, second) = (psa.publish(vec![ticket("1")]), psa.publish(vec![ticket("2")]));
        let waiting = async {
            for _ in 0..10 {
                hub.clock.advance(DAY / 10);
                let frame = reader.next().await;
                let Read::Progress(progress) = &frame else { panic!("{frame:?}") };
                assert_eq!((progress.sequence, progress.head_sequence), (0, 0));
            }
            slow.commit().await.unwrap();
        };
        let (first, second, ()) = tokio::join!(first, second, waiting);
        let mut stored = [first, second].map(|answer| answer.results[0].sequence);
        stored.sort_unstable();
        assert_eq!(stored, [1, 2]);
        assert_eq!(sequences(&reader.events(2).await), [1, 2]);
    }

    /// KurrentDB: a page on which a filter matched nothing was taken for the end of the log.
    async fn a_page_without_a_match_is_not_the_end(backend: Backend) {
        let options = TestHub::options(backend).limits(|limits| {
            limits.tail_bytes_max = 4 << 10;
            limits.page_bytes_max = 4 << 10;
        });
        let hub = options.start().await;
        let psa = Product::new(&hub, "psa").await;
        let portal = Product::new(&hub, "portal").await;
        for part in 0..10 {
            let events = numbered(&part.to_string(), 20);
            psa.publish(events.iter().map(|id| large_ticket(id, 1000)).collect()).await;
        }
        psa.publish(vec![event("invoice.paid", "last")]).await;
        let filter = Some(of_types(&["invoice.paid"]));
        let request = SubscribeRequest { filter, ..from(earliest()) };
        let mut reader = portal.subscribe(request.clone()).await;
        loop {
            match reader.next().await {
                Read::Events(found) => break assert_eq!(ids(&found.events), ["last"]),
                Read::Opened(_) | Read::Progress(_) => {}
                other => panic!("{other:?} before the only match"),
            }
        }
        let request = SubscribeRequest { stop_when_caught_up: true, ..request };
        assert_eq!(ids(&portal.subscribe(request).await.rest().await.0), ["last"]);
    }

    /// etcd: of several watches on one stream a slow one missed events.
    async fn a_slow_consumer_of_all_tenants_misses_nothing_of_any(hub: TestHub) {
        let tenants = tenants(&hub, 3).await;
        let mut all = backend_of_all(&hub).await.consume(open("portal", 1)).await;
        for (_, psa) in &tenants {
            psa.publish_each(numbered("t", 20)).await;
        }
        let mut of_each = BTreeMap::<String, Vec<String>>::new();
        for _ in 0..60 {
            let leased = all.events(1).await;
            let tenant_id = leased[0].record.as_ref().unwrap().tenant_id.clone();
            of_each.entry(tenant_id).or_default().extend(ids_of(&leased));
            all.ack(&leased).await;
        }
        assert_eq!(of_each.len(), 3);
        let expected = numbered("t", 20);
        assert!(of_each.values().all(|events| *events == expected), "{of_each:?}");
    }

    /// Inngest: of a batch only the first event was run again.
    async fn every_event_of_a_batch_is_delivered_again(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let portal = Product::new(&hub, "portal").await;
        let names = numbered("t", 5);
        let events = names.iter().map(|id| ticket(id)).collect();
        let published = psa.send(batch(events)).await.unwrap();
        let mut consumer = portal.consume(open("portal", 100)).await;
        let leased = consumer.events(5).await;
        consumer.ack(&leased).await;
        consumer.frame(|frame| matches!(frame, Frame::CaughtUp(_)).then_some(())).await;
        let results = published.results.into_iter();
        let request = RedeliverRequest {
            event_ids: results.map(|result| result.event_id).collect(),
            ..RedeliverRequest::default()
        };
        let log = hub.client(&hub.first_tenant().admin_key);
        log.event_bus().redeliver(request).await.unwrap();
        let mut again = ids_of(&consumer.events(5).await);
        again.sort();
        assert_eq!(again, names);
    }

    /// Outpost: nobody was told of an event that matched no destination.
    async fn an_event_without_a_destination_is_in_the_log_and_says_so(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let published = psa.publish(vec![event("deal.won", "nobody's")]).await;
        let result = &published.results[0];
        assert_eq!(result.destinations, 0);
        let entry = admin(&hub).await.get(Asked::EventId(result.event_id.clone())).await.unwrap();
        assert_eq!((entry.deliveries.len(), entry.delivery_count), (0, 0));
    }
}
