//! What a database error means for the caller.

use crate::error::{Error, Result};

/// SQLite's extended result codes for an fsync that failed (`SQLITE_IOERR_FSYNC`, `_DIR_FSYNC`).
const SYNC_FAILED: [&str; 2] = ["1034", "1290"];
/// `SQLITE_FULL`, and PostgreSQL's `disk_full`.
const DISK_FULL: [&str; 2] = ["13", "53100"];
/// `SQLITE_BUSY`, `SQLITE_LOCKED` and their extended forms.
const SQLITE_LOCKED: [&str; 5] = ["5", "6", "261", "262", "517"];

/// A statement that failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Failure(#[from] pub(crate) sqlx::Error);

impl Failure {
    /// A row with this key exists.
    pub fn is_unique_violation(&self) -> bool {
        self.0
            .as_database_error()
            .is_some_and(|error| error.is_unique_violation())
    }

    /// The database answered with an error of its own, so that nothing was committed. False when
    /// the connection was lost: the outcome is unknown then.
    pub fn is_definite(&self) -> bool {
        matches!(self.0, sqlx::Error::Database(_) | sqlx::Error::Encode(_))
    }

    /// True if trying a part of the same work again could help: not for a full disk or a lock.
    pub fn may_be_poisoned(&self) -> bool {
        self.is_definite() && !self.is_full() && !self.is_locked()
    }

    /// No space is left.
    pub fn is_full(&self) -> bool {
        self.has_code(&DISK_FULL)
    }

    fn is_locked(&self) -> bool {
        self.has_code(&SQLITE_LOCKED)
    }

    fn has_code(&self, codes: &[&str]) -> bool {
        let code = self.0.as_database_error().and_then(|error| error.code());
        code.is_some_and(|code| codes.contains(&code.as_ref()))
    }

    /// After a failed fsync the kernel may have dropped the pages: what is on disk is unknown, and
    /// a second fsync may lie (<https://wiki.postgresql.org/wiki/Fsync_Errors>). Only a restart,
    /// which reads the log again, is safe.
    fn stop_if_sync_failed(&self) {
        if self.has_code(&SYNC_FAILED) {
            tracing::error!("fsync failed: the process ends, so that recovery reads the log again");
            std::process::abort();
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        failure.stop_if_sync_failed();
        if failure.is_full() {
            tracing::error!("database: no space left: {failure}");
            return Error::store_busy("The hub's disk is full", "disk_full");
        }
        if failure.is_locked() {
            return Error::store_busy("The database is locked by another writer", "locked");
        }
        match &failure.0 {
            sqlx::Error::PoolTimedOut => {
                Error::store_busy("All database connections are in use", "pool_exhausted")
            }
            sqlx::Error::Io(_) | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                tracing::warn!("database: connection lost: {failure}");
                Error::store_busy("The database is not reachable", "unreachable")
            }
            sqlx::Error::Database(error) if is_restart(error.code().as_deref()) => {
                Error::store_busy("The database is restarting", "restarting")
            }
            sqlx::Error::Database(error) if error.code().as_deref() == Some("55P03") => {
                Error::store_busy("The database is locked by another writer", "locked")
            }
            _ => Error::internal(format!("database: {failure}")),
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Error {
        Failure(error).into()
    }
}

/// PostgreSQL's classes 57P (operator intervention), 08 (connection) and 40 (rollback).
fn is_restart(code: Option<&str>) -> bool {
    code.is_some_and(|code| {
        code.starts_with("57P")
            || (code.len() == 5 && (code.starts_with("08")))
            || code == "40001"
            || code == "40P01"
    })
}

/// Result of a statement.
pub(crate) type Done<T> = Result<T, Failure>;
