//! What becomes of a key at one process is known to the others.

use hub_client::proto::hub::api_keys::v1::RotateApiKeyRequest;

use super::Fleet;
use crate::api_keys::{create, new_key, reason, revoke, who_am_i};
use crate::durability::load;
use crate::support::Tenant;

/// Revokes a key that the other process has in memory. The hub itself says whether that was known
/// everywhere within 5 s; how soon it is, the benchmark `revocation` tells.
async fn revoked_elsewhere(flags: &[&str]) {
    let fleet = Fleet::start(2, flags).await;
    let operator_key = fleet.hubs[0].ready["operatorKey"].as_str().unwrap();
    let tenant = Tenant::create(&load::client(fleet.addr(0), operator_key)).await;
    let admin = load::client(fleet.addr(0), &tenant.admin_key);
    let made = create(&admin, new_key("shared", &["psa:*"])).await.unwrap();
    let there = load::client(fleet.addr(1), &made.plaintext);
    // Made a moment ago at the other process, it works at once.
    who_am_i(&there).await.unwrap();
    let revoked = revoke(&admin, &made.api_key.unwrap().key_id, "leaked")
        .await
        .unwrap();
    assert_eq!(revoked.unconfirmed, 0);
    assert_eq!(reason(who_am_i(&there).await), "KEY_REVOKED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_is_known_to_all_processes_when_it_is_answered() {
    revoked_elsewhere(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_without_grace_is_known_to_all_processes_when_it_is_answered() {
    let fleet = Fleet::start(2, &["--notify-interval", "0s"]).await;
    let operator_key = fleet.hubs[0].ready["operatorKey"].as_str().unwrap();
    let tenant = Tenant::create(&load::client(fleet.addr(0), operator_key)).await;
    let admin = load::client(fleet.addr(0), &tenant.admin_key);
    let made = create(&admin, new_key("leaked", &["psa:*"])).await.unwrap();
    let there = load::client(fleet.addr(1), &made.plaintext);
    who_am_i(&there).await.unwrap();
    let request = RotateApiKeyRequest {
        key_id: made.api_key.unwrap().key_id,
        grace: Some(prost_types::Duration::default()),
        ..RotateApiKeyRequest::default()
    };
    admin.api_keys().rotate_api_key(request).await.unwrap();
    assert_eq!(reason(who_am_i(&there).await), "KEY_REVOKED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_hints_a_revocation_is_known_within_five_seconds() {
    revoked_elsewhere(&["--notify-interval", "0s"]).await;
}
