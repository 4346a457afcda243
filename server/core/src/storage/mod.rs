//! One SQL text on SQLite and PostgreSQL.
//!
//! A store function writes `tx.query(SQL).bind(id).all().await?` and never names a database; where
//! the texts must differ, [`Sql::each`] keeps the two side by side. All bounds of the drivers are
//! in `query.rs`.
//!
//! Invariants:
//! - On SQLite whoever holds the writer's lock is the only one of the process that writes (the
//!   sequencer does it through a connection of its own), and a lock file keeps other processes out.
//! - A transaction that is dropped before its commit is rolled back before the next one begins.
//! - Durability is asserted at start: WAL with `synchronous=FULL`, or `synchronous_commit` and
//!   `fsync` on.

pub mod backup;
mod checkpointer;
mod failure;
mod migrate;
mod postgres;
mod query;
mod row;
mod sqlite;
mod tx;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::PgPool;

pub use failure::Failure;
pub use migrate::{Migration, Migrations, Schema, refuse_newer, refuse_other, schemas};
pub use query::{Bind, Query, Record, Sql};
pub use tx::Tx;
pub(crate) use tx::TxParts;

use crate::error::Result;
use query::Target;

/// How to open a database.
#[derive(Debug, Clone)]
pub struct Options {
    /// `sqlite:PATH` or `postgres://…`.
    pub url: String,
    /// Connections that read (SQLite), or all connections (PostgreSQL).
    pub connections_max: u32,
    /// Largest size of the SQLite file in bytes; 0 = as large as the disk allows.
    pub size_bytes_max: u64,
}

/// A database; cheap to clone.
#[derive(Clone)]
pub struct Db {
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Sqlite(Arc<Sqlite>),
    Postgres(PgPool),
}

/// The file that `sqlite:PATH` names.
pub fn sqlite_path(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("sqlite:")?;
    Some(PathBuf::from(path.trim_start_matches("//")))
}

impl Db {
    /// Opens the database and asserts that a commit means on disk.
    pub async fn open(options: &Options) -> Result<Db, String> {
        let kind = if let Some(path) = sqlite_path(&options.url) {
            Kind::Sqlite(Arc::new(Sqlite::open(path, options).await?))
        } else {
            Kind::Postgres(postgres::open(options).await?)
        };
        Ok(Db { kind })
    }

    /// The same database by connections of one's own.
    pub(crate) fn over(pool: PgPool) -> Db {
        Db {
            kind: Kind::Postgres(pool),
        }
    }

    /// A statement that only reads.
    pub fn query(&self, sql: Sql) -> Query<'_> {
        match &self.kind {
            Kind::Sqlite(sqlite) => Query::new(sql, Target::SqliteRead(&sqlite.read)),
            Kind::Postgres(pool) => Query::new(sql, Target::PostgresPool(pool)),
        }
    }

    /// Begins a transaction that may write. On SQLite it holds the only writer: keep it short.
    pub async fn begin(&self) -> Result<Tx, Failure> {
        match &self.kind {
            Kind::Sqlite(sqlite) => Tx::begin_sqlite(sqlite).await,
            Kind::Postgres(pool) => Tx::begin_postgres(pool).await,
        }
    }

    /// Brings the tables of one domain up to date.
    pub async fn migrate(&self, migrations: &Migrations) -> Result<(), String> {
        migrate::run(self, migrations).await
    }

    /// True on PostgreSQL.
    pub fn is_postgres(&self) -> bool {
        matches!(self.kind, Kind::Postgres(_))
    }

    /// Folder of the SQLite file.
    pub fn folder(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Sqlite(sqlite) => sqlite.path.parent(),
            Kind::Postgres(_) => None,
        }
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), Failure> {
        self.query(Sql::same("select 1"))
            .optional::<(i32,)>()
            .await
            .map(|_| ())
    }

    pub(crate) fn sqlite(&self) -> Option<&Arc<Sqlite>> {
        match &self.kind {
            Kind::Sqlite(sqlite) => Some(sqlite),
            Kind::Postgres(_) => None,
        }
    }

    pub(crate) fn postgres(&self) -> Option<&PgPool> {
        match &self.kind {
            Kind::Postgres(pool) => Some(pool),
            Kind::Sqlite(_) => None,
        }
    }

    /// Closes all connections; SQLite merges its write-ahead log into the file.
    pub async fn close(&self) {
        match &self.kind {
            Kind::Sqlite(sqlite) => sqlite.close().await,
            Kind::Postgres(pool) => pool.close().await,
        }
    }
}

pub(crate) use sqlite::{Sqlite, Writer};
