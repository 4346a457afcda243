//! Which processes live: they see each other come and go, and none believes of itself what the
//! others do not.

use std::time::Duration;

use http::{Method, StatusCode};
use hub_core::clock::Clock;
use hub_core::processes::Peers;
use hub_core::storage::{Db, Sql};
use hub_server::Running;
use sqlx::{Connection, PgConnection};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::durability::postgres::Server;
use crate::support::{Backend, Command, Database, TestHub, TestProcess, config, request};

/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Another server on the database of the first.
pub async fn another(first: &TestHub) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(first.database_url());
    let shutdown = CancellationToken::new();
    let running = hub_server::start(config, listener, Clock::system(), shutdown).await;
    running.unwrap()
}

/// Ids and addresses in a table or view.
async fn rows(db: &Db, table: Sql) -> Vec<(String, String)> {
    db.query(table).all().await.unwrap()
}

const ALL: Sql = Sql::same("select process_id, address from processes order by process_id");
const LIVE: Sql = Sql::same("select process_id, address from live_processes order by process_id");

/// Waits until the other processes are as expected.
pub async fn seen(hub: &TestHub, expected: impl FnMut(&Peers) -> bool) -> Peers {
    let mut peers = hub.core.processes.watch();
    let seen = tokio::time::timeout(PATIENCE, peers.wait_for(expected)).await;
    seen.expect("it is seen").unwrap().clone()
}

/// Polls until it is so.
async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !is_so().await {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let asked = tokio::time::timeout(PATIENCE, asking).await;
    asked.expect("it becomes so");
}

both_databases! {
    async fn a_process_is_among_those_that_live_from_its_start_to_its_stop(hub: TestHub) {
        let mut hub = hub;
        for _ in 0..2 {
            let own = (hub.core.processes.id().to_string(), hub.url());
            assert!(own.0.starts_with("prc_") && hub.core.processes.is_live());
            assert_eq!(rows(&hub.core.db, LIVE).await, std::slice::from_ref(&own));
            let left = hub.core.processes.clone();
            hub.restart().await;
            assert!(!left.is_live());
            // Nothing is left of it, so nobody has to wait until it is dead.
            assert!(!rows(&hub.core.db, ALL).await.contains(&own));
        }
    }

    async fn work_is_taken_from_nobody_and_from_the_dead_only(hub: TestHub) {
        const ADD: Sql = Sql::same(
            "insert into subscription_positions (subscription_id, tenant_no, owner, epoch, floor,
                cursor, replay_until, unsettled, update_time)
             values ($1, 1, $2, 7, 0, 0, 0, $3, 0)",
        );
        const ENTER: Sql = Sql::same("insert into processes values ('prc_live', '', $1)");
        const TAKE: Sql = Sql::same(
            "update subscription_positions set owner = $2, epoch = epoch + 1
             where subscription_id = $1 and (owner in ('', $2)
                or owner not in (select process_id from live_processes))
             returning epoch",
        );
        let own = hub.core.processes.id().to_string();
        let mut tx = hub.core.db.begin().await.unwrap();
        tx.query(ENTER).bind(i64::MAX).execute().await.unwrap();
        for (owner, epoch) in [
            ("", Some(8i64)),
            (own.as_str(), Some(8)),
            ("prc_dead", Some(8)),
            ("prc_live", None),
        ] {
            let id = format!("sub of {owner}");
            let add = tx.query(ADD).bind(id.clone()).bind(owner.to_owned());
            add.bind(Vec::<u8>::new()).execute().await.unwrap();
            let take = tx.query(TAKE).bind(id).bind(own.clone());
            let taken: Option<(i64,)> = take.optional().await.unwrap();
            assert_eq!(taken.map(|(epoch,)| epoch), epoch, "of {owner:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_what_others_left_is_removed_at_the_start() {
    let mut hub = TestHub::start(Backend::Sqlite).await;
    let mut tx = hub.core.db.begin().await.unwrap();
    let left = Sql::same("insert into processes values ('prc_left', 'http://127.0.0.1:1', 1)");
    tx.query(left).execute().await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(rows(&hub.core.db, LIVE).await.len(), 2);
    hub.restart().await;
    let own = (hub.core.processes.id().to_string(), hub.url());
    assert_eq!(rows(&hub.core.db, LIVE).await, [own]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_see_each_other_come_and_go() {
    let hub = TestHub::start(Backend::Postgres).await;
    assert!(hub.core.processes.watch().borrow().is_empty());
    let second = another(&hub).await;
    let id = second.core.processes.id().clone();
    let address = format!("http://{}", second.addr);
    // One that was not seen yet is found, too.
    let found = hub.core.processes.find(&id).await.unwrap().unwrap();
    assert_eq!(*found.address, *address);
    let peers = seen(&hub, |peers| peers.contains_key(&id)).await;
    assert_eq!(*peers[&id].address, *address);
    assert_eq!(hub.core.processes.peer(&id).as_ref(), peers.get(&id));
    second.drain().await;
    seen(&hub, |peers| peers.is_empty()).await;
    assert_eq!(hub.core.processes.find(&id).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_killed_is_dead_to_the_others() {
    let hub = TestHub::start(Backend::Postgres).await;
    let same = Database::at(hub.database_url().to_owned());
    let mut killed = TestProcess::start_on(Command::Serve, same, &[]).await;
    let peers = seen(&hub, |peers| peers.len() == 1).await;
    let id = peers.keys().next().unwrap();
    killed.kill().await;
    seen(&hub, |peers| peers.is_empty()).await;
    assert_eq!(hub.core.processes.find(id).await.unwrap(), None);
    assert!(hub.core.processes.is_live());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_cannot_beat_knows_it_before_the_others_and_is_not_ready() {
    let hub = TestHub::start(Backend::Postgres).await;
    let (core, own) = (&hub.core, (hub.core.processes.id().to_string(), hub.url()));
    let ready = async || request(hub.addr, Method::GET, "/readyz", &[], "").await;
    let mut other = PgConnection::connect(hub.database_url()).await.unwrap();
    let mut blocking = other.begin().await.unwrap();
    let lock = sqlx::query("lock table processes in exclusive mode");
    lock.execute(&mut *blocking).await.unwrap();
    until(async || {
        // In this order: it may have stopped to believe in between, but not begun.
        let is_seen = rows(&core.db, LIVE).await.contains(&own);
        let believes = core.processes.is_live();
        assert!(is_seen || !believes, "others may take its work already");
        !is_seen
    })
    .await;
    let told = ready().await;
    assert_eq!(told.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        told.text()
            .starts_with("database ok\njournal ok\nbeat failed\n"),
        "{}",
        told.text()
    );
    blocking.rollback().await.unwrap();
    until(async || core.processes.is_live()).await;
    assert!(rows(&core.db, LIVE).await.contains(&own));
    assert_eq!(ready().await.status, StatusCode::OK);
}

/// A process counts from a beat that was answered. If that were lost, others would take its work
/// while it still believes to own it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_beat_that_was_answered_outlives_a_crash_of_the_database() {
    const WRITE_LATE: &str = "alter system set wal_writer_delay = '10s'; select pg_reload_conf()";
    const BEAT: &str = "select beat_time from processes";
    let server = Server::start();
    let database = Database::at(server.url.clone());
    let mut outsider = PgConnection::connect(&server.url).await.unwrap();
    // Each by itself, as a change of the system must be.
    for statement in WRITE_LATE.split("; ") {
        let statement = sqlx::raw_sql(statement);
        statement.execute(&mut outsider).await.unwrap();
    }
    let process = TestProcess::start_on(Command::Serve, database, &[]).await;
    let beat = async |outsider: &mut PgConnection| {
        let beat = sqlx::query_scalar::<_, i64>(BEAT);
        beat.fetch_one(outsider).await.unwrap()
    };
    let first = beat(&mut outsider).await;
    until(async || beat(&mut outsider).await != first).await;
    process.signal("STOP");
    let last = beat(&mut outsider).await;
    tokio::task::block_in_place(|| server.kill());
    tokio::task::block_in_place(|| server.start_again());
    let mut outsider = PgConnection::connect(&server.url).await.unwrap();
    let left = beat(&mut outsider).await;
    process.signal("CONT");
    assert_eq!(left, last);
}
