//! A transaction on either database.

use std::sync::Arc;

use sqlx::{PgPool, Postgres, SqliteConnection};
use tokio::sync::OwnedMutexGuard;

use super::failure::{Done, Failure};
use super::query::{Query, Sql, Target};
use super::sqlite::{Sqlite, Writer};

/// A transaction; dropping it rolls it back.
pub struct Tx {
    kind: Kind,
}

enum Kind {
    Sqlite(OwnedMutexGuard<Writer>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

impl Tx {
    pub(super) async fn begin_sqlite(sqlite: &Arc<Sqlite>) -> Done<Tx> {
        let mut writer = sqlite.writer().await?;
        writer.begin().await?;
        Ok(Tx {
            kind: Kind::Sqlite(writer),
        })
    }

    /// In a task of its own: a caller that goes away before the answer to BEGIN would leave the
    /// connection within a transaction that the driver does not know of, and what the pool's next
    /// user believes committed would not be.
    pub(super) async fn begin_postgres(pool: &PgPool) -> Done<Tx> {
        let pool = pool.clone();
        let beginning = tokio::spawn(async move { pool.begin().await });
        let begun = beginning.await.map_err(|_| sqlx::Error::WorkerCrashed)?;
        Ok(Tx {
            kind: Kind::Postgres(begun?),
        })
    }

    /// A statement of this transaction.
    pub fn query(&mut self, sql: Sql) -> Query<'_> {
        match &mut self.kind {
            Kind::Sqlite(writer) => Query::new(sql, Target::Sqlite(&mut writer.connection)),
            Kind::Postgres(tx) => Query::new(sql, Target::Postgres(tx)),
        }
    }

    /// Makes it durable. Work that also tells what happened ends in `Journal::commit` instead.
    pub async fn commit(self) -> Result<(), Failure> {
        match self.kind {
            Kind::Sqlite(mut writer) => writer.commit().await,
            Kind::Postgres(tx) => Ok(tx.commit().await?),
        }
    }

    /// The journal appends through the connection itself.
    pub(crate) fn into_parts(self) -> TxParts {
        match self.kind {
            Kind::Sqlite(writer) => TxParts::Sqlite(writer),
            Kind::Postgres(tx) => TxParts::Postgres(tx),
        }
    }
}

pub(crate) enum TxParts {
    Sqlite(OwnedMutexGuard<Writer>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

impl Writer {
    pub(crate) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }
}
