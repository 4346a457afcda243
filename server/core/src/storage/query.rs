//! A statement with its arguments for either database: the one place with the drivers' bounds.

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{
    Arguments, Encode, FromRow, PgConnection, PgPool, Postgres, Sqlite, SqliteConnection,
    SqlitePool, Type,
};

use super::failure::{Done, Failure};

/// A constant SQL text; arguments are `$1`, `$2`, … on both databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sql {
    sqlite: &'static str,
    postgres: &'static str,
}

impl Sql {
    /// The same text for both.
    pub const fn same(text: &'static str) -> Sql {
        Sql {
            sqlite: text,
            postgres: text,
        }
    }

    /// Two texts that do the same.
    pub const fn each(sqlite: &'static str, postgres: &'static str) -> Sql {
        Sql { sqlite, postgres }
    }

    /// The text for one database; tests prepare all of them.
    pub const fn text(&self, postgres: bool) -> &'static str {
        if postgres { self.postgres } else { self.sqlite }
    }
}

/// A value that both databases take.
pub trait Bind:
    Send + for<'q> Encode<'q, Sqlite> + Type<Sqlite> + for<'q> Encode<'q, Postgres> + Type<Postgres>
{
}

impl<T> Bind for T where
    T: Send
        + for<'q> Encode<'q, Sqlite>
        + Type<Sqlite>
        + for<'q> Encode<'q, Postgres>
        + Type<Postgres>
{
}

/// A row that both databases give.
pub trait Record:
    Send + Unpin + for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow>
{
}

impl<T> Record for T where
    T: Send + Unpin + for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow>
{
}

pub(crate) enum Target<'e> {
    SqliteRead(&'e SqlitePool),
    Sqlite(&'e mut SqliteConnection),
    PostgresPool(&'e PgPool),
    Postgres(&'e mut PgConnection),
}

enum Values {
    Sqlite(SqliteArguments),
    Postgres(PgArguments),
}

/// A statement and its arguments, about to run.
pub struct Query<'e> {
    sql: Sql,
    values: Values,
    target: Target<'e>,
    refused: Option<sqlx::Error>,
}

/// Runs `$call` on the query built for whichever database it is for.
macro_rules! run {
    ($self:ident, $make:path, $call:ident) => {{
        if let Some(error) = $self.refused {
            return Err(Failure(error));
        }
        let (sqlite, postgres) = ($self.sql.sqlite, $self.sql.postgres);
        match ($self.values, $self.target) {
            (Values::Sqlite(values), Target::SqliteRead(pool)) => $make(sqlite, values)
                .$call(pool)
                .await
                .map_err(Failure)
                .map(Into::into),
            (Values::Sqlite(values), Target::Sqlite(connection)) => $make(sqlite, values)
                .$call(connection)
                .await
                .map_err(Failure)
                .map(Into::into),
            (Values::Postgres(values), Target::PostgresPool(pool)) => $make(postgres, values)
                .$call(pool)
                .await
                .map_err(Failure)
                .map(Into::into),
            (Values::Postgres(values), Target::Postgres(connection)) => $make(postgres, values)
                .$call(connection)
                .await
                .map_err(Failure)
                .map(Into::into),
            _ => Err(Failure(sqlx::Error::Protocol(
                "arguments of the other database".into(),
            ))),
        }
    }};
}

impl<'e> Query<'e> {
    pub(crate) fn new(sql: Sql, target: Target<'e>) -> Self {
        let values = match target {
            Target::SqliteRead(_) | Target::Sqlite(_) => Values::Sqlite(SqliteArguments::default()),
            _ => Values::Postgres(PgArguments::default()),
        };
        Query {
            sql,
            values,
            target,
            refused: None,
        }
    }

    /// Binds the next argument.
    #[must_use]
    pub fn bind<T: Bind>(mut self, value: T) -> Self {
        let added = match &mut self.values {
            Values::Sqlite(values) => values.add(value),
            Values::Postgres(values) => values.add(value),
        };
        if let Err(error) = added {
            self.refused = Some(sqlx::Error::Encode(error));
        }
        self
    }

    /// All rows.
    pub async fn all<T: Record>(self) -> Done<Vec<T>> {
        run!(self, sqlx::query_as_with, fetch_all)
    }

    /// The row, if there is one.
    pub async fn optional<T: Record>(self) -> Done<Option<T>> {
        run!(self, sqlx::query_as_with, fetch_optional)
    }

    /// The row.
    pub async fn one<T: Record>(self) -> Done<T> {
        self.optional()
            .await?
            .ok_or(Failure(sqlx::Error::RowNotFound))
    }

    /// Runs it and counts the rows it changed.
    pub async fn execute(self) -> Done<u64> {
        let changed: Changed = run!(self, sqlx::query_with, execute)?;
        Ok(changed.0)
    }
}

struct Changed(u64);

impl From<sqlx::sqlite::SqliteQueryResult> for Changed {
    fn from(result: sqlx::sqlite::SqliteQueryResult) -> Self {
        Changed(result.rows_affected())
    }
}

impl From<sqlx::postgres::PgQueryResult> for Changed {
    fn from(result: sqlx::postgres::PgQueryResult) -> Self {
        Changed(result.rows_affected())
    }
}
