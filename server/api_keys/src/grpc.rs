//! Protobuf to domain and back, nothing else.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use hub_core::auth::{self, Caller, is_scope};
use hub_core::clock::{Clock, Micros, from_timestamp, micros, timestamp};
use hub_core::error::{Error, Result};
use hub_core::field_mask;
use hub_core::journal::TenantRef;
use hub_core::replay::{Call, Done, Retry};
use hub_proto::hub::api_keys::v1::explain_access_request::Subject;
use hub_proto::hub::api_keys::v1::{
    ApiKey, ApiKeyState, CreateApiKeyRequest, CreateApiKeyResponse, ExplainAccessRequest,
    ExplainAccessResponse, GetApiKeyRequest, GetApiKeyResponse, GetApiKeyUsageRequest,
    GetApiKeyUsageResponse, ListApiKeysRequest, ListApiKeysResponse, RevokeApiKeyRequest,
    RevokeApiKeyResponse, RotateApiKeyRequest, RotateApiKeyResponse, SetRateLimitRequest,
    SetRateLimitResponse, UpdateApiKeyRequest, UpdateApiKeyResponse, UsageBucket,
    VerifyApiKeyRequest, VerifyApiKeyResponse, WatchApiKeysRequest, WatchApiKeysResponse,
    WhoAmIRequest, WhoAmIResponse,
};
use hub_proto::server::api_keys_server::ApiKeys;
use prost::Message;
use prost_types::FieldMask;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::decision::Asked;
use crate::key::Key;
use crate::keys::{CREATE, Keys, NewKey};
use crate::rate::Wanted;
use crate::rotate::{self, GRACE, ROTATE, Rotation};
use crate::store::Filter;
use crate::update::NewValues;
use crate::verify::Question;
use crate::watch::Watcher;
use crate::{explain, shown};

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

    async fn update_api_key(
        &self,
        request: Request<UpdateApiKeyRequest>,
    ) -> Answer<UpdateApiKeyResponse> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let key = request.api_key.unwrap_or_default();
        let key_id = key.key_id.clone();
        let new = new_values(key, request.update_mask.as_ref())?;
        let key = self.keys.update(&caller, &key_id, new).await?;
        Ok(Response::new(UpdateApiKeyResponse {
            api_key: Some(self.show(&key)),
        }))
    }

    async fn rotate_api_key(
        &self,
        request: Request<RotateApiKeyRequest>,
    ) -> Answer<RotateApiKeyResponse> {
        let caller = auth::caller(&request)?;
        let mut request = request.into_inner();
        let request_id = std::mem::take(&mut request.request_id);
        let call = Call::new(&caller, ROTATE, &request_id, &request);
        let message: rotate::Message = |rotated, now| shown::rotated(rotated, now).encode_to_vec();
        let grace = request.grace.as_ref().map_or(micros(GRACE), length);
        let rotation = Rotation {
            key_id: request.key_id,
            grace: Duration::from_micros(grace.unsigned_abs()),
            retry: call.map(|call| (call, message)),
        };
        let (mut answer, secret) = match self.keys.rotate(&caller, rotation).await? {
            Done::First(rotated) => {
                // Without grace it is a revocation, and answered as one.
                if let Some(ended) = &rotated.previous.revocation {
                    self.keys.confirmed(ended.epoch).await;
                }
                (
                    shown::rotated(&rotated, self.clock.now()),
                    Some(rotated.plaintext.expose().to_owned()),
                )
            }
            Done::Again(before) => (before.decode()?, before.secret),
        };
        answer.plaintext = secret.unwrap_or_default();
        Ok(Response::new(answer))
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
        let epoch = key.revocation.as_ref().map_or(0, |ended| ended.epoch);
        Ok(Response::new(RevokeApiKeyResponse {
            epoch,
            unconfirmed: self.keys.confirmed(epoch).await,
            api_key: Some(self.show(&key)),
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
            rate_limit: self.keys.own_limit(&caller).await?.map(shown::left),
        }))
    }

    async fn verify_api_key(
        &self,
        request: Request<VerifyApiKeyRequest>,
    ) -> Answer<VerifyApiKeyResponse> {
        let caller = auth::caller(&request)?;
        let question = question(request.into_inner())?;
        let verdict = self.keys.verify(&caller, &question).await?;
        Ok(Response::new(shown::verdict(verdict)))
    }

    async fn watch_api_keys(
        &self,
        request: Request<WatchApiKeysRequest>,
    ) -> Answer<BoxStream<WatchApiKeysResponse>> {
        let caller = auth::caller(&request)?;
        let cursor = request.into_inner().cursor;
        let watcher = Watcher::open(self.keys.clone(), caller, &cursor).await?;
        let frames = stream::unfold(Some(watcher), |watcher| async move {
            let mut watcher = watcher?;
            match watcher.next().await {
                Ok(None) => None,
                Ok(Some(frame)) => {
                    let frame = Some(frame);
                    Some((Ok(WatchApiKeysResponse { frame }), Some(watcher)))
                }
                Err(error) => Some((Err(Status::from(error)), None)),
            }
        });
        Ok(Response::new(frames.boxed()))
    }

    async fn explain_access(
        &self,
        request: Request<ExplainAccessRequest>,
    ) -> Answer<ExplainAccessResponse> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let asked = explain::Request {
            whose: match request.subject {
                None => explain::Whose::Own,
                Some(Subject::KeyId(key_id)) => explain::Whose::Key(key_id),
                Some(Subject::CallId(call_id)) => explain::Whose::Call(call_id),
                Some(Subject::Key(key)) => explain::Whose::Plaintext(key),
            },
            product: request.product,
            action: request.action,
            host: request.host,
            path: request.path,
            client_ip: request.client_ip,
        };
        let explanation = self.keys.explain(&caller, asked).await?;
        Ok(Response::new(ExplainAccessResponse {
            explanation: Some(explanation),
        }))
    }

    async fn get_api_key_usage(
        &self,
        request: Request<GetApiKeyUsageRequest>,
    ) -> Answer<GetApiKeyUsageResponse> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let wanted = Wanted {
            since: request.since.as_ref().map(from_timestamp),
            until: request.until.as_ref().map(from_timestamp),
            interval: request.interval.as_ref().map_or(0, length),
        };
        let (buckets, left) = self.keys.usage_of(&caller, &request.key_id, wanted).await?;
        let buckets = buckets.into_iter().map(|bucket| UsageBucket {
            start_time: Some(timestamp(bucket.start)),
            allowed: bucket.allowed,
            denied: bucket.denied,
        });
        Ok(Response::new(GetApiKeyUsageResponse {
            buckets: buckets.collect(),
            rate_limit: left.map(shown::left),
        }))
    }

    async fn set_rate_limit(
        &self,
        request: Request<SetRateLimitRequest>,
    ) -> Answer<SetRateLimitResponse> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let limit = request.requests_per_minute;
        let left = match request.key_id.as_str() {
            "" => self.keys.limit_tenant(&caller, limit).await?,
            key_id => self.keys.limit_key(&caller, key_id, limit).await?,
        };
        Ok(Response::new(SetRateLimitResponse {
            rate_limit: left.map(shown::left),
        }))
    }
}

/// The fields that the mask names; without a mask those that are set.
fn new_values(key: ApiKey, mask: Option<&FieldMask>) -> Result<NewValues> {
    let known = [
        ("name", !key.name.is_empty()),
        ("scopes", !key.scopes.is_empty()),
        ("allowed_cidrs", !key.allowed_cidrs.is_empty()),
        ("expire_time", key.expire_time.is_some()),
        ("labels", !key.labels.is_empty()),
    ];
    let fields = field_mask::fields(mask, &known)?;
    let named = |name: &str| fields.contains(&name);
    if named("name") && key.name.is_empty() {
        return Err(Error::field(
            "api_key.name",
            "must have 1 to 200 characters",
        ));
    }
    Ok(NewValues {
        name: named("name").then_some(key.name),
        scopes: named("scopes").then_some(key.scopes),
        cidrs: named("allowed_cidrs").then_some(key.allowed_cidrs),
        expire_time: named("expire_time").then(|| key.expire_time.as_ref().map(from_timestamp)),
        labels: named("labels").then_some(key.labels),
        requests_per_minute: match mask {
            None => key.requests_per_minute,
            Some(_) => 0,
        },
        etag: key.etag,
    })
}

fn question(request: VerifyApiKeyRequest) -> Result<Question> {
    let scope = format!("{}:{}", request.product, request.action);
    if !is_scope(&scope) || request.action.contains('*') {
        let problem = "must be one action in whole segments, such as tickets.read";
        return Err(Error::field("action", problem));
    }
    let client = match request.client_ip.as_str() {
        "" => None,
        text => Some(
            text.parse()
                .map_err(|_| Error::field("client_ip", "must be an IPv4 or IPv6 address"))?,
        ),
    };
    Ok(Question {
        key: request.key,
        asked: Asked {
            product: request.product,
            scope,
            host: request.host,
            path: request.path,
            client,
        },
        cost: request.cost.unwrap_or(1),
        dry_run: request.dry_run,
    })
}

fn length(duration: &prost_types::Duration) -> Micros {
    let seconds = duration.seconds.saturating_mul(1_000_000);
    seconds.saturating_add(i64::from(duration.nanos) / 1000)
}

impl Service {
    fn show(&self, key: &Key) -> ApiKey {
        shown::key(key, self.clock.now())
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
