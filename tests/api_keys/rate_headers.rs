//! What is left of the limit of the hub's own API: in every answer to a key that is known.

use http::{HeaderMap, Method};
use hub_client::proto::hub::api_keys::v1::ApiKey;
use hub_client::proto::hub::platform::v1::CreateTenantRequest;
use hub_core::storage::Sql;
use hub_proto::policy::method_policies;
use prost::Message;

use super::verify::{self, tickets, told, verify};
use super::{create, new_key, revoke};
use crate::support::{Answer, Backend, TestHub, frame, post_grpc, post_json, request};

const WHO_AM_I: &str = "hub.api_keys.v1.ApiKeys/WhoAmI";
const PUBLISH: &str = "hub.event_bus.v1.EventBus/Publish";

/// What is left, if the answer says it, all of it.
#[track_caller]
fn left(headers: &HeaderMap) -> Option<u64> {
    let number = |name: &str| {
        let value = headers.get(format!("x-ratelimit-{name}"))?;
        value.to_str().unwrap().parse::<u64>().ok()
    };
    let told = [number("limit"), number("remaining"), number("reset")];
    let some = told.iter().flatten().count();
    assert!(some == 0 || some == 3, "{headers:?}");
    told[1]
}

/// A hub with a limit of 1000 calls, where nothing becomes free while a test runs.
async fn limited(backend: Backend) -> TestHub {
    let hub = TestHub::options(backend).manual_clock().limits(|limits| {
        limits.api_requests_per_minute = 1000;
        limits.json_bytes_max = 500;
    });
    hub.start().await
}

/// A request over HTTP/1.1 with a key.
async fn send(hub: &TestHub, key: &str, kind: &str, method: Method, body: &[u8]) -> Answer {
    let bearer = format!("Bearer {key}");
    let mut headers = vec![("content-type", kind)];
    if !key.is_empty() {
        headers.push(("authorization", &bearer));
    }
    request(
        hub.addr,
        method,
        &format!("/{WHO_AM_I}"),
        &headers,
        body.to_vec(),
    )
    .await
}

async fn over_grpc(hub: &TestHub, method: &str, key: &str, body: &[u8]) -> Answer {
    let bearer = format!("Bearer {key}");
    post_grpc(
        hub.addr,
        method,
        &[("authorization", &bearer)],
        body.to_vec(),
    )
    .await
}

/// Each way to send what is refused before or behind admission.
async fn malformed(hub: &TestHub, key: &str) -> Vec<(&'static str, Answer)> {
    let json = "application/json";
    let web = "application/grpc-web+proto";
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(600));
    let garbage = frame(b"\xff\xff");
    vec![
        (
            "no JSON",
            send(hub, key, json, Method::POST, b"{\"a\":").await,
        ),
        (
            "too large",
            send(hub, key, json, Method::POST, large.as_bytes()).await,
        ),
        ("a GET", send(hub, key, json, Method::GET, b"").await),
        (
            "another type",
            send(hub, key, "text/plain", Method::POST, b"{}").await,
        ),
        (
            "gRPC over HTTP/1.1",
            send(hub, key, "application/grpc", Method::POST, b"").await,
        ),
        (
            "gRPC-Web",
            send(hub, key, web, Method::POST, &garbage).await,
        ),
        ("gRPC", over_grpc(hub, WHO_AM_I, key, &garbage).await),
        ("no frame", over_grpc(hub, WHO_AM_I, key, b"garbage").await),
    ]
}

both_databases! {
    async fn what_is_malformed_is_told_what_is_left_if_the_key_is_known(backend: Backend) {
        let hub = limited(backend).await;
        // Not in memory yet, whichever way comes first.
        let key = hub.key("", &[]).await;
        let before = left(&post_json(hub.addr, WHO_AM_I, &key, "{}").await.headers).unwrap();
        for (way, answer) in malformed(&hub, &key).await {
            let left = left(&answer.headers);
            assert!(left.is_some_and(|left| left <= before), "{way}: {answer:?}");
        }
        // What never came to admission counts nothing: the last three are gRPC, and did.
        let after = left(&post_json(hub.addr, WHO_AM_I, &key, "{}").await.headers).unwrap();
        assert_eq!(before - after, 4);
        let unknown = hub_api_keys::Plaintext::generate().unwrap();
        for nobody in ["", unknown.expose(), "tos_damaged"] {
            for (way, answer) in malformed(&hub, nobody).await {
                assert_eq!(left(&answer.headers), None, "{way}: {answer:?}");
            }
        }
    }

    async fn a_key_that_is_used_first_in_a_malformed_call_is_told_too(backend: Backend) {
        let hub = limited(backend).await;
        let key = hub.key("", &[]).await;
        let answer = send(&hub, &key, "application/json", Method::POST, b"[").await;
        assert!(left(&answer.headers).is_some(), "{answer:?}");
    }

    async fn every_unary_rpc_tells_it_whatever_it_answers(backend: Backend) {
        let hub = limited(backend).await;
        let narrow = hub.key("psa", &[]).await;
        let wide = hub.key("psa", &["hub:*"]).await;
        let policies = method_policies().iter().filter(|policy| {
            !policy.public && !policy.server_streaming && !policy.client_streaming
        });
        for policy in policies {
            for key in [&narrow, &wide] {
                let answer = over_grpc(&hub, policy.method, key, &frame(&[])).await;
                assert!(left(&answer.headers).is_some(), "{}: {answer:?}", policy.method);
                let answer = post_json(hub.addr, policy.method, key, "{}").await;
                assert!(left(&answer.headers).is_some(), "{}: {answer:?}", policy.method);
            }
        }
    }

    async fn a_call_of_a_method_that_there_is_not_tells_it(backend: Backend) {
        let hub = limited(backend).await;
        let key = hub.key("", &[]).await;
        let method = "hub.event_bus.v1.EventBus/Publsh";
        let answer = post_json(hub.addr, method, &key, "{}").await;
        assert!(left(&answer.headers).is_some(), "{answer:?}");
        let answer = over_grpc(&hub, method, &key, &frame(&[])).await;
        assert!(left(&answer.headers).is_some(), "{answer:?}");
        let unknown = hub_api_keys::Plaintext::generate().unwrap();
        let answer = over_grpc(&hub, method, unknown.expose(), &frame(&[])).await;
        assert_eq!(left(&answer.headers), None);
    }

    async fn a_call_that_ends_at_its_deadline_tells_it(backend: Backend) {
        let hub = limited(backend).await;
        let lock = Sql::each(
            "select head from journal_heads where tenant_no = 0",
            "select head from journal_heads where tenant_no = 0 for update",
        );
        let method = "hub.platform.v1.Platform/CreateTenant";
        let name = CreateTenantRequest { name: "Late".into(), ..Default::default() };
        let body = frame(&name.encode_to_vec());
        let mut blocking = hub.core.db.begin().await.unwrap();
        let _: (i64,) = blocking.query(lock).one().await.unwrap();
        let bearer = format!("Bearer {}", hub.operator_key);
        let key = ("authorization", bearer.as_str());
        let grpc = [key, ("grpc-timeout", "50m")];
        let grpc = post_grpc(hub.addr, method, &grpc, body.clone()).await;
        assert_eq!(grpc.grpc_status().code(), tonic::Code::DeadlineExceeded);
        let path = format!("/{method}");
        let web = [key, ("grpc-timeout", "50m"), ("content-type", "application/grpc-web+proto")];
        let web = request(hub.addr, Method::POST, &path, &web, body).await;
        assert_eq!(web.header("grpc-status"), "4", "{web:?}");
        let json = [key, ("connect-timeout-ms", "50"), ("content-type", "application/json")];
        let json = request(hub.addr, Method::POST, &path, &json, r#"{"name":"Late"}"#).await;
        assert_eq!(json.status, 504, "{json:?}");
        let told = [grpc, web, json].map(|answer| left(&answer.headers).unwrap());
        assert_eq!(told[0] - told[2], 2, "each was admitted, and counted");
    }

    async fn a_key_that_works_no_more_is_told_that_nothing_is_left(backend: Backend) {
        let hub = limited(backend).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let verifier = verify::backend(&hub).await;
        let revoked = create(&admin, new_key("revoked", &["psa:*"])).await.unwrap();
        let cidrs = vec!["10.0.0.0/8".to_owned()];
        let office = ApiKey { allowed_cidrs: cidrs, ..new_key("office", &["psa:*"]) };
        let office = create(&admin, office).await.unwrap().plaintext;
        let end = hub_core::clock::timestamp(hub.clock.now() + 1_000_000);
        let short = ApiKey { expire_time: Some(end), ..new_key("short", &["psa:*"]) };
        let short = create(&admin, short).await.unwrap().plaintext;
        revoke(&admin, &revoked.api_key.unwrap().key_id, "leaked").await.unwrap();
        hub.clock.advance(std::time::Duration::from_secs(1));
        let web = "application/grpc-web+proto";
        for (key, why) in [
            (&revoked.plaintext, "KEY_REVOKED"),
            (&short, "KEY_EXPIRED"),
            (&office, "IP_NOT_ALLOWED"),
        ] {
            let json = post_json(hub.addr, WHO_AM_I, key, "{}").await;
            assert_eq!(json.reason(), why);
            for answer in [
                json,
                over_grpc(&hub, WHO_AM_I, key, &frame(&[])).await,
                send(&hub, key, web, Method::POST, &frame(&[])).await,
                send(&hub, key, "application/json", Method::POST, b"[").await,
            ] {
                // Its holder learns nothing of what the tenant does.
                assert_eq!(left(&answer.headers), Some(0), "{why}: {answer:?}");
            }
            let client_ip = "192.0.2.7".to_owned();
            let asked = hub_client::proto::hub::api_keys::v1::VerifyApiKeyRequest {
                client_ip,
                ..tickets(key)
            };
            let decided = verify(&verifier, asked).await.unwrap();
            assert_eq!(told(&decided), (403, why));
            assert!(decided.headers.contains_key("X-RateLimit-Remaining"), "{decided:?}");
            let bearer = format!("Bearer {key}");
            let path = "/authz?product=psa&action=tickets.read";
            let headers = [("authorization", &*bearer), ("x-forwarded-for", "192.0.2.7")];
            let asked = request(hub.addr, Method::GET, path, &headers, "").await;
            assert_eq!(asked.status, 403);
            assert!(left(&asked.headers).is_some(), "{asked:?}");
        }
    }

    async fn a_refused_call_tells_the_limit_of_the_tenant_that_it_names(backend: Backend) {
        let hub = limited(backend).await;
        let key = ApiKey {
            product: "psa".to_owned(),
            all_tenants: true,
            ..new_key("psa backend", &["hub:events.publish"])
        };
        let key = create(&hub.client(&hub.operator_key), key).await.unwrap().plaintext;
        let (tenant, bearer) = (&hub.first_tenant().id, format!("Bearer {key}"));
        let headers = [
            ("authorization", &*bearer),
            ("content-type", "application/json"),
            ("x-hub-tenant", tenant),
        ];
        let ask = async |method: &str, body: &'static str| {
            let path = format!("/{method}");
            request(hub.addr, Method::POST, &path, &headers, body).await
        };
        let admitted = ask(WHO_AM_I, "{}").await;
        let refused = ask("hub.api_keys.v1.ApiKeys/ListApiKeys", "{}").await;
        assert_eq!(refused.reason(), "SCOPE_MISSING");
        let malformed = ask(PUBLISH, "[").await;
        let of_tenant = left(&admitted.headers);
        assert!(of_tenant.is_some());
        assert_eq!(left(&refused.headers), of_tenant);
        assert_eq!(left(&malformed.headers), of_tenant);
    }
}
