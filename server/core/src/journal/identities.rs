//! Which events were published before (SQLite): exact in memory for recent ones, a filter and
//! sorted runs for older ones, rebuilt from the segments after a crash.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use sqlx::SqlitePool;
use tokio::task::JoinHandle;

use super::filter::Filter;
use super::index::{Index, Run, Steps, in_background};
use super::ledger::{Known, Seen};
use super::segment::{ID_BYTES, SEQ_BITS};
use crate::clock::{Clock, Micros, micros};
use crate::limits::Limits;

/// Segments read at once while the recent set is rebuilt.
const REPLAY_SEGMENTS: i64 = 500;
/// The recent set may outgrow its limit so often while the index cannot be written.
const OVERFULL_FACTOR: usize = 16;

pub(crate) struct Identities {
    /// Since the last run, exact.
    pub(super) recent: Seen,
    flushing: Option<Flush>,
    runs: Vec<Run>,
    filter: Arc<Filter>,
    index: Index,
    recent_max: usize,
    window: Micros,
    clock: Clock,
}

struct Flush {
    seen: Arc<Seen>,
    task: JoinHandle<sqlx::Result<(Vec<Run>, Filter)>>,
}

impl Identities {
    /// Reads the index and replays the segments after it.
    pub(super) async fn load(
        journal: &SqlitePool,
        path: PathBuf,
        limits: &Limits,
        clock: Clock,
        steps: Option<Steps>,
    ) -> sqlx::Result<Identities> {
        let heads: Vec<(i64, i64)> = sqlx::query_as("select tenant_no, head from journal_heads")
            .fetch_all(journal)
            .await?;
        let heads: HashMap<i64, i64> = heads.into_iter().collect();
        let (mut index, mut loaded) = Index::open(&path, steps.clone()).await?;
        let ahead = |(tenant, covered): (&i64, &i64)| heads.get(tenant).unwrap_or(&0) < covered;
        if loaded.covered.iter().any(ahead) {
            tracing::warn!("the journal is older than its index, which is made anew");
            index.close().await;
            Index::remove(&path);
            (index, loaded) = Index::open(&path, steps).await?;
        }
        let mut identities = Identities {
            recent: Seen::default(),
            flushing: None,
            runs: loaded.runs,
            filter: Arc::new(loaded.filter),
            index,
            recent_max: limits.identities_recent_max,
            window: micros(limits.identities_window),
            clock,
        };
        for (tenant_no, head) in heads {
            let covered = loaded.covered.get(&tenant_no).copied().unwrap_or(0);
            if head > covered {
                identities.replay(journal, tenant_no, covered).await?;
            }
        }
        Ok(identities)
    }

    async fn replay(
        &mut self,
        journal: &SqlitePool,
        tenant_no: i64,
        covered: i64,
    ) -> sqlx::Result<()> {
        let mut from = (tenant_no << SEQ_BITS) + covered + 1;
        loop {
            let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
                "select key, ids from journal_segments where key >= ? and key < ?
                 order by key limit ?",
            )
            .bind(from)
            .bind((tenant_no + 1) << SEQ_BITS)
            .bind(REPLAY_SEGMENTS)
            .fetch_all(journal)
            .await?;
            let Some((last, _)) = rows.last() else {
                return Ok(());
            };
            from = last + 1;
            for (key, ids) in &rows {
                self.remember_segment(*key, ids);
            }
            if self.recent.len() >= self.recent_max {
                self.start_flush();
                self.finish_flush(true).await;
            }
        }
    }

    fn remember_segment(&mut self, key: i64, ids: &[u8]) {
        for (at, entry) in ids.chunks_exact(ID_BYTES).enumerate() {
            let (identity, content) = entry.split_at(16);
            let number = |bytes: &[u8]| {
                bytes
                    .iter()
                    .fold(0u128, |value, b| value << 8 | u128::from(*b))
            };
            let known = Known {
                key: key + at as i64,
                content: number(content),
            };
            // The first one stored is the one that duplicates are told of.
            self.recent.entry(number(identity)).or_insert(known);
        }
    }

    /// An identity that is not in the recent set.
    pub(super) async fn find_older(&self, identity: u128) -> sqlx::Result<Option<Known>> {
        if let Some(known) = self.flushing.as_ref().and_then(|f| f.seen.get(&identity)) {
            return Ok(Some(*known));
        }
        if !self.filter.may_contain(identity) {
            return Ok(None);
        }
        for run in self.runs.iter().rev() {
            if let Some(known) = self.index.find(run, identity).await? {
                return Ok(Some(known));
            }
        }
        Ok(None)
    }

    /// True if `identity` may be among the older ones and has to be looked up.
    pub(super) fn may_be_older(&self, identity: u128) -> bool {
        self.flushing
            .as_ref()
            .is_some_and(|flush| flush.seen.contains_key(&identity))
            || self.filter.may_contain(identity)
    }

    /// The index could not be written for so long that memory would not stay bounded.
    pub(super) fn overfull(&self) -> bool {
        self.recent.len() > OVERFULL_FACTOR * self.recent_max
    }

    /// Called between commits: moves a full recent set to the index, off the commit path.
    pub(super) async fn tend(&mut self) {
        self.finish_flush(false).await;
        if self.recent.len() >= self.recent_max && self.flushing.is_none() {
            self.start_flush();
        }
    }

    fn start_flush(&mut self) {
        let seen = Arc::new(std::mem::take(&mut self.recent));
        self.spawn_flush(seen);
    }

    fn spawn_flush(&mut self, seen: Arc<Seen>) {
        let (index, runs, batch) = (self.index.clone(), self.runs.clone(), seen.clone());
        let (now, window) = (self.clock.now(), self.window);
        let filter = self.filter.clone();
        let task = tokio::spawn(async move {
            let runs = index.write(runs, batch.clone(), now, window).await?;
            // Off the commit path: look-ups meanwhile find the set itself.
            let filter = match filter.room() < batch.len() {
                true => index.rebuild_filter(&runs).await?,
                false => in_background(move || with_all(&filter, &batch)).await?,
            };
            Ok((runs, filter))
        });
        self.flushing = Some(Flush { seen, task });
    }

    /// Takes over what a finished flush wrote; `wait` waits for it.
    async fn finish_flush(&mut self, wait: bool) {
        let Some(flush) = &mut self.flushing else {
            return;
        };
        if !wait && !flush.task.is_finished() {
            return;
        }
        let result = (&mut flush.task).await;
        let Some(flush) = self.flushing.take() else {
            return;
        };
        match result {
            Ok(Ok((runs, filter))) => {
                self.runs = runs;
                self.filter = Arc::new(filter);
            }
            failed => {
                tracing::warn!("the index of identities was not written: {failed:?}");
                self.restore(&flush.seen).await;
            }
        }
    }

    /// Puts a set back whose fate is unknown, and reads again what the file has.
    async fn restore(&mut self, seen: &Seen) {
        for (identity, known) in seen {
            self.recent.entry(*identity).or_insert(*known);
        }
        if let Ok(loaded) = self.index.reload().await {
            self.runs = loaded.runs;
            self.filter = Arc::new(loaded.filter);
        }
    }

    pub(super) async fn close(&mut self) {
        self.finish_flush(true).await;
        self.index.close().await;
    }
}

fn with_all(filter: &Filter, seen: &Seen) -> Filter {
    let mut filter = filter.clone();
    seen.keys().for_each(|identity| filter.insert(*identity));
    filter
}
