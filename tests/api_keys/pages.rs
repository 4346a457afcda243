//! ListApiKeys.

use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::{ApiKeyState, ListApiKeysRequest, ListApiKeysResponse};

use super::{Outcome, create, new_key, reason, revoke};
use crate::support::TestHub;

async fn list(client: &Hub, request: ListApiKeysRequest) -> Outcome<ListApiKeysResponse> {
    Ok(client.api_keys().list_api_keys(request).await?.into_inner())
}

fn names(page: &ListApiKeysResponse) -> Vec<&str> {
    page.api_keys.iter().map(|key| key.name.as_str()).collect()
}

fn page(page_size: i32, page_token: &str) -> ListApiKeysRequest {
    let page_token = page_token.to_owned();
    ListApiKeysRequest {
        page_size,
        page_token,
        ..ListApiKeysRequest::default()
    }
}

both_databases! {
    async fn keys_come_newest_first_and_each_on_one_page(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        for name in ["1", "2", "3", "4"] {
            create(&admin, new_key(name, &[])).await.unwrap();
        }
        let first = list(&admin, page(2, "")).await.unwrap();
        assert_eq!(names(&first), ["4", "3"]);
        let second = list(&admin, page(2, &first.next_page_token)).await.unwrap();
        assert_eq!(names(&second), ["2", "1"]);
        // What is made meanwhile is newer than what was shown.
        create(&admin, new_key("5", &[])).await.unwrap();
        let third = list(&admin, page(2, &second.next_page_token)).await.unwrap();
        assert_eq!(names(&third), ["administrator"]);
        assert!(third.next_page_token.is_empty());
        assert_eq!(list(&admin, page(0, "")).await.unwrap().api_keys.len(), 6);
        assert_eq!(list(&admin, page(5000, "")).await.unwrap().api_keys.len(), 6);
        assert_eq!(reason(list(&admin, page(-1, "")).await), "FIELD_INVALID");
    }

    async fn a_page_has_fifty_keys_unless_asked_otherwise(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        for number in 0..50 {
            create(&admin, new_key(&number.to_string(), &[])).await.unwrap();
        }
        let first = list(&admin, page(0, "")).await.unwrap();
        assert_eq!(first.api_keys.len(), 50);
        let rest = list(&admin, page(0, &first.next_page_token)).await.unwrap();
        assert_eq!(names(&rest), ["administrator"]);
    }

    async fn a_page_is_cut_at_its_bytes_and_goes_on_where_it_was_cut(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let mut large = new_key("large", &[]);
        large.labels = (0..20).map(|n| (format!("label {n}"), "x".repeat(1000))).collect();
        for _ in 0..60 {
            create(&admin, large.clone()).await.unwrap();
        }
        let (mut token, mut seen, mut pages) = (String::new(), 0, 0);
        loop {
            let next = list(&admin, page(1000, &token)).await.unwrap();
            assert!(prost::Message::encoded_len(&next) <= (1 << 20) + 1000);
            (seen, pages) = (seen + next.api_keys.len(), pages + 1);
            token = next.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!((seen, pages), (61, 2));
    }

    async fn the_filter_shows_states_and_products(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        for (name, scopes) in [("a", "psa:*"), ("b", "crm:deals.read"), ("c", "psa:tickets.read")] {
            let made = create(&admin, new_key(name, &[scopes])).await.unwrap();
            if name == "c" {
                revoke(&admin, &made.api_key.unwrap().key_id, "").await.unwrap();
            }
        }
        let filter = |product: &str, states: &[ApiKeyState]| ListApiKeysRequest {
            product: product.to_owned(),
            states: states.iter().map(|state| *state as i32).collect(),
            ..ListApiKeysRequest::default()
        };
        for (product, states, shown) in [
            ("psa", &[][..], &["c", "a"][..]),
            ("psa", &[ApiKeyState::Active], &["a"]),
            ("", &[ApiKeyState::Revoked], &["c"]),
            ("", &[ApiKeyState::Revoked, ApiKeyState::Active], &["c", "b", "a", "administrator"]),
            ("hub", &[], &["administrator"]),
            ("books", &[], &[]),
            ("", &[ApiKeyState::Expired, ApiKeyState::Rotating], &[]),
        ] {
            let found = list(&admin, filter(product, states)).await.unwrap();
            assert_eq!(names(&found), shown, "{product} {states:?}");
        }
        let unspecified = filter("", &[ApiKeyState::Unspecified]);
        assert_eq!(reason(list(&admin, unspecified).await), "FIELD_INVALID");
    }

    async fn a_token_is_good_for_its_tenant_and_filter_only(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        create(&admin, new_key("one", &[])).await.unwrap();
        let token = list(&admin, page(1, "")).await.unwrap().next_page_token;
        assert!(!token.is_empty());
        let stranger = hub.client(&hub.tenant().await.admin_key);
        assert_eq!(reason(list(&stranger, page(1, &token)).await), "PAGE_TOKEN_INVALID");
        let filtered = ListApiKeysRequest { product: "hub".to_owned(), ..page(1, &token) };
        assert_eq!(reason(list(&admin, filtered).await), "PAGE_TOKEN_INVALID");
        assert_eq!(reason(list(&admin, page(1, "x")).await), "PAGE_TOKEN_INVALID");
        assert_eq!(names(&list(&admin, page(9, &token)).await.unwrap()), ["administrator"]);
    }
}
