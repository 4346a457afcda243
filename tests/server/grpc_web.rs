//! gRPC-Web, as browsers speak it over HTTP/1.1.

use http::{Method, StatusCode};
use hub_proto::hub::api_keys::v1::WhoAmIResponse;
use prost::Message;

use crate::support::{Answer, TestHub, frame, request};

async fn who_am_i(hub: &TestHub, key: &str) -> Answer {
    let bearer = format!("Bearer {key}");
    let headers = [
        ("content-type", "application/grpc-web+proto"),
        ("authorization", bearer.as_str()),
    ];
    let path = "/hub.api_keys.v1.ApiKeys/WhoAmI";
    request(hub.addr, Method::POST, path, &headers, frame(&[])).await
}

/// Message frames and the text of the trailer frame.
fn frames(mut body: &[u8]) -> (Vec<&[u8]>, String) {
    let (mut messages, mut trailers) = (Vec::new(), String::new());
    while let [flags, a, b, c, d, rest @ ..] = body {
        let (content, next) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        match flags {
            0 => messages.push(content),
            0x80 => trailers.push_str(std::str::from_utf8(content).unwrap()),
            other => panic!("flags {other}"),
        }
        body = next;
    }
    (messages, trailers)
}

both_databases! {
    async fn an_answer_has_its_trailers_in_the_body(hub: TestHub) {
        let answer = who_am_i(&hub, &hub.operator_key).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("content-type"), "application/grpc-web+proto");
        assert!(answer.header("x-request-id").starts_with("req_"));
        let (messages, trailers) = frames(&answer.body);
        assert!(trailers.contains("grpc-status:0"), "{trailers}");
        let who = WhoAmIResponse::decode(messages[0]).unwrap();
        assert_eq!(who.api_key.unwrap().scopes, ["hub:*"]);
    }

    async fn an_error_has_its_details(hub: TestHub) {
        let answer = who_am_i(&hub, "nonsense").await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.header("x-request-id").starts_with("req_"));
        assert_eq!(answer.header("grpc-status"), "16");
        assert!(answer.header("grpc-message").contains("KEY_MALFORMED"), "{answer:?}");
        assert!(!answer.header("grpc-status-details-bin").is_empty());
    }
}
