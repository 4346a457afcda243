//! The tables of each domain, in order, each once.

use sqlx::migrate::Migrator;

use super::{Db, Kind};

/// A domain's migrations for both databases, embedded in the program.
pub struct Migrations {
    /// Domain; its history is in the table `_migrations_<domain>`.
    pub domain: &'static str,
    /// Files of `migrations/<domain>/sqlite`.
    pub sqlite: Migrator,
    /// Files of `migrations/<domain>/postgres`.
    pub postgres: Migrator,
}

pub(super) async fn run(db: &Db, migrations: &Migrations) -> Result<(), String> {
    let domain = migrations.domain;
    let table = format!("_migrations_{domain}");
    let source = if db.is_postgres() {
        &migrations.postgres
    } else {
        &migrations.sqlite
    };
    let mut migrator = Migrator::with_migrations(source.iter().cloned().collect());
    migrator.dangerous_set_table_name(table);
    let done = match &db.kind {
        Kind::Sqlite(sqlite) => {
            let mut writer = sqlite.writer().await.map_err(|error| error.to_string())?;
            migrator.run(writer.connection()).await
        }
        Kind::Postgres(pool) => migrator.run(pool).await,
    };
    done.map_err(|error| format!("cannot migrate the tables of {domain}: {error}"))
}
