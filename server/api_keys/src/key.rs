//! A key without its secret, and when it ends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hub_core::audit::Changes;
use hub_core::auth::{Caller, Origin, Scopes};
use hub_core::clock::{Micros, timestamp};
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_proto::hub::api_keys::v1::ApiKeyState;

use crate::addresses::Cidr;
use crate::error;
use crate::scopes::Rights;

/// A key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Id, `key_…`.
    pub key_id: String,
    /// Tenant; none = it serves all tenants.
    pub tenant: Option<TenantRef>,
    /// Slug of the product that it speaks for.
    pub product: Option<String>,
    /// Ends of the secret, to recognise it.
    pub hint: String,
    /// Display name.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Blocks of addresses that it may be used from; empty = any.
    pub cidrs: Vec<String>,
    /// The owner's own marks.
    pub labels: BTreeMap<String, String>,
    /// Its own rate limit; 0 = none.
    pub requests_per_minute: u32,
    /// The rate limit of its tenant; 0 = the default.
    pub tenant_limit: u32,
    /// Id of the first key of those that came from one another by rotation; they share limits and
    /// usage.
    pub family: String,
    /// Last use, some seconds late.
    pub last_use_time: Option<Micros>,
    /// End of validity.
    pub expire_time: Option<Micros>,
    /// When it was made.
    pub create_time: Micros,
    /// When it was changed last, other than by its use.
    pub update_time: Option<Micros>,
    /// Key that made it, or `hub`.
    pub created_by: String,
    /// How it was revoked.
    pub revocation: Option<Revocation>,
    /// Key that replaces it.
    pub successor_id: Option<String>,
    /// Rises with every change.
    pub version: i64,
}

/// How a key was revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// When.
    pub time: Micros,
    /// By which key.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Sequence of the revocation in the system log.
    pub epoch: u64,
}

/// When and how a key ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It was revoked then.
    Revoked(Micros),
    /// It expired then; it was revoked later, so no clock that is set back revives it.
    Expired(Micros),
    /// It works until then.
    Expires(Micros),
}

impl Key {
    pub(crate) fn end(&self) -> Option<End> {
        match (&self.revocation, self.expire_time) {
            (Some(revocation), Some(expire)) if revocation.time >= expire => {
                Some(End::Expired(expire))
            }
            (Some(revocation), _) => Some(End::Revoked(revocation.time)),
            (None, Some(expire)) => Some(End::Expires(expire)),
            (None, None) => None,
        }
    }

    /// Where it stands; the statement of `ListApiKeys` decides the same.
    pub fn state(&self, now: Micros) -> ApiKeyState {
        match self.end() {
            Some(End::Revoked(_)) => ApiKeyState::Revoked,
            Some(End::Expired(_)) => ApiKeyState::Expired,
            Some(End::Expires(at)) if at <= now => ApiKeyState::Expired,
            _ if self.successor_id.is_some() => ApiKeyState::Rotating,
            _ => ApiKeyState::Active,
        }
    }

    /// What a new key has, for the audit log. Its secret is not part of it.
    pub(crate) fn as_changes(&self) -> Changes {
        let expire_time = self.expire_time.map(|at| timestamp(at).to_string());
        let changes = Changes::new()
            .field("name", "", &self.name)
            .field("product", "", self.product.as_deref().unwrap_or_default())
            .field("scopes", "", self.scopes.join(" "))
            .field("allowed_cidrs", "", self.cidrs.join(" "))
            .field("expire_time", "", expire_time.unwrap_or_default())
            .field("all_tenants", false, self.tenant.is_none());
        self.labels.iter().fold(changes, |changes, (name, value)| {
            changes.field(&format!("labels.{name}"), "", value)
        })
    }

    pub(crate) fn rights(&self) -> Rights<'_> {
        Rights {
            scopes: &self.scopes,
            product: self.product.as_deref(),
            all_tenants: self.tenant.is_none(),
        }
    }
}

/// What is needed of a key to admit a call.
#[derive(Debug)]
pub(crate) struct Record {
    pub caller: Caller,
    pub cidrs: Box<[Cidr]>,
    pub end: Option<End>,
    pub successor_id: Option<Box<str>>,
    /// See [`Key::family`].
    pub family: Arc<str>,
    pub limits: Limits,
}

/// Requests per minute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Of the key itself; 0 = none of its own.
    pub own: u32,
    /// Of its tenant; 0 = the default.
    pub tenant: u32,
}

impl Record {
    /// Number of its tenant; 0 = of none.
    pub fn tenant_no(&self) -> i64 {
        let tenant = self.caller.tenant.as_ref();
        tenant.map_or(0, TenantRef::number)
    }

    /// A stored block that does not parse would admit nobody or everybody: it is an error.
    pub fn new(key: &Key) -> Result<Self, String> {
        let cidrs = key
            .cidrs
            .iter()
            .map(|block| Cidr::parse(block))
            .collect::<Result<_, _>>()?;
        let key_id: Arc<str> = key.key_id.as_str().into();
        // Mostly it is the first of its family.
        let family = match key.family == key.key_id {
            true => key_id.clone(),
            false => key.family.as_str().into(),
        };
        Ok(Record {
            caller: Caller {
                key_id,
                tenant: key.tenant.clone(),
                product: key.product.as_deref().map(Into::into),
                scopes: Scopes::new(key.scopes.iter().cloned()),
                all_tenants: key.tenant.is_none(),
                origin: Origin::of_nothing(),
            },
            cidrs,
            end: key.end(),
            successor_id: key.successor_id.as_deref().map(Into::into),
            family,
            limits: Limits {
                own: key.requests_per_minute,
                tenant: key.tenant_limit,
            },
        })
    }

    /// The same for a key that was read from the database.
    pub fn read(key: &Key) -> Result<Self> {
        Record::new(key).map_err(|problem| {
            Error::internal(format!(
                "a stored block of addresses of {}: {problem}",
                key.key_id
            ))
        })
    }

    /// `KEY_REVOKED` or `KEY_EXPIRED`.
    pub fn check_works(&self, now: Micros) -> Result<()> {
        let (key_id, successor) = (&*self.caller.key_id, self.successor_id.as_deref());
        match self.end {
            Some(End::Revoked(at)) => Err(error::revoked(key_id, at, successor)),
            Some(End::Expired(at)) => Err(error::expired(key_id, at, successor)),
            Some(End::Expires(at)) if at <= now => Err(error::expired(key_id, at, successor)),
            _ => Ok(()),
        }
    }

    /// `IP_NOT_ALLOWED`; an unknown address is in no block.
    pub fn check_address(&self, peer: Option<IpAddr>) -> Result<()> {
        let allowed = |block: &Cidr| peer.is_some_and(|peer| block.contains(peer));
        if self.cidrs.is_empty() || self.cidrs.iter().any(allowed) {
            return Ok(());
        }
        Err(error::ip_not_allowed(&self.caller.key_id, peer))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn key() -> Key {
        Key {
            key_id: "key_1".into(),
            tenant: Some(TenantRef::new(1, "tnt_1")),
            product: None,
            hint: "tos_a1B2…x9Yz".into(),
            name: "a key".into(),
            scopes: Vec::new(),
            cidrs: Vec::new(),
            labels: BTreeMap::new(),
            requests_per_minute: 0,
            tenant_limit: 0,
            family: "key_1".into(),
            last_use_time: None,
            expire_time: None,
            create_time: 0,
            update_time: None,
            created_by: "hub".into(),
            revocation: None,
            successor_id: None,
            version: 1,
        }
    }

    pub(crate) fn revoked_at(time: Micros) -> Option<Revocation> {
        Some(Revocation {
            time,
            by: "key_0".into(),
            reason: String::new(),
            epoch: 1,
        })
    }

    fn answer(key: &Key, now: Micros) -> (ApiKeyState, Option<&'static str>) {
        let refused = Record::new(key).unwrap().check_works(now).err();
        (key.state(now), refused.map(|error| error.reason()))
    }

    #[test]
    fn a_key_works_until_its_end_and_says_which_end_it_was() {
        let active = key();
        assert_eq!(answer(&active, 9), (ApiKeyState::Active, None));
        let expiring = Key {
            expire_time: Some(10),
            ..key()
        };
        assert_eq!(answer(&expiring, 9), (ApiKeyState::Active, None));
        assert_eq!(
            answer(&expiring, 10),
            (ApiKeyState::Expired, Some("KEY_EXPIRED"))
        );
        let rotating = Key {
            successor_id: Some("key_2".into()),
            ..expiring.clone()
        };
        assert_eq!(answer(&rotating, 9), (ApiKeyState::Rotating, None));
        assert_eq!(
            answer(&rotating, 10),
            (ApiKeyState::Expired, Some("KEY_EXPIRED"))
        );
        let revoked = Key {
            revocation: revoked_at(5),
            ..expiring.clone()
        };
        assert_eq!(
            answer(&revoked, 9),
            (ApiKeyState::Revoked, Some("KEY_REVOKED"))
        );
        assert_eq!(
            answer(&revoked, 10),
            (ApiKeyState::Revoked, Some("KEY_REVOKED"))
        );
    }

    #[test]
    fn a_key_that_was_revoked_after_it_expired_stays_expired_whatever_the_clock_says() {
        let late = Key {
            expire_time: Some(10),
            revocation: revoked_at(12),
            ..key()
        };
        assert_eq!(
            answer(&late, 13),
            (ApiKeyState::Expired, Some("KEY_EXPIRED"))
        );
        assert_eq!(
            answer(&late, 1),
            (ApiKeyState::Expired, Some("KEY_EXPIRED"))
        );
    }

    #[test]
    fn a_key_with_blocks_works_only_from_them() {
        let office = Key {
            cidrs: vec!["10.0.0.0/8".into(), "::1/128".into()],
            ..key()
        };
        let record = Record::new(&office).unwrap();
        let from = |peer: &str| record.check_address(Some(peer.parse().unwrap()));
        assert!(from("10.1.2.3").is_ok() && from("::1").is_ok() && from("::ffff:10.0.0.1").is_ok());
        assert_eq!(from("192.0.2.1").unwrap_err().reason(), "IP_NOT_ALLOWED");
        let unknown = record.check_address(None).unwrap_err();
        assert!(
            unknown
                .metadata()
                .contains(&("clientIp", "unknown".to_owned()))
        );
        assert!(Record::new(&key()).unwrap().check_address(None).is_ok());
    }
}
