//! Which events were published before: exact in memory for recent ones, a filter and sorted runs
//! for older ones, rebuilt from the segments after a crash.
//!
//! On SQLite there is one process, and it knows all logs from its start. On PostgreSQL each process
//! knows a log from its first append on, and whether it knows all of it is asked in the statement
//! that appends.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::Work;
use super::filter::Filter;
use super::index::{Index, Loaded, Run, Steps, in_background};
use super::ledger::{Known, Seen};
use super::segment::{ID_BYTES, SEQ_BITS};
use crate::clock::{Clock, Micros, micros};
use crate::limits::Limits;
use crate::storage::{Db, Failure, Sql};

/// Segments read at once while the recent set is rebuilt.
pub(super) const PAGE_SEGMENTS: i64 = 500;

const HEADS: Sql = Sql::same("select tenant_no, head from journal_heads");
const IDS: Sql = Sql::same(
    "select key, record_time, ids from journal_segments
     where key >= $1 and key < $2 and record_time >= $3 order by key limit $4",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[HEADS, IDS];

pub(crate) struct Identities {
    /// Since the last run, exact.
    pub(super) recent: Seen,
    flushing: Option<Flush>,
    runs: Vec<Run>,
    filter: Arc<Filter>,
    index: Index,
    recent_max: usize,
    unindexed_max: usize,
    window: Micros,
    clock: Clock,
}

/// How far a log was read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Replayed {
    pub(super) seq: u64,
    pub(super) record_time: Micros,
}

/// Key, time and packed identities of a stored segment.
pub(super) type SegmentIds = (i64, Micros, Vec<u8>);

struct Flush {
    seen: Arc<Seen>,
    task: JoinHandle<sqlx::Result<(Vec<Run>, Arc<Filter>)>>,
}

impl Identities {
    /// Reads the index, and the segments of all logs after it.
    pub(super) async fn load(
        db: &Db,
        path: PathBuf,
        limits: &Limits,
        clock: Clock,
        steps: Option<Steps>,
    ) -> Result<Identities, Failure> {
        let heads: Vec<(i64, i64)> = db.query(HEADS).all().await?;
        let heads: HashMap<i64, i64> = heads.into_iter().collect();
        let (mut index, mut loaded) = Index::open(&path, steps.clone()).await?;
        let ahead = |(tenant, covered): (&i64, &i64)| heads.get(tenant).unwrap_or(&0) < covered;
        if loaded.covered.iter().any(ahead) {
            tracing::warn!("the journal is older than its index, which is made anew");
            index.close().await;
            Index::remove(&path);
            (index, loaded) = Index::open(&path, steps).await?;
        }
        let covered = std::mem::take(&mut loaded.covered);
        let mut identities = Identities::new(index, loaded, limits, clock);
        for (tenant_no, head) in heads {
            let covered = covered.get(&tenant_no).copied().unwrap_or(0);
            if head > covered {
                identities.replay(db, tenant_no, covered as u64).await?;
            }
        }
        Ok(identities)
    }

    /// Knows nothing yet; a file that is there is made anew.
    pub(super) async fn empty(
        path: PathBuf,
        limits: &Limits,
        clock: Clock,
    ) -> Result<Identities, Failure> {
        Index::remove(&path);
        let (index, loaded) = Index::open(&path, None).await?;
        Ok(Identities::new(index, loaded, limits, clock))
    }

    fn new(index: Index, loaded: Loaded, limits: &Limits, clock: Clock) -> Identities {
        Identities {
            recent: Seen::default(),
            flushing: None,
            runs: loaded.runs,
            filter: Arc::new(loaded.filter),
            index,
            recent_max: limits.identities_recent_max,
            unindexed_max: limits.identities_unindexed_max,
            window: micros(limits.identities_window),
            clock,
        }
    }

    /// Reads what a log has after `after` and within the window; `None` if there is nothing.
    pub(super) async fn replay(
        &mut self,
        db: &Db,
        tenant_no: i64,
        after: u64,
    ) -> Result<Option<Replayed>, Failure> {
        let since = self.clock.now() - self.window;
        let mut replayed: Option<Replayed> = None;
        loop {
            let after = replayed.map_or(after, |replayed| replayed.seq);
            let page = page(db, tenant_no, after, since).await?;
            if page.is_empty() {
                return Ok(replayed);
            }
            replayed = self.remember(&page).or(replayed);
            if self.is_full() {
                self.start_flush();
                self.finish_flush(true).await;
            }
        }
    }

    /// Takes stored segments in, which are in order; returns where the last one ends.
    pub(super) fn remember(&mut self, page: &[SegmentIds]) -> Option<Replayed> {
        let mut end = None;
        for (key, record_time, ids) in page {
            end = Some(self.remember_segment(*key, *record_time, ids));
        }
        end
    }

    /// The recent set is as large as it may be, because the index does not have the one before yet.
    pub(super) fn is_full(&self) -> bool {
        self.recent.len() >= self.recent_max
    }

    /// Takes a stored segment in; returns where it ends.
    fn remember_segment(&mut self, key: i64, record_time: Micros, ids: &[u8]) -> Replayed {
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
        let first = key & ((1 << SEQ_BITS) - 1);
        Replayed {
            seq: first as u64 + (ids.len() / ID_BYTES).saturating_sub(1) as u64,
            record_time,
        }
    }

    /// An identity that is not in the recent set.
    pub(super) async fn find_older(&self, identity: u128) -> Result<Option<Known>, Failure> {
        if let Some(known) = self.flushing.as_ref().and_then(|f| f.seen.get(&identity)) {
            return Ok(Some(*known));
        }
        if !self.filter.may_contain(identity) {
            return Ok(None);
        }
        Ok(self.index.find(&self.runs, identity).await?)
    }

    /// Those of these events that are known, but not in the recent set.
    pub(super) async fn older_of(&self, works: &[Work<'_>]) -> Result<Seen, Failure> {
        let mut older = Seen::default();
        let events = works
            .iter()
            .flat_map(|work| &work.appends)
            .flat_map(|append| &append.events);
        for event in events {
            if self.may_be_older(event.identity)
                && let Some(known) = self.find_older(event.identity).await?
            {
                older.insert(event.identity, known);
            }
        }
        Ok(older)
    }

    /// Where an event with this identity is.
    pub(super) async fn find(&self, identity: u128) -> Result<Option<Known>, Failure> {
        match self.recent.get(&identity) {
            Some(known) => Ok(Some(*known)),
            None => self.find_older(identity).await,
        }
    }

    /// True if `identity` may be among the older ones and has to be looked up.
    fn may_be_older(&self, identity: u128) -> bool {
        self.flushing
            .as_ref()
            .is_some_and(|flush| flush.seen.contains_key(&identity))
            || self.filter.may_contain(identity)
    }

    /// The index could not be written for so long that memory would not stay bounded.
    pub(super) fn overfull(&self) -> bool {
        self.recent.len() > self.unindexed_max
    }

    /// Called between commits: moves a full recent set to the index, off the commit path.
    pub(super) async fn tend(&mut self) {
        self.finish_flush(false).await;
        if self.is_full() && self.flushing.is_none() {
            self.start_flush();
        }
    }

    fn start_flush(&mut self) {
        // It will be as large again: to grow step by step is to move all of it each time.
        let next = Seen::with_capacity_and_hasher(self.recent_max, Default::default());
        let seen = Arc::new(std::mem::replace(&mut self.recent, next));
        self.spawn_flush(seen);
    }

    fn spawn_flush(&mut self, seen: Arc<Seen>) {
        let (index, runs, batch) = (self.index.clone(), self.runs.clone(), seen.clone());
        let (now, window) = (self.clock.now(), self.window);
        let filter = self.filter.clone();
        let task = tokio::spawn(async move {
            let runs = index.write(runs, batch.clone(), now, window).await?;
            // Off the commit path: look-ups meanwhile find the set itself.
            if filter.room() < batch.len() {
                let rebuilt = index.rebuild_filter(&runs).await?;
                return Ok((runs, Arc::new(rebuilt)));
            }
            let filter = in_background(move || {
                batch.keys().for_each(|identity| filter.insert(*identity));
                filter
            });
            Ok((runs, filter.await?))
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
                self.filter = filter;
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

/// What a log has after `after` and since a time, at most [`PAGE_SEGMENTS`].
pub(super) async fn page(
    db: &Db,
    tenant_no: i64,
    after: u64,
    since: Micros,
) -> Result<Vec<SegmentIds>, Failure> {
    db.query(IDS)
        .bind((tenant_no << SEQ_BITS) + after as i64 + 1)
        .bind((tenant_no + 1) << SEQ_BITS)
        .bind(since)
        .bind(PAGE_SEGMENTS)
        .all()
        .await
}
