//! The keys of a hub that is built without the domain of keys: an operator key, and one for the
//! administrator of each tenant. They follow from one secret of the database, so they need no
//! tables; they end together, when that secret is replaced.
//!
//! The operator key names a tenant by `x-hub-tenant`, and the product that it speaks for by
//! `x-hub-product`, since there are no keys of products.

use std::fmt::Write;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tokio::sync::OnceCell;
use tonic::Code;

use crate::auth::{
    self, ADMINISTRATOR, Answer, Authenticator, Caller, Credential, IssuedKey, KeyIssuer, Origin,
    Scopes,
};
use crate::error::{Error, Result};
use crate::hub_event::HubEvent;
use crate::journal::TenantRef;
use crate::module::{Core, Module};
use crate::secrets;
use crate::services::Services;
use crate::storage::{Sql, Tx};

/// Metadata by which the operator key names the product that it speaks for.
pub const PRODUCT_HEADER: &str = "x-hub-product";

const DOMAIN: &str = "hub.api_keys";
const SECRET: &str = "bootstrap_key";
const SECRET_BYTES: usize = 32;
const OPERATOR: &str = "operator";

const FORGET: Sql = Sql::same("delete from secrets where name = $1");

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[FORGET];

/// Knows the keys that follow from the secret.
pub struct Keys {
    core: Core,
    secret: OnceCell<Vec<u8>>,
}

/// What stands in for the domain of keys.
pub struct Plugged {
    /// No service.
    pub module: Module,
    /// Says who is calling.
    pub authenticator: Arc<dyn Authenticator>,
    /// Makes keys for the first start, and for other domains.
    pub keys: Arc<Keys>,
}

/// A new operator key; all keys from before have ended.
pub struct Replaced {
    /// Its id.
    pub key_id: String,
    /// Its secret, which nobody can show again.
    pub plaintext: String,
    /// Ids of the keys that were revoked.
    pub revoked: Vec<String>,
}

/// Stands in for the domain of keys.
pub fn module(core: &Core) -> Result<Plugged, String> {
    let keys = Arc::new(Keys {
        core: core.clone(),
        secret: OnceCell::new(),
    });
    Ok(Plugged {
        module: Module {
            name: "bootstrap",
            services: Services::default(),
            http: axum::Router::new(),
        },
        authenticator: keys.clone(),
        keys,
    })
}

impl Keys {
    /// The operator key, at the first start on a database only.
    pub async fn ensure_operator(&self) -> Result<Option<String>> {
        let fresh = fresh()?;
        let kept = secrets::keep(&self.core.db, SECRET, fresh.clone()).await?;
        let is_new = kept == fresh;
        let secret = self.secret.get_or_init(async || kept).await;
        Ok(is_new.then(|| plaintext(secret, OPERATOR)))
    }

    /// Replaces the secret, and with it every key; one of them cannot end alone.
    pub async fn replace_operator(&self, _revoke: bool) -> Result<Replaced> {
        let mut tx = self.core.db.begin().await?;
        tx.query(FORGET).bind(SECRET.to_owned()).execute().await?;
        tx.commit().await?;
        let secret = secrets::keep(&self.core.db, SECRET, fresh()?).await?;
        Ok(Replaced {
            key_id: key_id(OPERATOR),
            plaintext: plaintext(&secret, OPERATOR),
            revoked: Vec::new(),
        })
    }

    async fn secret(&self) -> Result<&Vec<u8>> {
        let load = async || secrets::keep(&self.core.db, SECRET, fresh()?).await;
        self.secret.get_or_try_init(load).await
    }

    async fn caller(&self, headers: &HeaderMap) -> Result<Caller> {
        let presented = presented(headers)?;
        let owner = presented
            .strip_prefix("tos_")
            .and_then(|key| key.rsplit_once('_'));
        let (owner, _) = owner.ok_or_else(not_recognized)?;
        let expected = plaintext(self.secret().await?, owner);
        if !bool::from(expected.as_bytes().ct_eq(presented.as_bytes())) {
            return Err(not_recognized());
        }
        let is_operator = owner == OPERATOR;
        let tenant = match is_operator {
            true => None,
            false => Some(
                self.core
                    .tenancy
                    .find(owner)
                    .await
                    .map_err(|_| not_recognized())?,
            ),
        };
        let product = headers.get(PRODUCT_HEADER).filter(|_| is_operator);
        Ok(Caller {
            key_id: key_id(owner).into(),
            tenant,
            product: product
                .and_then(|product| product.to_str().ok())
                .map(Arc::from),
            scopes: Scopes::new([ADMINISTRATOR.to_owned()]),
            all_tenants: is_operator,
            origin: Origin::of_nothing(),
        })
    }
}

impl Authenticator for Keys {
    fn authenticate<'a>(&'a self, credential: Credential<'a>) -> Answer<'a, Caller> {
        Box::pin(self.caller(credential.headers))
    }

    fn recheck<'a>(&'a self, caller: &'a Caller) -> Answer<'a, Caller> {
        Box::pin(async move {
            auth::check_subscription(caller, &self.core.tenancy).await?;
            Ok(caller.clone())
        })
    }
}

impl KeyIssuer for Keys {
    fn issue_administrator<'a>(
        &'a self,
        _tx: &'a mut Tx,
        tenant: &'a TenantRef,
        created_by: &'a str,
    ) -> Answer<'a, IssuedKey> {
        Box::pin(async move {
            // Not loaded here: that would begin a second transaction within the first.
            let secret = self.secret.get();
            let secret = secret.ok_or_else(|| Error::internal("the hub has not started"))?;
            let key_id = key_id(tenant.id());
            let event = HubEvent {
                log: &TenantRef::system(),
                source: "/hub/bootstrap",
                kind: "key.created",
                id: format!("{key_id}.1"),
                subject: &key_id,
                tenant_id: tenant.id(),
                actor: created_by,
                time: self.core.clock.now(),
                json: serde_json::json!({ "keyId": key_id }).to_string(),
            };
            let event = event.encode();
            let plaintext = plaintext(secret, tenant.id());
            Ok(IssuedKey {
                key_id,
                plaintext,
                event,
            })
        })
    }
}

fn key_id(owner: &str) -> String {
    format!("key_{owner}")
}

/// The key of an owner: `operator`, or the id of a tenant.
fn plaintext(secret: &[u8], owner: &str) -> String {
    let mut text = format!("tos_{owner}_");
    // An HMAC takes a key of any length, so this cannot fail.
    if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) {
        mac.update(b"hub bootstrap key");
        mac.update(owner.as_bytes());
        for byte in mac.finalize().into_bytes() {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
    }
    text
}

fn fresh() -> Result<Vec<u8>> {
    let mut fresh = vec![0; SECRET_BYTES];
    getrandom::fill(&mut fresh).map_err(Error::internal)?;
    Ok(fresh)
}

/// The key that a request presents, or `KEY_MISSING`.
fn presented(headers: &HeaderMap) -> Result<&str> {
    let value = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let key = value.and_then(|value| value.strip_prefix("Bearer "));
    key.ok_or_else(|| {
        let message = "The call carries no key. Send `authorization: Bearer tos_…`.";
        Error::new(Code::Unauthenticated, DOMAIN, "KEY_MISSING", message)
    })
}

/// `KEY_NOT_RECOGNIZED`: nothing more is told.
fn not_recognized() -> Error {
    let message = "The key is not one of this hub's. Use the operator key of its first start.";
    Error::new(Code::Unauthenticated, DOMAIN, "KEY_NOT_RECOGNIZED", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_follows_from_the_secret_and_its_owner() {
        let key = plaintext(&[1; 32], OPERATOR);
        assert_eq!(key, plaintext(&[1; 32], OPERATOR));
        assert_ne!(key, plaintext(&[2; 32], OPERATOR));
        assert_eq!(key.len(), "tos_operator_".len() + 64);
        let of_tenant = plaintext(&[1; 32], "tnt_1");
        assert_ne!(
            of_tenant.rsplit_once('_').unwrap().1,
            key.rsplit_once('_').unwrap().1
        );
    }

    #[test]
    fn only_a_bearer_key_is_presented() {
        let mut headers = HeaderMap::new();
        assert_eq!(presented(&headers).unwrap_err().reason(), "KEY_MISSING");
        headers.insert(AUTHORIZATION, http::HeaderValue::from_static("Basic abc"));
        assert_eq!(presented(&headers).unwrap_err().reason(), "KEY_MISSING");
        headers.insert(
            AUTHORIZATION,
            http::HeaderValue::from_static("Bearer tos_a_b"),
        );
        assert_eq!(presented(&headers).unwrap(), "tos_a_b");
    }
}
