//! Every request gets an id, and every answer tells it.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, Entry};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;

use crate::telemetry::trace::Trace;

/// Header of every answer, HTTP pages included.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request as the transport sees it; in the extensions of the request.
#[derive(Debug, Clone)]
pub struct Call {
    /// Id, `req_…`.
    pub id: Arc<str>,
    /// When it arrived.
    pub started: Instant,
    /// The trace that it belongs to.
    pub trace: Trace,
}

impl Call {
    /// A call that starts now; these are its headers.
    pub fn begin(headers: &HeaderMap) -> Self {
        Call {
            id: hub_core::id::new("req").into(),
            started: Instant::now(),
            trace: Trace::of(headers),
        }
    }

    /// The call of a request, which [`identify`] put there.
    pub fn of(request: &Request) -> Self {
        let known = request.extensions().get().cloned();
        known.unwrap_or_else(|| Call::begin(request.headers()))
    }
}

/// Gives the request an id of ours; one that the caller sent is not believed.
pub async fn identify<F>(mut request: Request, next: impl FnOnce(Request) -> F) -> Response
where
    F: Future<Output = Response>,
{
    if let Entry::Occupied(mut credentials) = request.headers_mut().entry(AUTHORIZATION) {
        // Whoever shows the request, in a panic say, does not show the key.
        let all = credentials.iter_mut();
        all.for_each(|credential| credential.set_sensitive(true));
    }
    let call = Call::begin(request.headers());
    let value = HeaderValue::from_str(&call.id).ok();
    request.extensions_mut().insert(call);
    let mut response = next(request).await;
    if let Some(value) = value {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}
