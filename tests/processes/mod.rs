//! Several processes on one PostgreSQL are one hub.

mod forwarded;
mod hints;
mod keys;
mod kills;
mod limits;
mod live;
mod readiness;
mod retry;

use std::net::SocketAddr;

use crate::durability::load::{self, SCOPES};
use crate::support::{Backend, Command, Database, Tenant, TestProcess};

/// Processes on one database, which goes when this is dropped.
struct Fleet {
    hubs: Vec<TestProcess>,
    _database: Database,
}

impl Fleet {
    /// Starts so many, the first one alone, for it makes the tables and the operator key.
    async fn start(size: usize, flags: &[&str]) -> Fleet {
        let database = Database::new(Backend::Postgres).await;
        let mut hubs = Vec::new();
        for _ in 0..size {
            let same = Database::at(database.url.clone());
            hubs.push(TestProcess::start_on(Command::Serve, same, flags).await);
        }
        Fleet {
            hubs,
            _database: database,
        }
    }

    fn addr(&self, hub: usize) -> SocketAddr {
        self.hubs[hub].addr()
    }

    /// A key of a new tenant that publishes as PSA and reads everything.
    async fn key(&self) -> String {
        let operator_key = self.hubs[0].ready["operatorKey"].as_str().unwrap();
        let tenant = Tenant::create(&load::client(self.addr(0), operator_key)).await;
        let admin = load::client(self.addr(0), &tenant.admin_key);
        tenant.key(&admin, "psa", &SCOPES).await
    }
}
