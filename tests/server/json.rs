//! Unary JSON over HTTP: the Connect protocol.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::{Method, StatusCode};
use hub_proto::hub::api_keys::v1::{WhoAmIRequest, WhoAmIResponse};
use prost::Message;
use serde_json::json;

use crate::support::{Answer, Backend, TestHub, post_json, request};

const WHO_AM_I: &str = "hub.api_keys.v1.ApiKeys/WhoAmI";
const PUBLISH: &str = "hub.event_bus.v1.EventBus/Publish";

async fn post(hub: &TestHub, method: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    request(
        hub.addr,
        Method::POST,
        &format!("/{method}"),
        headers,
        body.to_owned(),
    )
    .await
}

both_databases! {
    async fn a_call_is_answered_in_json(hub: TestHub) {
        let key = hub.key("psa", &["hub:events.publish"]).await;
        let answer = post_json(hub.addr, WHO_AM_I, &key, "{}").await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("content-type"), "application/json");
        assert!(answer.header("x-request-id").starts_with("req_"));
        let json = answer.json();
        assert_eq!(json["tenantId"], hub.first_tenant().id);
        assert_eq!(json["apiKey"]["product"], "psa");
        assert_eq!(json["apiKey"]["state"], "API_KEY_STATE_ACTIVE");
    }

    async fn no_body_at_all_is_the_empty_request(hub: TestHub) {
        let answer = post_json(hub.addr, WHO_AM_I, &hub.operator_key, "").await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    }

    async fn an_event_published_in_json_is_stored_once(hub: TestHub) {
        let key = hub.key("psa", &["hub:events.publish"]).await;
        let body = json!({"events": [{
            "id": "1", "source": "/psa", "specVersion": "1.0", "type": "ticket.created",
            "textData": "{\"id\":42}",
        }]})
        .to_string();
        let first = post_json(hub.addr, PUBLISH, &key, &body).await;
        assert_eq!(first.status, StatusCode::OK, "{}", first.text());
        assert_eq!(first.json()["results"][0].get("duplicate"), None);
        let again = post_json(hub.addr, PUBLISH, &key, &body).await;
        let (first, again) = (&first.json()["results"][0], &again.json()["results"][0]);
        assert_eq!(again["duplicate"], true);
        assert_eq!(again["sequence"], first["sequence"]);
    }

    async fn the_same_url_takes_protobuf_without_framing(hub: TestHub) {
        let bearer = format!("Bearer {}", hub.operator_key);
        let headers = [("content-type", "application/proto"), ("authorization", bearer.as_str())];
        let body = WhoAmIRequest {}.encode_to_vec();
        let answer = request(hub.addr, Method::POST, &format!("/{WHO_AM_I}"), &headers, body).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("content-type"), "application/proto");
        let who = WhoAmIResponse::decode(answer.body).unwrap();
        assert_eq!(who.api_key.unwrap().scopes, ["hub:*"]);
        // An error is JSON all the same.
        let answer = post(&hub, WHO_AM_I, &headers[..1], "").await;
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.reason(), "KEY_MISSING");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }

    async fn an_error_has_its_http_status_and_its_details(hub: TestHub) {
        let key = hub.key("psa", &[]).await;
        let answer = post_json(hub.addr, PUBLISH, &key, r#"{"events":[{"id":"1"}]}"#).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        let json = answer.json();
        assert_eq!(json["code"], "permission_denied");
        let info = &json["details"][0];
        assert_eq!(info["type"], "google.rpc.ErrorInfo");
        assert_eq!(info["debug"]["reason"], "SCOPE_MISSING");
        assert_eq!(info["debug"]["metadata"]["missingScope"], "hub:events.publish");
        assert_eq!(info["debug"]["metadata"]["callId"], answer.header("x-request-id"));
        let value = STANDARD_NO_PAD.decode(info["value"].as_str().unwrap()).unwrap();
        let decoded = tonic_types::pb::ErrorInfo::decode(value.as_slice()).unwrap();
        assert_eq!(decoded.reason, "SCOPE_MISSING");
    }

    async fn a_field_that_violates_its_limit_is_named(hub: TestHub) {
        let method = "hub.api_keys.v1.ApiKeys/GetApiKey";
        let answer = post_json(hub.addr, method, &hub.operator_key, r#"{"keyId":"no"}"#).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(answer.reason(), "FIELD_INVALID");
        let json = answer.json();
        let details = json["details"].as_array().unwrap();
        let bad = details.iter().find(|detail| detail["type"] == "google.rpc.BadRequest").unwrap();
        assert_eq!(bad["debug"]["fieldViolations"][0]["field"], "key_id");
    }

    async fn json_that_is_no_request_is_refused_with_the_place(hub: TestHub) {
        for (body, told) in [("{\"evnts\":[]}", "evnts"), ("[", "line 1"), ("{} {}", "trailing")] {
            let answer = post_json(hub.addr, PUBLISH, &hub.operator_key, body).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
            assert_eq!(answer.reason(), "FIELD_INVALID", "{body}");
            assert!(answer.text().contains(told), "{body}: {}", answer.text());
        }
    }

    async fn another_content_type_is_told_which_ones_are_read(hub: TestHub) {
        for kind in ["application/x-www-form-urlencoded", "text/plain", "application/grpc+json"] {
            let answer = post(&hub, WHO_AM_I, &[("content-type", kind)], "{}").await;
            assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind}");
            assert_eq!(answer.reason(), "FIELD_INVALID", "{kind}");
            assert!(answer.text().contains("application/json"), "{}", answer.text());
        }
        let answer = post(&hub, WHO_AM_I, &[], "{}").await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
        let answer = post(&hub, WHO_AM_I, &headers, "{}").await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }

    async fn a_get_is_told_to_post(hub: TestHub) {
        let answer = request(hub.addr, Method::GET, &format!("/{WHO_AM_I}"), &[], "").await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(answer.header("allow"), "POST");
    }

    async fn grpc_over_http_1_is_told_what_it_needs(hub: TestHub) {
        let answer = post(&hub, WHO_AM_I, &[("content-type", "application/grpc")], "").await;
        assert_eq!(answer.status, StatusCode::HTTP_VERSION_NOT_SUPPORTED);
        assert!(answer.text().contains("HTTP/2"), "{}", answer.text());
    }

    async fn a_stream_is_told_to_use_grpc(hub: TestHub) {
        let method = "hub.event_bus.v1.EventBus/Subscribe";
        let answer = post_json(hub.addr, method, &hub.operator_key, "{}").await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(answer.reason(), "NOT_IMPLEMENTED");
        assert!(answer.text().contains("stream"), "{}", answer.text());
    }

    async fn a_body_that_is_too_large_tells_the_limit(backend: Backend) {
        let hub = TestHub::options(backend).limits(|limits| limits.json_bytes_max = 100);
        let hub = hub.start().await;
        let body = format!("{{\"events\":[{}]}}", " ".repeat(100));
        let answer = post_json(hub.addr, PUBLISH, &hub.operator_key, &body).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer.reason(), "MESSAGE_TOO_LARGE");
        let info = &answer.json()["details"][0]["debug"]["metadata"];
        assert_eq!((&info["limit"], &info["size"]), (&json!("100"), &json!("113")));
    }

    async fn a_path_that_nothing_serves_suggests_what_was_meant(hub: TestHub) {
        let method = "hub.event_bus.v1.EventBus/Publsh";
        let answer = post_json(hub.addr, method, &hub.operator_key, "{}").await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert_eq!(answer.reason(), "NOT_IMPLEMENTED");
        assert!(answer.text().contains(PUBLISH), "{}", answer.text());
    }
}
