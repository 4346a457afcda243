//! CreateTenant.

use hub_client::proto::hub::api_keys::v1::WhoAmIRequest;
use hub_client::proto::hub::platform::v1::{CreateTenantRequest, CreateTenantResponse};
use hub_client::{Error, Hub};
use hub_core::products;
use tonic::Code;

use crate::support::TestHub;

async fn create(client: &Hub, request: CreateTenantRequest) -> Result<CreateTenantResponse, Error> {
    Ok(client.platform().create_tenant(request).await?.into_inner())
}

fn named(name: &str) -> CreateTenantRequest {
    CreateTenantRequest {
        name: name.to_owned(),
        ..CreateTenantRequest::default()
    }
}

fn with_products(name: &str, slugs: &[&str]) -> CreateTenantRequest {
    let products = slugs.iter().map(|slug| (*slug).to_owned()).collect();
    CreateTenantRequest {
        products,
        ..named(name)
    }
}

both_databases! {
    async fn a_tenant_comes_with_its_administrator_key(hub: TestHub) {
        let operator = hub.client(&hub.operator_key);
        let made = create(&operator, named("Acme")).await.unwrap();
        let tenant = made.tenant.unwrap();
        assert!(tenant.tenant_id.starts_with("tnt_"), "{tenant:?}");
        assert_eq!(tenant.name, "Acme");
        let admin = hub.client(&made.admin_key);
        let me = admin.api_keys().who_am_i(WhoAmIRequest {}).await.unwrap().into_inner();
        assert_eq!(me.tenant_id, tenant.tenant_id);
        assert_eq!(me.active_products, products::SLUGS);
        let key = me.api_key.unwrap();
        assert_eq!((&key.scopes[..], key.product.as_str()), (&["hub:*".to_owned()][..], ""));
        assert_eq!((key.name.as_str(), key.all_tenants), ("administrator", false));
    }

    async fn a_name_is_given_once(hub: TestHub) {
        let operator = hub.client(&hub.operator_key);
        let first = create(&operator, named("Acme")).await.unwrap().tenant.unwrap();
        let error = create(&operator, named("Acme")).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::AlreadyExists, Some("TENANT_EXISTS")));
        assert_eq!(error.metadata()["tenantId"], first.tenant_id);
        create(&operator, named("acme")).await.unwrap();
    }

    async fn only_operators_make_tenants(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let error = create(&admin, named("Acme")).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::PermissionDenied, Some("OPERATOR_ONLY")));
        assert_eq!(error.metadata()["method"], "hub.platform.v1.Platform/CreateTenant");
        create(&hub.client(&hub.operator_key), named("Acme")).await.unwrap();
    }

    async fn a_tenant_is_made_with_products_that_exist(hub: TestHub) {
        let operator = hub.client(&hub.operator_key);
        create(&operator, with_products("all", &products::SLUGS)).await.unwrap();
        let unknown = create(&operator, with_products("x", &["psa", "bookz"])).await.unwrap_err();
        assert_eq!((unknown.code(), unknown.reason()), (Code::NotFound, Some("PRODUCT_NOT_FOUND")));
        assert_eq!(unknown.metadata()["product"], "bookz");
        assert_eq!(unknown.metadata()["didYouMean"], "books");
        let nameless = create(&operator, named("")).await.unwrap_err();
        assert_eq!(nameless.violations()[0].field, "name");
    }

    async fn a_retry_gets_the_same_tenant_and_key(hub: TestHub) {
        let mut hub = hub;
        let request = CreateTenantRequest {
            request_id: uuid::Uuid::new_v4().to_string(),
            ..named("Acme")
        };
        let operator = hub.client(&hub.operator_key);
        let first = create(&operator, request.clone()).await.unwrap();
        assert_eq!(create(&operator, request.clone()).await.unwrap(), first);
        let other = CreateTenantRequest { name: "Beta".to_owned(), ..request.clone() };
        let error = create(&operator, other).await.unwrap_err();
        assert_eq!(error.reason(), Some("REQUEST_ID_REUSED"));
        create(&operator, named("Beta")).await.unwrap();
        hub.restart().await;
        let again = create(&hub.client(&hub.operator_key), request).await.unwrap();
        assert_eq!(again, first, "the secret is kept for ten minutes, whichever process made it");
    }

    async fn many_tenants_made_at_once_are_as_many_tenants(hub: TestHub) {
        let operator = hub.client(&hub.operator_key);
        let tasks: Vec<_> = (0..10)
            .map(|number| {
                let operator = operator.clone();
                tokio::spawn(async move { create(&operator, named(&number.to_string())).await })
            })
            .collect();
        let mut ids = std::collections::HashSet::new();
        for task in tasks {
            ids.insert(task.await.unwrap().unwrap().tenant.unwrap().tenant_id);
        }
        assert_eq!(ids.len(), 10);
    }
}
