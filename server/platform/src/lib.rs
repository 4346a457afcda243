//! The tenants of the hub, and the products that serve them.
//!
//! Invariants:
//! - Only operators make tenants; the number of a tenant is never used again.
//! - A tenant, its administrator key and the events that tell of both are one commit.
//! - Every tenant has all [`products`] until product subscriptions can be changed.

mod error;
mod grpc;
mod tenants;

use std::sync::Arc;

use hub_core::auth::KeyIssuer;
use hub_core::module::{Core, Module};
pub use hub_core::products;
use hub_proto::server::platform_server::PlatformServer;
use tonic::service::Routes;

/// Plugs the domain in; `issuer` makes the first key of a tenant. It has no tables of its own.
pub fn module(core: &Core, issuer: Arc<dyn KeyIssuer>) -> Module {
    let service = grpc::Service {
        tenants: tenants::Tenants::new(core, issuer),
    };
    let server =
        PlatformServer::new(service).max_decoding_message_size(core.limits.message_bytes_max);
    // Unknown methods are answered by the server, once for all domains.
    Module {
        name: "platform",
        router: Routes::new(server).into_axum_router().reset_fallback(),
    }
}
