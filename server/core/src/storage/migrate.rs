//! The tables of each domain, in order, each once.

use std::collections::HashSet;
use std::fmt;

use sqlx::migrate::{MigrateError, MigrationType, Migrator};
use sqlx::{Connection, PgPool, SqlSafeStr, SqliteConnection};

use super::sqlite;
use super::{Db, Kind, Options, postgres, sqlite_path};

/// A domain's migrations for both databases, embedded in the program.
pub struct Migrations {
    /// Domain; its history is in the table `_migrations_<domain>`.
    pub domain: &'static str,
    /// Files of `migrations/<domain>/sqlite`.
    pub sqlite: &'static [Migration],
    /// Files of `migrations/<domain>/postgres`.
    pub postgres: &'static [Migration],
}

/// A file of migrations.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// Its name without `.sql`: the version with four digits, `_`, what it brings.
    pub file: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// The files of a folder, embedded: `migrations!("../../../migrations/core/sqlite", "0001_log")`.
/// The folder is seen from the file that says so, which names all of them.
#[macro_export]
macro_rules! migrations {
    ($folder:literal, $($file:literal),+ $(,)?) => {
        &[$($crate::storage::Migration {
            file: $file,
            text: include_str!(concat!($folder, "/", $file, ".sql")),
        }),+]
    };
}

impl Migration {
    fn version(&self) -> i64 {
        let version = self.file.split('_').next();
        version.and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }

    /// What it brings, in words.
    fn description(&self) -> String {
        let name = self.file.split_once('_').map_or("", |(_, name)| name);
        name.replace('_', " ")
    }

    fn known(&self) -> sqlx::migrate::Migration {
        let (version, description) = (self.version(), self.description().into());
        let text = self.text.into_sql_str();
        sqlx::migrate::Migration::new(version, description, MigrationType::Simple, text, false)
    }
}

impl Migrations {
    fn table(&self) -> String {
        format!("_migrations_{}", self.domain)
    }

    fn of(&self, postgres: bool) -> &'static [Migration] {
        if postgres { self.postgres } else { self.sqlite }
    }
}

/// How the tables of one domain compare with what this program knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// The domain.
    pub domain: &'static str,
    /// Version of the database; 0 = it has no tables of the domain.
    pub database: i64,
    /// Version of this program.
    pub program: i64,
    /// What is to be done: version and name of each migration.
    pub pending: Vec<(i64, String)>,
    /// The database has migrations that this program does not know.
    pub newer: bool,
}

impl Schema {
    /// Whether there is nothing to do.
    pub fn is_current(&self) -> bool {
        self.pending.is_empty() && !self.newer
    }

    fn compare(migrations: &Migrations, postgres: bool, applied: &HashSet<i64>) -> Schema {
        let known = migrations.of(postgres);
        let versions: HashSet<i64> = known.iter().map(Migration::version).collect();
        let pending = known
            .iter()
            .filter(|migration| !applied.contains(&migration.version()))
            .map(|migration| (migration.version(), migration.description()));
        Schema {
            domain: migrations.domain,
            database: applied.iter().copied().max().unwrap_or(0),
            program: versions.iter().copied().max().unwrap_or(0),
            pending: pending.collect(),
            newer: !applied.is_subset(&versions),
        }
    }
}

/// `core is at version 3 in the database and at 5 in this hub`.
impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Schema {
            domain,
            database,
            program,
            ..
        } = self;
        match self.database {
            0 => write!(
                f,
                "{domain} has no tables in the database and is at version {program} in this hub"
            ),
            _ => write!(
                f,
                "{domain} is at version {database} in the database and at {program} in this hub"
            ),
        }
    }
}

/// Refuses a database that a newer hub migrated, naming both versions.
pub fn refuse_newer(schemas: &[Schema]) -> Result<(), String> {
    let newer = named(schemas, |schema| schema.newer);
    if newer.is_empty() {
        return Ok(());
    }
    Err(format!(
        "the database was migrated by a newer hub: {newer}. Start that newer hub, or restore a \
         backup from before the upgrade"
    ))
}

/// As [`refuse_newer`], and a database that has not all tables yet is refused too.
pub fn refuse_other(schemas: &[Schema]) -> Result<(), String> {
    refuse_newer(schemas)?;
    let older = named(schemas, |schema| !schema.pending.is_empty());
    if older.is_empty() {
        return Ok(());
    }
    Err(format!(
        "the schema of the database is older than this hub: {older}. Run `hub migrate` with the \
         same settings, then start again"
    ))
}

fn named(schemas: &[Schema], which: impl Fn(&Schema) -> bool) -> String {
    let named = schemas.iter().filter(|schema| which(schema));
    named
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// How a database compares, without changing it: no file is made, and an SQLite file may be in use.
pub async fn schemas(options: &Options, migrations: &[Migrations]) -> Result<Vec<Schema>, String> {
    if let Some(path) = sqlite_path(&options.url) {
        if !path.exists() {
            let nothing = HashSet::new();
            let compare = |one| Schema::compare(one, false, &nothing);
            return Ok(migrations.iter().map(compare).collect());
        }
        let mut connection = sqlite::look(&path).await?;
        return compare_sqlite(&mut connection, migrations).await;
    }
    let pool = postgres::open(options).await?;
    let compared = compare_postgres(&pool, migrations).await;
    pool.close().await;
    compared
}

pub(super) async fn compare_sqlite(
    connection: &mut SqliteConnection,
    migrations: &[Migrations],
) -> Result<Vec<Schema>, String> {
    let mut compared = Vec::new();
    for one in migrations {
        let failed = |error: sqlx::Error| unreadable(one, &error);
        let there = "select count(*) from sqlite_master where type = 'table' and name = $1";
        let (there,): (i64,) = sqlx::query_as(there)
            .bind(one.table())
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?;
        let applied = match there {
            0 => Vec::new(),
            _ => {
                let text = format!("select version from {} where success", one.table());
                let query = sqlx::query_as(sqlx::AssertSqlSafe(text));
                query.fetch_all(&mut *connection).await.map_err(failed)?
            }
        };
        compared.push(Schema::compare(one, false, &versions(applied)));
    }
    Ok(compared)
}

async fn compare_postgres(pool: &PgPool, migrations: &[Migrations]) -> Result<Vec<Schema>, String> {
    let mut compared = Vec::new();
    for one in migrations {
        let failed = |error: sqlx::Error| unreadable(one, &error);
        let (there,): (bool,) = sqlx::query_as("select to_regclass($1) is not null")
            .bind(one.table())
            .fetch_one(pool)
            .await
            .map_err(failed)?;
        let applied = match there {
            false => Vec::new(),
            true => {
                let text = format!("select version from {} where success", one.table());
                let query = sqlx::query_as(sqlx::AssertSqlSafe(text));
                query.fetch_all(pool).await.map_err(failed)?
            }
        };
        compared.push(Schema::compare(one, true, &versions(applied)));
    }
    Ok(compared)
}

fn versions(rows: Vec<(i64,)>) -> HashSet<i64> {
    rows.into_iter().map(|(version,)| version).collect()
}

fn unreadable(migrations: &Migrations, error: &sqlx::Error) -> String {
    let domain = migrations.domain;
    format!("cannot read which tables of {domain} the database has: {error}")
}

impl Db {
    /// How the tables compare with what this program knows.
    pub async fn schemas(&self, migrations: &[Migrations]) -> Result<Vec<Schema>, String> {
        match &self.kind {
            Kind::Sqlite(sqlite) => {
                let mut writer = sqlite.writer().await.map_err(|error| error.to_string())?;
                compare_sqlite(writer.connection(), migrations).await
            }
            Kind::Postgres(pool) => compare_postgres(pool, migrations).await,
        }
    }
}

pub(super) async fn run(db: &Db, migrations: &Migrations) -> Result<(), String> {
    let domain = migrations.domain;
    let source = migrations.of(db.is_postgres());
    let mut migrator = Migrator::with_migrations(source.iter().map(Migration::known).collect());
    migrator.dangerous_set_table_name(migrations.table());
    let done = match &db.kind {
        Kind::Sqlite(sqlite) => {
            let mut writer = sqlite.writer().await.map_err(|error| error.to_string())?;
            migrator.run(writer.connection()).await
        }
        Kind::Postgres(pool) => on_postgres(&migrator, pool).await,
    };
    done.map_err(|error| format!("cannot migrate the tables of {domain}: {error}"))
}

/// On a connection that is closed afterwards: rewriting a table may take longer than a statement
/// of the server may. What waits for a lock still gives up, so that it does not stop the traffic.
async fn on_postgres(migrator: &Migrator, pool: &PgPool) -> Result<(), MigrateError> {
    let mut connection = pool.acquire().await?.detach();
    sqlx::raw_sql("set statement_timeout = 0")
        .execute(&mut connection)
        .await?;
    let done = migrator.run(&mut connection).await;
    // The migrator's lock ends with the connection, whatever came of it.
    let _ = connection.close().await;
    done
}
