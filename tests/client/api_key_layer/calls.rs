//! gRPC, with tonic.

use hub_client::proto::hub::api_keys::v1::{CreateApiKeyRequest, WhoAmIRequest};
use tonic::Code;
use tonic_types::StatusExt;

use super::{UNKNOWN, caller, key, layer, set_limit, tonic_server};
use crate::api_keys::{create, new_key, revoke, who_am_i};
use crate::support::TestHub;

both_databases! {
    async fn a_call_comes_through_and_the_service_knows_who_calls(hub: TestHub) {
        let server = tonic_server(&layer(&hub).await).await;
        let (key, key_id) = key(&hub, &["psa:tickets.read"]).await;
        let client = caller(&server, &key);
        let answer = client.api_keys().who_am_i(WhoAmIRequest {}).await.unwrap();
        let metadata = answer.metadata();
        assert_eq!(metadata.get("x-ratelimit-limit").unwrap(), "100");
        assert_eq!(metadata.get("x-ratelimit-remaining").unwrap(), "99");
        assert!(metadata.contains_key("x-ratelimit-reset"));
        let seen = answer.into_inner();
        assert_eq!(seen.api_key.unwrap().key_id, key_id);
        assert_eq!(seen.tenant_id, hub.first_tenant().id);
    }

    async fn an_error_of_the_service_has_the_rate_headers_too(hub: TestHub) {
        let server = tonic_server(&layer(&hub).await).await;
        let (key, _) = key(&hub, &["psa:*"]).await;
        let client = caller(&server, &key);
        let request = CreateApiKeyRequest {
            api_key: Some(new_key("a", &[])),
            ..CreateApiKeyRequest::default()
        };
        let status = client.api_keys().create_api_key(request).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
        assert_eq!(status.metadata().get("x-ratelimit-remaining").unwrap(), "99");
    }

    async fn a_refused_call_is_a_status_with_details(hub: TestHub) {
        let layer = layer(&hub).await.pages("https://hub.example.com");
        let server = tonic_server(&layer).await;
        let unknown = who_am_i(&caller(&server, UNKNOWN)).await.unwrap_err();
        assert_eq!(unknown.code(), Code::Unauthenticated);
        assert_eq!(unknown.reason(), Some("KEY_NOT_RECOGNIZED"));
        assert_eq!(unknown.domain(), Some("hub.api_keys"));
        assert_eq!(unknown.metadata().len(), 1, "the call id alone: {unknown:?}");
        let (reader, key_id) = key(&hub, &["psa:tickets.read"]).await;
        let client = caller(&server, &reader);
        let error = create(&client, new_key("a", &[])).await.unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied);
        assert_eq!(error.reason(), Some("SCOPE_MISSING"));
        assert_eq!(error.metadata()["keyId"], key_id);
        assert_eq!(error.metadata()["missingScope"], "psa:tickets.write");
        assert_eq!(error.metadata()["heldScopes"], "psa:tickets.read");
        assert_eq!(error.help(), Some("https://hub.example.com/errors/SCOPE_MISSING"));
        assert!(error.call_id().unwrap().starts_with("req_"));
    }

    async fn a_refused_call_names_what_the_hub_names(hub: TestHub) {
        let server = tonic_server(&layer(&hub).await).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (plaintext, key_id) = key(&hub, &["psa:*"]).await;
        let revoked = revoke(&admin, &key_id, "leaked").await.unwrap().api_key.unwrap();
        let error = who_am_i(&caller(&server, &plaintext)).await.unwrap_err();
        assert_eq!(error.reason(), Some("KEY_REVOKED"));
        let own = who_am_i(&hub.client(&plaintext)).await.unwrap_err();
        let named = |error: &hub_client::Error| {
            let mut named = error.metadata().clone();
            named.remove("callId");
            named
        };
        assert_eq!(named(&error), named(&own), "as in an answer of the hub itself");
        let at = revoked.revocation.unwrap().time.unwrap().to_string();
        assert_eq!(error.metadata()["revokedAt"], at);
    }

    async fn a_call_over_the_limit_is_told_when_to_come_again(hub: TestHub) {
        let server = tonic_server(&layer(&hub).await).await;
        let (key, key_id) = key(&hub, &["psa:*"]).await;
        set_limit(&hub, &key_id, 1).await;
        let client = caller(&server, &key);
        who_am_i(&client).await.unwrap();
        let status = client.api_keys().who_am_i(WhoAmIRequest {}).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        let metadata = status.metadata();
        assert_eq!(metadata.get("x-ratelimit-limit").unwrap(), "1");
        assert_eq!(metadata.get("x-ratelimit-remaining").unwrap(), "0");
        let after = metadata.get("retry-after").unwrap().to_str().unwrap();
        let after: u64 = after.parse().unwrap();
        let details = status.get_error_details();
        let retry = details.retry_info().unwrap().retry_delay.unwrap();
        assert!(after > 0 && retry.as_secs() == after);
        let quota = &details.quota_failure().unwrap().violations[0];
        assert_eq!(quota.subject, format!("key:{key_id}"));
        assert_eq!(details.error_info().unwrap().reason, "RATE_LIMITED");
    }
}
