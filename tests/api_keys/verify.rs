//! VerifyApiKey: one request to a product, decided.

use hub_client::proto::hub::api_keys::v1::explain_access_request::Subject;
use hub_client::proto::hub::api_keys::v1::{
    ErrorReason, ExplainAccessRequest, VerifyApiKeyRequest, VerifyApiKeyResponse,
};
use hub_client::proto::hub::platform::v1::{
    Product, SetProductSubscriptionRequest, UpdateProductRequest,
};
use hub_client::{Error, Hub};

use super::explain::explain;
use super::{Outcome, create, new_key, reason, revoke};
use crate::support::{Backend, TestHub, post_json};

/// May `key` read tickets of PSA?
pub fn tickets(key: &str) -> VerifyApiKeyRequest {
    VerifyApiKeyRequest {
        key: key.to_owned(),
        product: "psa".to_owned(),
        action: "tickets.read".to_owned(),
        ..VerifyApiKeyRequest::default()
    }
}

pub async fn verify(client: &Hub, asked: VerifyApiKeyRequest) -> Outcome<VerifyApiKeyResponse> {
    let answer = client.api_keys().verify_api_key(asked).await?;
    Ok(answer.into_inner())
}

/// Status and reason; an empty reason = allowed.
#[track_caller]
pub fn told(answer: &VerifyApiKeyResponse) -> (u32, &'static str) {
    let name = match answer.reason() {
        ErrorReason::Unspecified => "",
        other => other.as_str_name().trim_start_matches("ERROR_REASON_"),
    };
    assert_eq!(answer.allowed, name.is_empty(), "{answer:?}");
    assert!(answer.call_id.starts_with("req_"));
    (answer.http_status, name)
}

/// A product backend of PSA for all tenants.
pub async fn backend(hub: &TestHub) -> Hub {
    let operator = hub.client(&hub.operator_key);
    let mut key = new_key("psa backend", &["hub:keys.verify"]);
    (key.product, key.all_tenants) = ("psa".to_owned(), true);
    hub.client(&create(&operator, key).await.unwrap().plaintext)
}

/// Where a product is reached.
pub async fn set_base_urls(hub: &TestHub, product: &str, base_urls: &[&str], status: u32) {
    let operator = hub.client(&hub.operator_key);
    let request = UpdateProductRequest {
        product: Some(Product {
            product: product.to_owned(),
            base_urls: base_urls.iter().map(|url| (*url).to_owned()).collect(),
            rate_limited_status: status,
            ..Product::default()
        }),
        ..UpdateProductRequest::default()
    };
    operator.platform().update_product(request).await.unwrap();
}

both_databases! {
    async fn a_key_with_the_scope_is_allowed_and_the_answer_says_who_it_is(hub: TestHub) {
        let backend = backend(&hub).await;
        let key = hub.key("portal", &["psa:tickets.*", "crm:deals.read"]).await;
        let answer = verify(&backend, tickets(&key)).await.unwrap();
        assert_eq!(told(&answer), (200, ""));
        assert!(answer.key_id.starts_with("key_"));
        assert_eq!(answer.tenant_id, hub.first_tenant().id);
        assert_eq!(answer.key_product, "portal");
        assert_eq!(answer.scopes, ["psa:tickets.*", "crm:deals.read"]);
        assert_eq!(answer.cache_for.unwrap().seconds, 5);
        let left = answer.rate_limit.unwrap();
        assert_eq!((left.limit, left.remaining, left.key_id.as_str()), (100, 99, ""));
        assert_eq!(answer.headers["X-RateLimit-Limit"], "100");
        assert_eq!(answer.headers["X-RateLimit-Remaining"], "99");
        assert!(answer.headers.contains_key("X-RateLimit-Reset"));
        assert!(!answer.headers.contains_key("Retry-After"));
    }

    async fn what_is_no_key_or_nobody_s_learns_nothing(hub: TestHub) {
        let backend = backend(&hub).await;
        let key = hub.key("", &["psa:*"]).await;
        let mut forged = key.clone().into_bytes();
        forged[10] = if forged[10] == b'a' { b'b' } else { b'a' };
        let forged = String::from_utf8(forged).unwrap();
        for (key, reason) in [
            ("", "KEY_MISSING"),
            ("tos_", "KEY_MALFORMED"),
            (&*forged, "KEY_MALFORMED"),
            (&*format!("{key},{key}"), "KEY_MALFORMED"),
            (&*format!("Bearer {key}"), "KEY_MALFORMED"),
            (&*format!("{key}%00"), "KEY_MALFORMED"),
            (&*format!("{key}\r\n"), "KEY_MALFORMED"),
            ("tos_0000000000000000000000000000000p2w2A", "KEY_NOT_RECOGNIZED"),
        ] {
            let answer = verify(&backend, tickets(key)).await.unwrap();
            assert_eq!(told(&answer), (401, reason), "{key}");
            assert!(answer.key_id.is_empty() && answer.tenant_id.is_empty());
            assert!(answer.scopes.is_empty() && answer.headers.is_empty());
            assert!(answer.rate_limit.is_none());
        }
    }

    async fn a_key_of_another_tenant_is_unknown_to_a_tenant_s_verifier(hub: TestHub) {
        let other = hub.tenant().await;
        let verifier = other.key(&hub.client(&other.admin_key), "psa", &["hub:keys.verify"]).await;
        let verifier = hub.client(&verifier);
        let key = hub.key("", &["psa:*"]).await;
        let foreign = verify(&verifier, tickets(&key)).await.unwrap();
        assert_eq!(told(&foreign), (401, "KEY_NOT_RECOGNIZED"));
        let unknown = tickets("tos_0000000000000000000000000000000p2w2A");
        let unknown = verify(&verifier, unknown).await.unwrap();
        assert_eq!(foreign.hint, unknown.hint);
        assert!(foreign.key_id.is_empty());
        let operators = verify(&verifier, tickets(&hub.operator_key)).await.unwrap();
        assert_eq!(told(&operators), (401, "KEY_NOT_RECOGNIZED"));
        let backend = backend(&hub).await;
        let own = verify(&backend, tickets(&key)).await.unwrap();
        assert_eq!(own.rate_limit.unwrap().remaining, 99, "others count nothing of its tenant's");
    }

    async fn a_refusal_names_what_is_wrong_and_what_is_right(hub: TestHub) {
        let backend = backend(&hub).await;
        set_base_urls(&hub, "psa", &["https://api.example.com/psa"], 0).await;
        set_base_urls(&hub, "crm", &["https://crm.example.com"], 0).await;
        let crm = hub.key("", &["crm:*"]).await;
        let answer = verify(&backend, tickets(&crm)).await.unwrap();
        assert_eq!(told(&answer), (403, "PRODUCT_MISMATCH"));
        assert!(answer.hint.contains("is for crm; this is psa"), "{}", answer.hint);

        let psa = hub.key("", &["psa:tickets.read"]).await;
        let at = |host: &str, path: &str| VerifyApiKeyRequest {
            host: host.to_owned(),
            path: path.to_owned(),
            ..tickets(&psa)
        };
        let answer = verify(&backend, at("crm.example.com", "/tickets")).await.unwrap();
        assert_eq!(told(&answer), (403, "BASE_URL_MISMATCH"));
        assert!(answer.hint.contains("https://api.example.com/psa"), "{}", answer.hint);
        assert!(answer.hint.contains("belongs to crm"), "{}", answer.hint);
        let answer = verify(&backend, at("API.example.com:443", "//psa/tickets")).await.unwrap();
        assert_eq!(told(&answer), (200, ""));

        let writes = VerifyApiKeyRequest {
            action: "tickets.write".to_owned(),
            ..tickets(&psa)
        };
        let answer = verify(&backend, writes).await.unwrap();
        assert_eq!(told(&answer), (403, "SCOPE_MISSING"));
        assert!(answer.hint.contains("lacks the scope psa:tickets.write"), "{}", answer.hint);
    }

    async fn the_address_is_checked_if_the_key_has_some(hub: TestHub) {
        let backend = backend(&hub).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let mut key = new_key("office", &["psa:*"]);
        key.allowed_cidrs = vec!["10.0.0.0/8".to_owned(), "2001:db8::/32".to_owned()];
        let key = create(&admin, key).await.unwrap().plaintext;
        let from = |client_ip: &str| VerifyApiKeyRequest {
            client_ip: client_ip.to_owned(),
            ..tickets(&key)
        };
        for good in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"] {
            let answer = verify(&backend, from(good)).await.unwrap();
            assert_eq!(told(&answer), (200, ""), "{good}");
        }
        for bad in ["192.0.2.1", "::1", ""] {
            let answer = verify(&backend, from(bad)).await.unwrap();
            assert_eq!(told(&answer), (403, "IP_NOT_ALLOWED"), "{bad}");
        }
        let outcome = verify(&backend, from("10.0.0.1, 192.0.2.1")).await;
        assert_eq!(reason(outcome), "FIELD_INVALID");
    }

    async fn a_subscription_that_ended_refuses_within_a_second(hub: TestHub) {
        let backend = backend(&hub).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let key = hub.key("", &["psa:*"]).await;
        assert_eq!(told(&verify(&backend, tickets(&key)).await.unwrap()), (200, ""));
        let request = SetProductSubscriptionRequest {
            product: "psa".to_owned(),
            active: false,
            ..SetProductSubscriptionRequest::default()
        };
        admin.platform().set_product_subscription(request).await.unwrap();
        let answer = verify(&backend, tickets(&key)).await.unwrap();
        assert_eq!(told(&answer), (403, "SUBSCRIPTION_INACTIVE"));
    }

    async fn a_revoked_key_is_refused_by_the_next_decision(hub: TestHub) {
        let backend = backend(&hub).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let made = create(&admin, new_key("short", &["psa:*"])).await.unwrap();
        for _ in 0..3 {
            assert_eq!(told(&verify(&backend, tickets(&made.plaintext)).await.unwrap()), (200, ""));
        }
        revoke(&admin, &made.api_key.unwrap().key_id, "leaked").await.unwrap();
        let answer = verify(&backend, tickets(&made.plaintext)).await.unwrap();
        assert_eq!(told(&answer), (403, "KEY_REVOKED"));
        let named: Vec<&str> = answer.metadata.keys().map(String::as_str).collect();
        assert_eq!(named, ["keyId", "revokedAt", "successorId"]);
        assert!(answer.headers.contains_key("X-RateLimit-Remaining"), "also when it is refused");
    }

    async fn an_expired_key_is_refused_and_no_decision_is_cached_beyond_its_end(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let verifier = crate::api_keys::verify::backend(&hub).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let mut key = new_key("three seconds", &["psa:*"]);
        let end = hub.clock.now() + 3_000_000;
        key.expire_time = Some(hub_core::clock::timestamp(end));
        let key = create(&admin, key).await.unwrap().plaintext;
        let answer = verify(&verifier, tickets(&key)).await.unwrap();
        assert_eq!(told(&answer), (200, ""));
        assert_eq!(answer.cache_for.unwrap().seconds, 3);
        hub.clock.advance(std::time::Duration::from_secs(3));
        let answer = verify(&verifier, tickets(&key)).await.unwrap();
        assert_eq!(told(&answer), (403, "KEY_EXPIRED"));
    }

    async fn what_is_no_key_is_a_decision_whatever_it_is(hub: TestHub) {
        let backend = backend(&hub).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let key = hub.key("", &["psa:*"]).await;
        for bad in [
            "x".repeat(2 << 10),
            format!("{key}{}", "0".repeat(8 << 10)),
            "tos_".repeat(1 << 18),
            format!("{key}\0"),
            "\0".to_owned(),
            key.replace("tos_", "tos\0"),
        ] {
            let answer = verify(&backend, tickets(&bad)).await.unwrap();
            assert_eq!(told(&answer), (401, "KEY_MALFORMED"), "{} bytes", bad.len());
            let asked = ExplainAccessRequest {
                subject: Some(Subject::Key(bad)),
                ..ExplainAccessRequest::default()
            };
            let explained = explain(&admin, asked).await.unwrap();
            assert_eq!(explained.primary_cause, "KEY_WELL_FORMED");
        }
        let method = "hub.api_keys.v1.ApiKeys/VerifyApiKey";
        let asked = r#"{"key":"tos_\u0000","product":"psa","action":"tickets.read"}"#;
        let answer = post_json(hub.addr, method, &hub.operator_key, asked).await;
        assert_eq!(answer.json()["reason"], "ERROR_REASON_KEY_MALFORMED");
    }

    async fn what_asks_wrongly_is_told_so(hub: TestHub) {
        let backend = backend(&hub).await;
        let key = hub.key("", &["psa:*"]).await;
        let ask = |product: &str, action: &str| VerifyApiKeyRequest {
            product: product.to_owned(),
            action: action.to_owned(),
            ..tickets(&key)
        };
        let error: Error = verify(&backend, ask("pas", "tickets.read")).await.unwrap_err();
        assert_eq!(error.reason(), Some("PRODUCT_NOT_FOUND"));
        assert_eq!(error.metadata()["didYouMean"], "psa");
        for bad in ["*", "tickets.*", "tickets..read", "Tickets.read", "tickets:read", "a b"] {
            assert_eq!(reason(verify(&backend, ask("psa", bad)).await), "FIELD_INVALID", "{bad}");
        }
    }
}
