//! Keys: made, shown, refused, ended.

mod changes;
mod credentials;
mod explain;
mod explain_all_tenants;
mod explain_refusals;
pub mod ext_authz;
mod ext_authz_malformed;
mod keys;
mod killed;
mod limits;
mod lookups;
mod pages;
mod proxies;
mod rate_headers;
mod retry;
mod scopes;
mod tenants;
pub mod verify;
mod watch;

use hub_client::proto::hub::api_keys::v1::{
    ApiKey, CreateApiKeyRequest, CreateApiKeyResponse, RevokeApiKeyRequest, RevokeApiKeyResponse,
    WhoAmIRequest, WhoAmIResponse,
};
use hub_client::{Error, Hub};

pub type Outcome<T> = Result<T, Error>;

/// A key to be made.
pub fn new_key(name: &str, scopes: &[&str]) -> ApiKey {
    ApiKey {
        name: name.to_owned(),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        ..ApiKey::default()
    }
}

pub async fn create(client: &Hub, key: ApiKey) -> Outcome<CreateApiKeyResponse> {
    let request = CreateApiKeyRequest {
        api_key: Some(key),
        request_id: String::new(),
    };
    Ok(client
        .api_keys()
        .create_api_key(request)
        .await?
        .into_inner())
}

pub async fn revoke(client: &Hub, key_id: &str, reason: &str) -> Outcome<RevokeApiKeyResponse> {
    let (key_id, reason) = (key_id.to_owned(), reason.to_owned());
    let request = RevokeApiKeyRequest { key_id, reason };
    Ok(client
        .api_keys()
        .revoke_api_key(request)
        .await?
        .into_inner())
}

pub async fn who_am_i(client: &Hub) -> Outcome<WhoAmIResponse> {
    Ok(client
        .api_keys()
        .who_am_i(WhoAmIRequest {})
        .await?
        .into_inner())
}

/// The error's reason, and that it says what happened in one `ErrorInfo`.
#[track_caller]
pub fn reason<T: std::fmt::Debug>(outcome: Outcome<T>) -> String {
    let error = outcome.unwrap_err();
    assert!(
        error.call_id().is_some() && error.help().is_some(),
        "{error:?}"
    );
    error.reason().unwrap_or_default().to_owned()
}
