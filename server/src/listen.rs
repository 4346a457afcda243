//! The stack of the one port, as a column: what a request meets, from the outside in.
//!
//! gRPC over HTTP/2, which is most of it, goes straight to the inner part; each layer of a router
//! copies and boxes everything below it for every call.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, Request, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use http_body::Body as HttpBody;
use hub_core::limits::Limits;
use hub_core::services::{Services, routed};
use tonic_reflection::server::Builder as Reflection;
use tonic_web::GrpcWebLayer;
use tower::{BoxError, ServiceBuilder};

use crate::admission::{self, Gate};
use crate::answers::Desk;
use crate::connect::{self, Bridge};
use crate::explain::Explainer;
use crate::known::Known;
use crate::pages::{self, Pages};
use crate::{answers, bounds, call, unknown};

/// Descriptors of everything that is served, and of the error details, which reflection needs so
/// that grpcurl prints them decoded.
pub fn descriptor_sets() -> [&'static [u8]; 3] {
    [
        hub_proto::DESCRIPTOR_SET,
        tonic_types::pb::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
    ]
}

/// What the column needs.
pub struct Parts {
    /// The services of the domains.
    pub services: Services,
    /// What the domains serve as plain HTTP.
    pub http: Router,
    /// The health service.
    pub health: Services,
    /// Decides who may call what.
    pub gate: Gate,
    /// Completes errors.
    pub explainer: Explainer,
    /// The plain pages.
    pub pages: Pages,
    /// The bounds.
    pub limits: Arc<Limits>,
}

/// The whole server; cheap to clone.
#[derive(Clone)]
pub struct Stack(Arc<Column>);

struct Column {
    inner: Arc<Inner>,
    /// The services, below the inner part.
    services: Services,
    /// Whatever is not plain gRPC, and what makes gRPC of it.
    other: Router,
}

impl Stack {
    /// Of these parts. Errors: a descriptor that cannot be read.
    pub fn new(parts: Parts) -> Result<Self, String> {
        let http = parts
            .http
            .layer(from_fn_with_state(parts.gate.clone(), admission::introduce))
            // As calls are bounded below.
            .layer(from_fn_with_state(
                parts.limits.request_timeout,
                bounds::plain,
            ));
        let bridge = Bridge::new(
            parts.explainer.clone(),
            parts.gate.clone(),
            parts.limits.clone(),
        )?;
        let inner = Arc::new(Inner {
            desk: Desk::new(parts.explainer, parts.gate.authenticator.clone()),
            longest: parts.limits.request_timeout,
            gate: parts.gate,
        });
        let column = ServiceBuilder::new()
            // JSON becomes gRPC first, so that everything below knows one protocol only. What is
            // neither is told so here.
            .layer(from_fn_with_state(bridge, connect::bridge))
            // gRPC-Web is the same frames with the trailers in the body.
            .layer(GrpcWebLayer::new())
            .map_request(|request: Request<tonic::body::Body>| request.map(Body::new))
            .layer(from_fn_with_state(inner.clone(), translated));
        let services = parts
            .services
            .merge(parts.health)
            .merge(reflection()?)
            .routed(Router::new().fallback(unknown::answer));
        let other = Router::new()
            // For machines and browsers: no key, no gRPC.
            .route("/livez", get(pages::live))
            .route("/readyz", get(pages::ready))
            .route("/metrics", get(pages::metrics))
            .route("/errors/{reason}", get(pages::reason))
            .route("/checks/{code}", get(pages::check))
            .with_state(parts.pages)
            // They decide about the caller themselves.
            .merge(http)
            .fallback_service(services.router().layer(column));
        Ok(Stack(Arc::new(Column {
            inner,
            services,
            other,
        })))
    }

    /// Answers a request.
    pub async fn call<B>(self, request: Request<B>) -> Response
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let Column {
            inner,
            services,
            other,
        } = &*self.0;
        // Outermost: every answer, of a page too, has an id.
        call::identify(request.map(Body::new), async |request| {
            if is_grpc(&request) {
                let next = |request| services.call(request);
                inner.serve(request, next).await
            } else {
                // Boxed: it is large, and the rest of a call is not.
                Box::pin(routed(other.clone(), request)).await
            }
        })
        .await
    }
}

/// Whether nothing has to be translated. Pages have no dot in the first part of their path, and
/// services have one: a page is never answered as gRPC, whose refusals are 200 to a proxy.
fn is_grpc(request: &Request<Body>) -> bool {
    let service = request.uri().path().split('/').nth(1);
    let is_service = service.is_some_and(|service| service.contains('.'));
    let kind = request.headers().get(header::CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|kind| kind == "application/grpc");
    is_service
        && is_grpc
        && request.version() == Version::HTTP_2
        && request.method() == Method::POST
}

/// What the inner part of the column needs.
struct Inner {
    desk: Desk,
    longest: Duration,
    gate: Gate,
}

impl Inner {
    /// The inner part, where all is gRPC.
    async fn serve<F>(
        &self,
        request: Request<Body>,
        next: impl FnOnce(Request<Body>) -> F,
    ) -> Response
    where
        F: Future<Output = Response>,
    {
        // Above everything that can fail, so that no error leaves without its details, no panic
        // takes the connection down, and each call is logged once with its final status.
        let known = Known::default();
        answers::complete(&self.desk, &known, request, |request| {
            // Before any work is done for the call.
            let crowded = |request: &Request<Body>| known.left(self.gate.left_of_crowded(request));
            bounds::concurrency(request, crowded, |request| {
                // Covers admission too, which may wait for the database.
                bounds::deadline(self.longest, request, |request| {
                    // Last, next to the handlers: nothing reaches them that was not admitted.
                    admission::admit(&self.gate, &known, request, next)
                })
            })
        })
        .await
    }
}

/// The inner part below what makes gRPC of other protocols.
async fn translated(
    State(inner): State<Arc<Inner>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    inner.serve(request, |request| next.run(request)).await
}

/// Both versions: v1alpha is what older tools ask for.
fn reflection() -> Result<Services, String> {
    let builder = || {
        descriptor_sets().into_iter().fold(
            Reflection::configure(),
            Reflection::register_encoded_file_descriptor_set,
        )
    };
    let failed = |error| format!("cannot serve reflection: {error}");
    let v1 = builder().build_v1().map_err(failed)?;
    let v1alpha = builder().build_v1alpha().map_err(failed)?;
    Ok(Services::default().with(v1).with(v1alpha))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_never_asked_as_grpc() {
        let asked = |path: &str, kind: &str| {
            let request = Request::post(path).version(Version::HTTP_2);
            let request = request.header(header::CONTENT_TYPE, kind);
            is_grpc(&request.body(Body::empty()).unwrap())
        };
        let grpc = "application/grpc";
        assert!(asked("/hub.api_keys.v1.ApiKeys/WhoAmI", grpc));
        assert!(asked("/grpc.health.v1.Health/Check", grpc));
        assert!(!asked(
            "/hub.api_keys.v1.ApiKeys/WhoAmI",
            "application/json"
        ));
        for page in [
            "/authz?product=psa&action=a.b",
            "/livez",
            "/errors/A.B",
            "/",
        ] {
            assert!(!asked(page, grpc), "{page}");
        }
    }
}
