//! Rate limits of tenants and keys, and what was used.

use std::time::Duration;

use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::{
    ApiKey, ExplainAccessRequest, GetApiKeyRequest, GetApiKeyUsageRequest, GetApiKeyUsageResponse,
    RateLimitState, RotateApiKeyRequest, SetRateLimitRequest, UpdateApiKeyRequest,
    VerifyApiKeyRequest, VerifyApiKeyResponse, WhoAmIRequest,
};
use hub_client::proto::hub::explain::v1::Verdict;
use hub_client::proto::hub::platform::v1::{Product, UpdateProductRequest};
use prost_types::FieldMask;
use tonic::Code;

use super::explain::{call, explain};
use super::verify::{backend, tickets, told, verify};
use super::{Outcome, create, new_key, reason, revoke, who_am_i};
use crate::support::{Backend, TestHub, post_json};

async fn set(client: &Hub, key_id: &str, limit: u32) -> Outcome<RateLimitState> {
    let request = SetRateLimitRequest {
        key_id: key_id.to_owned(),
        requests_per_minute: limit,
    };
    let answer = client.api_keys().set_rate_limit(request).await?;
    Ok(answer.into_inner().rate_limit.unwrap_or_default())
}

/// The operator, for a tenant.
fn operator(hub: &TestHub) -> Hub {
    Hub::builder(hub.url())
        .api_key(&hub.operator_key)
        .tenant(&hub.first_tenant().id)
        .connect_lazy()
        .unwrap()
}

fn costing(key: &str, cost: u32) -> VerifyApiKeyRequest {
    VerifyApiKeyRequest {
        cost: Some(cost),
        ..tickets(key)
    }
}

async fn made(hub: &TestHub, name: &str) -> (String, ApiKey) {
    let admin = hub.client(&hub.first_tenant().admin_key);
    let made = create(&admin, new_key(name, &["psa:*"])).await.unwrap();
    (made.plaintext, made.api_key.unwrap())
}

fn remaining(answer: &VerifyApiKeyResponse) -> (u32, u32) {
    let left = answer.rate_limit.as_ref().unwrap();
    assert_eq!(
        answer.headers["X-RateLimit-Remaining"],
        left.remaining.to_string()
    );
    assert_eq!(answer.headers["X-RateLimit-Limit"], left.limit.to_string());
    (left.limit, left.remaining)
}

pub async fn usage(client: &Hub, key_id: &str) -> GetApiKeyUsageResponse {
    let request = GetApiKeyUsageRequest {
        key_id: key_id.to_owned(),
        ..GetApiKeyUsageRequest::default()
    };
    let answer = client.api_keys().get_api_key_usage(request).await.unwrap();
    answer.into_inner()
}

/// Moves the clock until what was counted is written.
async fn written(
    hub: &TestHub,
    client: &Hub,
    key_id: &str,
    requests: u64,
) -> GetApiKeyUsageResponse {
    loop {
        let told = usage(client, key_id).await;
        let counted: u64 = told
            .buckets
            .iter()
            .map(|b| b.allowed + b.denied.values().sum::<u64>())
            .sum();
        if counted >= requests {
            return told;
        }
        hub.clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
    }
}

both_databases! {
    async fn a_tenant_has_a_hundred_requests_in_any_minute_over_all_its_keys(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let verifier = crate::api_keys::verify::backend(&hub).await;
        let keys = [made(&hub, "one").await.0, made(&hub, "two").await.0];
        for number in 0..100u32 {
            let answer = verify(&verifier, tickets(&keys[number as usize % 2])).await.unwrap();
            assert_eq!(told(&answer), (200, ""));
            assert_eq!(remaining(&answer), (100, 99 - number));
        }
        for key in &keys {
            let answer = verify(&verifier, tickets(key)).await.unwrap();
            assert_eq!(told(&answer), (429, "RATE_LIMITED"));
            assert_eq!(remaining(&answer), (100, 0));
            assert_eq!(answer.headers["Retry-After"], "61");
            assert_eq!(answer.cache_for.unwrap(), prost_types::Duration::default());
        }
        let other = hub.tenant().await;
        let other = other.key(&hub.client(&other.admin_key), "", &["psa:*"]).await;
        assert_eq!(told(&verify(&verifier, tickets(&other)).await.unwrap()), (200, ""));
        hub.clock.advance(Duration::from_secs(59));
        assert!(!verify(&verifier, tickets(&keys[0])).await.unwrap().allowed);
        hub.clock.advance(Duration::from_millis(1500));
        let answer = verify(&verifier, tickets(&keys[0])).await.unwrap();
        assert_eq!(remaining(&answer), (100, 99), "denials counted nothing");
    }

    async fn of_many_at_once_as_many_are_allowed_as_the_limit_says(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let verifier = crate::api_keys::verify::backend(&hub).await;
        let (key, _) = made(&hub, "busy").await;
        let calls: Vec<_> = (0..150)
            .map(|_| {
                let (verifier, key) = (verifier.clone(), key.clone());
                tokio::spawn(async move { verify(&verifier, tickets(&key)).await.unwrap().allowed })
            })
            .collect();
        let mut allowed = 0;
        for call in calls {
            allowed += usize::from(call.await.unwrap());
        }
        assert_eq!(allowed, 100);
    }

    async fn of_64_callers_one_gets_the_last_request_of_a_limit(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let verifier = crate::api_keys::verify::backend(&hub).await;
        let (key, _) = made(&hub, "last").await;
        assert!(verify(&verifier, costing(&key, 99)).await.unwrap().allowed);
        let calls: Vec<_> = (0..64)
            .map(|_| {
                let (verifier, key) = (verifier.clone(), key.clone());
                tokio::spawn(async move { verify(&verifier, tickets(&key)).await.unwrap() })
            })
            .collect();
        let mut allowed = 0;
        for call in calls {
            let answer = call.await.unwrap();
            assert_eq!(remaining(&answer), (100, 0));
            allowed += u32::from(answer.allowed);
        }
        assert_eq!(allowed, 1);
    }

    async fn without_the_database_limits_hold_by_what_this_process_knows(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let verifier = crate::api_keys::verify::backend(&hub).await;
        let (key, _) = made(&hub, "known").await;
        assert!(verify(&verifier, tickets(&key)).await.unwrap().allowed);
        hub.core.db.close().await;
        let mut degraded = false;
        for _ in 0..99 {
            let answer = verify(&verifier, tickets(&key)).await.unwrap();
            assert_eq!(told(&answer), (200, ""));
            degraded |= answer.degraded;
        }
        assert_eq!(degraded, backend == Backend::Postgres, "others may have counted too");
        assert_eq!(told(&verify(&verifier, tickets(&key)).await.unwrap()), (429, "RATE_LIMITED"));
    }

    async fn a_key_has_a_limit_within_that_of_its_tenant(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let verifier = crate::api_keys::verify::backend(&hub).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (key, shown) = made(&hub, "slow").await;
        let state = set(&admin, &shown.key_id, 3).await.unwrap();
        assert_eq!((state.limit, state.remaining, &state.key_id), (3, 3, &shown.key_id));
        let answer = verify(&verifier, costing(&key, 2)).await.unwrap();
        assert_eq!(remaining(&answer), (3, 1));
        let denied = verify(&verifier, costing(&key, 2)).await.unwrap();
        assert_eq!(told(&denied), (429, "RATE_LIMITED"));
        assert_eq!(remaining(&denied), (3, 1), "all of it or nothing");
        let dry = VerifyApiKeyRequest { dry_run: true, ..tickets(&key) };
        assert_eq!(remaining(&verify(&verifier, dry).await.unwrap()), (3, 1));
        assert_eq!(remaining(&verify(&verifier, costing(&key, 0)).await.unwrap()), (3, 1));
        set(&admin, &shown.key_id, 0).await.unwrap();
        let answer = verify(&verifier, tickets(&key)).await.unwrap();
        assert_eq!(remaining(&answer), (100, 97), "what was counted stays");
        assert!(answer.rate_limit.unwrap().key_id.is_empty());
    }

    async fn only_an_operator_sets_the_limit_of_a_tenant(hub: TestHub) {
        let verifier = backend(&hub).await;
        let (key, _) = made(&hub, "any").await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        assert_eq!(reason(set(&admin, "", 1000).await), "OPERATOR_ONLY");
        assert_eq!(reason(set(&hub.client(&hub.operator_key), "", 7).await), "TENANT_REQUIRED");
        assert_eq!(remaining(&verify(&verifier, tickets(&key)).await.unwrap()).0, 100);
        assert_eq!(set(&operator(&hub), "", 1000).await.unwrap().limit, 1000);
        let answer = verify(&verifier, tickets(&key)).await.unwrap();
        assert_eq!(remaining(&answer), (1000, 998));
        assert_eq!(who_am_i(&admin).await.unwrap().rate_limit.unwrap().limit, 1000);
        set(&operator(&hub), "", 0).await.unwrap();
        assert_eq!(remaining(&verify(&verifier, tickets(&key)).await.unwrap()).0, 100);
    }

    async fn a_key_of_no_tenant_has_the_limit_of_the_tenant_that_it_is_used_for(hub: TestHub) {
        let tenant = &hub.first_tenant().id;
        let root = hub.client(&hub.operator_key);
        let all = ApiKey { all_tenants: true, ..new_key("for all", &["psa:*", "hub:keys.verify"]) };
        let key = create(&root, all).await.unwrap().plaintext;
        let naming = Hub::builder(hub.url()).api_key(&key).tenant(tenant).connect_lazy().unwrap();
        let limits = async || {
            let verified = verify(&naming, tickets(&key)).await.unwrap();
            assert_eq!(told(&verified), (200, ""));
            let own = who_am_i(&naming).await.unwrap().rate_limit.unwrap();
            let asked = ExplainAccessRequest {
                product: "psa".to_owned(),
                action: "tickets.read".to_owned(),
                ..ExplainAccessRequest::default()
            };
            let explained = naming.api_keys().explain_access(asked).await.unwrap().into_inner();
            let told = format!("{:?}", explained.explanation.unwrap());
            assert!(told.contains(&format!("of {} requests are left", own.limit)), "{told}");
            (remaining(&verified).0, own.limit)
        };
        assert_eq!(limits().await, (100, 100));
        set(&operator(&hub), "", 1000).await.unwrap();
        assert_eq!(limits().await, (1000, 1000));
        set(&operator(&hub), "", 0).await.unwrap();
        assert_eq!(limits().await, (100, 100));
    }

    async fn the_usage_of_a_key_of_no_tenant_is_told_to_who_calls_for_none(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let root = hub.client(&hub.operator_key);
        let all = ApiKey { all_tenants: true, ..new_key("for all", &["psa:*", "hub:keys.verify"]) };
        let made = create(&root, all).await.unwrap();
        let (key, key_id) = (made.plaintext, made.api_key.unwrap().key_id);
        for _ in 0..3 {
            verify(&root, tickets(&key)).await.unwrap();
        }
        let told = written(&hub, &root, &key_id, 3).await;
        assert_eq!((told.buckets.len(), told.buckets[0].allowed), (1, 3));
        let request = GetApiKeyUsageRequest::default();
        let answer = root.api_keys().get_api_key_usage(request.clone()).await;
        assert_eq!(reason(answer.map_err(hub_client::Error::from)), "TENANT_REQUIRED");
        let request = GetApiKeyUsageRequest { key_id, ..request };
        let answer = operator(&hub).api_keys().get_api_key_usage(request).await;
        let reason = reason(answer.map_err(hub_client::Error::from));
        assert_eq!(reason, "KEY_NOT_FOUND", "it is not the tenant's");
    }

    async fn a_key_limits_only_keys_within_its_own_rights(hub: TestHub) {
        let (_, wide) = made(&hub, "wide").await;
        let scopes = ["hub:limits.write", "hub:keys.write", "psa:tickets.read"];
        let client = hub.client(&hub.key("", &scopes).await);
        assert_eq!(reason(set(&client, &wide.key_id, 1).await), "SCOPE_ESCALATION");
        assert_eq!(reason(set(&client, "key_none", 1).await), "KEY_NOT_FOUND");
        let narrow = create(&client, new_key("narrow", &["psa:tickets.read"])).await.unwrap();
        set(&client, &narrow.api_key.unwrap().key_id, 1).await.unwrap();
    }

    async fn a_key_limits_no_successor_with_more_rights_than_its_own(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let scopes = ["hub:limits.write", "hub:keys.write", "psa:tickets.read"];
        let client = hub.client(&hub.key("", &scopes).await);
        let old = create(&admin, new_key("old", &["psa:tickets.read"])).await.unwrap();
        let old_id = old.api_key.unwrap().key_id;
        let request = RotateApiKeyRequest { key_id: old_id.clone(), ..Default::default() };
        let next = admin.api_keys().rotate_api_key(request).await.unwrap().into_inner();
        set(&client, &old_id, 5).await.unwrap();
        let scopes = vec!["psa:*".to_owned()];
        let wider = ApiKey { scopes, etag: String::new(), ..next.api_key.unwrap() };
        let request = UpdateApiKeyRequest {
            api_key: Some(wider.clone()),
            update_mask: Some(FieldMask { paths: vec!["scopes".to_owned()] }),
        };
        admin.api_keys().update_api_key(request).await.unwrap();
        assert_eq!(reason(set(&client, &old_id, 1).await), "SCOPE_ESCALATION");
        revoke(&admin, &wider.key_id, "").await.unwrap();
        assert_eq!(set(&client, &old_id, 1).await.unwrap().limit, 1);
    }

    async fn a_product_may_want_403_for_a_limit(hub: TestHub) {
        let verifier = backend(&hub).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (key, shown) = made(&hub, "once").await;
        set(&admin, &shown.key_id, 1).await.unwrap();
        let product = Product {
            product: "psa".to_owned(),
            rate_limited_status: 403,
            ..Product::default()
        };
        let request = UpdateProductRequest {
            product: Some(product),
            ..UpdateProductRequest::default()
        };
        hub.client(&hub.operator_key).platform().update_product(request).await.unwrap();
        assert_eq!(told(&verify(&verifier, tickets(&key)).await.unwrap()), (200, ""));
        let denied = verify(&verifier, tickets(&key)).await.unwrap();
        assert_eq!(told(&denied), (403, "RATE_LIMITED"));
        assert!(denied.headers.contains_key("Retry-After"));
    }

    async fn a_cost_above_the_limit_is_told_to_fit_never_instead_of_later(hub: TestHub) {
        let verifier = backend(&hub).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (key, shown) = made(&hub, "costly").await;
        set(&admin, &shown.key_id, 3).await.unwrap();
        let denied = verify(&verifier, costing(&key, 4)).await.unwrap();
        assert_eq!(told(&denied), (429, "RATE_LIMITED"));
        assert!(!denied.headers.contains_key("Retry-After"));
        assert!(denied.hint.contains("counts as 4"), "{}", denied.hint);
        assert!(denied.hint.contains("is 3 requests a minute"), "{}", denied.hint);
        let allowed = verify(&verifier, costing(&key, 3)).await.unwrap();
        assert_eq!(remaining(&allowed), (3, 0), "what was denied is not counted");
        let later = verify(&verifier, costing(&key, 3)).await.unwrap();
        assert!(later.headers.contains_key("Retry-After"));
    }

    async fn a_successor_shares_limit_and_usage(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let verifier = crate::api_keys::verify::backend(&hub).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (key, shown) = made(&hub, "first").await;
        set(&admin, &shown.key_id, 5).await.unwrap();
        verify(&verifier, costing(&key, 3)).await.unwrap();
        let request = RotateApiKeyRequest {
            key_id: shown.key_id.clone(),
            ..RotateApiKeyRequest::default()
        };
        let next = admin.api_keys().rotate_api_key(request).await.unwrap().into_inner();
        let next_id = next.api_key.unwrap().key_id;
        assert_eq!(remaining(&verify(&verifier, tickets(&next.plaintext)).await.unwrap()), (5, 1));
        assert_eq!(remaining(&verify(&verifier, tickets(&key)).await.unwrap()), (5, 0));
        assert!(!verify(&verifier, tickets(&next.plaintext)).await.unwrap().allowed);
        set(&admin, &shown.key_id, 6).await.unwrap();
        assert_eq!(remaining(&verify(&verifier, tickets(&next.plaintext)).await.unwrap()), (6, 0));
        for key_id in [&shown.key_id, &next_id] {
            let told = written(&hub, &admin, key_id, 7).await;
            let allowed: u64 = told.buckets.iter().map(|bucket| bucket.allowed).sum();
            assert_eq!(allowed, 6, "{told:?}");
        }
    }

    async fn usage_is_counted_by_outcome_and_survives_a_restart(backend: Backend) {
        let mut hub = TestHub::options(backend).manual_clock().start().await;
        let verifier = crate::api_keys::verify::backend(&hub).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (key, shown) = made(&hub, "counted").await;
        assert!(shown.last_use_time.is_none());
        for _ in 0..3 {
            verify(&verifier, tickets(&key)).await.unwrap();
        }
        verify(&verifier, costing(&key, 4)).await.unwrap();
        let crm = VerifyApiKeyRequest { product: "crm".to_owned(), ..tickets(&key) };
        verify(&verifier, crm).await.unwrap();
        verify(&verifier, costing(&key, 500)).await.unwrap();
        verify(&verifier, VerifyApiKeyRequest { dry_run: true, ..tickets(&key) }).await.unwrap();
        // Stopped, it writes what it counted.
        let used_at = hub.clock.now();
        hub.restart().await;
        let told = usage(&hub.client(&hub.first_tenant().admin_key), &shown.key_id).await;
        assert_eq!(told.buckets.len(), 1);
        assert_eq!(told.buckets[0].allowed, 7);
        assert_eq!(told.buckets[0].denied["PRODUCT_MISMATCH"], 1);
        assert_eq!(told.buckets[0].denied["RATE_LIMITED"], 500);
        let admin_again = hub.client(&hub.first_tenant().admin_key);
        let request = GetApiKeyRequest { key_id: shown.key_id };
        let shown = admin_again.api_keys().get_api_key(request).await.unwrap().into_inner();
        let last_use = shown.api_key.unwrap().last_use_time;
        assert_eq!(last_use, Some(hub_core::clock::timestamp(used_at)));
        let all = usage(&admin_again, "").await;
        assert_eq!(all.buckets[0].allowed, 7);
        assert_eq!(all.rate_limit.unwrap().limit, 100);
        drop(admin);
    }

    async fn what_a_key_was_used_for_is_told_within_ten_seconds(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let verifier = crate::api_keys::verify::backend(&hub).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (key, shown) = made(&hub, "counted").await;
        let used_at = hub.clock.now();
        verify(&verifier, tickets(&key)).await.unwrap();
        // Two batches: the first may have begun before the call. The clock stands still then.
        for _ in 0..2 {
            hub.clock.advance(Duration::from_secs(4));
        }
        while usage(&admin, &shown.key_id).await.buckets.is_empty() {}
        let request = GetApiKeyRequest { key_id: shown.key_id };
        let told = async || {
            let told = admin.api_keys().get_api_key(request.clone()).await.unwrap().into_inner();
            told.api_key.unwrap().last_use_time
        };
        while told().await.is_none() {}
        assert_eq!(told().await, Some(hub_core::clock::timestamp(used_at)));
    }

    async fn usage_has_minutes_hours_and_days_and_no_others(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        for (seconds, fits) in [(0, true), (60, true), (3600, true), (86_400, true), (61, false)] {
            let request = GetApiKeyUsageRequest {
                interval: Some(prost_types::Duration { seconds, nanos: 0 }),
                ..GetApiKeyUsageRequest::default()
            };
            let answer = admin.api_keys().get_api_key_usage(request).await;
            assert_eq!(answer.is_ok(), fits, "{seconds} {answer:?}");
        }
    }

    async fn a_limit_is_no_right_and_what_a_limited_key_makes_has_the_tenant_s(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let made = create(&admin, new_key("limited", &["hub:keys.write", "psa:*"])).await.unwrap();
        set(&admin, &made.api_key.unwrap().key_id, 1).await.unwrap();
        let sibling = create(&hub.client(&made.plaintext), new_key("sibling", &["psa:*"])).await;
        let sibling = sibling.unwrap().plaintext;
        let backend = backend(&hub).await;
        assert_eq!(remaining(&verify(&backend, tickets(&sibling)).await.unwrap()), (100, 99));
        let all = verify(&backend, costing(&sibling, 100)).await.unwrap();
        assert_eq!(told(&all), (429, "RATE_LIMITED"), "the tenant's limit bounds both");
    }

    async fn the_hub_s_own_api_has_a_limit_of_its_own(backend: Backend) {
        let hub = TestHub::options(backend).limits(|limits| limits.api_requests_per_minute = 10);
        let hub = hub.manual_clock().start().await;
        let admin_key = hub.first_tenant().admin_key.clone();
        let admin = hub.client(&admin_key);
        let answer = admin.api_keys().who_am_i(WhoAmIRequest {}).await.unwrap();
        assert_eq!(answer.metadata().get("x-ratelimit-limit").unwrap(), "10");
        assert_eq!(answer.metadata().get("x-ratelimit-remaining").unwrap(), "9");
        assert!(answer.metadata().get("x-ratelimit-reset").is_some());
        let path = "hub.api_keys.v1.ApiKeys/GetApiKey";
        let json = post_json(hub.addr, path, &admin_key, r#"{"keyId":"key_none"}"#).await;
        assert_eq!(json.status, 404);
        assert_eq!(json.header("x-ratelimit-remaining"), "8", "errors too");
        let (ended, shown) = made(&hub, "ended").await;
        revoke(&admin, &shown.key_id, "").await.unwrap();
        let own = "hub.api_keys.v1.ApiKeys/WhoAmI";
        let refused = post_json(hub.addr, own, &ended, "{}").await;
        assert_eq!(refused.status, 403);
        // Its holder learns nothing of what the tenant does.
        assert_eq!(refused.header("x-ratelimit-remaining"), "0");
        let expire_time = Some(hub_core::clock::timestamp(hub.clock.now() + 1_000_000));
        let short = ApiKey { expire_time, ..new_key("short", &["psa:*"]) };
        let short = create(&admin, short).await.unwrap().plaintext;
        hub.clock.advance(Duration::from_secs(2));
        let refused = post_json(hub.addr, own, &short, "{}").await;
        assert_eq!(refused.header("x-ratelimit-remaining"), "0", "nor is it counted");
        let unknown = hub_api_keys::Plaintext::generate().unwrap();
        let refused = post_json(hub.addr, own, unknown.expose(), "{}").await;
        assert!(!refused.headers.contains_key("x-ratelimit-limit"), "there is no limit of its own");
        revoke(&admin, "key_none", "").await.unwrap_err();
        for _ in 0..4 {
            who_am_i(&admin).await.unwrap();
        }
        let status = admin
            .api_keys()
            .who_am_i(WhoAmIRequest {})
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.metadata().get("x-ratelimit-remaining").unwrap(), "0");
        let error = hub_client::Error::from(status);
        assert_eq!(error.reason(), Some("RATE_LIMITED"));
        assert_eq!(error.metadata()["limit"], "10");
        let json = post_json(hub.addr, path, &admin_key, r#"{"keyId":"key_none"}"#).await;
        assert_eq!(json.status, 429);
        assert_eq!(json.header("retry-after"), "59");
        // An operator's key is beyond the limit of the tenant's.
        let operator = hub.client(&hub.operator_key);
        let asked = call(error.call_id().unwrap());
        let explained = explain(&operator, asked.clone()).await.unwrap();
        assert_eq!(explained.primary_cause, "KEY_RATE", "{explained:#?}");
        assert_eq!(explained.verdict(), Verdict::Blocked, "{explained:#?}");
        hub.clock.advance(Duration::from_secs(61));
        let explained = explain(&operator, asked).await.unwrap();
        assert_eq!(explained.verdict(), Verdict::FixedSince, "{explained:#?}");
        who_am_i(&admin).await.unwrap();
    }
}
