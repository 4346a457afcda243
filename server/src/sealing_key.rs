//! Where the sealing key comes from: the configuration, or with SQLite a file that is made at the
//! first start.

use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hub_core::sealing::{Sealer, SealingKey};
use hub_core::storage::Db;

use crate::config::Config;
use crate::private_file;

/// Name of the file beside the SQLite database.
pub const FILE: &str = "sealing.key";

/// The key as it was configured, not looked at yet; no error or `Debug` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(String);

impl FromStr for KeyText {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(KeyText(text.to_owned()))
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(<redacted>)")
    }
}

/// Seals with the key of this configuration, which must be that of the database.
pub async fn sealer(config: &Config, db: &Db) -> Result<Sealer, String> {
    let mut made = None;
    let (key, origin) = match (&config.sealing_key, &config.sealing_key_file) {
        (Some(_), Some(_)) => {
            return Err("give sealing-key or sealing-key-file, not both".to_owned());
        }
        (Some(text), None) => (parse(&text.0, "sealing-key")?, "sealing-key".to_owned()),
        (None, Some(file)) => (read(file)?, file.display().to_string()),
        (None, None) => {
            let file = beside(db)?;
            match file.try_exists() {
                Ok(true) => (read(&file)?, file.display().to_string()),
                Ok(false) => (
                    make(made.insert(file))?,
                    "a file that was missing".to_owned(),
                ),
                Err(error) => return Err(format!("cannot look for {}: {error}", file.display())),
            }
        }
    };
    let sealer = Sealer::new(&key);
    let fits = sealer.fits(db).await;
    if fits.map_err(|error| format!("cannot check the sealing key: {error}"))? {
        return Ok(sealer);
    }
    if let Some(file) = made {
        // It was written before the check, so that no crash leaves a database without its key.
        let _ = fs::remove_file(file);
    }
    Err(format!(
        "the sealing key of {origin} is not the one that this database was begun with, so what is \
         stored sealed could not be read: give the key that belongs to it, from its backup or \
         from the other servers"
    ))
}

/// The file beside the SQLite database. With several servers on PostgreSQL each would make its
/// own, so there it must be given.
fn beside(db: &Db) -> Result<PathBuf, String> {
    let folder = db.folder().map(|folder| folder.join(FILE));
    folder.ok_or_else(|| {
        "PostgreSQL needs a sealing key, the same for all servers on it: `openssl rand -base64 32` \
         makes one; give it as HUB_SEALING_KEY, or as a file by --sealing-key-file, and keep a \
         copy apart from the database's backups"
            .to_owned()
    })
}

fn make(file: &Path) -> Result<SealingKey, String> {
    let key = SealingKey::generate().map_err(|error| error.to_string())?;
    private_file::write(file, format!("{}\n", key.expose()).as_bytes())?;
    Ok(key)
}

fn read(file: &Path) -> Result<SealingKey, String> {
    let shown = file.display();
    let text = fs::read_to_string(file).map_err(|error| match error.kind() {
        // The content is not repeated.
        ErrorKind::InvalidData => format!("{shown} is not text"),
        _ => format!("cannot read {shown}: {error}"),
    })?;
    parse(&text, &shown.to_string())
}

fn parse(text: &str, origin: &str) -> Result<SealingKey, String> {
    SealingKey::parse(text).map_err(|problem| format!("{origin} {problem}"))
}
