//! What this process did not see committed (PostgreSQL): the heads of logs that have readers are
//! looked at again and again.
//!
//! Another process may have written, or the answer to an own commit was lost. One statement for
//! all logs. Polling is the truth, whatever else wakes readers earlier (`notify.rs`).

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::{Journal, Log, Store};
use crate::error::Result;
use crate::worker::Turn;

/// A reader sees what another process wrote after this time, about.
const INTERVAL: Duration = Duration::from_millis(500);

/// Looks until it is stopped. In time of its own: a clock that stands still must not hide what
/// other processes wrote.
pub(super) async fn run(journal: Weak<Journal>, turn: Turn) -> Result<()> {
    loop {
        let Some(journal) = journal.upgrade() else {
            return Ok(());
        };
        // Again at the next turn, without a restart's pause: readers wait. A database that is gone
        // is told by its own check.
        match journal.follow().await {
            Ok(()) => turn.passed_for(INTERVAL),
            Err(error) => tracing::debug!("the heads could not be read; trying again: {error}"),
        }
        drop(journal);
        let pause = tokio::time::sleep(INTERVAL);
        if turn.stopped().run_until_cancelled(pause).await.is_none() {
            return Ok(());
        }
    }
}

impl Journal {
    /// Looks at all logs that have readers, and at all there are if somebody reads all.
    async fn follow(&self) -> Result<()> {
        self.look_for_growth().await?;
        let Store::Postgres(store) = &self.store else {
            return Ok(());
        };
        let watched: Vec<Arc<Log>> = {
            let logs = self.logs.read().unwrap_or_else(PoisonError::into_inner);
            let watched = logs.values().filter(|log| log.is_watched());
            watched.cloned().collect()
        };
        if watched.is_empty() {
            return Ok(());
        }
        let numbers: Vec<i64> = watched.iter().map(|log| log.tenant().number()).collect();
        let heads = store.heads(&numbers).await?;
        for log in watched {
            let stored = heads.get(&log.tenant().number()).copied().unwrap_or(0);
            if log.head().seq < stored {
                self.catch_up(&log).await?;
            }
        }
        Ok(())
    }

    /// Another process told that these logs, or all of them, have grown.
    pub(super) async fn hinted(&self, heads: &BTreeMap<i64, u64>, all: bool) -> Result<()> {
        if all {
            return self.follow().await;
        }
        heads.keys().for_each(|number| self.growths.tell(*number));
        let grown: Vec<Arc<Log>> = {
            let logs = self.logs.read().unwrap_or_else(PoisonError::into_inner);
            let known = heads
                .iter()
                .filter_map(|(no, head)| Some((logs.get(no)?, *head)));
            let grown = known.filter(|(log, head)| log.is_watched() && log.head().seq < *head);
            grown.map(|(log, _)| log.clone()).collect()
        };
        for log in grown {
            self.catch_up(&log).await?;
        }
        Ok(())
    }
}
