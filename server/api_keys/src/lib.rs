//! The keys of the hub: create, change, end and watch them; decide, limit, count and explain what
//! is done with them.
//!
//! Invariants:
//! - The plaintext of a key is in the answer that made it, and nowhere else: stored is its SHA-256,
//!   and no log, error or `Debug` shows it. For a safe retry it is kept sealed for 10 minutes.
//! - A key that was revoked is refused by the next call on the same process, by others when they
//!   see the system log grow, and by all once `Limits::key_cache_ttl` has passed.
//! - Of a request to a product nothing is counted unless everything else allows it. What all
//!   processes let through in a minute is never more than the limit.
//! - No key gives, or ends, rights that it does not have itself.
//! - A call sees the keys of its tenant; one without tenant sees those that serve all tenants.
//! - A key and the event that tells of it are one commit.

mod addresses;
mod authenticate;
mod base_url;
mod cache;
mod calling;
mod change;
mod decision;
mod denials;
mod error;
mod explain;
mod ext_authz;
mod follow;
mod forward_auth;
mod grpc;
mod interned;
mod issue;
mod key;
mod keys;
mod limits;
mod lookup;
mod operator;
mod portions;
mod proxied;
mod rate;
mod revoke;
mod rollup;
mod rotate;
mod scopes;
mod secret;
mod settlement;
mod share;
mod shown;
mod store;
mod sweep;
mod tally;
mod tenant_limits;
#[cfg(test)]
mod tests;
mod unknown;
mod update;
mod usage;
mod verify;
mod watch;

use std::sync::Arc;

use hub_core::auth::Authenticator;
use hub_core::module::{Core, Module};
use hub_core::services::Services;
use hub_proto::server::api_keys_server::ApiKeysServer;

use proxied::Trusted;

pub use key::{Key, Revocation};
pub use keys::{Created, Keys, NewKey, Page};
pub use operator::Replaced;
pub use secret::Plaintext;
pub use store::{Filter, MORE_STATEMENTS, STATEMENTS, migrations};

/// This domain, ready to be served.
pub struct Plugged {
    /// Its service.
    pub module: Module,
    /// Says who is calling.
    pub authenticator: Arc<dyn Authenticator>,
    /// Makes keys for the first start, and for other domains.
    pub keys: Arc<Keys>,
}

/// Plugs the domain in; its tables must be migrated.
pub fn module(core: &Core) -> Result<Plugged, String> {
    let trusted = Trusted::parse(&core.trusted_proxies)
        .map_err(|problem| format!("--trusted-proxies: {problem}"))?;
    let keys = Arc::new(Keys::new(core));
    let service = grpc::Service {
        keys: keys.clone(),
        clock: core.clock.clone(),
    };
    let server =
        ApiKeysServer::new(service).max_decoding_message_size(core.limits.message_bytes_max);
    let envoy = ext_authz::Service::server(&keys, trusted.clone());
    let module = Module {
        name: "api_keys",
        services: Services::default().with(server).with(envoy),
        http: forward_auth::router(&keys, trusted),
    };
    Ok(Plugged {
        module,
        authenticator: keys.clone(),
        keys,
    })
}
