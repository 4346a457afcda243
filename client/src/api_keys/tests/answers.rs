//! What goes to the service, and what to the caller.

use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::*;

#[tokio::test(start_paused = true)]
async fn an_allowed_request_goes_on_with_its_caller_and_without_its_key() {
    let (mut server, _watch) = Server::watching(1).await;
    let request = get(KEY)
        .header("x-hub-key-id", "key_of_another")
        .header("X-Hub-Tenant-Id", "tnt_of_another")
        .header("x-hub-scopes", "hub:*")
        .header("accept", "*/*");
    let answered = server.send(request);
    let call = server.asked().await;
    assert_eq!(call.request.key, KEY);
    assert_eq!(call.request.product, "psa");
    assert_eq!(call.request.action, "tickets.read");
    assert_eq!(call.request.host, "psa.example.com");
    assert_eq!(call.request.path, "/");
    assert_eq!(call.request.client_ip, "");
    call.tell(allowed("key_1", 1, 99));
    let answered = answered.await.unwrap();
    assert_eq!(answered.status(), 200);
    let seen = answered.json();
    assert_eq!(seen["keyId"], "key_1");
    assert_eq!(seen["tenantId"], "tnt_1");
    assert_eq!(seen["product"], "portal");
    assert_eq!(seen["scopes"][0], "psa:tickets.*");
    assert_eq!(seen["callId"], "req_1");
    assert_eq!(seen["degraded"], false);
    assert_eq!(seen["headers"], serde_json::json!(["accept"]));
    assert_eq!(answered.header("x-ratelimit-limit"), "100", "the hub's");
    assert_eq!(answered.header("x-ratelimit-remaining"), "99");
    assert_eq!(answered.header("x-ratelimit-reset"), "1767225660");
    assert_eq!(answered.header("retry-after"), "");
}

#[tokio::test(start_paused = true)]
async fn action_path_and_address_are_those_of_the_request_if_the_layer_says_so() {
    let (mut server, _watch) = Server::watching(1).await;
    server.layer = server
        .layer
        .action_of(|request| format!("tickets.{}", request.method.as_str().to_lowercase()))
        .path_of(|request| request.uri.path().to_owned())
        .client_address_header(http::HeaderName::from_static("x-real-ip"));
    let _answered = server.send(get(KEY).header("x-real-ip", "::ffff:192.0.2.1"));
    let call = server.asked().await;
    assert_eq!(call.request.action, "tickets.get");
    assert_eq!(call.request.path, "/tickets/1");
    assert_eq!(call.request.client_ip, "192.0.2.1");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_a_problem_with_the_rate_headers() {
    let (mut server, _watch) = Server::watching(1).await;
    server.layer = server.layer.pages("https://hub.example.com/");
    let refused = server.get_told(1, limited(0)).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.header("content-type"), "application/problem+json");
    assert_eq!(refused.header("cache-control"), "no-store");
    assert_eq!(refused.header("x-ratelimit-remaining"), "0");
    assert_eq!(refused.header("retry-after"), "7");
    let expected = serde_json::json!({
        "type": "https://hub.example.com/errors/RATE_LIMITED",
        "title": "RATE_LIMITED",
        "status": 429,
        "detail": "What to do.",
        "reason": "RATE_LIMITED",
        "keyId": "key_1",
        "callId": "req_1",
        "metadata": { "limit": "100", "remaining": "0", "resetAt": "" },
    });
    assert_eq!(refused.json(), expected);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_key_is_refused_without_asking_the_hub() {
    let mut server = Server::start();
    for (request, reason) in [
        (Request::get("/"), "KEY_MISSING"),
        (get("tos_short"), "KEY_MALFORMED"),
        (get(KEY).header("x-api-key", KEY), "KEY_MALFORMED"),
        (get(KEY).uri(format!("/?key={KEY}")), "KEY_MALFORMED"),
    ] {
        let refused = server.send(request).await.unwrap();
        assert_eq!(refused.status(), 401);
        assert_eq!(refused.json()["reason"], reason);
        assert_eq!(refused.header("www-authenticate"), "Bearer");
    }
    let long = get(KEY).uri(format!("/{}", "a".repeat(1024)));
    server.layer = server.layer.path_of(|request| request.uri.to_string());
    let refused = server.send(long).await.unwrap();
    assert_eq!(refused.status(), 400);
    assert!(server.fake.is_not_asked());
}

#[tokio::test(start_paused = true)]
async fn what_the_hub_says_of_the_service_is_not_told_to_its_caller() {
    let (mut server, _watch) = Server::watching(1).await;
    let status = Status::permission_denied("the key of psa lacks hub:keys.verify");
    let refused = server.get();
    server.asked().await.fail(status);
    let refused = refused.await.unwrap();
    assert_eq!(refused.status(), 500);
    assert!(!refused.json().to_string().contains("lacks"));
    let cause = refused.head.extensions.get::<crate::Error>().unwrap();
    assert!(cause.message().contains("lacks"));
}

/// The status of an answer to a call of gRPC.
async fn grpc(server: &mut Server, told: VerifyApiKeyResponse) -> (Answered, Status) {
    let call = get(KEY).header("content-type", "application/grpc+proto");
    let refused = server.send(call);
    server.tell(1, told).await;
    let refused = refused.await.unwrap();
    assert_eq!(refused.status(), 200);
    assert_eq!(refused.header("content-type"), "application/grpc");
    assert!(refused.body.is_empty(), "trailers only");
    let status = Status::from_header_map(&refused.head.headers).unwrap();
    (refused, status)
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_a_call_is_a_status_with_details() {
    let (mut server, _watch) = Server::watching(1).await;
    server.layer = server.layer.pages("https://hub.example.com");
    let (refused, status) = grpc(&mut server, limited(0)).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().starts_with("What to do. [RATE_LIMITED]"));
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(
        (info.reason.as_str(), info.domain.as_str()),
        ("RATE_LIMITED", "hub.api_keys")
    );
    assert_eq!(info.metadata["limit"], "100");
    assert_eq!(info.metadata["callId"], "req_1");
    let retry = details.retry_info().unwrap().retry_delay;
    assert_eq!(retry, Some(Duration::from_secs(7)));
    let violations = &details.quota_failure().unwrap().violations;
    assert_eq!(violations[0].subject, "tenant");
    let page = &details.help().unwrap().links[0].url;
    assert_eq!(page, "https://hub.example.com/errors/RATE_LIMITED");
    assert_eq!(refused.header("x-ratelimit-remaining"), "0");
    assert_eq!(refused.header("retry-after"), "7");
}

#[tokio::test(start_paused = true)]
async fn each_refusal_has_the_code_of_its_reason_and_its_variables() {
    let (mut server, _watch) = Server::watching(1).await;
    server.layer = server.layer.portion_max(1);
    let told = denied(ErrorReason::ScopeMissing, 403, 1);
    let (_, status) = grpc(&mut server, told).await;
    assert_eq!(status.code(), Code::PermissionDenied);
    let info = status.get_error_details();
    let metadata = &info.error_info().unwrap().metadata;
    assert_eq!(metadata["keyId"], "key_1");
    assert_eq!(metadata["missingScope"], "psa:tickets.read");
    assert_eq!(metadata["heldScopes"], "psa:tickets.*");
    let unknown = VerifyApiKeyResponse {
        reason: ErrorReason::KeyNotRecognized.into(),
        http_status: 401,
        ..Default::default()
    };
    let (_, status) = grpc(&mut server, unknown).await;
    assert_eq!(status.code(), Code::Unauthenticated);
    let info = status.get_error_details();
    let info = info.error_info().unwrap();
    assert_eq!(info.reason, "KEY_NOT_RECOGNIZED");
    assert!(info.metadata.is_empty(), "nothing more is told");
}
