//! `/readyz` is false while the database is gone, and true again when it is back.

use std::time::Duration;

use http::{Method, StatusCode};

use super::Fleet;
use crate::durability::postgres::Server;
use crate::support::{Answer, Command, Database, TestProcess, request};

/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Asks until the status is this one.
async fn until(process: &TestProcess, status: StatusCode) -> Answer {
    let asking = async {
        loop {
            let answer = request(process.addr(), Method::GET, "/readyz", &[], "").await;
            if answer.status == status {
                return answer;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let answer = tokio::time::timeout(PATIENCE, asking).await;
    answer.unwrap_or_else(|_| panic!("never {status}:\n{}", process.log()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_is_not_ready_while_its_database_is_gone() {
    let server = Server::start();
    let database = Database::at(server.url.clone());
    let process = TestProcess::start_on(Command::Serve, database, &[]).await;
    until(&process, StatusCode::OK).await;
    for _ in 0..2 {
        server.kill();
        let told = until(&process, StatusCode::SERVICE_UNAVAILABLE).await;
        assert!(told.text().contains("database failed\n"), "{}", told.text());
        let live = request(process.addr(), Method::GET, "/livez", &[], "").await;
        assert_eq!(live.status, StatusCode::OK);
        server.start_again();
        let told = until(&process, StatusCode::OK).await;
        assert_eq!(
            told.text(),
            "database ok\njournal ok\nbeat ok\nserving ok\nworkers ok\n"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_tells_of_its_own_workers() {
    let fleet = Fleet::start(2, &[]).await;
    for process in &fleet.hubs {
        let told = request(process.addr(), Method::GET, "/readyz?verbose", &[], "").await;
        assert_eq!(told.status, StatusCode::OK);
        for worker in [
            "beat",
            "journal-follow",
            "journal-listen",
            "journal-tell",
            "replay-sweep",
            "jobs",
            "job-sweep",
        ] {
            let line = format!("worker {worker} ok\n");
            assert!(told.text().contains(&line), "{}", told.text());
        }
    }
}
