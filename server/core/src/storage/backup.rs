//! Backups of an SQLite database, and putting them back.
//!
//! A backup is one SQLite file: the state at one moment, also while a hub serves. Nothing beside
//! the database belongs to it; what is derived from the log is made anew after a restore.
//!
//! Invariants:
//! - A file with the name of a backup is whole and on disk: it gets its name last.
//! - A restore never changes what it read, and loses nothing: what was there is set aside.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};

use super::migrate::compare_sqlite;
use super::{Migrations, refuse_newer, sqlite};

/// Files beside the database that a hub makes anew from the log. After a restore they would tell
/// of events that are no longer there, e.g. that an event which was lost is a duplicate.
pub const DERIVED_FILES: [&str; 2] = ["hub-index.db", "hub-listing.db"];
/// What SQLite keeps beside a file while it is open.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// What a backup contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Size of the file.
    pub bytes: u64,
    /// Tenants.
    pub tenants: u64,
    /// Events ever stored, of all tenants.
    pub events: u64,
}

/// Copies the database `from` into the new file `to`, which only its owner can read.
///
/// It reads beside a hub that serves, and delays it by nothing but the disk's work; meanwhile the
/// hub's write-ahead log can't be merged and grows.
pub async fn backup(from: &Path, to: &Path) -> Result<Contents, String> {
    if !from.is_file() {
        return Err(format!("there is no database {}", from.display()));
    }
    if to.exists() {
        return Err(format!(
            "{} is there already: give another name, or remove it",
            to.display()
        ));
    }
    let unfinished = beside(to, ".unfinished");
    let _ = fs::remove_file(&unfinished);
    let made = copy(from, &unfinished).await;
    let named = match made {
        Ok(contents) => name(&unfinished, to).map(|()| contents),
        Err(error) => Err(error),
    };
    named.inspect_err(|_| {
        let _ = fs::remove_file(&unfinished);
    })
}

async fn copy(from: &Path, to: &Path) -> Result<Contents, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot back up: {error}");
    // SQLite takes an empty file for one that is not there, and keeps its mode.
    private(to).map_err(|error| format!("cannot write {}: {error}", to.display()))?;
    let mut connection = sqlite::look(from).await?;
    let text = to.to_str().ok_or("the name of the file is not UTF-8")?;
    let copied = sqlx::query("vacuum into $1")
        .bind(text)
        .execute(&mut connection)
        .await;
    let _ = connection.close().await;
    copied.map_err(|error| failed(&error))?;
    // SQLite does not sync what it wrote.
    let synced = File::open(to).and_then(|file| file.sync_all());
    synced.map_err(|error| failed(&error))?;
    let mut connection = open_unchanged(to).await?;
    let contents = contents(&mut connection, to).await;
    let _ = connection.close().await;
    contents
}

/// Puts the backup `from` in the place of the database `to`; no hub may be using it.
///
/// What is there stays where it is unless `replace`; then it is set aside under the name that is
/// returned, which ends in `stamp`.
pub async fn restore(
    from: &Path,
    to: &Path,
    replace: bool,
    stamp: &str,
    migrations: &[Migrations],
) -> Result<(Contents, Option<PathBuf>), String> {
    let contents = check(from, migrations).await?;
    if let Some(folder) = to.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)
            .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    }
    let lock = sqlite::lock(to)?;
    if to.exists() && !replace {
        return Err(format!(
            "{} is there already: --replace sets it aside and puts the backup in its place",
            to.display()
        ));
    }
    let unfinished = beside(to, ".unfinished");
    let _ = fs::remove_file(&unfinished);
    let copied = private(&unfinished).and_then(|mut file| {
        std::io::copy(&mut File::open(from)?, &mut file)?;
        file.sync_all()
    });
    copied.map_err(|error| format!("cannot write {}: {error}", unfinished.display()))?;
    forget_derived(to)?;
    let aside = set_aside(to, stamp)?;
    name(&unfinished, to)?;
    let _ = lock.unlock();
    Ok((contents, aside))
}

/// What is in a backup. It must be whole, of a hub, and of none that is newer than this one.
pub async fn check(path: &Path, migrations: &[Migrations]) -> Result<Contents, String> {
    if !path.is_file() {
        return Err(format!("there is no file {}", path.display()));
    }
    let wal = beside(path, "-wal");
    if wal.metadata().is_ok_and(|wal| wal.len() > 0) {
        return Err(format!(
            "{} lies beside it, so {} is not all of the database: take a backup by `hub backup`, \
             or stop the hub before its file is copied",
            wal.display(),
            path.display()
        ));
    }
    let mut connection = open_unchanged(path).await?;
    let checked = async {
        let damaged =
            |what: &dyn std::fmt::Display| format!("{} is damaged: {what}", path.display());
        let found: Vec<(String,)> = sqlx::query_as("pragma integrity_check(10)")
            .fetch_all(&mut connection)
            .await
            .map_err(|error| damaged(&error))?;
        if found.iter().any(|(line,)| line != "ok") {
            let lines: Vec<String> = found.into_iter().map(|(line,)| line).collect();
            return Err(damaged(&lines.join("; ")));
        }
        let schemas = compare_sqlite(&mut connection, migrations).await?;
        if schemas.iter().all(|schema| schema.database == 0) {
            return Err(format!("{} is no database of a hub", path.display()));
        }
        refuse_newer(&schemas)?;
        contents(&mut connection, path).await
    };
    let checked = checked.await;
    let _ = connection.close().await;
    checked
}

/// Opens a file that nobody uses so that nothing is written beside it.
async fn open_unchanged(path: &Path) -> Result<SqliteConnection, String> {
    let connect = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .immutable(true);
    SqliteConnection::connect_with(&connect)
        .await
        .map_err(|error| format!("cannot open {}: {error}", path.display()))
}

async fn contents(connection: &mut SqliteConnection, path: &Path) -> Result<Contents, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", path.display());
    let (tenants, events): (i64, i64) = sqlx::query_as(
        "select count(*), coalesce(sum(head), 0) from journal_heads where tenant_no > 0",
    )
    .fetch_one(connection)
    .await
    .map_err(|error| failed(&error))?;
    let bytes = fs::metadata(path).map_err(|error| failed(&error))?.len();
    Ok(Contents {
        bytes,
        tenants: tenants.unsigned_abs(),
        events: events.unsigned_abs(),
    })
}

fn forget_derived(database: &Path) -> Result<(), String> {
    let folder = database.parent().unwrap_or(Path::new("."));
    for file in DERIVED_FILES {
        for companion in [""].iter().chain(&COMPANIONS) {
            let path = folder.join(format!("{file}{companion}"));
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("cannot remove {}: {error}", path.display()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The database first: without it SQLite takes no notice of what lies beside.
fn set_aside(database: &Path, stamp: &str) -> Result<Option<PathBuf>, String> {
    let aside = beside(database, &format!(".{stamp}"));
    for companion in [""].iter().chain(&COMPANIONS) {
        let (from, to) = (beside(database, companion), beside(&aside, companion));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("cannot set {} aside: {error}", from.display()));
            }
            _ => {}
        }
    }
    Ok(aside.exists().then_some(aside))
}

/// Gives a finished file its name, so that it also has it after a power loss.
fn name(unfinished: &Path, to: &Path) -> Result<(), String> {
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
    let renamed = fs::rename(unfinished, to)
        .and_then(|()| File::open(folder.unwrap_or(Path::new(".")))?.sync_all());
    renamed.map_err(|error| format!("cannot write {}: {error}", to.display()))
}

/// An empty file that only its owner can read.
fn private(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(path)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
