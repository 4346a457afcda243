//! Protobuf to domain and back, nothing else.

use hub_core::auth;
use hub_core::clock::timestamp;
use hub_core::replay::Call;
use hub_proto::hub::platform::v1::{CreateTenantRequest, CreateTenantResponse, Tenant};
use hub_proto::server::platform_server::Platform;
use tonic::{Request, Response, Status};

use crate::tenants::Tenants;

/// The RPC that makes tenants, as its policy names it.
const CREATE_TENANT: &str = "hub.platform.v1.Platform/CreateTenant";

/// The service.
pub(crate) struct Service {
    pub tenants: Tenants,
}

#[tonic::async_trait]
impl Platform for Service {
    async fn create_tenant(
        &self,
        request: Request<CreateTenantRequest>,
    ) -> Result<Response<CreateTenantResponse>, Status> {
        let caller = auth::caller(&request)?;
        let mut request = request.into_inner();
        let request_id = std::mem::take(&mut request.request_id);
        let call = Call::new(&caller, CREATE_TENANT, &request_id, &request);
        let created = self
            .tenants
            .create(&caller, &request.name, &request.products, call)
            .await?;
        Ok(Response::new(CreateTenantResponse {
            tenant: Some(Tenant {
                tenant_id: created.tenant_id,
                name: request.name,
                create_time: Some(timestamp(created.create_time)),
                // Nothing is dropped yet, so no retention is promised.
                retention: None,
                retention_bytes: 0,
                etag: "1".to_owned(),
            }),
            admin_key: created.admin_key.unwrap_or_default(),
        }))
    }
}
