//! Protobuf to domain and back, nothing else.

use std::sync::Arc;

use hub_core::auth::{self, Caller};
use hub_core::clock::{Clock, Micros, from_timestamp, timestamp};
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::replay::{Call, Done, Retry};
use hub_proto::hub::api_keys::v1::{
    ApiKey, ApiKeyState, CreateApiKeyRequest, CreateApiKeyResponse, GetApiKeyRequest,
    GetApiKeyResponse, ListApiKeysRequest, ListApiKeysResponse, Revocation, RevokeApiKeyRequest,
    RevokeApiKeyResponse, WhoAmIRequest, WhoAmIResponse,
};
use hub_proto::server::api_keys_server::ApiKeys;
use prost::Message;
use tonic::{Request, Response, Status};

use crate::key::Key;
use crate::keys::{CREATE, Keys, NewKey};
use crate::store::Filter;

/// The service.
pub(crate) struct Service {
    pub keys: Arc<Keys>,
    pub clock: Clock,
}

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl ApiKeys for Service {
    async fn create_api_key(
        &self,
        request: Request<CreateApiKeyRequest>,
    ) -> Answer<CreateApiKeyResponse> {
        let caller = auth::caller(&request)?;
        let (new, call) = new_key(&caller, request.into_inner())?;
        let message = |key: &Key| self.created(key).encode_to_vec();
        let message = &message;
        let retry = call.map(|call| Retry { call, message });
        let (mut answer, secret) = match self.keys.create(&caller, new, retry).await? {
            Done::First(made) => (
                self.created(&made.key),
                Some(made.plaintext.expose().to_owned()),
            ),
            Done::Again(before) => (before.decode()?, before.secret),
        };
        answer.plaintext = secret.unwrap_or_default();
        Ok(Response::new(answer))
    }

    async fn get_api_key(&self, request: Request<GetApiKeyRequest>) -> Answer<GetApiKeyResponse> {
        let caller = auth::caller(&request)?;
        let key = self.keys.get(&caller, &request.get_ref().key_id).await?;
        Ok(Response::new(GetApiKeyResponse {
            api_key: Some(self.show(&key)),
        }))
    }

    async fn list_api_keys(
        &self,
        request: Request<ListApiKeysRequest>,
    ) -> Answer<ListApiKeysResponse> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let filter = filter(request.product, &request.states)?;
        let (size, token) = (request.page_size, request.page_token.as_str());
        let encoded_len = |key: &Key| self.show(key).encoded_len();
        let page = self
            .keys
            .list(&caller, filter, size, token, encoded_len)
            .await?;
        Ok(Response::new(ListApiKeysResponse {
            api_keys: page.keys.iter().map(|key| self.show(key)).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn revoke_api_key(
        &self,
        request: Request<RevokeApiKeyRequest>,
    ) -> Answer<RevokeApiKeyResponse> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let key = self
            .keys
            .revoke(&caller, &request.key_id, &request.reason)
            .await?;
        Ok(Response::new(RevokeApiKeyResponse {
            epoch: key
                .revocation
                .as_ref()
                .map_or(0, |revocation| revocation.epoch),
            api_key: Some(self.show(&key)),
            unconfirmed: 0,
        }))
    }

    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Answer<WhoAmIResponse> {
        let caller = auth::caller(&request)?;
        let key = self.keys.own(&caller).await?;
        let active_products = match &caller.tenant {
            Some(tenant) => self.keys.core.tenancy.active_products(tenant).await?,
            None => Vec::new(),
        };
        Ok(Response::new(WhoAmIResponse {
            api_key: Some(self.show(&key)),
            tenant_id: caller.tenant.as_ref().map_or("", TenantRef::id).to_owned(),
            active_products,
            rate_limit: None,
        }))
    }
}

impl Service {
    fn show(&self, key: &Key) -> ApiKey {
        show(key, self.clock.now())
    }

    /// The answer to a call that made `key`, without its secret.
    fn created(&self, key: &Key) -> CreateApiKeyResponse {
        CreateApiKeyResponse {
            api_key: Some(self.show(key)),
            plaintext: String::new(),
        }
    }
}

fn new_key(caller: &Caller, mut request: CreateApiKeyRequest) -> Result<(NewKey, Option<Call>)> {
    let request_id = std::mem::take(&mut request.request_id);
    let call = Call::new(caller, CREATE, &request_id, &request);
    let key = request
        .api_key
        .ok_or_else(|| Error::field("api_key", "is required"))?;
    if key.requests_per_minute != 0 {
        let problem = "is set by SetRateLimit; leave it out here";
        return Err(Error::field("api_key.requests_per_minute", problem));
    }
    let new = NewKey {
        name: key.name,
        scopes: key.scopes,
        product: key.product,
        cidrs: key.allowed_cidrs,
        expire_time: key.expire_time.as_ref().map(from_timestamp),
        labels: key.labels,
        all_tenants: key.all_tenants,
    };
    Ok((new, call))
}

/// No states = all of them.
fn filter(product: String, states: &[i32]) -> Result<Filter> {
    let all = states.is_empty();
    let mut filter = Filter {
        product,
        active: all,
        rotating: all,
        expired: all,
        revoked: all,
    };
    for (at, state) in states.iter().enumerate() {
        match ApiKeyState::try_from(*state) {
            Ok(ApiKeyState::Active) => filter.active = true,
            Ok(ApiKeyState::Rotating) => filter.rotating = true,
            Ok(ApiKeyState::Expired) => filter.expired = true,
            Ok(ApiKeyState::Revoked) => filter.revoked = true,
            Ok(ApiKeyState::Unspecified) | Err(_) => {
                return Err(Error::field(
                    format!("states[{at}]"),
                    "is not a state of a key",
                ));
            }
        }
    }
    Ok(filter)
}

fn show(key: &Key, now: Micros) -> ApiKey {
    ApiKey {
        key_id: key.key_id.clone(),
        name: key.name.clone(),
        scopes: key.scopes.clone(),
        product: key.product.clone().unwrap_or_default(),
        allowed_cidrs: key.cidrs.clone(),
        requests_per_minute: key.requests_per_minute,
        expire_time: key.expire_time.map(timestamp),
        state: key.state(now).into(),
        hint: key.hint.clone(),
        last_use_time: None,
        successor_id: key.successor_id.clone().unwrap_or_default(),
        revocation: key.revocation.as_ref().map(|revocation| Revocation {
            time: Some(timestamp(revocation.time)),
            revoked_by: revocation.by.clone(),
            reason: revocation.reason.clone(),
        }),
        labels: key.labels.clone(),
        create_time: Some(timestamp(key.create_time)),
        etag: key.version.to_string(),
        created_by: key.created_by.clone(),
        tenant_id: key.tenant.as_ref().map_or("", TenantRef::id).to_owned(),
        all_tenants: key.tenant.is_none(),
    }
}
