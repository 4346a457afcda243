//! `hub serve`: the server and nothing else.

use std::io::Write;
use std::path::PathBuf;

use serde_json::json;

use super::run::{self, Started};
use super::server::ServerArgs;

/// Flags of `hub serve`.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`; else SQLite in the data folder.
    #[arg(long)]
    database: Option<String>,
    /// Gets the operator key at the first start, mode 0600; else `operator.key` in the data
    /// folder, or here if the database is PostgreSQL.
    #[arg(long)]
    operator_key_file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) server: ServerArgs,
}

impl Serve {
    /// Serves until a signal.
    pub fn run(self) -> Result<(), String> {
        let server = &self.server;
        let database = self.database.clone().unwrap_or_else(|| server.sqlite());
        let folder = match database.starts_with("sqlite:") {
            true => server.data_dir.clone(),
            false => PathBuf::from("."),
        };
        let key_file = self.operator_key_file.clone();
        let key_file = key_file.unwrap_or_else(|| folder.join("operator.key"));
        let config = server.config(database, key_file);
        let address = server.address()?;
        run::run(server, config, address, async |started: &Started| {
            let mut ready = started.ready();
            if let Some(key) = &started.running.operator_key {
                ready["operatorKey"] = json!(key);
                let _ = writeln!(
                    std::io::stdout(),
                    "This database is new. Its operator key is shown only now:\n\n  {key}\n\n\
                     It is also in {}. Move it to a safe place.\n",
                    started.operator_key_file.display()
                );
            }
            Ok(ready)
        })
    }
}
