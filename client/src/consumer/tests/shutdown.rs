//! Ending a consumer without losing or repeating what it can avoid.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Leases of the next frame, which has to release them.
async fn released(call: &mut ConsumeCall) -> Vec<String> {
    let acks = call.acks().await;
    assert!(acks.ack.is_empty() && acks.extend.is_empty(), "{acks:?}");
    let mut leases = Vec::new();
    for nack in acks.nack {
        assert_eq!(nack.action(), NackAction::Release);
        leases.push(nack.lease_id);
    }
    leases
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_lets_handlers_finish_and_gives_back_what_was_not_begun() {
    let mut fake = FakeHub::start();
    let (consumer, mut desk) = Desk::open(fake.hub.consume("portal").concurrency(1));
    let mut call = opened(&mut fake).await;
    call.send(events((1..=3).map(leased))).await;
    let reply = desk.expect(1).await;
    let state = consumer.state();
    let down = tokio::spawn(consumer.shutdown());
    assert_eq!(call.credit().await.events, 0);
    assert_eq!(released(&mut call).await, ["2", "3"]);
    assert!(matches!(*state.borrow(), ConsumerState::Draining));
    // It was on its way.
    call.send(events([leased(4)])).await;
    assert_eq!(released(&mut call).await, ["4"]);
    reply.send(Answer::Ack).unwrap();
    assert_eq!(call.acks().await.ack, ["1"]);
    assert_eq!(call.frame().await, None);
    assert!(!down.is_finished());
    drop(call);
    down.await.unwrap().unwrap();
    assert!(desk.is_quiet().await);
    assert!(matches!(
        *state.borrow(),
        ConsumerState::Ended { error: None }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_the_confirmation_of_acks() {
    let mut fake = FakeHub::start();
    let (consumer, mut desk) = Desk::open(fake.hub.consume("portal").confirm_acks());
    let mut call = opened(&mut fake).await;
    call.send(events([leased(1)])).await;
    let reply = desk.expect(1).await;
    let down = tokio::spawn(consumer.shutdown());
    assert_eq!(call.credit().await.events, 0);
    reply.send(Answer::Ack).unwrap();
    assert_eq!(call.acks().await.ack, ["1"]);
    assert!(call.is_quiet().await);
    call.send(results([("1", AckOutcome::Ok)])).await;
    assert_eq!(call.frame().await, None);
    drop(call);
    down.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_outlasts_the_drain_timeout_is_cancelled_and_its_event_given_back() {
    let mut fake = FakeHub::start();
    let timeout = 5 * SECOND;
    let cancelled = Arc::new(AtomicBool::new(false));
    struct OnDrop(Arc<AtomicBool>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let told = cancelled.clone();
    let builder = fake.hub.consume("portal").drain_timeout(timeout);
    let consumer = builder.run(move |_| {
        let told = OnDrop(told.clone());
        async move {
            let _told = told;
            pending::<Answer>().await
        }
    });
    let mut call = opened(&mut fake).await;
    call.send(events([leased(1)])).await;
    reaches(&consumer, |counts| counts.received == 1).await;
    let started = Instant::now();
    let down = tokio::spawn(consumer.shutdown());
    assert_eq!(call.credit().await.events, 0);
    assert_eq!(released(&mut call).await, ["1"]);
    assert_eq!(started.elapsed(), timeout);
    drop(call);
    down.await.unwrap().unwrap();
    assert!(cancelled.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_over_a_broken_stream_tells_the_answers_on_the_next() {
    let mut fake = FakeHub::start();
    let (consumer, mut desk) = Desk::open(fake.hub.consume("portal"));
    let call = opened(&mut fake).await;
    call.send(events([leased(1)])).await;
    let reply = desk.expect(1).await;
    let down = tokio::spawn(consumer.shutdown());
    call.fail(broken()).await;
    let (mut call, open) = fake.consumed().await;
    assert_eq!(open.credit.unwrap().events, 0);
    reply.send(Answer::Ack).unwrap();
    assert_eq!(call.acks().await.ack, ["1"]);
    assert_eq!(call.frame().await, None);
    drop(call);
    down.await.unwrap().unwrap();
}

/// A consumer whose one event is handled when its stream breaks.
async fn handled(fake: &mut FakeHub, builder: ConsumerBuilder) -> Consumer {
    let (consumer, mut desk) = Desk::open(builder);
    let call = opened(fake).await;
    call.send(events([leased(1)])).await;
    let reply = desk.expect(1).await;
    call.fail(broken()).await;
    let waiting = |state: &ConsumerState| matches!(state, ConsumerState::Waiting { .. });
    consumer.state().wait_for(waiting).await.unwrap();
    reply.send(Answer::Ack).unwrap();
    consumer
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_whose_acks_no_hub_confirms_ends_with_the_reason_in_time() {
    let mut fake = FakeHub::start();
    let timeout = 20 * SECOND;
    let builder = fake.hub.consume("portal").drain_timeout(timeout);
    let consumer = handled(&mut fake, builder.confirm_acks()).await;
    let started = Instant::now();
    let down = tokio::spawn(consumer.shutdown());
    let refusing = tokio::spawn(async move {
        loop {
            fake.consumed().await.0.fail(broken()).await;
        }
    });
    let error = down.await.unwrap().unwrap_err();
    assert_eq!(error.message(), "broken");
    let waited = started.elapsed();
    assert!(
        waited >= timeout && waited < timeout + 6 * SECOND,
        "{waited:?}"
    );
    refusing.abort();
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_whose_last_acks_may_not_have_come_says_so() {
    let mut fake = FakeHub::start();
    let builder = fake.hub.consume("portal");
    let consumer = handled(&mut fake, builder).await;
    let mut call = opened(&mut fake).await;
    assert_eq!(call.acks().await.ack, ["1"]);
    let down = tokio::spawn(consumer.shutdown());
    assert_eq!(call.credit().await.events, 0);
    assert_eq!(call.frame().await, None);
    call.fail(broken()).await;
    let error = down.await.unwrap().unwrap_err();
    assert_eq!(error.message(), "broken");
}

#[tokio::test(start_paused = true)]
async fn what_the_hub_wants_again_after_all_is_told_on_another_stream() {
    let mut fake = FakeHub::start();
    let builder = fake.hub.consume("portal");
    let consumer = handled(&mut fake, builder).await;
    let mut call = opened(&mut fake).await;
    assert_eq!(call.acks().await.ack, ["1"]);
    let down = tokio::spawn(consumer.shutdown());
    assert_eq!(call.credit().await.events, 0);
    assert_eq!(call.frame().await, None);
    call.send(results([("1", AckOutcome::Retry)])).await;
    drop(call);
    let mut call = opened(&mut fake).await;
    assert_eq!(call.acks().await.ack, ["1"]);
    assert_eq!(call.frame().await, None);
    drop(call);
    down.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_consumer_with_nothing_to_tell_ends_at_once_while_the_hub_is_away() {
    let mut fake = FakeHub::start();
    let (consumer, _desk) = Desk::open(fake.hub.consume("portal"));
    fake.consumed().await.0.fail(broken()).await;
    let waiting = |state: &ConsumerState| matches!(state, ConsumerState::Waiting { .. });
    consumer.state().wait_for(waiting).await.unwrap();
    let started = Instant::now();
    consumer.shutdown().await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_is_dropped_shuts_down() {
    let mut fake = FakeHub::start();
    let (consumer, mut desk) = Desk::open(fake.hub.consume("portal"));
    let mut call = opened(&mut fake).await;
    call.send(events([leased(1)])).await;
    let reply = desk.expect(1).await;
    drop(consumer);
    assert_eq!(call.credit().await.events, 0);
    reply.send(Answer::Ack).unwrap();
    assert_eq!(call.acks().await.ack, ["1"]);
    assert_eq!(call.frame().await, None);
}
