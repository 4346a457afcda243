use std::time::Duration;

use futures_util::FutureExt;
use hub_proto::hub::core::v1::{ClosingReason, Problem, Progress};
use hub_proto::hub::event_bus::v1::publish_stream_response::Frame;
use hub_proto::hub::event_bus::v1::{PublishAck, PublishResult, PublishWindow};
use hub_proto::wire::PublishStreamRequest;
use prost::Message;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use super::*;
use crate::fake_hub::{FakeHub, PublishCall, closing};

mod outcomes;

const HEARTBEAT: Duration = Duration::from_secs(10);

fn event(id: impl ToString) -> CloudEvent {
    CloudEvent {
        id: id.to_string(),
        source: "/psa".into(),
        ..Default::default()
    }
}

fn ids(frame: &PublishStreamRequest) -> Vec<String> {
    frame
        .events
        .iter()
        .map(|event| CloudEvent::decode(event.clone()).unwrap().id)
        .collect()
}

/// Sends events so that they wait together.
async fn send(publisher: &Publisher, ids: impl IntoIterator<Item = u32>) -> Vec<PendingReceipt> {
    let mut pending = Vec::new();
    for id in ids {
        let sending = tokio::task::unconstrained(publisher.send(event(id)));
        pending.push(sending.now_or_never().unwrap().unwrap());
    }
    pending
}

fn ack(acked_through: u64) -> Frame {
    ack_with(acked_through, vec![])
}

fn ack_with(acked_through: u64, results: Vec<PublishResult>) -> Frame {
    Frame::Ack(PublishAck {
        acked_through,
        results,
        cursor: String::new(),
    })
}

fn window(max_unacked_frames: u32, max_unacked_bytes: u32) -> Frame {
    Frame::Window(PublishWindow {
        max_unacked_frames,
        max_unacked_bytes,
    })
}

fn problem(domain: &str, reason: &str) -> Problem {
    Problem {
        domain: domain.into(),
        reason: reason.into(),
        ..Default::default()
    }
}

fn refused(problem: Problem) -> PublishResult {
    PublishResult {
        error: Some(problem),
        ..Default::default()
    }
}

fn duplicate(sequence: u64) -> PublishResult {
    PublishResult {
        sequence,
        duplicate: true,
        ..Default::default()
    }
}

fn broken() -> Status {
    Status::unavailable("broken")
}

async fn reasons(pending: Vec<PendingReceipt>) -> Vec<Option<String>> {
    let mut reasons = Vec::new();
    for receipt in pending {
        let error = receipt.await.err();
        reasons.push(error.map(|error| error.reason().unwrap_or_default().to_owned()));
    }
    reasons
}

async fn opened(fake: &mut FakeHub) -> PublishCall {
    let call = fake.published().await;
    call.open(HEARTBEAT).await;
    call
}

#[tokio::test(start_paused = true)]
async fn an_event_is_published_when_its_frame_is_acknowledged() {
    let mut fake = FakeHub::start();
    let publisher = fake.hub.publisher();
    let mut pending = send(&publisher, [1]).await.remove(0);
    let mut call = opened(&mut fake).await;
    let frame = call.frame().await.unwrap();
    assert_eq!((frame.frame, ids(&frame)), (1, vec!["1".to_owned()]));
    assert!(frame.independent && frame.continue_on_error && frame.brief_results);
    assert!((&mut pending).now_or_never().is_none());
    call.send(ack(1)).await;
    assert_eq!(pending.await.unwrap(), Receipt::default());
    assert!(matches!(*publisher.state().borrow(), PublisherState::Live));
}

#[tokio::test(start_paused = true)]
async fn events_that_wait_are_sent_together_in_order() {
    let mut fake = FakeHub::start();
    let publisher = fake.hub.publisher();
    let _pending = send(&publisher, 0..600).await;
    let mut call = opened(&mut fake).await;
    let mut sent = Vec::new();
    for (number, events) in [(1, 256), (2, 256), (3, 88)] {
        let frame = call.frame().await.unwrap();
        assert_eq!((frame.frame, frame.events.len()), (number, events));
        sent.extend(ids(&frame));
    }
    assert!(sent.into_iter().eq((0..600).map(|id: u32| id.to_string())));
}

#[tokio::test(start_paused = true)]
async fn what_was_not_acknowledged_is_sent_again_on_a_new_stream() {
    let mut fake = FakeHub::start();
    let publisher = fake
        .hub
        .publisher_with(PublisherOptions::default().coalesce(2, 1 << 20));
    let pending = send(&publisher, 0..6).await;
    let mut call = opened(&mut fake).await;
    for _ in 0..3 {
        call.frame().await.unwrap();
    }
    call.send(ack(1)).await;
    call.fail(broken()).await;
    let late = send(&publisher, [6]).await;
    let mut call = opened(&mut fake).await;
    for (number, expected) in [(1, vec!["2", "3"]), (2, vec!["4", "5"]), (3, vec!["6"])] {
        let frame = call.frame().await.unwrap();
        assert_eq!(frame.frame, number);
        assert_eq!(ids(&frame), expected);
    }
    call.send(ack(3)).await;
    for receipt in pending.into_iter().chain(late) {
        receipt.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_window_of_the_hub_holds_back_frames() {
    let mut fake = FakeHub::start();
    let publisher = fake
        .hub
        .publisher_with(PublisherOptions::default().coalesce(1, 1 << 20));
    let first = send(&publisher, [0]).await;
    let mut call = opened(&mut fake).await;
    call.frame().await.unwrap();
    call.send(window(1, 1 << 20)).await;
    assert!(call.is_quiet().await);
    let rest = send(&publisher, 1..3).await;
    assert!(call.is_quiet().await);
    call.send(ack(1)).await;
    assert_eq!(ids(&call.frame().await.unwrap()), ["1"]);
    assert!(call.is_quiet().await);
    // A window of fewer bytes than a frame still lets one through.
    call.send(window(8, 1)).await;
    call.send(ack(2)).await;
    assert_eq!(ids(&call.frame().await.unwrap()), ["2"]);
    call.send(ack(3)).await;
    for receipt in first.into_iter().chain(rest) {
        receipt.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_stream_starts_with_the_window_of_the_contract() {
    let mut fake = FakeHub::start();
    let publisher = fake
        .hub
        .publisher_with(PublisherOptions::default().coalesce(1, 1 << 20));
    let _pending = send(&publisher, 0..100).await;
    let mut call = opened(&mut fake).await;
    for _ in 0..64 {
        call.frame().await.unwrap();
    }
    assert!(call.is_quiet().await);
}

#[tokio::test(start_paused = true)]
async fn a_closed_stream_returns_when_the_hub_said() {
    let mut fake = FakeHub::start();
    let publisher = fake.hub.publisher();
    let pending = send(&publisher, [1]).await;
    let mut call = opened(&mut fake).await;
    call.frame().await.unwrap();
    let after = Duration::from_secs(4);
    call.send(Frame::Closing(closing(
        ClosingReason::Draining,
        Some(after),
        "",
    )))
    .await;
    let closed = Instant::now();
    let mut call = opened(&mut fake).await;
    let waited = closed.elapsed();
    assert!(waited >= after && waited < after.mul_f64(1.2), "{waited:?}");
    assert_eq!(ids(&call.frame().await.unwrap()), ["1"]);
    call.send(ack(1)).await;
    assert_eq!(reasons(pending).await, [None]);
}

#[tokio::test(start_paused = true)]
async fn an_error_with_retry_info_is_waited_for_as_long_as_it_says() {
    let mut fake = FakeHub::start();
    let publisher = fake.hub.publisher();
    let _pending = send(&publisher, [1]).await;
    let wait = Duration::from_secs(30);
    let details = ErrorDetails::with_retry_info(Some(wait));
    let refusal = Status::with_error_details(Code::ResourceExhausted, "Too many.", details);
    fake.published().await.fail(refusal).await;
    let failed = Instant::now();
    fake.published().await;
    let waited = failed.elapsed();
    assert!(waited >= wait && waited < wait.mul_f64(1.2), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn two_silent_intervals_end_a_stream_and_heartbeats_keep_it() {
    let mut fake = FakeHub::start();
    let publisher = fake.hub.publisher();
    let _pending = send(&publisher, [1]).await;
    let mut call = fake.published().await;
    let interval = Duration::from_secs(3);
    call.open(interval).await;
    call.frame().await.unwrap();
    for _ in 0..5 {
        tokio::time::sleep(interval).await;
        call.send(Frame::Progress(Progress::default())).await;
    }
    let silent = Instant::now();
    fake.published().await;
    let waited = silent.elapsed();
    assert!(
        waited >= 2 * interval && waited < 3 * interval,
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_error_that_does_not_pass_fails_what_waits_and_the_next_event_tries_again() {
    let mut fake = FakeHub::start();
    let publisher = fake.hub.publisher();
    let pending = send(&publisher, 0..300).await;
    let details = ErrorDetails::with_error_info("KEY_REVOKED", "hub.api_keys", []);
    let revoked = Status::with_error_details(Code::PermissionDenied, "Revoked.", details);
    fake.published().await.fail(revoked).await;
    assert!(
        reasons(pending)
            .await
            .iter()
            .all(|r| r.as_deref() == Some("KEY_REVOKED"))
    );
    let pending = send(&publisher, [1]).await;
    let mut call = opened(&mut fake).await;
    call.frame().await.unwrap();
    call.send(ack(1)).await;
    assert_eq!(reasons(pending).await, [None]);
}

#[tokio::test(start_paused = true)]
async fn events_fail_when_the_hub_is_away_for_the_delivery_timeout() {
    let mut fake = FakeHub::start();
    let timeout = Duration::from_secs(60);
    let publisher = fake
        .hub
        .publisher_with(PublisherOptions::default().delivery_timeout(timeout));
    fake.vanish().await;
    let started = Instant::now();
    let error = publisher.publish(event(1)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    let waited = started.elapsed();
    assert!(
        waited >= timeout && waited < timeout + Duration::from_secs(11),
        "{waited:?}"
    );
    assert!(matches!(
        *publisher.state().borrow(),
        PublisherState::Waiting { .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_all_before_it_and_tells_of_errors_that_nobody_waited_for() {
    let mut fake = FakeHub::start();
    let publisher = fake.hub.publisher();
    drop(send(&publisher, [1]).await);
    let mut flush = Box::pin(publisher.flush());
    let mut call = opened(&mut fake).await;
    call.frame().await.unwrap();
    assert!((&mut flush).now_or_never().is_none());
    call.send(ack_with(
        1,
        vec![refused(problem("hub.event_bus", "EVENT_INVALID"))],
    ))
    .await;
    assert_eq!(flush.await.unwrap_err().reason(), Some("EVENT_INVALID"));
    publisher.flush().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_closed_publisher_sends_what_it_has_and_takes_no_more() {
    let mut fake = FakeHub::start();
    let publisher = fake.hub.publisher();
    let other = publisher.clone();
    let pending = send(&publisher, [1]).await;
    let close = tokio::spawn(publisher.close());
    let mut call = opened(&mut fake).await;
    call.frame().await.unwrap();
    call.send(ack(1)).await;
    close.await.unwrap().unwrap();
    assert_eq!(reasons(pending).await, [None]);
    assert_eq!(
        other.send(event(2)).await.unwrap_err().code(),
        Code::Cancelled
    );
}

#[tokio::test(start_paused = true)]
async fn a_dropped_publisher_sends_what_it_has_and_ends_its_stream() {
    let mut fake = FakeHub::start();
    let publisher = fake.hub.publisher();
    let mut state = publisher.state();
    let pending = send(&publisher, [1]).await;
    drop(publisher);
    let mut call = opened(&mut fake).await;
    call.frame().await.unwrap();
    call.send(ack(1)).await;
    assert_eq!(reasons(pending).await, [None]);
    assert!(call.frame().await.is_none());
    drop(call);
    state
        .wait_for(|state| matches!(state, PublisherState::Closed))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_makes_the_sender_wait_until_events_are_settled() {
    let mut fake = FakeHub::start();
    let publisher = fake
        .hub
        .publisher_with(PublisherOptions::default().queue_bytes(1));
    let large = || CloudEvent {
        r#type: "x".repeat(40 << 10),
        ..event(1)
    };
    let first = publisher.send(large()).await.unwrap();
    let mut second = Box::pin(publisher.send(large()));
    assert!((&mut second).now_or_never().is_none());
    let mut call = opened(&mut fake).await;
    call.frame().await.unwrap();
    call.send(ack(1)).await;
    first.await.unwrap();
    let second = second.await.unwrap();
    call.frame().await.unwrap();
    call.send(ack(2)).await;
    second.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_event_that_no_frame_can_carry_is_refused_at_once() {
    let mut fake = FakeHub::start();
    let publisher = fake.hub.publisher();
    let huge = CloudEvent {
        r#type: "x".repeat(5 << 20),
        ..event(1)
    };
    let error = publisher.publish(huge).await.unwrap_err();
    assert_eq!(error.reason(), Some("EVENT_TOO_LARGE"));
    assert!(fake.has_no_publisher());
}

#[tokio::test(start_paused = true)]
async fn a_new_stream_keeps_the_order_of_what_was_sent_and_what_waits() {
    let mut fake = FakeHub::start();
    let options = PublisherOptions::default()
        .coalesce(1, 1 << 20)
        .window(2, 1 << 20);
    let publisher = fake.hub.publisher_with(options);
    let _pending = send(&publisher, 0..5).await;
    let mut call = opened(&mut fake).await;
    call.frame().await.unwrap();
    call.frame().await.unwrap();
    call.fail(broken()).await;
    let mut call = opened(&mut fake).await;
    for number in 1..=5 {
        let frame = call.frame().await.unwrap();
        assert_eq!(ids(&frame), [(number - 1).to_string()]);
        call.send(ack(number)).await;
    }
}
