//! Who is calling: from the `authorization` header to a caller, mostly from memory.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use hub_core::auth::{self, Answer, Authenticator, Caller, Credential, Holder, Refusal, Scopes};
use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::journal::TenantRef;
use hub_proto::credential::{self, NOT_WHOLE};

use crate::cache::Known;
use crate::denials::Denial;
use crate::keys::Keys;
use crate::lookup::{ATTEMPTS_MAX, busy};
use crate::secret::Plaintext;
use crate::store;
use crate::{error, explain};

impl Authenticator for Keys {
    fn authenticate<'a>(&'a self, credential: Credential<'a>) -> Answer<'a, Caller> {
        Box::pin(async move {
            check_query(credential.query)?;
            let plaintext = presented(credential.headers)?;
            let record = self.lookup.find(&plaintext.hash()).await?;
            let record = record.ok_or_else(error::not_recognized)?;
            let now = self.core.clock.now();
            record.check_works(now)?;
            record.check_address(credential.peer)?;
            self.usage.used(&record, now);
            Ok(record.caller.clone())
        })
    }

    fn recheck<'a>(&'a self, caller: &'a Caller) -> Answer<'a, Caller> {
        Box::pin(async move {
            let record = self.record_by_id(&caller.key_id).await?;
            let record = record.ok_or_else(error::not_recognized)?;
            record.check_works(self.core.clock.now())?;
            record.check_address(caller.origin.client_ip)?;
            auth::check_subscription(caller, &self.core.tenancy).await?;
            let now = Caller {
                scopes: record.caller.scopes.clone(),
                ..caller.clone()
            };
            if !now.origin.scope.is_empty() {
                now.require(now.origin.scope)?;
            }
            Ok(now)
        })
    }

    fn remembered(&self, credential: Credential<'_>) -> Option<Holder> {
        let now = self.core.clock.now();
        let record = self.in_memory(credential, now)?;
        Some(holder(&record, credential, now))
    }

    fn refused(
        &self,
        credential: Credential<'_>,
        caller: Option<&Caller>,
        refusal: Refusal<'_>,
    ) -> Option<Holder> {
        let now = self.core.clock.now();
        let record = self.in_memory(credential, now);
        // What refuses it may be what made this process forget the key.
        let caller = caller.or(record.as_ref().map(|record| &record.caller))?;
        let named_tenant = auth::named_tenant(credential.headers).ok().flatten();
        if let Some(denial) = denial(&refusal, named_tenant, credential.peer, now) {
            self.denials.note(caller, denial);
        }
        record.map(|record| holder(&record, credential, now))
    }

    fn refused_later(&self, caller: &Caller, refusal: Refusal<'_>) {
        let (now, origin) = (self.core.clock.now(), &caller.origin);
        let named_tenant = caller.tenant.as_ref().map(TenantRef::id);
        // What was passed on is noted by the process that was called.
        if !origin.forwarded
            && let Some(denial) = denial(&refusal, named_tenant, origin.client_ip, now)
        {
            self.denials.note(caller, denial);
        }
    }

    fn has_key<'a>(
        &'a self,
        tenant: &'a TenantRef,
        product: &'a str,
        scope: &'a str,
    ) -> Answer<'a, Option<bool>> {
        Box::pin(async move {
            let now = self.core.clock.now();
            let held = store::scopes_of_product(&self.core.db, tenant, product, now).await?;
            let allows = |scopes: Vec<String>| Scopes::new(scopes).allow(scope);
            Ok(Some(held.into_iter().any(allows)))
        })
    }
}

impl Keys {
    /// A refusal costs no query.
    fn in_memory(&self, credential: Credential<'_>, now: Micros) -> Option<Arc<Known>> {
        let presented = presented(credential.headers).ok()?;
        self.cache.by_hash(&presented.hash(), now)
    }

    async fn record_by_id(&self, key_id: &str) -> Result<Option<Arc<Known>>> {
        for _ in 0..ATTEMPTS_MAX {
            let now = self.core.clock.now();
            if let Some(known) = self.cache.by_id(key_id, now) {
                return Ok(Some(known));
            }
            let fill = self.cache.begin(now);
            let Some((key, hash)) = store::by_id(&self.core.db, key_id).await? else {
                return Ok(None);
            };
            let known = self.cache.read(fill, hash, &key)?;
            // Else a key was changed meanwhile, and it may be this one.
            if self.cache.finish(fill, &known) {
                return Ok(Some(known));
            }
        }
        Err(busy("keys_change"))
    }
}

fn holder(record: &Known, credential: Credential<'_>, now: Micros) -> Holder {
    let is_here = record.check_address(credential.peer).is_ok();
    Holder {
        caller: record.caller.clone(),
        works: is_here && record.check_works(now).is_ok(),
    }
}

/// What is kept of a refused call of the hub's own API; none if it is not a matter of keys.
fn denial(
    refusal: &Refusal<'_>,
    named_tenant: Option<&str>,
    client: Option<IpAddr>,
    time: Micros,
) -> Option<Denial> {
    if !explain::explains(refusal.reason) {
        return None;
    }
    let named = |key: &str| refusal.metadata.get(key).copied();
    // An RPC may need more than its policy says.
    let scope = named("missingScope").unwrap_or(refusal.policy.scope);
    Some(Denial {
        call_id: refusal.call_id.to_owned(),
        time,
        reason: refusal.reason.to_owned(),
        product: "hub".to_owned(),
        action: scope.split_once(':').unwrap_or_default().1.to_owned(),
        path: refusal.policy.method.to_owned(),
        client_ip: client.map(|ip| ip.to_string()).unwrap_or_default(),
        cost: 1,
        // A stream of all tenants names one with each frame.
        named_tenant: named_tenant
            .or(named("tenantId"))
            .unwrap_or_default()
            .to_owned(),
        lacking: explain::lacking(refusal.reason, named),
        ..Denial::default()
    })
}

/// `KEY_MALFORMED` if a key stands in a query, whatever else the request presents.
pub(crate) fn check_query(query: &str) -> Result<()> {
    credential::check_query(query).map_err(|fault| {
        tracing::warn!("a request was refused that has a key in its query string");
        error::no_key(fault)
    })
}

/// The one key that the call presents, if it is whole.
pub(crate) fn presented(headers: &HeaderMap) -> Result<Plaintext> {
    let text = credential::presented(headers).map_err(error::no_key)?;
    Plaintext::parse(text).ok_or_else(|| error::no_key(NOT_WHOLE))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::AUTHORIZATION;
    use hub_proto::credential::OTHER_HEADER;

    use super::*;

    fn answer(values: &[&str]) -> Result<String, &'static str> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(
                AUTHORIZATION,
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        let plaintext = presented(&headers).map_err(|error| error.reason())?;
        Ok(plaintext.expose().to_owned())
    }

    #[test]
    fn exactly_one_bearer_key_is_read() {
        let key = Plaintext::generate().unwrap().expose().to_owned();
        for good in [
            format!("Bearer {key}"),
            format!("bearer {key}"),
            format!("BEARER  {key}"),
        ] {
            assert_eq!(answer(&[&good]), Ok(key.clone()), "{good}");
        }
        for missing in ["", "Bearer", "Bearer ", "bearer   "] {
            assert_eq!(answer(&[missing]), Err("KEY_MISSING"), "{missing:?}");
        }
        assert_eq!(answer(&[]), Err("KEY_MISSING"));
        let bearer = format!("Bearer {key}");
        for bad in [
            format!("Bearer {key}, Bearer {key}"),
            format!("Bearer {key},{key}"),
            format!("Bearer {key} "),
            format!("Bearer\t{key}"),
            format!("Basic {key}"),
            key.clone(),
            format!("Bearer {}", &key[1..]),
            format!("Bearer {key}é"),
        ] {
            assert_eq!(answer(&[&bad]), Err("KEY_MALFORMED"), "{bad:?}");
        }
        assert_eq!(answer(&[&bearer, &bearer]), Err("KEY_MALFORMED"));
        assert_eq!(answer(&[&bearer, ""]), Err("KEY_MALFORMED"));
    }

    #[test]
    fn two_places_for_a_key_are_refused() {
        let key = Plaintext::generate().unwrap();
        let mut headers = HeaderMap::new();
        let bearer = format!("Bearer {}", key.expose());
        headers.insert(AUTHORIZATION, bearer.parse().unwrap());
        assert_eq!(presented(&headers).unwrap().expose(), key.expose());
        headers.insert(OTHER_HEADER, HeaderValue::from_static("1"));
        assert_eq!(presented(&headers).unwrap_err().reason(), "KEY_MALFORMED");
        headers.remove(AUTHORIZATION);
        assert_eq!(presented(&headers).unwrap_err().reason(), "KEY_MISSING");
    }

    #[test]
    fn a_refused_header_is_not_repeated_in_the_error() {
        let key = Plaintext::generate().unwrap().expose().to_owned();
        let mut headers = HeaderMap::new();
        headers.insert(
            AUTHORIZATION,
            HeaderValue::from_str(&format!("Bearer {key}x")).unwrap(),
        );
        let error = presented(&headers).unwrap_err();
        assert!(!format!("{error:?}").contains(&key[4..30]));
    }
}
