//! The tables: every statement is understood by both databases, and both have the same tables.

use std::collections::BTreeMap;

use hub_core::journal::{self, HEAD_STATEMENTS, IDENTITY_STATEMENTS, READ_STATEMENTS};
use hub_core::storage::{Db, Options, Sql};
use hub_core::{replay, secrets, tenancy};
use sqlx::sqlite::SqliteConnection;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, SqlStr};

use super::store;
use crate::support::{Backend, Database};

const SQLITE_COLUMNS: &str = "
select t.name, c.name, c.\"notnull\" <> 0 from sqlite_schema t, pragma_table_info(t.name) c
where t.type = 'table' and t.name not like 'sqlite_%'
    and t.name not like '\\_migrations%' escape '\\'";

const POSTGRES_COLUMNS: &str = "
select table_name::text, column_name::text, is_nullable = 'NO' from information_schema.columns
where table_schema = 'public' and table_name not like '\\_migrations%'";

/// All statements that the domains run through the facade.
fn statements() -> Vec<Sql> {
    let lists = [
        HEAD_STATEMENTS,
        IDENTITY_STATEMENTS,
        READ_STATEMENTS,
        tenancy::STATEMENTS,
        secrets::STATEMENTS,
        replay::STATEMENTS,
        hub_api_keys::STATEMENTS,
    ];
    lists.concat()
}

async fn migrated(backend: Backend) -> Database {
    let database = Database::new(backend).await;
    let options = Options {
        url: database.url.clone(),
        connections_max: 2,
        size_bytes_max: 0,
    };
    let db = Db::open(&options).await.unwrap();
    hub_server::modules::migrate(&db).await.unwrap();
    db.close().await;
    database
}

async fn open_sqlite(database: &Database) -> SqliteConnection {
    store::sqlite(database).connect().await.unwrap()
}

/// Whether a column refuses NULL, by table and column.
type Columns = BTreeMap<(String, String), bool>;

fn by_name(rows: Vec<(String, String, bool)>) -> Columns {
    let columns = rows.into_iter();
    columns
        .map(|(table, column, required)| ((table, column), required))
        .collect()
}

#[tokio::test]
async fn sqlite_understands_every_statement() {
    let database = migrated(Backend::Sqlite).await;
    let mut connection = open_sqlite(&database).await;
    for statement in statements() {
        let text = statement.text(false);
        let prepared = connection.prepare(SqlStr::from_static(text)).await;
        assert!(prepared.is_ok(), "{text}\n{prepared:?}");
    }
}

#[tokio::test]
async fn postgres_understands_every_statement() {
    let database = migrated(Backend::Postgres).await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let shared = statements();
    let shared = shared.iter().map(|statement| statement.text(true));
    for text in shared.chain(journal::postgres_statements().iter().copied()) {
        let prepared = connection.prepare(SqlStr::from_static(text)).await;
        assert!(prepared.is_ok(), "{text}\n{prepared:?}");
    }
}

#[tokio::test]
async fn both_databases_have_the_same_tables_columns_and_nullability() {
    let (sqlite, postgres) = (
        migrated(Backend::Sqlite).await,
        migrated(Backend::Postgres).await,
    );
    let rows = sqlx::query_as(SQLITE_COLUMNS)
        .fetch_all(&mut open_sqlite(&sqlite).await)
        .await;
    let sqlite = by_name(rows.unwrap());
    let mut connection = PgConnection::connect(&postgres.url).await.unwrap();
    let rows = sqlx::query_as(POSTGRES_COLUMNS)
        .fetch_all(&mut connection)
        .await;
    let postgres = by_name(rows.unwrap());
    assert_eq!(sqlite, postgres);
    assert!(sqlite.len() > 20, "{sqlite:?}");
}
