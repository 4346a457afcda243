//! The products of the suite, and those that operators add.

use hub_client::proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest};
use hub_client::proto::hub::platform::v1::{
    ListAuditEntriesRequest, ListProductsRequest, Product, UpdateProductRequest,
};
use hub_client::{Error, Hub};
use hub_core::products::SLUGS;
use tonic::Code;

use super::{Client, reason};
use crate::support::TestHub;

pub(super) async fn list(client: &Client, tenant_id: &str) -> Vec<Product> {
    let request = ListProductsRequest {
        tenant_id: tenant_id.to_owned(),
        ..ListProductsRequest::default()
    };
    let answer = client.platform().list_products(request).await;
    answer.unwrap().into_inner().products
}

pub(super) fn update(product: Product, mask: &[&str], allow_missing: bool) -> UpdateProductRequest {
    let paths: Vec<_> = mask.iter().map(|path| (*path).to_owned()).collect();
    UpdateProductRequest {
        product: Some(product),
        update_mask: (!paths.is_empty()).then_some(prost_types::FieldMask { paths }),
        allow_missing,
    }
}

pub(super) async fn send(client: &Client, request: UpdateProductRequest) -> Result<Product, Error> {
    let answer = client.platform().update_product(request).await?;
    Ok(answer.into_inner().product.unwrap())
}

pub(super) fn named(slug: &str, display_name: &str) -> Product {
    Product {
        product: slug.to_owned(),
        display_name: display_name.to_owned(),
        ..Product::default()
    }
}

async fn key_for(admin: &Hub, product: &str) -> Result<String, Error> {
    let api_key = ApiKey {
        name: product.to_owned(),
        product: product.to_owned(),
        scopes: vec!["hub:events.publish".to_owned()],
        ..ApiKey::default()
    };
    let request = CreateApiKeyRequest {
        api_key: Some(api_key),
        ..CreateApiKeyRequest::default()
    };
    let made = admin.api_keys().create_api_key(request).await?;
    Ok(made.into_inner().plaintext)
}

both_databases! {
    async fn the_suite_is_there_with_names_and_base_urls(hub: TestHub) {
        let products = list(&Client::admin(&hub), "").await;
        let mut slugs = SLUGS;
        slugs.sort_unstable();
        let found: Vec<_> = products.iter().map(|product| product.product.as_str()).collect();
        assert_eq!(found, slugs);
        let psa = products.iter().find(|product| product.product == "psa").unwrap();
        assert_eq!((psa.display_name.as_str(), psa.rate_limited_status), ("PSA", 429));
        assert_eq!(psa.base_urls, ["https://api.theonepsa.com"]);
        assert!(products.iter().all(|product| product.subscription.as_ref().unwrap().active));
        let for_operator = list(&Client::operator(&hub), "").await;
        assert!(for_operator.iter().all(|product| product.subscription.is_none()));
        let of_tenant = list(&Client::operator(&hub), &hub.first_tenant().id).await;
        assert_eq!(of_tenant, products);
    }

    async fn operators_change_a_product_for_all_tenants(hub: TestHub) {
        let operator = Client::operator(&hub);
        let new = Product {
            base_urls: vec!["https://api.crm.example".to_owned()],
            ..named("crm", "Customers")
        };
        let changed = send(&operator, update(new.clone(), &["base_urls"], false)).await.unwrap();
        assert_eq!((changed.display_name.as_str(), changed.etag.as_str()), ("CRM", "2"));
        let old = Product { etag: "1".to_owned(), ..new.clone() };
        let error = send(&operator, update(old, &["*"], false)).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::Aborted, Some("ETAG_MISMATCH")));
        assert_eq!(error.metadata()["currentEtag"], "2");
        let current = Product { etag: "2".to_owned(), ..new };
        let changed = send(&operator, update(current, &["display_name"], false)).await.unwrap();
        assert_eq!((changed.display_name.as_str(), changed.etag.as_str()), ("Customers", "3"));
        let products = list(&Client::admin(&hub), "").await;
        let crm = products.iter().find(|product| product.product == "crm").unwrap();
        assert_eq!(crm.base_urls, changed.base_urls);
        let entries = operator.audit(ListAuditEntriesRequest::default()).await;
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].changes["display_name"], "CRM -> Customers");
        assert_eq!(entries[1].changes["base_urls"], " -> https://api.crm.example");
        let admin = Client::admin(&hub);
        let refused = send(&admin, update(named("crm", "Mine"), &[], false)).await;
        assert_eq!(reason(refused), "OPERATOR_ONLY");
    }

    async fn a_long_list_of_base_urls_changes_at_its_end(hub: TestHub) {
        let operator = Client::operator(&hub);
        let urls = |count| (0..count).map(|n| format!("https://api-{n}.crm.example")).collect();
        for count in [60, 59] {
            let new = Product { base_urls: urls(count), ..named("crm", "CRM") };
            let changed = send(&operator, update(new.clone(), &["base_urls"], false)).await;
            assert_eq!(changed.unwrap().base_urls, new.base_urls);
        }
    }

    async fn a_new_product_is_for_tenants_that_subscribe_to_it(hub: TestHub) {
        let (operator, admin) = (Client::operator(&hub), Client::admin(&hub));
        let new = named("field-app", "Field App");
        let missing = send(&operator, update(new.clone(), &[], false)).await;
        assert_eq!(reason(missing), "PRODUCT_NOT_FOUND");
        assert_eq!(reason(key_for(&admin.hub, "field-app").await), "PRODUCT_NOT_FOUND");
        let made = send(&operator, update(new, &[], true)).await.unwrap();
        assert_eq!((made.display_name.as_str(), made.etag.as_str()), ("Field App", "1"));
        let shown = list(&admin, "").await;
        let shown = shown.iter().find(|product| product.product == "field-app").unwrap();
        assert!(!shown.subscription.as_ref().unwrap().active);
        let key = key_for(&admin.hub, "field-app").await.unwrap();
        let app = Client::new(&hub, &key);
        assert_eq!(reason(app.publish("visit.done", "1").await), "SUBSCRIPTION_INACTIVE");
        admin.subscribe("field-app", true).await.unwrap();
        app.publish("visit.done", "1").await.unwrap();
        let published = app.publish("company.updated", "2").await.unwrap();
        assert_eq!(published.results[0].destinations, 12);
        // A tenant that comes later has all products, this one too.
        let later = Client::new(&hub, &hub.tenant().await.admin_key);
        assert!(list(&later, "").await.iter().all(|one| one.subscription.as_ref().unwrap().active));
    }

    async fn what_a_product_cannot_be_is_refused(hub: TestHub) {
        let operator = Client::operator(&hub);
        for (new, field) in [
            (named("Field", "x"), "product.product"),
            (named("*", "x"), "product.product"),
            (named("ok", &"x".repeat(201)), "product.display_name"),
            (
                Product { base_urls: vec!["nowhere".to_owned()], ..named("ok", "x") },
                "product.base_urls[0]",
            ),
            (
                Product { rate_limited_status: 500, ..named("ok", "x") },
                "product.rate_limited_status",
            ),
        ] {
            let error = send(&operator, update(new, &[], true)).await.unwrap_err();
            assert_eq!(error.reason(), Some("FIELD_INVALID"), "{field}");
            assert_eq!(error.violations()[0].field, field);
        }
        let mask = send(&operator, update(named("psa", "x"), &["etag"], false)).await.unwrap_err();
        assert_eq!(mask.violations()[0].field, "update_mask");
        assert_eq!(list(&operator, "").await.len(), 12);
    }
}
