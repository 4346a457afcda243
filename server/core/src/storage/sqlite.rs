//! SQLite: one writer, many readers, one process.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, SqliteConnection, SqlitePool};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::Options;
use super::checkpointer::{Checkpointer, FRAMES_LATE, Log};
use super::failure::Done;

/// 8 KiB pages: fewer of them per segment; 5 to 16 % more events a second than 4 KiB.
pub(super) const PAGE_BYTES: u32 = 8192;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// A read page of the journal may wait for others; longer than this the caller is told.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that are opened at the start and stay: as many as a page of the event log reads side
/// by side. To open them took most of the time of the first such page.
const READERS_KEPT: u32 = 6;

pub(crate) struct Sqlite {
    pub(super) path: PathBuf,
    pub(crate) read: SqlitePool,
    pub(super) writer: Arc<Mutex<Writer>>,
    pub(super) checkpointer: Checkpointer,
    pages_max: Option<u64>,
    lock: File,
}

/// The only connection of the process that writes.
pub(crate) struct Writer {
    pub(super) connection: SqliteConnection,
    /// A transaction began and its end was not seen: its caller was cancelled half-way.
    dirty: bool,
    /// Counts transactions that ended unseen: what was derived from the file may be old.
    pub(crate) unseen_ends: u64,
    log: Arc<Log>,
}

impl Sqlite {
    pub(super) async fn open(path: PathBuf, options: &Options) -> Result<Self, String> {
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            std::fs::create_dir_all(folder)
                .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        }
        let lock = lock(&path)?;
        let connect = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .page_size(PAGE_BYTES)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .pragma("wal_autocheckpoint", FRAMES_LATE.to_string())
            .busy_timeout(BUSY_TIMEOUT)
            .optimize_on_close(false, None);
        let failed = |error| format!("cannot open {}: {error}", path.display());
        let mut connection = SqliteConnection::connect_with(&connect)
            .await
            .map_err(failed)?;
        let pages_max = (options.size_bytes_max > 0)
            .then(|| options.size_bytes_max.div_ceil(u64::from(PAGE_BYTES)));
        if let Some(pages) = pages_max {
            let text = format!("pragma max_page_count = {pages}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(text))
                .execute(&mut connection)
                .await
                .map_err(failed)?;
        }
        assert_durable(&mut connection).await?;
        let copies = SqliteConnection::connect_with(&connect)
            .await
            .map_err(failed)?;
        let read = SqlitePoolOptions::new()
            .max_connections(options.connections_max)
            .min_connections(options.connections_max.min(READERS_KEPT))
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A file does not go away as a server may: there is nothing to renew.
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(connect.read_only(true));
        let log = Arc::<Log>::default();
        let writer = Writer {
            connection,
            dirty: false,
            unseen_ends: 0,
            log: log.clone(),
        };
        let writer = Arc::new(Mutex::new(writer));
        Ok(Sqlite {
            path,
            read,
            checkpointer: Checkpointer::start(copies, writer.clone(), log),
            writer,
            pages_max,
            lock,
        })
    }

    /// Waits for the writer, and cleans up after a holder that was cancelled.
    pub(crate) async fn writer(&self) -> Done<OwnedMutexGuard<Writer>> {
        let mut writer = self.writer.clone().lock_owned().await;
        if writer.dirty {
            writer.rollback().await;
        }
        Ok(writer)
    }

    /// A second connection that writes, without a thread of its own: only for who holds the
    /// writer's lock. It does not wait for locks of other programs.
    pub(crate) fn direct(&self) -> Result<rusqlite::Connection, String> {
        let open = || {
            let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE
                | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = rusqlite::Connection::open_with_flags(&self.path, flags)?;
            connection.pragma_update(None, "synchronous", "full")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            connection.pragma_update(None, "wal_autocheckpoint", FRAMES_LATE)?;
            if let Some(pages) = self.pages_max {
                connection.pragma_update(None, "max_page_count", pages.cast_signed())?;
            }
            connection.busy_timeout(Duration::ZERO)?;
            let mode: String = connection.pragma_query_value(None, "journal_mode", get)?;
            let synchronous: i64 = connection.pragma_query_value(None, "synchronous", get)?;
            Ok((connection, mode, synchronous))
        };
        let opened: rusqlite::Result<_> = open();
        match opened {
            Ok((connection, mode, 2)) if mode == "wal" => Ok(connection),
            Ok((_, mode, synchronous)) => Err(not_durable(&mode, synchronous)),
            Err(error) => Err(format!("cannot open {}: {error}", self.path.display())),
        }
    }

    /// A commit of segments by [`Sqlite::direct`] has stored so many bytes.
    pub(crate) fn stored(&self, bytes: usize) {
        self.checkpointer.stored(bytes);
    }

    /// Path of a further file of the same store.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new(".")).join(name)
    }

    /// Ends all connections and lets another process open the file; whoever still holds the store
    /// can write no more.
    pub(super) async fn close(&self) {
        self.checkpointer.close().await;
        self.read.close().await;
        let mut writer = self.writer.clone().lock_owned().await;
        let closed = match SqliteConnection::connect("sqlite::memory:").await {
            Ok(nowhere) => {
                std::mem::replace(&mut writer.connection, nowhere)
                    .close()
                    .await
            }
            Err(error) => Err(error),
        };
        // The lock stays until the connection that may write has gone.
        if let Err(error) = closed {
            tracing::warn!("SQLite was not closed well, and is mended at the next start: {error}");
        } else if let Err(error) = self.lock.unlock() {
            tracing::warn!("cannot unlock the database: {error}");
        }
    }
}

impl Writer {
    /// Begins a transaction that writes; a deferred one could fail half-way with SQLITE_BUSY.
    pub(crate) async fn begin(&mut self) -> Done<()> {
        self.dirty = true;
        sqlx::raw_sql("begin immediate")
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Ends it durably. After an error the outcome is settled by a rollback.
    pub(crate) async fn commit(&mut self) -> Done<()> {
        let done = sqlx::raw_sql("commit").execute(&mut self.connection).await;
        match done {
            Ok(_) => {
                self.dirty = false;
                self.log.add_some();
            }
            Err(_) => self.rollback().await,
        }
        Ok(done.map(|_| ())?)
    }

    /// Marks the connection while a statement that commits by itself runs.
    pub(crate) fn set_dirty(&mut self, dirty: bool) {
        self.dirty = dirty;
    }

    /// Ends whatever is open. An error means that nothing was.
    pub(crate) async fn rollback(&mut self) {
        let _ = sqlx::raw_sql("rollback")
            .execute(&mut self.connection)
            .await;
        self.dirty = false;
        self.unseen_ends += 1;
    }
}

/// A connection that only reads, beside a hub that may be using the file.
pub(super) async fn look(path: &Path) -> Result<SqliteConnection, String> {
    let connect = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(BUSY_TIMEOUT);
    SqliteConnection::connect_with(&connect)
        .await
        .map_err(|error| format!("cannot open {}: {error}", path.display()))
}

/// Two processes on one file would give out the same sequences.
pub(super) fn lock(path: &Path) -> Result<File, String> {
    let lock_path = path.with_extension("lock");
    let file = File::create(&lock_path)
        .map_err(|error| format!("cannot make {}: {error}", lock_path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(format!(
            "another hub process uses {}: stop it, or give this one its own --data-dir",
            path.display()
        )),
        Err(TryLockError::Error(error)) => {
            Err(format!("cannot lock {}: {error}", lock_path.display()))
        }
    }
}

fn get<T: rusqlite::types::FromSql>(row: &rusqlite::Row<'_>) -> rusqlite::Result<T> {
    row.get(0)
}

fn not_durable(mode: &str, synchronous: i64) -> String {
    format!(
        "SQLite must run with journal_mode=wal and synchronous=2 (FULL), but has {mode} and \
         {synchronous}: is the file on a file system without shared memory?"
    )
}

async fn assert_durable(connection: &mut SqliteConnection) -> Result<(), String> {
    let failed = |error: sqlx::Error| format!("cannot read the settings of SQLite: {error}");
    let (mode,): (String,) = sqlx::query_as("pragma journal_mode")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    let (synchronous,): (i64,) = sqlx::query_as("pragma synchronous")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    if mode != "wal" || synchronous != 2 {
        return Err(not_durable(&mode, synchronous));
    }
    tracing::info!(
        journal_mode = mode,
        synchronous,
        "SQLite syncs before it acknowledges"
    );
    Ok(())
}
