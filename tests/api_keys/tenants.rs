//! Keys of one tenant, and keys of all.

use http::Method;
use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::{ApiKey, GetApiKeyRequest, ListApiKeysRequest};
use tonic::Code;

use super::{create, new_key, reason, revoke, who_am_i};
use crate::support::{TestHub, request};

const WHO_AM_I: &str = "/hub.api_keys.v1.ApiKeys/WhoAmI";

/// A product backend's key for all tenants.
fn backend_key() -> ApiKey {
    ApiKey {
        product: "psa".to_owned(),
        all_tenants: true,
        ..new_key("psa backend", &["hub:keys.*", "hub:events.*", "psa:*"])
    }
}

/// The client of a key that names a tenant.
fn naming(hub: &TestHub, key: &str, tenant: &str) -> Hub {
    Hub::builder(hub.url())
        .api_key(key)
        .tenant(tenant)
        .connect_lazy()
        .unwrap()
}

async fn list(client: &Hub) -> Vec<String> {
    let listed = client
        .api_keys()
        .list_api_keys(ListApiKeysRequest::default())
        .await
        .unwrap();
    listed
        .into_inner()
        .api_keys
        .into_iter()
        .map(|key| key.name)
        .collect()
}

both_databases! {
    async fn keys_of_another_tenant_are_not_found(hub: TestHub) {
        let (ours, theirs) = (hub.first_tenant().clone(), hub.tenant().await);
        let (us, them) = (hub.client(&ours.admin_key), hub.client(&theirs.admin_key));
        let created = create(&us, new_key("ours", &[])).await.unwrap();
        let key_id = created.api_key.unwrap().key_id;
        let request = GetApiKeyRequest { key_id: key_id.clone() };
        let error = them.api_keys().get_api_key(request).await.unwrap_err();
        assert_eq!(hub_client::Error::from(error).reason(), Some("KEY_NOT_FOUND"));
        assert_eq!(reason(revoke(&them, &key_id, "").await), "KEY_NOT_FOUND");
        assert_eq!(list(&them).await, ["administrator"]);
        who_am_i(&hub.client(&created.plaintext)).await.unwrap();
    }

    async fn a_key_of_a_tenant_names_no_other(hub: TestHub) {
        let (ours, theirs) = (hub.first_tenant().clone(), hub.tenant().await);
        let own = who_am_i(&naming(&hub, &ours.admin_key, &ours.id)).await.unwrap();
        assert_eq!(own.tenant_id, ours.id);
        let foreign = who_am_i(&naming(&hub, &ours.admin_key, &theirs.id)).await;
        let none = who_am_i(&naming(&hub, &ours.admin_key, "tnt_none")).await;
        let (foreign, none) = (foreign.unwrap_err(), none.unwrap_err());
        assert_eq!((foreign.code(), foreign.reason()), (Code::NotFound, Some("TENANT_NOT_FOUND")));
        assert_eq!((none.code(), none.reason()), (foreign.code(), foreign.reason()));
    }

    async fn of_two_tenants_none_is_chosen(hub: TestHub) {
        let operator = hub.client(&hub.operator_key);
        let of_all = create(&operator, backend_key()).await.unwrap().plaintext;
        let (one, two) = (hub.first_tenant().clone(), hub.tenant().await);
        for key in [&of_all, &one.admin_key] {
            let key = format!("Bearer {key}");
            let named = async |tenants: [&str; 2]| {
                let mut headers = vec![("authorization", key.as_str())];
                headers.push(("content-type", "application/json"));
                headers.extend(tenants.map(|tenant| ("x-hub-tenant", tenant)));
                request(hub.addr, Method::POST, WHO_AM_I, &headers, "{}").await
            };
            assert_eq!(named([&one.id, &two.id]).await.reason(), "FIELD_INVALID");
            assert_eq!(named([&two.id, &one.id]).await.reason(), "FIELD_INVALID");
            assert_eq!(named([&one.id, &one.id]).await.json()["tenantId"], one.id);
        }
    }

    async fn a_key_of_all_tenants_names_the_tenant_of_a_call(hub: TestHub) {
        let operator = hub.client(&hub.operator_key);
        let key = create(&operator, backend_key()).await.unwrap();
        let made = key.api_key.unwrap();
        assert!(made.all_tenants && made.tenant_id.is_empty());
        let (one, two) = (hub.first_tenant().clone(), hub.tenant().await);
        for tenant in [&one, &two] {
            let client = naming(&hub, &key.plaintext, &tenant.id);
            assert_eq!(who_am_i(&client).await.unwrap().tenant_id, tenant.id);
            let made = create(&client, new_key(&tenant.id, &["psa:*"])).await.unwrap();
            assert_eq!(made.api_key.unwrap().tenant_id, tenant.id);
            assert_eq!(list(&client).await, [tenant.id.as_str(), "administrator"]);
        }
        let nowhere = who_am_i(&naming(&hub, &key.plaintext, "tnt_none")).await;
        assert_eq!(reason(nowhere), "TENANT_NOT_FOUND");
        let unnamed = hub.client(&key.plaintext);
        let error = create(&unnamed, new_key("whose?", &[])).await.unwrap_err();
        let found = (error.code(), error.reason());
        assert_eq!(found, (Code::InvalidArgument, Some("TENANT_REQUIRED")));
        let me = who_am_i(&unnamed).await.unwrap();
        assert!(me.tenant_id.is_empty() && me.api_key.unwrap().product == "psa");
    }

    async fn only_operators_make_keys_of_all_tenants(hub: TestHub) {
        let operator = hub.client(&hub.operator_key);
        let backend = create(&operator, backend_key()).await.unwrap();
        let admin = hub.client(&hub.first_tenant().admin_key);
        for client in [admin, hub.client(&backend.plaintext)] {
            let error = create(&client, backend_key()).await.unwrap_err();
            let found = (error.code(), error.reason());
            assert_eq!(found, (Code::PermissionDenied, Some("OPERATOR_ONLY")));
        }
        let both = naming(&hub, &hub.operator_key, &hub.first_tenant().id);
        assert_eq!(reason(create(&both, backend_key()).await), "FIELD_INVALID");
    }

    async fn keys_of_all_tenants_are_seen_by_calls_without_tenant_only(hub: TestHub) {
        let operator = hub.client(&hub.operator_key);
        let backend = create(&operator, backend_key()).await.unwrap().api_key.unwrap();
        assert_eq!(list(&operator).await, ["psa backend", "operator"]);
        let admin = hub.client(&hub.first_tenant().admin_key);
        assert_eq!(list(&admin).await, ["administrator"]);
        assert_eq!(reason(revoke(&admin, &backend.key_id, "").await), "KEY_NOT_FOUND");
        let within = naming(&hub, &hub.operator_key, &hub.first_tenant().id);
        assert_eq!(list(&within).await, ["administrator"]);
        revoke(&operator, &backend.key_id, "").await.unwrap();
    }

    async fn a_product_backend_does_not_end_an_operators_key(hub: TestHub) {
        let operator = hub.client(&hub.operator_key);
        let operator_id = who_am_i(&operator).await.unwrap().api_key.unwrap().key_id;
        let mut backend = backend_key();
        backend.scopes = vec!["hub:*".to_owned()];
        let backend = create(&operator, backend).await.unwrap();
        let ended = revoke(&hub.client(&backend.plaintext), &operator_id, "").await;
        assert_eq!(reason(ended), "SCOPE_ESCALATION");
        who_am_i(&operator).await.unwrap();
    }
}
