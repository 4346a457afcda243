//! The hub under test: processes of the real program on one database, each behind a proxy, and what
//! is done to them.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

use super::proxy::Proxy;
use super::records::{Fault, Micros};
use crate::durability::postgres::Server;
use crate::journal::random::Random;
use crate::support::{Backend, Command, Database, TestProcess};

/// How long a delayed piece waits.
const DELAY: Duration = Duration::from_millis(150);

/// Processes on one database.
pub struct Hubs {
    pub processes: Vec<TestProcess>,
    pub proxies: Vec<Proxy>,
    /// The PostgreSQL, which may be killed.
    server: Option<Server>,
    /// What was logged of panics by processes that were killed.
    panics: Vec<String>,
}

impl Hubs {
    /// Starts them, one after the other: the first one makes the tables and the operator key.
    pub async fn start(backend: Backend, count: usize, flags: &[&str]) -> Hubs {
        let server = (backend == Backend::Postgres).then(Server::start);
        let mut hubs = Hubs {
            processes: Vec::new(),
            proxies: Vec::new(),
            server,
            panics: Vec::new(),
        };
        for _ in 0..count {
            let process = match &hubs.server {
                Some(server) => {
                    let database = Database::at(server.url.clone());
                    TestProcess::start_on(Command::Serve, database, flags).await
                }
                None => TestProcess::start(Command::Serve, backend, flags).await,
            };
            hubs.proxies.push(Proxy::start(process.addr()).await);
            hubs.processes.push(process);
        }
        hubs
    }

    /// One fault of each kind, in some order.
    pub fn faults(&self, random: &mut Random) -> Vec<Fault> {
        let kinds = [
            Fault::Kill,
            Fault::Stop,
            |_| Fault::Database,
            Fault::Cut,
            Fault::HalfOpen,
            Fault::Delay,
        ];
        let mut faults: Vec<Fault> = Vec::new();
        for kind in kinds {
            let fault = kind(random.below(self.processes.len()));
            faults.insert(random.below(faults.len() + 1), fault);
        }
        faults
    }

    /// Does it, and undoes it.
    pub async fn inject(&mut self, fault: &Fault, random: &mut Random) {
        match *fault {
            Fault::Kill(process) => self.kill(process, some(random, 0, 800)).await,
            Fault::Stop(process) => {
                self.processes[process].signal("STOP");
                tokio::time::sleep(some(random, 300, 3500)).await;
                self.processes[process].signal("CONT");
            }
            Fault::Database => self.database(random).await,
            Fault::Cut(process) => self.proxies[process].cut(),
            Fault::HalfOpen(process) => {
                let proxy = &self.proxies[process];
                proxy.silence();
                tokio::time::sleep(some(random, 500, 3500)).await;
                proxy.cut();
                proxy.open();
            }
            Fault::Delay(process) => {
                let proxy = &self.proxies[process];
                proxy.delay(DELAY);
                tokio::time::sleep(some(random, 500, 2000)).await;
                proxy.open();
            }
        }
    }

    /// What was logged of panics.
    pub fn panics(&self) -> Vec<String> {
        let alive = self.processes.iter().flat_map(panics);
        self.panics.iter().cloned().chain(alive).collect()
    }

    /// Sets the retention of a tenant to less than the API allows.
    pub async fn keep(&self, tenant_id: &str, length: Micros) {
        let statement =
            format!("update tenants set retention = {length} where tenant_id = '{tenant_id}'");
        let statement = sqlx::raw_sql(AssertSqlSafe(statement));
        let url = self.processes[0].database_url();
        if self.server.is_some() {
            let mut outsider = PgConnection::connect(url).await.unwrap();
            statement.execute(&mut outsider).await.unwrap();
        } else {
            let mut outsider = SqliteConnection::connect(url).await.unwrap();
            statement.execute(&mut outsider).await.unwrap();
        }
    }

    async fn kill(&mut self, process: usize, away: Duration) {
        self.processes[process].kill().await;
        // It logs to a new file when it starts again.
        self.panics.extend(panics(&self.processes[process]));
        tokio::time::sleep(away).await;
        self.processes[process].start_again().await;
        self.proxies[process].lead_to(self.processes[process].addr());
    }

    async fn database(&self, random: &mut Random) {
        let away = some(random, 0, 1000);
        if let Some(server) = &self.server {
            tokio::task::block_in_place(|| server.kill());
            tokio::time::sleep(away).await;
            tokio::task::block_in_place(|| server.start_again());
            return;
        }
        let url = self.processes[0].database_url();
        let mut outsider = SqliteConnection::connect(url).await.unwrap();
        let locked = sqlx::raw_sql("begin immediate")
            .execute(&mut outsider)
            .await;
        tokio::time::sleep(away).await;
        if locked.is_ok() {
            sqlx::raw_sql("rollback")
                .execute(&mut outsider)
                .await
                .unwrap();
        }
    }
}

fn panics(process: &TestProcess) -> Vec<String> {
    let log = process.log();
    let told = log.lines().filter(|line| line.contains("panicked"));
    told.map(str::to_owned).collect()
}

/// A time between two, in milliseconds.
pub fn some(random: &mut Random, from: usize, to: usize) -> Duration {
    Duration::from_millis((from + random.below(to - from)) as u64)
}
