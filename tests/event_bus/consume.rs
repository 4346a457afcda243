//! Consume: leased events down, acks up.

use std::time::Duration;

use hub_proto::hub::core::v1::ClosingReason;
use hub_proto::hub::event_bus::v1::consume_response::Frame;
use hub_proto::hub::event_bus::v1::{
    AckBatch, AckOutcome, ConsumeOpen, Credit, LeasedEvent, NackAction,
};

use super::consumer::{ids_of, junk, nack, of_key, open};
use super::{HEARTBEAT, Product, event, large_ticket, numbered, rescope, ticket};
use crate::support::{Backend, TestHub};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A hub whose time stands still, with jitter pinned to 0.
async fn still(backend: Backend) -> TestHub {
    TestHub::options(backend)
        .manual_clock()
        .limits(|limits| {
            limits.retry_jitter_percent = 0;
            limits.stream_age_max = MINUTE * 10_000;
        })
        .start()
        .await
}

async fn pair(hub: &TestHub) -> (Product, Product) {
    (
        Product::new(hub, "psa").await,
        Product::new(hub, "portal").await,
    )
}

fn caught_up(frame: &Frame) -> Option<u64> {
    match frame {
        Frame::CaughtUp(caught_up) => Some(caught_up.sequence),
        _ => None,
    }
}

/// Events, or nothing if all is caught up.
fn events_or_caught_up(frame: &Frame) -> Option<Option<Vec<LeasedEvent>>> {
    match frame {
        Frame::Events(leased) => Some(Some(leased.events.clone())),
        Frame::CaughtUp(_) => Some(None),
        _ => None,
    }
}

both_databases! {
    async fn what_is_acked_is_delivered_once_also_after_a_restart(backend: Backend) {
        let mut hub = TestHub::start(backend).await;
        let (psa, portal) = pair(&hub).await;
        psa.publish_each(numbered("t", 3)).await;
        let confirmed = ConsumeOpen { confirm_acks: true, ..open("portal", 100) };
        let mut consumer = portal.consume(confirmed).await;
        let events = consumer.events(3).await;
        assert_eq!(ids_of(&events), ["t-0", "t-1", "t-2"]);
        let first = &events[0];
        assert_eq!((first.attempt, first.redelivery), (1, false));
        assert_eq!(first.record.as_ref().unwrap().sequence, 1);
        assert_eq!(first.record.as_ref().unwrap().product, "psa");
        consumer.ack(&events[..2]).await;
        consumer.results().await;
        drop(consumer);
        hub.restart().await;
        let (psa, portal) = pair(&hub).await;
        psa.publish(vec![ticket("t-3")]).await;
        let mut consumer = portal.consume(open("portal", 100)).await;
        let again = consumer.events(2).await;
        assert_eq!(ids_of(&again), ["t-2", "t-3"]);
        assert_eq!(again[0].attempt, 1, "a lost connection costs no attempt");
    }

    async fn only_what_is_routed_to_the_product_comes(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        let mut consumer = portal.consume(open("portal", 100)).await;
        psa.publish(vec![event("unheard.of", "x"), ticket("t"), event("ticket.closed", "y")])
            .await;
        psa.publish(vec![ticket("u")]).await;
        assert_eq!(ids_of(&consumer.events(2).await), ["t", "u"]);
    }

    async fn an_unknown_subscription_is_named(hub: TestHub) {
        let (_, portal) = pair(&hub).await;
        let refused = portal.try_consume(open("nothing", 1)).await.error().await;
        assert_eq!(refused.reason(), Some("SUBSCRIPTION_NOT_FOUND"));
    }

    async fn retries_come_after_1_5_30_minutes_and_2_hours_and_then_it_failed(backend: Backend) {
        let hub = still(backend).await;
        let (psa, portal) = pair(&hub).await;
        psa.publish(vec![ticket("t")]).await;
        let mut consumer = portal.consume(open("portal", 100)).await;
        for (attempt, minutes) in [(1, 1), (2, 5), (3, 30), (4, 120)] {
            let event = consumer.events(1).await.remove(0);
            assert_eq!(event.attempt, attempt);
            if attempt > 1 {
                assert_eq!(event.previous_error, "refused");
            }
            consumer.nack(&event, NackAction::Retry, "refused").await;
            // Its fate is known once a second nack is refused.
            consumer.nack(&event, NackAction::Retry, "late").await;
            consumer.results().await;
            hub.clock.advance(MINUTE * minutes - SECOND);
            consumer.nothing().await;
            hub.clock.advance(SECOND);
        }
        let event = consumer.events(1).await.remove(0);
        assert_eq!(event.attempt, 5);
        consumer.nack(&event, NackAction::Retry, "refused again").await;
        consumer.frame(caught_up).await;
        hub.clock.advance(MINUTE * 1000);
        consumer.nothing().await;
    }

    async fn a_nack_may_say_when_to_try_again(backend: Backend) {
        let hub = still(backend).await;
        let (psa, portal) = pair(&hub).await;
        psa.publish(vec![ticket("t")]).await;
        let mut consumer = portal.consume(open("portal", 100)).await;
        let event = consumer.events(1).await.remove(0);
        let mut later = nack(&event, NackAction::Retry, "busy");
        later.retry_after = Some(prost_types::Duration { seconds: 7, nanos: 0 });
        let acks = AckBatch { nack: vec![later.clone()], ..AckBatch::default() };
        consumer.acks(acks.clone()).await;
        consumer.acks(acks).await;
        consumer.results().await;
        hub.clock.advance(SECOND * 6);
        consumer.nothing().await;
        hub.clock.advance(SECOND);
        assert_eq!(consumer.events(1).await[0].attempt, 2);
    }

    async fn events_of_a_key_come_one_after_the_other_and_others_flow(backend: Backend) {
        let hub = still(backend).await;
        let (psa, portal) = pair(&hub).await;
        let events = ["a1", "a2", "b1", "a3", "b2"];
        for id in events {
            psa.publish(vec![of_key(id, &id[..1])]).await;
        }
        let mut consumer = portal.consume(open("portal", 100)).await;
        let first = consumer.events(2).await;
        assert_eq!(ids_of(&first), ["a1", "b1"]);
        consumer.nothing().await;
        consumer.nack(&first[0], NackAction::Retry, "refused").await;
        consumer.ack(&first[1..]).await;
        let next = consumer.events(1).await;
        assert_eq!(ids_of(&next), ["b2"]);
        consumer.ack(&next).await;
        consumer.nothing().await;
        hub.clock.advance(MINUTE);
        for id in ["a1", "a2", "a3"] {
            let event = consumer.events(1).await;
            assert_eq!(ids_of(&event), [id]);
            consumer.ack(&event).await;
        }
    }

    async fn credit_bounds_what_is_outstanding_and_acks_free_it(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        psa.publish_each(numbered("t", 5)).await;
        let mut consumer = portal.consume(open("portal", 2)).await;
        let events = consumer.events(2).await;
        consumer.nothing().await;
        consumer.ack(&events[..1]).await;
        let third = consumer.events(1).await;
        assert_eq!(ids_of(&third), ["t-2"]);
        consumer.credit(0).await;
        consumer.ack(&events[1..]).await;
        consumer.ack(&third).await;
        consumer.nothing().await;
        consumer.credit(1).await;
        assert_eq!(ids_of(&consumer.events(1).await), ["t-3"]);
    }

    async fn credit_in_bytes_bounds_what_is_outstanding_and_acks_free_it(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        let events = numbered("t", 6);
        psa.publish(events.iter().map(|id| large_ticket(id, 10_000)).collect()).await;
        // Two fit, and no third one.
        let credit = Some(Credit { events: 100, bytes: 25_000 });
        let mut consumer = portal.consume(ConsumeOpen { credit, ..open("portal", 0) }).await;
        let first = consumer.events(2).await;
        consumer.nothing().await;
        consumer.ack(&first[..1]).await;
        let third = consumer.events(1).await;
        consumer.nothing().await;
        // Less credit than one event has bytes: one goes alone, once nothing is outstanding.
        consumer.credit_in_bytes(100, 100).await;
        consumer.ack(&first[1..]).await;
        consumer.nothing().await;
        let mut outstanding = third;
        for next in ["t-3", "t-4", "t-5"] {
            consumer.ack(&outstanding).await;
            outstanding = consumer.events(1).await;
            assert_eq!(ids_of(&outstanding), [next]);
            consumer.nothing().await;
        }
    }

    async fn a_lease_that_ends_is_a_failed_attempt(backend: Backend) {
        let hub = still(backend).await;
        let (psa, portal) = pair(&hub).await;
        psa.publish(vec![ticket("t")]).await;
        let mut consumer = portal.consume(open("portal", 1)).await;
        let event = consumer.events(1).await.remove(0);
        hub.clock.advance(SECOND * 29);
        consumer.extend(&event, 60).await;
        // Answered in order: the extension was applied.
        consumer.ack(&[junk()]).await;
        consumer.results().await;
        hub.clock.advance(SECOND * 59);
        consumer.nothing().await;
        hub.clock.advance(SECOND * 2);
        consumer.nothing().await;
        hub.clock.advance(MINUTE);
        let again = consumer.events(1).await.remove(0);
        assert_eq!((again.attempt, &*again.previous_error), (2, "the lease expired"));
        consumer.ack(&[event]).await;
        assert_eq!(consumer.results().await[0].outcome(), AckOutcome::LeaseExpired);
        consumer.ack(std::slice::from_ref(&again)).await;
        consumer.ack(&[again]).await;
        assert_eq!(consumer.results().await[0].outcome(), AckOutcome::AlreadySettled);
        consumer.ack(&[junk()]).await;
        assert_eq!(consumer.results().await[0].outcome(), AckOutcome::Unknown);
    }

    async fn confirmed_acks_are_answered_once_they_are_on_disk(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        psa.publish_each(numbered("t", 2)).await;
        let mut request = open("portal", 100);
        request.confirm_acks = true;
        let mut consumer = portal.consume(request).await;
        let events = consumer.events(2).await;
        consumer.acks(AckBatch {
            ack: vec![events[0].lease_id.clone()],
            nack: vec![nack(&events[1], NackAction::Skip, "not ours")],
            ..AckBatch::default()
        }).await;
        let results = consumer.results().await;
        let outcomes: Vec<_> = results.iter().map(|result| result.outcome()).collect();
        assert_eq!(outcomes, [AckOutcome::Ok, AckOutcome::Ok]);
        assert_eq!(results[0].lease_id, events[0].lease_id);
    }

    async fn released_events_go_to_another_member_at_once(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        let mut one = portal.consume(open("portal", 1)).await;
        psa.publish(vec![ticket("t")]).await;
        let event = one.events(1).await.remove(0);
        let mut two = portal.consume(open("portal", 1)).await;
        one.nack(&event, NackAction::Release, "").await;
        let again = two.events(1).await.remove(0);
        assert_eq!(ids_of(std::slice::from_ref(&again)), ["t"]);
        assert_eq!(again.attempt, 1);
    }

    async fn caught_up_is_told_when_everything_is_settled(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        let mut consumer = portal.consume(open("portal", 100)).await;
        assert_eq!(consumer.frame(caught_up).await, 0);
        drop(consumer);
        psa.publish_each(numbered("t", 2)).await;
        let mut consumer = portal.consume(open("portal", 100)).await;
        let first = consumer.frame(events_or_caught_up).await;
        assert_eq!(first.as_deref().map(ids_of), Some(vec!["t-0".to_owned(), "t-1".to_owned()]));
        consumer.ack(&first.unwrap()).await;
        assert_eq!(consumer.frame(events_or_caught_up).await, None);
    }

    async fn caught_up_is_told_again_after_more_came_than_could_be_taken(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        let mut consumer = portal.consume(open("portal", 1)).await;
        consumer.frame(caught_up).await;
        for round in 0..2 {
            psa.publish(numbered(&format!("t{round}"), 2).iter().map(|id| ticket(id)).collect())
                .await;
            for _ in 0..2 {
                let event = consumer.frame(events_or_caught_up).await.expect("an event");
                consumer.ack(&event).await;
            }
            assert_eq!(consumer.frame(events_or_caught_up).await, None);
        }
    }

    async fn a_draining_hub_closes_the_stream(hub: TestHub) {
        let (_, portal) = pair(&hub).await;
        let mut consumer = portal.consume(open("portal", 100)).await;
        let stopping = hub.stop();
        let closing = consumer.frame(|frame| match frame {
            Frame::Closing(closing) => Some(closing.clone()),
            _ => None,
        });
        let (closing, ()) = tokio::join!(closing, stopping);
        assert_eq!(closing.reason(), ClosingReason::Draining);
    }

    async fn a_client_that_has_ended_its_half_gets_on_until_it_wants_nothing(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        let mut watcher = portal.consume(open("portal", 1)).await;
        watcher.end_half();
        psa.publish_each(numbered("t", 1)).await;
        assert_eq!(ids_of(&watcher.events(1).await), ["t-0"]);
        drop(watcher);
        let mut consumer = portal.consume(open("portal", 1)).await;
        let events = consumer.events(1).await;
        consumer.credit(0).await;
        consumer.ack(&events).await;
        consumer.end_half();
        let closing = consumer.frame(|frame| match frame {
            Frame::Closing(closing) => Some(closing.clone()),
            _ => None,
        });
        let closing = closing.await;
        assert_eq!(closing.reason(), ClosingReason::Done);
        assert_eq!(closing.reconnect_after, None);
        assert!(consumer.try_next_whole().await.unwrap().is_none());
    }

    async fn the_first_frame_opens_and_no_other(hub: TestHub) {
        let (_, portal) = pair(&hub).await;
        let consumer = portal.consume(open("portal", 1)).await;
        consumer.open_again().await;
        let refused = consumer.error().await;
        assert_eq!(refused.reason(), Some("FIELD_INVALID"));
    }

    async fn a_key_that_may_not_read_any_more_ends_its_consumer(backend: Backend) {
        let hub = still(backend).await;
        let (psa, portal) = pair(&hub).await;
        psa.publish(vec![ticket("t")]).await;
        let mut consumer = portal.consume(open("portal", 100)).await;
        let events = consumer.events(1).await;
        consumer.ack(&events).await;
        consumer.frame(caught_up).await;
        // What the stream does not need it may lose.
        rescope(&hub, &portal.key, &["hub:events.read"]).await;
        hub.clock.advance(HEARTBEAT);
        consumer.frame(|frame| matches!(frame, Frame::Progress(_)).then_some(())).await;
        rescope(&hub, &portal.key, &["hub:events.publish"]).await;
        hub.clock.advance(HEARTBEAT);
        let error = consumer.error().await;
        assert_eq!(error.reason(), Some("SCOPE_MISSING"));
        assert_eq!(error.metadata()["missingScope"], "hub:events.read");
    }
}
