//! Errors over HTTP, in the JSON of the Connect protocol.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hub_core::error::{CORE, Error};
use prost::Message;
use serde::Serialize;
use serde_json::Value as Json;
use tonic::{Code, Status};
use tonic_types::{StatusExt, pb};

use super::json::Transcoder;
use crate::call::Call;
use crate::explain::Explainer;
use crate::rpc_log::Record;

const SUPPORTED: &str = "application/json, application/proto, application/grpc, \
                         application/grpc-web";

/// A request that never became a gRPC request.
pub(super) struct Refusal {
    http: StatusCode,
    error: Error,
    allow: Option<HeaderValue>,
    /// What the answer says beside.
    pub(super) headers: Box<HeaderMap>,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::new(http_status(error.code()), error)
    }
}

impl Refusal {
    pub(super) fn new(http: StatusCode, error: Error) -> Self {
        Refusal {
            http,
            error,
            allow: None,
            headers: Box::default(),
        }
    }

    /// The same with the headers of the answer in whose place it is.
    pub(super) fn with(self, headers: HeaderMap) -> Self {
        let headers = Box::new(headers);
        Refusal { headers, ..self }
    }

    /// The answer, logged and counted like any other.
    pub(super) fn answer(
        self,
        explainer: &Explainer,
        transcoder: &Transcoder,
        call: &Call,
        path: &str,
    ) -> Response {
        let record = Record::begin(call, path);
        let explained = explainer.explain(&Status::from(self.error), call, record.method_name());
        record.finish(explained.status.code(), &explained.reason);
        let mut response = error_response(&explained.status, *self.headers, transcoder);
        *response.status_mut() = self.http;
        if let Some(allow) = self.allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        if self.http == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            let accept = HeaderValue::from_static("application/json, application/proto");
            response.headers_mut().insert(header::ACCEPT, accept);
        }
        response
    }
}

/// An error of the gRPC stack, with the other headers of its answer.
pub(super) fn from_grpc(
    status: &Status,
    mut headers: HeaderMap,
    transcoder: &Transcoder,
) -> Response {
    for name in [
        Status::GRPC_STATUS,
        Status::GRPC_MESSAGE,
        Status::GRPC_STATUS_DETAILS,
    ] {
        headers.remove(name);
    }
    error_response(status, headers, transcoder)
}

fn error_response(status: &Status, mut headers: HeaderMap, transcoder: &Transcoder) -> Response {
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    if status.code() == Code::Unauthenticated {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    let wait = status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay);
    if let Some(wait) = wait {
        headers.insert(
            header::RETRY_AFTER,
            HeaderValue::from(wait.as_millis().div_ceil(1000) as u64),
        );
    }
    let mut response = Response::new(Body::from(body(status, transcoder)));
    *response.status_mut() = http_status(status.code());
    *response.headers_mut() = headers;
    response
}

/// An error as the Connect protocol writes it.
#[derive(Serialize)]
struct Failure<'a> {
    code: &'static str,
    message: &'a str,
    details: Vec<Detail<'a>>,
}

#[derive(Serialize)]
struct Detail<'a> {
    #[serde(rename = "type")]
    name: &'a str,
    value: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    debug: Option<Json>,
}

fn body(status: &Status, transcoder: &Transcoder) -> Vec<u8> {
    let details = pb::Status::decode(status.details())
        .unwrap_or_default()
        .details;
    let details = details.iter().map(|detail| Detail {
        name: detail.type_url.rsplit('/').next().unwrap_or_default(),
        value: STANDARD_NO_PAD.encode(&detail.value),
        debug: transcoder.unpacked(detail),
    });
    let (code, message) = (code(status.code()), status.message());
    let failure = Failure {
        code,
        message,
        details: details.collect(),
    };
    // Strings and maps always have JSON.
    serde_json::to_vec(&failure).unwrap_or_default()
}

pub(super) fn needs_http2() -> Refusal {
    let message = "gRPC needs HTTP/2. Use HTTP/2, or POST JSON to the same URL.";
    let error = Error::new(Code::Unimplemented, CORE, "NOT_IMPLEMENTED", message);
    Refusal::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, error)
}

pub(super) fn method_not_allowed(method: &Method) -> Refusal {
    let method: String = method.as_str().chars().take(20).collect();
    let message = format!("This URL takes POST, not {method}. POST the request as JSON.");
    let error = Error::new(Code::Unimplemented, CORE, "NOT_IMPLEMENTED", message);
    let allow = Some(HeaderValue::from_static("POST"));
    Refusal {
        allow,
        ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, error)
    }
}

pub(super) fn content_type(found: &str) -> Refusal {
    let found: String = found.chars().take(60).collect();
    let found = if found.is_empty() {
        "none".to_owned()
    } else {
        found
    };
    let message = format!("The content type is {found}, but the hub reads {SUPPORTED}. Set it.");
    let error = Error::new(Code::InvalidArgument, CORE, "FIELD_INVALID", message)
        .with("fields", "content-type")
        .with("contentType", found);
    Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error)
}

pub(super) fn compressed() -> Refusal {
    let message = "The body is compressed. Send it without content-encoding.";
    let error = Error::new(Code::Unimplemented, CORE, "NOT_IMPLEMENTED", message);
    Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error)
}

pub(super) fn stream(method: &str) -> Refusal {
    let message =
        format!("{method} is a stream, which plain JSON does not carry. Use gRPC or gRPC-Web.");
    let error =
        Error::new(Code::Unimplemented, CORE, "NOT_IMPLEMENTED", message).with("method", method);
    Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error)
}

/// The table of the Connect protocol.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
    }
}

fn code(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "canceled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}
