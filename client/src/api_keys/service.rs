//! The layer at work: one request from its headers to its answer.

use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{Request, Response};
use http_body_util::Either;
use tonic::server::NamedService;
use tower_service::Service;

use super::ApiKeyBody;
use super::caller::Caller;
use super::credential;
use super::layer::ApiKeyLayer;
use super::rate::Rate;
use super::refusal::{Refusal, is_grpc};

/// A service behind an [`ApiKeyLayer`].
#[derive(Debug, Clone)]
pub struct ApiKeyService<S> {
    layer: ApiKeyLayer,
    inner: S,
}

impl<S> ApiKeyService<S> {
    pub(super) fn new(layer: ApiKeyLayer, inner: S) -> Self {
        ApiKeyService { layer, inner }
    }
}

impl ApiKeyLayer {
    /// Lets a request through, with its caller and without its key, or says why not.
    async fn admit(&self, parts: &mut Parts) -> Result<Rate, Box<Refusal>> {
        let key = credential::presented(&parts.headers, parts.uri.query())?;
        let question = self.question(key, parts)?;
        let asked = question.clone();
        let decided = self.verifier().decide(asked, self.most_ahead()).await;
        let decision = decided.map_err(|error| Refusal::undecided(&error))?;
        if !decision.told.allowed {
            return Err(Refusal::told(&decision.told, &question));
        }
        credential::strip(&mut parts.headers);
        let mut caller = Caller::new(&decision.told);
        caller.degraded |= decision.degraded;
        parts.extensions.insert(caller);
        Ok(Rate::told(&decision.told, decision.ahead))
    }
}

impl<S, B, R> Service<Request<B>> for ApiKeyService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: 'static,
{
    type Response = Response<ApiKeyBody<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that is ready is called; its clone may not be.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        let layer = self.layer.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let rate = match layer.admit(&mut parts).await {
                Ok(rate) => rate,
                Err(refusal) => {
                    return Ok(refusal.response(is_grpc(&parts.headers), layer.pages_url()));
                }
            };
            let mut response = inner.call(Request::from_parts(parts, body)).await?;
            rate.write(response.headers_mut());
            Ok(response.map(Either::Right))
        })
    }
}

/// For one service of a tonic server.
impl<S: NamedService> NamedService for ApiKeyService<S> {
    const NAME: &'static str = S::NAME;
}
