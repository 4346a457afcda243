//! Whom a request is about: operators may name any tenant, all others only their own.

use hub_core::auth::Caller;
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::module::Core;
use hub_core::tenancy;

/// The tenant that a request names, or the caller's own; `None` if there is neither.
///
/// Errors: `TENANT_NOT_FOUND`, also for a tenant that is there but not the caller's.
pub(crate) async fn tenant(
    core: &Core,
    caller: &Caller,
    tenant_id: &str,
) -> Result<Option<TenantRef>> {
    match &caller.tenant {
        own if tenant_id.is_empty() => Ok(own.clone()),
        Some(own) if own.id() == tenant_id => Ok(Some(own.clone())),
        Some(_) if caller.is_operator() => {
            let problem = "contradicts the tenant that the call names; leave one of them out";
            Err(Error::field("tenant_id", problem))
        }
        None if caller.is_operator() => core.tenancy.find(tenant_id).await.map(Some),
        _ => Err(tenancy::not_found(tenant_id)),
    }
}

/// The same where a tenant is needed. Errors: `TENANT_REQUIRED`, `TENANT_NOT_FOUND`.
pub(crate) async fn required(core: &Core, caller: &Caller, tenant_id: &str) -> Result<TenantRef> {
    match tenant(core, caller, tenant_id).await? {
        Some(tenant) => Ok(tenant),
        None => caller.tenant().cloned(),
    }
}
