//! Runs a server in this process: runtime, ready file, signals.

use std::net::SocketAddr;
use std::path::PathBuf;

use hub_core::clock::Clock;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::server::ServerArgs;
use crate::config::Config;
use crate::telemetry::Logging;
use crate::{Running, private_file, telemetry};

/// A server that has just been started.
pub struct Started {
    /// The server.
    pub running: Running,
    /// Where the operator key is.
    pub operator_key_file: PathBuf,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Cancelled once the server is told to stop.
    pub shutdown: CancellationToken,
}

impl Started {
    /// Where callers on this machine reach the server.
    pub fn address(&self) -> SocketAddr {
        let mut address = self.running.addr;
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        address
    }

    /// The ready file without keys.
    pub fn ready(&self) -> Value {
        let address = self.address().to_string();
        let scheme = if self.tls { "https" } else { "http" };
        json!({"grpc": address, "http": format!("{scheme}://{address}")})
    }
}

/// Serves until a signal. `then` runs once the server takes calls; its answer is the ready file.
pub fn run(
    server: &ServerArgs,
    config: Config,
    address: SocketAddr,
    then: impl AsyncFnOnce(&Started) -> Result<Value, String>,
) -> Result<(), String> {
    let logging = telemetry::log(server.log.log_format, &server.log.log_filter)?;
    telemetry::log_panics();
    let runtime = Builder::new_multi_thread()
        .worker_threads(server.listening.threads())
        .thread_name("hub")
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let done = runtime.block_on(serve(server, config, address, &logging, then));
    // What is still in a blocking call must not hold the process.
    runtime.shutdown_background();
    done
}

async fn serve(
    server: &ServerArgs,
    config: Config,
    address: SocketAddr,
    logging: &Logging,
    then: impl AsyncFnOnce(&Started) -> Result<Value, String>,
) -> Result<(), String> {
    let mut signals = Signals::new()?;
    let shutdown = CancellationToken::new();
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|error| {
        format!("cannot listen on {address}: {error}; --listen 127.0.0.1:0 picks a free port")
    })?;
    let operator_key_file = config.operator_key_file.clone().unwrap_or_default();
    let tls = config.tls.is_some();
    let running = crate::start(config, listener, Clock::system(), shutdown.clone()).await?;
    let started = Started {
        running,
        operator_key_file,
        tls,
        shutdown: shutdown.clone(),
    };
    let outcome = tokio::select! {
        prepared = prepare(server, &started, then) => prepared,
        _ = signals.next() => Ok(()),
    };
    if outcome.is_ok() && !shutdown.is_cancelled() {
        tokio::select! {
            () = started.running.stopped() => return Err("the server ended by itself".to_owned()),
            name = signals.next() => tracing::info!("{name}: finishing open calls"),
        }
    }
    tokio::select! {
        () = started.running.drain() => outcome,
        name = signals.next() => {
            tracing::warn!("{name} again: ending at once");
            logging.flush();
            std::process::exit(signals.exit_code);
        }
    }
}

async fn prepare(
    server: &ServerArgs,
    started: &Started,
    then: impl AsyncFnOnce(&Started) -> Result<Value, String>,
) -> Result<(), String> {
    let ready = then(started).await?;
    match &server.listening.ready_file {
        Some(path) => private_file::write(path, format!("{ready}\n").as_bytes()),
        None => Ok(()),
    }
}

/// The signals that stop a server.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    exit_code: i32,
}

impl Signals {
    fn new() -> Result<Self, String> {
        let listen = |kind| signal(kind).map_err(|error| format!("cannot take signals: {error}"));
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            exit_code: 0,
        })
    }

    /// The next one. The exit code is that of a process that the signal ended.
    async fn next(&mut self) -> &'static str {
        let (name, number) = tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 15),
            _ = self.interrupt.recv() => ("SIGINT", 2),
        };
        self.exit_code = 128 + number;
        name
    }
}
