//! How often keys are used, and when last: counted in memory, written in batches.
//!
//! A batch is written every few seconds, so what a process counted is lost for at most that long
//! if it is killed, and never if it is stopped. A batch that cannot be written waits for the next.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::storage::Db;

use crate::key::Record;
use crate::store::usage as store;

/// Pause between two batches. With the time that one takes, less than the 10 s of the contract.
pub(crate) const BATCH_INTERVAL: Duration = Duration::from_secs(4);
/// Minutes of keys that wait to be written; while the database is away, more are not counted.
const PENDING_MAX: usize = 100_000;
/// Rows that one transaction writes, a multiple of the three spans, which are written together.
/// On SQLite a transaction holds the only writer.
const CHUNK: usize = 1200;
/// The outcome of what was allowed.
pub(crate) const ALLOWED: &str = "";

/// A minute, an hour and a day.
pub(crate) const MINUTE: Micros = 60_000_000;
pub(crate) const HOUR: Micros = 60 * MINUTE;
pub(crate) const DAY: Micros = 24 * HOUR;
/// Each span, and how long its counts are kept.
const SPANS: [(Micros, Micros); 3] = [(MINUTE, 7 * DAY), (HOUR, 90 * DAY), (DAY, 1100 * DAY)];

/// Requests of a key family in a minute, by outcome.
type Counts = BTreeMap<&'static str, u64>;

/// What was counted and is not written yet.
#[derive(Default)]
struct Pending {
    counts: HashMap<(i64, Arc<str>, Micros), Counts>,
    uses: HashMap<Arc<str>, Micros>,
}

/// Counts requests.
#[derive(Default)]
pub(crate) struct Usage {
    pending: Mutex<Pending>,
}

/// A count to be added to a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counted {
    pub tenant_no: i64,
    pub family: Arc<str>,
    pub span: Micros,
    pub start: Micros,
    pub outcome: &'static str,
    pub requests: u64,
}

impl Usage {
    /// Counts requests with a key that is known: `outcome` is [`ALLOWED`] or a reason.
    pub fn count(&self, record: &Record, outcome: &'static str, requests: u32, now: Micros) {
        let mut pending = self.pending();
        let tenant_no = record
            .caller
            .tenant
            .as_ref()
            .map_or(0, |tenant| tenant.number());
        let minute = now - now.rem_euclid(MINUTE);
        let of = (tenant_no, record.family.clone(), minute);
        if pending.counts.len() >= PENDING_MAX && !pending.counts.contains_key(&of) {
            metrics::counter!("hub_key_usage_dropped_total").increment(1);
            return;
        }
        let counts = pending.counts.entry(of).or_default();
        *counts.entry(outcome).or_default() += u64::from(requests);
    }

    /// A key was used, by whatever call that it was good for.
    pub fn used(&self, record: &Record, now: Micros) {
        let mut pending = self.pending();
        let key_id = &record.caller.key_id;
        if let Some(last) = pending.uses.get_mut(key_id) {
            *last = now.max(*last);
        } else if pending.uses.len() < PENDING_MAX {
            pending.uses.insert(key_id.clone(), now);
        }
    }

    /// Writes what was counted. What could not be written is kept for the next batch.
    pub async fn write(&self, db: &Db) -> Result<()> {
        let Pending { counts, uses } = std::mem::take(&mut *self.pending());
        let mut rows = rows(&counts);
        while !rows.is_empty() {
            let chunk = rows.split_off(rows.len().saturating_sub(CHUNK));
            if let Err(error) = store::add(db, &chunk).await {
                rows.extend(chunk);
                self.put_back(&rows, uses);
                return Err(error);
            }
        }
        let mut uses: Vec<(Arc<str>, Micros)> = uses.into_iter().collect();
        while !uses.is_empty() {
            let chunk = uses.split_off(uses.len().saturating_sub(CHUNK));
            if let Err(error) = store::set_last_use(db, &chunk).await {
                uses.extend(chunk);
                self.put_back(&[], uses.into_iter().collect());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Removes what is older than its span is kept.
    pub async fn sweep(db: &Db, now: Micros) -> Result<()> {
        for (span, kept) in SPANS {
            store::sweep(db, span, now - kept).await?;
        }
        Ok(())
    }

    /// The rows of a minute are those that are put back: the others follow from them.
    fn put_back(&self, rows: &[Counted], uses: HashMap<Arc<str>, Micros>) {
        let mut pending = self.pending();
        for row in rows.iter().filter(|row| row.span == MINUTE) {
            let of = (row.tenant_no, row.family.clone(), row.start);
            let counts = pending.counts.entry(of).or_default();
            *counts.entry(row.outcome).or_default() += row.requests;
        }
        for (key_id, time) in uses {
            let last = pending.uses.entry(key_id).or_insert(time);
            *last = time.max(*last);
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A row for each span of each count. Those of one count lie together, in one chunk.
fn rows(counts: &HashMap<(i64, Arc<str>, Micros), Counts>) -> Vec<Counted> {
    let mut rows = Vec::new();
    for ((tenant_no, family, minute), counts) in counts {
        for (outcome, requests) in counts {
            rows.extend(SPANS.map(|(span, _)| Counted {
                tenant_no: *tenant_no,
                family: family.clone(),
                span,
                start: minute - minute.rem_euclid(span),
                outcome,
                requests: *requests,
            }));
        }
    }
    rows
}
