//! A journal on a database, opened without a server around it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hub_core::clock::Clock;
use hub_core::journal::{self, Append, Appended, Journal, Log, NewEvent, TenantRef};
use hub_core::limits::Limits;
use hub_core::storage::{Db, Options};
use hub_core::tenancy;
use hub_proto::hub::event_bus::v1::CloudEvent;
use prost::Message;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use crate::support::Database;

/// An open journal.
pub struct Store {
    pub db: Db,
    pub journal: Arc<Journal>,
}

impl Store {
    /// Opens the journal of a database, whose tables it makes.
    pub async fn open(database: &Database, limits: Limits, clock: Clock) -> Store {
        let options = Options {
            url: database.url.clone(),
            connections_max: 6,
            size_bytes_max: 0,
        };
        let db = Db::open(&options).await.unwrap();
        db.migrate(&journal::migrations()).await.unwrap();
        let journal = Journal::open(&db, clock, Arc::new(limits)).await.unwrap();
        Store { db, journal }
    }

    /// Adds a tenant with an empty log.
    pub async fn tenant(&self, name: &str) -> TenantRef {
        let mut tx = self.db.begin().await.unwrap();
        let tenant = tenancy::create(&mut tx, name, 0).await.unwrap();
        tx.commit().await.unwrap();
        tenant
    }

    /// Stores events as one batch.
    pub async fn append(&self, log: &Arc<Log>, events: Vec<NewEvent>) -> Appended {
        self.journal.append(batch(log, events)).await.unwrap()
    }

    /// Ends it as a stopped server does. Commits whose caller is gone come to their end.
    pub async fn close(self) {
        let Store { db, journal } = self;
        journal.close().await;
        db.close().await;
        drop(db);
        let held = Arc::downgrade(&journal);
        drop(journal);
        let gone = async {
            while held.strong_count() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let gone = tokio::time::timeout(Duration::from_secs(20), gone);
        gone.await.expect("nobody holds the journal");
    }
}

/// Events to be stored together or not at all.
pub fn batch(log: &Arc<Log>, events: Vec<NewEvent>) -> Append {
    Append {
        log: log.clone(),
        events,
        independent: false,
        row: None,
    }
}

/// An event whose identity is its name and whose content is a number. `text` is its subject.
pub fn event_with(name: &str, content: u64, text: &str) -> NewEvent {
    let event = CloudEvent {
        id: name.to_owned(),
        source: format!("/{text}"),
        spec_version: "1.0".to_owned(),
        r#type: "ticket.created".to_owned(),
        ..CloudEvent::default()
    };
    NewEvent {
        product: "psa".into(),
        kind: Bytes::from_static(b"ticket.created"),
        event: event.encode_to_vec().into(),
        identity: identity_of(name),
        content: spread(content),
    }
}

/// An event of this name.
pub fn event(name: &str) -> NewEvent {
    event_with(name, 1, "psa")
}

/// The identity of an event of this name, spread as a hash is.
pub fn identity_of(name: &str) -> u128 {
    name.bytes().fold(0, |hash, byte| {
        spread((hash as u64).rotate_left(9) ^ u64::from(byte)) ^ (hash >> 32)
    })
}

fn spread(number: u64) -> u128 {
    let mix = |number: u64| {
        let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    };
    u128::from(mix(number ^ 0x9e37_79b9)) << 64 | u128::from(mix(number.wrapping_add(0x7f4a_7c15)))
}

/// Runs statements on a connection of its own, beside the hub.
pub async fn execute(database: &Database, statements: &str) {
    let statements = AssertSqlSafe(statements.to_owned());
    if database.url.starts_with("sqlite:") {
        let mut connection = sqlite(database).connect().await.unwrap();
        sqlx::raw_sql(statements)
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
    } else {
        let mut connection = PgConnection::connect(&database.url).await.unwrap();
        sqlx::raw_sql(statements)
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
    }
}

/// How to open the SQLite file of a database beside the hub.
pub fn sqlite(database: &Database) -> SqliteConnectOptions {
    let path = database.url.strip_prefix("sqlite:").expect("SQLite");
    SqliteConnectOptions::new().filename(path)
}
