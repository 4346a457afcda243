//! THE list of domains: the only file that names them all.

use axum::Router;
use hub_api_keys::Plugged;
use hub_core::module::{Core, Module};
use hub_core::storage::Db;

/// The RPCs that are built; all others answer NOT_IMPLEMENTED. README's status table says the same.
pub const BUILT: &[&str] = &[
    "hub.api_keys.v1.ApiKeys/CreateApiKey",
    "hub.api_keys.v1.ApiKeys/GetApiKey",
    "hub.api_keys.v1.ApiKeys/ListApiKeys",
    "hub.api_keys.v1.ApiKeys/RevokeApiKey",
    "hub.api_keys.v1.ApiKeys/WhoAmI",
    "hub.event_bus.v1.EventBus/Publish",
    "hub.event_bus.v1.EventBus/PublishStream",
    "hub.event_bus.v1.EventBus/Subscribe",
    "hub.platform.v1.Platform/CreateTenant",
];

/// Whether a method, e.g. `hub.api_keys.v1.ApiKeys/WhoAmI`, is built.
pub fn is_built(method: &str) -> bool {
    BUILT.binary_search(&method).is_ok()
}

/// Brings the tables of all domains up to date.
pub async fn migrate(db: &Db) -> Result<(), String> {
    for migrations in [hub_core::journal::migrations(), hub_api_keys::migrations()] {
        db.migrate(&migrations).await?;
    }
    Ok(())
}

/// The domain of keys, which the others need to know their callers.
pub fn keys(core: &Core) -> Result<Plugged, String> {
    hub_api_keys::module(core)
}

/// The services of all domains.
pub fn services(core: &Core, keys: Plugged) -> Router {
    let modules: [Module; 3] = [
        hub_event_bus::module(core, keys.authenticator),
        hub_platform::module(core, keys.keys),
        keys.module,
    ];
    modules.into_iter().fold(Router::new(), |all, module| {
        tracing::debug!(domain = module.name, "serving");
        all.merge(module.router.reset_fallback())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_sorted_and_of_the_contract() {
        assert!(BUILT.is_sorted());
        for method in BUILT {
            assert!(
                hub_proto::policy::method_policy(&format!("/{method}")).is_some(),
                "{method}"
            );
        }
    }
}
