//! Unary JSON over HTTP at the same URLs as gRPC: the Connect protocol
//! (<https://connectrpc.com/docs/protocol>), and clear answers to what is neither.
//!
//! The layer turns a JSON request into a gRPC request and the answer back, so that keys, limits,
//! errors and logs are those of gRPC. What it refuses itself is an error of the same form.

mod json;
mod refusal;

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hub_core::error::{CORE, Error};
use hub_core::limits::Limits;
use prost_reflect::MethodDescriptor;
use tonic::{Code, Status};

use crate::admission::Gate;
use crate::call::Call;
use crate::explain::Explainer;
use crate::{unexplained, unknown};
use json::Transcoder;
use refusal::Refusal;

/// A gRPC frame: one byte of flags, four of length.
const FRAME_HEAD_BYTES: usize = 5;

/// What the layer needs.
#[derive(Clone)]
pub struct Bridge {
    methods: Arc<HashMap<String, MethodDescriptor>>,
    transcoder: Arc<Transcoder>,
    explainer: Explainer,
    gate: Gate,
    limits: Arc<Limits>,
}

/// How the messages of a request are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Json,
    Proto,
}

impl Bridge {
    /// Over all methods of the contract and the health service.
    pub fn new(explainer: Explainer, gate: Gate, limits: Arc<Limits>) -> Result<Self, String> {
        let transcoder = Transcoder::new()?;
        let methods = transcoder.methods();
        Ok(Bridge {
            methods: Arc::new(methods),
            transcoder: Arc::new(transcoder),
            explainer,
            gate,
            limits,
        })
    }
}

/// The layer.
pub async fn bridge(State(bridge): State<Bridge>, request: Request, next: Next) -> Response {
    let kind = match bridge.kind(&request) {
        Ok(None) => return next.run(request).await,
        Ok(Some(kind)) => Ok(kind),
        Err(refusal) => Err(refusal),
    };
    let call = Call::of(&request);
    let path = request.uri().path().to_owned();
    let (parts, body) = request.into_parts();
    let asked = match kind {
        Ok((method, encoding)) => {
            let read = bridge.message(&method, encoding, &parts.headers, body);
            read.await.map(|message| (method, encoding, message))
        }
        Err(refusal) => Err(refusal),
    };
    let answered = match asked {
        Ok((method, encoding, message)) => {
            let response = next.run(grpc(parts, &message)).await;
            bridge.answer(&method, encoding, response).await
        }
        Err(mut refusal) => {
            // It does not come to admission, and is told what is left of its limit all the same.
            if let Some(left) = bridge.gate.left_of_refused(&parts).await {
                left.write(&mut refusal.headers);
            }
            Err(refusal)
        }
    };
    answered.unwrap_or_else(|refusal| {
        refusal.answer(&bridge.explainer, &bridge.transcoder, &call, &path)
    })
}

impl Encoding {
    fn content_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/json",
            Encoding::Proto => "application/proto",
        }
    }
}

impl Bridge {
    /// None is gRPC or gRPC-Web, which others serve.
    fn kind(&self, request: &Request) -> Result<Option<(MethodDescriptor, Encoding)>, Refusal> {
        let path = request.uri().path();
        let content_type = request.headers().get(header::CONTENT_TYPE);
        let content_type = content_type
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let plain = content_type.split(';').next().unwrap_or_default().trim();
        match plain.to_ascii_lowercase().as_str() {
            "application/grpc" | "application/grpc+proto" => {
                return match request.version() {
                    Version::HTTP_2 => Ok(None),
                    _ => Err(refusal::needs_http2()),
                };
            }
            "application/grpc-web"
            | "application/grpc-web+proto"
            | "application/grpc-web-text"
            | "application/grpc-web-text+proto" => return Ok(None),
            _ => {}
        }
        let method = self.methods.get(path);
        let Some(method) = method else {
            let error = unknown::error(path);
            return Err(Refusal::new(StatusCode::NOT_FOUND, error));
        };
        if request.method() != Method::POST {
            return Err(refusal::method_not_allowed(request.method()));
        }
        let encoding = match plain {
            "application/json" => Encoding::Json,
            "application/proto" => Encoding::Proto,
            _ => return Err(refusal::content_type(plain)),
        };
        if method.is_client_streaming() || method.is_server_streaming() {
            return Err(refusal::stream(path.trim_start_matches('/')));
        }
        let coding = request.headers().get(header::CONTENT_ENCODING);
        if coding.is_some_and(|coding| coding != "identity") {
            return Err(refusal::compressed());
        }
        Ok(Some((method.clone(), encoding)))
    }

    /// The encoded request.
    async fn message(
        &self,
        method: &MethodDescriptor,
        encoding: Encoding,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Bytes, Refusal> {
        let body = self.read(headers, body, encoding).await?;
        match encoding {
            Encoding::Proto => Ok(body),
            Encoding::Json => Ok(self.transcoder.to_proto(&method.input(), &body)?),
        }
    }

    /// The answer of gRPC in the encoding of the request.
    async fn answer(
        &self,
        method: &MethodDescriptor,
        encoding: Encoding,
        response: Response,
    ) -> Result<Response, Refusal> {
        let (mut parts, body) = response.into_parts();
        if let Some(status) = Status::from_header_map(&parts.headers) {
            return Ok(refusal::from_grpc(&status, parts.headers, &self.transcoder));
        }
        let Ok(collected) = body.collect().await else {
            return Err(Refusal::from(broken()).with(parts.headers));
        };
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let bytes = collected.to_bytes();
        if let Some(status) = Status::from_header_map(&trailers)
            && status.code() != Code::Ok
        {
            return Ok(refusal::from_grpc(&status, parts.headers, &self.transcoder));
        }
        let message = unframe(bytes).ok_or_else(broken);
        let body = message.and_then(|message| match encoding {
            Encoding::Proto => Ok(message),
            Encoding::Json => self.transcoder.to_json(&method.output(), message),
        });
        let body = match body {
            Ok(body) => body,
            Err(error) => return Err(Refusal::from(error).with(parts.headers)),
        };
        add_trailers(&mut parts.headers, &trailers);
        let kind = HeaderValue::from_static(encoding.content_type());
        parts.headers.insert(header::CONTENT_TYPE, kind);
        Ok(Response::from_parts(parts, Body::from(body)))
    }

    /// The whole body, within the limit of its encoding and the time of a call.
    async fn read(
        &self,
        headers: &HeaderMap,
        body: Body,
        encoding: Encoding,
    ) -> Result<Bytes, Refusal> {
        let limit = match encoding {
            Encoding::Json => self.limits.json_bytes_max,
            Encoding::Proto => self.limits.message_bytes_max,
        };
        let told = headers.get(header::CONTENT_LENGTH);
        let told: Option<u64> = told.and_then(|told| told.to_str().ok()?.parse().ok());
        if told.is_some_and(|told| told > limit as u64) {
            return Err(unexplained::too_large(told, limit as u64).into());
        }
        let read = Limited::new(body, limit).collect();
        match tokio::time::timeout(self.limits.request_timeout, read).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                Err(unexplained::too_large(None, limit as u64).into())
            }
            Ok(Err(_)) => Err(unexplained::deadline(Code::Cancelled, "cancelled").into()),
            Err(_) => Err(unexplained::deadline(Code::DeadlineExceeded, "deadline").into()),
        }
    }
}

fn broken() -> Error {
    Error::internal("the answer to a JSON call was no gRPC answer")
}

/// The same request over gRPC.
fn grpc(mut parts: Parts, message: &[u8]) -> Request {
    parts.version = Version::HTTP_2;
    to_grpc(&mut parts.headers);
    Request::from_parts(parts, Body::from(frame(message)))
}

/// The headers of the same request over gRPC.
fn to_grpc(headers: &mut HeaderMap) {
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::CONNECTION);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    let timeout = headers.remove("connect-timeout-ms");
    let timeout = timeout.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let timeout = timeout.map(|ms| format!("{}m", ms.min(99_999_999)));
    if let Some(value) = timeout.and_then(|text| HeaderValue::from_str(&text).ok()) {
        headers.insert("grpc-timeout", value);
    }
}

/// Trailers of a unary call become headers `trailer-…`.
fn add_trailers(headers: &mut HeaderMap, trailers: &HeaderMap) {
    let known = [
        Status::GRPC_STATUS,
        Status::GRPC_MESSAGE,
        Status::GRPC_STATUS_DETAILS,
    ];
    for (name, value) in trailers.iter().filter(|(name, _)| !known.contains(name)) {
        if let Ok(name) = HeaderName::try_from(format!("trailer-{name}")) {
            headers.append(name, value.clone());
        }
    }
}

fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(FRAME_HEAD_BYTES + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

fn unframe(mut bytes: Bytes) -> Option<Bytes> {
    let (head, rest) = bytes.split_at_checked(FRAME_HEAD_BYTES)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?);
    let whole = head[0] == 0 && length as usize == rest.len();
    whole.then(|| bytes.split_off(FRAME_HEAD_BYTES))
}

/// The request is JSON, but not this message.
fn malformed(problem: impl std::fmt::Display) -> Error {
    let message = format!("The JSON is not the request of this method: {problem}. Fix it.");
    Error::new(Code::InvalidArgument, CORE, "FIELD_INVALID", message).with("fields", "")
}
