//! What is asked, for whom, and what is counted.

use tonic::Status;

use super::*;

fn down() -> Status {
    Status::unavailable("down")
}

#[tokio::test(start_paused = true)]
async fn every_request_is_counted_before_and_told_what_is_left() {
    let (mut server, _watch) = Server::watching(1).await;
    let left = |answered: &Answered| answered.header("x-ratelimit-remaining").to_owned();
    let one = server.get_told(1, allowed("key_1", 1, 99)).await;
    let two = server.get_told(2, allowed("key_1", 1, 97)).await;
    let three = server.get_known().await;
    let four = server.get_told(4, allowed("key_1", 1, 93)).await;
    let mut told = vec![left(&one), left(&two), left(&three), left(&four)];
    for _ in 0..3 {
        told.push(left(&server.get_known().await));
    }
    assert_eq!(told, ["99", "98", "97", "96", "95", "94", "93"]);
    server.get_told(8, allowed("key_1", 1, 85)).await;
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_layer_says_is_counted_ahead() {
    let (mut server, _watch) = Server::watching(1).await;
    server.layer = server.layer.portion_max(1);
    for left in (90..100).rev() {
        server.get_told(1, allowed("key_1", 1, left)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_the_same_answer_ask_together() {
    let (mut server, _watch) = Server::watching(1).await;
    let first = server.get();
    let call = server.asked().await;
    let others: Vec<_> = (0..5).map(|_| server.get()).collect();
    let other_host = server.send(get(KEY).uri("http://crm.example.com/"));
    server
        .tell(1, denied(ErrorReason::BaseUrlMismatch, 403, 1))
        .await;
    assert_eq!(other_host.await.unwrap().status(), 403);
    assert_eq!(call.request.cost, Some(1));
    call.tell(allowed("key_1", 1, 99));
    server.tell(5, allowed("key_1", 1, 94)).await;
    assert_eq!(first.await.unwrap().status(), 200);
    for other in others {
        assert_eq!(other.await.unwrap().status(), 200);
    }
    assert!(server.fake.is_not_asked());
}

/// So many that came while one was asked for, which left `remaining`.
async fn all_behind_one(
    server: &mut Server,
    count: usize,
    remaining: u32,
) -> Vec<JoinHandle<Answered>> {
    let first = server.get();
    let call = server.asked().await;
    let others = (0..count).map(|_| server.get()).collect();
    tokio::task::yield_now().await;
    call.tell(allowed("key_1", 1, remaining));
    first.await.unwrap();
    others
}

#[tokio::test(start_paused = true)]
async fn as_many_are_let_through_as_fit_and_the_rest_is_refused() {
    let (mut server, _watch) = Server::watching(1).await;
    let others = all_behind_one(&mut server, 5, 3).await;
    server.tell(5, limited(3)).await;
    server.tell(3, allowed("key_1", 1, 0)).await;
    server.tell(2, limited(0)).await;
    let mut statuses = Vec::new();
    for other in others {
        statuses.push(other.await.unwrap().status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
}

#[tokio::test(start_paused = true)]
async fn how_many_fit_is_found_in_few_steps_though_the_hub_does_not_know_it() {
    let (mut server, _watch) = Server::watching(1).await;
    let others = all_behind_one(&mut server, 40, 40).await;
    for cost in [40, 39, 19, 9, 4] {
        server.tell(cost, limited(cost - 1)).await;
    }
    server.tell(2, allowed("key_1", 1, 0)).await;
    server.tell(38, limited(0)).await;
    let mut allowed = 0;
    for other in others {
        allowed += usize::from(other.await.unwrap().status().is_success());
    }
    assert_eq!(allowed, 2);
}

#[tokio::test(start_paused = true)]
async fn a_denial_by_rate_is_not_used_again() {
    let (mut server, _watch) = Server::watching(1).await;
    for _ in 0..3 {
        let refused = server.get_told(1, limited(0)).await;
        assert_eq!(refused.status(), 429);
    }
    assert_eq!(server.layer.decisions(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_denial_of_a_known_key_is_used_again_and_one_of_an_unknown_key_is_not() {
    let (mut server, _watch) = Server::watching(1).await;
    let told = denied(ErrorReason::ScopeMissing, 403, 1);
    server.get_told(1, told.clone()).await;
    server.get_told(2, told).await;
    let refused = server.get_known().await;
    assert_eq!(refused.status(), 403);
    assert_eq!(refused.header("x-ratelimit-remaining"), "50");
    let unknown = VerifyApiKeyResponse {
        reason: ErrorReason::KeyNotRecognized.into(),
        http_status: 401,
        epoch: 1,
        ..Default::default()
    };
    for _ in 0..3 {
        let refused = server.send(get("tos_pad00000000000000000000000017300FLFX"));
        server.tell(1, unknown.clone()).await;
        let refused = refused.await.unwrap();
        assert_eq!(refused.json()["reason"], "KEY_NOT_RECOGNIZED");
        assert_eq!(refused.json()["keyId"], "");
    }
    assert_eq!(server.layer.decisions(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_broke_is_tried_once_more() {
    let (mut server, _watch) = Server::watching(1).await;
    let answered = server.get();
    server.asked().await.fail(down());
    server.tell(1, allowed("key_1", 1, 99)).await;
    assert_eq!(answered.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn without_the_hub_known_keys_pass_and_others_are_refused() {
    let (mut server, watch) = Server::watching(1).await;
    server.get_told(1, allowed("key_1", 1, 99)).await;
    let known = server.get();
    server.asked().await.fail(down());
    server.asked().await.fail(down());
    let known = known.await.unwrap();
    assert_eq!(known.status(), 200);
    assert_eq!(known.json()["degraded"], true);
    let stranger = server.send(get(KEY).uri("http://crm.example.com"));
    server.asked().await.fail(down());
    server.asked().await.fail(down());
    let refused = stranger.await.unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.header("retry-after"), "1");
    watch.fail(down()).await;
    server.lost().await;
    server.fake.vanish().await;
    let refused = server.get();
    server.asked().await.fail(down());
    server.asked().await.fail(down());
    assert_eq!(refused.await.unwrap().status(), 503, "nobody is known");
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_does_not_answer_is_not_waited_for() {
    let (server, _watch) = Server::watching(1).await;
    let began = tokio::time::Instant::now();
    let refused = server.get().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(
        began.elapsed() <= Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_caller_has_gone_takes_no_other_with_it() {
    let (mut server, _watch) = Server::watching(1).await;
    let first = server.get();
    let call = server.asked().await;
    let (gone, second) = (server.get(), server.get());
    tokio::task::yield_now().await;
    first.abort();
    gone.abort();
    let _ = gone.await;
    call.tell(limited(0));
    server.tell(1, allowed("key_1", 1, 99)).await;
    assert_eq!(second.await.unwrap().status(), 200);
}
