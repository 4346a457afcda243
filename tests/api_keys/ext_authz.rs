//! Envoy's `Authorization/Check`: the same decision as `GET /authz`, told in Envoy's way.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use hub_client::proto::hub::api_keys::v1::SetRateLimitRequest;
use hub_client::proto::hub::explain::v1::CheckResult;
use hub_proto::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use hub_proto::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use hub_proto::envoy::service::auth::v3::check_response::HttpResponse;
use hub_proto::envoy::service::auth::v3::{
    Address, AttributeContext, CheckRequest, CheckResponse, HeaderValueOption, OkHttpResponse,
    SocketAddress,
};
use prost_types::value::Kind;
use serde_json::Value;
use tonic::Code;

use super::explain::{call, explain, result};
use super::verify::set_base_urls;
use super::{create, new_key, revoke};
use crate::support::{Answer, Backend, TestHub, request};

/// Well-formed, and nobody's.
const UNKNOWN: &str = "tos_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o51xqYGe";
const CLIENT: &str = "192.0.2.7";
/// Where PSA is reached, unless an operator says otherwise.
const PSA: &str = "api.theonepsa.com";

/// A request to a product as it reaches the proxy.
#[derive(Clone)]
pub struct Asked {
    pub product: &'static str,
    pub action: &'static str,
    pub client: &'static str,
    pub host: &'static str,
    pub path: &'static str,
    pub headers: Vec<(&'static str, String)>,
}

/// Reading tickets of PSA with this `authorization`.
pub fn tickets(authorization: &str) -> Asked {
    Asked {
        product: "psa",
        action: "tickets.read",
        client: CLIENT,
        host: PSA,
        path: "/tickets?page=2",
        headers: vec![("authorization", authorization.to_owned())],
    }
}

pub fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

impl Asked {
    /// As Envoy asks: several values of a header are joined.
    pub fn check(&self) -> CheckRequest {
        let mut headers = BTreeMap::<String, String>::new();
        headers.insert(":path".to_owned(), self.path.to_owned());
        headers.insert(":authority".to_owned(), self.host.to_owned());
        for (name, value) in &self.headers {
            let known = headers.entry((*name).to_owned());
            let joined = |known: &mut String| *known = format!("{known},{value}");
            known.and_modify(joined).or_insert(value.clone());
        }
        let http = HttpRequest {
            headers,
            host: self.host.to_owned(),
            path: self.path.to_owned(),
            ..HttpRequest::default()
        };
        let context = [("product", self.product), ("action", self.action)];
        let context = context.map(|(name, value)| (name.to_owned(), value.to_owned()));
        checked(self.client, http, BTreeMap::from(context))
    }

    /// As nginx asks.
    async fn authz(&self, hub: &TestHub) -> Answer {
        let path = format!("/authz?product={}&action={}", self.product, self.action);
        let mut headers = vec![
            ("x-forwarded-for", self.client),
            ("x-forwarded-host", self.host),
            ("x-forwarded-uri", self.path),
        ];
        headers.extend(self.headers.iter().map(|(name, value)| (*name, &**value)));
        request(hub.addr, Method::GET, &path, &headers, "").await
    }
}

fn checked(source: &str, http: HttpRequest, context: BTreeMap<String, String>) -> CheckRequest {
    let address = SocketAddress {
        address: source.to_owned(),
    };
    let source = Peer {
        address: Some(Address {
            socket_address: Some(address),
        }),
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(source),
            request: Some(Request { http: Some(http) }),
            context_extensions: context,
        }),
    }
}

/// The answer to Envoy, which has no key.
pub async fn check(hub: &TestHub, request: CheckRequest) -> CheckResponse {
    let mut client = AuthorizationClient::new(hub.channel().await);
    let answer = client.check(request).await.unwrap();
    let call_id = answer.metadata().get("x-request-id").cloned().unwrap();
    let answer = answer.into_inner();
    assert_eq!(metadata(&answer, "call_id"), call_id.to_str().unwrap());
    answer
}

fn metadata(answer: &CheckResponse, name: &str) -> String {
    let fields = &answer.dynamic_metadata.as_ref().unwrap().fields;
    match fields[name].kind.clone() {
        Some(Kind::StringValue(text)) => text,
        other => panic!("{name}: {other:?}"),
    }
}

/// The headers that are set; each replaces what is there.
fn set(options: &[HeaderValueOption]) -> BTreeMap<String, String> {
    let set = options.iter().map(|option| {
        assert_eq!((option.append, option.append_action), (Some(false), 2));
        let header = option.header.clone().unwrap();
        (header.key, header.value)
    });
    let set: BTreeMap<String, String> = set.collect();
    assert_eq!(set.len(), options.len(), "each once");
    set
}

#[track_caller]
pub fn passed_on(answer: CheckResponse) -> OkHttpResponse {
    assert_eq!(metadata(&answer, "code"), "OK");
    assert_eq!(answer.status.unwrap().code, 0);
    match answer.http_response {
        Some(HttpResponse::OkResponse(ok)) => ok,
        other => panic!("{other:?}"),
    }
}

/// A denial: its status, the code for Envoy, its headers and its body.
pub struct Denial {
    pub status: i32,
    pub code: Code,
    headers: BTreeMap<String, String>,
    problem: Value,
}

impl Denial {
    pub fn reason(&self) -> &str {
        self.problem["reason"].as_str().unwrap()
    }

    pub fn of(answer: CheckResponse) -> Self {
        let (code, call_id) = (metadata(&answer, "code"), metadata(&answer, "call_id"));
        let Some(HttpResponse::DeniedResponse(denied)) = answer.http_response else {
            panic!("passed on: {answer:?}");
        };
        let problem: Value = serde_json::from_str(&denied.body).unwrap();
        assert_eq!(problem["reason"], code);
        assert_eq!(problem["callId"], call_id);
        let denial = Denial {
            status: denied.status.unwrap().code,
            code: answer.status.unwrap().code.into(),
            headers: set(&denied.headers),
            problem,
        };
        assert_eq!(denial.problem["status"], denial.status);
        assert_ne!(denial.code, Code::Ok);
        denial
    }
}

/// Asks in both ways, and tells how Envoy is denied; the other way, it is the same.
pub async fn denied(hub: &TestHub, asked: &Asked) -> Denial {
    let denial = Denial::of(check(hub, asked.check()).await);
    let answer = asked.authz(hub).await;
    assert_eq!(i32::from(answer.status.as_u16()), denial.status);
    let mut problem = answer.json();
    problem["callId"] = denial.problem["callId"].clone();
    assert_eq!(problem, denial.problem);
    for (name, value) in &denial.headers {
        assert_eq!(answer.header(name), value, "{name}");
    }
    for name in ["x-ratelimit-remaining", "retry-after", "www-authenticate"] {
        let told = denial.headers.get(name).map_or("", |value| value);
        assert_eq!(answer.header(name), told, "{name}");
    }
    assert!(!answer.headers.contains_key("x-hub-key-id"));
    denial
}

/// The same, as status and reason.
async fn told(hub: &TestHub, asked: &Asked) -> (i32, String) {
    let denial = denied(hub, asked).await;
    (denial.status, denial.reason().to_owned())
}

both_databases! {
    async fn a_request_is_passed_on_with_who_calls_and_without_the_key(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let key = new_key("ours", &["psa:tickets.*", "crm:deals.read"]);
        let made = create(&admin, key).await.unwrap();
        let key_id = made.api_key.unwrap().key_id;
        let mut asked = tickets(&bearer(&made.plaintext));
        for name in ["x-hub-key-id", "x-hub-tenant-id", "x-hub-scopes"] {
            asked.headers.push((name, "spoofed".to_owned()));
            asked.headers.push((name, "spoofed again".to_owned()));
        }
        let answer = check(&hub, asked.check()).await;
        assert_eq!(metadata(&answer, "key_id"), key_id);
        let ok = passed_on(answer);
        let identity = [
            ("x-hub-key-id", &*key_id),
            ("x-hub-scopes", "psa:tickets.* crm:deals.read"),
            ("x-hub-tenant-id", &*hub.first_tenant().id),
        ];
        let identity = identity.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(set(&ok.headers), BTreeMap::from(identity.clone()));
        assert_eq!(ok.headers_to_remove, ["authorization"]);
        let rate = set(&ok.response_headers_to_add);
        assert_eq!((&*rate["x-ratelimit-limit"], &*rate["x-ratelimit-remaining"]), ("100", "99"));
        assert!(rate.contains_key("x-ratelimit-reset") && rate.len() == 3, "{rate:?}");

        let answer = asked.authz(&hub).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-ratelimit-remaining"), "98", "both ways are counted together");
        for (name, value) in identity {
            assert_eq!(answer.header(&name), value);
        }
    }

    async fn of_a_key_of_all_tenants_no_tenant_is_told_and_none_stays(hub: TestHub) {
        let operator = hub.client(&hub.operator_key);
        let mut key = new_key("robot", &["psa:tickets.read"]);
        key.all_tenants = true;
        let key = create(&operator, key).await.unwrap().plaintext;
        let mut asked = tickets(&bearer(&key));
        asked.headers.push(("x-hub-tenant-id", "tnt_spoofed".to_owned()));
        let ok = passed_on(check(&hub, asked.check()).await);
        assert_eq!(set(&ok.headers).len(), 2);
        assert_eq!(ok.headers_to_remove, ["x-hub-tenant-id", "authorization"]);
    }

    async fn what_is_no_key_is_denied_as_by_authz(hub: TestHub) {
        let (one, two) = (hub.key("", &["psa:*"]).await, hub.key("", &["psa:*"]).await);
        for (authorization, reason) in [
            ("", "KEY_MISSING"),
            ("Bearer ", "KEY_MISSING"),
            (&*bearer(UNKNOWN), "KEY_NOT_RECOGNIZED"),
            (&*bearer(&one[1..]), "KEY_MALFORMED"),
            (&*one, "KEY_MALFORMED"),
            (&*format!("Basic {one}"), "KEY_MALFORMED"),
        ] {
            let denial = denied(&hub, &tickets(authorization)).await;
            assert_eq!((denial.status, denial.reason()), (401, reason), "{authorization}");
            assert_eq!(denial.code, Code::Unauthenticated);
            assert_eq!(denial.headers["www-authenticate"], "Bearer");
            assert_eq!(denial.headers["content-type"], "application/problem+json");
            assert_eq!(denial.problem["keyId"], "");
        }
        let asked = tickets(&format!("{},{}", bearer(&one), bearer(&two)));
        assert_eq!(told(&hub, &asked).await, (401, "KEY_MALFORMED".to_owned()));
        let mut asked = tickets(&bearer(&one));
        asked.headers.push(("authorization", bearer(&two)));
        let denial = Denial::of(check(&hub, asked.check()).await);
        assert_eq!((denial.status, denial.reason()), (401, "KEY_MALFORMED"));
        assert_eq!(asked.authz(&hub).await.json()["reason"], "KEY_MALFORMED");
        let mut asked = tickets(&bearer(&one));
        asked.headers.push(("x-api-key", two));
        assert_eq!(told(&hub, &asked).await, (401, "KEY_MALFORMED".to_owned()));
        for authorization in ["", &bearer(&one)] {
            let mut asked = tickets(authorization);
            asked.path = "/tickets?key=tos_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o51xqYGe";
            assert_eq!(told(&hub, &asked).await, (401, "KEY_MALFORMED".to_owned()), "in a URL");
        }
    }

    async fn what_a_key_may_not_do_is_denied_as_by_authz(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let mut office = new_key("office", &["psa:*"]);
        office.allowed_cidrs = vec!["10.0.0.0/8".to_owned()];
        let office = create(&admin, office).await.unwrap().plaintext;
        let short = create(&admin, new_key("short", &["psa:*"])).await.unwrap();
        let reads = hub.key("", &["psa:tickets.read"]).await;
        let crm = hub.key("", &["crm:*"]).await;
        passed_on(check(&hub, tickets(&bearer(&short.plaintext)).check()).await);
        revoke(&admin, &short.api_key.unwrap().key_id, "leaked").await.unwrap();
        let elsewhere = Asked { host: "crm.example.com", ..tickets(&bearer(&reads)) };
        let writes = Asked { action: "tickets.write", ..tickets(&bearer(&reads)) };
        for (asked, reason) in [
            (tickets(&bearer(&short.plaintext)), "KEY_REVOKED"),
            (tickets(&bearer(&office)), "IP_NOT_ALLOWED"),
            (tickets(&bearer(&crm)), "PRODUCT_MISMATCH"),
            (elsewhere, "BASE_URL_MISMATCH"),
            (writes, "SCOPE_MISSING"),
        ] {
            let denial = denied(&hub, &asked).await;
            assert_eq!((denial.status, denial.reason()), (403, reason));
            assert_eq!(denial.code, Code::PermissionDenied);
            assert_eq!(denial.headers["x-ratelimit-limit"], "100");
            let named = denial.problem["metadata"].as_object().unwrap();
            assert!(!named.is_empty(), "{reason}");
            let missing = if reason == "SCOPE_MISSING" { "psa:tickets.write" } else { "" };
            let told = named.get("missingScope").and_then(Value::as_str);
            assert_eq!(told.unwrap_or_default(), missing);
        }
        passed_on(check(&hub, tickets(&bearer(&reads)).check()).await);
        let inside = Asked { client: "10.1.2.3", ..tickets(&bearer(&office)) };
        passed_on(check(&hub, inside.check()).await);
    }

    async fn a_denial_is_explained_by_the_id_that_envoy_is_told(hub: TestHub) {
        let admin = hub.client(&hub.first_tenant().admin_key);
        let key = bearer(&hub.key("", &["psa:tickets.read"]).await);
        let asked = Asked { action: "tickets.write", ..tickets(&key) };
        let answer = check(&hub, asked.check()).await;
        let explained = explain(&admin, call(&metadata(&answer, "call_id"))).await.unwrap();
        assert_eq!(result(&explained, "KEY_ACTION"), CheckResult::Fail);
        assert_eq!(result(&explained, "KEY_IP"), CheckResult::Pass);
    }

    async fn too_many_requests_are_denied_with_the_status_of_the_product(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let made = create(&admin, new_key("slow", &["psa:*"])).await.unwrap();
        let key_id = made.api_key.unwrap().key_id;
        let limit = SetRateLimitRequest { key_id, requests_per_minute: 1 };
        admin.api_keys().set_rate_limit(limit).await.unwrap();
        let asked = tickets(&bearer(&made.plaintext));
        passed_on(check(&hub, asked.check()).await);
        let denial = denied(&hub, &asked).await;
        assert_eq!((denial.status, denial.reason()), (429, "RATE_LIMITED"));
        assert_eq!(denial.code, Code::ResourceExhausted);
        assert_eq!(denial.headers["x-ratelimit-remaining"], "0");
        assert_ne!(denial.headers["retry-after"], "0");
        set_base_urls(&hub, "psa", &[], 403).await;
        let denial = denied(&hub, &asked).await;
        assert_eq!((denial.status, denial.reason()), (403, "RATE_LIMITED"));
        assert_eq!(denial.code, Code::PermissionDenied);
        assert!(denial.headers.contains_key("retry-after"));
        hub.clock.advance(Duration::from_secs(120));
        passed_on(check(&hub, asked.check()).await);
    }

    async fn the_address_is_what_envoy_saw_and_not_what_the_client_says(backend: Backend) {
        let hub = TestHub::options(backend)
            .config(|config| config.trusted_proxies = "127.0.0.0/8, 10.0.0.0/8".into())
            .start()
            .await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let mut office = new_key("office", &["psa:*"]);
        office.allowed_cidrs = vec!["192.0.2.0/24".to_owned()];
        let key = bearer(&create(&admin, office).await.unwrap().plaintext);
        let is_allowed = async |source: &'static str, forwarded: &[&str]| {
            let mut asked = Asked { client: source, ..tickets(&key) };
            let forwarded = forwarded.iter().map(|value| ("x-forwarded-for", (*value).to_owned()));
            asked.headers.extend(forwarded);
            check(&hub, asked.check()).await.status.unwrap().code == 0
        };
        assert!(is_allowed(CLIENT, &[]).await);
        assert!(is_allowed("::ffff:192.0.2.7", &[]).await);
        assert!(is_allowed(CLIENT, &["198.51.100.1"]).await, "Envoy is asked by the client itself");
        assert!(!is_allowed("198.51.100.1", &["192.0.2.7"]).await, "the client wrote it");
        assert!(is_allowed("10.0.0.7", &["192.0.2.7"]).await, "a proxy before Envoy wrote it");
        assert!(is_allowed("10.0.0.7", &["198.51.100.1, 192.0.2.7, 10.0.0.7"]).await);
        assert!(!is_allowed("10.0.0.7", &["192.0.2.7, 198.51.100.1"]).await);
        for nobody in ["", "/run/envoy.sock", "192.0.2.7:80", "192.0.2.7, 192.0.2.7"] {
            assert!(!is_allowed(nobody, &[]).await, "{nobody:?}");
        }
        for nobody in ["", "unknown", "192.0.2.7:80"] {
            assert!(!is_allowed("10.0.0.7", &[nobody]).await, "{nobody:?}");
        }
    }

    async fn an_envoy_that_is_not_trusted_is_not_believed(backend: Backend) {
        let hub = TestHub::options(backend)
            .manual_clock()
            .config(|config| config.trusted_proxies = String::new())
            .start()
            .await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let mut office = new_key("office", &["psa:*"]);
        office.allowed_cidrs = vec!["192.0.2.0/24".to_owned()];
        let key = create(&admin, office).await.unwrap().plaintext;
        let asked = tickets(&bearer(&key));
        assert_eq!(told(&hub, &asked).await, (403, "IP_NOT_ALLOWED".to_owned()));
    }
}
