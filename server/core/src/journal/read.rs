//! Reading a log: from the tail in memory, else from the database.

use std::sync::Arc;

use super::segment::{SEQ_BITS, Segment};
use super::tail::Look;
use super::{Journal, Log, Position, TenantRef};
use crate::clock::Micros;
use crate::error::Result;
use crate::storage::Sql;

/// Segments of a page, however small they are.
const PAGE_SEGMENTS_MAX: i64 = 256;
/// A tail that is so far behind begins anew at the head; its readers read the database first.
const CATCH_UP_EVENTS_MAX: u64 = 10_000;

// The lengths are summed first, so that no more than a page of payload leaves the database.
const PAGE: Sql = Sql::same(
    "select s.key, s.record_time, s.routing_epoch, s.ids, s.data from journal_segments s join (
        select key, sum(size) over (order by key) - size as before from (
            select key, length(data) as size from journal_segments
            where key >= $1 and key < $2 and length(data) > 0 order by key limit $3) c) p
     on p.key = s.key where p.before < $4 order by s.key",
);
const PAGE_BEFORE: Sql = Sql::same(
    "select s.key, s.record_time, s.routing_epoch, s.ids, s.data from journal_segments s join (
        select key, sum(size) over (order by key desc) - size as before from (
            select key, length(data) as size from journal_segments
            where key <= $1 and key >= $2 and length(data) > 0
            order by key desc limit $3) c) p
     on p.key = s.key where p.before < $4 order by s.key desc",
);
const START: Sql = Sql::same(
    "select (select key from journal_segments where key <= $1 and key >= $2
        order by key desc limit 1),
        coalesce((select floor from journal_floors where tenant_no = $3), 0)",
);
const HEAD: Sql = Sql::same("select head from journal_heads where tenant_no = $1");
const HOLDING: Sql = Sql::same(
    "select key, record_time, routing_epoch, ids, data from journal_segments
     where key <= $1 and key >= $2 order by key desc limit 1",
);
const EARLIEST: Sql = Sql::same(
    "select key, record_time from journal_segments
     where key > $1 + coalesce((select floor from journal_floors where tenant_no = $3), 0)
        and key < $2 and length(data) > 0
     order by key limit 1",
);
const TIME_AT: Sql = Sql::same(
    "select key, n, record_time from journal_segments
     where key <= $1 and key >= $2 order by key desc limit 1",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[PAGE, PAGE_BEFORE, START, HEAD, HOLDING, EARLIEST, TIME_AT];

/// The next events of a log.
#[derive(Debug)]
pub enum Page {
    /// Segments in order, without a hole; the first one holds the next event.
    Segments(Vec<Arc<Segment>>),
    /// The log no longer has these.
    Gap {
        /// First missing sequence.
        from: u64,
        /// Last missing sequence.
        to: u64,
    },
    /// There is nothing newer now.
    AtEnd,
}

type SegmentRow = (i64, Micros, i64, Vec<u8>, Vec<u8>);

impl Journal {
    /// The events after `after`, about `Limits::page_bytes_max` of them. Errors: `STORE_BUSY`.
    pub async fn read_after(&self, log: &Log, after: u64) -> Result<Page> {
        match log.look(after, self.limits.page_bytes_max) {
            Look::AtEnd => Ok(Page::AtEnd),
            Look::Segments(segments) => Ok(Page::Segments(segments)),
            Look::Behind => self.read_stored(log, after).await,
        }
    }

    async fn read_stored(&self, log: &Log, after: u64) -> Result<Page> {
        let (tenant, head) = (log.tenant(), log.head());
        let start = self.start_of(tenant, after + 1).await?;
        let rows: Vec<SegmentRow> = self
            .db
            .query(PAGE)
            .bind(start)
            .bind((tenant.number() + 1) << SEQ_BITS)
            .bind(PAGE_SEGMENTS_MAX)
            .bind(self.limits.page_bytes_max as i64)
            .all()
            .await?;
        let mut segments: Vec<Arc<Segment>> = Vec::with_capacity(rows.len());
        let mut next = after + 1;
        for row in rows {
            let segment = segment(tenant, row);
            if segment.last() < next {
                continue;
            }
            if segment.first() > next {
                if segments.is_empty() {
                    return Ok(Page::Gap {
                        from: next,
                        to: segment.first() - 1,
                    });
                }
                break;
            }
            next = segment.last() + 1;
            segments.push(Arc::new(segment));
        }
        if segments.is_empty() {
            return Ok(Page::Gap {
                from: after + 1,
                to: head.seq.max(after + 1),
            });
        }
        Ok(Page::Segments(segments))
    }

    /// Key of the segment that holds `seq`, or `seq`'s own key if none does; not below what
    /// retention has left.
    async fn start_of(&self, tenant: &TenantRef, seq: u64) -> Result<i64> {
        let key = tenant.key(seq);
        let (holding, floor): (Option<i64>, i64) = self
            .db
            .query(START)
            .bind(key)
            .bind(tenant.key(0))
            .bind(tenant.number())
            .one()
            .await?;
        let first_kept = tenant.key(floor.unsigned_abs() + 1);
        Ok(holding.unwrap_or(key).max(first_kept))
    }

    /// Segments with events before `before` and from `lowest` on, the newest first, about
    /// `bytes_max` of them. Always from the database: it also has what other processes wrote.
    /// Empty when there are none. Errors: `STORE_BUSY`.
    pub async fn page_before(
        &self,
        log: &Log,
        before: u64,
        lowest: u64,
        bytes_max: usize,
    ) -> Result<Vec<Arc<Segment>>> {
        let tenant = log.tenant();
        let Some(newest) = before.checked_sub(1).filter(|newest| *newest >= lowest) else {
            return Ok(Vec::new());
        };
        let rows: Vec<SegmentRow> = self
            .db
            .query(PAGE_BEFORE)
            .bind(tenant.key(newest))
            .bind(self.start_of(tenant, lowest.max(1)).await?)
            .bind(PAGE_SEGMENTS_MAX)
            .bind(bytes_max as i64)
            .all()
            .await?;
        let segments = rows.into_iter().map(|row| Arc::new(segment(tenant, row)));
        Ok(segments.collect())
    }

    /// The segment that holds `seq`, if the log still has it.
    pub async fn segment_at(&self, log: &Log, seq: u64) -> Result<Option<Arc<Segment>>> {
        let Some(before) = seq.checked_sub(1) else {
            return Ok(None);
        };
        if let Look::Segments(segments) = log.look(before, 1) {
            return Ok(segments.into_iter().next());
        }
        self.stored_segment(log.tenant(), seq).await
    }

    /// The segment that holds `seq` as the database has it now, if the log still has it.
    /// Errors: `STORE_BUSY`.
    pub async fn stored_segment(
        &self,
        tenant: &TenantRef,
        seq: u64,
    ) -> Result<Option<Arc<Segment>>> {
        let found = self.stored_row(tenant, seq).await?;
        Ok(found.filter(|segment| !segment.data().is_empty()))
    }

    /// As [`Journal::stored_segment`], also one of which retention has left the identities only.
    async fn stored_row(&self, tenant: &TenantRef, seq: u64) -> Result<Option<Arc<Segment>>> {
        let row: Option<SegmentRow> = self
            .db
            .query(HOLDING)
            .bind(tenant.key(seq))
            .bind(tenant.key(0))
            .optional()
            .await?;
        let found = row
            .map(|row| segment(tenant, row))
            .filter(|found| found.last() >= seq);
        Ok(found.map(Arc::new))
    }

    /// The position at `seq`; `None` if the log no longer has it. Sequence 0 is before the first.
    pub async fn position_at(&self, log: &Log, seq: u64) -> Result<Option<Position>> {
        let head = log.head();
        if seq == 0 || seq == head.seq {
            return Ok(Some(if seq == 0 { Position::default() } else { head }));
        }
        let segment = self.segment_at(log, seq).await?;
        let fingerprint = segment.and_then(|segment| segment.fingerprint(seq));
        Ok(fingerprint.map(|fingerprint| Position { seq, fingerprint }))
    }

    /// The first sequence that the log still has, and when it was recorded; `None` if it is empty.
    pub async fn earliest(&self, log: &Log) -> Result<Option<(u64, Micros)>> {
        let tenant = log.tenant();
        let row: Option<(i64, Micros)> = self
            .db
            .query(EARLIEST)
            .bind(tenant.key(0))
            .bind((tenant.number() + 1) << SEQ_BITS)
            .bind(tenant.number())
            .optional()
            .await?;
        Ok(row.map(|(key, time)| (tenant.seq(key), time)))
    }

    /// The sequence of the first event recorded at or after `time`; one past the head if none.
    ///
    /// Times never decrease within a log, so this is a binary search over its segments.
    pub async fn first_since(&self, log: &Log, time: Micros) -> Result<u64> {
        let Some((mut low, _)) = self.earliest(log).await? else {
            return Ok(log.head().seq + 1);
        };
        let mut high = log.head().seq + 1;
        while low < high {
            let middle = low + (high - low) / 2;
            match self.time_at(log.tenant(), middle).await? {
                Some(found) if found.record_time >= time => high = found.first.max(low),
                Some(found) => low = found.last + 1,
                // Removed meanwhile: what is older is of no interest.
                None => low = middle + 1,
            }
        }
        Ok(low)
    }

    /// When the event at `seq` was recorded; `None` if the log does not have it. Errors:
    /// `STORE_BUSY`.
    pub async fn record_time(&self, tenant: &TenantRef, seq: u64) -> Result<Option<Micros>> {
        let found = self.time_at(tenant, seq).await?;
        Ok(found.map(|found| found.record_time))
    }

    /// Without the events themselves: this costs no more for a large segment.
    async fn time_at(&self, tenant: &TenantRef, seq: u64) -> Result<Option<Recorded>> {
        let row: Option<(i64, i64, Micros)> = self
            .db
            .query(TIME_AT)
            .bind(tenant.key(seq))
            .bind(tenant.key(0))
            .optional()
            .await?;
        let found = row.map(|(key, count, record_time)| Recorded {
            first: tenant.seq(key),
            last: tenant.seq(key) + count.unsigned_abs() - 1,
            record_time,
        });
        Ok(found.filter(|found| found.last >= seq))
    }

    async fn stored_head(&self, tenant: &TenantRef) -> Result<u64> {
        let row: Option<(i64,)> = self.db.query(HEAD).bind(tenant.number()).optional().await?;
        let (head,) = row.ok_or_else(|| crate::tenancy::not_found(tenant.id()))?;
        Ok(head as u64)
    }

    pub(super) async fn load_head(&self, tenant: &TenantRef) -> Result<Position> {
        let seq = self.stored_head(tenant).await?;
        let segment = match seq {
            0 => None,
            _ => self.stored_row(tenant, seq).await?,
        };
        let fingerprint = segment
            .and_then(|segment| segment.fingerprint(seq))
            .unwrap_or_default();
        Ok(Position { seq, fingerprint })
    }

    /// The newest position, also if another process wrote it. Errors: `STORE_BUSY`.
    pub async fn refresh(&self, log: &Arc<Log>) -> Result<Position> {
        self.catch_up(log).await?;
        Ok(log.head())
    }

    /// The same; none if the database ends before what this process has seen: it was put back, and
    /// others may have written something else since. Errors: `STORE_BUSY`.
    pub async fn refresh_whole(&self, log: &Arc<Log>) -> Result<Option<Position>> {
        let seen = log.head();
        let stored = self.catch_up(log).await?;
        Ok((stored >= seen.seq).then(|| log.head()))
    }

    /// Brings the tail up to what the database has: another process committed in between, or a
    /// commit succeeded whose answer was lost. Returns the last sequence in the database.
    pub(super) async fn catch_up(&self, log: &Arc<Log>) -> Result<u64> {
        let stored = self.stored_head(log.tenant()).await?;
        if stored > log.head().seq + CATCH_UP_EVENTS_MAX {
            let head = self.load_head(log.tenant()).await?;
            log.skip_to(head, &self.budget);
        }
        while log.head().seq < stored {
            let (after, view) = (log.head().seq, log.view());
            match self.read_stored(log, after).await? {
                Page::Segments(segments) => {
                    for segment in segments {
                        log.offer_of_view(segment, &self.budget, view);
                    }
                }
                // Retention was faster than this process.
                Page::Gap { to, .. } => {
                    let (seq, tenant) = (to.min(stored), log.tenant());
                    let row = self.stored_row(tenant, seq).await?;
                    let fingerprint = row.and_then(|row| row.fingerprint(seq)).unwrap_or_default();
                    log.skip_to(Position { seq, fingerprint }, &self.budget);
                }
                Page::AtEnd => break,
            }
            if log.head().seq == after && log.view() == view {
                break;
            }
        }
        Ok(stored)
    }
}

/// When a segment was recorded.
struct Recorded {
    first: u64,
    last: u64,
    record_time: Micros,
}

fn segment(tenant: &TenantRef, row: SegmentRow) -> Segment {
    let (key, record_time, routing_epoch, ids, data) = row;
    Segment::new(tenant.clone(), tenant.seq(key), record_time, ids, data)
        .under(routing_epoch.unsigned_abs())
}
