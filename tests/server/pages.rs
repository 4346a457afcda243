//! `/livez`, `/readyz`, `/metrics`, `/errors/<REASON>`, `/checks/<CODE>`.

use http::{Method, StatusCode};

use crate::support::{TestHub, post_json, request};

both_databases! {
    async fn a_hub_that_takes_calls_is_alive_and_ready(hub: TestHub) {
        let live = request(hub.addr, Method::GET, "/livez", &[], "").await;
        assert_eq!((live.status, live.text()), (StatusCode::OK, "ok\n"));
        let ready = request(hub.addr, Method::GET, "/readyz", &[], "").await;
        assert_eq!(ready.status, StatusCode::OK);
        assert_eq!(ready.text(), "database ok\njournal ok\nbeat ok\nserving ok\nworkers ok\n");
    }

    async fn a_hub_whose_database_is_gone_is_alive_and_not_ready(hub: TestHub) {
        hub.core.db.close().await;
        let live = request(hub.addr, Method::GET, "/livez", &[], "").await;
        assert_eq!(live.status, StatusCode::OK);
        let ready = request(hub.addr, Method::GET, "/readyz", &[], "").await;
        assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(ready.text().starts_with("database failed\n"), "{}", ready.text());
    }

    async fn calls_are_counted_by_method_and_code(hub: TestHub) {
        let method = "hub.api_keys.v1.ApiKeys/GetApiKey";
        let refused = post_json(hub.addr, method, "", r#"{"keyId":"key_1"}"#).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        let metrics = request(hub.addr, Method::GET, "/metrics", &[], "").await;
        assert_eq!(metrics.status, StatusCode::OK);
        let counted = r#"grpc_server_handled_total{grpc_service="hub.api_keys.v1.ApiKeys",grpc_method="GetApiKey",grpc_code="Unauthenticated"}"#;
        assert!(metrics.text().contains(counted), "{}", metrics.text());
        assert!(metrics.text().contains("grpc_server_handling_seconds_bucket"));
    }

    async fn the_help_link_of_an_error_leads_to_its_page(hub: TestHub) {
        let refused = post_json(hub.addr, "hub.api_keys.v1.ApiKeys/WhoAmI", "", "{}").await;
        assert_eq!(refused.reason(), "KEY_MISSING");
        let message = refused.json()["message"].as_str().unwrap().to_owned();
        let link = message.rsplit(' ').next().unwrap();
        let path = link.strip_prefix(&hub.url()).unwrap();
        assert_eq!(path, "/errors/KEY_MISSING");
        let page = request(hub.addr, Method::GET, path, &[], "").await;
        assert_eq!(page.status, StatusCode::OK);
        assert!(page.text().contains("KEY_MISSING"), "{}", page.text());
        let none = request(hub.addr, Method::GET, "/errors/NO_SUCH", &[], "").await;
        assert_eq!(none.status, StatusCode::NOT_FOUND);
        assert!(none.text().contains("KEY_MISSING"), "{}", none.text());
    }
}
