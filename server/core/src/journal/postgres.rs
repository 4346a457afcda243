//! The journal's store on PostgreSQL: many processes append to one log, and the head row decides.
//!
//! Identities are not in a table: a random key for each event cost more than all else of a commit,
//! and more the larger the table. Each process knows the identities of the logs that it appends to,
//! up to a sequence. One statement appends if that is still the head, so that nobody appended what
//! this process does not know. If it is not, or another holds the row, the head is locked, what is
//! missing is read, and then the append is decided.
//!
//! Locks are taken in one order, so that nobody waits in a circle: rows of heads (by number, when
//! several are waited for), then the turn to read a new log, then the process's state. Who holds
//! the state waits for no row.

mod append;

use std::collections::HashMap;
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool, Postgres, Transaction};
use tokio::sync::{Mutex, MutexGuard};

use super::identities::{self, Identities, Replayed, SegmentIds};
use super::scratch::Scratch;
use super::segment::{Builder, SEQ_BITS};
use super::{TenantRef, Work, Written};
use crate::clock::{Clock, Micros, micros};
use crate::limits::Limits;
use crate::storage::{Db, Failure};
use append::{APPEND, APPEND_EACH, Plan, append_guessed, store};

const LOCK: &str = "select tenant_no, head, record_time from journal_heads
where tenant_no = any($1) order by tenant_no for update";

/// A tenant that is busy elsewhere does not hold up the others.
const LOCK_FREE: &str = "select tenant_no, head, record_time from journal_heads
where tenant_no = any($1) order by tenant_no for update skip locked";

const MISSED: &str = "select key, record_time, ids from journal_segments
where key >= $1 and key < $2 and record_time >= $3 order by key limit $4";

const HEADS: &str = "select tenant_no, head from journal_heads where tenant_no = any($1)";

/// Statements of this file, for the test that prepares them.
pub(super) const STATEMENTS: &[&str] = &[
    APPEND,
    APPEND_EACH,
    LOCK,
    LOCK_FREE,
    MISSED,
    HEADS,
    crate::processes::BEAT,
    super::notify::NOTIFY,
];

/// Within the time that an append may wait for its turn.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// The sequencer commits on one; who holds the state reads on another, and must never wait for
/// those who wait for the state; a log that is new is read on a third; one may be on its way out.
const CONNECTIONS_MAX: u32 = 4;
/// Segments read at once under the lock of a head.
const MISSED_SEGMENTS: i64 = 500;
const INDEX_FILE: &str = "identities.db";
/// How long and how often who reads a log waits for the index to take over what is in memory.
const ROOM_PAUSE: Duration = Duration::from_millis(5);
const ROOM_PAUSES_MAX: usize = 2_000;

pub(super) struct PostgresJournal {
    /// Its own connections, so that commits never wait for readers.
    pool: PgPool,
    own: Db,
    readers: PgPool,
    state: Mutex<State>,
    /// Held by who reads a log that is new to this process.
    reading: Mutex<()>,
    window: Micros,
    segment_bytes_max: usize,
    clock: Clock,
    _scratch: Scratch,
}

/// What this process knows.
struct State {
    known: HashMap<i64, Known>,
    identities: Identities,
    /// Kept at hand for the guesses: handing one back to a pool costs a task each time. One that
    /// is gone costs its group a STORE_BUSY.
    connection: Option<PgConnection>,
}

impl State {
    async fn connection(&mut self, pool: &PgPool) -> Result<&mut PgConnection, Failure> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let options = pool.connect_options();
                let connecting = PgConnection::connect_with(&options);
                let connected = tokio::time::timeout(ACQUIRE_TIMEOUT, connecting).await;
                connected.map_err(|_| sqlx::Error::PoolTimedOut)??
            }
        };
        Ok(self.connection.insert(connection))
    }
}

/// Up to where the identities of a log are known.
#[derive(Clone, Copy, Default)]
struct Known {
    head: u64,
    record_time: Micros,
    /// Others append to it as well, or the outcome of a commit is unknown: a guess would fail.
    contended: bool,
    /// What lies before was not read to its end yet: a guess would fail.
    partial: bool,
}

/// Memory stays bounded while the derived index cannot be written.
async fn bound_memory(state: &mut State) -> Result<(), Failure> {
    if state.identities.overfull() {
        state.identities.tend().await;
        return Err(falls_behind());
    }
    Ok(())
}

fn falls_behind() -> Failure {
    sqlx::Error::Io(std::io::Error::other("the index falls behind")).into()
}

/// Number of a tenant, its last sequence, and when that was recorded.
type LockedHead = (i64, i64, Micros);

impl PostgresJournal {
    pub(super) async fn open(db: &Db, clock: Clock, limits: &Limits) -> Result<Self, String> {
        let shared = db.postgres().ok_or("not a PostgreSQL database")?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with((*shared.connect_options()).clone());
        let folder = std::env::temp_dir();
        let scratch = Scratch::new(&folder)
            .map_err(|error| format!("cannot make a folder in {}: {error}", folder.display()))?;
        let identities = Identities::empty(scratch.path(INDEX_FILE), limits, clock.clone())
            .await
            .map_err(|error| format!("cannot make the index of identities: {error}"))?;
        Ok(PostgresJournal {
            own: Db::over(pool.clone()),
            pool,
            readers: shared.clone(),
            state: Mutex::new(State {
                known: HashMap::new(),
                identities,
                connection: None,
            }),
            reading: Mutex::default(),
            window: micros(limits.identities_window),
            segment_bytes_max: limits.segment_bytes_max,
            clock,
            _scratch: scratch,
        })
    }

    pub(super) async fn close(&self) {
        let mut state = self.state.lock().await;
        state.identities.close().await;
        if let Some(connection) = state.connection.take() {
            // The server notices a connection that is just dropped, too.
            let _ = connection.close().await;
        }
        self.pool.close().await;
    }

    /// The last sequence of each of these tenants, by number.
    pub(super) async fn heads(&self, tenants: &[i64]) -> Result<HashMap<i64, u64>, Failure> {
        let rows: Vec<(i64, i64)> = sqlx::query_as(HEADS)
            .bind(tenants)
            .fetch_all(&self.readers)
            .await?;
        let heads = rows.into_iter();
        Ok(heads.map(|(number, head)| (number, head as u64)).collect())
    }

    /// Where an event with this identity is stored, whichever process did.
    pub(super) async fn find(
        &self,
        tenant: &TenantRef,
        identity: u128,
    ) -> Result<Option<i64>, Failure> {
        self.get_to_know(tenant.number()).await?;
        let mut state = self.state.lock().await;
        self.read_news(&mut state, tenant.number()).await?;
        let known = state.identities.find(identity).await?;
        state.identities.tend().await;
        Ok(known.map(|known| known.key))
    }

    /// Commits a group; `None` for a log whose head another process holds.
    pub(super) async fn write(&self, works: &[Work<'_>]) -> Result<Vec<Option<Written>>, Failure> {
        let mut written = {
            let mut state = self.state.lock().await;
            bound_memory(&mut state).await?;
            self.append(&mut state, works).await?
        };
        let missing: Vec<usize> = (0..works.len())
            .filter(|at| written[*at].is_none())
            .collect();
        if !missing.is_empty() {
            let late: Vec<Work<'_>> = missing.iter().map(|at| works[*at].clone()).collect();
            let lock = if works.len() > 1 { LOCK_FREE } else { LOCK };
            let tx = self.pool.begin().await?;
            let locked = self.write_locked(tx, &late, lock).await?;
            for (at, late) in missing.into_iter().zip(locked) {
                written[at] = late;
            }
        }
        Ok(written)
    }

    /// Ends a domain's transaction with its events.
    pub(super) async fn commit(
        &self,
        tx: Transaction<'static, Postgres>,
        works: &[Work<'_>],
    ) -> Result<Vec<Written>, Failure> {
        bound_memory(&mut *self.state.lock().await).await?;
        let written = self.write_locked(tx, works, LOCK).await?;
        Ok(written.into_iter().flatten().collect())
    }

    /// Reads the identities of a log that is new to this process, so that its first append does
    /// not: what is read without a lock delays nobody. Whatever is appended meanwhile is read by
    /// who finds the head elsewhere. If it fails half-way, the next call goes on from there.
    pub(super) async fn get_to_know(&self, tenant_no: i64) -> Result<(), Failure> {
        loop {
            // One connection for all who read, so that commits do not wait for one.
            let _turn = self.reading.lock().await;
            let known = self.with_room().await?.known.get(&tenant_no).copied();
            if known.is_some_and(|known| !known.partial) {
                return Ok(());
            }
            let known = known.unwrap_or_default();
            let since = self.clock.now() - self.window;
            let page = identities::page(&self.own, tenant_no, known.head, since).await?;
            let mut state = self.state.lock().await;
            let mut now = state.known.get(&tenant_no).copied().unwrap_or_default();
            // Else an append was faster, under the lock of the head.
            if now.head == known.head {
                if let Some(Replayed { seq, record_time }) = state.identities.remember(&page) {
                    (now.head, now.record_time) = (seq, record_time);
                }
                // What others append all the time is no reason to read for ever.
                now.partial = page.len() as i64 == identities::PAGE_SEGMENTS;
                state.known.insert(tenant_no, now);
            }
        }
    }

    /// The state, once the index has taken over what was too much for memory.
    async fn with_room(&self) -> Result<MutexGuard<'_, State>, Failure> {
        for _ in 0..ROOM_PAUSES_MAX {
            let mut state = self.state.lock().await;
            bound_memory(&mut state).await?;
            state.identities.tend().await;
            if !state.identities.is_full() {
                return Ok(state);
            }
            drop(state);
            tokio::time::sleep(ROOM_PAUSE).await;
        }
        Err(falls_behind())
    }

    /// What to store of each work; none for those of which `known` knows nothing.
    async fn plan(
        &self,
        state: &mut State,
        works: &[Work<'_>],
        known: impl Fn(&State, i64) -> Option<Known>,
    ) -> Result<Vec<Option<Plan>>, Failure> {
        // All that can fail comes before the first claim.
        let older = state.identities.older_of(works).await?;
        let mut plans = Vec::with_capacity(works.len());
        for work in works {
            plans.push(known(state, work.tenant_no()).map(|known| {
                let record_time = known.record_time.max(self.clock.now());
                let seen = &mut state.identities.recent;
                let builder = Builder::new(work, works.len(), self.segment_bytes_max);
                Plan::new(work, seen, &older, (known.head, record_time), builder)
            }));
        }
        Ok(plans)
    }

    /// Reads what was appended to a log since this process last knew all of it.
    async fn read_news(&self, state: &mut State, tenant_no: i64) -> Result<(), Failure> {
        let mut known = state.known.get(&tenant_no).copied().unwrap_or_default();
        let replayed = state
            .identities
            .replay(&self.own, tenant_no, known.head)
            .await?;
        if let Some(Replayed { seq, record_time }) = replayed {
            (known.head, known.record_time) = (seq, record_time);
        }
        state.known.insert(tenant_no, known);
        Ok(())
    }

    /// One statement, one round trip; `None` where the head was not as believed, or held.
    async fn append(
        &self,
        state: &mut State,
        works: &[Work<'_>],
    ) -> Result<Vec<Option<Written>>, Failure> {
        let uncontended = |state: &State, tenant_no| {
            let known = state.known.get(&tenant_no).copied();
            known.filter(|known| !known.contended && !known.partial)
        };
        let plans = self.plan(state, works, uncontended).await?;
        let rows: Vec<&Plan> = plans
            .iter()
            .flatten()
            .filter(|plan| plan.has_rows())
            .collect();
        let appended = match rows.as_slice() {
            [] => Ok(Vec::new()),
            rows => append_guessed(state, &self.pool, rows).await,
        };
        let appended = match appended {
            Ok(appended) => appended,
            Err(failure) => {
                // Cheap to make anew, and it may be half-way through an answer.
                state.connection = None;
                // Whether it was committed is not known if the connection was lost.
                plans
                    .into_iter()
                    .flatten()
                    .for_each(|plan| plan.undo(state));
                return Err(failure);
            }
        };
        let mut written = Vec::with_capacity(plans.len());
        for plan in plans {
            written.push(plan.and_then(|plan| match plan.epoch_in(&appended) {
                Some(epoch) => Some(plan.finish(state, epoch, false)),
                None => {
                    plan.undo(state);
                    None
                }
            }));
        }
        state.identities.tend().await;
        Ok(written)
    }

    /// Under the locks of the heads: reads what is missing, decides, stores, commits.
    async fn write_locked(
        &self,
        mut tx: Transaction<'static, Postgres>,
        works: &[Work<'_>],
        lock: &'static str,
    ) -> Result<Vec<Option<Written>>, Failure> {
        let tenants: Vec<i64> = works.iter().map(Work::tenant_no).collect();
        let heads: Vec<LockedHead> = sqlx::query_as(lock)
            .bind(&tenants)
            .fetch_all(&mut *tx)
            .await?;
        if lock == LOCK && heads.len() < works.len() {
            return Err(sqlx::Error::RowNotFound.into());
        }
        let mut state = self.state.lock().await;
        // Tenants that are locked, and whether others appended to them.
        let mut contended = HashMap::new();
        for head in heads {
            let missed = self.catch_up(&mut tx, &mut state, head).await?;
            contended.insert(head.0, missed);
        }
        let locked = |state: &State, tenant_no| {
            let known = state.known.get(&tenant_no).copied();
            known.filter(|_| contended.contains_key(&tenant_no))
        };
        let plans = self.plan(&mut state, works, locked).await?;
        let rows: Vec<&Plan> = plans
            .iter()
            .flatten()
            .filter(|plan| plan.has_rows())
            .collect();
        let stored = match store(tx, &rows).await {
            Ok(stored) => stored,
            Err(failure) => {
                plans
                    .into_iter()
                    .flatten()
                    .for_each(|plan| plan.undo(&mut state));
                return Err(failure);
            }
        };
        let written = plans.into_iter().map(|plan| {
            plan.map(|plan| {
                let missed = contended.get(&plan.tenant.number());
                let epoch = plan.epoch_in(&stored).unwrap_or_default();
                plan.finish(&mut state, epoch, missed.copied().unwrap_or(true))
            })
        });
        let written = written.collect();
        state.identities.tend().await;
        Ok(written)
    }

    /// Reads what others appended, under the lock of the head. Returns whether there was anything.
    async fn catch_up(
        &self,
        connection: &mut PgConnection,
        state: &mut State,
        (tenant_no, head, record_time): LockedHead,
    ) -> Result<bool, Failure> {
        let locked = Known {
            head: head as u64,
            record_time,
            contended: false,
            partial: false,
        };
        let known = state.known.get(&tenant_no).copied().unwrap_or_default();
        let since = self.clock.now() - self.window;
        let mut from = (tenant_no << SEQ_BITS) + known.head as i64 + 1;
        let end = (tenant_no << SEQ_BITS) + locked.head as i64 + 1;
        while from < end {
            let rows: Vec<SegmentIds> = sqlx::query_as(MISSED)
                .bind(from)
                .bind(end)
                .bind(since)
                .bind(MISSED_SEGMENTS)
                .fetch_all(&mut *connection)
                .await?;
            let Some((last, _, _)) = rows.last() else {
                break;
            };
            from = last + 1;
            state.identities.remember(&rows);
        }
        state.known.insert(tenant_no, locked);
        Ok(known.head < locked.head)
    }
}
