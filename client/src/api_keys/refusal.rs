//! Why a request is refused, as problem+json (RFC 9457) for HTTP and as `google.rpc.Status` for
//! gRPC.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::{Either, Full};
use hub_proto::credential::Fault;
use hub_proto::hub::api_keys::v1::{ErrorReason, VerifyApiKeyResponse};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::ApiKeyBody;
use super::question::Question;
use super::rate::Rate;
use crate::error::{Error, code_of};

const DOMAIN: &str = "hub.api_keys";
const CORE: &str = "hub.core";
/// What a caller has to send.
const EXPECTED: &str = "authorization: Bearer tos_…";
/// Seconds to wait when the hub could not decide.
const UNDECIDED_WAIT: u64 = 1;
/// Longest value of metadata and longest message, in bytes: all details together stay below the
/// 8 KiB of headers that clients of gRPC take.
const VALUE_BYTES_MAX: usize = 512;
const MESSAGE_BYTES_MAX: usize = 1024;

/// An answer in place of the service's; in a box, because most requests are not refused.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    status: StatusCode,
    code: Code,
    domain: &'static str,
    reason: String,
    message: String,
    metadata: BTreeMap<String, String>,
    key_id: String,
    call_id: String,
    retry_after: Option<Duration>,
    /// Whose quota is used up, and what it allows.
    quota: Option<(String, String)>,
    rate: Rate,
    /// Why the hub could not decide, for the service's own log.
    cause: Option<Error>,
}

impl Refusal {
    fn new(status: StatusCode, code: Code, reason: &str, message: impl Into<String>) -> Box<Self> {
        Box::new(Refusal {
            status,
            code,
            domain: DOMAIN,
            reason: reason.to_owned(),
            message: message.into(),
            metadata: BTreeMap::new(),
            key_id: String::new(),
            call_id: String::new(),
            retry_after: None,
            quota: None,
            rate: Rate::default(),
            cause: None,
        })
    }

    /// `KEY_MISSING` or `KEY_MALFORMED`; nothing of the content is told.
    pub(super) fn no_key(fault: Fault) -> Box<Self> {
        let refusal = |reason, message| {
            let (status, code) = (StatusCode::UNAUTHORIZED, Code::Unauthenticated);
            Refusal::new(status, code, reason, message)
        };
        match fault {
            Fault::Missing => {
                let message = format!("The call carries no key. Send `{EXPECTED}`.");
                refusal("KEY_MISSING", message).with("expectedHeader", EXPECTED)
            }
            Fault::Malformed(problem) => {
                let message = format!("{problem}. Send one `{EXPECTED}`, copied whole.");
                refusal("KEY_MALFORMED", message).with("problem", problem)
            }
        }
    }

    /// `FIELD_INVALID`: something of the request is longer than the hub reads.
    pub(super) fn too_long(what: &'static str) -> Box<Self> {
        let message = format!("The {what} is too long. Send a shorter one.");
        let mut refusal = Refusal::new(
            StatusCode::BAD_REQUEST,
            Code::InvalidArgument,
            "FIELD_INVALID",
            message,
        )
        .with("fields", what);
        refusal.domain = CORE;
        refusal
    }

    /// The hub could not decide. What it said is about the service, not about its caller, so the
    /// caller learns only whether to come again.
    pub(super) fn undecided(error: &Error) -> Box<Self> {
        let mut refusal = match error.is_retryable() || error.code() == Code::Cancelled {
            true => {
                let message = "The key cannot be verified now. Send the request again.";
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Refusal::new(status, Code::Unavailable, "STORE_BUSY", message)
            }
            false => {
                let message = "The service is not set up to verify keys. Tell its operator.";
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                Refusal::new(status, Code::Internal, "INTERNAL", message)
            }
        };
        refusal.domain = CORE;
        refusal.cause = Some(error.clone());
        if refusal.code == Code::Unavailable {
            refusal.retry_after = Some(Duration::from_secs(UNDECIDED_WAIT));
            refusal.rate = Rate::retry_after(UNDECIDED_WAIT);
        }
        refusal
    }

    /// What the hub decided.
    pub(super) fn told(told: &VerifyApiKeyResponse, asked: &Question) -> Box<Self> {
        let name = told.reason().as_str_name();
        let reason = name.strip_prefix("ERROR_REASON_").unwrap_or(name);
        let status = u16::try_from(told.http_status).ok();
        let status = status.and_then(|status| StatusCode::from_u16(status).ok());
        // A reason of a newer hub is a refusal all the same.
        let status = status.filter(|status| status.is_client_error());
        let code = match code_of(DOMAIN, reason) {
            Code::Unknown => Code::PermissionDenied,
            code => code,
        };
        let status = status.unwrap_or(StatusCode::FORBIDDEN);
        let mut refusal = Refusal::new(status, code, reason, told.hint.clone());
        refusal.key_id = told.key_id.clone();
        refusal.call_id = told.call_id.clone();
        refusal.rate = Rate::told(told, 0);
        // The hub names it; one of before did not, and what a verifier knows stands in.
        let known = metadata(told, asked).into_iter();
        let known = known.map(|(key, value)| (key.to_owned(), value));
        refusal.metadata = match told.metadata.is_empty() {
            true => known.collect(),
            false => told.metadata.clone(),
        };
        if told.reason() == ErrorReason::RateLimited {
            let header = told.headers.get("Retry-After");
            let seconds = header.and_then(|text| text.parse().ok());
            refusal.retry_after = seconds.map(Duration::from_secs);
            refusal.quota = told.rate_limit.as_ref().map(|limit| {
                let subject = match limit.key_id.as_str() {
                    "" => "tenant".to_owned(),
                    key_id => format!("key:{key_id}"),
                };
                (subject, format!("{} requests in any minute", limit.limit))
            });
        }
        refusal
    }

    fn with(mut self: Box<Self>, key: &'static str, value: &str) -> Box<Self> {
        self.metadata.insert(key.to_owned(), value.to_owned());
        self
    }

    #[cfg(test)]
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// The answer; `pages` is where the hub serves its pages about reasons.
    pub(super) fn response<B>(
        &self,
        is_grpc: bool,
        pages: Option<&str>,
    ) -> Response<ApiKeyBody<B>> {
        let page = pages.map(|url| format!("{url}/errors/{}", self.reason));
        let mut response = match is_grpc {
            true => self.grpc_status(page).into_http(),
            false => self.problem(page.as_deref()),
        };
        self.rate.write(response.headers_mut());
        if let Some(cause) = &self.cause {
            response.extensions_mut().insert(cause.clone());
        }
        response.map(Either::Left)
    }

    fn problem(&self, page: Option<&str>) -> Response<Full<Bytes>> {
        let body = serde_json::json!({
            "metadata": self.metadata,
            "type": page.unwrap_or("about:blank"),
            "title": self.reason,
            "status": self.status.as_u16(),
            "detail": self.message,
            "reason": self.reason,
            "keyId": self.key_id,
            "callId": self.call_id,
        });
        let mut response = Response::new(Full::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        let content_type = HeaderValue::from_static("application/problem+json");
        headers.insert(CONTENT_TYPE, content_type);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    fn grpc_status(&self, page: Option<String>) -> Status {
        let mut details = ErrorDetails::new();
        let values = self.metadata.iter();
        let mut metadata: HashMap<String, String> = values
            .map(|(key, value)| (key.clone(), cut(value, VALUE_BYTES_MAX)))
            .collect();
        if !self.call_id.is_empty() {
            metadata.insert("callId".to_owned(), self.call_id.clone());
        }
        details.set_error_info(self.reason.clone(), self.domain, metadata);
        if let Some((subject, allows)) = &self.quota {
            details.add_quota_failure_violation(subject, allows);
        }
        if self.retry_after.is_some() {
            details.set_retry_info(self.retry_after);
        }
        let message = cut(&self.message, MESSAGE_BYTES_MAX);
        let mut message = format!("{message} [{}]", self.reason);
        if let Some(page) = page {
            message = format!("{message} {page}");
            details.add_help_link(format!("What {} means", self.reason), page);
        }
        Status::with_error_details(self.code, message, details)
    }
}

/// The variables that the contract lists for the reason, as far as a verifier knows them itself.
fn metadata(told: &VerifyApiKeyResponse, asked: &Question) -> Vec<(&'static str, String)> {
    let key_id = ("keyId", told.key_id.clone());
    let product = ("product", asked.product.clone());
    match told.reason() {
        ErrorReason::KeyMissing
        | ErrorReason::KeyMalformed
        | ErrorReason::KeyNotRecognized
        | ErrorReason::Unspecified => vec![],
        ErrorReason::ProductMismatch => {
            vec![key_id, ("keyProducts", products(&told.scopes)), product]
        }
        ErrorReason::BaseUrlMismatch => vec![product, ("host", asked.host.clone())],
        ErrorReason::SubscriptionInactive => vec![product],
        ErrorReason::ScopeMissing => {
            let missing = format!("{}:{}", asked.product, asked.action);
            let held = told.scopes.join(" ");
            vec![key_id, ("missingScope", missing), ("heldScopes", held)]
        }
        ErrorReason::IpNotAllowed => {
            let client = asked.client.map(|client| client.to_string());
            let client = client.unwrap_or_else(|| "unknown".to_owned());
            vec![key_id, ("clientIp", client)]
        }
        ErrorReason::RateLimited => match &told.rate_limit {
            Some(limit) => {
                let reset = limit.reset_time.as_ref();
                let reset = reset.map(ToString::to_string).unwrap_or_default();
                vec![
                    ("limit", limit.limit.to_string()),
                    ("remaining", limit.remaining.to_string()),
                    ("resetAt", reset),
                ]
            }
            None => vec![],
        },
        _ => vec![key_id],
    }
}

/// The products that scopes are for, each once.
fn products(scopes: &[String]) -> String {
    let mut products: Vec<&str> = Vec::new();
    for scope in scopes {
        let product = scope.split(':').next().unwrap_or_default();
        if !products.contains(&product) {
            products.push(product);
        }
    }
    products.join(" ")
}

/// Shortens on a character boundary, and shows that it did.
fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(bytes_max)])
}

/// Whether the answer has to be one of gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}
