//! Streams that break, and what becomes of what is held.

use hub_proto::hub::core::v1::ClosingReason;
use tonic_types::{ErrorDetails, StatusExt};

use super::*;
use crate::fake_hub::closing;

#[tokio::test(start_paused = true)]
async fn handlers_go_on_over_a_broken_stream_and_their_acks_are_sent_on_the_next() {
    let mut fake = FakeHub::start();
    let builder = fake.hub.consume("portal").concurrency(2).credit(5, 1000);
    let (consumer, mut desk) = Desk::open(builder);
    let call = opened(&mut fake).await;
    call.send(events((1..=3).map(leased))).await;
    let first = desk.expect(1).await;
    let second = desk.expect(2).await;
    call.fail(broken()).await;
    let waiting = |state: &ConsumerState| matches!(state, ConsumerState::Waiting { .. });
    consumer.state().wait_for(waiting).await.unwrap();
    first.send(Answer::Ack).unwrap();
    let (mut call, open) = fake.consumed().await;
    // What is still handled takes credit, and what was not begun comes again.
    assert_eq!(open.credit.unwrap().events, 4);
    assert_eq!(call.acks().await.ack, ["1"]);
    call.open(HEARTBEAT).await;
    second.send(Answer::retry("no")).unwrap();
    assert_eq!(call.credit().await.events, 5);
    assert_eq!(call.acks().await.nack[0].lease_id, "2");
    assert!(desk.is_quiet().await);
    call.send(events([leased_as("tnt_1", 3, "again")])).await;
    desk.expect(3).await.send(Answer::Ack).unwrap();
    assert_eq!(call.acks().await.ack, ["again"]);
    reaches(&consumer, |counts| (counts.streams, counts.acked) == (2, 2)).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_comes_again_while_it_is_handled_is_settled_by_the_same_answer() {
    let mut fake = FakeHub::start();
    let (_consumer, mut desk) = Desk::open(fake.hub.consume("portal"));
    let call = opened(&mut fake).await;
    call.send(events([leased_as("tnt_1", 1, "old")])).await;
    let reply = desk.expect(1).await;
    call.fail(broken()).await;
    let (mut call, open) = fake.consumed().await;
    assert_eq!(open.credit.unwrap().events, 99);
    call.open(HEARTBEAT).await;
    // The same position of another tenant is another event.
    let pair = [leased_as("tnt_2", 1, "other"), leased_as("tnt_1", 1, "new")];
    call.send(events(pair)).await;
    let (other, _reply) = desk.next().await;
    assert_eq!(other.tenant_id(), "tnt_2");
    assert!(desk.is_quiet().await);
    assert_eq!(call.credit().await.events, 100);
    reply.send(Answer::Ack).unwrap();
    assert_eq!(call.acks().await.ack, ["new"]);
}

#[tokio::test(start_paused = true)]
async fn acks_that_were_not_confirmed_are_sent_again_on_a_new_stream() {
    let mut fake = FakeHub::start();
    let (_consumer, mut desk) = Desk::open(fake.hub.consume("portal").confirm_acks());
    let mut call = opened(&mut fake).await;
    call.send(events((1..=2).map(leased))).await;
    for sequence in 1..=2 {
        desk.expect(sequence).await.send(Answer::Ack).unwrap();
        call.acks().await;
    }
    call.send(results([("1", AckOutcome::Ok)])).await;
    call.fail(broken()).await;
    let mut call = opened(&mut fake).await;
    assert_eq!(call.acks().await.ack, ["2"]);
    call.send(results([("2", AckOutcome::AlreadySettled)]))
        .await;
    call.fail(broken()).await;
    let mut call = opened(&mut fake).await;
    assert!(call.is_quiet().await);
}

#[tokio::test(start_paused = true)]
async fn a_closed_stream_returns_when_the_hub_said() {
    let mut fake = FakeHub::start();
    let (_consumer, _desk) = Desk::open(fake.hub.consume("portal"));
    let call = opened(&mut fake).await;
    let after = 3 * SECOND;
    let moved = closing(ClosingReason::Moved, Some(after), "");
    call.send(Frame::Closing(moved)).await;
    let closed = Instant::now();
    opened(&mut fake).await;
    let waited = closed.elapsed();
    assert!(waited >= after && waited < after.mul_f64(1.2), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_error_with_retry_info_is_waited_for_as_long_as_it_says() {
    let mut fake = FakeHub::start();
    let (_consumer, _desk) = Desk::open(fake.hub.consume("portal"));
    let wait = 30 * SECOND;
    let details = ErrorDetails::with_retry_info(Some(wait));
    let refusal = Status::with_error_details(Code::ResourceExhausted, "Too many.", details);
    fake.consumed().await.0.fail(refusal).await;
    let failed = Instant::now();
    fake.consumed().await;
    let waited = failed.elapsed();
    assert!(waited >= wait && waited < wait.mul_f64(1.2), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn two_silent_intervals_end_a_stream_and_heartbeats_keep_it() {
    let mut fake = FakeHub::start();
    let (_consumer, _desk) = Desk::open(fake.hub.consume("portal"));
    let interval = 3 * SECOND;
    let (call, _) = fake.consumed().await;
    call.open(interval).await;
    for _ in 0..5 {
        tokio::time::sleep(interval).await;
        call.send(Frame::Progress(Progress::default())).await;
    }
    let silent = Instant::now();
    fake.consumed().await;
    let waited = silent.elapsed();
    assert!(
        waited >= 2 * interval && waited < 3 * interval,
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_error_that_does_not_pass_ends_it_after_its_handlers() {
    let mut fake = FakeHub::start();
    let (mut consumer, mut desk) = Desk::open(fake.hub.consume("portal"));
    let call = opened(&mut fake).await;
    call.send(events([leased(1)])).await;
    let reply = desk.expect(1).await;
    let details = ErrorDetails::with_error_info("KEY_REVOKED", "hub.api_keys", []);
    let revoked = Status::with_error_details(Code::PermissionDenied, "Revoked.", details);
    call.fail(revoked).await;
    let early = tokio::time::timeout(SECOND, consumer.wait()).await;
    assert!(early.is_err());
    reply.send(Answer::Ack).unwrap();
    let error = consumer.wait().await.unwrap_err();
    assert_eq!(error.reason(), Some("KEY_REVOKED"));
    let error = consumer.shutdown().await.unwrap_err();
    assert_eq!(error.reason(), Some("KEY_REVOKED"));
}

#[tokio::test(start_paused = true)]
async fn a_defect_of_the_hub_is_tried_again_three_times_only() {
    let mut fake = FakeHub::start();
    let (mut consumer, _desk) = Desk::open(fake.hub.consume("portal"));
    for _ in 0..4 {
        let details = ErrorDetails::with_error_info("INTERNAL", "hub.core", []);
        let defect = Status::with_error_details(Code::Internal, "Defect.", details);
        fake.consumed().await.0.fail(defect).await;
    }
    let error = consumer.wait().await.unwrap_err();
    assert_eq!(error.reason(), Some("INTERNAL"));
}

#[tokio::test(start_paused = true)]
async fn the_state_follows_the_stream() {
    let mut fake = FakeHub::start();
    let (consumer, _desk) = Desk::open(fake.hub.consume("portal"));
    let mut state = consumer.state();
    let (call, _) = fake.consumed().await;
    assert!(matches!(*state.borrow(), ConsumerState::Connecting));
    call.open(HEARTBEAT).await;
    let live = |state: &ConsumerState| matches!(state, ConsumerState::Live);
    state.wait_for(live).await.unwrap();
    call.fail(broken()).await;
    let waiting = |state: &ConsumerState| matches!(state, ConsumerState::Waiting { .. });
    let ConsumerState::Waiting { error, until } = state.wait_for(waiting).await.unwrap().clone()
    else {
        panic!("not waiting")
    };
    assert_eq!(error.unwrap().message(), "broken");
    assert!(until > Instant::now());
    let (call, _) = fake.consumed().await;
    call.open(HEARTBEAT).await;
    state.wait_for(live).await.unwrap();
}
