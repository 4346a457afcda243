//! `hub migrate`, and servers on a schema that is not theirs.

use sqlx::{AssertSqlSafe, Connection};

use crate::support::{Backend, Command, Database, Ended, TestProcess};

async fn migrate(database: &Database, flags: &[&str]) -> Ended {
    let arguments = [&["migrate", "--database", database.url.as_str()], flags].concat();
    TestProcess::run(database.folder.path(), &arguments).await
}

async fn serve(database: &Database) -> Ended {
    let arguments = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--database",
        &database.url,
    ];
    TestProcess::run(database.folder.path(), &arguments).await
}

async fn execute(database: &Database, statement: &str) {
    let sql = AssertSqlSafe(statement.to_owned());
    match database.backend() {
        Backend::Sqlite => {
            let mut connection = sqlx::SqliteConnection::connect(&database.url)
                .await
                .unwrap();
            sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        }
        Backend::Postgres => {
            let mut connection = sqlx::PgConnection::connect(&database.url).await.unwrap();
            sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        }
    }
}

/// As a newer hub would leave it.
const NEWER: &str = "insert into _migrations_core (version, description, success, checksum,
    execution_time) values (9999, 'of the future', true, '', 0)";
/// As an older hub would have left it: the newest migration was not made yet.
const OLDER: &str = "delete from _migrations_core where version =
    (select max(version) from _migrations_core)";

both_databases! {
    async fn check_tells_what_would_be_done_and_changes_nothing(backend: Backend) {
        let database = Database::new(backend).await;
        for _ in 0..2 {
            let checked = migrate(&database, &["--check"]).await;
            assert_eq!(checked.status.code(), Some(1), "{}", checked.log);
            assert!(checked.output.contains("core has no tables"), "{}", checked.output);
            assert!(checked.output.contains("0001 journal"), "{}", checked.output);
            assert!(checked.log.contains("run `hub migrate`"), "{}", checked.log);
        }
        assert!(!database.folder.path().join("hub.db").exists());
        let done = migrate(&database, &[]).await;
        assert!(done.status.success(), "{}", done.log);
        assert!(done.output.contains("migrations done"), "{}", done.output);
        for flags in [&["--check"][..], &[]] {
            let again = migrate(&database, flags).await;
            assert!(again.status.success(), "{}", again.log);
            assert!(again.output.contains("api_keys: version"), "{}", again.output);
            assert!(!again.output.contains("done"), "{}", again.output);
        }
    }

    async fn a_newer_schema_is_refused_with_both_versions(backend: Backend) {
        let database = Database::new(backend).await;
        assert!(migrate(&database, &[]).await.status.success());
        execute(&database, NEWER).await;
        for told in [
            serve(&database).await,
            migrate(&database, &[]).await,
            migrate(&database, &["--check"]).await,
        ] {
            assert_eq!(told.status.code(), Some(1), "{}", told.log);
            assert!(told.log.contains("by a newer hub"), "{}", told.log);
            assert!(
                told.log.contains("core is at version 9999 in the database and at "),
                "{}",
                told.log
            );
        }
    }

    async fn migrating_beside_a_server_that_is_up_to_date_changes_nothing(backend: Backend) {
        let process = TestProcess::start(Command::Serve, backend, &[]).await;
        for flags in [&["migrate"][..], &["migrate", "--check"]] {
            let arguments = [flags, &["--database", process.database_url()]].concat();
            let done = TestProcess::run(process.folder(), &arguments).await;
            assert!(done.status.success(), "{}", done.log);
        }
    }
}

#[tokio::test]
async fn serve_refuses_an_old_schema_on_postgres_and_says_what_to_run() {
    let database = Database::new(Backend::Postgres).await;
    let told = serve(&database).await;
    assert_eq!(told.status.code(), Some(1), "{}", told.log);
    assert!(
        told.log.contains("core has no tables in the database"),
        "{}",
        told.log
    );
    assert!(told.log.contains("Run `hub migrate`"), "{}", told.log);
    assert!(migrate(&database, &[]).await.status.success());
    execute(&database, OLDER).await;
    let told = serve(&database).await;
    assert_eq!(told.status.code(), Some(1), "{}", told.log);
    assert!(told.log.contains("core is at version"), "{}", told.log);
    assert!(told.log.contains("Run `hub migrate`"), "{}", told.log);
}

#[tokio::test]
async fn serve_migrates_by_itself_on_sqlite() {
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let arguments = ["migrate", "--check", "--database", process.database_url()];
    let checked = TestProcess::run(process.folder(), &arguments).await;
    assert!(checked.status.success(), "{}", checked.log);
}

#[tokio::test]
async fn two_that_migrate_at_once_do_it_once() {
    let database = Database::new(Backend::Postgres).await;
    let (first, second) = tokio::join!(migrate(&database, &[]), migrate(&database, &[]));
    assert!(first.status.success(), "{}", first.log);
    assert!(second.status.success(), "{}", second.log);
    assert!(migrate(&database, &["--check"]).await.status.success());
}
