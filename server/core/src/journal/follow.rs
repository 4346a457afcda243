//! What this process did not see committed (PostgreSQL): each beat looks at the heads of logs that
//! have readers, at the routing epochs of tenants in use, and at what was erased.
//!
//! Another process may have written, or the answer to an own commit was lost. One statement for
//! all (`processes.rs`). Polling is the truth, whatever else wakes readers earlier (`notify.rs`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::{Journal, Log, Store, notify};
use crate::error::Result;
use crate::processes::{BEAT_INTERVAL, RETRY_PAUSE};
use crate::storage::Failure;
use crate::worker::Turn;

/// After so long without anything to do, the worker says that it lives.
const IDLE: Duration = Duration::from_secs(10);

/// Beats until it is stopped. In time of its own: a clock that stands still must not hide what
/// other processes wrote, or that this one lives. Nothing here waits for another statement.
pub(super) async fn beat(journal: Weak<Journal>, turn: Turn) -> Result<()> {
    let mut erasures = HashMap::new();
    loop {
        let Some(journal) = journal.upgrade() else {
            return Ok(());
        };
        // Again soon, without a restart's pause. A database that is gone is told by its own check.
        let pause = match journal.beat(&mut erasures).await {
            Ok(()) => {
                turn.passed_for(BEAT_INTERVAL);
                BEAT_INTERVAL
            }
            Err(error) => {
                tracing::debug!("a beat failed; trying again: {error}");
                RETRY_PAUSE
            }
        };
        drop(journal);
        let pause = tokio::time::sleep(pause);
        if turn.stopped().run_until_cancelled(pause).await.is_none() {
            return Ok(());
        }
    }
}

/// Reads what beats have found, until it is stopped.
pub(super) async fn run(journal: Weak<Journal>, turn: Turn) -> Result<()> {
    let Some(mut behind) = journal.upgrade().map(|journal| journal.behind.subscribe()) else {
        return Ok(());
    };
    loop {
        turn.passed_for(IDLE);
        tokio::select! {
            told = behind.changed() => if told.is_err() { return Ok(()) },
            again = turn.pause(IDLE) => match again {
                true => continue,
                false => return Ok(()),
            },
        }
        let logs = behind.borrow_and_update().clone();
        let Some(journal) = journal.upgrade() else {
            return Ok(());
        };
        for log in &*logs {
            // The next beat finds it again.
            if let Err(error) = journal.catch_up(log).await {
                tracing::debug!("the end of a log could not be read; trying again: {error}");
            }
        }
    }
}

impl Journal {
    /// Notices what other processes commit (PostgreSQL).
    pub(super) fn begin_following(self: &Arc<Self>) {
        if !self.db.is_postgres() {
            return;
        }
        let journal = Arc::downgrade(self);
        self.workers
            .spawn("beat", move |turn| beat(journal.clone(), turn));
        let journal = Arc::downgrade(self);
        self.workers
            .spawn("journal-follow", move |turn| run(journal.clone(), turn));
        let Some(hints) = self.hints.clone() else {
            return;
        };
        let telling = hints.clone();
        self.workers.spawn("journal-tell", move |turn| {
            notify::tell(telling.clone(), turn)
        });
        let journal = Arc::downgrade(self);
        self.workers.spawn("journal-listen", move |turn| {
            notify::listen(journal.clone(), hints.clone(), turn)
        });
    }

    /// Says that this process lives, and learns what others did. `erasures` is how often something
    /// was erased in each log, as far as it is known.
    async fn beat(&self, erasures: &mut HashMap<i64, i64>) -> Result<(), Failure> {
        let watched = self.watched();
        let mut asked: BTreeSet<i64> = self.epochs.in_use().into_iter().collect();
        asked.extend(watched.iter().map(|log| log.tenant().number()));
        let asked: Vec<i64> = asked.into_iter().collect();
        let asked_at = self.clock.now();
        let all = self.growths.is_wanted();
        let told = self.processes.beat(&asked, all).await?;
        let mut heads = HashMap::new();
        for (number, head, epoch) in told.heads {
            self.epochs.learn(number, epoch, asked_at);
            heads.insert(number, head);
        }
        for (number, times) in told.erasures {
            if erasures.insert(number, times) != Some(times) {
                self.forget_erased(number);
            }
        }
        self.tell_behind(watched, &heads);
        if all {
            self.growths.learn(told.all_heads.into_iter());
        }
        Ok(())
    }

    /// Logs that have readers.
    fn watched(&self) -> Vec<Arc<Log>> {
        let logs = self.logs.read().unwrap_or_else(PoisonError::into_inner);
        let watched = logs.values().filter(|log| log.is_watched());
        watched.cloned().collect()
    }

    fn tell_behind(&self, watched: Vec<Arc<Log>>, heads: &HashMap<i64, u64>) {
        let stored = |log: &Log| heads.get(&log.tenant().number()).copied().unwrap_or(0);
        let behind = watched.into_iter();
        let behind: Vec<_> = behind.filter(|log| log.head().seq < stored(log)).collect();
        if !behind.is_empty() {
            self.behind.send_replace(behind.into());
        }
    }

    /// Looks at all logs that have readers, and at all there are if somebody reads all.
    async fn follow(&self) -> Result<()> {
        let Store::Postgres(store) = &self.store else {
            return Ok(());
        };
        let watched = self.watched();
        if watched.is_empty() {
            return Ok(());
        }
        let numbers: Vec<i64> = watched.iter().map(|log| log.tenant().number()).collect();
        let heads = store.heads(&numbers).await?;
        self.tell_behind(watched, &heads);
        Ok(())
    }

    /// Another process told that these logs, or all of them, have grown.
    pub(super) async fn hinted(&self, heads: &BTreeMap<i64, u64>, all: bool) -> Result<()> {
        if all {
            self.look_for_growth().await?;
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
