//! What is let through is what the hub has counted.

use futures_util::future::join_all;
use hub_client::proto::hub::api_keys::v1::GetApiKeyUsageRequest;

use super::{ask, axum_server, key, layer, refused, set_limit};
use crate::support::TestHub;

/// Requests in the default limit of a tenant.
const LIMIT: usize = 100;

both_databases! {
    async fn of_one_after_the_other_the_limit_is_let_through_and_no_more(hub: TestHub) {
        let server = axum_server(&layer(&hub).await).await;
        let (key, _) = key(&hub, &["psa:*"]).await;
        let mut allowed = 0;
        for number in 0..LIMIT + 20 {
            let answer = ask(&server, "/tickets/1", &key).await;
            if answer.status == 200 {
                allowed += 1;
                let left = answer.header("x-ratelimit-remaining");
                assert_eq!(left, (LIMIT - 1 - number).to_string());
            } else {
                assert_eq!(refused(&answer), (429, "RATE_LIMITED".to_owned()));
                assert_eq!(answer.header("x-ratelimit-limit"), LIMIT.to_string());
                assert_eq!(answer.header("x-ratelimit-remaining"), "0");
                assert!(answer.header("retry-after").parse::<u64>().unwrap() > 0);
            }
        }
        assert_eq!(allowed, LIMIT);
    }

    async fn of_two_servers_with_many_at_once_no_more_than_the_limit_are_let_through(hub: TestHub) {
        let servers = [
            axum_server(&layer(&hub).await).await,
            axum_server(&layer(&hub).await).await,
        ];
        let (key, key_id) = key(&hub, &["psa:*"]).await;
        let mut allowed = 0;
        for _ in 0..10 {
            let asked = servers.iter().flat_map(|server| [server; 10]);
            let answers = join_all(asked.map(|server| ask(server, "/tickets/1", &key))).await;
            allowed += answers.iter().filter(|answer| answer.status == 200).count();
        }
        assert!(allowed <= LIMIT, "{allowed}");
        // A server may have counted a few ahead that then went to the other one.
        assert!(allowed >= LIMIT - LIMIT / 10, "{allowed}");
        let request = GetApiKeyUsageRequest { key_id, ..GetApiKeyUsageRequest::default() };
        let admin = hub.client(&hub.first_tenant().admin_key);
        let usage = admin.api_keys().get_api_key_usage(request).await.unwrap().into_inner();
        assert_eq!(usage.rate_limit.unwrap().remaining, 0);
    }

    async fn a_key_has_its_own_limit(hub: TestHub) {
        let server = axum_server(&layer(&hub).await).await;
        let (key, key_id) = key(&hub, &["psa:*"]).await;
        set_limit(&hub, &key_id, 2).await;
        let mut statuses = Vec::new();
        for _ in 0..3 {
            statuses.push(ask(&server, "/write", &key).await.status.as_u16());
        }
        assert_eq!(statuses, [200, 200, 429]);
    }
}
