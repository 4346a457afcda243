//! Keys are changed and rotated, never beyond the rights of who does it.

use std::time::Duration;

use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::{
    ApiKey, ApiKeyState, GetApiKeyRequest, RotateApiKeyRequest, RotateApiKeyResponse,
    SetRateLimitRequest, UpdateApiKeyRequest,
};
use hub_core::clock::timestamp;
use prost_types::FieldMask;
use tonic::Code;

use super::{Outcome, create, new_key, reason, revoke, who_am_i};
use crate::support::{Backend, TestHub};

const UUID: &str = "6f1c2a52-93c5-4d6e-8a1b-0123456789ab";

async fn update(client: &Hub, key: ApiKey, paths: &[&str]) -> Outcome<ApiKey> {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    let request = UpdateApiKeyRequest {
        api_key: Some(key),
        update_mask: Some(FieldMask { paths }),
    };
    let answer = client.api_keys().update_api_key(request).await?;
    Ok(answer.into_inner().api_key.unwrap())
}

async fn rotate(client: &Hub, key_id: &str, grace: i64) -> Outcome<RotateApiKeyResponse> {
    let grace = prost_types::Duration {
        seconds: grace,
        nanos: 0,
    };
    rotate_as(client, key_id, Some(grace), "").await
}

async fn rotate_as(
    client: &Hub,
    key_id: &str,
    grace: Option<prost_types::Duration>,
    request_id: &str,
) -> Outcome<RotateApiKeyResponse> {
    let request = RotateApiKeyRequest {
        key_id: key_id.to_owned(),
        grace,
        request_id: request_id.to_owned(),
    };
    let answer = client.api_keys().rotate_api_key(request).await?;
    Ok(answer.into_inner())
}

async fn made(hub: &TestHub, scopes: &[&str]) -> (String, ApiKey) {
    let admin = hub.client(&hub.first_tenant().admin_key);
    let made = create(&admin, new_key("a key", scopes)).await.unwrap();
    (made.plaintext, made.api_key.unwrap())
}

both_databases! {
    async fn changes_at_once_that_name_no_etag_are_all_made(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (_, key) = made(&hub, &[]).await;
        let values = |name: &str, scope: &str| ApiKey {
            key_id: key.key_id.clone(),
            etag: String::new(),
            ..new_key(name, &[scope])
        };
        let labelled = ApiKey {
            labels: [("team".to_owned(), "desk".to_owned())].into(),
            ..values("", "")
        };
        let limited = ApiKey { allowed_cidrs: vec!["10.0.0.0/8".to_owned()], ..values("", "") };
        let updates = [
            (values("renamed", ""), "name"),
            (values("", "psa:*"), "scopes"),
            (labelled, "labels"),
            (limited, "allowed_cidrs"),
        ];
        let updates = updates.map(|(values, path)| {
            let admin = &admin;
            async move { update(admin, values, &[path]).await }
        });
        let made = futures_util::future::join_all(updates).await;
        assert!(made.iter().all(Result::is_ok), "{made:?}");
        let request = GetApiKeyRequest { key_id: key.key_id.clone() };
        let now = admin.api_keys().get_api_key(request).await.unwrap().into_inner();
        let now = now.api_key.unwrap();
        assert_eq!((&*now.name, &*now.scopes[0]), ("renamed", "psa:*"));
        assert_eq!((now.labels.len(), now.allowed_cidrs.len()), (1, 1));
        // Who says what he read is told that it is not so any more.
        let stale = ApiKey { etag: key.etag.clone(), ..values("again", "") };
        assert_eq!(reason(update(&admin, stale, &["name"]).await), "ETAG_MISMATCH");
    }

    async fn the_fields_of_the_mask_change_and_no_others(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (_, key) = made(&hub, &["psa:tickets.read"]).await;
        let mut new = ApiKey { name: "renamed".to_owned(), ..key.clone() };
        new.labels.insert("team".to_owned(), "blue".to_owned());
        new.scopes = vec!["crm:*".to_owned()];
        let changed = update(&admin, new, &["name", "labels"]).await.unwrap();
        assert_eq!(changed.name, "renamed");
        assert_eq!(changed.labels["team"], "blue");
        assert_eq!(changed.scopes, ["psa:tickets.read"]);
        assert_ne!(changed.etag, key.etag);
        let again = update(&admin, changed.clone(), &["name"]).await.unwrap();
        assert_eq!(again.etag, changed.etag, "what is the same changes nothing");
        let stale = update(&admin, ApiKey { name: "x".to_owned(), ..key.clone() }, &["name"]).await;
        assert_eq!(reason(stale), "ETAG_MISMATCH");
        let unknown = update(&admin, ApiKey { etag: String::new(), ..key }, &["product"]).await;
        assert_eq!(reason(unknown), "FIELD_INVALID");
    }

    async fn without_a_mask_a_limit_that_would_not_change_is_refused(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (_, key) = made(&hub, &[]).await;
        let update = async |key: ApiKey| {
            let request = UpdateApiKeyRequest { api_key: Some(key), update_mask: None };
            Ok(admin.api_keys().update_api_key(request).await?.into_inner().api_key.unwrap())
        };
        let limited = ApiKey { requests_per_minute: 5, name: "slow".to_owned(), ..key.clone() };
        assert_eq!(reason(update(limited).await), "FIELD_INVALID");
        let request = SetRateLimitRequest { key_id: key.key_id.clone(), requests_per_minute: 5 };
        admin.api_keys().set_rate_limit(request).await.unwrap();
        let same = ApiKey { requests_per_minute: 5, etag: String::new(), ..key };
        let same = update(ApiKey { name: "slow".to_owned(), ..same }).await.unwrap();
        assert_eq!((same.requests_per_minute, same.name.as_str()), (5, "slow"));
    }

    async fn a_long_list_changes_at_its_end_and_a_label_without_a_value_is_one(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let scopes: Vec<String> = (10..70).map(|n| format!("psa:action_number_{n}.read")).collect();
        let (_, key) = made(&hub, &[]).await;
        let first = update(&admin, ApiKey { scopes, ..key }, &["scopes"]).await.unwrap();
        let mut fewer = first.clone();
        assert_eq!(fewer.scopes.pop().unwrap(), "psa:action_number_69.read");
        let changed = update(&admin, fewer.clone(), &["scopes"]).await.unwrap();
        assert_eq!(changed.scopes, fewer.scopes);
        assert_ne!(changed.etag, first.etag);
        let labels = [("on-call".to_owned(), String::new())].into();
        let marked = ApiKey { labels, ..changed };
        let changed = update(&admin, marked.clone(), &["labels"]).await.unwrap();
        assert_eq!(changed.labels, marked.labels);
    }

    async fn a_changed_scope_holds_for_the_next_call(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (plaintext, key) = made(&hub, &["hub:keys.read"]).await;
        let client = hub.client(&plaintext);
        let list = hub_client::proto::hub::api_keys::v1::ListApiKeysRequest::default;
        client.api_keys().list_api_keys(list()).await.unwrap();
        update(&admin, ApiKey { scopes: Vec::new(), ..key }, &["scopes"]).await.unwrap();
        let refused = client.api_keys().list_api_keys(list()).await.unwrap_err();
        assert_eq!(hub_client::Error::from(refused).reason(), Some("SCOPE_MISSING"));
    }

    async fn a_key_changes_and_rotates_only_within_its_own_rights(hub: TestHub) {
        let client = hub.client(&hub.key("", &["hub:keys.write", "psa:tickets.*"]).await);
        let (_, wide) = made(&hub, &["psa:*"]).await;
        let renamed = ApiKey { name: "mine".to_owned(), ..wide.clone() };
        assert_eq!(reason(update(&client, renamed, &["name"]).await), "SCOPE_ESCALATION");
        assert_eq!(reason(rotate(&client, &wide.key_id, 60).await), "SCOPE_ESCALATION");
        let (_, narrow) = made(&hub, &["psa:tickets.read"]).await;
        for wider in ["psa:*", "hub:*", "crm:deals.read", "psa:*.read"] {
            let scopes = vec![wider.to_owned()];
            let wider = ApiKey { scopes, ..narrow.clone() };
            assert_eq!(reason(update(&client, wider, &["scopes"]).await), "SCOPE_ESCALATION");
        }
        let own = who_am_i(&client).await.unwrap().api_key.unwrap();
        let wider = ApiKey { scopes: vec!["hub:*".to_owned()], ..own };
        assert_eq!(reason(update(&client, wider, &["scopes"]).await), "SCOPE_ESCALATION");
        rotate(&client, &narrow.key_id, 60).await.unwrap();
    }

    async fn a_key_gives_no_longer_validity_and_no_more_addresses_than_it_has(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let end = hub.clock.now() + 3_600_000_000;
        let limited = |scopes: &[&str]| ApiKey {
            expire_time: Some(timestamp(end)),
            allowed_cidrs: vec!["127.0.0.0/8".to_owned()],
            ..new_key("limited", scopes)
        };
        let child = |expire_time, cidrs: &[&str]| ApiKey {
            expire_time,
            allowed_cidrs: cidrs.iter().map(|block| (*block).to_owned()).collect(),
            ..new_key("child", &["psa:*"])
        };
        let office = &["127.0.0.1/32"];
        for scopes in [&["hub:keys.write", "psa:*"][..], &["hub:*"]] {
            let limited = create(&admin, limited(scopes)).await.unwrap();
            let client = hub.client(&limited.plaintext);
            for wider in [
                child(None, office),
                child(Some(timestamp(end + 1)), office),
                child(Some(timestamp(end)), &[]),
                child(Some(timestamp(end)), &["0.0.0.0/0"]),
            ] {
                assert_eq!(reason(create(&client, wider).await), "SCOPE_ESCALATION");
            }
            let same = create(&client, child(Some(timestamp(end)), office)).await.unwrap();
            let longer = ApiKey { expire_time: None, ..same.api_key.unwrap() };
            let longer = update(&client, longer, &["expire_time"]).await;
            assert_eq!(reason(longer), "SCOPE_ESCALATION");
            let free = create(&admin, new_key("free", &["psa:*"])).await.unwrap().api_key.unwrap();
            assert_eq!(reason(rotate(&client, &free.key_id, 60).await), "SCOPE_ESCALATION");
        }
    }

    async fn a_rotated_key_works_until_its_grace_ends(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (old, key) = made(&hub, &["psa:*"]).await;
        who_am_i(&hub.client(&old)).await.unwrap();
        let rotated = rotate(&admin, &key.key_id, 60).await.unwrap();
        let (next, previous) = (rotated.api_key.unwrap(), rotated.previous.unwrap());
        assert_eq!(previous.state(), ApiKeyState::Rotating);
        assert_eq!(previous.successor_id, next.key_id);
        assert_eq!(previous.expire_time, Some(timestamp(hub.clock.now() + 60_000_000)));
        assert_eq!((next.scopes, next.name), (key.scopes, key.name));
        assert!(next.expire_time.is_none() && next.successor_id.is_empty());
        let again = rotate(&admin, &key.key_id, 60).await.unwrap_err();
        assert_eq!(again.code(), Code::FailedPrecondition);
        assert_eq!(again.reason(), Some("KEY_STATE_INVALID"));
        assert_eq!(again.metadata()["state"], "ROTATING");
        who_am_i(&hub.client(&old)).await.unwrap();
        who_am_i(&hub.client(&rotated.plaintext)).await.unwrap();
        hub.clock.advance(Duration::from_secs(60));
        let ended = who_am_i(&hub.client(&old)).await.unwrap_err();
        assert_eq!(ended.reason(), Some("KEY_EXPIRED"));
        assert_eq!(ended.metadata()["successorId"], next.key_id);
        who_am_i(&hub.client(&rotated.plaintext)).await.unwrap();
    }

    async fn rotation_neither_revives_nor_extends(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let end = timestamp(hub.clock.now() + 100_000_000);
        let short = ApiKey { expire_time: Some(end), ..new_key("short", &[]) };
        let short = create(&admin, short).await.unwrap().api_key.unwrap();
        let rotated = rotate(&admin, &short.key_id, 3600).await.unwrap();
        assert_eq!(rotated.previous.unwrap().expire_time, Some(end));
        assert_eq!(rotated.api_key.as_ref().unwrap().expire_time, Some(end));
        let (_, revoked) = made(&hub, &[]).await;
        revoke(&admin, &revoked.key_id, "").await.unwrap();
        assert_eq!(reason(rotate(&admin, &revoked.key_id, 60).await), "KEY_STATE_INVALID");
        assert_eq!(reason(update(&admin, revoked, &["name"]).await), "ETAG_MISMATCH");
        hub.clock.advance(Duration::from_secs(100));
        let expired = rotated.api_key.unwrap();
        assert_eq!(reason(rotate(&admin, &expired.key_id, 60).await), "KEY_STATE_INVALID");
        let longer = ApiKey { expire_time: None, ..expired };
        assert_eq!(reason(update(&admin, longer, &["expire_time"]).await), "KEY_STATE_INVALID");
    }

    async fn without_grace_the_old_key_ends_with_the_next_call(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (old, key) = made(&hub, &["psa:*"]).await;
        who_am_i(&hub.client(&old)).await.unwrap();
        let rotated = rotate(&admin, &key.key_id, 0).await.unwrap();
        let previous = rotated.previous.unwrap();
        assert_eq!(previous.state(), ApiKeyState::Revoked);
        assert!(previous.revocation.unwrap().reason.contains("rotated to key_"));
        let ended = who_am_i(&hub.client(&old)).await.unwrap_err();
        assert_eq!(ended.reason(), Some("KEY_REVOKED"));
        assert_eq!(ended.metadata()["successorId"], rotated.api_key.unwrap().key_id);
        who_am_i(&hub.client(&rotated.plaintext)).await.unwrap();
    }

    async fn a_retried_rotation_shows_the_same_successor_with_its_plaintext(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (_, key) = made(&hub, &["psa:*"]).await;
        let first = rotate_as(&admin, &key.key_id, None, UUID).await.unwrap();
        assert!(first.plaintext.starts_with("tos_"));
        let again = rotate_as(&admin, &key.key_id, None, UUID).await.unwrap();
        assert_eq!(again, first);
        let day = first.previous.unwrap().expire_time.unwrap().seconds
            - first.api_key.unwrap().create_time.unwrap().seconds;
        assert_eq!(day, 86_400, "the default");
        let (_, other) = made(&hub, &[]).await;
        let reused = rotate_as(&admin, &other.key_id, None, UUID).await;
        assert_eq!(reason(reused), "REQUEST_ID_REUSED");
    }
}
