//! The reasons of this domain, as `hub.platform.v1.ErrorReason` declares them.

use hub_core::error::Error;
use tonic::Code;

const DOMAIN: &str = "hub.platform";

/// `TENANT_EXISTS`.
pub(crate) fn tenant_exists(name: &str, tenant_id: &str) -> Error {
    let message = format!("Tenant {tenant_id} has the name {name:?}. Choose another name.");
    Error::new(Code::AlreadyExists, DOMAIN, "TENANT_EXISTS", message)
        .with("name", name)
        .with("tenantId", tenant_id)
}
