//! What all commands that serve have in common.

use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use hub_core::limits::Limits;

use super::limits::LimitArgs;
use crate::config::{CONNECTIONS_MAX, Config, DATABASE_CONNECTIONS_MAX};
use crate::telemetry::{LOG_FILTER, LogFormat};

/// Flags of every server.
#[derive(Debug, clap::Args)]
pub struct ServerArgs {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:7070")]
    pub listen: String,
    /// Listen on an address that other machines reach, without TLS.
    #[arg(long)]
    pub insecure: bool,
    /// Folder of the SQLite database and of the files with keys.
    #[arg(long, default_value = "hub-data")]
    pub data_dir: PathBuf,
    /// Where callers reach the server, for the links in errors; else `http://` and the address.
    #[arg(long)]
    pub public_url: Option<String>,
    /// Gets one JSON object once the server is ready: addresses and keys. Mode 0600, by rename.
    #[arg(long)]
    pub ready_file: Option<PathBuf>,
    /// Threads that work; else one less than there are cores, at least one.
    #[arg(long)]
    pub worker_threads: Option<NonZeroUsize>,
    /// How log lines look; `auto` is pretty on a terminal and JSON elsewhere.
    #[arg(long, value_enum, default_value_t = LogFormat::Auto)]
    pub log_format: LogFormat,
    /// What is logged, e.g. `warn` or `info,rpc=off`.
    #[arg(long, default_value = LOG_FILTER)]
    pub log_filter: String,
    /// Connections of callers at once.
    #[arg(long, default_value_t = CONNECTIONS_MAX)]
    pub connections_max: usize,
    /// Connections that read (SQLite), or all connections (PostgreSQL).
    #[arg(long, default_value_t = DATABASE_CONNECTIONS_MAX)]
    pub database_connections_max: u32,
    /// Largest size of the SQLite file in bytes; 0 = as large as the disk allows.
    #[arg(long, default_value_t = 0)]
    pub database_bytes_max: u64,
    #[command(flatten)]
    limits: LimitArgs,
}

impl ServerArgs {
    /// The bounds.
    pub fn limits(&self) -> Limits {
        self.limits.limits()
    }

    /// The configuration of a server on this database.
    pub fn config(&self, database: String, operator_key_file: PathBuf) -> Config {
        Config {
            database,
            database_connections_max: self.database_connections_max,
            database_bytes_max: self.database_bytes_max,
            public_url: self.public_url.clone(),
            connections_max: self.connections_max,
            operator_key_file: Some(operator_key_file),
            limits: self.limits(),
        }
    }

    /// The SQLite database of the data folder.
    pub fn sqlite(&self) -> String {
        format!("sqlite:{}", self.data_dir.join("hub.db").display())
    }

    /// The address; one that other machines reach only with `--insecure`.
    pub fn address(&self) -> Result<SocketAddr, String> {
        let resolved = self.listen.to_socket_addrs();
        let resolved = resolved.map_err(|error| format!("--listen {}: {error}", self.listen))?;
        let address = resolved.into_iter().next();
        let address = address.ok_or_else(|| format!("--listen {} is no address", self.listen))?;
        if self.insecure || address.ip().is_loopback() {
            return Ok(address);
        }
        Err(format!(
            "--listen {address} is reachable from other machines, and the hub speaks without TLS: \
             keys would be readable on the way. Put a TLS proxy before a loopback address, or say \
             --insecure"
        ))
    }

    /// Threads of the runtime.
    pub fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.worker_threads
            .map_or(cores.saturating_sub(1).max(1), NonZeroUsize::get)
    }
}
