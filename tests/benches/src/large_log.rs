//! A journal with millions of events of one tenant, filled directly.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hub_client::proto::hub::platform::v1::CreateTenantRequest;
use hub_client::{CloudEvent, Data, Hub};
use hub_core::clock::Clock;
use hub_core::journal::{Append, Log, NewEvent};
use hub_server::{Config, Running};
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{PAYLOAD_BYTES, Result};

/// PostgreSQL needs one; nothing here is sealed with it.
const SEALING_KEY: &str = "bm90IGEgc2VjcmV0LCBub3QgYSBzZWNyZXQsIG5vIG4=";
/// Types beside the rare one, of equal frequency.
const TYPES: u64 = 40;

/// A hub with such a journal, in this process.
pub struct LargeLog {
    /// The hub.
    pub running: Running,
    /// Key of the operator.
    pub operator_key: String,
    /// Key of the tenant's administrator.
    pub admin_key: String,
    /// Id of the tenant.
    pub tenant_id: String,
    /// The tenant's log.
    pub log: Arc<Log>,
}

impl LargeLog {
    /// Fills a new database: `events` in commits of `commit`, of which one in `rare` is of the
    /// type `rare.kind`. Returns once the listing index has them all.
    ///
    /// # Errors
    /// The hub does not start, or refuses something.
    pub async fn fill(url: &str, events: u64, commit: u64, rare: u64) -> Result<Self> {
        let filled = Self::empty(url).await?;
        let (journal, log) = (filled.running.core.journal.clone(), &filled.log);
        let started = Instant::now();
        let mut next = 0;
        while next < events {
            let count = commit.min(events - next);
            // One after the other: those that wait together would be one commit.
            journal.append(batch(log, next, count, rare)).await?;
            next += count;
        }
        let elapsed = started.elapsed();
        while journal.listing_covered(log.tenant()).await? < events {
            journal.write_listing().await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        println!(
            "{events} events in {:.1} s, listed {:.1} s later",
            elapsed.as_secs_f64(),
            (started.elapsed() - elapsed).as_secs_f64(),
        );
        Ok(filled)
    }

    /// A new database with one tenant.
    ///
    /// # Errors
    /// The hub does not start, or refuses something.
    pub async fn empty(url: &str) -> Result<Self> {
        let running = start(url).await?;
        let operator_key = running
            .operator_key
            .clone()
            .ok_or("the database is not new")?;
        let request = CreateTenantRequest {
            name: "large".to_owned(),
            ..CreateTenantRequest::default()
        };
        let operator = connect(&running, &operator_key)?;
        let created = operator
            .platform()
            .create_tenant(request)
            .await?
            .into_inner();
        let tenant_id = created.tenant.ok_or("no tenant")?.tenant_id;
        let tenant = running.core.tenancy.find(&tenant_id).await?;
        let log = running.core.journal.log(&tenant).await?;
        Ok(LargeLog {
            log,
            operator_key,
            admin_key: created.admin_key,
            tenant_id,
            running,
        })
    }
}

/// What `--database` takes for a file of SQLite.
pub fn sqlite(file: &Path) -> String {
    format!("sqlite:{}", file.display())
}

/// Starts a hub on a database, in this process.
///
/// # Errors
/// It does not start.
pub async fn start(url: &str) -> Result<Running> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut config = Config::new(url);
    config.sealing_key = SEALING_KEY.parse().ok();
    let shutdown = CancellationToken::new();
    Ok(hub_server::start(config, listener, Clock::system(), shutdown).await?)
}

/// A connection with a key.
///
/// # Errors
/// The address can't be used.
pub fn connect(running: &Running, key: &str) -> Result<Hub> {
    let hub = Hub::builder(format!("http://{}", running.addr)).api_key(key);
    Ok(hub.connect_lazy()?)
}

/// Events for one commit, as a publisher's frames bring them: numbers `first` and up, each of its
/// own identity.
pub fn batch(log: &Arc<Log>, first: u64, count: u64, rare: u64) -> Append {
    let event = |number: u64| {
        let kind = match number % rare.max(1) {
            0 => "rare.kind".to_owned(),
            _ => format!("type.{}", spread(number) as u64 % TYPES),
        };
        let event = CloudEvent {
            id: number.to_string(),
            source: "/large".to_owned(),
            spec_version: "1.0".to_owned(),
            r#type: kind.clone(),
            data: Some(Data::BinaryData(vec![b'x'; PAYLOAD_BYTES].into())),
            ..CloudEvent::default()
        };
        NewEvent {
            product: "psa".into(),
            kind: Bytes::from(kind),
            event: event.encode_to_vec().into(),
            identity: spread(number),
            content: spread(!number),
        }
    };
    Append {
        log: log.clone(),
        events: (first..first + count).map(event).collect(),
        independent: true,
        row: None,
    }
}

/// Spread as a hash is, and different for each number.
fn spread(number: u64) -> u128 {
    let mix = |seed: u64| {
        let mixed = (number ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    };
    u128::from(mix(0x1234_5678)) << 64 | u128::from(mix(0))
}
