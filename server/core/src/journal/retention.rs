//! What a log keeps: the oldest events go by age and by size, a chunk at a time.
//!
//! `floor` is the last sequence that is gone; it moves in the transaction that removes the events.
//! Identities are remembered longer than events may be kept: a segment is emptied first, and its
//! row goes when the window of identities has passed. An emptied segment is as good as gone for
//! every reader.

use std::sync::Arc;
use std::time::Duration;

use super::segment::SEQ_BITS;
use super::{Journal, Log, TenantRef};
use crate::clock::{Micros, micros};
use crate::error::Result;
use crate::storage::{Sql, Tx};

/// Segments of one chunk, however small they are.
const CHUNK_SEGMENTS_MAX: i64 = 256;
/// Bytes of one chunk, about: it holds the writer of SQLite for a few milliseconds.
const CHUNK_BYTES_MAX: u64 = 4 << 20;
/// Segments whose size is read at once.
const COUNT_SEGMENTS_MAX: i64 = 10_000;
/// Tenants that are looked at in one statement.
const TENANTS_MAX: i64 = 1000;

// `first` is the row that identities still need, `oldest` the first event that is still there.
const TENANTS: Sql = Sql::same(
    "select t.tenant_no, t.tenant_id, t.retention, t.retention_bytes,
        (select s.record_time from journal_segments s
         where s.key >= t.tenant_no * 1099511627776
            and s.key <= t.tenant_no * 1099511627776 + coalesce(f.floor, 0)
         order by s.key limit 1) as first,
        (select s.record_time from journal_segments s
         where s.key > t.tenant_no * 1099511627776 + coalesce(f.floor, 0)
            and s.key < (t.tenant_no + 1) * 1099511627776
         order by s.key limit 1) as oldest,
        coalesce(f.floor, 0)
     from tenants t left join journal_floors f on f.tenant_no = t.tenant_no
     where t.tenant_no > $1 order by t.tenant_no limit $2",
);
const AGE: Sql = Sql::same("select retention from tenants where tenant_no = $1");
const BOUNDS: Sql =
    Sql::same("select retention, retention_bytes from tenants where tenant_no = $1");
const STATE: Sql =
    Sql::same("select floor, counted, bytes from journal_floors where tenant_no = $1");
const SIZES: Sql = Sql::same(
    "select key, n, record_time, cast(length(data) as bigint) from journal_segments
     where key > $1 and key < $2 order by key limit $3",
);
const BEGIN: Sql = Sql::same(
    "insert into journal_floors (tenant_no, floor, counted, bytes, erasures)
     values ($1, 0, 0, 0, 0) on conflict (tenant_no) do nothing",
);
const ADVANCE: Sql = Sql::same(
    "update journal_floors set floor = $3,
        counted = case when counted > $3 then counted else $3 end,
        bytes = case when bytes > $4 then bytes - $4 else 0 end
     where tenant_no = $1 and floor = $2",
);
const COUNT: Sql = Sql::same(
    "update journal_floors set counted = $3, bytes = bytes + $4
     where tenant_no = $1 and counted = $2",
);
const DELETE: Sql =
    Sql::same("delete from journal_segments where key >= $1 and key <= $2 and record_time < $3");
const EMPTY: Sql = Sql::same(
    "update journal_segments set data = $3
     where key >= $1 and key <= $2 and length(data) > 0",
);
const EMPTIED: Sql = Sql::same(
    "select key, record_time from journal_segments
     where key >= $1 and key <= $2 order by key limit $3",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[
    TENANTS, AGE, BOUNDS, STATE, SIZES, BEGIN, ADVANCE, COUNT, DELETE, EMPTY, EMPTIED,
];

/// A tenant with what it keeps, and what it has.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Whose log.
    pub tenant: TenantRef,
    /// Events older than this are removed.
    pub age_max: Micros,
    /// Bytes of events that are kept; 0 = no limit.
    pub bytes_max: u64,
    /// When the oldest row was recorded of which only the identities are left.
    first: Option<Micros>,
    /// When the oldest event was recorded that is still there.
    oldest: Option<Micros>,
    /// The last sequence that is gone.
    floor: u64,
}

/// What a chunk removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Events.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// There is more to do.
    pub more: bool,
}

type TenantRow = (i64, String, i64, i64, Option<i64>, Option<i64>, i64);

/// How far retention has come in a log.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    floor: u64,
    counted: u64,
    bytes: u64,
}

struct Size {
    last: u64,
    record_time: Micros,
    bytes: u64,
    count: u64,
}

impl Kept {
    /// Whether there may be something to remove at `now`.
    pub fn is_due(&self, now: Micros, identities_window: Duration) -> bool {
        let older = |time: Option<Micros>, than: Micros| time.is_some_and(|time| time < now - than);
        self.bytes_max > 0
            || older(self.oldest, self.age_max)
            || older(self.first, micros(identities_window))
    }
}

impl Journal {
    /// How long a tenant keeps events, in microseconds, and how many bytes of them; 0 = no limit.
    /// Errors: `STORE_BUSY`, `TENANT_NOT_FOUND`.
    pub async fn retention_of(&self, tenant: &TenantRef) -> Result<(Micros, u64)> {
        let query = self.db.query(BOUNDS).bind(tenant.number());
        let row: Option<(Micros, i64)> = query.optional().await?;
        let (age, bytes) = row.ok_or_else(|| crate::tenancy::not_found(tenant.id()))?;
        Ok((age, bytes.unsigned_abs()))
    }

    /// The tenants after number `after`, in order of number. Empty at the end.
    /// Errors: `STORE_BUSY`.
    pub async fn kept(&self, after: i64) -> Result<Vec<Kept>> {
        let rows: Vec<TenantRow> = self
            .db
            .query(TENANTS)
            .bind(after)
            .bind(TENANTS_MAX)
            .all()
            .await?;
        let kept = |(number, id, age, bytes, first, oldest, floor): TenantRow| Kept {
            tenant: TenantRef::new(number, &id),
            age_max: age,
            bytes_max: bytes.unsigned_abs(),
            first,
            oldest,
            floor: floor.unsigned_abs(),
        };
        Ok(rows.into_iter().map(kept).collect())
    }

    /// How long a tenant keeps events, unless their size is limited too. Errors: `STORE_BUSY`,
    /// `TENANT_NOT_FOUND`.
    pub async fn retention_age(&self, tenant: &TenantRef) -> Result<Micros> {
        let query = self.db.query(AGE).bind(tenant.number());
        let row: Option<(Micros,)> = query.optional().await?;
        let (age,) = row.ok_or_else(|| crate::tenancy::not_found(tenant.id()))?;
        Ok(age)
    }

    /// Removes one chunk of what a tenant does not keep. Of several processes that do it at once,
    /// one removes the chunk. Errors: `STORE_BUSY`.
    pub async fn remove_old(self: &Arc<Self>, kept: &Kept, now: Micros) -> Result<Removed> {
        let tenant = &kept.tenant;
        let mut state = self.retention_state(tenant).await?;
        let mut counting = false;
        if kept.bytes_max > 0 {
            (state, counting) = self.count_bytes(tenant, state).await?;
        }
        let mut removed = self.remove_chunk(kept, state, now).await?;
        if removed.events == 0 && !removed.more && !counting {
            removed.more = self.sweep(tenant, state.floor, now).await?;
        }
        removed.more |= counting;
        Ok(removed)
    }

    /// Drops from memory what retention has removed, also in another process.
    pub fn forget_removed(&self, kept: &Kept) {
        if let Some(log) = self.log_in_use(&kept.tenant) {
            log.forget_through(kept.floor, &self.budget);
        }
    }

    /// The log of a tenant, if this process uses it.
    pub(super) fn log_in_use(&self, tenant: &TenantRef) -> Option<Arc<Log>> {
        let logs = self.logs.read();
        let logs = logs.unwrap_or_else(std::sync::PoisonError::into_inner);
        logs.get(&tenant.number()).cloned()
    }

    async fn retention_state(&self, tenant: &TenantRef) -> Result<State> {
        let row: Option<(i64, i64, i64)> = self
            .db
            .query(STATE)
            .bind(tenant.number())
            .optional()
            .await?;
        let (floor, counted, bytes) = row.unwrap_or_default();
        Ok(State {
            floor: floor.unsigned_abs(),
            counted: counted.unsigned_abs(),
            bytes: bytes.max(0).unsigned_abs(),
        })
    }

    /// Adds what was stored since to the size of the log. True if there is more to count.
    async fn count_bytes(&self, tenant: &TenantRef, state: State) -> Result<(State, bool)> {
        let from = state.counted.max(state.floor);
        let sizes = self.sizes(tenant, from, COUNT_SEGMENTS_MAX).await?;
        let Some(last) = sizes.last() else {
            return Ok((state, false));
        };
        let added: u64 = sizes.iter().map(|size| size.bytes).sum();
        let mut tx = self.db.begin().await?;
        begin(&mut tx, tenant).await?;
        let counted = tx
            .query(COUNT)
            .bind(tenant.number())
            .bind(state.counted as i64)
            .bind(last.last as i64)
            .bind(added as i64)
            .execute()
            .await?;
        tx.commit().await?;
        let state = match counted {
            0 => self.retention_state(tenant).await?,
            _ => State {
                counted: last.last,
                bytes: state.bytes + added,
                ..state
            },
        };
        Ok((state, sizes.len() as i64 == COUNT_SEGMENTS_MAX))
    }

    /// The segments after `seq`, whose events themselves stay in the database.
    async fn sizes(&self, tenant: &TenantRef, seq: u64, max: i64) -> Result<Vec<Size>> {
        let rows: Vec<(i64, i64, Micros, i64)> = self
            .db
            .query(SIZES)
            .bind(tenant.key(seq))
            .bind((tenant.number() + 1) << SEQ_BITS)
            .bind(max)
            .all()
            .await?;
        let size = |(key, count, record_time, bytes): (i64, i64, Micros, i64)| Size {
            last: tenant.seq(key) + count.unsigned_abs() - 1,
            record_time,
            bytes: bytes.unsigned_abs(),
            count: count.unsigned_abs(),
        };
        Ok(rows.into_iter().map(size).collect())
    }

    async fn remove_chunk(&self, kept: &Kept, state: State, now: Micros) -> Result<Removed> {
        let tenant = &kept.tenant;
        let sizes = self.sizes(tenant, state.floor, CHUNK_SEGMENTS_MAX).await?;
        let mut removed = Removed::default();
        let (mut floor, mut counted_bytes) = (state.floor, 0);
        for size in &sizes {
            let large = kept.bytes_max > 0 && state.bytes - counted_bytes > kept.bytes_max;
            if !large && size.record_time >= now - kept.age_max {
                break;
            }
            if removed.events > 0 && removed.bytes + size.bytes > CHUNK_BYTES_MAX {
                removed.more = true;
                break;
            }
            removed.bytes += size.bytes;
            removed.events += size.count;
            floor = size.last;
            if floor <= state.counted {
                counted_bytes = (counted_bytes + size.bytes).min(state.bytes);
            }
        }
        if removed.events == 0 {
            return Ok(removed);
        }
        removed.more |= sizes.last().is_some_and(|size| size.last == floor);
        let mut tx = self.db.begin().await?;
        begin(&mut tx, tenant).await?;
        let advanced = tx
            .query(ADVANCE)
            .bind(tenant.number())
            .bind(state.floor as i64)
            .bind(floor as i64)
            .bind(counted_bytes as i64)
            .execute()
            .await?;
        if advanced == 0 {
            // Another process was faster with this chunk.
            return Ok(Removed {
                more: true,
                ..Removed::default()
            });
        }
        let (first, last) = (tenant.key(state.floor + 1), tenant.key(floor));
        let window = micros(self.limits.identities_window);
        tx.query(DELETE)
            .bind(first)
            .bind(last)
            .bind(now - window)
            .execute()
            .await?;
        tx.query(EMPTY)
            .bind(first)
            .bind(last)
            .bind(Vec::<u8>::new())
            .execute()
            .await?;
        tx.commit().await?;
        if let Some(log) = self.log_in_use(tenant) {
            log.forget_through(floor, &self.budget);
        }
        metrics::counter!("hub_journal_removed_events_total").increment(removed.events);
        Ok(removed)
    }

    /// Deletes a chunk of rows of which only identities were left, once these are too old. True if
    /// there may be more.
    async fn sweep(&self, tenant: &TenantRef, floor: u64, now: Micros) -> Result<bool> {
        let old = now - micros(self.limits.identities_window);
        let rows: Vec<(i64, Micros)> = self
            .db
            .query(EMPTIED)
            .bind(tenant.key(0))
            .bind(tenant.key(floor))
            .bind(CHUNK_SEGMENTS_MAX)
            .all()
            .await?;
        let gone = rows.partition_point(|(_, time)| *time < old);
        let Some((last, _)) = gone.checked_sub(1).and_then(|at| rows.get(at)) else {
            return Ok(false);
        };
        let mut tx = self.db.begin().await?;
        tx.query(DELETE)
            .bind(tenant.key(0))
            .bind(*last)
            .bind(old)
            .execute()
            .await?;
        tx.commit().await?;
        Ok(gone as i64 == CHUNK_SEGMENTS_MAX)
    }

    /// Takes events that are gone out of the listing index. Errors: `STORE_BUSY`.
    pub async fn forget_removed_listed(&self, tenant: &TenantRef) -> Result<()> {
        let floor = self.retention_state(tenant).await?.floor;
        self.forget_listed(tenant, floor).await
    }
}

pub(super) async fn begin(tx: &mut Tx, tenant: &TenantRef) -> Result<()> {
    tx.query(BEGIN).bind(tenant.number()).execute().await?;
    Ok(())
}
