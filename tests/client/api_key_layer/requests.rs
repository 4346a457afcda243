//! HTTP, with axum.

use http::Method;
use hub_client::proto::hub::api_keys::v1::ExplainAccessRequest;
use hub_client::proto::hub::api_keys::v1::explain_access_request::Subject;

use super::{UNKNOWN, ask, axum_server, backend_key, key, knows, layer, made, refused};
use crate::api_keys::new_key;
use crate::api_keys::verify::set_base_urls;
use crate::support::{TestHub, request};

both_databases! {
    async fn a_key_with_the_scope_comes_through_and_the_service_knows_who_calls(hub: TestHub) {
        let server = axum_server(&layer(&hub).await).await;
        let (key, key_id) = key(&hub, &["psa:tickets.read", "crm:deals.read"]).await;
        let bearer = format!("Bearer {key}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("x-hub-key-id", "key_of_another"),
            ("x-hub-tenant-id", "tnt_of_another"),
            ("x-hub-scopes", "hub:*"),
        ];
        let answer = request(server.addr, Method::GET, "/tickets/1", &headers, "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let seen = answer.json();
        assert_eq!(seen["keyId"], *key_id);
        assert_eq!(seen["tenantId"], *hub.first_tenant().id);
        assert_eq!(seen["scopes"], serde_json::json!(["psa:tickets.read", "crm:deals.read"]));
        assert_eq!(seen["headers"], serde_json::json!(["host"]), "nothing else came through");
        assert_eq!(answer.header("x-ratelimit-limit"), "100");
        assert_eq!(answer.header("x-ratelimit-remaining"), "99");
        assert!(!answer.header("x-ratelimit-reset").is_empty());
        assert_eq!(answer.header("retry-after"), "");
        let again = ask(&server, "/tickets/2", &key).await;
        assert_eq!(again.header("x-ratelimit-remaining"), "98", "each request is counted");
    }

    async fn a_refusal_is_a_problem_that_explain_access_knows(hub: TestHub) {
        let server = axum_server(&layer(&hub).await).await;
        let nobody = request(server.addr, Method::GET, "/write", &[], "").await;
        assert_eq!(refused(&nobody), (401, "KEY_MISSING".to_owned()));
        assert_eq!(nobody.header("www-authenticate"), "Bearer");
        let unknown = ask(&server, "/write", UNKNOWN).await;
        assert_eq!(refused(&unknown), (401, "KEY_NOT_RECOGNIZED".to_owned()));
        assert_eq!(unknown.json()["keyId"], "");
        assert_eq!(unknown.json()["metadata"], serde_json::json!({}), "nothing more is told");
        assert_eq!(unknown.header("x-ratelimit-limit"), "");
        let in_url = ask(&server, &format!("/write?key={UNKNOWN}"), UNKNOWN).await;
        assert_eq!(refused(&in_url), (401, "KEY_MALFORMED".to_owned()));
        let (other, _) = key(&hub, &["crm:*"]).await;
        let answer = ask(&server, "/write", &other).await;
        assert_eq!(refused(&answer), (403, "PRODUCT_MISMATCH".to_owned()));
        let (reader, _) = key(&hub, &["psa:tickets.read"]).await;
        let answer = ask(&server, "/write", &reader).await;
        assert_eq!(refused(&answer), (403, "SCOPE_MISSING".to_owned()));
        assert_eq!(answer.header("x-ratelimit-remaining"), "100", "denials count nothing");
        let metadata = &answer.json()["metadata"];
        assert_eq!(metadata["missingScope"], "psa:tickets.write");
        assert_eq!(metadata["heldScopes"], "psa:tickets.read");
        let call_id = answer.json()["callId"].as_str().unwrap().to_owned();
        let asked = ExplainAccessRequest {
            subject: Some(Subject::CallId(call_id)),
            ..ExplainAccessRequest::default()
        };
        let admin = hub.client(&hub.first_tenant().admin_key);
        let explained = admin.api_keys().explain_access(asked).await.unwrap().into_inner();
        let summary = explained.explanation.unwrap();
        assert!(format!("{summary:?}").contains("psa:tickets.write"), "{summary:?}");
    }

    async fn the_address_is_that_of_the_connection(hub: TestHub) {
        let server = axum_server(&layer(&hub).await).await;
        let with = |cidr: &str| {
            let mut key = new_key("caller", &["psa:*"]);
            key.allowed_cidrs = vec![cidr.to_owned()];
            key
        };
        let (here, _) = made(&hub, with("127.0.0.0/8")).await;
        assert_eq!(ask(&server, "/write", &here).await.status, 200);
        let (elsewhere, _) = made(&hub, with("192.0.2.0/24")).await;
        let answer = ask(&server, "/write", &elsewhere).await;
        assert_eq!(refused(&answer), (403, "IP_NOT_ALLOWED".to_owned()));
    }

    async fn the_host_is_that_of_the_request_unless_the_layer_says_otherwise(hub: TestHub) {
        let layer = hub.client(&backend_key(&hub).await).api_key_layer("psa");
        knows(&layer, 0).await;
        let server = axum_server(&layer.base_path("/psa")).await;
        let (key, _) = key(&hub, &["psa:*"]).await;
        let answer = ask(&server, "/write", &key).await;
        assert_eq!(refused(&answer), (403, "BASE_URL_MISMATCH".to_owned()));
        let base_url = format!("http://{}/psa", server.addr);
        set_base_urls(&hub, "psa", &[&base_url], 0).await;
        // Every process follows within a second.
        while ask(&server, "/write", &key).await.status != 200 {
            tokio::task::yield_now().await;
        }
    }
}
