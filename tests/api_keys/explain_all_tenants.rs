//! ExplainAccess about keys that serve all tenants: what a call named decides, and who sees it.

use hub_client::proto::hub::api_keys::v1::explain_access_request::Subject;
use hub_client::proto::hub::api_keys::v1::{ApiKey, ListApiKeysRequest, VerifyApiKeyRequest};
use hub_client::proto::hub::event_bus::v1::PublishStreamRequest;
use hub_client::proto::hub::explain::v1::evidence::Value;
use hub_client::proto::hub::explain::v1::{CheckResult, Explanation, Fix, Verdict};
use hub_client::proto::hub::platform::v1::SetProductSubscriptionRequest;
use hub_client::{CloudEvent, Hub};

use super::explain::{about, call, explain, fix, result};
use super::verify::{tickets, told, verify};
use super::{Outcome, create, new_key, reason, revoke, who_am_i};
use crate::support::{Tenant, TestHub};

const SUBSCRIBED: &str = "KEY_PRODUCT_SUBSCRIBED";

/// A key of all tenants that speaks for PSA: its plaintext and its id.
async fn of_all(hub: &TestHub, scopes: &[&str]) -> (String, String) {
    let key = ApiKey {
        product: "psa".to_owned(),
        all_tenants: true,
        ..new_key("psa backend", scopes)
    };
    let made = create(&hub.client(&hub.operator_key), key).await.unwrap();
    (made.plaintext, made.api_key.unwrap().key_id)
}

/// The client of a key that names a tenant.
fn naming(hub: &TestHub, key: &str, tenant: &str) -> Hub {
    let builder = Hub::builder(hub.url()).api_key(key).tenant(tenant);
    builder.connect_lazy().unwrap()
}

async fn end_subscription(hub: &TestHub) {
    let request = SetProductSubscriptionRequest {
        product: "psa".to_owned(),
        active: false,
        ..SetProductSubscriptionRequest::default()
    };
    let admin = hub.client(&hub.first_tenant().admin_key);
    let set = admin.platform().set_product_subscription(request).await;
    set.unwrap();
}

async fn list(client: &Hub) -> Outcome<()> {
    let request = ListApiKeysRequest::default();
    client.api_keys().list_api_keys(request).await?;
    Ok(())
}

/// The tenant that a check names.
fn seen_tenant(explained: &Explanation, code: &str) -> Option<Value> {
    let mut checks = explained.checks.iter();
    let check = checks.find(|check| check.code == code).unwrap();
    let mut evidence = check.evidence.iter();
    let seen = evidence.find(|seen| seen.key == "tenant")?;
    seen.value.clone()
}

/// Runs a fix in a shell, as it stands.
async fn run(hub: &TestHub, fix: &Fix) {
    let line = fix.cli.replace("$HUB_KEY", &hub.operator_key);
    let mut shell = tokio::process::Command::new("sh");
    let ran = shell.args(["-c", &line]).output().await.unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success() && !said.contains("\"code\""), "{said}");
}

both_databases! {
    async fn a_subscription_of_the_tenant_that_a_call_named_is_explained_and_activated(
        hub: TestHub
    ) {
        let mut hub = hub;
        let (key, _) = of_all(&hub, &["hub:keys.read"]).await;
        let tenant = hub.first_tenant().id.clone();
        end_subscription(&hub).await;
        let refused = list(&naming(&hub, &key, &tenant)).await.unwrap_err();
        assert_eq!(refused.reason(), Some("SUBSCRIPTION_INACTIVE"));
        let asked = call(refused.call_id().unwrap());
        let operator = hub.client(&hub.operator_key);
        let explained = explain(&operator, asked.clone()).await.unwrap();
        assert_eq!(explained.primary_cause, SUBSCRIBED);
        assert_eq!(explained.verdict(), Verdict::Blocked, "{explained:#?}");
        // Not as it was noted, but as it was stored.
        hub.restart().await;
        let operator = hub.client(&hub.operator_key);
        let explained = explain(&operator, asked.clone()).await.unwrap();
        assert_eq!(result(&explained, "KEY_WOULD_PASS_NOW"), CheckResult::Fail);
        assert_eq!(seen_tenant(&explained, SUBSCRIBED), Some(Value::Resource(tenant.clone())));
        fix(&hub, &hub.operator_key, &explained).await;
        list(&naming(&hub, &key, &tenant)).await.unwrap();
        let explained = explain(&operator, asked).await.unwrap();
        assert_eq!(explained.verdict(), Verdict::FixedSince, "{explained:#?}");
    }

    async fn a_decision_for_a_named_tenant_is_explained_for_that_tenant(hub: TestHub) {
        let (key, _) = of_all(&hub, &["psa:*"]).await;
        let (tenant, other) = (hub.first_tenant().id.clone(), hub.tenant().await);
        end_subscription(&hub).await;
        let verifier = naming(&hub, &hub.operator_key, &tenant);
        let refused = verify(&verifier, tickets(&key)).await.unwrap();
        assert_eq!(told(&refused), (403, "SUBSCRIPTION_INACTIVE"));
        let operator = hub.client(&hub.operator_key);
        let explained = explain(&operator, call(&refused.call_id)).await.unwrap();
        assert_eq!(explained.verdict(), Verdict::Blocked, "{explained:#?}");
        // The tenant of the call that asks has one, which is no matter of the refused call.
        let elsewhere = naming(&hub, &key, &other.id);
        let explained = explain(&elsewhere, call(&refused.call_id)).await.unwrap();
        assert_eq!(explained.verdict(), Verdict::Blocked, "{explained:#?}");
        fix(&hub, &hub.operator_key, &explained).await;
        let allowed = verify(&verifier, tickets(&key)).await.unwrap();
        assert_eq!(told(&allowed), (200, ""), "{}", allowed.hint);
        let explained = explain(&operator, call(&refused.call_id)).await.unwrap();
        assert_eq!(explained.verdict(), Verdict::FixedSince, "{explained:#?}");
    }

    async fn the_limit_of_the_tenant_that_a_call_named_is_raised_by_the_fix(hub: TestHub) {
        let (backend, _) = of_all(&hub, &["hub:keys.verify"]).await;
        let (key, _) = of_all(&hub, &["psa:*"]).await;
        let verifier = naming(&hub, &backend, &hub.first_tenant().id);
        let costly = VerifyApiKeyRequest { cost: Some(500), ..tickets(&key) };
        let refused = verify(&verifier, costly.clone()).await.unwrap();
        assert_eq!(told(&refused), (429, "RATE_LIMITED"));
        let operator = hub.client(&hub.operator_key);
        let explained = explain(&operator, call(&refused.call_id)).await.unwrap();
        assert_eq!(explained.verdict(), Verdict::Blocked, "{explained:#?}");
        run(&hub, &explained.fixes[0]).await;
        let allowed = verify(&verifier, costly).await.unwrap();
        assert_eq!(told(&allowed), (200, ""), "{}", allowed.hint);
    }

    async fn a_revoked_key_of_all_tenants_is_replaced_by_one_of_all_tenants(hub: TestHub) {
        let (key, key_id) = of_all(&hub, &["hub:keys.read", "psa:*"]).await;
        let tenant = hub.first_tenant().id.clone();
        let client = naming(&hub, &key, &tenant);
        list(&client).await.unwrap();
        let operator = hub.client(&hub.operator_key);
        revoke(&operator, &key_id, "in a repository").await.unwrap();
        // Looked up once more: what is refused is noted of keys in memory.
        assert_eq!(reason(list(&client).await), "KEY_REVOKED");
        let refused = list(&client).await.unwrap_err();
        for asked in [call(refused.call_id().unwrap()), about(Subject::KeyId(key_id))] {
            let explained = explain(&operator, asked).await.unwrap();
            assert_eq!(explained.primary_cause, "KEY_NOT_REVOKED");
            let made = fix(&hub, &hub.operator_key, &explained).await;
            let made = naming(&hub, made["plaintext"].as_str().unwrap(), &tenant);
            let me = who_am_i(&made).await.unwrap().api_key.unwrap();
            assert!(me.all_tenants && me.product == "psa");
            list(&made).await.unwrap();
        }
    }

    async fn refusals_for_one_tenant_leave_room_for_those_for_another(hub: TestHub) {
        let (key, _) = of_all(&hub, &["psa:*"]).await;
        let operator = hub.client(&hub.operator_key);
        let (one, other) = (hub.first_tenant().id.clone(), Tenant::create(&operator).await);
        for _ in 0..20 {
            list(&naming(&hub, &key, &one)).await.unwrap_err();
        }
        let refused = list(&naming(&hub, &key, &other.id)).await.unwrap_err();
        let explained = explain(&operator, call(refused.call_id().unwrap())).await.unwrap();
        assert_eq!(explained.primary_cause, "KEY_ACTION", "{explained:#?}");
    }

    async fn a_stream_that_was_refused_for_one_of_its_tenants_is_explained_for_that_one(
        hub: TestHub
    ) {
        let (key, _) = of_all(&hub, &["hub:events.publish"]).await;
        end_subscription(&hub).await;
        let frame = PublishStreamRequest {
            frame: 1,
            tenant_id: hub.first_tenant().id.clone(),
            events: vec![CloudEvent {
                id: "1".to_owned(),
                source: "/psa".to_owned(),
                spec_version: "1.0".to_owned(),
                r#type: "ticket.created".to_owned(),
                ..CloudEvent::default()
            }],
            ..PublishStreamRequest::default()
        };
        let frames = tokio_stream::iter([frame]);
        let answers = hub.client(&key).event_bus().publish_stream(frames).await.unwrap();
        let mut answers = answers.into_inner();
        let refused = loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it is refused"),
                Err(status) => break hub_client::Error::from(status),
            }
        };
        assert_eq!(refused.reason(), Some("SUBSCRIPTION_INACTIVE"));
        let operator = hub.client(&hub.operator_key);
        let explained = explain(&operator, call(refused.call_id().unwrap())).await.unwrap();
        assert_eq!(explained.primary_cause, SUBSCRIBED, "{explained:#?}");
        assert_eq!(explained.verdict(), Verdict::Blocked, "{explained:#?}");
        let tenant = hub.first_tenant().id.clone();
        assert_eq!(seen_tenant(&explained, SUBSCRIBED), Some(Value::Resource(tenant)));
        fix(&hub, &hub.operator_key, &explained).await;
        let asked = call(refused.call_id().unwrap());
        let explained = explain(&operator, asked).await.unwrap();
        assert_eq!(explained.verdict(), Verdict::FixedSince, "{explained:#?}");
    }

    async fn a_refusal_of_a_key_of_all_tenants_is_seen_by_itself_and_by_operators(hub: TestHub) {
        let (key, _) = of_all(&hub, &["hub:keys.verify"]).await;
        let (named, other) = (hub.first_tenant().clone(), hub.tenant().await);
        let client = naming(&hub, &key, &named.id);
        let refused = list(&client).await.unwrap_err();
        assert_eq!(refused.reason(), Some("SCOPE_MISSING"));
        let asked = call(refused.call_id().unwrap());
        for client in [
            client,
            hub.client(&key),
            hub.client(&hub.operator_key),
            naming(&hub, &hub.operator_key, &named.id),
        ] {
            let explained = explain(&client, asked.clone()).await.unwrap();
            assert_eq!(explained.primary_cause, "KEY_ACTION");
        }
        for client in [
            hub.client(&named.admin_key),
            hub.client(&other.admin_key),
            naming(&hub, &hub.operator_key, &other.id),
        ] {
            assert_eq!(reason(explain(&client, asked.clone()).await), "CALL_NOT_FOUND");
        }
    }
}
