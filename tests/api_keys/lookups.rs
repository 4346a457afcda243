//! What it costs to look a key up: the same whatever key it is, so that nobody learns by it which
//! keys there are.

use http::Method;
use hub_client::Hub;

use super::{create, new_key, revoke};
use crate::support::{Backend, Command, Tenant, TestProcess, post_json, request};

/// Times that one asks for what is to be remembered.
const ASKED_MAX: usize = 50;

/// So many queries for keys there were, and answers without one about keys that are not known.
async fn lookups(process: &TestProcess) -> (u64, u64) {
    let metrics = request(process.addr(), Method::GET, "/metrics", &[], "").await;
    let count = |from: &str| {
        let name = format!("hub_key_lookups_total{{from=\"{from}\"}} ");
        let line = metrics
            .text()
            .lines()
            .find_map(|line| line.strip_prefix(&name));
        line.unwrap().parse().unwrap()
    };
    (count("database"), count("unknown"))
}

/// How each way to use a key is answered.
async fn ways(process: &TestProcess, backend: &str, key: &str, way: &str) -> String {
    let json = format!(r#"{{"key":"{key}","product":"psa","action":"tickets.read"}}"#);
    let bearer = format!("Bearer {key}");
    let answer = match way {
        "call" => post_json(process.addr(), "hub.api_keys.v1.ApiKeys/WhoAmI", key, "{}").await,
        "verify" => {
            let method = "hub.api_keys.v1.ApiKeys/VerifyApiKey";
            post_json(process.addr(), method, backend, &json).await
        }
        _ => {
            let path = "/authz?product=psa&action=tickets.read";
            let headers = [("authorization", bearer.as_str())];
            request(process.addr(), Method::GET, path, &headers, "").await
        }
    };
    answer.text().to_owned()
}

both_databases! {
    async fn a_key_that_is_known_costs_as_many_look_ups_as_one_that_is_not(backend: Backend) {
        let process = TestProcess::start(Command::Serve, backend, &[]).await;
        let client = |key: &str| {
            let hub = Hub::builder(format!("http://{}", process.addr()));
            hub.api_key(key).connect_lazy().unwrap()
        };
        let operator = process.ready["operatorKey"].as_str().unwrap().to_owned();
        let tenant = Tenant::create(&client(&operator)).await;
        let admin = client(&tenant.admin_key);
        for way in ["call", "verify", "proxy"] {
            let known = create(&admin, new_key("known", &["psa:*"])).await.unwrap();
            let revoked = create(&admin, new_key("revoked", &["psa:*"])).await.unwrap();
            revoke(&admin, &revoked.api_key.unwrap().key_id, "").await.unwrap();
            let narrow = create(&admin, new_key("narrow", &[])).await.unwrap();
            // Whoever asks is known.
            ways(&process, &operator, "x", "verify").await;
            let unknown = hub_api_keys::Plaintext::generate().unwrap();
            for key in [
                unknown.expose(),
                &*known.plaintext,
                &*revoked.plaintext,
                &*narrow.plaintext,
            ] {
                let before = lookups(&process).await;
                let told = ways(&process, &operator, key, way).await;
                let after = lookups(&process).await;
                assert_eq!(after.0 - before.0, 1, "{way}: one query: {told}");
                assert_eq!(after.1, before.1, "{way}: {told}");
            }
            // Asked for again, a key that is not known costs none, once the keys that were just
            // made, any of which it might be, are known.
            let mut costs = Vec::new();
            while costs.len() < ASKED_MAX && costs.last() != Some(&(0, 1)) {
                let before = lookups(&process).await;
                ways(&process, &operator, unknown.expose(), way).await;
                let after = lookups(&process).await;
                costs.push((after.0 - before.0, after.1 - before.1));
            }
            assert_eq!(costs.last(), Some(&(0, 1)), "{way}: {costs:?}");
            // What is no key costs none.
            let before = lookups(&process).await;
            let told = ways(&process, &operator, "tos_short", way).await;
            assert!(told.contains("KEY_MALFORMED"), "{told}");
            assert_eq!(lookups(&process).await, before, "{way}");
        }
    }
}
