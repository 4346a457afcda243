//! `hub serve`: the server and nothing else.

use std::io::Write;

use serde_json::json;

use super::run::{self, Started};
use super::server::ServerArgs;
use super::store::DatabaseArgs;
use super::tls::TlsArgs;
use crate::config::Config;

/// Flags of `hub serve`.
#[derive(Debug, clap::Args)]
pub struct Serve {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    pub(super) server: ServerArgs,
}

impl Serve {
    /// Serves until a signal.
    pub fn run(self) -> Result<(), String> {
        let server = &self.server;
        let tls = self.tls.files().map_err(|(_, why)| why)?;
        let address = server.listening.address(tls.is_some())?;
        let config = Config {
            tls,
            peer_authorities: self.tls.tls_peer_ca_file.clone(),
            ..server.config(self.database.config())
        };
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
