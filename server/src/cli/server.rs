//! Settings of every server. A field is a setting: its name is the flag, the variable and the key
//! in the file, and its comment is its text in the reference.

use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use hub_core::limits::Limits;

use super::limits::LimitArgs;
use crate::advertise;
use crate::config::{CONNECTIONS_MAX, Config, TRUSTED_PROXIES};
use crate::telemetry::{LOG_FILTER, LogFormat, check_filter};

/// Settings of every server.
#[derive(Debug, clap::Args)]
pub struct ServerArgs {
    #[command(flatten)]
    pub listening: ListenArgs,
    #[command(flatten)]
    pub log: LogArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Where it listens.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Listening")]
pub struct ListenArgs {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:7070")]
    pub listen: String,
    /// Listen on an address that other machines reach, without TLS.
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_value = "false", default_missing_value = "true",
          value_parser = clap::builder::BoolishValueParser::new())]
    pub insecure: bool,
    /// Where callers reach the server, for the links in errors; else `http://` or `https://` and
    /// the address.
    #[arg(long)]
    pub public_url: Option<String>,
    /// Where the other hub processes on the same PostgreSQL reach this one, `http://HOST:PORT` or
    /// `https://HOST:PORT`; else the address that it listens on. Needed if that is 0.0.0.0 or ::.
    #[arg(long, value_name = "URL", value_parser = advertise::check)]
    pub advertise: Option<String>,
    /// Gets one JSON object once the server is ready: addresses and keys. Mode 0600, by rename.
    #[arg(long)]
    pub ready_file: Option<PathBuf>,
    /// Threads that work; else one less than there are cores, at least one.
    #[arg(long)]
    pub worker_threads: Option<NonZeroUsize>,
    /// Addresses of proxies that ask `/authz` or Envoy's Check, as CIDR with commas between: only
    /// what these say of the client's address, host and path is believed.
    #[arg(long, value_name = "CIDRS", default_value = TRUSTED_PROXIES)]
    pub trusted_proxies: String,
    /// Connections of callers at once.
    #[arg(long, default_value_t = CONNECTIONS_MAX)]
    pub connections_max: usize,
}

/// What is logged.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// How log lines look; `auto` is pretty on a terminal and JSON elsewhere.
    #[arg(long, value_enum, default_value_t = LogFormat::Auto)]
    pub log_format: LogFormat,
    /// What is logged, e.g. `warn` or `info,rpc=off`.
    #[arg(long, default_value = LOG_FILTER, value_parser = check_filter)]
    pub log_filter: String,
}

impl ServerArgs {
    /// The bounds.
    pub fn limits(&self) -> Limits {
        self.limits.limits()
    }

    /// The configuration of a server, over that of its database.
    pub fn config(&self, database: Config) -> Config {
        Config {
            public_url: self.listening.public_url.clone(),
            advertise: self.listening.advertise.clone(),
            trusted_proxies: self.listening.trusted_proxies.clone(),
            connections_max: self.listening.connections_max,
            limits: self.limits(),
            ..database
        }
    }
}

impl ListenArgs {
    /// The address; one that other machines reach needs TLS or `--insecure`.
    pub fn address(&self, tls: bool) -> Result<SocketAddr, String> {
        let resolved = self.listen.to_socket_addrs();
        let resolved = resolved.map_err(|error| format!("--listen {}: {error}", self.listen))?;
        let address = resolved.into_iter().next();
        let address = address.ok_or_else(|| format!("--listen {} is no address", self.listen))?;
        if tls || self.insecure || address.ip().is_loopback() {
            return Ok(address);
        }
        Err(format!(
            "--listen {address} is reachable from other machines, and the hub would speak without \
             TLS: keys would be readable on the way. Give --tls-cert-file and --tls-key-file, put \
             a TLS proxy before a loopback address, or say --insecure"
        ))
    }

    /// Threads of the runtime.
    pub fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.worker_threads
            .map_or(cores.saturating_sub(1).max(1), NonZeroUsize::get)
    }
}
