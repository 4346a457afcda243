//! `hub migrate`: the tables of the database.

use std::io::Write;

use hub_core::storage::{self, Db, Schema};

use super::offline;
use super::store::DatabaseArgs;
use crate::modules;

/// Flags of `hub migrate`.
#[derive(Debug, clap::Args)]
pub struct Migrate {
    /// Only tell what would be done; the status is 1 if there is something to do.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

impl Migrate {
    /// Does it.
    pub fn run(self) -> Result<(), String> {
        let options = self.database.options();
        offline(async {
            let before = storage::schemas(&options, &modules::migrations()).await?;
            for schema in &before {
                let _ = writeln!(std::io::stdout(), "{}", line(schema));
            }
            storage::refuse_newer(&before)?;
            let pending: usize = before.iter().map(|schema| schema.pending.len()).sum();
            if pending == 0 {
                return Ok(());
            }
            if self.check {
                return Err(format!(
                    "{pending} migrations are to be done: run `hub migrate`"
                ));
            }
            let db = Db::open(&options).await?;
            let migrated = modules::migrate(&db).await;
            db.close().await;
            migrated?;
            let _ = writeln!(std::io::stdout(), "{pending} migrations done");
            Ok(())
        })
    }
}

fn line(schema: &Schema) -> String {
    if schema.is_current() {
        return format!("{}: version {}, up to date", schema.domain, schema.database);
    }
    let pending: Vec<String> = schema
        .pending
        .iter()
        .map(|(version, name)| format!("{version:04} {name}"))
        .collect();
    match pending.is_empty() {
        true => schema.to_string(),
        false => format!("{schema}; to do: {}", pending.join(", ")),
    }
}
