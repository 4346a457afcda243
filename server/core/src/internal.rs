//! The credential of calls between the processes of one database.
//!
//! A call whose work is owned by another process is passed on to it. The process that admitted the
//! caller vouches for it: who calls, which method, which process is to answer, and when, under a
//! MAC with a key that needs both a secret of the database and the sealing key. So a copy of the
//! database is not enough to make one, and one that was recorded is good for a minute, for the
//! same method at the same process.
//!
//! Invariants:
//! - What is not whole, not ours, late, or meant for another process or method is refused alike.
//! - A call is passed on once: who gets it answers it ([`Origin::forwarded`]).

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderValue};
use hub_proto::policy::method_policy;
use prost::Message;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tonic::Code;

use crate::auth::{Caller, Origin, Scopes};
use crate::clock::Micros;
use crate::error::{Error, Result};
use crate::journal::TenantRef;
use crate::sealing::Sealer;
use crate::secrets;
use crate::storage::Db;

/// Header of a call that another process passed on, in place of a key.
pub const FORWARDED_HEADER: &str = "x-hub-forwarded";

/// Paths of calls that only processes of this hub make to each other begin so.
pub const SERVICES: &str = "/hub.internal.";

/// How long a credential is good, in microseconds: 60 s.
pub const VALID: Micros = 60_000_000;
/// By how much two processes may differ in what they take for the time of the database, in
/// microseconds: 5 s.
const TIME_DIFFERENCE: Micros = 5_000_000;
/// Largest credential. The hub reads 16 KiB of headers, unless told otherwise.
const TEXT_BYTES_MAX: usize = 12 << 10;
const MAC_BYTES: usize = 32;
const SECRET: &str = "internal_key";
const PURPOSE: &[u8] = b"hub internal call 1";

/// Makes and checks the credentials of one process.
#[derive(Clone)]
pub struct Internal {
    key: [u8; 32],
    process_id: std::sync::Arc<str>,
}

/// Where a call is passed on to.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Id of the process that is to answer.
    pub process_id: &'a str,
    /// Path of the method, `/hub.event_bus.v1.EventBus/Pull`.
    pub path: &'a str,
}

/// What the MAC covers.
#[derive(Clone, PartialEq, prost::Message)]
struct Claims {
    #[prost(string, tag = "1")]
    process_id: String,
    #[prost(string, tag = "2")]
    path: String,
    #[prost(int64, tag = "3")]
    time: i64,
    #[prost(string, tag = "4")]
    key_id: String,
    #[prost(message, optional, tag = "5")]
    tenant: Option<Tenant>,
    #[prost(string, optional, tag = "6")]
    product: Option<String>,
    #[prost(string, repeated, tag = "7")]
    scopes: Vec<String>,
    #[prost(bool, tag = "8")]
    all_tenants: bool,
    #[prost(string, tag = "9")]
    call_id: String,
    #[prost(string, optional, tag = "10")]
    client_ip: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Tenant {
    #[prost(int64, tag = "1")]
    number: i64,
    #[prost(string, tag = "2")]
    id: String,
}

impl Internal {
    /// That of this process; the key is made by whichever process of the database asks first.
    pub async fn load(db: &Db, sealer: &Sealer, process_id: &str) -> Result<Self> {
        let secret = secrets::load(db, SECRET).await?;
        Ok(Self::new(sealer.derive(PURPOSE, &secret), process_id))
    }

    /// With this key.
    pub fn new(key: [u8; 32], process_id: &str) -> Self {
        Internal {
            key,
            process_id: process_id.into(),
        }
    }

    /// The header by which a caller that this process admitted is passed on. `now` is the time of
    /// the database ([`Processes::time`](crate::processes::Processes::time)).
    pub fn sign(&self, caller: &Caller, target: Target<'_>, now: Micros) -> Result<HeaderValue> {
        let tenant = caller.tenant.as_ref().map(|tenant| Tenant {
            number: tenant.number(),
            id: tenant.id().to_owned(),
        });
        let mut claims = Claims {
            process_id: target.process_id.to_owned(),
            path: target.path.to_owned(),
            time: now,
            key_id: caller.key_id.to_string(),
            tenant,
            product: caller.product.as_deref().map(str::to_owned),
            scopes: caller.scopes.list().to_vec(),
            all_tenants: caller.all_tenants,
            call_id: caller.origin.call_id.to_string(),
            client_ip: caller.origin.client_ip.map(|address| address.to_string()),
        };
        let mut text = self.write(&claims);
        if text.len() > TEXT_BYTES_MAX {
            // Only rights of the hub itself count in its own calls.
            claims.scopes.retain(|scope| scope.starts_with("hub:"));
            text = self.write(&claims);
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(Error::internal(
                "the scopes of a key are too long to pass it on",
            ));
        }
        let mut header = HeaderValue::try_from(text).map_err(Error::internal)?;
        header.set_sensitive(true);
        Ok(header)
    }

    /// The caller whose call another process passed on to this one; none if the headers say
    /// nothing of it. Errors: `KEY_NOT_RECOGNIZED`.
    pub fn caller(&self, headers: &HeaderMap, path: &str, now: Micros) -> Result<Option<Caller>> {
        let mut values = headers.get_all(FORWARDED_HEADER).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        let claims = match values.next() {
            None => self.read(value.as_bytes()),
            Some(_) => None,
        };
        let claims = claims.ok_or_else(refused)?;
        let age = now.saturating_sub(claims.time);
        let is_fresh = (-TIME_DIFFERENCE..=VALID).contains(&age);
        if !is_fresh || claims.process_id != *self.process_id || claims.path != path {
            return Err(refused());
        }
        Ok(Some(claims.into_caller()))
    }

    fn write(&self, claims: &Claims) -> String {
        let body = claims.encode_to_vec();
        let mac = self.mac(&body);
        URL_SAFE_NO_PAD.encode([&mac[..], &body].concat())
    }

    fn read(&self, text: &[u8]) -> Option<Claims> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (mac, body) = bytes.split_at_checked(MAC_BYTES)?;
        let is_ours: bool = self.mac(body).ct_eq(mac).into();
        is_ours.then(|| Claims::decode(body).ok())?
    }

    fn mac(&self, body: &[u8]) -> [u8; MAC_BYTES] {
        // An HMAC takes a key of any length, so this cannot fail.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.key) else {
            return [0; MAC_BYTES];
        };
        mac.update(body);
        mac.finalize().into_bytes().into()
    }
}

impl Claims {
    fn into_caller(self) -> Caller {
        let tenant = self.tenant.map(|t| TenantRef::new(t.number, &t.id));
        let policy = method_policy(&self.path);
        Caller {
            key_id: self.key_id.into(),
            tenant,
            product: self.product.map(Into::into),
            scopes: Scopes::new(self.scopes),
            all_tenants: self.all_tenants,
            origin: Arc::new(Origin {
                call_id: self.call_id.into(),
                client_ip: self.client_ip.and_then(|address| address.parse().ok()),
                forwarded: true,
                span: None,
                scope: policy.map_or("", |policy| policy.scope),
            }),
        }
    }
}

impl std::fmt::Debug for Internal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Internal(<redacted>)")
    }
}

/// `KEY_NOT_RECOGNIZED`: nothing more is told.
fn refused() -> Error {
    let message = "The call was not passed on by a process of this hub. Send a key of your own.";
    Error::new(
        Code::Unauthenticated,
        "hub.api_keys",
        "KEY_NOT_RECOGNIZED",
        message,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Micros = 1_767_225_600_000_000;
    const TARGET: Target<'_> = Target {
        process_id: "prc_2",
        path: "/hub.event_bus.v1.EventBus/Pull",
    };

    fn process(process_id: &str) -> Internal {
        Internal::new([7; 32], process_id)
    }

    /// Scope that the target needs.
    fn needed() -> &'static str {
        method_policy(TARGET.path).unwrap().scope
    }

    fn caller(scopes: Vec<String>) -> Caller {
        Caller {
            key_id: "key_1".into(),
            tenant: Some(TenantRef::new(3, "tnt_3")),
            product: Some("portal".into()),
            scopes: Scopes::new(scopes),
            all_tenants: true,
            origin: Arc::new(Origin {
                call_id: "req_1".into(),
                client_ip: Some([10, 0, 0, 1].into()),
                forwarded: false,
                span: None,
                scope: needed(),
            }),
        }
    }

    fn headers(values: &[&HeaderValue]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(FORWARDED_HEADER, (*value).clone());
        }
        headers
    }

    fn read(value: &HeaderValue, now: Micros) -> Result<Option<Caller>> {
        process("prc_2").caller(&headers(&[value]), TARGET.path, now)
    }

    fn reason(read: Result<Option<Caller>>) -> &'static str {
        read.unwrap_err().reason()
    }

    #[test]
    fn the_process_that_is_meant_gets_the_caller_as_it_was_admitted() {
        let scopes = vec!["hub:events.read".to_owned(), "psa:*".to_owned()];
        for caller in [
            caller(scopes),
            Caller {
                tenant: None,
                product: None,
                origin: Arc::new(Origin {
                    scope: needed(),
                    ..Origin::default()
                }),
                ..caller(Vec::new())
            },
        ] {
            let signed = process("prc_1").sign(&caller, TARGET, NOW).unwrap();
            assert!(signed.is_sensitive());
            let read = read(&signed, NOW).unwrap().unwrap();
            assert!(read.origin.forwarded && !caller.origin.forwarded);
            let back = Caller {
                origin: Arc::new(Origin {
                    forwarded: false,
                    ..Origin::clone(&read.origin)
                }),
                ..read
            };
            assert_eq!(format!("{back:?}"), format!("{caller:?}"));
        }
        let none = process("prc_2").caller(&HeaderMap::new(), TARGET.path, NOW);
        assert!(none.unwrap().is_none());
    }

    #[test]
    fn a_credential_is_good_for_a_minute_at_one_process_for_one_method() {
        let signed = process("prc_1")
            .sign(&caller(Vec::new()), TARGET, NOW)
            .unwrap();
        assert!(read(&signed, NOW + VALID).is_ok());
        assert_eq!(reason(read(&signed, NOW + VALID + 1)), "KEY_NOT_RECOGNIZED");
        assert!(read(&signed, NOW - TIME_DIFFERENCE).is_ok());
        assert_eq!(
            reason(read(&signed, NOW - TIME_DIFFERENCE - 1)),
            "KEY_NOT_RECOGNIZED"
        );
        let one = headers(&[&signed]);
        for (id, path) in [
            ("prc_1", TARGET.path),
            ("prc_3", TARGET.path),
            ("prc_2", "/hub.event_bus.v1.EventBus/Consume"),
        ] {
            let read = process(id).caller(&one, path, NOW);
            assert_eq!(reason(read), "KEY_NOT_RECOGNIZED", "{id} {path}");
        }
        let two = headers(&[&signed, &signed]);
        let read = process("prc_2").caller(&two, TARGET.path, NOW);
        assert_eq!(reason(read), "KEY_NOT_RECOGNIZED");
    }

    #[test]
    fn nothing_changed_or_forged_passes() {
        let caller = caller(vec!["hub:events.read".to_owned()]);
        let signed = process("prc_1").sign(&caller, TARGET, NOW).unwrap();
        let bytes = signed.as_bytes();
        for at in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = HeaderValue::from_bytes(&changed).unwrap();
            assert_eq!(reason(read(&changed, NOW)), "KEY_NOT_RECOGNIZED", "{at}");
            let cut = HeaderValue::from_bytes(&bytes[..at]).unwrap();
            assert_eq!(reason(read(&cut, NOW)), "KEY_NOT_RECOGNIZED", "{at}");
        }
        let forged = Internal::new([8; 32], "prc_1").sign(&caller, TARGET, NOW);
        assert_eq!(reason(read(&forged.unwrap(), NOW)), "KEY_NOT_RECOGNIZED");
    }

    #[test]
    fn of_more_scopes_than_fit_those_of_the_hub_are_passed_on() {
        let mut scopes = vec!["hub:events.read".to_owned()];
        scopes.extend((0..64).map(|n| format!("psa:{}", "a".repeat(190 + n % 2))));
        let signed = process("prc_1").sign(&caller(scopes.clone()), TARGET, NOW);
        let signed = signed.unwrap();
        assert!(signed.len() <= TEXT_BYTES_MAX);
        let read = read(&signed, NOW).unwrap().unwrap();
        assert_eq!(read.scopes.list(), ["hub:events.read"]);
        let long = scopes.iter().map(|scope| scope.replace("psa:", "hub:"));
        let refused = process("prc_1").sign(&caller(long.collect()), TARGET, NOW);
        assert_eq!(refused.unwrap_err().reason(), "INTERNAL");
    }
}
