//! The gRPC services of the domains, by name.
//!
//! A router finds them too, but copies the service and boxes its answer several times for each
//! call. A service of the contract is called straight; what takes other ways, gRPC-Web say, and
//! what only other processes call, is routed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use futures_util::future::BoxFuture;
use http::Request;
use tonic::server::NamedService;
use tower::Service;

/// What a server that tonic generates answers.
type Answer = BoxFuture<'static, Result<http::Response<tonic::body::Body>, Infallible>>;

/// See the module; cheap to clone.
#[derive(Clone, Default)]
pub struct Services {
    named: Arc<HashMap<&'static str, Arc<dyn Serve>>>,
    router: Router,
}

/// A service that can be shared.
trait Serve: Send + Sync {
    fn serve(&self, request: Request<Body>) -> Answer;
}

impl<S> Serve for S
where
    S: Service<
            Request<Body>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
            Future = Answer,
        >,
    S: Clone + Send + Sync,
{
    fn serve(&self, request: Request<Body>) -> Answer {
        // What tonic generates is always ready.
        self.clone().call(request)
    }
}

impl Services {
    /// These and one more, as tonic generates it.
    #[must_use]
    pub fn with<S>(self, service: S) -> Self
    where
        S: Service<
                Request<Body>,
                Response = http::Response<tonic::body::Body>,
                Error = Infallible,
                Future = Answer,
            >,
        S: NamedService + Clone + Send + Sync + 'static,
    {
        let mut named = (*self.named).clone();
        named.insert(S::NAME, Arc::new(service.clone()));
        let path = format!("/{}/{{*method}}", S::NAME);
        Services {
            named: Arc::new(named),
            router: self.router.route_service(&path, service),
        }
    }

    /// These and what a router has, whose fallback is the one of all.
    #[must_use]
    pub fn routed(self, router: Router) -> Self {
        Services {
            router: self.router.merge(router),
            ..self
        }
    }

    /// These and others.
    #[must_use]
    pub fn merge(self, other: Services) -> Self {
        let mut named = (*self.named).clone();
        named.extend(other.named.iter().map(|(name, one)| (*name, one.clone())));
        Services {
            named: Arc::new(named),
            router: self.router.merge(other.router),
        }
    }

    /// A router for all of them.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Calls the service that the path names.
    pub async fn call(&self, request: Request<Body>) -> Response {
        let name = request.uri().path().split('/').nth(1);
        let named = name.and_then(|name| self.named.get(name));
        let answered = match named {
            Some(service) => service.serve(request).await,
            // Boxed: it is large, and the rest of a call is not.
            None => return Box::pin(routed(self.router(), request)).await,
        };
        match answered {
            Ok(response) => response.map(Body::new),
            Err(never) => match never {},
        }
    }
}

/// A router is always ready, and never fails.
pub async fn routed(mut router: Router, request: Request<Body>) -> Response {
    match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
