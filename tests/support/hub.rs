//! A hub in this process.

use std::net::SocketAddr;
use std::time::Duration;

use hub_client::Hub;
use hub_core::clock::Clock;
use hub_core::limits::Limits;
use hub_core::module::Core;
use hub_server::{Config, Running};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::database::{Backend, Database};
use super::panics::Watch;
use super::tenant::Tenant;

/// Deadline of anything that a test waits for; what takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// How to start a [`TestHub`].
pub struct Options {
    backend: Backend,
    clock: Clock,
    config: Box<dyn FnOnce(&mut Config)>,
}

/// A hub on a database of its own, with one tenant. It stops when it is dropped, and the test fails
/// if one of its tasks panicked.
pub struct TestHub {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its clock; a manual one stands still until `advance`.
    pub clock: Clock,
    /// Key of no tenant that may do everything.
    pub operator_key: String,
    /// What its domains work with.
    pub core: Core,
    running: Running,
    first: Option<Tenant>,
    config: Config,
    panics: Watch,
    /// Last, so that the server is told to stop before.
    _database: Database,
}

impl Options {
    /// Time stands still until the test moves it. It starts at 2026-01-01T00:00:00Z.
    #[must_use]
    pub fn manual_clock(mut self) -> Self {
        self.clock = Clock::manual(1_767_225_600_000_000);
        self
    }

    /// Changes the bounds.
    #[must_use]
    pub fn limits(self, change: impl FnOnce(&mut Limits) + 'static) -> Self {
        self.config(|config| change(&mut config.limits))
    }

    /// Changes the configuration; the last one given counts.
    #[must_use]
    pub fn config(mut self, change: impl FnOnce(&mut Config) + 'static) -> Self {
        self.config = Box::new(change);
        self
    }

    /// Starts it.
    pub async fn start(self) -> TestHub {
        let panics = Watch::begin();
        let database = Database::new(self.backend).await;
        let mut config = database.config();
        (self.config)(&mut config);
        let running = serve(&config, &self.clock).await;
        let operator_key = running.operator_key.clone().expect("a new database");
        let mut hub = TestHub {
            addr: running.addr,
            clock: self.clock,
            operator_key,
            core: running.core.clone(),
            running,
            first: None,
            config,
            panics,
            _database: database,
        };
        hub.first = Some(hub.tenant().await);
        hub
    }
}

impl TestHub {
    /// Starts one with the defaults of the hub and the system's clock.
    pub async fn start(backend: Backend) -> Self {
        Self::options(backend).start().await
    }

    /// Starts with defaults, to be changed.
    pub fn options(backend: Backend) -> Options {
        Options {
            backend,
            clock: Clock::system(),
            config: Box::new(|_| {}),
        }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What `--database` would take, to look at the tables beside the hub.
    pub fn database_url(&self) -> &str {
        &self.config.database
    }

    /// A new tenant.
    pub async fn tenant(&self) -> Tenant {
        Tenant::create(&self.client(&self.operator_key)).await
    }

    /// The tenant that is there from the start.
    pub fn first_tenant(&self) -> &Tenant {
        self.first.as_ref().expect("made at the start")
    }

    /// A key of the first tenant; it speaks for `product` unless that is empty.
    pub async fn key(&self, product: &str, scopes: &[&str]) -> String {
        let tenant = self.first_tenant();
        tenant
            .key(&self.client(&tenant.admin_key), product, scopes)
            .await
    }

    /// The client crate with a key.
    pub fn client(&self, key: &str) -> Hub {
        Hub::builder(self.url())
            .api_key(key)
            .timeout(PATIENCE)
            .connect_lazy()
            .unwrap()
    }

    /// A connection without key or deadline, for generated clients.
    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(self.url())
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    /// Stops it as SIGTERM does.
    pub async fn stop(&self) {
        tokio::time::timeout(PATIENCE, self.running.drain())
            .await
            .expect("drains in time");
    }

    /// Stops it and starts another one on the same database, at another port.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.running = serve(&self.config, &self.clock).await;
        assert_eq!(self.running.operator_key, None, "the database is not new");
        self.addr = self.running.addr;
        self.core = self.running.core.clone();
    }
}

impl Drop for TestHub {
    fn drop(&mut self) {
        self.running.begin_drain();
        // A test that has failed says why by itself.
        if !std::thread::panicking() {
            self.panics.check();
        }
    }
}

async fn serve(config: &Config, clock: &Clock) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shutdown = CancellationToken::new();
    hub_server::start(config.clone(), listener, clock.clone(), shutdown)
        .await
        .unwrap()
}
