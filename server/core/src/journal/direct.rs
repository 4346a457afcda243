//! A connection of the sequencer's own (SQLite), which commits on the thread that asks.
//!
//! The driver of all other statements has a thread for each connection; handing a commit over and
//! back costs about as much as the commit of one event itself. Only the one statement that appends
//! is run here, under the writer's lock, and it commits by itself. Whatever fails is left to the
//! driver, which tries the same again and says what is wrong: it alone waits for a lock that
//! another program holds.

use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, params_from_iter, types::ToSqlOutput};

use super::segment::{RowOf, Segment};

/// `SQLITE_IOERR_FSYNC` and `SQLITE_IOERR_DIR_FSYNC`.
const SYNC_FAILED: [i32; 2] = [1034, 1290];

/// The connection; none after [`Direct::close`].
pub(super) struct Direct {
    connection: Mutex<Option<Connection>>,
}

impl Direct {
    /// `statements` texts will be kept prepared.
    pub(super) fn new(connection: Connection, statements: usize) -> Direct {
        connection.set_prepared_statement_cache_capacity(statements);
        Direct {
            connection: Mutex::new(Some(connection)),
        }
    }

    /// Runs `text`, which inserts these rows of segments, and commits it. False if nothing was
    /// committed.
    pub(super) fn insert<'a>(
        &self,
        text: &str,
        rows: impl Iterator<Item = (&'a Segment, RowOf<'a>)>,
    ) -> bool {
        let connection = self.connection.lock();
        let connection = connection.unwrap_or_else(PoisonError::into_inner);
        let Some(connection) = &*connection else {
            return false;
        };
        let values = rows.flat_map(|(segment, row)| values(segment, row));
        let inserted = connection
            .prepare_cached(text)
            .and_then(|mut statement| statement.execute(params_from_iter(values)));
        if let Err(error) = &inserted {
            stop_if_sync_failed(error);
            tracing::debug!("left to the driver: {error}");
        }
        inserted.is_ok()
    }

    pub(super) fn close(&self) {
        let connection = self.connection.lock();
        // Closed by being dropped; the driver's connection merges the write-ahead log.
        drop(connection.unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn values<'a>(segment: &Segment, row: RowOf<'a>) -> [ToSqlOutput<'a>; 7] {
    let blob = |bytes| ToSqlOutput::Borrowed(rusqlite::types::ValueRef::Blob(bytes));
    [
        segment.key_of(&row).into(),
        segment.tenant_no().into(),
        row.count.into(),
        segment.record_time().into(),
        blob(row.ids),
        blob(row.data),
        segment.routing_epoch().cast_signed().into(),
    ]
}

/// What is on disk is unknown then: only a restart, which reads the log again, is safe.
fn stop_if_sync_failed(error: &rusqlite::Error) {
    let code = error.sqlite_error().map(|error| error.extended_code);
    if code.is_some_and(|code| SYNC_FAILED.contains(&code)) {
        tracing::error!("fsync failed: the process ends, so that recovery reads the log again");
        std::process::abort();
    }
}
