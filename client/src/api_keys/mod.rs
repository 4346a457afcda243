//! Verification of keys in the service itself: a layer for axum and tonic.

mod cache;
mod caller;
mod credential;
mod layer;
mod question;
mod rate;
mod refusal;
mod service;
#[cfg(test)]
mod tests;
mod verifier;
mod voids;
mod watch;

use bytes::Bytes;
use http_body_util::{Either, Full};

pub use caller::Caller;
pub use layer::ApiKeyLayer;
pub use service::ApiKeyService;
pub use watch::ApiKeyLayerState;

/// Body of an answer: a refusal's, or that of the service behind the layer.
pub type ApiKeyBody<B> = Either<Full<Bytes>, B>;
