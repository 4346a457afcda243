//! Settings of the database.

use std::path::PathBuf;

use hub_core::storage::{Options, sqlite_path};

use super::Size;
use crate::config::{Config, DATABASE_CONNECTIONS_MAX};
use crate::sealing_key::KeyText;

/// Which database, and how it is used.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Database")]
pub struct DatabaseArgs {
    /// `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`; else SQLite in the data folder.
    /// `hub dev` is always on SQLite in the data folder.
    #[arg(long)]
    pub database: Option<String>,
    /// Gets the operator key at the first start, mode 0600; else `operator.key` in the data
    /// folder, or here if the database is PostgreSQL.
    #[arg(long)]
    pub operator_key_file: Option<PathBuf>,
    #[command(flatten)]
    pub store: StoreArgs,
}

/// How a database is used.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Database")]
pub struct StoreArgs {
    /// Folder of the SQLite database and of the files with keys.
    #[arg(long, default_value = "hub-data")]
    pub data_dir: PathBuf,
    /// Seals secrets that are stored: base64 of 32 bytes, the same for all servers of a database.
    /// PostgreSQL needs it or its file; with SQLite, `sealing.key` beside the database is made.
    #[arg(long)]
    pub sealing_key: Option<KeyText>,
    /// File with the sealing key.
    #[arg(long)]
    pub sealing_key_file: Option<PathBuf>,
    /// Connections that read (SQLite), or all connections (PostgreSQL).
    #[arg(long, default_value_t = DATABASE_CONNECTIONS_MAX)]
    pub database_connections_max: u32,
    /// Largest size of the SQLite file; 0 = as large as the disk allows.
    #[arg(long, value_name = "SIZE", default_value_t = Size::from(0_u64))]
    pub database_bytes_max: Size,
}

impl DatabaseArgs {
    /// The URL.
    pub fn url(&self) -> String {
        let given = self.database.clone();
        given.unwrap_or_else(|| self.store.sqlite())
    }

    /// The file, if the database is SQLite.
    pub fn sqlite(&self) -> Option<PathBuf> {
        sqlite_path(&self.url())
    }

    /// Where the operator key goes.
    pub fn key_file(&self) -> PathBuf {
        let folder = match self.sqlite() {
            Some(_) => self.store.data_dir.clone(),
            None => PathBuf::from("."),
        };
        let given = self.operator_key_file.clone();
        given.unwrap_or_else(|| folder.join("operator.key"))
    }

    /// How to open it.
    pub fn options(&self) -> Options {
        Options {
            url: self.url(),
            connections_max: self.store.database_connections_max,
            size_bytes_max: self.store.database_bytes_max.bytes(),
        }
    }

    /// The configuration of a server on it. On SQLite the server migrates by itself, for there is
    /// no other that the change could disturb.
    pub fn config(&self) -> Config {
        let mut config = self.store.config(self.url(), self.key_file());
        config.migrate = self.sqlite().is_some();
        config
    }
}

impl StoreArgs {
    /// The SQLite database of the data folder.
    pub fn sqlite(&self) -> String {
        format!("sqlite:{}", self.data_dir.join("hub.db").display())
    }

    /// Whether the sealing key is given, not made by the hub.
    pub fn configures_sealing_key(&self) -> bool {
        self.sealing_key.is_some() || self.sealing_key_file.is_some()
    }

    /// The configuration of a server that migrates by itself.
    pub fn config(&self, database: String, operator_key_file: PathBuf) -> Config {
        Config {
            database_connections_max: self.database_connections_max,
            database_bytes_max: self.database_bytes_max.bytes(),
            operator_key_file: Some(operator_key_file),
            sealing_key: self.sealing_key.clone(),
            sealing_key_file: self.sealing_key_file.clone(),
            ..Config::new(database)
        }
    }
}
