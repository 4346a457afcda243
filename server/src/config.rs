//! What the server is told; the command line fills it.

use std::path::PathBuf;

use hub_core::limits::Limits;

use crate::sealing_key::KeyText;

use crate::tls::Files;

/// Configuration of one server.
#[derive(Debug, Clone)]
pub struct Config {
    /// `sqlite:PATH` or `postgres://…`.
    pub database: String,
    /// Connections that read (SQLite), or all connections (PostgreSQL).
    pub database_connections_max: u32,
    /// Largest size of the SQLite file in bytes; 0 = as large as the disk allows.
    pub database_bytes_max: u64,
    /// Where callers reach the server, for the links in errors; none = `http://` and the address.
    pub public_url: Option<String>,
    /// Where the other processes on the database reach this one; none = `http://` or `https://` and
    /// the address that it listens on.
    pub advertise: Option<String>,
    /// Blocks of addresses of proxies that are believed, with commas between.
    pub trusted_proxies: String,
    /// Connections at once.
    pub connections_max: usize,
    /// File that gets the operator key at the first start, mode 0600; none = it is not written.
    pub operator_key_file: Option<PathBuf>,
    /// Whether tables are brought up to date at the start; else an old schema is refused.
    pub migrate: bool,
    /// Certificates; none = without TLS.
    pub tls: Option<Files>,
    /// Certificates of the authorities of other processes, PEM; none = those in the own chain.
    pub peer_authorities: Option<PathBuf>,
    /// Seals what is stored of secrets: base64 of 32 bytes. PostgreSQL needs it, or the file.
    pub sealing_key: Option<KeyText>,
    /// File with the sealing key; none = with SQLite `sealing.key` beside the database.
    pub sealing_key_file: Option<PathBuf>,
    /// The bounds.
    pub limits: Limits,
}

/// Connections to the database unless told otherwise.
pub const DATABASE_CONNECTIONS_MAX: u32 = 8;
/// Proxies that are believed unless told otherwise: those of this machine.
pub const TRUSTED_PROXIES: &str = "127.0.0.0/8,::1/128";
/// Connections of callers unless told otherwise.
pub const CONNECTIONS_MAX: usize = 20_000;

impl Config {
    /// Defaults for a database.
    pub fn new(database: impl Into<String>) -> Self {
        Config {
            database: database.into(),
            database_connections_max: DATABASE_CONNECTIONS_MAX,
            database_bytes_max: 0,
            public_url: None,
            advertise: None,
            trusted_proxies: TRUSTED_PROXIES.to_owned(),
            connections_max: CONNECTIONS_MAX,
            operator_key_file: None,
            migrate: true,
            tls: None,
            peer_authorities: None,
            sealing_key: None,
            sealing_key_file: None,
            limits: Limits::default(),
        }
    }
}
