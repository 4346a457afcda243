//! What is built, and what README says of it.

use std::collections::BTreeMap;

use http::StatusCode;
use hub_proto::policy::method_policies;
use hub_server::modules;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::{TestHub, frame, post_grpc, post_json};

const README: &str = include_str!("../../README.md");

/// README's table: method and whether it is built.
fn readme() -> BTreeMap<String, bool> {
    let table = README.split_once("<!-- status -->").unwrap().1;
    let table = table.split_once("<!-- /status -->").unwrap().0;
    let mut methods = BTreeMap::new();
    for row in table.lines().skip(3) {
        let [_, service, built, missing, _] = row.split('|').collect::<Vec<_>>()[..] else {
            panic!("not a row: {row}");
        };
        for (cell, built) in [(built, true), (missing, false)] {
            let names = cell.split(',').map(str::trim).filter(|name| *name != "–");
            methods.extend(names.map(|name| (format!("{}/{name}", service.trim()), built)));
        }
    }
    methods
}

#[test]
fn the_readme_says_what_is_built() {
    let served: BTreeMap<String, bool> = method_policies()
        .iter()
        .map(|policy| {
            let short = policy.method.rsplit('.').next().unwrap().to_owned();
            (short, modules::is_built(policy.method))
        })
        .collect();
    assert_eq!(readme(), served);
}

both_databases! {
    async fn every_method_that_is_not_built_says_so_to_whoever_may_call_it(hub: TestHub) {
        let tenant = hub.first_tenant();
        let admin = hub.client(&tenant.admin_key);
        // Scopes of the whole hub for a product, which an administrator may give.
        let product = tenant.key(&admin, "psa", &["hub:*"]).await;
        for policy in method_policies().iter().filter(|policy| !modules::is_built(policy.method)) {
            let key = if policy.operator_only { &hub.operator_key } else { &product };
            let bearer = format!("Bearer {key}");
            let headers = [("authorization", bearer.as_str())];
            let answer = post_grpc(hub.addr, policy.method, &headers, frame(&[])).await;
            let status = answer.grpc_status();
            assert_eq!(status.code(), Code::Unimplemented, "{}: {status}", policy.method);
            let info = status.get_details_error_info().unwrap();
            assert_eq!(info.reason, "NOT_IMPLEMENTED", "{}", policy.method);
            assert_eq!(info.metadata["method"], policy.method);
        }
    }

    async fn every_method_that_is_built_does_something_else(hub: TestHub) {
        let tenant = hub.first_tenant();
        let product = tenant.key(&hub.client(&tenant.admin_key), "psa", &["hub:*"]).await;
        let built = method_policies().iter().filter(|policy| modules::is_built(policy.method));
        for policy in built.filter(|policy| !policy.server_streaming) {
            let key = if policy.operator_only { &hub.operator_key } else { &product };
            let answer = post_json(hub.addr, policy.method, key, "{}").await;
            assert_ne!(answer.status, StatusCode::NOT_IMPLEMENTED, "{}", policy.method);
        }
    }

    async fn a_stranger_does_not_learn_what_is_built(hub: TestHub) {
        let method = "hub.webhooks.v1.Webhooks/ListEndpoints";
        let answer = post_grpc(hub.addr, method, &[], frame(&[])).await;
        assert_eq!(answer.grpc_status().code(), Code::Unauthenticated);
    }
}
