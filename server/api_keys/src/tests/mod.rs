//! The rules on real databases: what needs to see inside the crate, or to stop time at a point.

mod keys;
mod processes;
mod race;
#[path = "../../../../tests/journal/random.rs"]
mod random;
mod retry;
mod rights;
mod rollup;
mod sweep;
mod usage;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use hub_core::auth::{Authenticator, Caller, Credential, Scopes};
use hub_core::clock::Clock;
use hub_core::cursor::Cursors;
use hub_core::error::Result;
use hub_core::internal::Internal;
use hub_core::jobs::Jobs;
use hub_core::journal::{Journal, TenantRef};
use hub_core::limits::Limits;
use hub_core::module::Core;
use hub_core::peers::NoPeers;
use hub_core::processes::Processes;
use hub_core::sealing::{Sealer, SealingKey};
use hub_core::storage::{Db, Options};
use hub_core::tenancy::{self, Tenancy};
use hub_core::{id, journal};
use tokio_util::sync::CancellationToken;

use crate::{Created, Keys, NewKey, migrations, module};

/// Where the clock of a test begins: 2026-01-01T00:00:00Z.
pub const START: i64 = 1_767_225_600_000_000;

/// URL of a PostgreSQL server that may be filled with databases.
const POSTGRES: &str = "HUB_TEST_POSTGRES";

/// Keys on a database of their own, and a clock that is moved by hand.
pub struct TestKeys {
    pub core: Core,
    pub keys: Arc<Keys>,
    pub tenant: TenantRef,
    pub url: String,
    folder: Option<PathBuf>,
}

impl Drop for TestKeys {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

impl TestKeys {
    pub async fn open(postgres: bool) -> Self {
        Self::migrated(postgres, async |_| {}).await
    }

    /// Before it is brought up to date, something may be done with an empty database.
    pub async fn migrated(postgres: bool, before: impl AsyncFnOnce(&Db)) -> Self {
        let name = id::new("keys");
        let (url, folder) = if postgres {
            (postgres_database(&name).await, None)
        } else {
            let folder = std::env::temp_dir().join(&name);
            (
                format!("sqlite:{}", folder.join("hub.db").display()),
                Some(folder),
            )
        };
        before(&open(&url).await).await;
        let core = core(&url, Clock::manual(START)).await;
        let keys = keys(&core);
        let tenant = add_tenant(&core, "Acme").await;
        TestKeys {
            core,
            keys,
            tenant,
            url,
            folder,
        }
    }

    /// Another process on the same database (PostgreSQL), with the same clock.
    pub fn other_process(&self) -> Arc<Keys> {
        keys(&self.core)
    }

    pub fn administrator(&self) -> Caller {
        caller(Some(&self.tenant), &["hub:*"])
    }

    pub async fn create(&self, scopes: &[&str]) -> Created {
        let new = NewKey {
            scopes: texts(scopes),
            ..named("a key")
        };
        self.keys
            .create(&self.administrator(), new, None)
            .await
            .unwrap()
            .first()
            .unwrap()
    }

    pub async fn authenticate(&self, created: &Created) -> Result<Caller> {
        authenticate(&self.keys, created.plaintext.expose()).await
    }
}

/// Those of a process that hears of changes, which the tests tell it.
fn keys(core: &Core) -> Arc<Keys> {
    let keys = module(core).unwrap().keys;
    keys.cache.keep();
    keys
}

pub fn named(name: &str) -> NewKey {
    NewKey {
        name: name.to_owned(),
        ..NewKey::default()
    }
}

pub fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

pub fn caller(tenant: Option<&TenantRef>, scopes: &[&str]) -> Caller {
    Caller {
        key_id: "key_caller".into(),
        tenant: tenant.cloned(),
        product: None,
        scopes: Scopes::new(texts(scopes)),
        all_tenants: tenant.is_none(),
        origin: hub_core::auth::Origin::of_nothing(),
    }
}

pub async fn authenticate(keys: &Keys, plaintext: &str) -> Result<Caller> {
    let mut headers = HeaderMap::new();
    headers.insert(
        AUTHORIZATION,
        format!("Bearer {plaintext}").parse().unwrap(),
    );
    keys.authenticate(Credential {
        query: "",
        headers: &headers,
        peer: None,
    })
    .await
}

pub async fn add_tenant(core: &Core, name: &str) -> TenantRef {
    let mut tx = core.db.begin().await.unwrap();
    let tenant = tenancy::create(&mut tx, name, core.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    tenant
}

async fn open(url: &str) -> Db {
    let options = Options {
        url: url.to_owned(),
        connections_max: 4,
        size_bytes_max: 0,
    };
    Db::open(&options).await.unwrap()
}

async fn core(url: &str, clock: Clock) -> Core {
    let db = open(url).await;
    db.migrate(&journal::migrations()).await.unwrap();
    db.migrate(&migrations()).await.unwrap();
    let limits = Arc::new(Limits::default());
    let journal = Journal::open(&db, clock.clone(), limits.clone())
        .await
        .unwrap();
    Core {
        tenancy: Tenancy::new(db.clone(), journal.clone()),
        jobs: Jobs::new(&db, &clock),
        public_url: "http://hub.example".into(),
        trusted_proxies: "".into(),
        processes: Processes::aside(&db, clock.clone()),
        internal: Internal::new([7; 32], "prc_test"),
        peers: Arc::new(NoPeers),
        journal,
        cursors: Arc::new(Cursors::new([7; 32])),
        sealer: Arc::new(Sealer::new(&SealingKey::new([7; 32]))),
        draining: CancellationToken::new(),
        db,
        clock,
        limits,
    }
}

async fn postgres_database(name: &str) -> String {
    let server = std::env::var(POSTGRES).unwrap_or_else(|_| {
        panic!(
            "{POSTGRES} names no PostgreSQL server: run tests/run, or start one by tests/postgres"
        )
    });
    let pool = sqlx::PgPool::connect(&server).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("create database {name}"));
    sqlx::raw_sql(create).execute(&pool).await.unwrap();
    pool.close().await;
    let (rest, _) = server.rsplit_once('/').unwrap();
    format!("{rest}/{name}")
}

/// Runs the same test on SQLite and on PostgreSQL.
macro_rules! both_databases {
    ($($(#[$meta:meta])* async fn $name:ident($hub:ident: TestKeys) $body:block)*) => {
        $($(#[$meta])* mod $name {
            use super::*;

            async fn run($hub: TestKeys) $body

            #[tokio::test]
            async fn sqlite() {
                Box::pin(run(TestKeys::open(false).await)).await;
            }

            #[tokio::test]
            async fn postgres() {
                Box::pin(run(TestKeys::open(true).await)).await;
            }
        })*
    };
}

pub(crate) use both_databases;
