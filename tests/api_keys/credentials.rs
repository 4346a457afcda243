//! What a call presents, and why it is refused.

use std::time::Duration;

use http::{Method, StatusCode};
use hub_client::proto::hub::api_keys::v1::ApiKey;
use prost_types::Timestamp;
use tonic::Code;

use super::{create, new_key, reason, revoke, who_am_i};
use crate::support::{
    Answer, Backend, Command, TestHub, TestProcess, frame, post_grpc, post_json, request,
};

const WHO_AM_I: &str = "/hub.api_keys.v1.ApiKeys/WhoAmI";

async fn presenting(hub: &TestHub, headers: &[&str]) -> Answer {
    let mut all = vec![("content-type", "application/json")];
    all.extend(headers.iter().map(|value| ("authorization", *value)));
    request(hub.addr, Method::POST, WHO_AM_I, &all, "{}").await
}

/// Well-formed, as the contract publishes the form; nobody has it.
const UNKNOWN: &str = "tos_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o51xqYGe";

both_databases! {
    async fn a_call_without_a_key_is_told_which_header_to_send(hub: TestHub) {
        let answer = presenting(&hub, &[]).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert_eq!(answer.reason(), "KEY_MISSING");
        let metadata = &answer.json()["details"][0]["debug"]["metadata"];
        assert_eq!(metadata["expectedHeader"], "authorization: Bearer tos_…");
    }

    async fn a_damaged_key_is_told_from_an_unknown_one(hub: TestHub) {
        let good = hub.key("", &[]).await;
        assert_eq!(presenting(&hub, &[&format!("Bearer {good}")]).await.status, StatusCode::OK);
        assert_eq!(presenting(&hub, &[&format!("bEARER {good}")]).await.status, StatusCode::OK);
        let mut damaged = good.clone();
        let last = damaged.pop().unwrap();
        damaged.push(if last == '0' { '1' } else { '0' });
        for bad in [
            format!("Bearer {damaged}"),
            format!("Bearer {}", &good[..39]),
            format!("Bearer {good}0"),
            format!("Bearer {good},{good}"),
            format!("Bearer {good}, Bearer {good}"),
            format!("Basic {good}"),
            good.clone(),
        ] {
            let answer = presenting(&hub, &[&bad]).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{bad}");
            assert_eq!(answer.reason(), "KEY_MALFORMED", "{bad}");
            assert!(!answer.text().contains(&good[4..30]), "the answer repeats the key");
        }
        let answer = presenting(&hub, &[&format!("Bearer {UNKNOWN}")]).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert_eq!(answer.reason(), "KEY_NOT_RECOGNIZED");
        let metadata = &answer.json()["details"][0]["debug"]["metadata"];
        let told: Vec<&String> = metadata.as_object().unwrap().keys().collect();
        assert_eq!(told, ["callId"], "nothing more is told");
    }

    async fn of_two_keys_neither_is_chosen(hub: TestHub) {
        let (one, two) = (hub.key("", &[]).await, hub.key("", &[]).await);
        let (one, two) = (format!("Bearer {one}"), format!("Bearer {two}"));
        assert_eq!(presenting(&hub, &[&one, &two]).await.reason(), "KEY_MALFORMED");
        assert_eq!(presenting(&hub, &[&one, &one]).await.reason(), "KEY_MALFORMED");
        assert_eq!(presenting(&hub, &[&one]).await.status, StatusCode::OK);
    }

    async fn a_key_in_a_query_is_refused_whatever_else_is_presented(hub: TestHub) {
        let (own, other) = (hub.key("", &[]).await, hub.key("", &[]).await);
        let bearer = format!("Bearer {own}");
        let none: &[(&str, &str)] = &[];
        let with_key = [("authorization", bearer.as_str())];
        for key in [&own, &other, UNKNOWN] {
            let escaped = key.replace("tos_", "%74os%5F");
            for query in [
                format!("key={key}"),
                format!("access_token={key}"),
                format!("a=1&{escaped}"),
            ] {
                let method = format!("{}?{query}", &WHO_AM_I[1..]);
                let path = format!("{WHO_AM_I}?{query}");
                for presented in [none, &with_key] {
                    let answer = post_grpc(hub.addr, &method, presented, frame(&[])).await;
                    let status = answer.grpc_status();
                    let error = hub_client::Error::from(status);
                    assert_eq!(error.code(), Code::Unauthenticated, "{query}");
                    assert_eq!(error.reason(), Some("KEY_MALFORMED"), "{query}");
                    assert!(!format!("{error:?}").contains(&key[8..34]), "{error:?}");
                    for kind in ["application/json", "application/grpc-web+proto"] {
                        let mut all = presented.to_vec();
                        all.push(("content-type", kind));
                        let body = if kind.ends_with("json") { "{}".into() } else { frame(&[]) };
                        let answer = request(hub.addr, Method::POST, &path, &all, body).await;
                        let said = format!("{:?} {}", answer.headers, answer.text());
                        assert!(said.contains("KEY_MALFORMED"), "{query}: {said}");
                        assert!(!said.contains(&key[8..34]), "{said}");
                    }
                }
            }
        }
        let harmless = format!("{}?key=tos_1&a={}", &WHO_AM_I[1..], &own[1..]);
        let answer = post_grpc(hub.addr, &harmless, &with_key, frame(&[])).await;
        assert_eq!(answer.grpc_status().code(), Code::Ok);
    }

    async fn a_revoked_key_is_refused_by_the_next_call_and_says_when_and_which(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let created = create(&admin, new_key("to be revoked", &[])).await.unwrap();
        let (client, key_id) = (hub.client(&created.plaintext), created.api_key.unwrap().key_id);
        who_am_i(&client).await.unwrap();
        let revoked = revoke(&admin, &key_id, "leaked").await.unwrap();
        let error = who_am_i(&client).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::PermissionDenied, Some("KEY_REVOKED")));
        assert_eq!(error.domain(), Some("hub.api_keys"));
        assert_eq!(error.metadata()["keyId"], key_id);
        let time = revoked.api_key.unwrap().revocation.unwrap().time.unwrap();
        assert_eq!(error.metadata()["revokedAt"], time.to_string());
        assert_eq!(error.metadata()["successorId"], "");
    }

    async fn a_key_works_until_its_expiry(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let end = Timestamp { seconds: 1_767_225_600 + 60, nanos: 0 };
        let mut key = new_key("a minute", &[]);
        key.expire_time = Some(end);
        let created = create(&admin, key).await.unwrap();
        let client = hub.client(&created.plaintext);
        hub.clock.advance(Duration::from_secs(59));
        who_am_i(&client).await.unwrap();
        hub.clock.advance(Duration::from_secs(1));
        let error = who_am_i(&client).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::PermissionDenied, Some("KEY_EXPIRED")));
        assert_eq!(error.metadata()["expiredAt"], "2026-01-01T00:01:00Z");
    }

    async fn a_key_with_blocks_works_only_from_their_addresses(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let from = |blocks: &[&str]| {
            let mut key = new_key("office", &[]);
            key.allowed_cidrs = blocks.iter().map(|block| (*block).to_owned()).collect();
            key
        };
        let here = create(&admin, from(&["10.0.0.0/8", "127.0.0.0/8"])).await.unwrap();
        who_am_i(&hub.client(&here.plaintext)).await.unwrap();
        let elsewhere = create(&admin, from(&["10.0.0.0/8", "::/0"])).await.unwrap();
        let error = who_am_i(&hub.client(&elsewhere.plaintext)).await.unwrap_err();
        assert_eq!(error.reason(), Some("IP_NOT_ALLOWED"));
        assert_eq!(error.metadata()["clientIp"], "127.0.0.1");
        assert_eq!(reason(create(&admin, from(&["127.0.0.1"])).await), "FIELD_INVALID");
    }

    async fn keys_survive_a_restart(hub: TestHub) {
        let mut hub = hub;
        let key = hub.key("psa", &["psa:*"]).await;
        let before = who_am_i(&hub.client(&key)).await.unwrap();
        hub.restart().await;
        let after = who_am_i(&hub.client(&key)).await.unwrap();
        let (before, after) = (before.api_key.unwrap(), after.api_key.unwrap());
        let last_use_time = after.last_use_time;
        assert!(last_use_time.is_some(), "what was counted is written before the end");
        assert_eq!(after, ApiKey { last_use_time, ..before });
        who_am_i(&hub.client(&hub.operator_key)).await.unwrap();
    }

    async fn while_the_database_is_gone_a_known_key_works_for_its_five_seconds(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let (known, unknown) = (hub.key("", &[]).await, hub.key("", &[]).await);
        let list = "hub.api_keys.v1.ApiKeys/ListApiKeys";
        // Refused for its scope, so admitted as a key.
        assert_eq!(post_json(hub.addr, list, &known, "{}").await.reason(), "SCOPE_MISSING");
        hub.core.db.close().await;
        assert_eq!(post_json(hub.addr, list, &known, "{}").await.reason(), "SCOPE_MISSING");
        assert_eq!(post_json(hub.addr, list, &unknown, "{}").await.reason(), "STORE_BUSY");
        hub.clock.advance(Duration::from_secs(5));
        assert_eq!(post_json(hub.addr, list, &known, "{}").await.reason(), "STORE_BUSY");
    }

    async fn no_key_is_in_the_log(backend: Backend) {
        let process = TestProcess::start(Command::Serve, backend, &[]).await;
        let operator = process.ready["operatorKey"].as_str().unwrap().to_owned();
        let method = "hub.platform.v1.Platform/CreateTenant";
        let made = post_json(process.addr(), method, &operator, r#"{"name":"Acme"}"#).await;
        let admin = made.json()["adminKey"].as_str().unwrap().to_owned();
        let damaged = format!("{}x", &admin[..39]);
        for key in [&operator, &admin, &damaged] {
            post_json(process.addr(), "hub.api_keys.v1.ApiKeys/WhoAmI", key, "{}").await;
            let asked = format!("hub.api_keys.v1.ApiKeys/WhoAmI?key={key}");
            post_json(process.addr(), &asked, key, "{}").await;
            post_grpc(process.addr(), &asked, &[], frame(&[])).await;
        }
        let last = post_json(process.addr(), "hub.api_keys.v1.ApiKeys/WhoAmI", &admin, "{}").await;
        let log = process.log_until(last.header("x-request-id")).await;
        assert!(log.contains("a key in its query string"), "{log}");
        for key in [&operator, &admin, &damaged] {
            assert!(!log.contains(&key[8..34]), "{log}");
        }
    }
}
