//! Integrations: a switch for each pair of products, in each direction.

use hub_client::proto::hub::platform::v1::{
    Integration, ListIntegrationsRequest, SetIntegrationRequest,
};
use tonic::Code;

use super::{Client, product, reason};
use crate::support::TestHub;

async fn list(client: &Client, source: &str, destination: &str) -> Vec<Integration> {
    let request = ListIntegrationsRequest {
        source: source.to_owned(),
        destination: destination.to_owned(),
        page_size: 1000,
        ..ListIntegrationsRequest::default()
    };
    let answer = client.platform().list_integrations(request).await;
    answer.unwrap().into_inner().integrations
}

both_databases! {
    async fn every_pair_is_on_until_it_is_turned_off(hub: TestHub) {
        let admin = Client::admin(&hub);
        let all = list(&admin, "", "").await;
        assert_eq!(all.len(), 12 * 11);
        assert!(all.iter().all(|one| one.enabled && one.effective && one.update_time.is_none()));
        assert!(all.is_sorted_by_key(|one| (one.source.clone(), one.destination.clone())));
        let off = admin.switch("psa", "portal", false).await.unwrap();
        assert!(!off.enabled && !off.effective && off.reason == "a test");
        assert!(off.update_time.is_some() && off.updated_by.starts_with("key_"));
        assert_eq!(list(&admin, "psa", "portal").await, [off]);
        let other_way = &list(&admin, "portal", "psa").await[0];
        assert!(other_way.enabled && other_way.effective);
        assert_eq!(list(&admin, "psa", "").await.len(), 11);
        assert_eq!(list(&admin, "", "portal").await.len(), 11);
        assert_eq!(list(&admin, "psa", "psa").await, []);
        assert_eq!(list(&admin, "nobody", "").await, []);
    }

    async fn it_is_effective_only_between_active_products(hub: TestHub) {
        let admin = Client::admin(&hub);
        admin.subscribe("portal", false).await.unwrap();
        let shown = &list(&admin, "psa", "portal").await[0];
        assert!(shown.enabled && !shown.effective);
        let set = admin.switch("psa", "portal", true).await.unwrap();
        assert!(set.enabled && !set.effective);
        admin.subscribe("portal", true).await.unwrap();
        assert!(list(&admin, "psa", "portal").await[0].effective);
    }

    async fn repeating_changes_nothing(hub: TestHub) {
        let admin = Client::admin(&hub);
        let first = admin.switch("psa", "portal", false).await.unwrap();
        let again = SetIntegrationRequest {
            source: "psa".to_owned(),
            destination: "portal".to_owned(),
            reason: "another reason".to_owned(),
            ..SetIntegrationRequest::default()
        };
        let again = admin.platform().set_integration(again).await.unwrap().into_inner();
        assert_eq!(again.integration.unwrap(), first);
        assert_eq!(admin.audit(Default::default()).await.len(), 2, "the tenant and one switch");
    }

    async fn pages_go_through_all_pairs_once(hub: TestHub) {
        let admin = Client::admin(&hub);
        let (mut pairs, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListIntegrationsRequest {
                page_size: 50,
                page_token,
                ..ListIntegrationsRequest::default()
            };
            let page = admin.platform().list_integrations(request).await.unwrap().into_inner();
            assert!(page.integrations.len() <= 50);
            let found = page.integrations.into_iter().map(|one| (one.source, one.destination));
            pairs.extend(found);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(pairs.len(), 132);
        assert!(pairs.is_sorted() && pairs.windows(2).all(|two| two[0] != two[1]));
    }

    async fn what_cannot_be_switched_is_refused(hub: TestHub) {
        let admin = Client::admin(&hub);
        let same = admin.switch("psa", "psa", false).await.unwrap_err();
        assert_eq!((same.reason(), same.code()), (Some("FIELD_INVALID"), Code::InvalidArgument));
        assert_eq!(same.violations()[0].field, "destination");
        assert_eq!(reason(admin.switch("psa", "portall", false).await), "PRODUCT_NOT_FOUND");
        let portal = product(&hub, "portal").await;
        assert_eq!(reason(portal.switch("psa", "portal", false).await), "SCOPE_MISSING");
        let nobody = Client::operator(&hub).switch("psa", "portal", false).await;
        assert_eq!(reason(nobody), "TENANT_REQUIRED");
    }

    async fn one_tenant_does_not_switch_for_another(hub: TestHub) {
        let other = hub.tenant().await;
        let other_admin = Client::new(&hub, &other.admin_key);
        Client::admin(&hub).switch("psa", "portal", false).await.unwrap();
        assert!(list(&other_admin, "psa", "portal").await[0].enabled);
        for tenant_id in [other.id, "tnt_nobody".to_owned()] {
            let request = SetIntegrationRequest {
                tenant_id: tenant_id.clone(),
                source: "psa".to_owned(),
                destination: "portal".to_owned(),
                ..SetIntegrationRequest::default()
            };
            let set = Client::admin(&hub).platform().set_integration(request).await;
            assert_eq!(reason(set.map_err(Into::into)), "TENANT_NOT_FOUND");
            let request = ListIntegrationsRequest { tenant_id, ..Default::default() };
            let listed = Client::admin(&hub).platform().list_integrations(request).await;
            assert_eq!(reason(listed.map_err(Into::into)), "TENANT_NOT_FOUND");
        }
        assert!(list(&other_admin, "psa", "portal").await[0].enabled);
    }
}
