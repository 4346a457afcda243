//! ExplainAccess: why a request with a key was, or would be, refused.

use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::explain_access_request::Subject;
use hub_client::proto::hub::api_keys::v1::{
    ApiKey, ExplainAccessRequest, RotateApiKeyRequest, SetRateLimitRequest, UpdateApiKeyRequest,
    VerifyApiKeyRequest,
};
use hub_client::proto::hub::explain::v1::evidence::Value;
use hub_client::proto::hub::explain::v1::{CheckResult, Explanation, Verdict};
use hub_client::proto::hub::platform::v1::{
    Product, SetProductSubscriptionRequest, UpdateProductRequest,
};

use super::verify::{backend, tickets, told, verify};
use super::{Outcome, create, new_key, reason, revoke};
use crate::support::{Backend, TestHub, post_json};

/// All checks, in their order.
const CHECKS: [&str; 15] = [
    "KEY_PRESENTED",
    "KEY_WELL_FORMED",
    "KEY_KNOWN",
    "KEY_NOT_REVOKED",
    "KEY_NOT_EXPIRED",
    "KEY_IP",
    "KEY_PRODUCT_SUBSCRIBED",
    "KEY_PRODUCT",
    "KEY_BASE_URL",
    "KEY_OPERATOR",
    "KEY_ACTION",
    "KEY_RATE",
    "KEY_RIGHTS",
    "KEY_PROPAGATED",
    "KEY_WOULD_PASS_NOW",
];

pub async fn explain(client: &Hub, request: ExplainAccessRequest) -> Outcome<Explanation> {
    let answer = client.api_keys().explain_access(request).await?;
    let explanation = answer.into_inner().explanation.unwrap();
    let codes: Vec<&str> = explanation
        .checks
        .iter()
        .map(|check| &*check.code)
        .collect();
    assert_eq!(codes, CHECKS, "all of them, in their order");
    Ok(explanation)
}

/// About reading tickets of PSA.
pub fn about(subject: Subject) -> ExplainAccessRequest {
    ExplainAccessRequest {
        subject: Some(subject),
        product: "psa".to_owned(),
        action: "tickets.read".to_owned(),
        ..ExplainAccessRequest::default()
    }
}

pub fn call(call_id: &str) -> ExplainAccessRequest {
    ExplainAccessRequest {
        subject: Some(Subject::CallId(call_id.to_owned())),
        ..ExplainAccessRequest::default()
    }
}

pub fn result(explanation: &Explanation, code: &str) -> CheckResult {
    let check = explanation.checks.iter().find(|check| check.code == code);
    check.unwrap().result()
}

async fn made(hub: &TestHub, key: ApiKey) -> (String, String) {
    let admin = hub.client(&hub.first_tenant().admin_key);
    let made = create(&admin, key).await.unwrap();
    (made.plaintext, made.api_key.unwrap().key_id)
}

/// Runs the first fix that is a call, as it stands.
pub async fn fix(hub: &TestHub, key: &str, explanation: &Explanation) -> serde_json::Value {
    let fix = explanation
        .fixes
        .iter()
        .find(|fix| !fix.rpc.is_empty())
        .unwrap();
    let json = json(fix.request.as_ref().unwrap());
    let answer = post_json(hub.addr, &fix.rpc, key, &json.to_string()).await;
    assert_eq!(answer.status, 200, "{} {json} {}", fix.rpc, answer.text());
    assert!(fix.cli.contains(&fix.rpc), "{}", fix.cli);
    serde_json::from_str(answer.text()).unwrap()
}

fn json(message: &prost_types::Struct) -> serde_json::Value {
    let fields = message.fields.iter();
    fields
        .map(|(name, field)| (name.clone(), value(field)))
        .collect()
}

fn value(value: &prost_types::Value) -> serde_json::Value {
    use prost_types::value::Kind;
    match value.kind.as_ref().unwrap() {
        Kind::NullValue(_) => serde_json::Value::Null,
        Kind::NumberValue(number) => serde_json::json!(number),
        Kind::StringValue(text) => serde_json::json!(text),
        Kind::BoolValue(flag) => serde_json::json!(flag),
        Kind::StructValue(fields) => json(fields),
        Kind::ListValue(list) => list.values.iter().map(self::value).collect(),
    }
}

/// A request that is refused: why, which check says so, and that the fix mends it.
async fn refused_and_mended(
    hub: &TestHub,
    asked: VerifyApiKeyRequest,
    why: (&str, &str),
    by: &str,
) {
    let verifier = backend(hub).await;
    let admin = hub.client(&hub.first_tenant().admin_key);
    let refused = verify(&verifier, asked.clone()).await.unwrap();
    assert_eq!(told(&refused).1, why.0);
    let explained = explain(&admin, call(&refused.call_id)).await.unwrap();
    assert_eq!(explained.primary_cause, why.1, "{explained:#?}");
    assert_eq!(explained.verdict(), Verdict::Blocked, "{explained:#?}");
    assert!(
        explained
            .checks
            .iter()
            .all(|check| check.doc_url.ends_with(&check.code))
    );
    fix(hub, by, &explained).await;
    let again = VerifyApiKeyRequest {
        dry_run: true,
        ..asked
    };
    let mended = verify(&verifier, again).await.unwrap();
    assert_eq!(told(&mended).1, "", "{}", mended.hint);
    let explained = explain(&admin, call(&refused.call_id)).await.unwrap();
    assert_eq!(explained.primary_cause, why.1);
    assert_eq!(explained.verdict(), Verdict::FixedSince, "{explained:#?}");
}

both_databases! {
    async fn a_missing_scope_is_named_and_the_fix_adds_it(hub: TestHub) {
        let (key, _) = made(&hub, new_key("narrow", &["psa:notes.read"])).await;
        let admin = hub.first_tenant().admin_key.clone();
        refused_and_mended(&hub, tickets(&key), ("SCOPE_MISSING", "KEY_ACTION"), &admin).await;
    }

    async fn a_wrong_product_is_named_and_the_fix_adds_a_scope_of_it(hub: TestHub) {
        let (key, _) = made(&hub, new_key("crm", &["crm:*"])).await;
        let admin = hub.first_tenant().admin_key.clone();
        refused_and_mended(&hub, tickets(&key), ("PRODUCT_MISMATCH", "KEY_PRODUCT"), &admin).await;
    }

    async fn a_wrong_address_is_named_and_the_fix_allows_it(hub: TestHub) {
        let mut key = new_key("office", &["psa:*"]);
        key.allowed_cidrs = vec!["10.0.0.0/8".to_owned()];
        let (key, _) = made(&hub, key).await;
        let asked = VerifyApiKeyRequest { client_ip: "192.0.2.7".to_owned(), ..tickets(&key) };
        let admin = hub.first_tenant().admin_key.clone();
        refused_and_mended(&hub, asked, ("IP_NOT_ALLOWED", "KEY_IP"), &admin).await;
    }

    async fn an_ended_subscription_is_named_and_the_fix_activates_it(hub: TestHub) {
        let (key, _) = made(&hub, new_key("any", &["psa:*"])).await;
        let request = SetProductSubscriptionRequest {
            product: "psa".to_owned(),
            active: false,
            ..SetProductSubscriptionRequest::default()
        };
        let admin_key = hub.first_tenant().admin_key.clone();
        let admin = hub.client(&admin_key);
        admin.platform().set_product_subscription(request).await.unwrap();
        let why = ("SUBSCRIPTION_INACTIVE", "KEY_PRODUCT_SUBSCRIBED");
        refused_and_mended(&hub, tickets(&key), why, &admin_key).await;
    }

    async fn a_limit_that_is_used_up_is_named_and_the_fix_raises_it(hub: TestHub) {
        let (key, key_id) = made(&hub, new_key("slow", &["psa:*"])).await;
        let admin_key = hub.first_tenant().admin_key.clone();
        let request = SetRateLimitRequest { key_id, requests_per_minute: 1 };
        hub.client(&admin_key).api_keys().set_rate_limit(request).await.unwrap();
        verify(&backend(&hub).await, tickets(&key)).await.unwrap();
        refused_and_mended(&hub, tickets(&key), ("RATE_LIMITED", "KEY_RATE"), &admin_key).await;
    }

    async fn a_request_that_counts_as_more_than_the_limit_is_explained_as_such(hub: TestHub) {
        let (key, key_id) = made(&hub, new_key("slow", &["psa:*"])).await;
        let admin_key = hub.first_tenant().admin_key.clone();
        let request = SetRateLimitRequest { key_id, requests_per_minute: 5 };
        hub.client(&admin_key).api_keys().set_rate_limit(request).await.unwrap();
        let costly = VerifyApiKeyRequest { cost: Some(50), ..tickets(&key) };
        refused_and_mended(&hub, costly, ("RATE_LIMITED", "KEY_RATE"), &admin_key).await;
    }

    async fn a_limit_of_the_tenant_is_raised_by_an_operator_of_the_hub_who_names_the_tenant(
        hub: TestHub
    ) {
        let (key, _) = made(&hub, new_key("costly", &["psa:*"])).await;
        let costly = VerifyApiKeyRequest { cost: Some(500), ..tickets(&key) };
        let verifier = backend(&hub).await;
        let refused = verify(&verifier, costly.clone()).await.unwrap();
        let admin = hub.client(&hub.first_tenant().admin_key);
        let explained = explain(&admin, call(&refused.call_id)).await.unwrap();
        assert_eq!(explained.primary_cause, "KEY_RATE");
        let fix = &explained.fixes[0];
        let tenant = hub.first_tenant().id.clone();
        assert!(fix.cli.contains(&format!("-H 'x-hub-tenant: {tenant}'")), "{}", fix.cli);
        let run = fix.cli.replace("$HUB_KEY", &hub.operator_key);
        let ran = tokio::process::Command::new("sh").args(["-c", &run]).output().await.unwrap();
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(ran.status.success() && !said.contains("\"code\""), "{said}");
        let mended = verify(&verifier, costly).await.unwrap();
        assert_eq!(told(&mended).1, "", "{}", mended.hint);
    }

    async fn a_revoked_key_is_named_and_the_fix_makes_one_with_its_rights(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (key, key_id) = made(&hub, new_key("leaked", &["psa:*"])).await;
        revoke(&admin, &key_id, "in a repository").await.unwrap();
        let explained = explain(&admin, about(Subject::Key(key))).await.unwrap();
        assert_eq!(explained.primary_cause, "KEY_NOT_REVOKED");
        assert_eq!(explained.verdict(), Verdict::Blocked);
        assert_eq!(result(&explained, "KEY_ACTION"), CheckResult::Pass, "all are looked at");
        assert_eq!(result(&explained, "KEY_WOULD_PASS_NOW"), CheckResult::Fail);
        let mut checks = explained.checks.iter();
        let check = checks.find(|check| check.code == "KEY_NOT_REVOKED").unwrap();
        let why = check.evidence.iter().find(|seen| seen.key == "reason").unwrap();
        assert_eq!(why.value, Some(Value::Text("in a repository".to_owned())));
        let made = fix(&hub, &hub.first_tenant().admin_key, &explained).await;
        let allowed = tickets(made["plaintext"].as_str().unwrap());
        assert_eq!(told(&verify(&backend(&hub).await, allowed).await.unwrap()), (200, ""));
        let by_id = explain(&admin, about(Subject::KeyId(key_id))).await.unwrap();
        assert_eq!(by_id.primary_cause, "KEY_NOT_REVOKED");
    }

    async fn what_a_key_lacks_that_is_being_rotated_a_new_one_has(hub: TestHub) {
        let (verifier, admin) = (backend(&hub).await, hub.client(&hub.first_tenant().admin_key));
        let (key, key_id) = made(&hub, new_key("old", &["psa:notes.read"])).await;
        let grace = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
        let rotate = RotateApiKeyRequest { key_id, grace, ..Default::default() };
        admin.api_keys().rotate_api_key(rotate).await.unwrap();
        // To know why, without being counted.
        let asked = VerifyApiKeyRequest { dry_run: true, ..tickets(&key) };
        let refused = verify(&verifier, asked).await.unwrap();
        assert_eq!(told(&refused), (403, "SCOPE_MISSING"));
        let explained = explain(&admin, call(&refused.call_id)).await.unwrap();
        assert_eq!(explained.primary_cause, "KEY_ACTION", "{explained:#?}");
        let made = fix(&hub, &hub.first_tenant().admin_key, &explained).await;
        let allowed = tickets(made["plaintext"].as_str().unwrap());
        assert_eq!(told(&verify(&verifier, allowed).await.unwrap()), (200, ""));
    }

    async fn a_wrong_host_is_named_with_the_right_one_and_the_fix_makes_it_right(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let request = UpdateProductRequest {
            product: Some(Product {
                product: "psa".to_owned(),
                base_urls: vec!["https://psa.example.com".to_owned()],
                ..Product::default()
            }),
            ..UpdateProductRequest::default()
        };
        hub.client(&hub.operator_key).platform().update_product(request).await.unwrap();
        let (key, key_id) = made(&hub, new_key("any", &["psa:*"])).await;
        let at = |host: &str| ExplainAccessRequest {
            host: host.to_owned(),
            ..about(Subject::KeyId(key_id.clone()))
        };
        let wrong = explain(&admin, at("crm.example.com")).await.unwrap();
        assert_eq!(wrong.primary_cause, "KEY_BASE_URL");
        assert!(wrong.fixes[0].title.contains("https://psa.example.com"), "{wrong:#?}");
        let right = explain(&admin, at("psa.example.com")).await.unwrap();
        assert_eq!(right.verdict(), Verdict::Working, "{right:#?}");
        assert_eq!(right.primary_cause, "");
        let advised = VerifyApiKeyRequest { host: "psa.example.com".to_owned(), ..tickets(&key) };
        let advised = verify(&backend(&hub).await, advised).await.unwrap();
        assert_eq!(told(&advised).1, "", "{}", advised.hint);
        let host = "crm.example.com:8443".to_owned();
        let asked = VerifyApiKeyRequest { host, ..tickets(&key) };
        let why = ("BASE_URL_MISMATCH", "KEY_BASE_URL");
        refused_and_mended(&hub, asked, why, &hub.operator_key).await;
    }

    async fn an_expired_key_is_named_and_the_fix_makes_another(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let mut key = new_key("short", &["psa:*"]);
        key.expire_time = Some(hub_core::clock::timestamp(hub.clock.now() + 1_000_000));
        let (_, key_id) = made(&hub, key).await;
        hub.clock.advance(std::time::Duration::from_secs(1));
        let explained = explain(&admin, about(Subject::KeyId(key_id))).await.unwrap();
        assert_eq!(explained.primary_cause, "KEY_NOT_EXPIRED");
        assert_eq!(explained.verdict(), Verdict::Blocked);
        assert_eq!(result(&explained, "KEY_PROPAGATED"), CheckResult::Unknown, "just made");
        fix(&hub, &hub.first_tenant().admin_key, &explained).await;
    }

    async fn a_change_of_a_moment_ago_may_not_be_known_everywhere(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (_, key_id) = made(&hub, new_key("any", &["psa:*"])).await;
        let propagated = async || {
            let explained = explain(&admin, about(Subject::KeyId(key_id.clone()))).await.unwrap();
            result(&explained, "KEY_PROPAGATED")
        };
        assert_eq!(propagated().await, CheckResult::Unknown, "just made");
        let pass = async || {
            hub.clock.advance(std::time::Duration::from_secs(5));
            assert_eq!(propagated().await, CheckResult::Pass);
        };
        pass().await;
        let api_key = Some(ApiKey { key_id: key_id.clone(), ..new_key("other", &["psa:*"]) });
        let update = UpdateApiKeyRequest { api_key, ..UpdateApiKeyRequest::default() };
        admin.api_keys().update_api_key(update).await.unwrap();
        assert_eq!(propagated().await, CheckResult::Unknown, "just changed");
        pass().await;
        let limit = SetRateLimitRequest { key_id: key_id.clone(), requests_per_minute: 9 };
        admin.api_keys().set_rate_limit(limit).await.unwrap();
        assert_eq!(propagated().await, CheckResult::Unknown, "just limited");
        pass().await;
        let rotate = RotateApiKeyRequest { key_id: key_id.clone(), ..Default::default() };
        admin.api_keys().rotate_api_key(rotate).await.unwrap();
        assert_eq!(propagated().await, CheckResult::Unknown, "just rotated");
        pass().await;
        revoke(&admin, &key_id, "").await.unwrap();
        assert_eq!(propagated().await, CheckResult::Unknown, "just revoked");
        pass().await;
    }

    async fn what_is_no_key_is_told_so_and_the_fix_makes_one(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let other = hub.tenant().await;
        for (key, cause) in [
            ("", "KEY_PRESENTED"),
            ("tos_short", "KEY_WELL_FORMED"),
            ("tos_0000000000000000000000000000000p2w2A", "KEY_KNOWN"),
            (&*other.admin_key, "KEY_KNOWN"),
        ] {
            let explained = explain(&admin, about(Subject::Key(key.to_owned()))).await.unwrap();
            assert_eq!(explained.primary_cause, cause);
            assert_eq!(explained.verdict(), Verdict::Blocked);
            assert_eq!(result(&explained, "KEY_NOT_REVOKED"), CheckResult::Skipped);
            assert_eq!(result(&explained, "KEY_WOULD_PASS_NOW"), CheckResult::Skipped);
            let said = format!("{explained:?}");
            assert!(key.is_empty() || !said.contains(key), "the key is not repeated");
            let made = fix(&hub, &hub.first_tenant().admin_key, &explained).await;
            let works = tickets(made["plaintext"].as_str().unwrap());
            let works = verify(&backend(&hub).await, works).await.unwrap();
            assert_eq!(told(&works).1, "", "{}", works.hint);
            let unnamed = ExplainAccessRequest {
                subject: Some(Subject::Key(key.to_owned())),
                ..ExplainAccessRequest::default()
            };
            let explained = explain(&admin, unnamed).await.unwrap();
            assert!(explained.fixes.iter().all(|fix| fix.rpc.is_empty()), "for what is not known");
        }
    }

    async fn a_key_asks_about_itself_and_no_other(hub: TestHub) {
        let client = hub.client(&hub.key("", &["psa:tickets.read"]).await);
        let (plaintext, other) = made(&hub, new_key("other", &["psa:*"])).await;
        let own = ExplainAccessRequest {
            product: "psa".to_owned(),
            action: "tickets.write".to_owned(),
            ..ExplainAccessRequest::default()
        };
        let explained = explain(&client, own).await.unwrap();
        assert_eq!(explained.primary_cause, "KEY_ACTION");
        assert_eq!(reason(explain(&client, about(Subject::KeyId(other))).await), "SCOPE_MISSING");
        assert_eq!(reason(explain(&client, about(Subject::Key(plaintext))).await), "SCOPE_MISSING");
        let unknown = explain(&client, call("req_none")).await.unwrap_err();
        assert_eq!(unknown.reason(), Some("CALL_NOT_FOUND"));
        assert_eq!(unknown.metadata()["deniedCallId"], "req_none");
        let admin = hub.client(&hub.first_tenant().admin_key);
        let unknown = about(Subject::KeyId("key_none".to_owned()));
        assert_eq!(reason(explain(&admin, unknown).await), "KEY_NOT_FOUND");
    }

    async fn a_refused_call_of_the_hub_s_own_api_is_explained(hub: TestHub) {
        let client = hub.client(&hub.key("psa", &["psa:*"]).await);
        let refused = create(&client, new_key("mine", &[])).await.unwrap_err();
        assert_eq!(refused.reason(), Some("SCOPE_MISSING"));
        let call_id = refused.call_id().unwrap().to_owned();
        let explained = explain(&client, call(&call_id)).await.unwrap();
        assert_eq!(explained.primary_cause, "KEY_ACTION", "{explained:#?}");
        assert!(explained.summary.contains("hub:keys.write"), "{}", explained.summary);
        let other = hub.tenant().await;
        let foreign = explain(&hub.client(&other.admin_key), call(&call_id)).await;
        assert_eq!(reason(foreign), "CALL_NOT_FOUND");
    }
}
