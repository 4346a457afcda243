//! THE list of domains: the only file that names them all. Each is a feature of this crate, and the
//! server builds and passes its tests with any of them alone.

use axum::Router;
#[cfg(feature = "api_keys")]
use hub_api_keys as keys_domain;
#[cfg(not(feature = "api_keys"))]
use hub_core::bootstrap as keys_domain;
use hub_core::module::{Core, Module};
use hub_core::services::Services;
use hub_core::storage::{self, Db, Migrations};

pub use keys_domain::{Keys, Plugged, Replaced};

/// The domains that this server is built with.
pub const DOMAINS: &[&str] = &[
    #[cfg(feature = "api_keys")]
    "api_keys",
    #[cfg(feature = "event_bus")]
    "event_bus",
    #[cfg(feature = "platform")]
    "platform",
];

/// The RPCs that are built; all others answer NOT_IMPLEMENTED. README's status table says the same.
pub const BUILT: &[&str] = &[
    "hub.api_keys.v1.ApiKeys/CreateApiKey",
    "hub.api_keys.v1.ApiKeys/ExplainAccess",
    "hub.api_keys.v1.ApiKeys/GetApiKey",
    "hub.api_keys.v1.ApiKeys/GetApiKeyUsage",
    "hub.api_keys.v1.ApiKeys/ListApiKeys",
    "hub.api_keys.v1.ApiKeys/RevokeApiKey",
    "hub.api_keys.v1.ApiKeys/RotateApiKey",
    "hub.api_keys.v1.ApiKeys/SetRateLimit",
    "hub.api_keys.v1.ApiKeys/UpdateApiKey",
    "hub.api_keys.v1.ApiKeys/VerifyApiKey",
    "hub.api_keys.v1.ApiKeys/WatchApiKeys",
    "hub.api_keys.v1.ApiKeys/WhoAmI",
    "hub.event_bus.v1.EventBus/Acknowledge",
    "hub.event_bus.v1.EventBus/Consume",
    "hub.event_bus.v1.EventBus/CreateSubscription",
    "hub.event_bus.v1.EventBus/DeleteSubscription",
    "hub.event_bus.v1.EventBus/EraseEvents",
    "hub.event_bus.v1.EventBus/ExplainEvent",
    "hub.event_bus.v1.EventBus/GetEvent",
    "hub.event_bus.v1.EventBus/GetSubscription",
    "hub.event_bus.v1.EventBus/ListEventTypes",
    "hub.event_bus.v1.EventBus/ListEvents",
    "hub.event_bus.v1.EventBus/ListSubscriptions",
    "hub.event_bus.v1.EventBus/PauseSubscription",
    "hub.event_bus.v1.EventBus/Publish",
    "hub.event_bus.v1.EventBus/PublishStream",
    "hub.event_bus.v1.EventBus/Pull",
    "hub.event_bus.v1.EventBus/PutEventType",
    "hub.event_bus.v1.EventBus/Redeliver",
    "hub.event_bus.v1.EventBus/ResumeSubscription",
    "hub.event_bus.v1.EventBus/SeekSubscription",
    "hub.event_bus.v1.EventBus/Subscribe",
    "hub.event_bus.v1.EventBus/UpdateSubscription",
    "hub.platform.v1.Platform/ControlJob",
    "hub.platform.v1.Platform/CreateTenant",
    "hub.platform.v1.Platform/GetJob",
    "hub.platform.v1.Platform/GetTenant",
    "hub.platform.v1.Platform/ListAuditEntries",
    "hub.platform.v1.Platform/ListIntegrations",
    "hub.platform.v1.Platform/ListJobs",
    "hub.platform.v1.Platform/ListProducts",
    "hub.platform.v1.Platform/ListTenants",
    "hub.platform.v1.Platform/SetIntegration",
    "hub.platform.v1.Platform/SetProductSubscription",
    "hub.platform.v1.Platform/UpdateProduct",
    "hub.platform.v1.Platform/UpdateTenant",
];

/// RPCs beside the contract. Who is calling the domains find out themselves.
pub const BESIDE: &[&str] = &[
    #[cfg(feature = "api_keys")]
    "envoy.service.auth.v3.Authorization/Check",
];

/// Whether a method, e.g. `hub.api_keys.v1.ApiKeys/WhoAmI`, is built.
pub fn is_built(method: &str) -> bool {
    let domain = method.split('.').nth(1).unwrap_or_default();
    DOMAINS.contains(&domain) && BUILT.binary_search(&method).is_ok()
}

/// The tables of all domains, in the order in which they are made.
pub fn migrations() -> Vec<Migrations> {
    Vec::from([
        hub_core::journal::migrations(),
        #[cfg(feature = "api_keys")]
        hub_api_keys::migrations(),
        #[cfg(feature = "event_bus")]
        hub_event_bus::migrations(),
    ])
}

/// Brings the tables of all domains up to date. Those of a newer hub are refused.
pub async fn migrate(db: &Db) -> Result<(), String> {
    let migrations = migrations();
    storage::refuse_newer(&db.schemas(&migrations).await?)?;
    for migrations in migrations {
        db.migrate(&migrations).await?;
    }
    Ok(())
}

/// The domain of keys, which the others need to know their callers.
pub fn keys(core: &Core) -> Result<Plugged, String> {
    keys_domain::module(core)
}

/// What all domains serve: gRPC, and plain HTTP beside it.
pub struct Served {
    /// The services.
    pub services: Services,
    /// The routes of plain HTTP.
    pub http: Router,
}

/// The services of all domains.
#[cfg_attr(
    not(any(feature = "event_bus", feature = "platform")),
    expect(unused_variables, reason = "there is no domain to give it to")
)]
pub fn services(core: &Core, keys: Plugged) -> Served {
    #[cfg(feature = "api_keys")]
    keys.keys.work();
    let modules = Vec::<Module>::from([
        #[cfg(feature = "event_bus")]
        hub_event_bus::module(core, keys.authenticator),
        #[cfg(feature = "platform")]
        hub_platform::module(core, keys.keys),
        keys.module,
    ]);
    let none = Served {
        services: Services::default(),
        http: Router::new(),
    };
    modules.into_iter().fold(none, |all, module| {
        tracing::debug!(domain = module.name, "serving");
        Served {
            services: all.services.merge(module.services),
            http: all.http.merge(module.http),
        }
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
