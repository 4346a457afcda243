//! The deferred index of identities: sorted runs in a file beside the database (SQLite), or in one
//! of the process (PostgreSQL).
//!
//! The file is derived. Identities are committed inside the segments; this file only makes the
//! older ones findable, and says up to where (`covered`) in the transaction that adds them. If it
//! is lost or damaged it is made anew from the segments.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::filter::Filter;
use super::ledger::{Known, Seen};
use super::segment::SEQ_BITS;
use crate::clock::Micros;

/// Bytes of an entry: identity, key, content.
const ENTRY_BYTES: usize = 40;
/// Entries of a row; it fills an 8 KiB page.
const PAGE_ENTRIES: usize = 200;
/// Small runs are merged when there are so many, or when they have so many entries; the latter
/// bounds the memory of a merge.
const MERGED_RUNS: usize = 8;
const MERGED_ENTRIES_MAX: usize = 500_000;
/// Rows of one statement, 8 KB each.
const STATEMENT_PAGES: usize = 25;
/// Runs of which a page is read at once, 8 KB each.
const FOUND_AT_ONCE: usize = 256;
const DAY: Micros = 24 * 3600 * 1_000_000;

const SCHEMA: &str = "
create table if not exists covered (tenant_no integer primary key, head integer not null);
create table if not exists runs (run integer primary key, entries integer not null,
    newest integer not null, obsolete integer not null default 0);
create table if not exists run_pages (id integer primary key, data blob not null);";

const COVER: &str = "insert into covered values (?, ?)
on conflict (tenant_no) do update set head = max(head, excluded.head)";

/// A point at which a test may stop the writer, as a crash would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing is written yet.
    Begin,
    /// The run's row and pages are written, not committed.
    PagesWritten,
    /// `covered` is written too, not committed.
    CoveredWritten,
    /// Committed; the process does not know it yet.
    Committed,
    /// A merge wrote its result, not committed.
    MergeWritten,
    /// The merge is committed.
    MergeCommitted,
}

/// Asked at each step; false = stop here.
pub(crate) type Steps = Arc<dyn Fn(Step) -> bool + Send + Sync>;

/// A sorted run of identities.
#[derive(Debug, Clone)]
pub(super) struct Run {
    number: i64,
    entries: usize,
    newest: Micros,
    /// First identity of each page.
    fences: Arc<[u128]>,
}

/// The file.
#[derive(Clone)]
pub(super) struct Index {
    pool: SqlitePool,
    steps: Option<Steps>,
}

/// Everything that the file says, read at start.
pub(super) struct Loaded {
    pub(super) covered: HashMap<i64, i64>,
    pub(super) runs: Vec<Run>,
    pub(super) filter: Filter,
}

impl Index {
    /// Opens the file; one that cannot be read is made anew.
    pub(super) async fn open(path: &Path, steps: Option<Steps>) -> sqlx::Result<(Index, Loaded)> {
        match Self::try_open(path, steps.clone()).await {
            Ok(opened) => Ok(opened),
            Err(error) => {
                tracing::warn!("the index of identities is made anew: {error}");
                Self::remove(path);
                Self::try_open(path, steps).await
            }
        }
    }

    /// Deletes the file, so that the next start makes it anew.
    pub(super) fn remove(path: &Path) {
        for ending in ["", "-wal", "-shm"] {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            // It may not exist; a file that stays is refused again by the next open.
            let _ = std::fs::remove_file(PathBuf::from(name));
        }
    }

    async fn try_open(path: &Path, steps: Option<Steps>) -> sqlx::Result<(Index, Loaded)> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .page_size(8192)
            .journal_mode(SqliteJournalMode::Wal)
            // Derived data: after a power loss it may be older than the journal, never wrong.
            .synchronous(SqliteSynchronous::Normal);
        let pool = SqlitePoolOptions::new()
            .max_connections(2)
            .connect_with(options)
            .await?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        let index = Index { pool, steps };
        let loaded = index.load().await?;
        Ok((index, loaded))
    }

    /// Reads again what the file says, after a write that failed.
    pub(super) async fn reload(&self) -> sqlx::Result<Loaded> {
        self.load().await
    }

    async fn load(&self) -> sqlx::Result<Loaded> {
        let covered: Vec<(i64, i64)> = sqlx::query_as("select tenant_no, head from covered")
            .fetch_all(&self.pool)
            .await?;
        let rows: Vec<(i64, i64, i64)> =
            sqlx::query_as("select run, entries, newest from runs where obsolete = 0 order by run")
                .fetch_all(&self.pool)
                .await?;
        let total: i64 = rows.iter().map(|(_, entries, _)| *entries).sum();
        let filter = Filter::with_capacity(2 * total.max(0) as usize);
        let mut runs = Vec::with_capacity(rows.len());
        for (number, entries, newest) in rows {
            let pages = self.read_run(number).await?;
            pages
                .iter()
                .flat_map(|page| entries_of(page))
                .for_each(|e| filter.insert(e.0));
            let run = Run {
                number,
                entries: entries.max(0) as usize,
                newest,
                fences: fences(&pages),
            };
            if pages
                .iter()
                .map(|page| page.len() / ENTRY_BYTES)
                .sum::<usize>()
                != run.entries
            {
                return Err(sqlx::Error::Protocol("a run is incomplete".into()));
            }
            runs.push(run);
        }
        Ok(Loaded {
            covered: covered.into_iter().collect(),
            runs,
            filter,
        })
    }

    /// The entry of an identity, from the newest of the runs that have it. All of them are asked at
    /// once: the filter lets some foreign identity through in most commits of a thousand events,
    /// and there are as many runs as a window has.
    pub(super) async fn find(&self, runs: &[Run], identity: u128) -> sqlx::Result<Option<Known>> {
        let page_of = |run: &Run| {
            let after = run.fences.partition_point(|fence| *fence <= identity);
            Some(page_id(run.number, after.checked_sub(1)?))
        };
        let pages: Vec<i64> = runs.iter().rev().filter_map(page_of).collect();
        for pages in pages.chunks(FOUND_AT_ONCE) {
            let places = vec!["?"; pages.len()].join(",");
            let text =
                format!("select data from run_pages where id in ({places}) order by id desc");
            let mut query = sqlx::query_as(sqlx::AssertSqlSafe(text));
            for page in pages {
                query = query.bind(*page);
            }
            let rows: Vec<(Vec<u8>,)> = query.fetch_all(&self.pool).await?;
            let mut entries = rows.iter().flat_map(|(data,)| entries_of(data));
            if let Some((_, known)) = entries.find(|entry| entry.0 == identity) {
                return Ok(Some(known));
            }
        }
        Ok(None)
    }

    /// Adds a run with everything in `seen`, drops those past the window, merges small ones.
    /// Returns all runs.
    pub(super) async fn write(
        &self,
        runs: Vec<Run>,
        seen: Arc<Seen>,
        now: Micros,
        window: Micros,
    ) -> sqlx::Result<Vec<Run>> {
        self.step(Step::Begin)?;
        let pages = {
            let seen = seen.clone();
            in_background(move || pages(seen.iter().map(|(id, known)| (*id, *known)).collect()))
                .await?
        };
        let number = runs.last().map_or(1, |run| run.number + 1);
        let (mut runs, old): (Vec<_>, Vec<_>) =
            runs.into_iter().partition(|run| run.newest >= now - window);
        let mut tx = self.pool.begin().await?;
        delete_obsolete(&mut tx).await?;
        for run in old {
            retire(&mut tx, &run).await?;
        }
        let run = insert_run(&mut tx, number, pages, now).await?;
        self.step(Step::PagesWritten)?;
        for (tenant_no, head) in heads(&seen) {
            sqlx::query(COVER)
                .bind(tenant_no)
                .bind(head)
                .execute(&mut *tx)
                .await?;
        }
        self.step(Step::CoveredWritten)?;
        tx.commit().await?;
        self.step(Step::Committed)?;
        runs.push(run);
        self.merge(runs).await
    }

    /// Merges the newest runs once there are enough small ones of one day, so that each entry is
    /// written twice in all, and look-ups have few runs to search.
    async fn merge(&self, mut runs: Vec<Run>) -> sqlx::Result<Vec<Run>> {
        let Some(newest) = runs.last().map(|run| run.newest) else {
            return Ok(runs);
        };
        let small =
            |run: &&Run| run.entries < MERGED_ENTRIES_MAX / 4 && run.newest / DAY == newest / DAY;
        let count = runs.iter().rev().take_while(small).count();
        let total: usize = runs.iter().rev().take(count).map(|run| run.entries).sum();
        if count < MERGED_RUNS && total < MERGED_ENTRIES_MAX {
            return Ok(runs);
        }
        let merged = runs.split_off(runs.len() - count);
        let mut stored = Vec::with_capacity(count);
        for run in &merged {
            stored.push(self.read_run(run.number).await?);
        }
        let pages = in_background(move || {
            let entries = stored.iter().flatten().flat_map(|page| entries_of(page));
            pages(entries.collect())
        })
        .await?;
        let mut tx = self.pool.begin().await?;
        for run in &merged {
            retire(&mut tx, run).await?;
        }
        let number = merged.last().map_or(1, |run| run.number + 1);
        let run = insert_run(&mut tx, number, pages, newest).await?;
        self.step(Step::MergeWritten)?;
        tx.commit().await?;
        self.step(Step::MergeCommitted)?;
        runs.push(run);
        Ok(runs)
    }

    /// A filter with room to double, over all runs.
    pub(super) async fn rebuild_filter(&self, runs: &[Run]) -> sqlx::Result<Filter> {
        let total: usize = runs.iter().map(|run| run.entries).sum();
        let filter = Filter::with_capacity(2 * total);
        for run in runs {
            for page in self.read_run(run.number).await? {
                entries_of(&page).for_each(|entry| filter.insert(entry.0));
            }
        }
        Ok(filter)
    }

    async fn read_run(&self, number: i64) -> sqlx::Result<Vec<Vec<u8>>> {
        let rows: Vec<(Vec<u8>,)> =
            sqlx::query_as("select data from run_pages where id >= ? and id < ? order by id")
                .bind(page_id(number, 0))
                .bind(page_id(number + 1, 0))
                .fetch_all(&self.pool)
                .await?;
        Ok(rows.into_iter().map(|(data,)| data).collect())
    }

    fn step(&self, step: Step) -> sqlx::Result<()> {
        match &self.steps {
            Some(steps) if !steps(step) => Err(sqlx::Error::WorkerCrashed),
            _ => Ok(()),
        }
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

type Transaction = sqlx::Transaction<'static, sqlx::Sqlite>;

/// Sorting half a million entries must not hold up the threads that serve calls.
pub(super) async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> sqlx::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| sqlx::Error::WorkerCrashed)
}

/// A page of a run with its first identity.
struct Page {
    fence: u128,
    entries: usize,
    data: Vec<u8>,
}

/// Sorts entries into pages. The sort is one that merges what is in order already.
fn pages(mut entries: Vec<(u128, Known)>) -> Vec<Page> {
    entries.sort_by_key(|entry| entry.0);
    let page = |chunk: &[(u128, Known)]| Page {
        fence: chunk[0].0,
        entries: chunk.len(),
        data: pack(chunk),
    };
    entries.chunks(PAGE_ENTRIES).map(page).collect()
}

async fn insert_run(
    tx: &mut Transaction,
    number: i64,
    pages: Vec<Page>,
    newest: Micros,
) -> sqlx::Result<Run> {
    let entries: usize = pages.iter().map(|page| page.entries).sum();
    let fences = pages.iter().map(|page| page.fence).collect();
    sqlx::query("insert into runs (run, entries, newest) values (?, ?, ?)")
        .bind(number)
        .bind(entries as i64)
        .bind(newest)
        .execute(&mut **tx)
        .await?;
    let mut pages = pages.into_iter().enumerate().peekable();
    while pages.peek().is_some() {
        // Several rows a statement: each statement is a hand-over to the connection's thread.
        let some: Vec<_> = pages.by_ref().take(STATEMENT_PAGES).collect();
        let values = vec!["(?,?)"; some.len()].join(",");
        let text = format!("insert into run_pages values {values}");
        let mut query = sqlx::query(sqlx::AssertSqlSafe(text));
        for (at, page) in some {
            query = query.bind(page_id(number, at)).bind(page.data);
        }
        query.execute(&mut **tx).await?;
    }
    Ok(Run {
        number,
        entries,
        newest,
        fences,
    })
}

/// Takes a run out of use. Its pages stay until the next write: look-ups that do not know of it
/// yet still find them.
async fn retire(tx: &mut Transaction, run: &Run) -> sqlx::Result<()> {
    sqlx::query("update runs set obsolete = 1 where run = ?")
        .bind(run.number)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// By the next write nobody looks into a retired run any more.
async fn delete_obsolete(tx: &mut Transaction) -> sqlx::Result<()> {
    let retired: Vec<(i64,)> = sqlx::query_as("select run from runs where obsolete = 1")
        .fetch_all(&mut **tx)
        .await?;
    for (number,) in retired {
        sqlx::query("delete from run_pages where id >= ? and id < ?")
            .bind(page_id(number, 0))
            .bind(page_id(number + 1, 0))
            .execute(&mut **tx)
            .await?;
        sqlx::query("delete from runs where run = ?")
            .bind(number)
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

fn page_id(run: i64, page: usize) -> i64 {
    run << 32 | page as i64
}

fn pack(entries: &[(u128, Known)]) -> Vec<u8> {
    let mut data = Vec::with_capacity(entries.len() * ENTRY_BYTES);
    for (identity, known) in entries {
        data.extend_from_slice(&identity.to_be_bytes());
        data.extend_from_slice(&known.key.to_be_bytes());
        data.extend_from_slice(&known.content.to_be_bytes());
    }
    data
}

fn entries_of(data: &[u8]) -> impl Iterator<Item = (u128, Known)> + '_ {
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0u128, |value, b| value << 8 | u128::from(*b))
    };
    data.chunks_exact(ENTRY_BYTES).map(move |entry| {
        let known = Known {
            key: number(&entry[16..24]) as i64,
            content: number(&entry[24..]),
        };
        (number(&entry[..16]), known)
    })
}

fn fences(pages: &[Vec<u8>]) -> Arc<[u128]> {
    pages
        .iter()
        .filter_map(|page| entries_of(page).next())
        .map(|entry| entry.0)
        .collect()
}

/// Highest sequence of each tenant in a set. It is taken between commits, so it ends a segment.
fn heads(seen: &Seen) -> HashMap<i64, i64> {
    let mut heads = HashMap::new();
    for known in seen.values() {
        let seq = known.key & ((1 << SEQ_BITS) - 1);
        let head = heads.entry(known.key >> SEQ_BITS).or_insert(0);
        *head = seq.max(*head);
    }
    heads
}
