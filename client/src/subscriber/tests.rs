use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt;
use hub_proto::hub::core::v1::ClosingReason;
use hub_proto::hub::event_bus::v1::EventRecord;
use hub_proto::wire;
use hub_proto::wire::subscribe_response::Frame;
use prost::Message;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::*;
use crate::fake_hub::{FakeHub, SubscribeCall, closing};

const HEARTBEAT: Duration = Duration::from_secs(10);

fn events(sequences: impl IntoIterator<Item = u64>, cursor: &str) -> Frame {
    let mut run = BytesMut::new();
    for sequence in sequences {
        let record = EventRecord {
            sequence,
            ..Default::default()
        };
        wire::append_record(&mut run, &record.encode_to_vec());
    }
    Frame::Events(wire::EventBatch {
        records: run.freeze(),
        cursor: cursor.into(),
    })
}

fn progress(sequence: u64, head_sequence: u64, cursor: &str) -> Frame {
    let cursor = cursor.into();
    Frame::Progress(Progress {
        cursor,
        sequence,
        head_sequence,
        server_time: None,
    })
}

fn caught_up(sequence: u64, cursor: &str) -> Frame {
    Frame::CaughtUp(CaughtUp {
        cursor: cursor.into(),
        sequence,
    })
}

fn broken() -> Status {
    Status::unavailable("broken")
}

/// Where the call asks to start.
fn start(call: &SubscribeCall) -> Option<start_at::At> {
    call.request.start.clone().and_then(|start| start.at)
}

fn cursor(cursor: &str) -> Option<start_at::At> {
    Some(start_at::At::Cursor(cursor.into()))
}

/// Reads in the background, because only what is polled moves.
fn read(mut subscriber: Subscriber) -> tokio::sync::mpsc::UnboundedReceiver<Result<Delivery>> {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(delivery) = subscriber.next().await {
            sender.send(delivery).unwrap();
        }
    });
    receiver
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_resumes_after_the_last_delivery_of_any_kind() {
    let mut fake = FakeHub::start();
    let options = SubscribeOptions::default().types(["ticket.*"]).earliest();
    let mut deliveries = read(fake.hub.subscribe(options));
    let gap = Gap {
        cursor: "gap".into(),
        to_sequence: 9,
        ..Default::default()
    };
    let frames = [
        events([1, 2], "events"),
        progress(3, 5, "progress"),
        caught_up(5, "caught up"),
        Frame::Gap(gap),
    ];
    let mut expected = Some(start_at::At::Earliest(true));
    for frame in frames {
        let call = fake.subscribed().await;
        assert_eq!(start(&call), expected);
        assert_eq!(call.request.filter.as_ref().unwrap().types, ["ticket.*"]);
        call.send(frame).await;
        let delivery = deliveries.recv().await.unwrap().unwrap();
        expected = cursor(delivery.cursor());
        call.fail(broken()).await;
    }
    assert_eq!(start(&fake.subscribed().await), cursor("gap"));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_starts_now_resumes_where_it_was_opened() {
    let mut fake = FakeHub::start();
    let _deliveries = read(fake.hub.subscribe(SubscribeOptions::default()));
    let call = fake.subscribed().await;
    assert_eq!(start(&call), None);
    call.open("opened", 7, HEARTBEAT).await;
    call.fail(broken()).await;
    assert_eq!(start(&fake.subscribed().await), cursor("opened"));
}

#[tokio::test(start_paused = true)]
async fn a_closed_stream_returns_when_the_hub_said_and_where() {
    let mut fake = FakeHub::start();
    let _deliveries = read(fake.hub.subscribe(SubscribeOptions::default()));
    let call = fake.subscribed().await;
    let after = Duration::from_secs(3);
    call.send(Frame::Closing(closing(
        ClosingReason::Draining,
        Some(after),
        "here",
    )))
    .await;
    drop(call);
    let closed = Instant::now();
    assert_eq!(start(&fake.subscribed().await), cursor("here"));
    let waited = closed.elapsed();
    assert!(waited >= after && waited < after.mul_f64(1.2), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_error_with_retry_info_is_waited_for_as_long_as_it_says() {
    let mut fake = FakeHub::start();
    let subscriber = fake.hub.subscribe(SubscribeOptions::default());
    let mut state = subscriber.state();
    let _deliveries = read(subscriber);
    let wait = Duration::from_secs(30);
    let details = ErrorDetails::with_retry_info(Some(wait));
    let refusal = Status::with_error_details(Code::ResourceExhausted, "Too many.", details);
    fake.subscribed().await.fail(refusal).await;
    let failed = Instant::now();
    let waiting = |state: &SubscriberState| matches!(state, SubscriberState::Waiting { .. });
    let SubscriberState::Waiting { error, .. } = state.wait_for(waiting).await.unwrap().clone()
    else {
        panic!("not waiting")
    };
    assert_eq!(error.unwrap().message(), "Too many.");
    fake.subscribed().await;
    let waited = failed.elapsed();
    assert!(waited >= wait && waited < wait.mul_f64(1.2), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn two_silent_intervals_end_a_stream_and_heartbeats_keep_it() {
    let mut fake = FakeHub::start();
    let mut deliveries = read(fake.hub.subscribe(SubscribeOptions::default()));
    let call = fake.subscribed().await;
    let interval = Duration::from_secs(3);
    call.open("opened", 0, interval).await;
    for _ in 0..5 {
        tokio::time::sleep(interval).await;
        call.send(progress(0, 0, "alive")).await;
        deliveries.recv().await.unwrap().unwrap();
    }
    let silent = Instant::now();
    assert_eq!(start(&fake.subscribed().await), cursor("alive"));
    let waited = silent.elapsed();
    assert!(
        waited >= 2 * interval && waited < 3 * interval,
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_never_answered_is_made_again() {
    let mut fake = FakeHub::start();
    let _deliveries = read(fake.hub.subscribe(SubscribeOptions::default()));
    let started = Instant::now();
    let _silent = fake.subscribed().await;
    fake.subscribed().await;
    assert!(
        started.elapsed() >= Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_does_not_take_its_own_pause_for_silence() {
    let mut fake = FakeHub::start();
    let mut subscriber = fake.hub.subscribe(SubscribeOptions::default());
    let (first, call) = tokio::join!(subscriber.next(), async {
        let call = fake.subscribed().await;
        call.send(events([1], "1")).await;
        call
    });
    assert_eq!(first.unwrap().unwrap().cursor(), "1");
    tokio::time::sleep(Duration::from_secs(45)).await;
    let (second, ()) = tokio::join!(subscriber.next(), async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        call.send(events([2], "2")).await;
    });
    assert_eq!(second.unwrap().unwrap().cursor(), "2");
}

#[tokio::test(start_paused = true)]
async fn an_error_that_does_not_pass_is_the_last_item() {
    let mut fake = FakeHub::start();
    let subscriber = fake.hub.subscribe(SubscribeOptions::default());
    let state = subscriber.state();
    let mut deliveries = read(subscriber);
    let details = ErrorDetails::with_error_info("CURSOR_EXPIRED", "hub.core", []);
    let expired = Status::with_error_details(Code::OutOfRange, "Gone.", details);
    fake.subscribed().await.fail(expired).await;
    let error = deliveries.recv().await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some("CURSOR_EXPIRED"));
    assert!(deliveries.recv().await.is_none());
    assert!(matches!(*state.borrow(), SubscriberState::Ended));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_the_hub_calls_done_ends() {
    let mut fake = FakeHub::start();
    let options = SubscribeOptions::default().earliest().stop_when_caught_up();
    let mut deliveries = read(fake.hub.subscribe(options));
    let call = fake.subscribed().await;
    assert!(call.request.stop_when_caught_up);
    call.send(caught_up(0, "end")).await;
    call.send(Frame::Closing(closing(ClosingReason::Done, None, "end")))
        .await;
    assert!(deliveries.recv().await.unwrap().is_ok());
    assert!(deliveries.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_new_stream_asks_only_for_the_events_that_are_left() {
    let mut fake = FakeHub::start();
    let mut deliveries = read(
        fake.hub
            .subscribe(SubscribeOptions::default().max_events(5)),
    );
    let call = fake.subscribed().await;
    assert_eq!(call.request.max_events, 5);
    call.send(events([1, 2, 3], "3")).await;
    deliveries.recv().await.unwrap().unwrap();
    call.fail(broken()).await;
    let call = fake.subscribed().await;
    assert_eq!(call.request.max_events, 2);
    call.send(events([4, 5], "5")).await;
    assert_eq!(deliveries.recv().await.unwrap().unwrap().cursor(), "5");
    assert!(deliveries.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_state_follows_the_stream() {
    let mut fake = FakeHub::start();
    let subscriber = fake.hub.subscribe(SubscribeOptions::default().earliest());
    let state = subscriber.state();
    let mut deliveries = read(subscriber);
    let now = || format!("{:?}", *state.borrow());
    let call = fake.subscribed().await;
    call.open("0", 10, HEARTBEAT).await;
    assert_eq!(now(), "Connecting");
    let steps = [
        (events([1, 4], "4"), "CatchingUp { lag: 6 }"),
        (progress(7, 12, "7"), "CatchingUp { lag: 5 }"),
        (caught_up(12, "12"), "Live"),
        (events([13], "13"), "Live"),
        (progress(13, 20, "13"), "CatchingUp { lag: 7 }"),
        (progress(20, 20, "20"), "Live"),
    ];
    for (frame, expected) in steps {
        call.send(frame).await;
        deliveries.recv().await.unwrap().unwrap();
        assert_eq!(now(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_vanishes_is_tried_again_until_the_reader_gives_up() {
    let mut fake = FakeHub::start();
    let mut subscriber = fake.hub.subscribe(SubscribeOptions::default());
    let state = subscriber.state();
    fake.vanish().await;
    let waited = tokio::time::timeout(Duration::from_secs(600), subscriber.next()).await;
    assert!(waited.is_err());
    let SubscriberState::Waiting { error, until } = state.borrow().clone() else {
        panic!("not waiting")
    };
    assert_eq!(error.unwrap().code(), Code::Unavailable);
    assert!(until <= Instant::now() + Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_defect_of_the_hub_is_tried_again_three_times_only() {
    let mut fake = FakeHub::start();
    let mut deliveries = read(fake.hub.subscribe(SubscribeOptions::default()));
    for _ in 0..4 {
        let details = ErrorDetails::with_error_info("INTERNAL", "hub.core", []);
        let defect = Status::with_error_details(Code::Internal, "Defect.", details);
        fake.subscribed().await.fail(defect).await;
    }
    let error = deliveries.recv().await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some("INTERNAL"));
}
