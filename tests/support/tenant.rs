//! Tenants and their keys, made through the API.

use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest};
use hub_client::proto::hub::platform::v1::CreateTenantRequest;

/// A tenant.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// `tnt_…`.
    pub id: String,
    /// Key of its administrator.
    pub admin_key: String,
}

impl Tenant {
    /// A new one.
    pub async fn create(operator: &Hub) -> Self {
        let name = format!("Tenant {}", uuid::Uuid::new_v4());
        let request = CreateTenantRequest {
            name,
            ..CreateTenantRequest::default()
        };
        let created = operator
            .platform()
            .create_tenant(request)
            .await
            .unwrap()
            .into_inner();
        let id = created.tenant.unwrap().tenant_id;
        Tenant {
            id,
            admin_key: created.admin_key,
        }
    }

    /// A key of it; it speaks for `product` unless that is empty.
    pub async fn key(&self, admin: &Hub, product: &str, scopes: &[&str]) -> String {
        let api_key = ApiKey {
            name: format!("{product} test"),
            product: product.to_owned(),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            ..ApiKey::default()
        };
        let request = CreateApiKeyRequest {
            api_key: Some(api_key),
            ..CreateApiKeyRequest::default()
        };
        let created = admin.api_keys().create_api_key(request).await.unwrap();
        created.into_inner().plaintext
    }
}
