//! The side of a call between processes that answers it.

use std::future::Future;

use axum::Router;
use axum::routing::post;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hub_core::auth::{self, Caller};
use prost::Message;
use tonic::codegen::{BoxStream, http};
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// Serves a method that [`super::unary`] calls: `answer` gets the caller, for whom another process
/// vouches, and what is asked. Only processes of this hub are admitted to it.
pub(crate) fn serve<Q, A, S, F>(path: &'static str, answer: S) -> Router
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
    S: Fn(Caller, Q) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<A, Status>> + Send + 'static,
{
    route(path, move |request| {
        let answering = Answering(answer.clone());
        let codec = ProstCodec::<A, Q>::default();
        async move { Grpc::new(codec).unary(answering, request).await }
    })
}

/// The same for a method with a stream each way.
pub(crate) fn serve_streams<Q, A, S, F>(path: &'static str, open: S) -> Router
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
    S: Fn(Caller, Streaming<Q>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<BoxStream<A>, Status>> + Send + 'static,
{
    route(path, move |request| {
        let answering = Answering(open.clone());
        let codec = ProstCodec::<A, Q>::default();
        async move { Grpc::new(codec).streaming(answering, request).await }
    })
}

fn route<F>(
    path: &'static str,
    answer: impl Fn(axum::extract::Request) -> F + Clone + Send + Sync + 'static,
) -> Router
where
    F: Future<Output = http::Response<tonic::body::Body>> + Send + 'static,
{
    let answer = move |request| answer(request).map(|answer| answer.map(axum::body::Body::new));
    Router::new().route(path, post(answer))
}

struct Answering<S>(S);

impl<Q, A, S, F> UnaryService<Q> for Answering<S>
where
    Q: Send + 'static,
    S: Fn(Caller, Q) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<A, Status>> + Send + 'static,
{
    type Response = A;
    type Future = BoxFuture<'static, Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let answer = self.0.clone();
        async move {
            let caller = auth::caller(&request)?;
            let answered = answer(caller, request.into_inner()).await;
            answered.map(Response::new)
        }
        .boxed()
    }
}

impl<Q, A, S, F> StreamingService<Q> for Answering<S>
where
    Q: Send + 'static,
    S: Fn(Caller, Streaming<Q>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<BoxStream<A>, Status>> + Send + 'static,
{
    type Response = A;
    type ResponseStream = BoxStream<A>;
    type Future = BoxFuture<'static, Result<Response<BoxStream<A>>, Status>>;

    fn call(&mut self, request: Request<Streaming<Q>>) -> Self::Future {
        let open = self.0.clone();
        async move {
            let caller = auth::caller(&request)?;
            let opened = open(caller, request.into_inner()).await;
            opened.map(Response::new)
        }
        .boxed()
    }
}
