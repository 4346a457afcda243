//! Messages, clients and servers of the hub, generated from its protos without protoc.
//!
//! - [`hub`]: messages and clients by package, e.g. `hub::event_bus::v1::PublishResponse` and
//!   `hub::event_bus::v1::event_bus_client::EventBusClient`.
//! - [`server`]: service traits and servers, e.g. `server::event_bus_server::{EventBus,
//!   EventBusServer}`. They decode with [`codec::CheckedCodec`], so that a handler only ever sees
//!   requests within their declared limits, and events that stay encoded ([`wire`]).
//! - [`credential`]: the form of a key, and where a request carries it.
//! - [`envoy`]: what the hub serves to Envoy, which is not of the contract.
//! - [`validate`]: the limits that the protos declare, as code.
//! - [`policy`] and [`reasons`]: what the protos say about callers and errors, as tables.
#![forbid(unsafe_code)]

pub mod codec;
pub mod credential;
pub mod envoy;
pub mod policy;
pub mod reasons;
pub mod validate;
pub mod wire;

/// Descriptors of all protos and their imports, with options, for reflection and JSON.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hub.binpb"));

macro_rules! package {
    ($name:ident, $file:literal) => {
        /// Messages, enums and clients of the package.
        pub mod $name {
            /// Version 1.
            #[allow(missing_docs, clippy::all, clippy::too_many_lines, rustdoc::all)]
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/", $file));
            }
        }
    };
}

/// The packages of the hub, nested as in the protos.
pub mod hub {
    package!(api_keys, "hub.api_keys.v1.rs");
    package!(core, "hub.core.v1.rs");
    package!(entity_sync, "hub.entity_sync.v1.rs");
    package!(event_bus, "hub.event_bus.v1.rs");
    package!(explain, "hub.explain.v1.rs");
    package!(options, "hub.options.v1.rs");
    package!(platform, "hub.platform.v1.rs");
    package!(webhooks, "hub.webhooks.v1.rs");
}

/// Service traits and servers: `event_bus_server`, `webhooks_server`, `api_keys_server`,
/// `entity_sync_server`, `platform_server` and Envoy's `authorization_server`. RPCs that are not
/// implemented answer UNIMPLEMENTED.
#[allow(
    missing_docs,
    clippy::all,
    clippy::too_many_lines,
    rustdoc::all,
    unused_variables
)]
pub mod server {
    include!(concat!(env!("OUT_DIR"), "/server/envoy.service.auth.v3.rs"));
    include!(concat!(env!("OUT_DIR"), "/server/hub.api_keys.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/server/hub.entity_sync.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/server/hub.event_bus.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/server/hub.platform.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/server/hub.webhooks.v1.rs"));
}

/// `Debug` of messages with secrets.
mod redaction {
    /// What is shown of a secret.
    struct Redacted;

    impl std::fmt::Debug for Redacted {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("<redacted>")
        }
    }

    include!(concat!(env!("OUT_DIR"), "/redaction.rs"));
}
