//! CreateApiKey, GetApiKey, RevokeApiKey, WhoAmI.

use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::{ApiKeyState, GetApiKeyRequest, GetApiKeyResponse};
use hub_core::products;
use tonic::Code;

use super::{Outcome, create, new_key, reason, revoke, who_am_i};
use crate::support::TestHub;

async fn get(client: &Hub, key_id: &str) -> Outcome<GetApiKeyResponse> {
    let request = GetApiKeyRequest {
        key_id: key_id.to_owned(),
    };
    Ok(client.api_keys().get_api_key(request).await?.into_inner())
}

both_databases! {
    async fn a_key_is_shown_once_and_afterwards_only_by_its_ends(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let mut new = new_key("portal backend", &["hub:events.read", "psa:tickets.read"]);
        new.product = "portal".to_owned();
        new.labels = [("team".to_owned(), "blue".to_owned())].into();
        let created = create(&admin, new).await.unwrap();
        let (key, secret) = (created.api_key.unwrap(), created.plaintext);
        assert!(secret.starts_with("tos_") && secret.len() == 40);
        assert_eq!(key.hint, format!("{}…{}", &secret[..8], &secret[36..]));
        assert_eq!(key.state(), ApiKeyState::Active);
        assert_eq!(key.tenant_id, hub.first_tenant().id);
        assert_eq!((key.product.as_str(), key.all_tenants), ("portal", false));
        let read = get(&admin, &key.key_id).await.unwrap();
        assert_eq!(read.api_key.as_ref(), Some(&key));
        assert!(!format!("{read:?}").contains(&secret[8..36]));
        let creator = who_am_i(&admin).await.unwrap().api_key.unwrap().key_id;
        assert_eq!(key.created_by, creator);
    }

    async fn two_keys_made_alike_are_two_keys(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let one = create(&admin, new_key("same", &[])).await.unwrap();
        let two = create(&admin, new_key("same", &[])).await.unwrap();
        assert_ne!(one.plaintext, two.plaintext);
        assert_ne!(one.api_key.unwrap().key_id, two.api_key.unwrap().key_id);
    }

    async fn a_key_says_who_it_is(hub: TestHub) {
        let key = hub.key("psa", &["psa:tickets.*"]).await;
        let me = who_am_i(&hub.client(&key)).await.unwrap();
        let own = me.api_key.unwrap();
        assert_eq!((own.product.as_str(), &own.scopes[..]), ("psa", &["psa:tickets.*".into()][..]));
        assert_eq!(me.tenant_id, hub.first_tenant().id);
        assert_eq!(me.active_products, products::SLUGS);
        let operator = who_am_i(&hub.client(&hub.operator_key)).await.unwrap();
        let own = operator.api_key.unwrap();
        assert!(own.all_tenants && own.product.is_empty() && own.scopes == ["hub:*"]);
        assert_eq!(own.created_by, "hub");
        assert!(operator.tenant_id.is_empty() && operator.active_products.is_empty());
    }

    async fn revoking_again_is_harmless_and_says_the_same(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let key_id = create(&admin, new_key("old", &[])).await.unwrap().api_key.unwrap().key_id;
        let first = revoke(&admin, &key_id, "leaked").await.unwrap();
        let key = first.api_key.clone().unwrap();
        assert_eq!((key.state(), first.unconfirmed), (ApiKeyState::Revoked, 0));
        assert_eq!(key.revocation.as_ref().unwrap().reason, "leaked");
        assert!(first.epoch > 0);
        assert_eq!(revoke(&admin, &key_id, "another reason").await.unwrap(), first);
        let next = create(&admin, new_key("next", &[])).await.unwrap().api_key.unwrap().key_id;
        assert!(revoke(&admin, &next, "").await.unwrap().epoch > first.epoch);
    }

    async fn a_key_that_does_not_exist_is_not_found(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let error = get(&admin, "key_none").await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::NotFound, Some("KEY_NOT_FOUND")));
        assert_eq!(error.metadata()["keyId"], "key_none");
        assert_eq!(reason(revoke(&admin, "key_none", "").await), "KEY_NOT_FOUND");
    }

    async fn a_request_that_makes_no_sense_is_refused_by_field(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let field = |outcome: Outcome<_>| {
            let error: hub_client::Error = match outcome {
                Ok(made) => panic!("{made:?}"),
                Err(error) => error,
            };
            assert_eq!(error.reason(), Some("FIELD_INVALID"));
            error.violations()[0].field.clone()
        };
        assert_eq!(field(create(&admin, new_key("", &[])).await), "api_key.name");
        assert_eq!(field(create(&admin, new_key(&"x".repeat(201), &[])).await), "api_key.name");
        let mut past = new_key("past", &[]);
        past.expire_time = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
        assert_eq!(field(create(&admin, past).await), "api_key.expire_time");
        let mut limited = new_key("limited", &[]);
        limited.requests_per_minute = 5;
        assert_eq!(field(create(&admin, limited).await), "api_key.requests_per_minute");
    }
}
