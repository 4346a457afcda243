//! The journal's store on PostgreSQL: many processes append to one log, and the head row decides.
//!
//! Identities are not in a table: a random key for each event cost more than all else of a commit,
//! and more the larger the table. Each process knows the identities of the logs that it appends to,
//! up to a sequence. One statement appends if that is still the head, so that nobody appended what
//! this process does not know. If it is not, or another holds the row, the head is locked, what is
//! missing is read, and then the append is decided.
//!
//! Locks are taken in one order, so that nobody waits in a circle: rows of heads (by number, when
//! several are waited for), then the process's state. Who holds the state waits for no row.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use tokio::sync::Mutex;

use super::identities::{Identities, Replayed};
use super::ledger::{Ledger, Seen, decide};
use super::scratch::Scratch;
use super::segment::{Builder, SEQ_BITS, Segment};
use super::{Outcome, TenantRef, Work, Written};
use crate::clock::{Clock, Micros, micros};
use crate::limits::Limits;
use crate::storage::{Db, Failure};

/// Appends if the head is where this process believes it to be and nobody holds it.
const APPEND: &str = "
with free as (
    select tenant_no from journal_heads where tenant_no = $1 and head = $2
    for update skip locked),
moved as (
    update journal_heads set head = $2 + $3, record_time = $4
    from free where journal_heads.tenant_no = free.tenant_no)
insert into journal_segments (key, tenant_no, n, record_time, ids, data)
select ($1::bigint << 40) + $2 + 1, $1, $3, $4, $5, $6 from free
returning tenant_no";

/// The same for several logs: each that is where it is believed to be.
const APPEND_EACH: &str = "
with new as (
    select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[],
        $6::bytea[]) new (tenant_no, base, n, record_time, ids, data)),
free as (
    select heads.tenant_no from journal_heads heads join new
        on heads.tenant_no = new.tenant_no and heads.head = new.base
    order by heads.tenant_no for update of heads skip locked),
moved as (
    update journal_heads set head = new.base + new.n, record_time = new.record_time
    from new join free on free.tenant_no = new.tenant_no
    where journal_heads.tenant_no = new.tenant_no)
insert into journal_segments (key, tenant_no, n, record_time, ids, data)
select (new.tenant_no << 40) + new.base + 1, new.tenant_no, new.n, new.record_time, new.ids,
    new.data
from new join free on free.tenant_no = new.tenant_no
returning tenant_no";

const LOCK: &str = "select tenant_no, head, record_time from journal_heads
where tenant_no = any($1) order by tenant_no for update";

/// A tenant that is busy elsewhere does not hold up the others.
const LOCK_FREE: &str = "select tenant_no, head, record_time from journal_heads
where tenant_no = any($1) order by tenant_no for update skip locked";

const MISSED: &str = "select key, record_time, ids from journal_segments
where key >= $1 and key < $2 and record_time >= $3 order by key limit $4";

const HEADS: &str = "select tenant_no, head from journal_heads where tenant_no = any($1)";

/// Statements of this file, for the test that prepares them.
pub(super) const STATEMENTS: &[&str] = &[APPEND, APPEND_EACH, LOCK, LOCK_FREE, MISSED, HEADS];

/// Within the time that an append may wait for its turn.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// The sequencer commits on one; who holds the state reads on another, and must never wait for
/// those who wait for the state; one may be on its way out.
const CONNECTIONS_MAX: u32 = 3;
/// Segments read at once under the lock of a head.
const MISSED_SEGMENTS: i64 = 500;
const INDEX_FILE: &str = "identities.db";

pub(super) struct PostgresJournal {
    /// Its own connections, so that commits never wait for readers.
    pool: PgPool,
    own: Db,
    readers: PgPool,
    state: Mutex<State>,
    window: Micros,
    clock: Clock,
    _scratch: Scratch,
}

/// What this process knows.
struct State {
    known: HashMap<i64, Known>,
    identities: Identities,
}

/// Up to where the identities of a log are known.
#[derive(Clone, Copy, Default)]
struct Known {
    head: u64,
    record_time: Micros,
    /// Others append to it as well, or the outcome of a commit is unknown: a guess would fail.
    contended: bool,
}

impl PostgresJournal {
    pub(super) async fn open(db: &Db, clock: Clock, limits: &Limits) -> Result<Self, String> {
        let shared = db.postgres().ok_or("not a PostgreSQL database")?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A ping before each commit would be a second round trip. A connection that is gone
            // costs its group a STORE_BUSY.
            .test_before_acquire(false)
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
            }),
            window: micros(limits.identities_window),
            clock,
            _scratch: scratch,
        })
    }

    pub(super) async fn close(&self) {
        self.state.lock().await.identities.close().await;
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
            self.refuse_overfull(&mut state).await?;
            for work in works {
                let tenant_no = work.tenant_no();
                if !state.known.contains_key(&tenant_no) {
                    self.read_news(&mut state, tenant_no).await?;
                }
            }
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
        {
            // Long before the heads are locked.
            let mut state = self.state.lock().await;
            self.refuse_overfull(&mut state).await?;
            for work in works {
                if !state.known.contains_key(&work.tenant_no()) {
                    self.read_news(&mut state, work.tenant_no()).await?;
                }
            }
        }
        let written = self.write_locked(tx, works, LOCK).await?;
        Ok(written.into_iter().flatten().collect())
    }

    /// Memory stays bounded while the derived index cannot be written.
    async fn refuse_overfull(&self, state: &mut State) -> Result<(), Failure> {
        if state.identities.overfull() {
            state.identities.tend().await;
            return Err(sqlx::Error::Io(std::io::Error::other("the index falls behind")).into());
        }
        Ok(())
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
        let older = state.identities.older_of(works).await?;
        let mut plans = Vec::with_capacity(works.len());
        for work in works {
            let known = state.known.get(&work.tenant_no()).copied();
            let known = known.filter(|known| !known.contended);
            plans.push(known.map(|known| {
                let record_time = known.record_time.max(self.clock.now());
                let seen = &mut state.identities.recent;
                Plan::new(work, seen, &older, known.head, record_time)
            }));
        }
        let rows: Vec<&Plan> = plans
            .iter()
            .flatten()
            .filter(|plan| plan.has_rows())
            .collect();
        let appended = match rows.as_slice() {
            [] => Ok(Vec::new()),
            [plan] => plan.append(&self.pool).await,
            plans => append_each(&self.pool, plans).await,
        };
        let appended = match appended {
            Ok(appended) => appended,
            Err(failure) => {
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
            written.push(match plan {
                Some(plan) if !plan.has_rows() || appended.contains(&plan.tenant.number()) => {
                    Some(plan.finish(state, false))
                }
                Some(plan) => {
                    plan.undo(state);
                    None
                }
                None => None,
            });
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
        let heads: Vec<(i64, i64, Micros)> = sqlx::query_as(lock)
            .bind(&tenants)
            .fetch_all(&mut *tx)
            .await?;
        if lock == LOCK && heads.len() < works.len() {
            return Err(sqlx::Error::RowNotFound.into());
        }
        let mut state = self.state.lock().await;
        let mut contended = HashMap::new();
        for (tenant_no, head, record_time) in &heads {
            let locked = Known {
                head: *head as u64,
                record_time: *record_time,
                contended: false,
            };
            let missed = self
                .catch_up(&mut tx, &mut state, *tenant_no, locked)
                .await?;
            contended.insert(*tenant_no, missed);
        }
        let older = state.identities.older_of(works).await?;
        let mut plans = Vec::with_capacity(works.len());
        for work in works {
            let tenant_no = work.tenant_no();
            plans.push(contended.contains_key(&tenant_no).then(|| {
                let known = state.known.get(&tenant_no).copied().unwrap_or_default();
                let record_time = known.record_time.max(self.clock.now());
                let seen = &mut state.identities.recent;
                Plan::new(work, seen, &older, known.head, record_time)
            }));
        }
        let rows: Vec<&Plan> = plans
            .iter()
            .flatten()
            .filter(|plan| plan.has_rows())
            .collect();
        match store(tx, &rows).await {
            Ok(()) => {}
            Err(failure) => {
                plans
                    .into_iter()
                    .flatten()
                    .for_each(|plan| plan.undo(&mut state));
                return Err(failure);
            }
        }
        let written = plans.into_iter().map(|plan| {
            plan.map(|plan| {
                let missed = contended.get(&plan.tenant.number());
                plan.finish(&mut state, missed.copied().unwrap_or(true))
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
        tenant_no: i64,
        locked: Known,
    ) -> Result<bool, Failure> {
        let known = state.known.get(&tenant_no).copied().unwrap_or_default();
        let since = self.clock.now() - self.window;
        let mut from = (tenant_no << SEQ_BITS) + known.head as i64 + 1;
        let end = (tenant_no << SEQ_BITS) + locked.head as i64 + 1;
        while from < end {
            let rows: Vec<(i64, Micros, Vec<u8>)> = sqlx::query_as(MISSED)
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
            for (key, record_time, ids) in &rows {
                state.identities.remember_segment(*key, *record_time, ids);
            }
        }
        state.known.insert(tenant_no, locked);
        Ok(known.head < locked.head)
    }
}

/// What a commit will store of a tenant; undone if it fails.
struct Plan {
    tenant: TenantRef,
    base: u64,
    record_time: Micros,
    builder: Builder,
    outcomes: Vec<Vec<Outcome>>,
    claimed: Vec<u128>,
}

impl Plan {
    fn new(work: &Work<'_>, seen: &mut Seen, older: &Seen, base: u64, record_time: Micros) -> Plan {
        let mut ledger = Ledger {
            seen,
            older,
            claimed: Vec::with_capacity(work.events()),
        };
        let mut builder = Builder::with_capacity(work.events(), work.bytes());
        let mut next = base + 1;
        let outcomes = work
            .appends
            .iter()
            .map(|append| decide(append, &mut ledger, &mut next, &mut builder))
            .collect();
        Plan {
            tenant: work.log.tenant().clone(),
            base,
            record_time,
            builder,
            outcomes,
            claimed: ledger.claimed,
        }
    }

    fn has_rows(&self) -> bool {
        self.builder.count > 0
    }

    async fn append(&self, pool: &PgPool) -> Result<Vec<i64>, Failure> {
        let row: Option<(i64,)> = sqlx::query_as(APPEND)
            .bind(self.tenant.number())
            .bind(self.base as i64)
            .bind(i64::from(self.builder.count))
            .bind(self.record_time)
            .bind(&self.builder.ids)
            .bind(&self.builder.data)
            .fetch_optional(pool)
            .await?;
        Ok(row.into_iter().map(|(tenant_no,)| tenant_no).collect())
    }

    fn finish(self, state: &mut State, contended: bool) -> Written {
        if !self.has_rows() {
            return Written {
                outcomes: self.outcomes,
                segment: None,
            };
        }
        let tenant_no = self.tenant.number();
        let Builder { ids, data, .. } = self.builder;
        let segment = Segment::new(self.tenant, self.base + 1, self.record_time, ids, data);
        let known = Known {
            head: segment.last(),
            record_time: self.record_time,
            contended,
        };
        state.known.insert(tenant_no, known);
        Written {
            outcomes: self.outcomes,
            segment: Some(Arc::new(segment)),
        }
    }

    /// Nothing is claimed any more, and the head is asked for before the next guess.
    fn undo(self, state: &mut State) {
        for identity in &self.claimed {
            state.identities.recent.remove(identity);
        }
        if let Some(known) = state.known.get_mut(&self.tenant.number()) {
            known.contended = true;
        }
    }
}

async fn append_each(pool: &PgPool, plans: &[&Plan]) -> Result<Vec<i64>, Failure> {
    let rows: Vec<(i64,)> = Rows::new(plans).bound(APPEND_EACH).fetch_all(pool).await?;
    Ok(rows.into_iter().map(|(tenant_no,)| tenant_no).collect())
}

/// Stores under locks that are held, and commits.
async fn store(mut tx: Transaction<'static, Postgres>, plans: &[&Plan]) -> Result<(), Failure> {
    if !plans.is_empty() {
        let rows = Rows::new(plans);
        let stored = rows.bound(APPEND_EACH).fetch_all(&mut *tx).await?;
        if stored.len() != plans.len() {
            let lost = "a head moved although it was locked";
            return Err(sqlx::Error::Protocol(lost.into()).into());
        }
    }
    Ok(tx.commit().await?)
}

/// Columns of what a commit stores.
#[derive(Default)]
struct Rows<'a> {
    tenants: Vec<i64>,
    bases: Vec<i64>,
    counts: Vec<i64>,
    times: Vec<Micros>,
    ids: Vec<&'a [u8]>,
    data: Vec<&'a [u8]>,
}

type Bound<'a> = sqlx::query::QueryAs<'a, Postgres, (i64,), sqlx::postgres::PgArguments>;

impl<'a> Rows<'a> {
    fn new(plans: &[&'a Plan]) -> Rows<'a> {
        let mut rows = Rows::default();
        for plan in plans {
            rows.tenants.push(plan.tenant.number());
            rows.bases.push(plan.base as i64);
            rows.counts.push(i64::from(plan.builder.count));
            rows.times.push(plan.record_time);
            rows.ids.push(&plan.builder.ids);
            rows.data.push(&plan.builder.data);
        }
        rows
    }

    fn bound(self, text: &'static str) -> Bound<'a> {
        sqlx::query_as(text)
            .bind(self.tenants)
            .bind(self.bases)
            .bind(self.counts)
            .bind(self.times)
            .bind(self.ids)
            .bind(self.data)
    }
}
