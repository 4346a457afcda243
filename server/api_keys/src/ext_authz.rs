//! Envoy's `envoy.service.auth.v3.Authorization/Check`: product and action come from the
//! `context_extensions` of the route, everything else from the request that Envoy holds.
//!
//! Invariant: whatever Envoy sends, and whatever it leaves out, is decided as `GET /authz` would
//! decide it, or denied.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use hub_core::auth::Origin;
use hub_proto::credential::{OTHER_HEADER, joined};
use hub_proto::envoy::service::auth::v3::attribute_context::HttpRequest;
use hub_proto::envoy::service::auth::v3::check_response::HttpResponse;
use hub_proto::envoy::service::auth::v3::{
    self as envoy, AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse,
    HeaderValueOption, HttpStatus, OkHttpResponse, Status as Outcome,
};
use hub_proto::server::authorization_server::{Authorization, AuthorizationServer};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::{Code, Request, Response, Status};

use crate::keys::Keys;
use crate::proxied::{Answer, FORWARDED_FOR, Proxied, Trusted};

/// Largest question, in bytes. Anyone may ask, so it is far below what callers with a key may send:
/// Envoy takes 60 KiB of headers unless it is told otherwise, and needs to send no body.
const CHECK_BYTES_MAX: usize = 256 << 10;
/// Headers that are looked at; of others there may be any number.
static READ: [HeaderName; 3] = [
    header::AUTHORIZATION,
    OTHER_HEADER,
    HeaderName::from_static(FORWARDED_FOR),
];
/// In place of what is no text: present, and nobody's key, address or host.
const UNREADABLE: &str = "?";
/// `OVERWRITE_IF_EXISTS_OR_ADD` of `HeaderValueOption`.
const OVERWRITE: i32 = 2;

/// The service.
pub(crate) struct Service {
    keys: Arc<Keys>,
    trusted: Trusted,
}

impl Service {
    pub fn server(keys: &Arc<Keys>, trusted: Trusted) -> AuthorizationServer<Service> {
        let keys = keys.clone();
        AuthorizationServer::new(Service { keys, trusted })
            .max_decoding_message_size(CHECK_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Authorization for Service {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let origin: Option<&Origin> = request.extensions().get();
        let origin = origin.cloned().unwrap_or_default();
        let attributes = request.into_inner().attributes.unwrap_or_default();
        let proxied = proxied(attributes, origin.client_ip, &self.trusted);
        let answer = self.keys.decide(proxied, origin).await;
        Ok(Response::new(write(&answer, &self.keys.core.public_url)))
    }
}

/// What Envoy asks. What is missing stays empty, and is denied for that.
fn proxied(mut attributes: AttributeContext, peer: Option<IpAddr>, trusted: &Trusted) -> Proxied {
    let mut extension = |name| attributes.context_extensions.remove(name);
    let (product, action) = (extension("product"), extension("action"));
    let source = attributes.source.and_then(|source| source.address);
    let source = source.and_then(|address| address.socket_address);
    let http = attributes.request.and_then(|request| request.http);
    let http = http.unwrap_or_default();
    let headers = headers(&http);
    let source = source.map(|source| source.address);
    let source = source.filter(|address| address.parse::<IpAddr>().is_ok());
    let mut named = source.unwrap_or_else(|| UNREADABLE.to_owned());
    // Envoy stands behind those that the header names.
    if headers.contains_key(FORWARDED_FOR) {
        named = format!("{},{named}", joined(&headers, FORWARDED_FOR));
    }
    let mut proxied = Proxied {
        client: trusted.client(&named, peer),
        headers,
        product: product.unwrap_or_default(),
        action: action.unwrap_or_default(),
        ..Proxied::default()
    };
    if peer.is_some_and(|peer| trusted.contains(peer)) {
        // Envoy always tells one: a request without is at no base URL, not at any.
        proxied.host = match http.host.as_str() {
            "" => UNREADABLE.to_owned(),
            _ => http.host,
        };
        proxied.path = http.path;
    }
    proxied
}

/// Those that are looked at, in whichever of the two ways Envoy tells them.
fn headers(http: &HttpRequest) -> HeaderMap {
    let joined = http.headers.iter();
    let joined = joined.map(|(name, value)| (name, value.as_bytes()));
    let raw = http.header_map.iter().flat_map(|map| &map.headers);
    let raw = raw.map(|header| match header.raw_value.is_empty() {
        true => (&header.key, header.value.as_bytes()),
        false => (&header.key, &*header.raw_value),
    });
    let mut headers = HeaderMap::new();
    for (name, value) in joined.chain(raw) {
        let mut read = READ.iter();
        if let Some(name) = read.find(|read| name.eq_ignore_ascii_case(read.as_str())) {
            let value = HeaderValue::from_bytes(value);
            headers.append(name, value.unwrap_or(HeaderValue::from_static(UNREADABLE)));
        }
    }
    headers
}

fn write(answer: &Answer, public_url: &str) -> CheckResponse {
    let headers = answer.headers();
    let headers = headers.iter().map(|(name, value)| set(name, value));
    let headers = headers.collect();
    let response = match answer.is_allowed() {
        true => HttpResponse::OkResponse(passed_on(answer, headers)),
        false => HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus {
                code: answer.status.into(),
            }),
            headers,
            body: answer.problem(public_url),
        }),
    };
    CheckResponse {
        status: Some(Outcome {
            code: code(answer).into(),
            message: answer.told.hint.clone(),
        }),
        http_response: Some(response),
        dynamic_metadata: Some(metadata(answer)),
    }
}

/// The product learns who calls, and not with which key.
fn passed_on(answer: &Answer, response_headers: Vec<HeaderValueOption>) -> OkHttpResponse {
    let identity = answer.identity();
    let (empty, told): (Vec<_>, Vec<_>) = identity.iter().partition(|(_, value)| value.is_empty());
    // What the caller wrote there must not stay.
    let empty = empty.iter().map(|(name, _)| (*name).to_owned());
    let credential = header::AUTHORIZATION.as_str().to_owned();
    OkHttpResponse {
        headers: told.iter().map(|(name, value)| set(name, value)).collect(),
        headers_to_remove: empty.chain([credential]).collect(),
        response_headers_to_add: response_headers,
    }
}

/// It replaces what is there, for every version of Envoy.
fn set(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(envoy::HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            ..envoy::HeaderValue::default()
        }),
        append: Some(false),
        append_action: OVERWRITE,
    }
}

/// The code of gRPC for the status of the decision; OK alone passes the request on.
fn code(answer: &Answer) -> Code {
    match answer.status {
        _ if answer.is_allowed() => Code::Ok,
        401 => Code::Unauthenticated,
        429 => Code::ResourceExhausted,
        503 => Code::Unavailable,
        500 => Code::Internal,
        _ => Code::PermissionDenied,
    }
}

/// What Envoy's access log can show: the reason, the key and the call that ExplainAccess takes.
fn metadata(answer: &Answer) -> Struct {
    let code = match answer.is_allowed() {
        true => "OK",
        false => &answer.reason,
    };
    let told = &answer.told;
    let fields = [
        ("code", code),
        ("key_id", &told.key_id),
        ("call_id", &told.call_id),
    ];
    let text = |text: &str| Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let fields = fields.map(|(name, value)| (name.to_owned(), text(value)));
    Struct {
        fields: BTreeMap::from(fields),
    }
}
