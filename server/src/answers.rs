//! Everything that leaves as gRPC: errors are completed, panics become INTERNAL, and each call is
//! logged and counted once. The domain of keys is told what was refused behind admission.
//!
//! An error is either the head of the answer (Trailers-Only) or the trailers of a stream that has
//! begun; both pass here, and so do statuses that tonic and the layers below make themselves.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use http_body::{Frame, SizeHint};
use hub_core::auth::{Authenticator, Refusal};
use tonic::Status;

use crate::call::Call;
use crate::explain::{Explained, Explainer};
use crate::known::Known;
use crate::pace;
use crate::rpc_log::Record;
use crate::telemetry::at_work::AtWork;

/// What answers are completed with; cheap to clone.
#[derive(Clone)]
pub struct Desk {
    inner: Arc<Inner>,
}

struct Inner {
    explainer: Explainer,
    authenticator: Arc<dyn Authenticator>,
}

impl Desk {
    /// Completes errors, and tells of refusals of calls that were admitted.
    pub fn new(explainer: Explainer, authenticator: Arc<dyn Authenticator>) -> Self {
        let inner = Inner {
            explainer,
            authenticator,
        };
        Desk {
            inner: Arc::new(inner),
        }
    }
}

/// The layer.
pub async fn complete<F>(
    desk: &Desk,
    known: &Known,
    request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    let call = Call::of(&request);
    let record = Record::begin(&call, request.uri().path());
    // In one piece, as a name for a part of it would be a second place for that part: this is most
    // of what a call takes in memory.
    let answered = AssertUnwindSafe(record.at_work().during(next(request)))
        .catch_unwind()
        .await;
    let mut response = answered.unwrap_or_else(|_| Status::internal(PANICKED).into_http());
    let mut ending = Ending {
        desk: desk.inner.clone(),
        call,
        record,
    };
    ending.record.caller = known.take_caller();
    // Here, so that a panic and a deadline tell it too.
    known.write(response.headers_mut());
    if response.headers().contains_key(Status::GRPC_STATUS) {
        ending.finish(response.headers_mut());
        return response;
    }
    let id = ending.call.id.clone();
    response.map(|inner| {
        let answer = Answer {
            inner,
            at_work: ending.record.at_work(),
            ending: Some(ending),
        };
        pace::watch(Body::new(answer), id)
    })
}

const PANICKED: &str = "a handler panicked";

/// What is left to do when the status of a call is known.
struct Ending {
    desk: Arc<Inner>,
    call: Call,
    record: Record,
}

impl Ending {
    /// Completes the status in `headers`, which are a Trailers-Only head or trailers.
    fn finish(self, headers: &mut HeaderMap) {
        if headers
            .get(Status::GRPC_STATUS)
            .is_some_and(|code| code == "0")
        {
            return self.record.finish(tonic::Code::Ok, "");
        }
        let status = Status::from_header_map(headers)
            .unwrap_or_else(|| Status::internal("an answer ended without a status"));
        let explainer = &self.desk.explainer;
        let explained = explainer.explain(&status, &self.call, self.record.method_name());
        write(&explained, headers);
        self.tell(&explained);
        self.record
            .finish(explained.status.code(), &explained.reason);
    }
}

impl Ending {
    /// Admission tells of those that it refuses itself; who they were, the record does not say.
    fn tell(&self, explained: &Explained) {
        let Some(caller) = &self.record.caller else {
            return;
        };
        let Some(policy) = self.record.method().and_then(|method| method.policy) else {
            return;
        };
        let metadata = explained.metadata.iter();
        let refusal = Refusal {
            call_id: &self.call.id,
            policy,
            reason: &explained.reason,
            metadata: metadata.map(|(key, value)| (&**key, &**value)).collect(),
        };
        self.desk.authenticator.refused_later(caller, refusal);
    }
}

/// Replaces the status in `headers`; other metadata stays.
fn write(explained: &Explained, headers: &mut HeaderMap) {
    headers.remove(Status::GRPC_MESSAGE);
    headers.remove(Status::GRPC_STATUS_DETAILS);
    if explained.status.add_header(headers).is_err() {
        headers.insert(Status::GRPC_STATUS, HeaderValue::from_static("13"));
    }
}

/// The body of an answer, whose trailers are completed as they pass.
struct Answer {
    inner: Body,
    at_work: Arc<AtWork>,
    /// Taken by the trailers; dropped with the body if the caller leaves before.
    ending: Option<Ending>,
}

impl Answer {
    fn failed(&mut self, text: &str) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(ending) = self.ending.take() else {
            return Poll::Ready(None);
        };
        let mut trailers = HeaderMap::new();
        if Status::internal(text).add_header(&mut trailers).is_ok() {
            ending.finish(&mut trailers);
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if this.ending.is_none() {
            return Poll::Ready(None);
        }
        let inner = Pin::new(&mut this.inner);
        let at_work = this.at_work.clone();
        let polled = || at_work.within(|| inner.poll_frame(cx));
        let polled = std::panic::catch_unwind(AssertUnwindSafe(polled));
        match polled {
            Err(_) => this.failed(PANICKED),
            Ok(Poll::Ready(Some(Err(error)))) => {
                tracing::debug!("the body of an answer failed: {error}");
                this.failed("the body of an answer failed")
            }
            Ok(Poll::Ready(Some(Ok(mut frame)))) => {
                if let Some(trailers) = frame.trailers_mut()
                    && let Some(ending) = this.ending.take()
                {
                    ending.finish(trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Ok(Poll::Ready(None)) => this.failed("an answer ended without a status"),
            Ok(Poll::Pending) => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ending.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::middleware::{Next, from_fn};
    use axum::routing::post;
    use http_body_util::BodyExt;
    use hub_core::auth::{self, Caller, Credential};
    use hub_core::clock::Clock;
    use hub_core::error::Error;
    use tonic::Code;
    use tonic_types::StatusExt;
    use tower::ServiceExt;

    use super::*;
    use crate::api_limit::ApiLimit;

    struct Nobody;

    impl Authenticator for Nobody {
        fn authenticate<'a>(&'a self, _: Credential<'a>) -> auth::Answer<'a, Caller> {
            Box::pin(async { Err(Error::draining()) })
        }

        fn recheck<'a>(&'a self, _: &'a Caller) -> auth::Answer<'a, Caller> {
            Box::pin(async { Err(Error::draining()) })
        }
    }

    /// What is left of one frame and then a panic.
    struct Panicking {
        first: Option<Bytes>,
    }

    impl http_body::Body for Panicking {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
            let first = self.first.take().expect("a panic in a stream");
            Poll::Ready(Some(Ok(Frame::data(first))))
        }
    }

    async fn answer(body: impl Fn() -> Body + Clone + Send + Sync + 'static) -> (Bytes, Status) {
        let explainer = Explainer::new(&"http://hub.example".into());
        let desk = Desk::new(explainer, Arc::new(Nobody));
        let handler = post(async move || Response::new(body()));
        let layer = from_fn(move |request: Request, next: Next| {
            let desk = desk.clone();
            async move {
                complete(&desk, &Known::default(), request, |request| {
                    next.run(request)
                })
                .await
            }
        });
        let router = Router::new().route("/hub.x.v1.X/Do", handler).layer(layer);
        let request = Request::post("/hub.x.v1.X/Do").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let head = Status::from_header_map(response.headers());
        let collected = response.into_body().collect().await.unwrap();
        let status = head.or_else(|| Status::from_header_map(collected.trailers()?));
        (collected.to_bytes(), status.unwrap())
    }

    fn assert_internal(status: &Status) {
        assert_eq!(status.code(), Code::Internal, "{status}");
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "INTERNAL");
        assert!(info.metadata["callId"].starts_with("req_"));
        assert!(!status.message().contains("panic"), "{}", status.message());
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_internal() {
        let (body, status) = answer(|| panic!("a panic in a handler")).await;
        assert!(body.is_empty());
        assert_internal(&status);
    }

    #[tokio::test]
    async fn a_call_that_panics_tells_what_is_left_of_the_limit() {
        let caller = Caller {
            key_id: "key_1".into(),
            tenant: None,
            product: None,
            scopes: auth::Scopes::default(),
            all_tenants: true,
            origin: auth::Origin::of_nothing(),
        };
        let limit = ApiLimit::new(10, Clock::manual(0));
        let explainer = Explainer::new(&"http://hub.example".into());
        let (desk, known) = (Desk::new(explainer, Arc::new(Nobody)), Known::default());
        let request = Request::post("/hub.x.v1.X/Do").body(Body::empty()).unwrap();
        let answer = complete(&desk, &known, request, async |_| {
            known.left(limit.take(&caller).0);
            panic!("a panic behind admission")
        });
        let answer = answer.await;
        assert_eq!(answer.headers()["grpc-status"], "13");
        assert_eq!(answer.headers()["x-ratelimit-remaining"], "9");
    }

    #[tokio::test]
    async fn a_stream_that_panics_ends_as_internal_behind_what_it_said() {
        let (body, status) = answer(|| {
            Body::new(Panicking {
                first: Some(Bytes::from_static(b"frame")),
            })
        })
        .await;
        assert_eq!(body, "frame");
        assert_internal(&status);
    }

    #[tokio::test]
    async fn an_answer_that_ends_without_a_status_is_internal() {
        let (body, status) = answer(|| Body::from("frame")).await;
        assert_eq!(body, "frame");
        assert_internal(&status);
    }
}
