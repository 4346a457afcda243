//! SIGKILL at random moments under load: what was acknowledged is there, once, where it was said.

use std::env;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::load::{self, Notes, SCOPES};
use super::postgres::Server;
use crate::support::{Backend, Command, Database, Tenant, TestProcess};

const TENANTS: usize = 2;
const PUBLISHERS: usize = 4;

/// `HUB_TEST_KILLS`: how often, 50 unless given.
fn kills() -> usize {
    env::var("HUB_TEST_KILLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(50)
}

/// The moment of a kill is what the test is about, so it is left to chance.
async fn some_time() {
    let chance = u64::from(uuid::Uuid::new_v4().as_bytes()[0]);
    tokio::time::sleep(Duration::from_millis(20 + chance % 150)).await;
}

struct Load {
    keys: Vec<String>,
    address: watch::Sender<std::net::SocketAddr>,
    stop: CancellationToken,
    publishers: JoinSet<(usize, Notes)>,
}

impl Load {
    async fn start(process: &TestProcess) -> Load {
        let operator_key = process.ready["operatorKey"].as_str().unwrap();
        let operator = load::client(process.addr(), operator_key);
        let (address, seen) = watch::channel(process.addr());
        let stop = CancellationToken::new();
        let mut publishers = JoinSet::new();
        let mut keys = Vec::new();
        for number in 0..TENANTS {
            let tenant = Tenant::create(&operator).await;
            let admin = load::client(process.addr(), &tenant.admin_key);
            let key = tenant.key(&admin, "psa", &SCOPES).await;
            keys.push(key.clone());
            for publisher in 0..PUBLISHERS {
                let name = format!("{number}-{publisher}");
                let work = load::publish(name, key.clone(), seen.clone(), stop.clone());
                publishers.spawn(async move { (number, work.await) });
            }
        }
        Load {
            keys,
            address,
            stop,
            publishers,
        }
    }

    async fn check(mut self, process: &TestProcess, kills: usize, began: Instant) {
        self.stop.cancel();
        let mut notes = vec![Vec::new(); TENANTS];
        while let Some(done) = self.publishers.join_next().await {
            let (tenant, noted) = done.unwrap();
            notes[tenant].push(noted);
        }
        let mut acknowledged = 0;
        for (key, notes) in self.keys.iter().zip(&notes) {
            acknowledged += load::check(&load::client(process.addr(), key), notes).await;
        }
        println!(
            "{kills} kills in {:.0} s: {acknowledged} acknowledged events, each there once",
            began.elapsed().as_secs_f64()
        );
        assert!(
            acknowledged > kills,
            "the load was no load: {acknowledged} events"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_events_survive_sigkill_on_sqlite() {
    let began = Instant::now();
    let mut process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let load = Load::start(&process).await;
    for _ in 0..kills() {
        some_time().await;
        process.kill().await;
        process.start_again().await;
        load.address.send_replace(process.addr());
    }
    some_time().await;
    load.check(&process, kills(), began).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_events_survive_sigkill_of_the_hub_and_of_postgres() {
    let began = Instant::now();
    let server = Server::start();
    let database = Database::at(server.url.clone());
    let mut process = TestProcess::start_on(Command::Serve, database, &[]).await;
    let load = Load::start(&process).await;
    for round in 0..kills() {
        some_time().await;
        match round % 5 {
            // The database dies, the hub lives on.
            0 => {
                server.kill();
                server.start_again();
            }
            // Both die.
            1 => {
                server.kill();
                process.kill().await;
                server.start_again();
                process.start_again().await;
            }
            _ => {
                process.kill().await;
                process.start_again().await;
            }
        }
        load.address.send_replace(process.addr());
    }
    some_time().await;
    load.check(&process, kills(), began).await;
}
