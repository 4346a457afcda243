//! How a Subscribe stream ends: it says why, and where to go on.

use hub_client::start_at::At;
use hub_proto::hub::core::v1::ClosingReason;
use hub_proto::hub::event_bus::v1::subscribe_response::Frame;
use hub_proto::hub::event_bus::v1::{PublishRequest, SubscribeRequest};
use tonic::Code;

use super::{
    HEARTBEAT, Product, batch, earliest, from, ids, large_ticket, numbered, rescope, revoke, ticket,
};
use crate::support::{Backend, TestHub};

/// More than a window of HTTP/2 takes: 600 events, 6 MB.
pub(super) async fn publish_large(psa: &Product) {
    for part in 0..6 {
        let events = numbered(&part.to_string(), 100);
        let events = events.iter().map(|id| large_ticket(id, 10_000)).collect();
        let request = PublishRequest {
            independent: true,
            ..batch(events)
        };
        psa.send(request).await.unwrap();
    }
}

/// Time passes, more than a reader may take nothing and less than twice that; others are served.
async fn takes_nothing(hub: &TestHub, portal: &Product) {
    for _ in 0..6 {
        assert_eq!(portal.dump_ids(At::AfterSequence(599)).await, ["5-99"]);
        hub.clock.advance(hub.core.limits.slow_reader_timeout / 4);
    }
}

both_databases! {
    async fn a_reader_that_takes_nothing_for_too_long_is_closed_and_can_resume(backend: Backend) {
        // What is under way stays small, so that Closing can wait behind it.
        let options = TestHub::options(backend).manual_clock();
        let hub = options.limits(|limits| limits.page_bytes_max = 64 << 10).start().await;
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        publish_large(&psa).await;
        let mut reader = portal.subscribe(from(earliest())).await;
        assert!(matches!(reader.next().await, Frame::Opened(_)));
        takes_nothing(&hub, &portal).await;
        let (seen, closing) = reader.rest().await;
        assert_eq!(closing.reason(), ClosingReason::TooSlow);
        assert!(closing.reconnect_after.is_some());
        assert!(seen.len() < 600, "it was never slow");
        let left = portal.dump_ids(At::Cursor(closing.cursor)).await;
        assert_eq!(ids(&seen).into_iter().chain(left).count(), 600);
    }

    async fn a_reader_that_takes_nothing_with_much_under_way_is_cut_off_and_can_resume(
        backend: Backend,
    ) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        publish_large(&psa).await;
        let mut reader = portal.subscribe(from(earliest())).await;
        takes_nothing(&hub, &portal).await;
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        let error = loop {
            match reader.try_next().await {
                Ok(Some(Frame::Opened(_))) => {}
                Ok(Some(Frame::Events(batch))) => {
                    seen.extend(batch.events);
                    cursor = batch.cursor;
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), Code::Cancelled, "{error}");
        assert!(error.is_retryable());
        let left = portal.dump_ids(At::Cursor(cursor)).await;
        assert_eq!(ids(&seen).into_iter().chain(left).count(), 600);
    }

    async fn a_stream_of_full_age_asks_to_reconnect(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let mut reader = portal.subscribe(SubscribeRequest::default()).await;
        reader.caught_up().await;
        // Not before its time.
        let heartbeats = hub.core.limits.stream_age_max.as_secs() / HEARTBEAT.as_secs();
        for _ in 0..heartbeats - 1 {
            hub.clock.advance(HEARTBEAT);
            assert!(matches!(reader.next().await, Frame::Progress(_)));
        }
        psa.publish(vec![ticket("a")]).await;
        assert_eq!(ids(&reader.events(1).await), ["a"]);
        hub.clock.advance(hub.core.limits.stream_age_max + HEARTBEAT);
        psa.publish(vec![ticket("b")]).await;
        let (seen, closing) = reader.rest().await;
        assert_eq!(closing.reason(), ClosingReason::MaxAge);
        assert!(closing.reconnect_after.is_some());
        let left = portal.dump_ids(At::Cursor(closing.cursor)).await;
        let all: Vec<String> = ids(&seen).into_iter().chain(left).collect();
        assert_eq!(all, ["b"], "seen or left, once");
    }

    async fn a_stopping_server_closes_streams_that_still_have_much_to_send(mut hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        publish_large(&psa).await;
        let mut reader = portal.subscribe(from(earliest())).await;
        assert!(matches!(reader.next().await, Frame::Opened(_)));
        let ((seen, closing), ()) = tokio::join!(reader.rest(), hub.stop());
        assert_eq!(closing.reason(), ClosingReason::Draining);
        assert!(closing.reconnect_after.is_some());
        hub.restart().await;
        let portal = Product { bus: hub.client(&portal.key).event_bus(), key: portal.key };
        let left = portal.dump_ids(At::Cursor(closing.cursor)).await;
        assert_eq!(seen.len() + left.len(), 600);
    }

    async fn a_revoked_key_ends_a_quiet_stream_at_the_next_heartbeat(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let portal = Product::new(&hub, "portal").await;
        let mut reader = portal.subscribe(SubscribeRequest::default()).await;
        reader.caught_up().await;
        hub.clock.advance(HEARTBEAT);
        assert!(matches!(reader.next().await, Frame::Progress(_)));
        revoke(&hub, &portal.key).await;
        hub.clock.advance(HEARTBEAT);
        let error = reader.try_next().await.unwrap_err();
        assert_eq!(error.reason(), Some("KEY_REVOKED"));
    }

    async fn a_key_that_loses_the_scope_of_a_stream_ends_it_at_the_next_heartbeat(
        backend: Backend,
    ) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let portal = Product::new(&hub, "portal").await;
        let mut reader = portal.subscribe(SubscribeRequest::default()).await;
        reader.caught_up().await;
        // What the stream does not need it may lose.
        rescope(&hub, &portal.key, &["hub:events.read"]).await;
        hub.clock.advance(HEARTBEAT);
        assert!(matches!(reader.next().await, Frame::Progress(_)));
        rescope(&hub, &portal.key, &["hub:events.publish"]).await;
        hub.clock.advance(HEARTBEAT);
        let error = reader.try_next().await.unwrap_err();
        assert_eq!(error.reason(), Some("SCOPE_MISSING"));
        assert_eq!(error.metadata()["missingScope"], "hub:events.read");
    }

    async fn a_reader_of_all_products_ends_when_its_key_may_not_read_all_any_more(
        backend: Backend,
    ) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let auditor = Product::auditor(&hub).await;
        let all = SubscribeRequest { all_products: true, ..SubscribeRequest::default() };
        let mut reader = auditor.subscribe(all).await;
        reader.caught_up().await;
        rescope(&hub, &auditor.key, &["hub:events.read"]).await;
        hub.clock.advance(HEARTBEAT);
        let error = reader.try_next().await.unwrap_err();
        assert_eq!(error.metadata()["missingScope"], "hub:events.read_all");
    }

    async fn a_revoked_key_ends_a_stream_that_is_never_quiet(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let mut reader = portal.subscribe(SubscribeRequest::default()).await;
        reader.caught_up().await;
        revoke(&hub, &portal.key).await;
        // An event every second: there is never a heartbeat.
        let mut seconds = 0;
        let error = loop {
            assert!(seconds < 30, "a revoked key goes on reading");
            hub.clock.advance(HEARTBEAT / 10);
            seconds += 1;
            psa.publish(vec![ticket(&seconds.to_string())]).await;
            match reader.try_next().await {
                Ok(Some(Frame::Events(_))) => {}
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason(), Some("KEY_REVOKED"));
        assert!(seconds <= 12, "after {seconds} s");
    }
}
