//! The tenants of the hub, and the products that serve them. The jobs of all domains are seen and
//! controlled here; `hub_core::jobs` works them off.
//!
//! Invariants:
//! - Only operators make tenants; the number of a tenant is never used again.
//! - A tenant, its administrator key and the events that tell of both are one commit.
//! - Every change is one commit: what changed, its entry in the audit log, the event that tells of
//!   it and, where it concerns routing, the epoch from which it holds.
//! - Operators may name any tenant; for all others there is none but their own.

mod addressed;
mod audit_log;
mod changes;
mod error;
mod grpc;
mod integrations;
mod jobs;
mod products;
mod store;
mod tenants;

use std::sync::Arc;

use hub_core::auth::KeyIssuer;
use hub_core::module::{Core, Module};
use hub_core::services::Services;
use hub_proto::server::platform_server::PlatformServer;

pub use store::STATEMENTS;

/// Plugs the domain in; `issuer` makes the first key of a tenant. Its tables are
/// those of `hub_core`.
pub fn module(core: &Core, issuer: Arc<dyn KeyIssuer>) -> Module {
    let service = grpc::Service {
        tenants: tenants::Tenants::new(core, issuer),
        catalog: products::Catalog::new(core),
        integrations: integrations::Integrations::new(core),
        jobs: jobs::Jobs::new(core),
        audit_log: audit_log::AuditLog::new(core),
    };
    let server =
        PlatformServer::new(service).max_decoding_message_size(core.limits.message_bytes_max);
    Module {
        name: "platform",
        services: Services::default().with(server),
        http: axum::Router::new(),
    }
}
