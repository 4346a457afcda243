//! Callers that go away half-way leave nothing open behind them.

use std::time::Duration;

use hub_core::clock::Clock;
use hub_core::limits::Limits;
use hub_core::storage::{Db, Options, Sql};

use sqlx::{Connection, PgConnection};

use super::reader;
use super::store::{self, Store, batch, event};
use crate::support::{Backend, Database};

/// Transactions that are open on the other connections of the database.
const OPEN: &str = "select count(*) from pg_stat_activity
    where datname = current_database() and state like 'idle in transaction%'";
const CREATE: Sql = Sql::same("create table marks (name text primary key)");
const MARK: Sql = Sql::same("insert into marks (name) values ($1)");
const MARKS: Sql = Sql::same("select count(*) from marks");

/// Polls `work` for so long, then drops it where it is.
async fn cancel_after(micros: u64, work: impl Future) {
    tokio::select! {
        biased;
        _ = work => {}
        () = tokio::time::sleep(Duration::from_micros(micros)) => {}
    }
}

/// SQLite tells nobody; there a writer of another connection would be refused.
async fn open_transactions(database: &Database) -> i64 {
    if database.backend() == Backend::Sqlite {
        store::execute(database, "begin immediate; rollback").await;
        return 0;
    }
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let (open,) = sqlx::query_as(OPEN)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    open
}

both_databases! {
    async fn a_cancelled_begin_leaves_no_transaction_open(backend: Backend) {
        let database = Database::new(backend).await;
        // One connection, so that the next statement meets what was left.
        let options = Options {
            url: database.url.clone(),
            connections_max: 1,
            size_bytes_max: 0,
        };
        let db = Db::open(&options).await.unwrap();
        for micros in (0..3000).step_by(30) {
            cancel_after(micros, db.begin()).await;
            match backend {
                // What is left open ends when the only writer is used again.
                Backend::Sqlite => db.begin().await.unwrap().commit().await.unwrap(),
                Backend::Postgres => db.ping().await.unwrap(),
            }
            let open = open_transactions(&database).await;
            assert_eq!(open, 0, "a transaction that nobody has, cancelled after {micros} µs");
        }
        db.close().await;
    }

    async fn a_cancelled_statement_takes_its_transaction_with_it(backend: Backend) {
        let database = Database::new(backend).await;
        let store = Store::open(&database, Limits::default(), Clock::system()).await;
        let mut tx = store.db.begin().await.unwrap();
        tx.query(CREATE).execute().await.unwrap();
        tx.commit().await.unwrap();
        for micros in (0..2000).step_by(50) {
            cancel_after(micros, async {
                let mut tx = store.db.begin().await.unwrap();
                tx.query(MARK).bind("lost".to_owned()).execute().await.unwrap();
                // The caller never comes to its commit.
                std::future::pending::<()>().await;
            })
            .await;
            let mut tx = store.db.begin().await.unwrap();
            tx.query(MARK).bind(micros.to_string()).execute().await.unwrap();
            tx.commit().await.unwrap();
        }
        let (marks,): (i64,) = store.db.query(MARKS).one().await.unwrap();
        assert_eq!(marks, 40, "only what was committed");
        store.close().await;
    }

    async fn a_cancelled_append_is_stored_whole_or_not_at_all_and_once(backend: Backend) {
        let database = Database::new(backend).await;
        let store = Store::open(&database, Limits::default(), Clock::system()).await;
        let tenant = store.tenant("tenant").await;
        let log = store.journal.log(&tenant).await.unwrap();
        for micros in (0..2000).step_by(50) {
            let events = || vec![event(&format!("a {micros}")), event(&format!("b {micros}"))];
            cancel_after(micros, store.journal.append(batch(&log, events()))).await;
            store.append(&log, events()).await;
        }
        assert_eq!(log.head().seq, 80);
        let names = reader::names(&store.journal, &log, 0).await;
        let expected = (0..2000).step_by(50);
        let expected: Vec<String> =
            expected.flat_map(|n| [format!("a {n}"), format!("b {n}")]).collect();
        assert_eq!(names, expected);
        store.close().await;
    }
}
