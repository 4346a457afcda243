//! How often keys are used, and when last: counted in memory, written in batches, minute by minute
//! (`rollup.rs` makes hours and days of them). What is allowed is counted beside the key
//! (`tally.rs`), what is denied in a table.
//!
//! A batch is written every few seconds, so what a process counted is lost for at most that long
//! if it is killed, and never if it is stopped, unless more waits than there is room for. A batch
//! that cannot be written waits for the next; one that may be written is sent again as it is, by
//! its number, and counts once.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ahash::{HashMap, HashMapExt};
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::id;
use hub_core::storage::Db;

use crate::cache::Known;
use crate::store::usage as store;
use crate::tally::Allowed;

/// Pause between two batches. With the time that one takes, less than the 10 s of the contract.
pub(crate) const BATCH_INTERVAL: Duration = Duration::from_secs(6);
/// Minutes of keys, and keys, that wait to be written; while the database is away, more are not
/// counted.
const PENDING_MAX: usize = 1_000_000;
/// Keys whose tallies are emptied at once, so that their rows take little memory.
pub(crate) const TOLD_AT_ONCE: usize = 100_000;
/// Counts that one transaction writes. On SQLite it holds the only writer.
const CHUNK_COUNTS: usize = 1200;
/// Last uses that one transaction writes.
const CHUNK_USES: usize = 1200;
/// Counts that are brought into order where they are: they are few.
const SORTED_HERE_MAX: usize = 1000;
/// The outcome of what was allowed.
pub(crate) const ALLOWED: &str = "";

/// A minute, an hour and a day.
pub(crate) const MINUTE: Micros = 60_000_000;
pub(crate) const HOUR: Micros = 60 * MINUTE;
pub(crate) const DAY: Micros = 24 * HOUR;
/// Each span, and how long its counts are kept.
pub(crate) const SPANS: [(Micros, Micros); 3] =
    [(MINUTE, 7 * DAY), (HOUR, 90 * DAY), (DAY, 1100 * DAY)];

/// A key family in a minute: begin of the minute, number of the tenant, family.
type Of = (Micros, i64, Arc<str>);

/// Requests of a key family in a minute. Mostly nothing is denied, and then this is all of it.
#[derive(Default)]
struct Counts {
    allowed: u64,
    /// By reason.
    denied: BTreeMap<&'static str, u64>,
}

impl Counts {
    fn add(&mut self, outcome: &'static str, requests: u64) {
        match outcome {
            ALLOWED => self.allowed += requests,
            reason => *self.denied.entry(reason).or_default() += requests,
        }
    }

    fn into_outcomes(self) -> impl Iterator<Item = (&'static str, u64)> {
        let allowed = (self.allowed > 0).then_some((ALLOWED, self.allowed));
        allowed.into_iter().chain(self.denied)
    }
}

/// What was counted and is not written yet.
#[derive(Default)]
struct Pending {
    /// Keys that have something in their tally.
    told: Vec<Arc<Known>>,
    /// What is in no tally.
    counts: HashMap<Of, Counts>,
    uses: HashMap<Arc<str>, Micros>,
}

/// Number of requests of a key family in a minute with an outcome.
type Count = (Of, &'static str, u64);
/// When a key was used last.
type Use = (Arc<str>, Micros);

impl Pending {
    /// One more would be too many.
    fn is_full(&self) -> bool {
        self.told.len() + self.counts.len() >= PENDING_MAX
    }

    /// Empties the tallies. In the order of the rows: a chunk then lies on few pages, and as many
    /// are written.
    fn sorted(self) -> (Vec<Count>, Vec<Use>) {
        let counts = self.counts.into_iter();
        let mut counts: Vec<Count> = counts
            .flat_map(|(of, counts)| {
                let outcomes = counts.into_outcomes();
                outcomes.map(move |(outcome, requests)| (of.clone(), outcome, requests))
            })
            .collect();
        let mut uses: Vec<Use> = self.uses.into_iter().collect();
        for known in &self.told {
            let (allowed, used_at) = known.tally.take();
            counts.extend(allowed.map(|allowed| count_of(known, allowed)));
            uses.extend(used_at.map(|at| (known.caller.key_id.clone(), at)));
        }
        counts.sort_unstable();
        counts.dedup_by(|next, first| {
            let is_same = (&next.0, next.1) == (&first.0, first.1);
            first.2 += if is_same { next.2 } else { 0 };
            is_same
        });
        // The latest first.
        uses.sort_unstable_by(|one, other| (&one.0, other.1).cmp(&(&other.0, one.1)));
        uses.dedup_by(|next, first| next.0 == first.0);
        (counts, uses)
    }
}

fn count_of(known: &Known, allowed: Allowed) -> Count {
    let of = (allowed.minute, known.tenant_no(), known.family.clone());
    (of, ALLOWED, u64::from(allowed.requests))
}

/// Counts requests.
pub(crate) struct Usage {
    pending: Mutex<Pending>,
    /// Names this one among those that write.
    writer_id: String,
    batches: tokio::sync::Mutex<Batches>,
}

/// What was sent to the database.
#[derive(Default)]
struct Batches {
    /// Number of the last one.
    last: i64,
    /// The last one, if it is not known to be stored.
    unsure: Option<Vec<Count>>,
}

/// A count to be added to a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counted {
    pub tenant_no: i64,
    pub family: Arc<str>,
    pub span: Micros,
    pub start: Micros,
    pub outcome: Cow<'static, str>,
    pub requests: u64,
}

impl Default for Usage {
    fn default() -> Self {
        Usage {
            pending: Mutex::default(),
            writer_id: id::new("wrt"),
            batches: tokio::sync::Mutex::default(),
        }
    }
}

impl Usage {
    /// Counts requests with a key: `outcome` is [`ALLOWED`] or a reason.
    pub fn count(&self, known: &Arc<Known>, outcome: &'static str, requests: u32, now: Micros) {
        let minute = now - now.rem_euclid(MINUTE);
        if requests == 0 {
            return;
        }
        if outcome != ALLOWED {
            let of = (minute, known.tenant_no(), known.family.clone());
            return self.add((of, outcome, u64::from(requests)));
        }
        if let Some(before) = known.tally.count(Allowed { minute, requests }) {
            self.add(count_of(known, before));
        }
        self.tell(known);
    }

    /// A key was used, by whatever call that it was good for.
    pub fn used(&self, known: &Arc<Known>, now: Micros) {
        known.tally.used(now);
        self.tell(known);
    }

    fn tell(&self, known: &Arc<Known>) {
        if !known.tally.is_to_be_told() {
            return;
        }
        let mut pending = self.pending();
        if pending.is_full() {
            // It stays beside the key, and what comes next may find room.
            known.tally.was_not_told();
        } else {
            pending.told.push(known.clone());
        }
    }

    fn add(&self, (of, outcome, requests): Count) {
        let mut pending = self.pending();
        let is_full = pending.is_full();
        match pending.counts.entry(of) {
            Entry::Vacant(_) if is_full => dropped(requests),
            of => of.or_default().add(outcome, requests),
        }
    }

    /// Writes what was counted. What could not be written is kept for the next batch.
    pub async fn write(&self, db: &Db, now: Micros) -> Result<()> {
        let mut batches = self.batches.lock().await;
        if let Some(chunk) = &batches.unsure {
            self.send(db, batches.last, chunk, now).await?;
            batches.unsure = None;
        }
        // Who tells meanwhile waits for the next batch.
        let rounds = self.pending().told.len().div_ceil(TOLD_AT_ONCE);
        for _ in 0..rounds.max(1) {
            self.write_some(db, &mut batches, now).await?;
        }
        Ok(())
    }

    async fn write_some(&self, db: &Db, batches: &mut Batches, now: Micros) -> Result<()> {
        let pending = self.take();
        let waiting = pending.told.len() + pending.counts.len();
        let (mut counts, mut uses) = match waiting <= SORTED_HERE_MAX {
            true => pending.sorted(),
            // It takes a while, in which calls go on. Nothing of it fails, unless the process ends.
            false => tokio::task::spawn_blocking(|| pending.sorted())
                .await
                .map_err(Error::internal)?,
        };
        while !counts.is_empty() {
            let chunk = counts.split_off(counts.len().saturating_sub(CHUNK_COUNTS));
            batches.last += 1;
            if let Err(error) = self.send(db, batches.last, &chunk, now).await {
                batches.unsure = Some(chunk);
                self.put_back(counts, uses);
                return Err(error);
            }
        }
        while !uses.is_empty() {
            let chunk = uses.split_off(uses.len().saturating_sub(CHUNK_USES));
            if let Err(error) = store::set_last_use(db, &chunk).await {
                uses.extend(chunk);
                self.put_back(Vec::new(), uses);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn send(&self, db: &Db, number: i64, chunk: &[Count], now: Micros) -> Result<()> {
        let batch = store::Batch {
            writer_id: &self.writer_id,
            number,
        };
        store::add(db, batch, rows(chunk), now).await
    }

    fn put_back(&self, counts: Vec<Count>, uses: Vec<Use>) {
        let mut pending = self.pending();
        for (of, outcome, requests) in counts {
            pending.counts.entry(of).or_default().add(outcome, requests);
        }
        for (key_id, time) in uses {
            // While the database is away, keys beyond those are used without that it is told when.
            if pending.uses.len() < PENDING_MAX || pending.uses.contains_key(&key_id) {
                let last = pending.uses.entry(key_id).or_insert(time);
                *last = time.max(*last);
            }
        }
    }

    /// What waits, of the keys that told some. As much will probably wait soon, so that room is
    /// made for it at once.
    fn take(&self) -> Pending {
        let mut pending = self.pending();
        let told = pending.told.len().min(TOLD_AT_ONCE);
        let mut later = Vec::with_capacity(pending.told.len());
        later.extend(pending.told.drain(told..));
        let next = Pending {
            told: later,
            counts: HashMap::with_capacity(pending.counts.len()),
            uses: HashMap::new(),
        };
        std::mem::replace(&mut *pending, next)
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn dropped(requests: u64) {
    metrics::counter!("hub_key_usage_dropped_total").increment(requests);
}

fn rows(counts: &[Count]) -> Vec<Counted> {
    let row = |((start, tenant_no, family), outcome, requests): &Count| Counted {
        tenant_no: *tenant_no,
        family: family.clone(),
        span: MINUTE,
        start: *start,
        outcome: Cow::Borrowed(outcome),
        requests: *requests,
    };
    counts.iter().map(row).collect()
}
