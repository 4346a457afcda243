//! Lists of tenants and products, page by page.

use std::collections::BTreeSet;

use hub_client::proto::hub::platform::v1::{ListProductsRequest, ListTenantsRequest};

use super::{Client, reason};
use crate::support::TestHub;

both_databases! {
    async fn operators_list_all_tenants_by_id(hub: TestHub) {
        let mut made = BTreeSet::from([hub.first_tenant().id.clone()]);
        for _ in 0..6 {
            made.insert(hub.tenant().await.id);
        }
        let operator = Client::operator(&hub);
        let (mut found, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let request = ListTenantsRequest { page_size: 3, page_token };
            let page = operator.platform().list_tenants(request).await.unwrap().into_inner();
            found.extend(page.tenants.into_iter().map(|tenant| tenant.tenant_id));
            (page_token, pages) = (page.next_page_token, pages + 1);
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(found, Vec::from_iter(made));
        assert_eq!(pages, 3);
        let mut admin = Client::admin(&hub).platform();
        let admin = admin.list_tenants(ListTenantsRequest::default()).await;
        assert_eq!(reason(admin.map_err(Into::into)), "OPERATOR_ONLY");
        let below = ListTenantsRequest { page_size: -1, ..Default::default() };
        let refused = operator.platform().list_tenants(below).await;
        assert_eq!(reason(refused.map_err(Into::into)), "FIELD_INVALID");
    }

    async fn a_page_token_of_products_is_of_its_tenant(hub: TestHub) {
        let admin = Client::admin(&hub);
        let request = ListProductsRequest { page_size: 5, ..Default::default() };
        let first = admin.platform().list_products(request.clone()).await.unwrap().into_inner();
        assert_eq!(first.products.len(), 5);
        let next = ListProductsRequest { page_token: first.next_page_token, ..request };
        let second = admin.platform().list_products(next.clone()).await.unwrap().into_inner();
        assert_eq!(second.products.len(), 5);
        assert!(second.products[0].product > first.products[4].product);
        let other = Client::new(&hub, &hub.tenant().await.admin_key);
        for client in [other, Client::operator(&hub)] {
            let refused = client.platform().list_products(next.clone()).await;
            assert_eq!(reason(refused.map_err(Into::into)), "PAGE_TOKEN_INVALID");
        }
        let forged = ListProductsRequest { page_token: "AAAA".to_owned(), ..Default::default() };
        let refused = admin.platform().list_products(forged).await;
        assert_eq!(reason(refused.map_err(Into::into)), "PAGE_TOKEN_INVALID");
    }
}
