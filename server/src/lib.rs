//! The hub as a library: [`start`] it, ask the [`Running`] server where it listens, stop it.
//!
//! - [`listen`]: the stack of the one port, as a column.
//! - [`modules`]: the list of domains.
//! - [`cli`]: the commands of the program `hub`.
//!
//! Invariants:
//! - No handler sees a request that was not admitted.
//! - Every answer carries `x-request-id`; every error one reason, the call id and a Help link.
//! - A server that stops loses nothing that it acknowledged, and ends within its deadline.

mod accept;
mod admission;
mod advertise;
mod allocator;
#[cfg(test)]
mod alone;
mod answers;
mod api_limit;
mod bounds;
mod call;
pub mod cli;
pub mod config;
mod connect;
mod corked;
mod dev;
mod explain;
mod known;
pub mod listen;
mod methods;
pub mod modules;
mod offline;
mod pace;
mod pages;
mod peers;
mod private_file;
mod rpc_log;
pub mod sealing_key;
pub mod telemetry;
pub mod tls;
mod turns;
mod unexplained;
mod unknown;
mod until_drained;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use hub_core::auth::Authenticator;
use hub_core::clock::Clock;
use hub_core::cursor::Cursors;
use hub_core::internal::Internal;
use hub_core::jobs::Jobs;
use hub_core::journal::Journal;
use hub_core::module::Core;
use hub_core::processes::Processes;
use hub_core::services::Services;
use hub_core::storage::{self, Db, Options};
use hub_core::tenancy::Tenancy;
use hub_proto::policy::method_policies;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

pub use config::Config;

use accept::Acceptor;
use admission::Gate;
use api_limit::ApiLimit;
use explain::Explainer;
use listen::{Parts, Stack};
use modules::Keys;
use pages::Pages;
use peers::Pool;
use tls::Tls;

/// How long the database may take to close once all calls have ended or were cut off.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A server that runs.
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What its domains work with.
    pub core: Core,
    /// The operator key, at the first start on a database only.
    pub operator_key: Option<String>,
    shutdown: CancellationToken,
    stopped: Shared<BoxFuture<'static, ()>>,
}

impl Running {
    /// Ends when the server has stopped.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        self.stopped.clone()
    }

    /// Begins to stop without waiting for the end.
    pub fn begin_drain(&self) {
        self.shutdown.cancel();
    }

    /// Stops the server: it is NOT_SERVING, streams end with Closing, open calls may finish until
    /// the drain timeout, then the journal and the database are closed.
    pub async fn drain(&self) {
        self.shutdown.cancel();
        self.stopped.clone().await;
    }
}

/// Starts a server on a listener. It drains when `shutdown` is cancelled.
pub async fn start(
    config: Config,
    listener: TcpListener,
    clock: Clock,
    shutdown: CancellationToken,
) -> Result<Running, String> {
    let addr = listener
        .local_addr()
        .map_err(|error| format!("cannot listen: {error}"))?;
    let tls = config.tls.clone().map(Tls::load).transpose()?.map(Arc::new);
    if let Some(file) = &config.peer_authorities {
        tls::authorities(file)?;
    }
    let public_url = public_url(&config, addr);
    let address = advertise::address(&config, addr)?;
    // First of all: what is measured before it is installed is lost.
    let metrics = telemetry::recorder()?;
    let core = open(&config, clock, &public_url, Some(&address)).await?;
    let keys = modules::keys(&core)?;
    let operator_key = operator_key(&keys.keys, config.operator_key_file.as_deref()).await?;
    let authenticator = keys.authenticator.clone();
    let served = modules::services(&core, keys);
    let health = HealthReporter::new();
    report(&health, ServingStatus::Serving).await;
    let stack = Stack::new(Parts {
        services: served.services,
        http: served.http,
        health: Services::default().with(health_service(&health)),
        gate: gate(&config, &core, authenticator),
        explainer: Explainer::new(&core.public_url),
        pages: Pages {
            core: core.clone(),
            metrics: metrics.clone(),
        },
        limits: core.limits.clone(),
    })?;
    let (limits, clock) = (&core.limits, core.clock.clone());
    let acceptor = Acceptor::new(stack, limits, clock, config.connections_max, tls.clone());
    let acceptor = Arc::new(acceptor);
    if let Some(tls) = tls {
        tokio::spawn(tls.watch(core.draining.clone()));
    }
    telemetry::upkeep(metrics, core.workers());
    hub_core::replay::work(core.workers(), &core.db, &core.clock);
    core.jobs.work(core.workers());
    let serving = serve(acceptor, listener, core.clone(), health, shutdown.clone());
    // In a task of its own, so that it goes on although nobody waits for it.
    let task = tokio::spawn(serving);
    let stopped = async move {
        if let Err(error) = task.await {
            tracing::error!("the server ended in a way that it should not: {error}");
        }
    };
    tracing::info!(%addr, "listening");
    Ok(Running {
        addr,
        core,
        operator_key,
        shutdown,
        stopped: stopped.boxed().shared(),
    })
}

/// Where callers find the server, unless the configuration says otherwise: where it listens.
fn public_url(config: &Config, addr: SocketAddr) -> String {
    let scheme = config.tls.as_ref().map_or("http", |_| "https");
    let url = config.public_url.clone();
    let url = url.unwrap_or_else(|| format!("{scheme}://{addr}"));
    url.trim_end_matches('/').to_owned()
}

/// Decides who may call what.
fn gate(config: &Config, core: &Core, authenticator: Arc<dyn Authenticator>) -> Gate {
    let tls = config.tls.as_ref();
    Gate {
        authenticator,
        tenancy: core.tenancy.clone(),
        internal: core.internal.clone(),
        processes: core.processes.clone(),
        draining: core.draining.clone(),
        certificates: tls.is_some_and(|tls| tls.client_authorities.is_some()),
        limit: ApiLimit::new(core.limits.api_requests_per_minute, core.clock.clone()),
    }
}

/// Opens what the domains work with. One of the processes that serve the database, with the address
/// at which the others reach it; or beside them.
async fn open(
    config: &Config,
    clock: Clock,
    public_url: &str,
    address: Option<&str>,
) -> Result<Core, String> {
    let db = Db::open(&Options {
        url: config.database.clone(),
        connections_max: config.database_connections_max,
        size_bytes_max: config.database_bytes_max,
    })
    .await?;
    if config.migrate {
        modules::migrate(&db).await?;
    } else {
        storage::refuse_other(&db.schemas(&modules::migrations()).await?)?;
    }
    // Before anything runs that would keep a database open which is refused.
    let sealer = sealing_key::sealer(config, &db).await?;
    let limits = Arc::new(config.limits.clone());
    let processes = match address {
        Some(address) => Processes::enter(&db, clock.clone(), address).await,
        None => Ok(Processes::aside(&db, clock.clone())),
    };
    let processes = processes.map_err(|error| format!("cannot enter the processes: {error}"))?;
    let journal = Journal::open_as(&processes, &db, clock.clone(), limits.clone()).await?;
    let key = hub_core::secrets::load(&db, "cursor_key").await;
    let key = key.map_err(|error| format!("cannot load the key of the cursors: {error}"))?;
    let internal = Internal::load(&db, &sealer, processes.id()).await;
    let internal = internal.map_err(|error| format!("cannot load the internal key: {error}"))?;
    let own_chain = config.tls.as_ref().map(|tls| tls.certificate.clone());
    let authorities = config.peer_authorities.clone().or(own_chain);
    let peers = Pool::new(processes.clone(), internal.clone(), authorities);
    Ok(Core {
        sealer: Arc::new(sealer),
        tenancy: Tenancy::new(db.clone(), journal.clone()),
        jobs: Jobs::new(&db, &clock),
        public_url: public_url.into(),
        trusted_proxies: config.trusted_proxies.as_str().into(),
        cursors: Arc::new(Cursors::new(key)),
        processes,
        internal,
        peers: Arc::new(peers),
        db,
        journal,
        clock,
        limits,
        draining: CancellationToken::new(),
    })
}

/// Makes the operator key at the first start. Nobody can show it again, so a file that cannot be
/// written is no reason to lose it.
async fn operator_key(keys: &Keys, file: Option<&Path>) -> Result<Option<String>, String> {
    let made = keys.ensure_operator().await;
    let made = made.map_err(|error| format!("cannot make the operator key: {error}"))?;
    if let (Some(key), Some(file)) = (&made, file)
        && let Err(error) = private_file::write(file, format!("{key}\n").as_bytes())
    {
        tracing::error!("the operator key is in no file: {error}");
    }
    Ok(made)
}

/// Serves until `shutdown`, then drains.
async fn serve(
    acceptor: Arc<Acceptor>,
    listener: TcpListener,
    core: Core,
    health: HealthReporter,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = acceptor.run(listener) => {}
        () = shutdown.cancelled() => {}
    }
    tracing::info!("draining");
    // In this order: who asks learns that it ends, streams say so, then connections finish.
    report(&health, ServingStatus::NotServing).await;
    core.draining.cancel();
    acceptor.finish();
    let timeout = core.limits.drain_timeout;
    if tokio::time::timeout(timeout, acceptor.finished())
        .await
        .is_err()
    {
        tracing::warn!(
            ?timeout,
            "calls were still open at the drain timeout; closing them"
        );
        acceptor.close();
        acceptor.finished().await;
    }
    // A call that was cut off may still hold the database; what it wrote and did not commit is
    // rolled back by the next start.
    let closing = async {
        core.journal.close().await;
        // Last, when nothing of its work is under way any more.
        core.processes.leave().await;
        core.db.close().await;
    };
    if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
        tracing::warn!("the database was still in use; ending without closing it");
    }
    tracing::info!("stopped");
}

fn health_service(
    reporter: &HealthReporter,
) -> tonic_health::pb::health_server::HealthServer<tonic_health::server::HealthService> {
    let service = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
    tonic_health::pb::health_server::HealthServer::new(service)
}

/// Tells the state of the server ("") and of each service; one without a built RPC never serves.
async fn report(health: &HealthReporter, status: ServingStatus) {
    health.set_service_status("", status).await;
    let service = |method: &'static str| method.split('/').next().unwrap_or_default();
    let built: BTreeSet<_> = modules::BUILT
        .iter()
        .filter(|method| modules::is_built(method))
        .map(|method| service(method))
        .collect();
    let all: BTreeSet<_> = method_policies()
        .iter()
        .map(|policy| service(policy.method))
        .collect();
    for name in all {
        let status = if built.contains(name) {
            status
        } else {
            ServingStatus::NotServing
        };
        health.set_service_status(name, status).await;
    }
}
