//! What this process did not see committed (PostgreSQL): the heads of logs that have readers are
//! looked at again and again.
//!
//! Another process may have written, or the answer to an own commit was lost. One statement for
//! all logs. Polling is the truth, whatever else wakes readers earlier.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Journal, Log, Store};
use crate::error::Result;

/// A reader sees what another process wrote after this time, about.
const INTERVAL: Duration = Duration::from_millis(500);

/// Looks until the journal is closed or gone.
pub(super) async fn run(journal: Weak<Journal>, stopped: CancellationToken) {
    let pause = || stopped.run_until_cancelled(tokio::time::sleep(INTERVAL));
    while pause().await.is_some() {
        let Some(journal) = journal.upgrade() else {
            return;
        };
        if let Err(error) = journal.follow().await {
            tracing::debug!("the heads could not be read; trying again: {error}");
        }
    }
}

impl Journal {
    async fn follow(&self) -> Result<()> {
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
}
