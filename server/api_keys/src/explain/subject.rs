//! What an answer is about: a key, and a request with it.

use std::net::IpAddr;

use hub_core::auth::{Caller, is_scope};
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;

use super::call_not_found;
use crate::decision::Asked;
use crate::denials::{Denial, KEPT};
use crate::key::{Key, Record};
use crate::keys::Keys;
use crate::secret::Plaintext;
use crate::store;
use crate::verify::may_verify;

/// Scope without which a key asks about itself only.
const DIAGNOSTICS: &str = "hub:diagnostics.read";

/// Whose access is asked about.
pub(crate) enum Whose {
    /// That of the calling key.
    Own,
    /// That of the key with this id.
    Key(String),
    /// That of a call that was refused.
    Call(String),
    /// That of the key with this plaintext.
    Plaintext(String),
}

/// A question.
pub(crate) struct Request {
    pub whose: Whose,
    pub product: String,
    pub action: String,
    pub host: String,
    pub path: String,
    pub client_ip: String,
}

/// The form of what was presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Missing,
    Malformed,
    Whole,
}

/// What is known of a question.
pub(super) struct Subject {
    pub form: Form,
    /// The key, if there is one that the caller may know of.
    pub key: Option<Key>,
    pub action: String,
    pub asked: Asked,
    /// What was stored of the call, if it is one.
    pub denial: Option<Denial>,
}

impl Subject {
    /// How many requests it counts as.
    pub(super) fn cost(&self) -> u32 {
        self.denial.as_ref().map_or(1, |denial| denial.cost)
    }
}

impl Keys {
    /// Finds the key and the request.
    pub(super) async fn subject(&self, caller: &Caller, mut request: Request) -> Result<Subject> {
        let whose = std::mem::replace(&mut request.whose, Whose::Own);
        let (mut form, mut denial) = (Form::Whole, None);
        let key = match whose {
            Whose::Own => {
                if request.client_ip.is_empty() {
                    let client = caller.origin.client_ip;
                    request.client_ip = client.map(|ip| ip.to_string()).unwrap_or_default();
                }
                Some(self.own(caller).await?)
            }
            Whose::Key(key_id) if *key_id == *caller.key_id => Some(self.own(caller).await?),
            Whose::Key(key_id) => {
                caller.require(DIAGNOSTICS)?;
                Some(self.get(caller, &key_id).await?)
            }
            Whose::Plaintext(text) => {
                let (found, key) = self.of_plaintext(caller, &text).await?;
                form = found;
                key
            }
            Whose::Call(call_id) => {
                let found = self.denial(caller, &call_id).await?;
                request.product.clone_from(&found.product);
                request.action.clone_from(&found.action);
                request.host.clone_from(&found.host);
                request.path.clone_from(&found.path);
                request.client_ip.clone_from(&found.client_ip);
                let key = store::by_id(&self.core.db, &found.key_id).await?;
                denial = Some(found);
                key.map(|(key, _)| key)
            }
        };
        Ok(Subject {
            form,
            key,
            asked: asked(&request)?,
            action: request.action,
            denial,
        })
    }

    /// Whose subscriptions and limits decide: the tenant of the key, or the one that is named, by
    /// the call that was refused or else by the one that asks.
    pub(super) async fn tenant_of_subject(
        &self,
        caller: &Caller,
        subject: &Subject,
        key: &Key,
    ) -> Result<Option<TenantRef>> {
        if key.tenant.is_some() {
            return Ok(key.tenant.clone());
        }
        let Some(denial) = &subject.denial else {
            return Ok(caller.tenant.clone());
        };
        match denial.named_tenant.as_str() {
            "" => Ok(None),
            named => match self.core.tenancy.find(named).await {
                Ok(tenant) => Ok(Some(tenant)),
                // The call would get no further.
                Err(error) if error.reason() == "TENANT_NOT_FOUND" => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    async fn of_plaintext(&self, caller: &Caller, text: &str) -> Result<(Form, Option<Key>)> {
        let Some(plaintext) = Plaintext::parse(text) else {
            caller.require(DIAGNOSTICS)?;
            let form = match text.is_empty() {
                true => Form::Missing,
                false => Form::Malformed,
            };
            return Ok((form, None));
        };
        let found = store::by_hashes(&self.core.db, &[plaintext.hash()]).await?;
        let key = found.into_iter().next().map(|(key, _)| key);
        if key.as_ref().is_none_or(|key| *key.key_id != *caller.key_id) {
            caller.require(DIAGNOSTICS)?;
        }
        let Some(key) = key else {
            return Ok((Form::Whole, None));
        };
        let may_know = may_verify(caller, &Record::read(&key)?);
        Ok((Form::Whole, may_know.then_some(key)))
    }

    /// A refused call of a key that the caller may ask about; all others do not exist.
    async fn denial(&self, caller: &Caller, call_id: &str) -> Result<Denial> {
        let found = self.denials.find(&self.core.db, call_id).await?;
        let now = self.core.clock.now();
        let found = found.filter(|denial| now - denial.time < KEPT);
        let is_own = |denial: &Denial| *denial.key_id == *caller.key_id;
        let of_tenant = |denial: &Denial| match &caller.tenant {
            Some(tenant) if caller.all_tenants && denial.tenant_no == 0 => {
                tenant.id() == denial.named_tenant
            }
            Some(tenant) => tenant.number() == denial.tenant_no,
            None => caller.all_tenants,
        };
        let may_know = |denial: &Denial| {
            is_own(denial) || (caller.scopes.allow(DIAGNOSTICS) && of_tenant(denial))
        };
        found
            .filter(may_know)
            .ok_or_else(|| call_not_found(call_id))
    }
}

fn asked(request: &Request) -> Result<Asked> {
    let scope = format!("{}:{}", request.product, request.action);
    let named = !request.product.is_empty() && !request.action.is_empty();
    if named && (!is_scope(&scope) || request.action.contains('*')) {
        let problem = "must be one action in whole segments, such as tickets.read";
        return Err(Error::field("action", problem));
    }
    let client: Option<IpAddr> = match request.client_ip.as_str() {
        "" => None,
        text => {
            let problem = "must be an IPv4 or IPv6 address";
            Some(
                text.parse()
                    .map_err(|_| Error::field("client_ip", problem))?,
            )
        }
    };
    Ok(Asked {
        product: request.product.clone(),
        scope,
        host: request.host.clone(),
        path: request.path.clone(),
        client,
    })
}
