//! The tables of the core.

use crate::storage::Migrations;

/// Tables of the journal and of the tenants.
pub fn migrations() -> Migrations {
    Migrations {
        domain: "core",
        sqlite: crate::migrations!(
            "../../../../migrations/core/sqlite",
            "0001_journal",
            "0002_replays",
            "0004_configuration",
            "0005_log",
            "0006_replays",
            "0007_jobs",
            "0008_processes",
        ),
        postgres: crate::migrations!(
            "../../../../migrations/core/postgres",
            "0001_journal",
            "0002_replays",
            "0003_identities",
            "0004_configuration",
            "0005_log",
            "0006_replays",
            "0007_jobs",
            "0008_processes",
        ),
    }
}
