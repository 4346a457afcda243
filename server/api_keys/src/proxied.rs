//! A request to a product that a proxy asks about before it passes it on.
//!
//! Product and action come from the proxy's own configuration, the key from the proxied request, so
//! that a caller can choose none of the former. Whoever asks is told about the key that he holds,
//! and nothing else, so a proxy needs no key of its own.
//!
//! Invariants:
//! - The decision is that of VerifyApiKey, and counted like it.
//! - What cannot be decided is denied, whatever is missing.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use hub_core::auth::{Caller, Origin, Scopes, is_scope};
use hub_core::error::{Error, Result};
use hub_proto::credential::IDENTITY_HEADERS;
use hub_proto::hub::api_keys::v1::VerifyApiKeyResponse;
use tonic::Code;

use crate::addresses::Cidr;
use crate::authenticate::{self, presented};
use crate::decision::Asked;
use crate::keys::Keys;
use crate::shown;
use crate::verify::Question;

/// What proxies say of the client: each adds the address that it saw.
pub(crate) const FORWARDED_FOR: &str = "x-forwarded-for";

/// A proxied request.
#[derive(Debug, Default)]
pub(crate) struct Proxied {
    pub headers: HeaderMap,
    pub product: String,
    pub action: String,
    /// Host that received it; empty = not told.
    pub host: String,
    pub path: String,
    pub client: Option<IpAddr>,
}

/// The decision, for whichever proxy.
pub(crate) struct Answer {
    /// Status of the answer: 200, or what the caller is told.
    pub status: u16,
    /// The reason; empty = allowed.
    pub reason: String,
    pub told: VerifyApiKeyResponse,
}

impl Keys {
    /// Decides about a proxied request.
    pub(crate) async fn decide(self: &Arc<Self>, proxied: Proxied, origin: Origin) -> Answer {
        match self.try_decide(proxied, origin.clone()).await {
            Ok(told) => answer(told),
            Err(error) => undecided(&error, &origin),
        }
    }

    async fn try_decide(
        self: &Arc<Self>,
        proxied: Proxied,
        origin: Origin,
    ) -> Result<VerifyApiKeyResponse> {
        let scope = format!("{}:{}", proxied.product, proxied.action);
        if !is_scope(&scope) || proxied.action.contains('*') {
            let problem = "and product must be given by the proxy's configuration";
            return Err(Error::field("action", problem));
        }
        let presented = presented(&proxied.headers);
        let key = match check_query(&proxied.path).and(presented) {
            Ok(key) => key.expose().to_owned(),
            Err(refusal) => return Ok(shown::verdict(self.refused_unseen(refusal, origin))),
        };
        // A proxy knows the path: a request without is at the root, not anywhere at the host.
        let path = match proxied.path.as_str() {
            "" => "/".to_owned(),
            _ => proxied.path,
        };
        let question = Question {
            key,
            asked: Asked {
                product: proxied.product,
                scope,
                host: proxied.host,
                path,
                client: proxied.client,
            },
            cost: 1,
            dry_run: false,
        };
        let verdict = self.verify(&asking(origin), &question).await?;
        Ok(shown::verdict(verdict))
    }
}

impl Answer {
    /// The request is to be passed on.
    pub fn is_allowed(&self) -> bool {
        self.reason.is_empty()
    }

    /// Headers by which the product learns who calls. A proxy sets them from the answer, also those
    /// that are empty, so that none comes from the caller.
    pub fn identity(&self) -> [(&'static str, String); 3] {
        let told = &self.told;
        let [key_id, tenant_id, scopes] = IDENTITY_HEADERS;
        [
            (key_id, told.key_id.clone()),
            (tenant_id, told.tenant_id.clone()),
            (scopes, told.scopes.join(" ")),
        ]
    }

    /// Headers of what the caller is answered, by the product or by the proxy; names in lower case.
    pub fn headers(&self) -> Vec<(String, String)> {
        let told = self.told.headers.iter();
        let mut headers: Vec<(String, String)> = told
            .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
            .collect();
        let mut add = |name: &str, value: &str| headers.push((name.to_owned(), value.to_owned()));
        if self.status == 401 {
            add("www-authenticate", "Bearer");
        }
        if !self.is_allowed() {
            add("content-type", "application/problem+json");
            add("cache-control", "no-store");
        }
        headers
    }

    /// What the caller's developer is told of a denial, as RFC 9457 has it.
    pub fn problem(&self, public_url: &str) -> String {
        serde_json::json!({
            "type": format!("{public_url}/errors/{}", self.reason),
            "title": self.reason,
            "status": self.status,
            "detail": self.told.hint,
            "reason": self.reason,
            "keyId": self.told.key_id,
            "callId": self.told.call_id,
            "metadata": self.told.metadata,
        })
        .to_string()
    }
}

/// `KEY_MALFORMED` if a key stands in the query of a path.
fn check_query(path: &str) -> Result<()> {
    authenticate::check_query(path.split_once('?').unwrap_or_default().1)
}

/// A proxy serves all tenants: it may ask about every key.
fn asking(origin: Origin) -> Caller {
    Caller {
        key_id: "proxy".into(),
        tenant: None,
        product: None,
        scopes: Scopes::default(),
        all_tenants: true,
        origin: origin.into(),
    }
}

fn answer(told: VerifyApiKeyResponse) -> Answer {
    let reason = match told.allowed {
        true => String::new(),
        false => told.reason().as_str_name().replace("ERROR_REASON_", ""),
    };
    Answer {
        status: u16::try_from(told.http_status).unwrap_or(403),
        reason,
        told,
    }
}

/// The proxy is not configured, or the hub cannot decide now: nothing is let through.
fn undecided(error: &Error, origin: &Origin) -> Answer {
    let status = match error.code() {
        Code::Unavailable => 503,
        _ => 500,
    };
    Answer {
        status,
        reason: error.reason().to_owned(),
        told: VerifyApiKeyResponse {
            http_status: status.into(),
            hint: error.message().to_owned(),
            call_id: origin.call_id.to_string(),
            ..VerifyApiKeyResponse::default()
        },
    }
}

/// Proxies whose word about the client is believed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trusted(Vec<Cidr>);

impl Trusted {
    /// Blocks of addresses, separated by commas. The error says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let blocks = text.split(',').map(str::trim).filter(|one| !one.is_empty());
        blocks
            .map(Cidr::parse)
            .collect::<Result<_, _>>()
            .map(Trusted)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|block| block.contains(address))
    }

    /// The client: of those that are named, the last that is no proxy of ours. Each proxy adds the
    /// one that it saw at the end, so what the client itself wrote stands before.
    pub fn client(&self, named: &str, peer: Option<IpAddr>) -> Option<IpAddr> {
        let mut client = peer?;
        if named.is_empty() {
            // A proxy that does not tell: nobody knows.
            return (!self.contains(client)).then_some(client);
        }
        for text in named.rsplit(',') {
            if !self.contains(client) {
                break;
            }
            client = text.trim().parse().ok()?;
        }
        Some(client)
    }
}

#[cfg(test)]
mod tests {
    use hub_proto::credential::joined;

    use super::*;
    use crate::secret::Plaintext;

    fn client(peer: &str, forwarded: &[&str]) -> Option<String> {
        let trusted = Trusted::parse("127.0.0.0/8, 10.0.0.0/8,").unwrap();
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, value.parse().unwrap());
        }
        let client = trusted.client(&joined(&headers, FORWARDED_FOR), peer.parse().ok());
        client.map(|address| address.to_string())
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_proxy_of_ours() {
        let told = |address: &str| Some(address.to_owned());
        assert_eq!(client("127.0.0.1", &["192.0.2.1"]), told("192.0.2.1"));
        let spoofed = ["198.51.100.9, 192.0.2.1, 10.0.0.7"];
        assert_eq!(client("127.0.0.1", &spoofed), told("192.0.2.1"));
        assert_eq!(
            client("::ffff:127.0.0.1", &["198.51.100.9", "192.0.2.1"]),
            told("192.0.2.1")
        );
        assert_eq!(
            client("203.0.113.5", &["192.0.2.1"]),
            told("203.0.113.5"),
            "no proxy of ours"
        );
        assert_eq!(client("127.0.0.1", &["10.0.0.7"]), told("10.0.0.7"));
    }

    #[test]
    fn what_is_no_address_is_nobody_s() {
        for bad in ["", "unknown", "192.0.2.1:80", "192.0.2.1,", ",", "a b"] {
            assert_eq!(client("127.0.0.1", &[bad]), None, "{bad:?}");
        }
        assert_eq!(client("127.0.0.1", &[]), None);
        assert_eq!(client("", &["192.0.2.1"]), None);
        assert!(Trusted::parse("10.0.0.0/33").is_err());
    }

    #[test]
    fn a_key_in_a_query_is_refused_and_not_repeated() {
        let key = Plaintext::generate().unwrap().expose().to_owned();
        for path in [
            "",
            "/",
            "/?",
            "/?key=tos_1",
            &format!("/{key}"),
            &format!("/?k={}", &key[1..]),
        ] {
            assert!(check_query(path).is_ok(), "{path}");
        }
        for path in [
            format!("/t?key={key}"),
            format!("?a=tos_&{key}#x"),
            format!("/?{key}&{key}"),
            format!("/?k={}", key.replace("tos_", "t%6Fs%5f")),
        ] {
            let error = check_query(&path).unwrap_err();
            assert_eq!(error.reason(), "KEY_MALFORMED");
            assert!(!format!("{error:?}").contains(&key[4..30]));
        }
    }
}
