//! The audit log: each change of a tenant, who made it and by which call.

use hub_client::proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest, RevokeApiKeyRequest};
use hub_client::proto::hub::platform::v1::{
    AuditEntry, CreateTenantRequest, ListAuditEntriesRequest, Tenant, UpdateTenantRequest,
};

use super::{Client, reason};
use crate::support::TestHub;

fn rename(name: &str) -> UpdateTenantRequest {
    UpdateTenantRequest {
        tenant: Some(Tenant {
            name: name.to_owned(),
            ..Tenant::default()
        }),
        update_mask: None,
    }
}

fn actions(entries: &[AuditEntry]) -> Vec<&str> {
    let actions = entries
        .iter()
        .map(|entry| entry.action.rsplit('/').next().unwrap());
    actions.collect()
}

both_databases! {
    async fn every_change_is_written_with_old_and_new(hub: TestHub) {
        let admin = Client::admin(&hub);
        let answer = admin.platform().update_tenant(rename("Acme")).await.unwrap();
        let call_id = answer.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
        admin.subscribe("voice", false).await.unwrap();
        admin.switch("psa", "crm", false).await.unwrap();
        admin.switch("psa", "crm", true).await.unwrap();
        let entries = admin.audit(ListAuditEntriesRequest::default()).await;
        assert_eq!(
            actions(&entries),
            ["SetIntegration", "SetIntegration", "SetProductSubscription", "UpdateTenant",
                "CreateTenant"]
        );
        let sequences: Vec<u64> = entries.iter().map(|entry| entry.sequence).collect();
        assert_eq!(sequences, [5, 4, 3, 2, 1]);
        assert_eq!(entries[0].changes["enabled"], "false -> true");
        assert_eq!(entries[0].resource, "psa/crm");
        assert_eq!(entries[1].changes["reason"], " -> a test");
        assert_eq!(entries[2].changes["active"], "true -> false");
        let renamed = &entries[3];
        assert!(renamed.changes["name"].ends_with(" -> Acme"), "{renamed:?}");
        assert_eq!(renamed.changes.len(), 1);
        assert_eq!(renamed.resource, hub.first_tenant().id);
        assert_eq!(renamed.action, "hub.platform.v1.Platform/UpdateTenant");
        assert_eq!((&*renamed.call_id, &*renamed.client_ip), (&*call_id, "127.0.0.1"));
        assert!(renamed.actor.starts_with("key_") && renamed.time.is_some());
    }

    async fn keys_are_in_it_without_their_secrets(hub: TestHub) {
        let admin = Client::admin(&hub);
        let request = CreateApiKeyRequest {
            api_key: Some(ApiKey {
                name: "portal backend".to_owned(),
                product: "portal".to_owned(),
                scopes: vec!["hub:events.read".to_owned()],
                labels: [("team".to_owned(), "blue".to_owned())].into(),
                ..ApiKey::default()
            }),
            request_id: uuid::Uuid::new_v4().to_string(),
        };
        let made = admin.hub.api_keys().create_api_key(request.clone()).await.unwrap().into_inner();
        let key_id = made.api_key.unwrap().key_id;
        // A retry changes nothing, so nothing more is written.
        admin.hub.api_keys().create_api_key(request).await.unwrap();
        let revoke = RevokeApiKeyRequest { key_id: key_id.clone(), reason: "leaked".to_owned() };
        for _ in 0..2 {
            admin.hub.api_keys().revoke_api_key(revoke.clone()).await.unwrap();
        }
        let of_key = ListAuditEntriesRequest { resource: key_id, ..Default::default() };
        let entries = admin.audit(of_key).await;
        assert_eq!(actions(&entries), ["RevokeApiKey", "CreateApiKey"]);
        let (revoked, created) = (&entries[0].changes, &entries[1].changes);
        assert_eq!(revoked["state"], "API_KEY_STATE_ACTIVE -> API_KEY_STATE_REVOKED");
        assert_eq!(revoked["revocation.reason"], " -> leaked");
        assert_eq!(created["scopes"], " -> hub:events.read");
        assert_eq!(created["labels.team"], " -> blue");
        let everything = format!("{:?}", admin.audit(ListAuditEntriesRequest::default()).await);
        for secret in [&made.plaintext, &hub.first_tenant().admin_key, &hub.operator_key] {
            assert!(!everything.contains(&secret[4..20]), "a secret is in the audit log");
        }
        assert!(!everything.contains("tos_"));
    }

    async fn it_is_filtered_by_actor_resource_and_time(hub: TestHub) {
        let admin = Client::admin(&hub);
        let second = hub.key("", &["hub:*"]).await;
        Client::new(&hub, &second).switch("psa", "crm", false).await.unwrap();
        admin.switch("psa", "books", false).await.unwrap();
        let all = admin.audit(ListAuditEntriesRequest::default()).await;
        let (books, crm) = (&all[0], &all[1]);
        let find = async |request: ListAuditEntriesRequest| {
            let found = admin.audit(request).await;
            found.into_iter().map(|entry| entry.sequence).collect::<Vec<_>>()
        };
        let by = |actor: &str, resource: &str| ListAuditEntriesRequest {
            actor: actor.to_owned(),
            resource: resource.to_owned(),
            ..Default::default()
        };
        assert_eq!(find(by(&crm.actor, "")).await, [crm.sequence]);
        assert_eq!(find(by("", "psa/books")).await, [books.sequence]);
        assert_eq!(find(by(&books.actor, "psa/books")).await, [books.sequence]);
        assert_eq!(find(by(&crm.actor, "psa/books")).await, [0; 0]);
        let since = ListAuditEntriesRequest { since: books.time, ..Default::default() };
        assert_eq!(find(since).await, [books.sequence]);
        let until = ListAuditEntriesRequest {
            until: books.time,
            since: crm.time,
            ..Default::default()
        };
        assert_eq!(find(until).await, [crm.sequence]);
    }

    async fn pages_are_bound_to_their_filter_and_tenant(hub: TestHub) {
        let admin = Client::admin(&hub);
        for on in [false, true, false, true] {
            admin.switch("psa", "crm", on).await.unwrap();
        }
        let (mut sequences, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListAuditEntriesRequest {
                page_size: 2,
                page_token,
                ..ListAuditEntriesRequest::default()
            };
            let page = admin.platform().list_audit_entries(request).await.unwrap().into_inner();
            sequences.extend(page.entries.into_iter().map(|entry| entry.sequence));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
            let other = ListAuditEntriesRequest {
                resource: "psa/crm".to_owned(),
                page_token: page_token.clone(),
                ..ListAuditEntriesRequest::default()
            };
            let refused = admin.platform().list_audit_entries(other).await;
            assert_eq!(reason(refused.map_err(Into::into)), "PAGE_TOKEN_INVALID");
            let other = Client::new(&hub, &hub.tenant().await.admin_key);
            let foreign = ListAuditEntriesRequest {
                page_size: 2,
                page_token: page_token.clone(),
                ..ListAuditEntriesRequest::default()
            };
            let refused = other.platform().list_audit_entries(foreign).await;
            assert_eq!(reason(refused.map_err(Into::into)), "PAGE_TOKEN_INVALID");
        }
        assert_eq!(sequences, [5, 4, 3, 2, 1]);
    }

    async fn a_tenant_sees_only_its_own_and_operators_name_whose(hub: TestHub) {
        let operator = Client::operator(&hub);
        let request = CreateTenantRequest { name: "Other".to_owned(), ..Default::default() };
        let made = operator.platform().create_tenant(request).await.unwrap().into_inner();
        let other = Client::new(&hub, &made.admin_key);
        let other_id = made.tenant.unwrap().tenant_id;
        other.switch("psa", "crm", false).await.unwrap();
        assert_eq!(actions(&Client::admin(&hub).audit(Default::default()).await), ["CreateTenant"]);
        let of_other = ListAuditEntriesRequest { tenant_id: other_id, ..Default::default() };
        let refused = Client::admin(&hub).platform().list_audit_entries(of_other.clone()).await;
        assert_eq!(reason(refused.map_err(Into::into)), "TENANT_NOT_FOUND");
        let seen = operator.audit(of_other).await;
        assert_eq!(actions(&seen), ["SetIntegration", "CreateTenant"]);
        assert!(seen[1].changes["admin_key.key_id"].starts_with(" -> key_"), "{seen:?}");
    }

    async fn a_change_that_failed_is_not_in_it(hub: TestHub) {
        let admin = Client::admin(&hub);
        let other = Client::operator(&hub);
        let request = CreateTenantRequest { name: "Taken".to_owned(), ..Default::default() };
        other.platform().create_tenant(request).await.unwrap();
        let refused = admin.platform().update_tenant(rename("Taken")).await;
        assert_eq!(reason(refused.map_err(Into::into)), "TENANT_EXISTS");
        assert_eq!(reason(admin.switch("psa", "nobody", false).await), "PRODUCT_NOT_FOUND");
        assert_eq!(actions(&admin.audit(Default::default()).await), ["CreateTenant"]);
        admin.switch("psa", "crm", false).await.unwrap();
        assert_eq!(admin.audit(Default::default()).await[0].sequence, 2, "dense");
    }
}
