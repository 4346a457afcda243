//! The tables of the event bus: all its SQL, the tenant first.

pub(crate) mod event_types;
pub(crate) mod positions;
pub(crate) mod progress;
pub(crate) mod seeks;
pub(crate) mod standings;
pub(crate) mod subscription_filters;
pub(crate) mod subscriptions;

use hub_core::storage::{Migrations, Sql};

/// Every statement of this domain, by file, for the test that prepares them.
pub const STATEMENTS: &[&[Sql]] = &[
    event_types::STATEMENTS,
    positions::STATEMENTS,
    standings::STATEMENTS,
    progress::STATEMENTS,
    seeks::STATEMENTS,
    subscription_filters::STATEMENTS,
    subscriptions::STATEMENTS,
];

/// Tables of this domain.
pub fn migrations() -> Migrations {
    Migrations {
        domain: "event_bus",
        sqlite: hub_core::migrations!(
            "../../../migrations/event_bus/sqlite",
            "0001_event_types",
            "0002_subscriptions",
            "0003_consumption",
        ),
        postgres: hub_core::migrations!(
            "../../../migrations/event_bus/postgres",
            "0001_event_types",
            "0002_subscriptions",
            "0003_consumption",
        ),
    }
}
