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
    "select s.key, s.record_time, s.ids, s.data from journal_segments s join (
        select key, sum(size) over (order by key) - size as before from (
            select key, length(data) as size from journal_segments
            where key >= $1 and key < $2 order by key limit $3) c) p
     on p.key = s.key where p.before < $4 order by s.key",
);
const FLOOR: Sql = Sql::same(
    "select key from journal_segments where key <= $1 and key >= $2 order by key desc limit 1",
);
const HEAD: Sql = Sql::same("select head from journal_heads where tenant_no = $1");
const HOLDING: Sql = Sql::same(
    "select key, record_time, ids, data from journal_segments
     where key <= $1 and key >= $2 order by key desc limit 1",
);
const EARLIEST: Sql = Sql::same(
    "select key, record_time from journal_segments where key >= $1 and key < $2
     order by key limit 1",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[PAGE, FLOOR, HEAD, HOLDING, EARLIEST];

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

type SegmentRow = (i64, Micros, Vec<u8>, Vec<u8>);

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
        let start = self.floor(tenant, after + 1).await?;
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

    /// Key of the segment that holds `seq`, or `seq`'s own key if none does.
    async fn floor(&self, tenant: &TenantRef, seq: u64) -> Result<i64> {
        let key = tenant.key(seq);
        let row: Option<(i64,)> = self
            .db
            .query(FLOOR)
            .bind(key)
            .bind(tenant.key(0))
            .optional()
            .await?;
        Ok(row.map_or(key, |(floor,)| floor))
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

    async fn stored_segment(&self, tenant: &TenantRef, seq: u64) -> Result<Option<Arc<Segment>>> {
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
        self.first_from(log.tenant(), 0).await
    }

    async fn first_from(&self, tenant: &TenantRef, seq: u64) -> Result<Option<(u64, Micros)>> {
        let end = (tenant.number() + 1) << SEQ_BITS;
        let row: Option<(i64, Micros)> = self
            .db
            .query(EARLIEST)
            .bind(tenant.key(seq))
            .bind(end)
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
            match self.segment_at(log, middle).await? {
                Some(found) if found.record_time() >= time => high = found.first(),
                Some(found) => low = found.last() + 1,
                // Removed meanwhile: what is older is of no interest.
                None => low = middle + 1,
            }
        }
        Ok(low)
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
            _ => self.stored_segment(tenant, seq).await?,
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

    /// Brings the tail up to what the database has: another process committed in between, or a
    /// commit succeeded whose answer was lost.
    pub(super) async fn catch_up(&self, log: &Arc<Log>) -> Result<()> {
        let stored = self.stored_head(log.tenant()).await?;
        if stored > log.head().seq + CATCH_UP_EVENTS_MAX {
            let head = self.load_head(log.tenant()).await?;
            log.skip_to(head, &self.budget);
        }
        while log.head().seq < stored {
            let after = log.head().seq;
            let Page::Segments(segments) = self.read_stored(log, after).await? else {
                break;
            };
            for segment in segments {
                log.offer(segment, &self.budget);
            }
            if log.head().seq == after {
                break;
            }
        }
        Ok(())
    }
}

fn segment(tenant: &TenantRef, (key, record_time, ids, data): SegmentRow) -> Segment {
    Segment::new(tenant.clone(), tenant.seq(key), record_time, ids, data)
}
