//! What a key may do, on every RPC; and that it gives no more than it has.

use hub_client::{Error, Hub};
use hub_proto::policy::{MethodPolicy, method_policies};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use super::{create, new_key, reason, revoke, who_am_i};
use crate::support::TestHub;

/// Calls a method with an empty message: who may not call it is told so before it is read.
async fn call(client: &Hub, policy: &MethodPolicy) -> Option<Error> {
    let mut grpc = Grpc::new(client.transport());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static(policy.path);
    let codec = ProstCodec::<(), ()>::default();
    grpc.unary(Request::new(()), path, codec)
        .await
        .err()
        .map(Error::from)
}

async fn reason_of(client: &Hub, policy: &MethodPolicy) -> String {
    let error = call(client, policy).await;
    error
        .and_then(|error| error.reason().map(str::to_owned))
        .unwrap_or_default()
}

both_databases! {
    async fn every_rpc_names_the_scope_that_a_key_lacks(hub: TestHub) {
        let key = hub.key("psa", &["psa:tickets.read"]).await;
        let client = hub.client(&key);
        let key_id = who_am_i(&client).await.unwrap().api_key.unwrap().key_id;
        let mut checked = 0;
        for policy in method_policies().iter().filter(|p| !p.scope.is_empty() && !p.operator_only) {
            let error = call(&client, policy).await.unwrap();
            assert_eq!(error.reason(), Some("SCOPE_MISSING"), "{}", policy.method);
            assert_eq!(error.code(), Code::PermissionDenied);
            assert_eq!(error.metadata()["missingScope"], policy.scope);
            assert_eq!(error.metadata()["heldScopes"], "psa:tickets.read");
            assert_eq!(error.metadata()["keyId"], key_id);
            checked += 1;
        }
        assert!(checked > 50, "{checked}");
    }

    async fn every_rpc_needs_a_key(hub: TestHub) {
        let client = Hub::builder(hub.url()).connect_lazy().unwrap();
        for policy in method_policies().iter().filter(|policy| !policy.public) {
            assert_eq!(reason_of(&client, policy).await, "KEY_MISSING", "{}", policy.method);
        }
    }

    async fn what_is_for_operators_is_refused_to_an_administrator(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let mut checked = 0;
        for policy in method_policies().iter().filter(|policy| policy.operator_only) {
            let error = call(&admin, policy).await.unwrap();
            assert_eq!(error.reason(), Some("OPERATOR_ONLY"), "{}", policy.method);
            assert_eq!(error.metadata()["method"], policy.method);
            checked += 1;
        }
        assert!(checked >= 3, "{checked}");
    }

    async fn what_speaks_for_a_product_needs_a_key_that_does(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        for policy in method_policies().iter().filter(|policy| policy.product_required) {
            assert_eq!(reason_of(&admin, policy).await, "PRODUCT_REQUIRED", "{}", policy.method);
        }
    }

    async fn a_scope_admits_to_its_rpcs_and_no_others(hub: TestHub) {
        let client = hub.client(&hub.key("", &["hub:keys.read"]).await);
        for policy in method_policies().iter().filter(|policy| !policy.operator_only) {
            let refused = reason_of(&client, policy).await == "SCOPE_MISSING";
            let held = policy.scope.is_empty() || policy.scope == "hub:keys.read";
            assert_eq!(refused, !held, "{}", policy.method);
        }
    }

    async fn a_key_gives_only_scopes_that_it_has(hub: TestHub) {
        let scopes = ["hub:keys.write", "psa:tickets.*"];
        let client = hub.client(&hub.key("psa", &scopes).await);
        create(&client, new_key("narrower", &["psa:tickets.read"])).await.unwrap();
        create(&client, new_key("same", &scopes)).await.unwrap();
        create(&client, new_key("nothing", &[])).await.unwrap();
        for wider in ["psa:*", "hub:*", "hub:keys.read", "crm:deals.read", "psa:*.read"] {
            let error = create(&client, new_key("wider", &[wider])).await.unwrap_err();
            assert_eq!(error.code(), Code::PermissionDenied);
            assert_eq!(error.reason(), Some("SCOPE_ESCALATION"), "{wider}");
            assert_eq!(error.metadata()["scope"], wider);
        }
        let mut own = new_key("of its own product", &[]);
        own.product = "psa".to_owned();
        create(&client, own.clone()).await.unwrap();
        own.product = "books".to_owned();
        assert_eq!(reason(create(&client, own).await), "SCOPE_ESCALATION");
    }

    async fn a_key_ends_only_keys_that_have_no_more_rights(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let client = hub.client(&hub.key("", &["hub:keys.write", "psa:tickets.*"]).await);
        let wide = create(&admin, new_key("wide", &["psa:*"])).await.unwrap();
        let wide_id = wide.api_key.unwrap().key_id;
        assert_eq!(reason(revoke(&client, &wide_id, "").await), "SCOPE_ESCALATION");
        let administrator = who_am_i(&admin).await.unwrap().api_key.unwrap().key_id;
        assert_eq!(reason(revoke(&client, &administrator, "").await), "SCOPE_ESCALATION");
        who_am_i(&hub.client(&wide.plaintext)).await.unwrap();
        let narrow = create(&admin, new_key("narrow", &["psa:tickets.read"])).await.unwrap();
        revoke(&client, &narrow.api_key.unwrap().key_id, "").await.unwrap();
    }

    async fn a_scope_needs_its_form_and_a_product_of_the_suite(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        for bad in ["psa", "psa:", "psa:tick*", "*:read", "psa:a..b", "PSA:read", "psa:a b"] {
            let error = create(&admin, new_key("bad", &["psa:*", bad])).await.unwrap_err();
            let found = (error.code(), error.reason());
            assert_eq!(found, (Code::InvalidArgument, Some("SCOPE_INVALID")), "{bad}");
            assert_eq!(error.metadata()["scope"], bad);
        }
        let mut typing_error = new_key("bad", &[]);
        typing_error.product = "potral".to_owned();
        let error = create(&admin, typing_error).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::NotFound, Some("PRODUCT_NOT_FOUND")));
        assert_eq!(error.domain(), Some("hub.platform"));
        assert_eq!(error.metadata()["didYouMean"], "portal");
    }
}
