//! A call with a request_id is done once, whichever processes it reaches, and answered the same.

use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest, CreateApiKeyResponse};
use hub_client::proto::hub::platform::v1::{CreateTenantRequest, CreateTenantResponse};

use super::Fleet;
use crate::durability::load;

const HUBS: usize = 3;

async fn make_key(hub: Hub, request_id: String) -> CreateApiKeyResponse {
    let api_key = Some(ApiKey {
        name: "made once".into(),
        ..ApiKey::default()
    });
    let request = CreateApiKeyRequest {
        api_key,
        request_id,
    };
    hub.api_keys()
        .create_api_key(request)
        .await
        .unwrap()
        .into_inner()
}

async fn make_tenant(hub: Hub, request_id: String) -> CreateTenantResponse {
    let request = CreateTenantRequest {
        name: "Made once".into(),
        request_id,
        ..CreateTenantRequest::default()
    };
    hub.platform()
        .create_tenant(request)
        .await
        .unwrap()
        .into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_at_another_process_or_after_a_kill_gets_the_same_answer_with_its_secret() {
    let mut fleet = Fleet::start(HUBS, &[]).await;
    let operator_key = fleet.hubs[0].ready["operatorKey"]
        .as_str()
        .unwrap()
        .to_owned();
    let tenant_id = uuid::Uuid::new_v4().to_string();
    let tenant = make_tenant(
        load::client(fleet.addr(0), &operator_key),
        tenant_id.clone(),
    )
    .await;
    let key_id = uuid::Uuid::new_v4().to_string();
    let at = |fleet: &Fleet, hub| load::client(fleet.addr(hub), &tenant.admin_key);
    // All at once, then one after the other.
    let calls = (0..HUBS * 3).map(|call| make_key(at(&fleet, call % HUBS), key_id.clone()));
    let answers = futures_util::future::join_all(calls).await;
    let key = answers[0].clone();
    assert!(key.plaintext.starts_with("tos_"));
    assert!(answers.iter().all(|answer| *answer == key));
    for hub in 0..HUBS {
        fleet.hubs[hub].kill().await;
        fleet.hubs[hub].start_again().await;
        assert_eq!(make_key(at(&fleet, hub), key_id.clone()).await, key);
        let operator = load::client(fleet.addr(hub), &operator_key);
        assert_eq!(make_tenant(operator, tenant_id.clone()).await, tenant);
    }
}
