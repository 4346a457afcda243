//! When decisions are used again, and when not.

use hub_proto::hub::api_keys::v1::watch_api_keys_response::Frame;
use hub_proto::hub::core::v1::{ClosingReason, Gap, Progress};
use tokio::time::{advance, sleep};
use tonic::Status;

use super::*;
use crate::fake_hub::closing;

/// Leaves a decision for one more request in the cache: 3 were counted.
async fn warm(server: &mut Server, epoch: u64) {
    let one = server.get_told(1, allowed("key_1", epoch, 99)).await;
    assert_eq!(one.status(), 200);
    let two = server.get_told(2, allowed("key_1", epoch, 97)).await;
    assert_eq!(two.status(), 200);
}

fn beat(epoch: u64) -> Frame {
    Frame::Progress(Progress {
        sequence: epoch,
        head_sequence: epoch,
        ..Default::default()
    })
}

#[tokio::test(start_paused = true)]
async fn a_revoked_key_is_refused_from_the_frame_on() {
    let (mut server, watch) = Server::watching(1).await;
    warm(&mut server, 1).await;
    watch.change("key_1", 2).await;
    server.knows(2).await;
    let revoked = denied(ErrorReason::KeyRevoked, 403, 2);
    let refused = server.get_told(4, revoked).await;
    assert_eq!(refused.status(), 403);
    assert_eq!(refused.json()["reason"], "KEY_REVOKED");
}

#[tokio::test(start_paused = true)]
async fn a_change_of_another_key_changes_nothing() {
    let (mut server, watch) = Server::watching(1).await;
    warm(&mut server, 1).await;
    watch.change("key_2", 2).await;
    server.knows(2).await;
    assert_eq!(server.get_known().await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn an_answer_older_than_a_change_that_overtook_it_is_asked_for_again() {
    let (mut server, watch) = Server::watching(1).await;
    let refused = server.get();
    let call = server.asked().await;
    watch.change("key_1", 2).await;
    server.knows(2).await;
    call.tell(allowed("key_1", 1, 99));
    // It is counted already.
    server
        .tell(0, denied(ErrorReason::KeyRevoked, 403, 2))
        .await;
    assert_eq!(refused.await.unwrap().status(), 403);
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_does_not_know_what_it_told_lets_nobody_in() {
    let (mut server, watch) = Server::watching(1).await;
    watch.change("key_1", 2).await;
    server.knows(2).await;
    let refused = server.get();
    for cost in [1, 0, 0, 0] {
        server.tell(cost, allowed("key_1", 1, 99)).await;
    }
    let refused = refused.await.unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.header("retry-after"), "1");
}

#[tokio::test(start_paused = true)]
async fn an_answer_older_than_the_watch_is_used_once() {
    let (mut server, _watch) = Server::watching(5).await;
    for _ in 0..3 {
        let allowed = server.get_told(1, allowed("key_1", 4, 99)).await;
        assert_eq!(allowed.status(), 200);
    }
    assert_eq!(server.layer.decisions(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_broken_watch_voids_everything_until_it_is_open_again() {
    let (mut server, watch) = Server::watching(1).await;
    warm(&mut server, 1).await;
    // Asked for before, answered after.
    let late = server.send(get(KEY).uri("http://crm.example.com"));
    let call = server.asked().await;
    watch.fail(Status::unavailable("broken")).await;
    server.lost().await;
    assert_eq!(server.layer.decisions(), 0);
    call.tell(allowed("key_1", 1, 96));
    assert_eq!(late.await.unwrap().status(), 200);
    for _ in 0..3 {
        server.get_told(1, allowed("key_1", 1, 90)).await;
    }
    let watch = server.fake.watched().await;
    watch.open(1, BEAT).await;
    server.knows(1).await;
    assert_eq!(server.layer.decisions(), 0);
    warm(&mut server, 1).await;
    assert_eq!(server.get_known().await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_before_the_watch_broke_is_used_once_also_after_it_is_open_again() {
    let (mut server, watch) = Server::watching(1).await;
    let late = server.get();
    let call = server.asked().await;
    watch.fail(Status::unavailable("broken")).await;
    server.lost().await;
    let watch = server.fake.watched().await;
    watch.open(1, BEAT).await;
    server.knows(1).await;
    call.tell(allowed("key_1", 1, 99));
    assert_eq!(late.await.unwrap().status(), 200);
    assert_eq!(server.layer.decisions(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_silent_for_five_seconds_is_not_trusted() {
    let mut server = Server::start();
    let watch = server.fake.watched().await;
    watch.open(1, Duration::from_secs(60)).await;
    server.knows(1).await;
    advance(Duration::from_secs(4)).await;
    warm(&mut server, 1).await;
    advance(Duration::from_millis(1001)).await;
    server.get_told(1, allowed("key_1", 1, 96)).await;
    watch.send(beat(2)).await;
    server.knows(2).await;
    warm_again(&mut server).await;
    assert_eq!(server.get_known().await.status(), 200);
}

async fn warm_again(server: &mut Server) {
    server.get_told(1, allowed("key_1", 2, 95)).await;
    server.get_told(2, allowed("key_1", 2, 93)).await;
}

#[tokio::test(start_paused = true)]
async fn a_decision_is_used_for_five_seconds_from_when_it_was_asked_for() {
    let (mut server, watch) = Server::watching(1).await;
    server.get_told(1, allowed("key_1", 1, 99)).await;
    let slow = server.get();
    let call = server.asked().await;
    advance(Duration::from_millis(1500)).await;
    call.tell(allowed("key_1", 1, 97));
    slow.await.unwrap();
    for epoch in 2..6 {
        watch.send(beat(epoch)).await;
        server.knows(epoch).await;
        advance(Duration::from_millis(850)).await;
    }
    // 4.9 s after the question.
    assert_eq!(server.layer.decisions(), 1);
    advance(Duration::from_millis(101)).await;
    server.get_told(1, allowed("key_1", 5, 96)).await;
}

#[tokio::test(start_paused = true)]
async fn a_gap_voids_what_is_older() {
    let (mut server, watch) = Server::watching(1).await;
    warm(&mut server, 1).await;
    let gap = Gap {
        to_sequence: 7,
        ..Default::default()
    };
    watch.send(Frame::Gap(gap)).await;
    server.knows(7).await;
    server.get_told(4, allowed("key_1", 7, 93)).await;
}

#[tokio::test(start_paused = true)]
async fn a_closed_watch_is_opened_again_when_the_hub_said() {
    let (mut server, watch) = Server::watching(1).await;
    let after = Some(Duration::from_secs(3));
    let frame = closing(ClosingReason::Draining, after, "");
    watch.send(Frame::Closing(frame)).await;
    let closed = tokio::time::Instant::now();
    server.fake.watched().await;
    assert!(closed.elapsed() >= Duration::from_secs(3));
    assert!(closed.elapsed() < Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_the_hub_refuses_is_tried_again_and_the_state_says_why() {
    let mut server = Server::start();
    let status = Status::permission_denied("no scope");
    server.fake.watched().await.fail(status).await;
    server.lost().await;
    let waits = |state: &ApiKeyLayerState| match state {
        ApiKeyLayerState::Waiting { error, .. } => error
            .as_ref()
            .is_some_and(|error| error.message() == "no scope"),
        _ => false,
    };
    server.is(waits).await;
    let watch = server.fake.watched().await;
    watch.open(1, BEAT).await;
    server.knows(1).await;
}

#[tokio::test(start_paused = true)]
async fn the_watch_ends_with_the_last_layer() {
    let (server, watch) = Server::watching(1).await;
    let Server { fake: _fake, layer } = server;
    let service = layer.layer(service_fn(echo));
    drop(layer);
    sleep(Duration::from_millis(1)).await;
    let closed = tokio::time::timeout(Duration::from_millis(1), watch.closed()).await;
    assert!(closed.is_err(), "a service lives");
    drop(service);
    watch.closed().await;
}
