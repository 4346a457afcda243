//! A limit holds for all processes together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::{SetRateLimitRequest, VerifyApiKeyRequest};

use super::Fleet;
use crate::api_keys::new_key;
use crate::api_keys::verify::{tickets, verify};
use crate::durability::load;
use crate::support::Tenant;

/// Requests per minute of the tenant.
const LIMIT: u32 = 600;
/// Callers at each process.
const CALLERS: usize = 4;
/// What takes longer has failed. Less than the minute in which the first request leaves the window.
const PATIENCE: Duration = Duration::from_secs(20);
/// Calls of each caller after the limit was reached.
const MORE: u32 = 20;

/// A key of a tenant with [`LIMIT`], and a key that verifies it.
async fn limited(fleet: &Fleet) -> (String, String) {
    let operator_key = fleet.hubs[0].ready["operatorKey"].as_str().unwrap();
    let operator = load::client(fleet.addr(0), operator_key);
    let tenant = Tenant::create(&operator).await;
    let of_tenant = Hub::builder(format!("http://{}", fleet.addr(0)))
        .api_key(operator_key)
        .tenant(&tenant.id)
        .connect_lazy()
        .unwrap();
    let request = SetRateLimitRequest {
        key_id: String::new(),
        requests_per_minute: LIMIT,
    };
    of_tenant.api_keys().set_rate_limit(request).await.unwrap();
    let admin = load::client(fleet.addr(0), &tenant.admin_key);
    let key = tenant.key(&admin, "", &["psa:*"]).await;
    let mut verifier = new_key("psa backend", &["hub:keys.verify"]);
    (verifier.product, verifier.all_tenants) = ("psa".to_owned(), true);
    let verifier = crate::api_keys::create(&operator, verifier).await.unwrap();
    (key, verifier.plaintext)
}

/// Calls until the limit is reached by all callers together, and some more; or for [`PATIENCE`].
async fn call(client: Hub, key: String, allowed: Arc<AtomicU32>) {
    let (began, mut more) = (Instant::now(), MORE);
    while began.elapsed() < PATIENCE && more > 0 {
        let answer = verify(&client, tickets(&key)).await.unwrap();
        assert!(!answer.degraded);
        if answer.allowed {
            allowed.fetch_add(1, Ordering::SeqCst);
        }
        more -= u32::from(allowed.load(Ordering::SeqCst) >= LIMIT);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_let_through_the_limit_and_no_more() {
    let fleet = Fleet::start(3, &[]).await;
    let (key, verifier) = limited(&fleet).await;
    let allowed = Arc::new(AtomicU32::new(0));
    let mut callers = Vec::new();
    for hub in 0..3 {
        for _ in 0..CALLERS {
            let client = load::client(fleet.addr(hub), &verifier);
            callers.push(tokio::spawn(call(client, key.clone(), allowed.clone())));
        }
    }
    for caller in callers {
        caller.await.unwrap();
    }
    let allowed = allowed.load(Ordering::SeqCst);
    assert!(allowed <= LIMIT, "{allowed}");
    assert!(allowed >= LIMIT * 9 / 10, "{allowed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_process_let_through_counts_after_it_was_killed() {
    let mut fleet = Fleet::start(2, &[]).await;
    let (key, verifier) = limited(&fleet).await;
    let costing = |cost| VerifyApiKeyRequest {
        cost: Some(cost),
        ..tickets(&key)
    };
    let first = load::client(fleet.addr(0), &verifier);
    for _ in 0..10 {
        assert!(verify(&first, costing(LIMIT / 20)).await.unwrap().allowed);
    }
    fleet.hubs[0].kill().await;
    let second = load::client(fleet.addr(1), &verifier);
    let mut allowed = 0;
    for _ in 0..LIMIT {
        allowed += u32::from(verify(&second, costing(1)).await.unwrap().allowed);
    }
    assert!(allowed <= LIMIT / 2, "{allowed}");
}
