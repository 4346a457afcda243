//! A database of its own for each test.

use std::env;
use std::time::Duration;

use hub_server::Config;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;

/// Server on which tests make databases: `postgres://USER@HOST:PORT/postgres`.
const SERVER: &str = "HUB_TEST_POSTGRES";

/// Sealing key of all hubs of the tests, as base64 of 32 bytes.
pub const SEALING_KEY: &str = "dGVzdHMgdGVzdHMgdGVzdHMgdGVzdHMgdGVzdHMgb2s=";

/// Which database a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// An empty database; gone when it is dropped.
pub struct Database {
    /// What `--database` takes.
    pub url: String,
    /// Folder for the files of the test; with SQLite the database is in it.
    pub folder: TempDir,
    /// Name on the PostgreSQL server.
    name: Option<String>,
}

impl Database {
    /// Makes one.
    pub async fn new(backend: Backend) -> Self {
        let folder = TempDir::with_prefix("hub-test-").unwrap();
        match backend {
            Backend::Sqlite => {
                let url = format!("sqlite:{}", folder.path().join("hub.db").display());
                Database {
                    url,
                    folder,
                    name: None,
                }
            }
            Backend::Postgres => {
                let name = format!("hub_test_{}", uuid::Uuid::new_v4().simple());
                create(&name).await;
                let server = server();
                let (start, _) = server.rsplit_once('/').expect("a URL with a database");
                Database {
                    url: format!("{start}/{name}"),
                    folder,
                    name: Some(name),
                }
            }
        }
    }

    /// One that the test keeps otherwise: on a server of its own, or another test object's, with
    /// which it goes.
    pub fn at(url: String) -> Self {
        let folder = TempDir::with_prefix("hub-test-").unwrap();
        Database {
            url,
            folder,
            name: None,
        }
    }

    /// The configuration of a hub on it.
    pub fn config(&self) -> Config {
        config(&self.url)
    }

    /// Which kind it is.
    pub fn backend(&self) -> Backend {
        if self.url.starts_with("postgres") {
            Backend::Postgres
        } else {
            Backend::Sqlite
        }
    }
}

/// Turns hints between processes off in all tests, if it is 0s: processes of their own read it
/// themselves.
const NOTIFY_INTERVAL: &str = "HUB_NOTIFY_INTERVAL";

/// The configuration of a hub in this process, on the same database as others.
pub fn config(url: &str) -> Config {
    let mut config = Config::new(url);
    config.sealing_key = SEALING_KEY.parse().ok();
    if env::var(NOTIFY_INTERVAL).is_ok_and(|interval| interval == "0s") {
        config.limits.notify_interval = Duration::ZERO;
    }
    config
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else { return };
        // A drop cannot wait, and the runtime of the test may be ending.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let statement = format!("drop database if exists {name} with (force)");
            runtime.unwrap().block_on(execute(&statement));
        });
        if dropping.join().is_err() {
            eprintln!("a test database could not be dropped");
        }
    }
}

fn server() -> String {
    env::var(SERVER).unwrap_or_else(|_| {
        panic!(
            "{SERVER} is not set, so this test has no PostgreSQL: run tests/run, which starts one, \
             or set it to postgres://USER@HOST:PORT/postgres of a server where USER may make \
             databases"
        )
    })
}

/// By copying files: block by block through the log, as is the default since PostgreSQL 15, took
/// three times as long. Older ones have no other way, and no word for it.
async fn create(name: &str) {
    let mut connection = connect().await;
    let (version,): (String,) = sqlx::query_as("show server_version_num")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    let how = match version.parse::<u32>().unwrap() {
        150_000.. => "strategy file_copy",
        _ => "",
    };
    execute(&format!("create database {name} {how}")).await;
}

async fn connect() -> PgConnection {
    PgConnection::connect(&server())
        .await
        .expect("PostgreSQL answers")
}

async fn execute(statement: &str) {
    let mut connection = connect().await;
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}
