//! What becomes of what handlers answer.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

use hub_proto::hub::core::v1::{CaughtUp, Gap};
use hub_proto::hub::event_bus::v1::{AckBatch, SubscriptionState};

use super::*;

#[tokio::test(start_paused = true)]
async fn an_event_is_acked_when_its_handler_is_done() {
    let mut fake = FakeHub::start();
    let (consumer, mut desk) = Desk::open(fake.hub.consume("portal"));
    let mut call = opened(&mut fake).await;
    let event = proto::LeasedEvent {
        attempt: 3,
        previous_error: "no".into(),
        redelivery: true,
        ..leased(7)
    };
    call.send(events([event.clone()])).await;
    let (handled, reply) = desk.next().await;
    assert_eq!(handled.record, event.record.unwrap());
    assert_eq!((handled.attempt, handled.redelivery), (3, true));
    assert_eq!(handled.previous_error, "no");
    assert_eq!(handled.tenant_id(), "tnt_1");
    assert!(call.is_quiet().await);
    reply.send(Answer::Ack).unwrap();
    let expected = AckBatch {
        ack: vec!["7".into()],
        ..Default::default()
    };
    assert_eq!(call.acks().await, expected);
    reaches(&consumer, |counts| {
        (counts.received, counts.acked) == (1, 1)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn each_answer_is_told_as_the_contract_has_it() {
    let mut fake = FakeHub::start();
    let (consumer, mut desk) = Desk::open(fake.hub.consume("portal"));
    let mut call = opened(&mut fake).await;
    let later = Answer::Retry {
        after: Some(90 * SECOND),
        error: "later".into(),
    };
    let answers = [
        (Answer::retry("soon"), NackAction::Retry, "soon", None),
        (later, NackAction::Retry, "later", Some(90)),
        (Answer::Release, NackAction::Release, "", None),
        (Answer::fail("broken"), NackAction::Fail, "broken", None),
        (Answer::skip("old"), NackAction::Skip, "old", None),
    ];
    for (answer, action, error, after) in answers {
        call.send(events([leased(1)])).await;
        desk.expect(1).await.send(answer).unwrap();
        let acks = call.acks().await;
        assert!(acks.ack.is_empty() && acks.extend.is_empty());
        let [nack] = &acks.nack[..] else {
            panic!("{acks:?} is not one nack")
        };
        assert_eq!((nack.lease_id.as_str(), nack.action()), ("1", action));
        assert_eq!(nack.error, error);
        assert_eq!(nack.retry_after.map(|after| after.seconds), after);
    }
    reaches(&consumer, |counts| {
        let ConsumerCounts {
            retried,
            released,
            failed,
            skipped,
            ..
        } = *counts;
        (retried, released, failed, skipped) == (2, 1, 1, 1)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_fails_or_panics_has_its_event_again_and_the_consumer_goes_on() {
    let mut fake = FakeHub::start();
    let consumer = fake
        .hub
        .consume("portal")
        .run(async |event| match event.record.sequence {
            1 => panic!("no such ticket"),
            2 => Err("not now"),
            _ => Ok(()),
        });
    let mut call = opened(&mut fake).await;
    for (sequence, error) in [(1, "the handler panicked: no such ticket"), (2, "not now")] {
        call.send(events([leased(sequence)])).await;
        let acks = call.acks().await;
        assert_eq!(acks.nack[0].action(), NackAction::Retry);
        assert_eq!(acks.nack[0].error, error);
    }
    call.send(events([leased(3)])).await;
    assert_eq!(call.acks().await.ack, ["3"]);
    reaches(&consumer, |counts| {
        (counts.retried, counts.panicked) == (2, 1)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_more_events_are_handled_at_once_than_the_concurrency_in_the_order_they_came() {
    let mut fake = FakeHub::start();
    let (_consumer, mut desk) = Desk::open(fake.hub.consume("portal").concurrency(2));
    let mut call = opened(&mut fake).await;
    call.send(events((1..=4).map(leased))).await;
    let _first = desk.expect(1).await;
    let second = desk.expect(2).await;
    assert!(desk.is_quiet().await);
    second.send(Answer::Ack).unwrap();
    let _third = desk.expect(3).await;
    assert!(desk.is_quiet().await);
    assert_eq!(call.acks().await.ack, ["2"]);
}

#[tokio::test(start_paused = true)]
async fn the_hub_is_told_who_consumes_and_how_much_it_may_lease() {
    let mut fake = FakeHub::start();
    let credit = |events, bytes| Some(Credit { events, bytes });
    let cases = [
        (fake.hub.consume("a"), credit(100, 4 << 20)),
        (fake.hub.consume("a").concurrency(300), credit(600, 4 << 20)),
        (
            fake.hub.consume("a").concurrency(usize::MAX),
            credit(10_000, 4 << 20),
        ),
        (fake.hub.consume("a").credit(7, 1000), credit(7, 1000)),
        (fake.hub.consume("a").credit(0, 0), credit(1, 1)),
    ];
    for (builder, expected) in cases {
        let (_consumer, _desk) = Desk::open(builder.member("portal-7f9c").confirm_acks());
        let (_call, open) = fake.consumed().await;
        assert_eq!(open.subscription, "a");
        assert_eq!(open.member, "portal-7f9c");
        assert!(open.confirm_acks);
        assert_eq!(open.credit, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn acks_go_together_and_at_once_when_nothing_else_happens() {
    let mut fake = FakeHub::start();
    let handled = Arc::new(AtomicUsize::new(0));
    let counted = handled.clone();
    let builder = fake.hub.consume("portal").concurrency(5000);
    let _consumer = builder.run(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { Answer::Ack }
    });
    let mut call = opened(&mut fake).await;
    let started = Instant::now();
    call.send(events([leased(0)])).await;
    assert_eq!(call.acks().await.ack, ["0"]);
    call.send(events((1..=2500).map(leased))).await;
    let mut acked = Vec::new();
    while acked.len() < 2500 {
        let acks = call.acks().await.ack;
        assert!(acks.len() <= 1000, "{} acks in one frame", acks.len());
        // All are done before the first ack is sent, so that only the last frame is not full.
        assert!(acks.len() == 1000 || acked.len() == 2000, "{}", acks.len());
        acked.extend(acks);
    }
    assert!(
        acked
            .into_iter()
            .eq((1..=2500).map(|lease: u32| lease.to_string()))
    );
    assert_eq!(handled.load(Ordering::Relaxed), 2501);
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_the_hub_could_not_apply_is_sent_again() {
    let mut fake = FakeHub::start();
    let (_consumer, mut desk) = Desk::open(fake.hub.consume("portal"));
    let mut call = opened(&mut fake).await;
    call.send(events([leased(1), leased(2)])).await;
    desk.expect(1).await.send(Answer::Ack).unwrap();
    assert_eq!(call.acks().await.ack, ["1"]);
    desk.expect(2).await.send(Answer::fail("broken")).unwrap();
    let nacks = call.acks().await;
    let asked = Instant::now();
    let retry = [("1", AckOutcome::Retry), ("2", AckOutcome::Retry)];
    call.send(results(retry)).await;
    let again = call.acks().await;
    assert_eq!(again.ack, ["1"]);
    assert_eq!(again.nack, nacks.nack);
    assert!(asked.elapsed() >= Duration::from_millis(200));
}

#[tokio::test(start_paused = true)]
async fn acks_that_come_too_late_are_counted_and_told_and_are_no_error() {
    let mut fake = FakeHub::start();
    let notices = Arc::new(Mutex::new(Vec::new()));
    let told = notices.clone();
    let builder = fake.hub.consume("portal").on_notice(move |notice| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        told.push(notice);
        panic!("of the program itself");
    });
    let (consumer, mut desk) = Desk::open(builder);
    let mut call = opened(&mut fake).await;
    call.send(events((1..=3).map(leased))).await;
    for sequence in 1..=3 {
        desk.expect(sequence).await.send(Answer::Ack).unwrap();
        call.acks().await;
    }
    let outcomes = [
        ("1", AckOutcome::LeaseExpired),
        ("2", AckOutcome::Unknown),
        ("3", AckOutcome::AlreadySettled),
    ];
    call.send(results(outcomes)).await;
    reaches(&consumer, |counts| counts.expired == 2).await;
    let expired = |lease_id: &str| ConsumerNotice::LeaseExpired {
        lease_id: lease_id.into(),
    };
    let told = notices.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(*told, [expired("1"), expired("2")]);
    assert!(matches!(*consumer.state().borrow(), ConsumerState::Live));
}

#[tokio::test(start_paused = true)]
async fn one_stream_carries_the_events_of_all_tenants_and_tells_whose_notices_are() {
    let mut fake = FakeHub::start();
    let (sender, mut notices) = mpsc::unbounded_channel();
    let builder = fake.hub.consume("portal").on_notice(move |notice| {
        sender.send(notice).unwrap();
    });
    let (_consumer, mut desk) = Desk::open(builder);
    let mut call = opened(&mut fake).await;
    let pair = [leased_as("tnt_1", 5, "a"), leased_as("tnt_2", 5, "b")];
    call.send(events(pair)).await;
    let mut leases = BTreeMap::from([("tnt_1", "a"), ("tnt_2", "b")]);
    for _ in 0..2 {
        let (event, reply) = desk.next().await;
        let lease = leases.remove(event.tenant_id()).unwrap();
        reply.send(Answer::Ack).unwrap();
        assert_eq!(call.acks().await.ack, [lease]);
    }
    let gap = Gap {
        to_sequence: 9,
        ..Default::default()
    };
    let caught_up = CaughtUp {
        sequence: 10,
        ..Default::default()
    };
    let paused = SubscriptionState::Paused;
    call.send_of("tnt_1", Frame::Gap(gap.clone())).await;
    call.send_of("tnt_2", Frame::State(paused.into())).await;
    call.send_of("", Frame::CaughtUp(caught_up.clone())).await;
    let expected = [
        ConsumerNotice::Gap {
            tenant_id: "tnt_1".into(),
            gap,
        },
        ConsumerNotice::Subscription {
            tenant_id: "tnt_2".into(),
            state: paused,
        },
        ConsumerNotice::CaughtUp {
            tenant_id: String::new(),
            caught_up,
        },
    ];
    for expected in expected {
        assert_eq!(notices.recv().await.unwrap(), expected);
    }
}
