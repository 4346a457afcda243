//! ExplainAccess about calls of the hub's own API that were admitted and refused all the same.

use std::time::Duration;

use hub_client::proto::hub::api_keys::v1::explain_access_request::Subject;
use hub_client::proto::hub::api_keys::v1::{ApiKey, SetRateLimitRequest};
use hub_client::proto::hub::event_bus::v1::SubscribeRequest;
use hub_client::proto::hub::explain::v1::evidence::Value;
use hub_client::proto::hub::explain::v1::{CheckResult, Explanation, Verdict};
use hub_client::proto::hub::platform::v1::CreateTenantRequest;
use hub_client::{Error, Hub};

use super::explain::{about, call, explain, fix, result};
use super::{Outcome, create, new_key, reason, who_am_i};
use crate::support::{Backend, TestHub};

/// What a check saw.
fn seen(explained: &Explanation, code: &str, key: &str) -> String {
    let mut checks = explained.checks.iter();
    let check = checks.find(|check| check.code == code).unwrap();
    let seen = check.evidence.iter().find(|seen| seen.key == key);
    match seen.and_then(|seen| seen.value.clone()) {
        Some(Value::Text(text)) => text,
        other => panic!("{code} saw {other:?} as {key}"),
    }
}

/// What is said of a refused call, whose reason and cause are these.
async fn explained(client: &Hub, refused: &Error, why: (&str, &str)) -> Explanation {
    assert_eq!(refused.reason(), Some(why.0));
    let asked = call(refused.call_id().unwrap());
    let explained = explain(client, asked).await.unwrap();
    assert_eq!(explained.primary_cause, why.1, "{explained:#?}");
    explained
}

async fn limit_tenant(client: &Hub) -> Error {
    let request = SetRateLimitRequest {
        key_id: String::new(),
        requests_per_minute: 9,
    };
    let error = client.api_keys().set_rate_limit(request).await;
    error.unwrap_err().into()
}

/// Opens a stream of the events of all products.
async fn read_all(client: &Hub) -> Outcome<()> {
    let request = SubscribeRequest {
        all_products: true,
        ..SubscribeRequest::default()
    };
    let mut stream = client.event_bus().subscribe(request).await?.into_inner();
    stream.message().await?.unwrap();
    Ok(())
}

fn is_advice_only(explained: &Explanation) -> bool {
    !explained.fixes.is_empty() && explained.fixes.iter().all(|fix| fix.rpc.is_empty())
}

both_databases! {
    async fn a_call_for_operators_only_is_explained_whoever_refused_it(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let why = ("OPERATOR_ONLY", "KEY_OPERATOR");
        // By its handler, which alone knows whose limit is meant.
        let refused = limit_tenant(&admin).await;
        let told = explained(&admin, &refused, why).await;
        let method = "hub.api_keys.v1.ApiKeys/SetRateLimit of a tenant";
        assert_eq!(seen(&told, "KEY_OPERATOR", "method"), method);
        assert_eq!(told.verdict(), Verdict::Blocked);
        assert!(is_advice_only(&told), "{told:#?}");
        assert_eq!(result(&told, "KEY_BASE_URL"), CheckResult::Pass);
        assert_eq!(result(&told, "KEY_RIGHTS"), CheckResult::Unknown, "not reached");
        assert_eq!(result(&told, "KEY_WOULD_PASS_NOW"), CheckResult::Fail);
        // By admission.
        let request = CreateTenantRequest { name: "Acme".to_owned(), ..Default::default() };
        let refused = admin.platform().create_tenant(request).await.unwrap_err();
        let told = explained(&admin, &refused.into(), why).await;
        let method = "hub.platform.v1.Platform/CreateTenant";
        assert_eq!(seen(&told, "KEY_OPERATOR", "method"), method);
    }

    async fn scopes_that_a_key_would_give_and_lacks_are_named_and_the_fix_adds_them(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let client = hub.client(&hub.key("", &["hub:keys.write", "psa:notes.*"]).await);
        let wider = new_key("wider", &["psa:tickets.read", "psa:notes.read", "crm:*"]);
        let refused = create(&client, wider.clone()).await.unwrap_err();
        assert_eq!(refused.metadata()["scope"], "psa:tickets.read");
        assert_eq!(refused.metadata()["missingScopes"], "psa:tickets.read crm:*");
        let why = ("SCOPE_ESCALATION", "KEY_RIGHTS");
        let told = explained(&client, &refused, why).await;
        assert_eq!(told.verdict(), Verdict::Blocked, "{told:#?}");
        assert_eq!(result(&told, "KEY_ACTION"), CheckResult::Pass);
        assert_eq!(seen(&told, "KEY_RIGHTS", "missingScopes"), "psa:tickets.read crm:*");
        let told = explained(&admin, &refused, why).await;
        fix(&hub, &hub.first_tenant().admin_key, &told).await;
        create(&client, wider).await.unwrap();
        let told = explained(&admin, &refused, why).await;
        assert_eq!(told.verdict(), Verdict::FixedSince, "{told:#?}");
    }

    async fn rights_that_are_no_scopes_are_explained_with_what_to_do_instead(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let why = ("SCOPE_ESCALATION", "KEY_RIGHTS");
        let psa = hub.client(&hub.key("psa", &["hub:keys.write"]).await);
        let mut books = new_key("of another product", &[]);
        books.product = "books".to_owned();
        let refused = create(&psa, books).await.unwrap_err();
        let told = explained(&psa, &refused, why).await;
        assert_eq!(seen(&told, "KEY_RIGHTS", "product"), "books");
        assert!(told.verdict() == Verdict::Blocked && is_advice_only(&told), "{told:#?}");
        // Nobody is told to make an administrator of a key that wants to make one.
        let refused = create(&psa, new_key("more", &["hub:*"])).await.unwrap_err();
        let told = explained(&psa, &refused, why).await;
        assert!(told.verdict() == Verdict::Blocked && is_advice_only(&told), "{told:#?}");
        let end = hub_core::clock::timestamp(hub.clock.now() + 60_000_000);
        let short = ApiKey { expire_time: Some(end), ..new_key("short", &["hub:keys.write"]) };
        let admin = hub.client(&hub.first_tenant().admin_key);
        let short = hub.client(&create(&admin, short).await.unwrap().plaintext);
        let refused = create(&short, new_key("for ever", &[])).await.unwrap_err();
        let told = explained(&short, &refused, why).await;
        assert!(told.verdict() == Verdict::Blocked && is_advice_only(&told), "{told:#?}");
        assert_eq!(result(&told, "KEY_WOULD_PASS_NOW"), CheckResult::Unknown);
    }

    async fn a_scope_that_a_handler_asks_for_is_named_and_the_fix_adds_it(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let why = ("SCOPE_MISSING", "KEY_ACTION");
        let reader = hub.client(&hub.key("portal", &["hub:events.read"]).await);
        let refused = read_all(&reader).await.unwrap_err();
        let told = explained(&admin, &refused, why).await;
        assert_eq!(told.verdict(), Verdict::Blocked, "{told:#?}");
        assert_eq!(seen(&told, "KEY_ACTION", "missingScope"), "hub:events.read_all");
        fix(&hub, &hub.first_tenant().admin_key, &told).await;
        read_all(&reader).await.unwrap();
        let told = explained(&admin, &refused, why).await;
        assert_eq!(told.verdict(), Verdict::FixedSince, "{told:#?}");
        // ExplainAccess needs no scope, but for what is not one's own.
        let client = hub.client(&hub.key("", &[]).await);
        let key_id = who_am_i(&admin).await.unwrap().api_key.unwrap().key_id;
        let asked = about(Subject::KeyId(key_id));
        let refused = explain(&client, asked.clone()).await.unwrap_err();
        let told = explained(&client, &refused, why).await;
        assert_eq!(seen(&told, "KEY_ACTION", "missingScope"), "hub:diagnostics.read");
        fix(&hub, &hub.first_tenant().admin_key, &told).await;
        explain(&client, asked).await.unwrap();
    }

    async fn refusals_of_handlers_are_kept_within_the_bounds_and_the_tenant(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let other = hub.client(&hub.tenant().await.admin_key);
        for _ in 0..10 {
            let refused = limit_tenant(&admin).await;
            explained(&admin, &refused, ("OPERATOR_ONLY", "KEY_OPERATOR")).await;
            let foreign = explain(&other, call(refused.call_id().unwrap())).await;
            assert_eq!(reason(foreign), "CALL_NOT_FOUND");
        }
        let eleventh = limit_tenant(&admin).await;
        let asked = call(eleventh.call_id().unwrap());
        assert_eq!(reason(explain(&admin, asked).await), "CALL_NOT_FOUND");
        hub.clock.advance(Duration::from_secs(60));
        let refused = limit_tenant(&admin).await;
        explained(&admin, &refused, ("OPERATOR_ONLY", "KEY_OPERATOR")).await;
    }
}
