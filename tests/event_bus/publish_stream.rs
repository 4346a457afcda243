//! PublishStream: frames in, acknowledgements out.

use hub_client::proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest};
use hub_client::{CloudEvent, Error};
use hub_proto::hub::core::v1::ClosingReason;
use hub_proto::hub::event_bus::v1::publish_stream_response::Frame;
use hub_proto::hub::event_bus::v1::{
    PublishAck, PublishRejected, PublishStreamRequest, PublishStreamResponse, PublishWarning,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{HEARTBEAT, PATIENCE, Product, earliest, event, large_ticket, rescope, revoke, ticket};
use crate::support::{Backend, TestHub};

/// An open stream of a product.
struct Session {
    frames: Option<mpsc::Sender<PublishStreamRequest>>,
    answers: Streaming<PublishStreamResponse>,
}

impl Session {
    /// Opens it and takes the first two frames.
    async fn open(product: &Product) -> Session {
        let (frames, sent) = mpsc::channel(1000);
        let answer = product
            .bus
            .clone()
            .publish_stream(ReceiverStream::new(sent))
            .await;
        let answers = answer.unwrap().into_inner();
        let mut session = Session {
            frames: Some(frames),
            answers,
        };
        let Frame::Opened(opened) = session.next().await else {
            panic!("opened comes first")
        };
        assert!(opened.session_id.starts_with("ses_"));
        let Frame::Window(window) = session.next().await else {
            panic!("then the window")
        };
        assert_eq!(
            (window.max_unacked_frames, window.max_unacked_bytes),
            (64, 4 << 20)
        );
        session
    }

    async fn send(&self, frame: PublishStreamRequest) {
        self.frames.as_ref().unwrap().send(frame).await.unwrap();
    }

    /// Sends no more; what was sent is still answered.
    fn close(&mut self) {
        self.frames = None;
    }

    async fn try_next(&mut self) -> Result<Option<Frame>, Error> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        let answer = answer.expect("a stream is never silent for so long");
        answer
            .map(|frame| frame.map(|frame| frame.frame.unwrap()))
            .map_err(Error::from)
    }

    async fn next(&mut self) -> Frame {
        self.try_next().await.unwrap().expect("one more frame")
    }

    /// Everything up to the end of the stream, heartbeats aside.
    async fn rest(&mut self) -> (Vec<PublishAck>, Vec<PublishRejected>) {
        let (mut acks, mut rejected) = (Vec::new(), Vec::new());
        while let Some(frame) = self.try_next().await.unwrap() {
            match frame {
                Frame::Ack(ack) => acks.push(ack),
                Frame::Rejected(one) => rejected.push(one),
                Frame::Progress(_) => {}
                other => panic!("{other:?}"),
            }
        }
        (acks, rejected)
    }

    /// The error that ends the stream.
    async fn error(&mut self) -> Error {
        loop {
            match self.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without error"),
                Err(error) => return error,
            }
        }
    }
}

fn frame(number: u64, events: Vec<CloudEvent>) -> PublishStreamRequest {
    PublishStreamRequest {
        frame: number,
        events,
        ..PublishStreamRequest::default()
    }
}

/// Frames 1, 2, … of one ticket each.
fn frames(count: u64) -> impl Iterator<Item = PublishStreamRequest> {
    (1..=count).map(|number| frame(number, vec![ticket(&number.to_string())]))
}

both_databases! {
    async fn frames_are_stored_in_the_order_sent_and_each_result_is_told(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let mut session = Session::open(&psa).await;
        // More than may wait: the hub reads on as it answers.
        for frame in frames(300) {
            session.send(frame).await;
        }
        session.close();
        let (acks, rejected) = session.rest().await;
        assert_eq!(rejected, []);
        assert!(acks.is_sorted_by_key(|ack| ack.acked_through));
        assert_eq!(acks.last().unwrap().acked_through, 300);
        let results: Vec<_> = acks.iter().flat_map(|ack| &ack.results).collect();
        let sequences: Vec<u64> = results.iter().map(|result| result.sequence).collect();
        assert_eq!(sequences, (1..=300).collect::<Vec<u64>>());
        let expected: Vec<String> = (1..=300).map(|number| number.to_string()).collect();
        assert_eq!(portal.dump_ids(earliest()).await, expected);
        // A reader goes on after what an acknowledgement says.
        let middle = &acks[acks.len() / 2];
        let after = hub_client::start_at::At::Cursor(middle.cursor.clone());
        let left = portal.dump_ids(after).await;
        assert_eq!(left, expected[middle.acked_through as usize..]);
    }

    async fn more_bytes_than_the_window_are_taken_as_they_are_acknowledged(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let mut session = Session::open(&psa).await;
        for number in 1..=20 {
            let events = vec![large_ticket(&number.to_string(), 900_000)];
            session.send(frame(number, events)).await;
        }
        session.close();
        let (acks, _) = session.rest().await;
        assert_eq!(acks.last().unwrap().acked_through, 20);
    }

    async fn brief_results_tell_only_what_is_worth_telling(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        psa.publish(vec![ticket("old")]).await;
        let mut session = Session::open(&psa).await;
        let events = vec![
            ticket("plain"), ticket("old"), event("unheard.of", "b"), ticket(""), ticket("x"),
        ];
        let mut request = frame(1, events);
        (request.brief_results, request.independent) = (true, true);
        session.send(request).await;
        // Only the first frame says it.
        session.send(frame(2, vec![ticket("quiet")])).await;
        session.close();
        let (acks, _) = session.rest().await;
        let results: Vec<_> = acks.iter().flat_map(|ack| &ack.results).collect();
        assert_eq!(results.len(), 3, "{results:?}");
        assert!(results[0].duplicate);
        assert!(results[1].warnings.contains(&(PublishWarning::TypeUnknown as i32)));
        assert_eq!(results[2].error.as_ref().unwrap().reason, "EVENT_INVALID");
        assert_eq!(acks.last().unwrap().acked_through, 2);
    }

    async fn a_bad_frame_ends_the_stream_after_what_was_stored_before_it(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish(vec![ticket("used")]).await;
        for (bad, reason) in [
            (ticket(""), "EVENT_INVALID"),
            (large_ticket("used", 1), "EVENT_ID_REUSED"),
            (event("invoice.created", "x"), "EVENT_SOURCE_NOT_ALLOWED"),
        ] {
            let mut session = Session::open(&psa).await;
            session.send(frame(1, vec![ticket(reason)])).await;
            session.send(frame(2, vec![ticket("never"), bad])).await;
            let mut acked = 0;
            let error = loop {
                match session.try_next().await {
                    Ok(Some(Frame::Ack(ack))) => acked = ack.acked_through,
                    Ok(other) => panic!("{other:?}"),
                    Err(error) => break error,
                }
            };
            assert_eq!((acked, error.reason()), (1, Some(reason)));
            assert_eq!(error.metadata()["index"], "1");
        }
        let expected =
            ["used", "EVENT_INVALID", "EVENT_ID_REUSED", "EVENT_SOURCE_NOT_ALLOWED"];
        assert_eq!(portal.dump_ids(earliest()).await, expected);
    }

    async fn with_continue_on_error_a_bad_frame_is_rejected_and_later_ones_stored(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let mut session = Session::open(&psa).await;
        let mut first = frame(1, vec![ticket("a")]);
        first.continue_on_error = true;
        session.send(first).await;
        session.send(frame(2, vec![ticket("no"), ticket("")])).await;
        session.send(frame(3, vec![ticket("b")])).await;
        session.send(frame(4, vec![large_ticket("a", 1)])).await;
        session.send(frame(5, vec![ticket("c")])).await;
        session.close();
        let (acks, rejected) = session.rest().await;
        assert_eq!(acks.last().unwrap().acked_through, 5);
        let told: Vec<_> = rejected
            .iter()
            .map(|one| (one.frame, one.event_index, &*one.problem.as_ref().unwrap().reason))
            .collect();
        assert_eq!(told, [(2, 1, "EVENT_INVALID"), (4, 0, "EVENT_ID_REUSED")]);
        assert_eq!(portal.dump_ids(earliest()).await, ["a", "b", "c"]);
    }

    async fn frames_must_be_numbered_without_a_hole(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        for numbers in [&[0][..], &[1, 3], &[1, 1], &[5, 4]] {
            let mut session = Session::open(&psa).await;
            for number in numbers {
                session.send(frame(*number, Vec::new())).await;
            }
            let error = session.error().await;
            assert_eq!(error.reason(), Some("FIELD_INVALID"), "{numbers:?}");
            assert_eq!(error.violations()[0].field, "frame");
        }
        // A stream that goes on after another one goes on counting.
        let mut session = Session::open(&psa).await;
        session.send(frame(17, vec![ticket("a")])).await;
        session.close();
        assert_eq!(session.rest().await.0[0].acked_through, 17);
    }

    async fn a_key_of_all_tenants_names_the_tenant_in_each_frame(hub: TestHub) {
        let other = hub.tenant().await;
        let psa = all_tenants(&hub).await;
        let portal = Product::new(&hub, "portal").await;
        let admin = hub.client(&other.admin_key);
        let key = other.key(&admin, "portal", &["hub:events.read"]).await;
        let elsewhere = Product { bus: hub.client(&key).event_bus(), key };
        let mut session = Session::open(&psa).await;
        for number in 1..=10 {
            let tenant = if number % 2 == 0 { &other.id } else { &hub.first_tenant().id };
            let mut request = frame(number, vec![ticket(&number.to_string())]);
            request.tenant_id.clone_from(tenant);
            session.send(request).await;
        }
        session.close();
        assert_eq!(session.rest().await.0.last().unwrap().acked_through, 10);
        assert_eq!(portal.dump_ids(earliest()).await, ["1", "3", "5", "7", "9"]);
        assert_eq!(elsewhere.dump_ids(earliest()).await, ["2", "4", "6", "8", "10"]);
    }

    async fn a_tenant_is_named_by_those_who_may(hub: TestHub) {
        let other = hub.tenant().await;
        let (own, all) = (Product::new(&hub, "psa").await, all_tenants(&hub).await);
        for (product, tenant, reason) in [
            (&own, &*other.id, "TENANT_NOT_FOUND"),
            (&all, "", "TENANT_REQUIRED"),
            (&all, "tnt_nobody", "TENANT_NOT_FOUND"),
        ] {
            let mut session = Session::open(product).await;
            let mut request = frame(1, vec![ticket("a")]);
            request.tenant_id = tenant.to_owned();
            session.send(request).await;
            assert_eq!(session.error().await.reason(), Some(reason), "{tenant}");
        }
        let mut session = Session::open(&own).await;
        let mut request = frame(1, vec![ticket("a")]);
        request.tenant_id.clone_from(&hub.first_tenant().id);
        session.send(request).await;
        session.close();
        assert_eq!(session.rest().await.0[0].acked_through, 1);
    }

    async fn a_quiet_session_says_that_it_lives_and_ends_at_its_age(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let psa = Product::new(&hub, "psa").await;
        let mut session = Session::open(&psa).await;
        session.send(frame(1, vec![ticket("a")])).await;
        let Frame::Ack(ack) = session.next().await else { panic!("the frame is acknowledged") };
        for _ in 0..3 {
            hub.clock.advance(HEARTBEAT);
            let Frame::Progress(progress) = session.next().await else { panic!("a heartbeat") };
            assert_eq!((progress.sequence, &progress.cursor), (1, &ack.cursor));
            assert_eq!(progress.head_sequence, 1);
        }
        hub.clock.advance(hub.core.limits.stream_age_max * 2);
        loop {
            match session.next().await {
                Frame::Progress(_) => {}
                Frame::Closing(closing) => {
                    assert_eq!(closing.reason(), ClosingReason::MaxAge);
                    assert_eq!(closing.cursor, ack.cursor);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(session.try_next().await.unwrap(), None);
    }

    async fn a_stopping_server_answers_what_it_took_and_closes(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let mut session = Session::open(&psa).await;
        session.send(frame(1, vec![ticket("a")])).await;
        assert!(matches!(session.next().await, Frame::Ack(_)));
        let (last, ()) = tokio::join!(session.next(), hub.stop());
        let Frame::Closing(closing) = last else { panic!("{last:?}") };
        assert_eq!(closing.reason(), ClosingReason::Draining);
        assert!(closing.reconnect_after.is_some() && !closing.cursor.is_empty());
    }

    async fn a_revoked_key_ends_a_session_that_is_never_quiet(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let psa = Product::new(&hub, "psa").await;
        let mut session = Session::open(&psa).await;
        session.send(frame(1, vec![ticket("0")])).await;
        assert!(matches!(session.next().await, Frame::Ack(_)));
        revoke(&hub, &psa.key).await;
        // An event every second: there is never a heartbeat.
        let mut number = 1;
        let error = loop {
            assert!(number < 30, "a revoked key goes on publishing");
            hub.clock.advance(HEARTBEAT / 10);
            number += 1;
            let next = frame(number, vec![ticket(&number.to_string())]);
            // Refused once the hub has ended the stream; the answer says why.
            let _ = session.frames.as_ref().unwrap().send(next).await;
            match session.try_next().await {
                Ok(Some(Frame::Ack(_))) => {}
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason(), Some("KEY_REVOKED"));
        assert!(number <= 12, "after {number} s");
    }

    async fn a_key_that_may_not_publish_any_more_ends_its_session(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let psa = Product::new(&hub, "psa").await;
        let mut session = Session::open(&psa).await;
        session.send(frame(1, vec![ticket("a")])).await;
        assert!(matches!(session.next().await, Frame::Ack(_)));
        // What the session does not need it may lose.
        rescope(&hub, &psa.key, &["hub:events.publish"]).await;
        hub.clock.advance(HEARTBEAT);
        assert!(matches!(session.next().await, Frame::Progress(_)));
        rescope(&hub, &psa.key, &["hub:events.read"]).await;
        hub.clock.advance(HEARTBEAT);
        let error = session.try_next().await.unwrap_err();
        assert_eq!(error.reason(), Some("SCOPE_MISSING"));
        assert_eq!(error.metadata()["missingScope"], "hub:events.publish");
    }
}

/// The product psa, with a key that serves all tenants.
async fn all_tenants(hub: &TestHub) -> Product {
    let api_key = ApiKey {
        name: "psa backend".into(),
        product: "psa".into(),
        scopes: vec!["hub:events.publish".into()],
        all_tenants: true,
        ..ApiKey::default()
    };
    let request = CreateApiKeyRequest {
        api_key: Some(api_key),
        ..Default::default()
    };
    let operator = hub.client(&hub.operator_key);
    let created = operator.api_keys().create_api_key(request).await.unwrap();
    let key = created.into_inner().plaintext;
    Product {
        bus: hub.client(&key).event_bus(),
        key,
    }
}
