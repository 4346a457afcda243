//! Errors that the transport makes itself, and what every error carries.

use bytes::Bytes;
use http::Method;
use hub_core::storage::Sql;
use hub_proto::hub::event_bus::v1::{CloudEvent, PublishStreamRequest};
use hub_proto::hub::platform::v1::CreateTenantRequest;
use prost::Message;
use tokio_stream::StreamExt;
use tonic::{Code, Status};
use tonic_types::{ErrorInfo, StatusExt};

use crate::support::{Answer, Backend, TestHub, frame, post_grpc, post_json, request};

const WHO_AM_I: &str = "hub.api_keys.v1.ApiKeys/WhoAmI";
const DETAILS_BYTES_MAX: usize = 4096;

/// Checks what every error must have, and returns its reason and metadata.
fn checked(status: &Status) -> ErrorInfo {
    assert!(
        status.details().len() < DETAILS_BYTES_MAX,
        "{}",
        status.details().len()
    );
    let infos = status.get_error_details_vec();
    let infos = infos
        .iter()
        .filter(|detail| matches!(detail, tonic_types::ErrorDetail::ErrorInfo(_)));
    assert_eq!(infos.count(), 1, "{status:?}");
    let info = status.get_details_error_info().unwrap();
    assert!(info.metadata["callId"].starts_with("req_"));
    let page = &status.get_details_help().unwrap().links[0].url;
    let ending = format!(" [{}] {page}", info.reason);
    assert!(status.message().ends_with(&ending), "{}", status.message());
    assert!(
        page.ends_with(&format!("/errors/{}", info.reason)),
        "{page}"
    );
    info
}

async fn call(hub: &TestHub, method: &str, body: impl Into<Bytes>) -> Answer {
    let bearer = format!("Bearer {}", hub.operator_key);
    post_grpc(hub.addr, method, &[("authorization", &bearer)], body).await
}

both_databases! {
    async fn every_answer_has_an_id_that_its_error_repeats(hub: TestHub) {
        let mut seen = std::collections::HashSet::new();
        let pages = ["/livez", "/metrics", "/errors/KEY_MISSING", "/nothing", "/hub.x.v1.X/Y"];
        for path in pages {
            let answer = request(hub.addr, Method::GET, path, &[], "").await;
            assert!(seen.insert(answer.header("x-request-id").to_owned()), "{path}");
        }
        for (key, method) in [(&*hub.operator_key, WHO_AM_I), ("", WHO_AM_I), ("", "no/Such")] {
            let answer = post_json(hub.addr, method, key, "{}").await;
            assert!(seen.insert(answer.header("x-request-id").to_owned()), "{method}");
        }
        for method in [WHO_AM_I, "no/Such"] {
            let answer = call(&hub, method, frame(&[])).await;
            let id = answer.header("x-request-id").to_owned();
            if answer.grpc_status().code() != Code::Ok {
                assert_eq!(checked(&answer.grpc_status()).metadata["callId"], id);
            }
            assert!(seen.insert(id), "{method}");
        }
        assert!(seen.iter().all(|id| id.starts_with("req_")), "{seen:?}");
    }

    async fn an_id_that_the_caller_sends_is_not_believed(hub: TestHub) {
        let headers = [("x-request-id", "req_mine")];
        let answer = post_grpc(hub.addr, WHO_AM_I, &headers, frame(&[])).await;
        assert_ne!(answer.header("x-request-id"), "req_mine");
    }

    async fn a_method_that_does_not_exist_suggests_what_was_meant(hub: TestHub) {
        let status = call(&hub, "hub.event_bus.v1.EventBus/Publsh", frame(&[])).await.grpc_status();
        assert_eq!(status.code(), Code::Unimplemented);
        let info = checked(&status);
        assert_eq!(info.reason, "NOT_IMPLEMENTED");
        assert_eq!(info.metadata["method"], "hub.event_bus.v1.EventBus/Publsh");
        assert_eq!(info.metadata["didYouMean"], "hub.event_bus.v1.EventBus/Publish");
    }

    async fn bytes_that_are_no_message_are_the_callers_mistake(hub: TestHub) {
        let no_flag = [7, 0, 0, 0, 0];
        let compressed = [1, 0, 0, 0, 1, 9];
        let cut = [0, 0, 0, 0, 9, 1];
        let no_protobuf = [0, 0, 0, 0, 2, 255, 255];
        let bodies: [&[u8]; 6] = [&[], &no_flag, &compressed, &cut, &no_protobuf, &[0xab; 300]];
        for body in bodies {
            let status = call(&hub, WHO_AM_I, body.to_vec()).await.grpc_status();
            let info = checked(&status);
            let found = (status.code(), info.reason.as_str());
            let expected = match body {
                // Its first bytes say that it is larger than anything that is read.
                [0xab, ..] => found,
                _ => (Code::InvalidArgument, "FIELD_INVALID"),
            };
            assert_eq!(found, expected, "{body:?}: {status}");
            assert_ne!(status.code(), Code::Internal, "{body:?}");
        }
        let answer = call(&hub, WHO_AM_I, frame(&[])).await;
        assert_eq!(answer.grpc_status().code(), Code::Ok);
    }

    async fn a_message_that_is_too_large_tells_size_and_limit(backend: Backend) {
        let hub = TestHub::options(backend).limits(|limits| limits.message_bytes_max = 2000);
        let hub = hub.start().await;
        for method in [WHO_AM_I, "hub.event_bus.v1.EventBus/Publish"] {
            let key = hub.key("psa", &["hub:events.publish"]).await;
            let bearer = format!("Bearer {key}");
            let headers = [("authorization", bearer.as_str())];
            let answer = post_grpc(hub.addr, method, &headers, frame(&[0; 3000])).await;
            let status = answer.grpc_status();
            assert_eq!(status.code(), Code::ResourceExhausted, "{method}: {status}");
            let info = checked(&status);
            assert_eq!(info.reason, "MESSAGE_TOO_LARGE");
            assert_eq!((&*info.metadata["size"], &*info.metadata["limit"]), ("3000", "2000"));
        }
    }

    async fn a_call_that_takes_too_long_ends_at_its_deadline(hub: TestHub) {
        let lock = Sql::each(
            "select head from journal_heads where tenant_no = 0",
            "select head from journal_heads where tenant_no = 0 for update",
        );
        let mut blocking = hub.core.db.begin().await.unwrap();
        let _: (i64,) = blocking.query(lock).one().await.unwrap();
        let request = CreateTenantRequest { name: "Late".into(), ..Default::default() };
        let bearer = format!("Bearer {}", hub.operator_key);
        let headers = [("authorization", bearer.as_str()), ("grpc-timeout", "50m")];
        let method = "hub.platform.v1.Platform/CreateTenant";
        let answer = post_grpc(hub.addr, method, &headers, frame(&request.encode_to_vec())).await;
        let status = answer.grpc_status();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        let info = checked(&status);
        assert_eq!((&*info.reason, &*info.metadata["cause"]), ("STORE_BUSY", "deadline"));
        assert!(status.get_details_retry_info().is_some());
    }

    async fn an_error_after_a_stream_began_has_all_its_details(hub: TestHub) {
        let key = hub.key("psa", &["hub:events.publish"]).await;
        let bad = CloudEvent { source: "/psa".into(), ..CloudEvent::default() };
        let frame = PublishStreamRequest { frame: 1, events: vec![bad], ..Default::default() };
        let frames = tokio_stream::iter([frame]).chain(tokio_stream::pending());
        let answer = hub.client(&key).event_bus().publish_stream(frames).await.unwrap();
        let id = answer.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
        let mut answers = answer.into_inner();
        assert!(answers.message().await.unwrap().is_some(), "the stream opened");
        let status = loop {
            match answers.message().await {
                Ok(frame) => assert!(frame.is_some(), "the stream ended without an error"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::InvalidArgument);
        let info = checked(&status);
        assert_eq!(info.reason, "EVENT_INVALID");
        assert_eq!(info.metadata["callId"], id);
    }
}
