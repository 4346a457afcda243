//! Who calls, for the service behind the layer.

use std::sync::Arc;

use hub_proto::hub::api_keys::v1::VerifyApiKeyResponse;

/// Whose request it is: in the extensions of every request that [`ApiKeyLayer`] lets through.
///
/// axum: `Extension(caller): Extension<Caller>`; tonic: `request.extensions().get::<Caller>()`.
///
/// [`ApiKeyLayer`]: super::ApiKeyLayer
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caller {
    /// Id of the key, `key_...`.
    pub key_id: String,
    /// Id of the key's tenant, `tnt_...`; empty for a key that serves all tenants.
    pub tenant_id: String,
    /// Slug of the product that the key speaks for; empty = none.
    pub product: String,
    /// All scopes of the key, e.g. `psa:tickets.*`.
    pub scopes: Arc<[String]>,
    /// Id of the decision, `req_...`. Requests that share a decision share it.
    pub call_id: String,
    /// The request was let through without being counted, because the limits could not be checked.
    pub degraded: bool,
}

impl Caller {
    pub(super) fn new(told: &VerifyApiKeyResponse) -> Self {
        Caller {
            key_id: told.key_id.clone(),
            tenant_id: told.tenant_id.clone(),
            product: told.key_product.clone(),
            scopes: told.scopes.clone().into(),
            call_id: told.call_id.clone(),
            degraded: told.degraded,
        }
    }
}
