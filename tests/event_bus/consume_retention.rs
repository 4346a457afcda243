//! What durable subscriptions are told of events that retention removes.

use std::time::Duration;

use hub_client::start_at::At;
use hub_core::storage::Sql;
use hub_proto::hub::core::v1::{Gap, GapReason};
use hub_proto::hub::event_bus::v1::consume_response::Frame;
use hub_proto::hub::event_bus::v1::subscribe_response::Frame as Read;
use hub_proto::hub::event_bus::v1::{
    AckOutcome, ConsumeOpen, EventFilter, NackAction, SubscribeRequest, SubscriptionState,
};

use super::consumer::{Consumer, ids_of, of_key, open};
use super::owner::{Owner, becomes, named};
use super::retention::removed;
use super::{Product, earliest, event, from, ids, numbered, of_types, ticket};
use crate::support::{Backend, TestHub};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

const KEEP_AN_HOUR: Sql = Sql::same("update tenants set retention = 3600000000");

/// A hub that keeps events for an hour, and streams for longer.
async fn hub_of_an_hour(backend: Backend) -> TestHub {
    let options = TestHub::options(backend).manual_clock();
    let hub = options
        .limits(|limits| limits.stream_age_max = 365 * DAY)
        .start()
        .await;
    let mut tx = hub.core.db.begin().await.unwrap();
    tx.query(KEEP_AN_HOUR).execute().await.unwrap();
    tx.commit().await.unwrap();
    hub
}

/// Waits until retention has removed everything up to a sequence.
async fn remove(hub: &TestHub, seq: u64) {
    hub.core.journal.write_listing().await.unwrap();
    removed(hub, seq).await;
}

/// The next gap; no event comes before it.
async fn gap(consumer: &mut Consumer) -> Gap {
    consumer
        .frame(|frame| match frame {
            Frame::Gap(gap) => Some(gap.clone()),
            Frame::Events(events) => panic!("{events:?} before the gap"),
            _ => None,
        })
        .await
}

/// A consumer that is told what became of its acks.
fn confirming(subscription: &str) -> ConsumeOpen {
    ConsumeOpen {
        confirm_acks: true,
        ..open(subscription, 10)
    }
}

both_databases! {
    async fn what_was_leased_when_retention_passed_it_is_a_gap_once_its_lease_ends(
        backend: Backend,
    ) {
        let hub = hub_of_an_hour(backend).await;
        let psa = Product::new(&hub, "psa").await;
        let portal = Product::new(&hub, "portal").await;
        for (id, key) in [("acked", "1"), ("nacked", "2"), ("kept", "3")] {
            psa.publish(vec![of_key(id, key)]).await;
        }
        hub.clock.advance(30 * MINUTE);
        let mut consumer = portal.consume(confirming("portal")).await;
        let leased = consumer.events(3).await;
        for one in &leased {
            consumer.extend(one, 3600).await;
            consumer.results().await;
        }
        psa.publish(vec![ticket("later")]).await;
        let later = consumer.events(1).await;
        consumer.ack(&later).await;
        consumer.results().await;
        hub.clock.advance(31 * MINUTE);
        remove(&hub, 3).await;
        // Who has it may settle it.
        consumer.ack(&leased[..1]).await;
        assert_eq!(consumer.results().await[0].outcome(), AckOutcome::Ok);
        consumer.nack(&leased[1], NackAction::Retry, "busy").await;
        let told = gap(&mut consumer).await;
        assert_eq!((told.from_sequence, told.to_sequence), (2, 2));
        assert_eq!(told.reason(), GapReason::Retention);
        // The lease ends after an hour.
        hub.clock.advance(30 * MINUTE);
        let told = gap(&mut consumer).await;
        assert_eq!((told.from_sequence, told.to_sequence), (3, 3));
        assert_eq!(told.reason(), GapReason::Retention);
        psa.publish(vec![ticket("next")]).await;
        assert_eq!(ids_of(&consumer.events(1).await), ["next"], "and nothing else comes");
    }

    async fn retention_that_passes_the_cursor_of_a_quiet_filter_loses_nothing(backend: Backend) {
        let mut hub = hub_of_an_hour(backend).await;
        let psa = Product::new(&hub, "psa").await;
        let (crm, owner) = (Product::new(&hub, "crm").await, Owner::new(&hub, "crm").await);
        let quiet: EventFilter = of_types(&["quote.sent"]);
        let id = owner.create(named("quiet", quiet.clone())).await.subscription_id;
        let mut consumer = crm.consume(open("quiet", 10)).await;
        let mut last = 0;
        for id in numbered("d", 20) {
            last = psa.publish(vec![event("deal.won", &id)]).await.results[0].sequence;
        }
        // It has looked at all of them, though none was for it.
        becomes(&owner, &id, SubscriptionState::Live).await;
        hub.clock.advance(61 * MINUTE);
        remove(&hub, last).await;
        psa.publish(vec![event("quote.sent", "first")]).await;
        let first = consumer.events(1).await;
        assert_eq!(ids_of(&first), ["first"]);
        consumer.ack(&first).await;
        for id in numbered("e", 20) {
            last = psa.publish(vec![event("deal.won", &id)]).await.results[0].sequence;
        }
        becomes(&owner, &id, SubscriptionState::Live).await;
        drop(consumer);
        // Nor does who goes on where another owner was.
        hub.clock.advance(61 * MINUTE);
        remove(&hub, last).await;
        hub.restart().await;
        let again = |product: &Product| Product {
            bus: hub.client(&product.key).event_bus(),
            key: product.key.clone(),
        };
        let mut consumer = again(&crm).consume(open("quiet", 10)).await;
        again(&psa).publish(vec![event("quote.sent", "second")]).await;
        assert_eq!(ids_of(&consumer.events(1).await), ["second"]);
    }

    async fn a_quiet_reader_has_a_cursor_that_retention_does_not_pass(backend: Backend) {
        let hub = hub_of_an_hour(backend).await;
        let psa = Product::new(&hub, "psa").await;
        let crm = Product::new(&hub, "crm").await;
        let filter = Some(of_types(&["quote.sent"]));
        let request = SubscribeRequest { filter, ..from(earliest()) };
        let mut reader = crm.subscribe(request.clone()).await;
        let deals = numbered("d", 20);
        let deals = deals.iter().map(|id| event("deal.won", id)).collect();
        let last = psa.publish(deals).await.results[19].sequence;
        let cursor = loop {
            match reader.next().await {
                Read::Progress(progress) if progress.sequence >= last => break progress.cursor,
                Read::CaughtUp(caught_up) if caught_up.sequence >= last => break caught_up.cursor,
                Read::Gap(gap) => panic!("{gap:?}"),
                _ => hub.clock.advance(Duration::from_secs(8)),
            }
        };
        hub.clock.advance(61 * MINUTE);
        remove(&hub, last).await;
        psa.publish(vec![event("quote.sent", "first")]).await;
        assert_eq!(ids(&reader.events(1).await), ["first"]);
        let strict = SubscribeRequest {
            fail_on_gap: true,
            start: from(At::Cursor(cursor)).start,
            ..request
        };
        let mut resumed = crm.subscribe(strict).await;
        assert_eq!(ids(&resumed.events(1).await), ["first"]);
    }
}
