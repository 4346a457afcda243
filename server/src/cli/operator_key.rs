//! `hub operator-key`: a new operator key in place of a lost one.

use std::io::Write;

use super::offline;
use super::store::DatabaseArgs;
use crate::{offline as server, private_file};

/// Flags of `hub operator-key`.
#[derive(Debug, clap::Args)]
pub struct OperatorKey {
    /// Make a new one, and revoke those that the hub made before.
    #[arg(long, required = true)]
    new: bool,
    /// Leave the old ones as they are.
    #[arg(long)]
    keep_old: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

impl OperatorKey {
    /// Does it. The key alone goes to standard output.
    pub fn run(self) -> Result<(), String> {
        let (config, file) = (self.database.config(), self.database.key_file());
        let made = offline(server::replace_operator_key(&config, !self.keep_old))?;
        let _ = writeln!(std::io::stdout(), "{}", made.plaintext);
        let mut told = format!("{} is the new operator key, shown only now.", made.key_id);
        match private_file::write(&file, format!("{}\n", made.plaintext).as_bytes()) {
            Ok(()) => told.push_str(&format!(" It is also in {}.", file.display())),
            Err(error) => told.push_str(&format!(" It is in no file: {error}.")),
        }
        if !made.revoked.is_empty() {
            told.push_str(&format!(" Revoked: {}.", made.revoked.join(", ")));
        }
        let _ = writeln!(std::io::stderr(), "{told}");
        Ok(())
    }
}
