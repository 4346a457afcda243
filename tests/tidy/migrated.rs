//! An empty database with the tables of all domains.

use hub_core::storage::{Db, Options};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, PgConnection};

use crate::support::{Backend, Database};

/// Tables on SQLite.
pub struct OnSqlite {
    pub connection: SqliteConnection,
    _database: Database,
}

/// Tables on PostgreSQL.
pub struct OnPostgres {
    pub connection: PgConnection,
    _database: Database,
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

/// Migrates a new SQLite file.
pub async fn on_sqlite() -> OnSqlite {
    let database = migrated(Backend::Sqlite).await;
    let path = database.url.strip_prefix("sqlite:").unwrap();
    let options = SqliteConnectOptions::new().filename(path);
    OnSqlite {
        connection: options.connect().await.unwrap(),
        _database: database,
    }
}

/// Migrates a new database of PostgreSQL.
pub async fn on_postgres() -> OnPostgres {
    let database = migrated(Backend::Postgres).await;
    OnPostgres {
        connection: PgConnection::connect(&database.url).await.unwrap(),
        _database: database,
    }
}
