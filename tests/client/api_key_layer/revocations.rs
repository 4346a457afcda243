//! What was decided before does not outlive a change, nor the hub.

use hub_client::proto::hub::api_keys::v1::watch_api_keys_response::Frame;
use hub_client::proto::hub::api_keys::v1::{ApiKey, UpdateApiKeyRequest, WatchApiKeysRequest};
use hub_client::proto::hub::platform::v1::SetProductSubscriptionRequest;
use hub_client::{ApiKeyLayer, ApiKeyLayerState};

use super::super::Address;
use super::{HOST, UNKNOWN, ask, axum_server, backend_key, key, knows, layer, refused};
use crate::api_keys::revoke;
use crate::support::TestHub;

/// Requests until some are decided ahead.
const WARM: usize = 12;

both_databases! {
    async fn a_revoked_key_is_refused_by_the_first_request_after_the_layer_was_told(hub: TestHub) {
        let layer = layer(&hub).await;
        let server = axum_server(&layer).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        for _ in 0..5 {
            let (key, key_id) = key(&hub, &["psa:*"]).await;
            for _ in 0..WARM {
                assert_eq!(ask(&server, "/tickets/1", &key).await.status, 200);
            }
            let revoked = revoke(&admin, &key_id, "leaked").await.unwrap();
            knows(&layer, revoked.epoch).await;
            let answer = ask(&server, "/tickets/1", &key).await;
            assert_eq!(refused(&answer), (403, "KEY_REVOKED".to_owned()));
            assert_eq!(answer.json()["keyId"], *key_id);
        }
    }

    async fn a_key_that_is_used_without_pause_is_refused_for_good_once_it_is_revoked(hub: TestHub) {
        let layer = layer(&hub).await;
        let server = axum_server(&layer).await;
        let (key, key_id) = key(&hub, &["psa:*"]).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let using = async {
            let mut statuses = Vec::new();
            while statuses.iter().filter(|status| **status == 403).count() < 20 {
                let answer = ask(&server, "/tickets/1", &key).await;
                statuses.push(answer.status.as_u16());
            }
            statuses
        };
        let revoking = async {
            tokio::task::yield_now().await;
            revoke(&admin, &key_id, "leaked").await.unwrap()
        };
        let (statuses, _) = tokio::join!(using, revoking);
        let first = statuses.iter().position(|status| *status == 403).unwrap();
        let later = &statuses[first..];
        assert!(later.iter().all(|status| *status == 403), "{statuses:?}");
    }

    async fn a_scope_that_was_taken_away_and_a_subscription_that_ended_hold_at_once(hub: TestHub) {
        let layer = layer(&hub).await;
        let server = axum_server(&layer).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let (key, key_id) = key(&hub, &["psa:tickets.read", "psa:tickets.write"]).await;
        for _ in 0..WARM {
            assert_eq!(ask(&server, "/write", &key).await.status, 200);
        }
        let request = UpdateApiKeyRequest {
            api_key: Some(ApiKey {
                key_id,
                scopes: vec!["psa:tickets.read".to_owned()],
                ..ApiKey::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["scopes".to_owned()],
            }),
        };
        admin.api_keys().update_api_key(request).await.unwrap();
        told(&hub, &layer).await;
        let answer = ask(&server, "/write", &key).await;
        assert_eq!(refused(&answer), (403, "SCOPE_MISSING".to_owned()));
        for _ in 0..WARM {
            assert_eq!(ask(&server, "/tickets/1", &key).await.status, 200);
        }
        let request = SetProductSubscriptionRequest {
            product: "psa".to_owned(),
            active: false,
            ..SetProductSubscriptionRequest::default()
        };
        admin.platform().set_product_subscription(request).await.unwrap();
        told(&hub, &layer).await;
        let answer = ask(&server, "/tickets/1", &key).await;
        assert_eq!(refused(&answer), (403, "SUBSCRIPTION_INACTIVE".to_owned()));
    }

    async fn without_the_hub_nobody_is_let_in_and_with_it_everybody_again(mut hub: TestHub) {
        let address = Address::new(hub.addr);
        let layer = address.client(&backend_key(&hub).await).api_key_layer("psa");
        knows(&layer, 0).await;
        let layer = layer.host_of(|_| HOST.to_owned());
        let server = axum_server(&layer).await;
        let (key, _) = key(&hub, &["psa:*"]).await;
        for _ in 0..WARM {
            assert_eq!(ask(&server, "/tickets/1", &key).await.status, 200);
        }
        assert!(layer.decisions() > 0);
        hub.stop().await;
        let mut state = layer.state();
        let lost = |state: &ApiKeyLayerState| !matches!(state, ApiKeyLayerState::Watching { .. });
        state.wait_for(lost).await.unwrap();
        assert_eq!(layer.decisions(), 0);
        let answer = ask(&server, "/tickets/1", &key).await;
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(answer.header("retry-after"), "1");
        assert_eq!(ask(&server, "/tickets/1", UNKNOWN).await.status, 503);
        hub.restart().await;
        address.moved(hub.addr);
        knows(&layer, 0).await;
        assert_eq!(ask(&server, "/tickets/1", &key).await.status, 200);
        let answer = ask(&server, "/tickets/1", UNKNOWN).await;
        assert_eq!(refused(&answer), (401, "KEY_NOT_RECOGNIZED".to_owned()));
    }
}

/// Waits until the layer was told of all that has changed so far.
async fn told(hub: &TestHub, layer: &ApiKeyLayer) {
    let watcher = hub.client(&backend_key(hub).await);
    let request = WatchApiKeysRequest::default();
    let frames = watcher.api_keys().watch_api_keys(request).await.unwrap();
    let first = frames.into_inner().message().await.unwrap().unwrap();
    let Some(Frame::Opened(opened)) = first.frame else {
        panic!("{first:?} opens no watch");
    };
    knows(layer, opened.head_sequence).await;
}
