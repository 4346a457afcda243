//! What became of single events and frames.

use std::time::Duration;

use hub_proto::hub::event_bus::v1::publish_stream_response::Frame;
use hub_proto::hub::event_bus::v1::{PublishRejected, PublishResult};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_refused_event_fails_alone() {
    let mut fake = FakeHub::start();
    let publisher = fake.hub.publisher();
    let pending = send(&publisher, 0..3).await;
    let mut call = opened(&mut fake).await;
    call.frame().await.unwrap();
    let mut invalid = problem("hub.event_bus", "EVENT_INVALID");
    invalid.metadata.insert("index".into(), "1".into());
    call.send(ack_with(1, vec![refused(invalid)])).await;
    assert_eq!(
        reasons(pending).await,
        [None, Some("EVENT_INVALID".into()), None]
    );
}

#[tokio::test(start_paused = true)]
async fn frames_whose_refused_events_are_not_named_are_sent_again_to_learn_which() {
    let mut fake = FakeHub::start();
    let publisher = fake
        .hub
        .publisher_with(PublisherOptions::default().coalesce(2, 1 << 20));
    let pending = send(&publisher, 0..4).await;
    let mut call = opened(&mut fake).await;
    call.frame().await.unwrap();
    call.frame().await.unwrap();
    let invalid = || refused(problem("hub.event_bus", "EVENT_INVALID"));
    call.send(ack_with(2, vec![invalid()])).await;
    assert_eq!(ids(&call.frame().await.unwrap()), ["0", "1"]);
    assert_eq!(ids(&call.frame().await.unwrap()), ["2", "3"]);
    let results = vec![duplicate(1), duplicate(2), invalid(), duplicate(3)];
    call.send(ack_with(4, results)).await;
    assert_eq!(
        reasons(pending).await,
        [None, None, Some("EVENT_INVALID".into()), None]
    );
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_hub_could_not_take_now_is_sent_again_after_a_pause() {
    let mut fake = FakeHub::start();
    let publisher = fake.hub.publisher();
    let pending = send(&publisher, 0..2).await;
    let mut call = opened(&mut fake).await;
    call.frame().await.unwrap();
    let paused = Instant::now();
    let results = vec![duplicate(1), refused(problem("hub.core", "STORE_BUSY"))];
    call.send(ack_with(1, results)).await;
    assert_eq!(ids(&call.frame().await.unwrap()), ["1"]);
    assert!(
        paused.elapsed() >= Duration::from_millis(50),
        "{:?}",
        paused.elapsed()
    );
    call.send(ack(2)).await;
    assert_eq!(reasons(pending).await, [None, None]);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_frame_fails_and_its_neighbours_do_not() {
    let mut fake = FakeHub::start();
    let publisher = fake
        .hub
        .publisher_with(PublisherOptions::default().coalesce(1, 1 << 20));
    let pending = send(&publisher, 0..3).await;
    let mut call = opened(&mut fake).await;
    for _ in 0..3 {
        call.frame().await.unwrap();
    }
    let rejected = |frame, reason| {
        let problem = Some(problem("hub.core", reason));
        Frame::Rejected(PublishRejected {
            frame,
            problem,
            event_index: 0,
        })
    };
    call.send(rejected(1, "STORE_BUSY")).await;
    call.send(rejected(2, "FIELD_INVALID")).await;
    call.send(ack(3)).await;
    let again = call.frame().await.unwrap();
    assert_eq!((again.frame, ids(&again)), (4, vec!["0".to_owned()]));
    call.send(ack(4)).await;
    assert_eq!(
        reasons(pending).await,
        [None, Some("FIELD_INVALID".into()), None]
    );
}

#[tokio::test(start_paused = true)]
async fn full_results_tell_the_position_of_every_event() {
    let mut fake = FakeHub::start();
    let publisher = fake
        .hub
        .publisher_with(PublisherOptions::default().full_results());
    let pending = send(&publisher, 0..2).await;
    let mut call = opened(&mut fake).await;
    assert!(!call.frame().await.unwrap().brief_results);
    let stored = PublishResult {
        sequence: 8,
        event_id: "evt_8".into(),
        warnings: vec![PublishWarning::NoRoute.into()],
        ..Default::default()
    };
    call.send(ack_with(1, vec![duplicate(7), stored])).await;
    let mut receipts = Vec::new();
    for receipt in pending {
        receipts.push(receipt.await.unwrap());
    }
    assert_eq!(
        (receipts[0].sequence, receipts[0].duplicate),
        (Some(7), true)
    );
    assert_eq!(
        (receipts[1].sequence, receipts[1].duplicate),
        (Some(8), false)
    );
    assert_eq!(receipts[1].event_id.as_deref(), Some("evt_8"));
    assert_eq!(receipts[1].warnings, [PublishWarning::NoRoute]);
}
