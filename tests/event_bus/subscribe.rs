//! Subscribe: where a reader starts, and what it asks for.

use hub_client::{Data, start_at::At};
use hub_proto::hub::core::v1::ClosingReason;
use hub_proto::hub::event_bus::v1::subscribe_response::Frame;
use hub_proto::hub::event_bus::v1::{PublishRequest, SubscribeRequest};
use prost_types::Timestamp;

use super::{
    HEARTBEAT, Product, batch, earliest, event, from, ids, large_ticket, numbered, of_types,
    sequences, text, ticket, with_attributes,
};
use crate::support::{Backend, TestHub};

fn live() -> SubscribeRequest {
    SubscribeRequest::default()
}

both_databases! {
    async fn a_reader_that_names_no_start_sees_what_comes_from_now_on(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish(vec![ticket("old")]).await;
        let mut reader = portal.subscribe(live()).await;
        let Frame::Opened(opened) = reader.next().await else { panic!("opened comes first") };
        assert_eq!(opened.head_sequence, 1);
        assert!(opened.session_id.starts_with("ses_"));
        assert_eq!(opened.heartbeat_interval.unwrap().seconds, HEARTBEAT.as_secs() as i64);
        let Frame::CaughtUp(caught_up) = reader.next().await else { panic!("nothing is old") };
        assert_eq!(caught_up.sequence, 1);
        psa.publish(vec![ticket("new")]).await;
        let Frame::Events(batch) = reader.next().await else { panic!("the event") };
        assert_eq!(ids(&batch.events), ["new"]);
        assert_eq!(portal.dump_ids(At::Cursor(opened.cursor)).await, ["new"]);
    }

    async fn a_reader_starts_at_a_cursor_a_sequence_or_the_oldest_event(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let published = psa.publish(vec![ticket("a"), ticket("b")]).await;
        psa.publish_each(numbered("c", 3)).await;
        let all = ["a", "b", "c-0", "c-1", "c-2"];
        assert_eq!(portal.dump_ids(earliest()).await, all);
        assert_eq!(portal.dump_ids(At::AfterSequence(0)).await, all);
        assert_eq!(portal.dump_ids(At::AfterSequence(1)).await, all[1..]);
        assert_eq!(portal.dump_ids(At::AfterSequence(5)).await, [""; 0]);
        // Publish's cursor fits any filter.
        let after = At::Cursor(published.cursor.clone());
        assert_eq!(portal.dump_ids(after).await, all[2..]);
        let filtered = SubscribeRequest {
            filter: Some(of_types(&["ticket.*"])),
            stop_when_caught_up: true,
            ..from(At::Cursor(published.cursor))
        };
        let (events, closing) = portal.subscribe(filtered.clone()).await.rest().await;
        assert_eq!(ids(&events), all[2..]);
        psa.publish(vec![ticket("d")]).await;
        let start = from(At::Cursor(closing.cursor)).start;
        let resumed = SubscribeRequest { start, ..filtered };
        assert_eq!(ids(&portal.subscribe(resumed).await.rest().await.0), ["d"]);
    }

    async fn every_cursor_of_a_stream_resumes_right_after_it(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish(vec![ticket("first")]).await;
        // Larger than a frame, and to be cut anywhere: frames end within it.
        let events: Vec<_> =
            numbered("n", 400).iter().map(|id| large_ticket(id, 2000)).collect();
        let request = PublishRequest {
            independent: true,
            ..batch(events)
        };
        psa.send(request).await.unwrap();
        let all = portal.dump_ids(earliest()).await;
        assert_eq!(all.len(), 401);
        let request = SubscribeRequest { stop_when_caught_up: true, ..from(earliest()) };
        let mut reader = portal.subscribe(request).await;
        let (mut seen, mut cursors) = (0, Vec::new());
        while let Some(frame) = reader.try_next().await.unwrap() {
            match frame {
                Frame::Opened(opened) => cursors.push((seen, opened.cursor)),
                Frame::Events(batch) => {
                    seen += batch.events.len();
                    cursors.push((seen, batch.cursor));
                }
                Frame::CaughtUp(caught_up) => cursors.push((seen, caught_up.cursor)),
                Frame::Closing(closing) => cursors.push((seen, closing.cursor)),
                other => panic!("{other:?}"),
            }
        }
        assert!(cursors.len() > 5, "{} frames", cursors.len());
        for (seen, cursor) in cursors {
            assert_eq!(portal.dump_ids(At::Cursor(cursor)).await, all[seen..], "after {seen}");
        }
    }

    async fn a_reader_starts_at_a_time(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let mut times = Vec::new();
        for id in numbered("n", 20) {
            hub.clock.advance(HEARTBEAT);
            times.push(hub.clock.now());
            psa.publish(vec![ticket(&format!("{id} a")), ticket(&format!("{id} b"))]).await;
        }
        let at = |micros: i64| {
            At::Time(Timestamp {
                seconds: micros / 1_000_000,
                nanos: (micros % 1_000_000) as i32 * 1000,
            })
        };
        for (number, time) in times.iter().enumerate() {
            let here = 2 * number;
            for (from, first) in [(*time, here), (time - 1, here), (time + 1, here + 2)] {
                let expected: Vec<u64> = (first as u64 + 1..=40).collect();
                assert_eq!(sequences(&portal.dump(at(from)).await), expected, "{number} {from}");
            }
        }
        assert_eq!(portal.dump(at(0)).await.len(), 40);
        assert_eq!(portal.dump(at(times[19] + 86_400_000_000)).await, []);
    }

    async fn a_reader_of_a_log_that_is_empty_waits_for_the_first_event(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let starts = [earliest(), At::AfterSequence(0), At::Time(Timestamp::default())];
        let mut readers = Vec::new();
        for at in starts {
            let mut reader = portal.subscribe(from(at)).await;
            assert_eq!(reader.caught_up().await, 0);
            readers.push(reader);
        }
        psa.publish(vec![ticket("first")]).await;
        for mut reader in readers {
            assert_eq!(sequences(&reader.events(1).await), [1]);
        }
    }

    async fn max_events_ends_the_stream_exactly_there_even_within_a_batch(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish(vec![ticket("a"), ticket("b"), ticket("c"), ticket("d")]).await;
        let request = SubscribeRequest { max_events: 3, ..from(earliest()) };
        let (events, closing) = portal.subscribe(request).await.rest().await;
        assert_eq!(ids(&events), ["a", "b", "c"]);
        assert_eq!(closing.reason(), ClosingReason::Done);
        assert_eq!(closing.reconnect_after, None, "there is nothing to reconnect for");
        assert_eq!(portal.dump_ids(At::Cursor(closing.cursor)).await, ["d"]);
        // It counts what comes live too.
        let request = SubscribeRequest { max_events: 2, ..live() };
        let mut reader = portal.subscribe(request).await;
        reader.caught_up().await;
        psa.publish_each(numbered("e", 3)).await;
        assert_eq!(ids(&reader.rest().await.0), ["e-0", "e-1"]);
    }

    async fn stop_when_caught_up_dumps_the_log_and_ends(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish_each(numbered("n", 5)).await;
        let request = SubscribeRequest { stop_when_caught_up: true, ..from(earliest()) };
        let (events, closing) = portal.subscribe(request).await.rest().await;
        assert_eq!(ids(&events), numbered("n", 5));
        assert_eq!(closing.reason(), ClosingReason::Done);
        let none = SubscribeRequest { stop_when_caught_up: true, ..live() };
        assert_eq!(portal.subscribe(none).await.rest().await.0, []);
    }

    async fn omit_data_leaves_everything_else_as_it_was(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let mut full = with_attributes(ticket("a"), &[("subject", text("ticket/1"))]);
        full.data = Some(Data::TextData("secret".into()));
        psa.publish(vec![full.clone(), large_ticket("b", 5)]).await;
        let request = SubscribeRequest {
            omit_data: true,
            stop_when_caught_up: true,
            ..from(earliest())
        };
        let lean = portal.subscribe(request).await.rest().await.0;
        full.data = None;
        assert_eq!(lean[0].event.as_ref(), Some(&full));
        let whole = portal.dump(earliest()).await;
        assert_eq!(sequences(&lean), sequences(&whole));
        assert_eq!(lean[1].event_id, whole[1].event_id);
    }

    async fn all_products_shows_everything_to_those_with_the_scope(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let auditor = Product::auditor(&hub).await;
        psa.publish(vec![ticket("a"), event("unheard.of", "b"), event("company.updated", "c")])
            .await;
        let request = SubscribeRequest {
            all_products: true,
            stop_when_caught_up: true,
            ..from(earliest())
        };
        let error = portal.try_subscribe(request.clone()).await.err().expect("no scope");
        assert_eq!(error.reason(), Some("SCOPE_MISSING"));
        assert_eq!(error.metadata()["missingScope"], "hub:events.read_all");
        let all = auditor.subscribe(request.clone()).await.rest().await.0;
        assert_eq!(ids(&all), ["a", "b", "c"]);
        let filtered =
            SubscribeRequest { filter: Some(of_types(&["unheard.*"])), ..request.clone() };
        assert_eq!(ids(&auditor.subscribe(filtered).await.rest().await.0), ["b"]);
        assert_eq!(auditor.dump_ids(earliest()).await, ["c"], "and only if asked");
    }
}
