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
    /// the connection was lost: the outcome is unknown then. So it is when PostgreSQL says that it
    /// ends the connection, which it may do behind a commit, in the place of the answer to it.
    pub fn is_definite(&self) -> bool {
        match &self.0 {
            sqlx::Error::Database(error) => !ends_connection(error.code().as_deref()),
            sqlx::Error::Encode(_) => true,
            _ => false,
        }
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

/// PostgreSQL's classes 57P (operator intervention) and 08 (connection).
fn ends_connection(code: Option<&str>) -> bool {
    code.is_some_and(|code| code.starts_with("57P") || (code.len() == 5 && code.starts_with("08")))
}

/// The same, and what PostgreSQL rolled back for others (class 40).
fn is_restart(code: Option<&str>) -> bool {
    ends_connection(code) || matches!(code, Some("40001" | "40P01"))
}

/// Result of a statement.
pub(crate) type Done<T> = Result<T, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_the_connection_may_come_behind_a_commit() {
        for code in ["57P01", "57P02", "57P03", "08006"] {
            assert!(ends_connection(Some(code)), "{code}");
        }
        // SQLite's codes are numbers without a class; 57014 is a statement that was cancelled.
        for code in ["57014", "23505", "40001", "53100", "13", "8"] {
            assert!(!ends_connection(Some(code)), "{code}");
        }
        assert!(!ends_connection(None));
        let lost = Failure(sqlx::Error::PoolTimedOut);
        assert!(!lost.is_definite() && !lost.may_be_poisoned());
    }
}
