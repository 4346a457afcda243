//! `hub backup` and `hub restore`, on SQLite.

use std::io::Write;
use std::path::{Path, PathBuf};

use hub_core::clock::Clock;
use hub_core::storage::backup::{self, Contents};

use super::store::DatabaseArgs;
use super::{Size, offline};
use crate::{modules, private_file, sealing_key};

/// Flags of `hub backup`.
#[derive(Debug, clap::Args)]
pub struct Backup {
    /// The file to make; it must not be there yet.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// Flags of `hub restore`.
#[derive(Debug, clap::Args)]
pub struct Restore {
    /// The backup.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Set a database that is there aside, and put the backup in its place.
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

impl Backup {
    /// Does it.
    pub fn run(self) -> Result<(), String> {
        let from = sqlite(
            &self.database,
            "pg_dump, or a base backup with its WAL, backs it up",
        )?;
        let contents = offline(backup::backup(&from, &self.file))?;
        say(&format!("{}: {}", self.file.display(), shown(&contents)));
        let (key, copy) = (key_beside(&from), key_of(&self.file));
        if self.database.store.configures_sealing_key() {
            say("The sealing key is configured, and not part of the backup.");
        } else if let Some(text) = read(&key)? {
            private_file::write(&copy, &text)?;
            say(&format!(
                "{}: the sealing key, without which it cannot be used",
                copy.display()
            ));
        }
        Ok(())
    }
}

impl Restore {
    /// Does it.
    pub fn run(self) -> Result<(), String> {
        let to = sqlite(&self.database, "restore it by the tools that backed it up")?;
        let stamp = format!("replaced-{}", Clock::system().now());
        let restored = offline(async {
            let migrations = modules::migrations();
            backup::restore(&self.file, &to, self.replace, &stamp, &migrations).await
        });
        let (contents, aside) = restored?;
        let key = self.restore_key(&to, &stamp)?;
        say(&format!("{}: {}", to.display(), shown(&contents)));
        if let Some(aside) = aside {
            say(&format!("what was there is now {}", aside.display()));
        }
        say(&key);
        say(
            "Keys that were revoked since the backup are valid again, and readers past its end get \
             LOG_REWOUND: see docs/operations.md.",
        );
        Ok(())
    }
}

impl Restore {
    /// Puts the sealing key of the backup beside the database, and tells where the key is.
    fn restore_key(&self, database: &Path, stamp: &str) -> Result<String, String> {
        let (copy, place) = (key_of(&self.file), key_beside(database));
        if self.database.store.configures_sealing_key() {
            return Ok("The sealing key is the one that is configured.".to_owned());
        }
        let (wanted, there) = (read(&copy)?, read(&place)?);
        let shown = place.display();
        match (wanted, there) {
            (None, None) => Ok(format!(
                "There is no {}, and no {shown}: put the sealing key of the backup there before \
                 the hub is started.",
                copy.display()
            )),
            (None, Some(_)) => Ok(format!("{shown}: the sealing key that was there")),
            (Some(wanted), Some(there)) if wanted == there => {
                Ok(format!("{shown}: the sealing key, the same as before"))
            }
            (Some(wanted), there) => {
                if let Some(there) = there {
                    let mut aside = place.clone().into_os_string();
                    aside.push(format!(".{stamp}"));
                    private_file::write(Path::new(&aside), &there)?;
                }
                private_file::write(&place, &wanted)?;
                Ok(format!("{shown}: the sealing key of the backup"))
            }
        }
    }
}

/// The key file that the hub makes beside its database.
fn key_beside(database: &Path) -> PathBuf {
    database.with_file_name(sealing_key::FILE)
}

/// The copy of it beside a backup: `FILE.sealing.key`.
fn key_of(backup: &Path) -> PathBuf {
    let mut name = backup.as_os_str().to_owned();
    name.push(format!(".{}", sealing_key::FILE));
    PathBuf::from(name)
}

/// The content of a file, if it is there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

fn sqlite(database: &DatabaseArgs, instead: &str) -> Result<PathBuf, String> {
    database.sqlite().ok_or_else(|| {
        format!(
            "this is for SQLite, and the database is PostgreSQL: {instead}, see docs/operations.md"
        )
    })
}

fn shown(contents: &Contents) -> String {
    let Contents {
        bytes,
        tenants,
        events,
    } = contents;
    format!(
        "{events} events of {tenants} tenants, {}",
        Size::from(*bytes)
    )
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
