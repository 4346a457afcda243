//! Writes the listing index behind the log, off the append path.
//!
//! A pass takes the logs that are due and writes what several of them have in one short
//! transaction. `covered` moves in the same transaction and only from where the pass began: of
//! several processes one wins, the others look again later. After a crash a pass goes on at
//! `covered`; a log that was restored from a backup is indexed anew.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::listing::{KINDS_MAX, OTHERS, ROW_EVENTS_MAX, forget, pack, unpack};
use super::segment::Segment;
use super::{Journal, Log, Page, TenantRef};
use crate::error::Result;
use crate::storage::{Sql, Tx};
use crate::worker::Turn;

/// Pause between passes.
const PASS_INTERVAL: Duration = Duration::from_secs(1);
/// A log is due when so many events are not in the index.
const DUE_EVENTS: u64 = 1000;
/// … or when some of them have waited for so long.
const DUE_AGE: Duration = Duration::from_secs(30);
/// Logs that this process does not use are looked for so often: another process may have died.
const SEARCH_INTERVAL: Duration = Duration::from_secs(600);
/// Events of one transaction, about: it holds the writer of SQLite for a few milliseconds.
const CHUNK_EVENTS_MAX: usize = 20_000;
/// Logs of one transaction.
const CHUNK_LOGS_MAX: usize = 64;
/// Lists that one transaction adds to. Further kinds of one addition go to the shared list.
const CHUNK_KINDS_MAX: usize = 128;

const BEGIN: Sql = Sql::same(
    "insert into listing_covered (tenant_no, covered, fingerprint) values ($1, 0, 0)
     on conflict (tenant_no) do nothing",
);
const ADVANCE: Sql = Sql::same(
    "update listing_covered set covered = $3, fingerprint = $4
     where tenant_no = $1 and covered = $2",
);
const LAST_ROW: Sql = Sql::same(
    "select first_seq, n, data from listing_postings
     where tenant_no = $1 and kind_no = $2 order by first_seq desc limit 1",
);
const PUT_ROW: Sql = Sql::same(
    "insert into listing_postings (tenant_no, kind_no, first_seq, last_seq, n, data)
     values ($1, $2, $3, $4, $5, $6)
     on conflict (tenant_no, kind_no, first_seq) do update
     set last_seq = excluded.last_seq, n = excluded.n, data = excluded.data",
);
const KINDS: Sql =
    Sql::same("select kind_no, product, kind from listing_kinds where tenant_no = $1");
const ADD_KIND: Sql = Sql::same(
    "insert into listing_kinds (tenant_no, kind, product, kind_no) values ($1, $2, $3, $4)",
);
const UNCOVERED: Sql = Sql::same(
    "select t.tenant_no, t.tenant_id from journal_heads h
        join tenants t on t.tenant_no = h.tenant_no
        left join listing_covered c on c.tenant_no = h.tenant_no
     where h.tenant_no > $1 and h.head > coalesce(c.covered, 0)
     order by h.tenant_no limit 1000",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[
    BEGIN, ADVANCE, LAST_ROW, PUT_ROW, KINDS, ADD_KIND, UNCOVERED,
];

/// Numbers of the kinds of a tenant, by type and product.
type Numbers = HashMap<(String, String), i64>;

/// Sequences of events by type, for each product.
type Kinds = HashMap<String, Vec<(String, Vec<u64>)>>;

/// What the writer knows between passes.
#[derive(Default)]
struct Writer {
    /// By tenant: where the index ends, and when it was last there.
    covered: HashMap<i64, (u64, Instant)>,
    searched_at: Option<Instant>,
    turn: Option<Turn>,
}

/// What a pass adds for one log.
struct Addition {
    log: Arc<Log>,
    /// Where the index ended when the pass began.
    from: u64,
    to: u64,
    fingerprint: u64,
    /// The index is of another log and begins anew.
    anew: bool,
    kinds: Kinds,
    kind_count: usize,
    events: usize,
}

/// Writes until the worker is told to stop.
pub(super) async fn run(journal: Weak<Journal>, turn: Turn) -> Result<()> {
    let mut writer = Writer {
        turn: Some(turn.clone()),
        ..Writer::default()
    };
    loop {
        let Some(journal) = journal.upgrade() else {
            return Ok(());
        };
        writer.pass(&journal, DUE_EVENTS, DUE_AGE).await?;
        drop(journal);
        turn.passed_for(PASS_INTERVAL);
        if !turn.pause(PASS_INTERVAL).await {
            return Ok(());
        }
    }
}

impl Journal {
    /// Brings the listing index of the logs in use up to date at once, which otherwise happens
    /// within about half a minute. Errors: `STORE_BUSY`.
    pub async fn write_listing(self: &Arc<Self>) -> Result<()> {
        Writer::default().pass(self, 1, Duration::ZERO).await
    }
}

impl Writer {
    /// Between two chunks: a pass over a large log is no hanging worker, and can be stopped.
    fn is_stopped(&self) -> bool {
        let Some(turn) = &self.turn else { return false };
        turn.passed();
        turn.stopped().is_cancelled()
    }

    async fn pass(
        &mut self,
        journal: &Arc<Journal>,
        due_events: u64,
        due_age: Duration,
    ) -> Result<()> {
        if self
            .searched_at
            .is_none_or(|at| at.elapsed() >= SEARCH_INTERVAL)
        {
            search(journal).await?;
            self.searched_at = Some(Instant::now());
        }
        let mut logs: Vec<Arc<Log>> = {
            let logs = journal.logs.read().unwrap_or_else(PoisonError::into_inner);
            let of_tenants = logs.values().filter(|log| log.tenant().number() != 0);
            of_tenants.cloned().collect()
        };
        // In this order in every process, so that no two wait for each other.
        logs.sort_by_key(|log| log.tenant().number());
        let mut chunk = Vec::new();
        for log in logs {
            let number = log.tenant().number();
            let (covered, at) = match self.covered.get(&number) {
                Some(known) => *known,
                None => (journal.listing_covered(log.tenant()).await?, Instant::now()),
            };
            self.covered.insert(number, (covered, at));
            let waiting = log.head().seq.abs_diff(covered);
            if waiting == 0 || (waiting < due_events && at.elapsed() < due_age) {
                continue;
            }
            let mut last = journal.covered(log.tenant()).await?.unwrap_or_default();
            self.covered.insert(number, (last.0, Instant::now()));
            let mut anew = is_other(journal, &log, last).await?;
            while let Some(addition) = read(journal, &log, last, anew).await? {
                (last, anew) = ((addition.to, addition.fingerprint), false);
                chunk.push(addition);
                self.write_full(journal, &mut chunk, false).await?;
                if self.is_stopped() {
                    return Ok(());
                }
            }
        }
        self.write_full(journal, &mut chunk, true).await
    }

    /// Writes a chunk once it is large enough, or whatever there is.
    async fn write_full(
        &mut self,
        journal: &Arc<Journal>,
        chunk: &mut Vec<Addition>,
        all: bool,
    ) -> Result<()> {
        let events: usize = chunk.iter().map(|addition| addition.events).sum();
        let kinds: usize = chunk.iter().map(|addition| addition.kind_count).sum();
        let full =
            events >= CHUNK_EVENTS_MAX || kinds >= CHUNK_KINDS_MAX || chunk.len() >= CHUNK_LOGS_MAX;
        if chunk.is_empty() || !(full || all) {
            return Ok(());
        }
        let mut numbers: HashMap<i64, Numbers> = HashMap::new();
        for addition in chunk.iter() {
            let tenant = addition.log.tenant();
            numbers.insert(tenant.number(), kind_numbers(journal, tenant).await?);
        }
        let mut tx = journal.db.begin().await?;
        for addition in chunk.iter() {
            let number = addition.log.tenant().number();
            let numbers = numbers.entry(number).or_default();
            if addition.write(&mut tx, numbers).await? {
                self.covered.insert(number, (addition.to, Instant::now()));
            } else {
                // Another process was faster: look again where it has come to.
                self.covered.remove(&number);
            }
        }
        tx.commit().await?;
        metrics::counter!("hub_journal_listed_events_total").increment(events as u64);
        chunk.clear();
        Ok(())
    }
}

/// Takes logs into use whose events are not in the index, whoever wrote them.
async fn search(journal: &Arc<Journal>) -> Result<()> {
    let mut after = 0;
    loop {
        let rows: Vec<(i64, String)> = journal.db.query(UNCOVERED).bind(after).all().await?;
        for (number, id) in &rows {
            let log = journal.log(&TenantRef::new(*number, id)).await?;
            journal.catch_up(&log).await?;
        }
        match rows.last() {
            Some((last, _)) => after = *last,
            None => return Ok(()),
        }
    }
}

async fn kind_numbers(journal: &Journal, tenant: &TenantRef) -> Result<Numbers> {
    let rows: Vec<(i64, String, String)> =
        journal.db.query(KINDS).bind(tenant.number()).all().await?;
    let numbers = rows.into_iter();
    Ok(numbers
        .map(|(number, product, kind)| ((kind, product), number))
        .collect())
}

/// What follows the place `last`; `None` if that is everything.
async fn read(
    journal: &Journal,
    log: &Arc<Log>,
    last: (u64, u64),
    anew: bool,
) -> Result<Option<Addition>> {
    let (to, fingerprint) = if anew { (0, 0) } else { last };
    let mut addition = Addition {
        log: log.clone(),
        from: last.0,
        to,
        fingerprint,
        anew,
        kinds: HashMap::new(),
        kind_count: 0,
        events: 0,
    };
    while addition.events < CHUNK_EVENTS_MAX && addition.kind_count < CHUNK_KINDS_MAX {
        match journal.read_after(log, addition.to).await? {
            Page::Segments(segments) => {
                segments.iter().for_each(|segment| addition.add(segment));
            }
            Page::Gap { to, .. } => (addition.to, addition.fingerprint) = (to, 0),
            Page::AtEnd => break,
        }
    }
    Ok((anew || addition.to > addition.from).then_some(addition))
}

/// Whether the log is not the one that the index was made of: it was restored from a backup.
async fn is_other(journal: &Journal, log: &Arc<Log>, covered: (u64, u64)) -> Result<bool> {
    let (seq, fingerprint) = covered;
    // Another process may have written and indexed what this one has not seen.
    if seq > log.head().seq && seq > journal.refresh(log).await?.seq {
        return Ok(true);
    }
    let found = journal.position_at(log, seq).await?;
    Ok(found.is_some_and(|found| {
        found.fingerprint != 0 && fingerprint != 0 && found.fingerprint != fingerprint
    }))
}

impl Addition {
    fn add(&mut self, segment: &Segment) {
        // What is damaged is not listed, and told to who reads it.
        for event in segment.events().map_while(Result::ok) {
            // A page begins with the segment that holds the next event.
            if event.seq > self.to {
                self.events += 1;
                self.list(event.product, event.kind, event.seq);
            }
        }
        self.to = segment.last().max(self.to);
        self.fingerprint = segment.fingerprint(self.to).unwrap_or_default();
    }

    /// An event costs no allocation once its kind is known.
    fn list(&mut self, product: &str, kind: &str, seq: u64) {
        let products = match self.kinds.get_mut(kind) {
            Some(products) => products,
            None => self.kinds.entry(kind.to_owned()).or_default(),
        };
        match products.iter_mut().find(|(known, _)| known == product) {
            Some((_, seqs)) => seqs.push(seq),
            None => {
                products.push((product.to_owned(), vec![seq]));
                self.kind_count += 1;
            }
        }
    }

    /// False if the index does not end where this begins.
    async fn write(&self, tx: &mut Tx, numbers: &mut Numbers) -> Result<bool> {
        let tenant = self.log.tenant();
        tx.query(BEGIN).bind(tenant.number()).execute().await?;
        let advanced = tx
            .query(ADVANCE)
            .bind(tenant.number())
            .bind(self.from as i64)
            .bind(self.to as i64)
            .bind(self.fingerprint as i64)
            .execute()
            .await?;
        if advanced == 0 {
            return Ok(false);
        }
        if self.anew {
            for number in numbers.values().copied().chain([OTHERS]) {
                forget(tx, tenant, number, i64::MAX).await?;
            }
        }
        let mut lists: HashMap<i64, Vec<u64>> = HashMap::new();
        for (kind, products) in &self.kinds {
            for (product, seqs) in products {
                let number = match lists.len() < CHUNK_KINDS_MAX {
                    true => self.number_of(tx, kind, product, numbers).await?,
                    false => OTHERS,
                };
                lists.entry(number).or_default().extend(seqs);
            }
        }
        for (number, mut seqs) in lists {
            // Kinds without a list of their own share one.
            seqs.sort_unstable();
            self.append(tx, number, seqs).await?;
        }
        Ok(true)
    }

    async fn number_of(
        &self,
        tx: &mut Tx,
        kind: &str,
        product: &str,
        numbers: &mut Numbers,
    ) -> Result<i64> {
        let known = (kind.to_owned(), product.to_owned());
        if let Some(number) = numbers.get(&known) {
            return Ok(*number);
        }
        if numbers.len() >= KINDS_MAX {
            return Ok(OTHERS);
        }
        let number = numbers.values().max().copied().unwrap_or(OTHERS) + 1;
        tx.query(ADD_KIND)
            .bind(self.log.tenant().number())
            .bind(kind.to_owned())
            .bind(product.to_owned())
            .bind(number)
            .execute()
            .await?;
        numbers.insert(known, number);
        Ok(number)
    }

    /// Fills the last row of the list, then adds rows.
    async fn append(&self, tx: &mut Tx, number: i64, mut seqs: Vec<u64>) -> Result<()> {
        let tenant_no = self.log.tenant().number();
        let last: Option<(i64, i64, Vec<u8>)> = tx
            .query(LAST_ROW)
            .bind(tenant_no)
            .bind(number)
            .optional()
            .await?;
        if let Some((first, count, data)) = last
            && count < ROW_EVENTS_MAX as i64
        {
            let mut joined = unpack(first.unsigned_abs(), &data);
            joined.append(&mut seqs);
            seqs = joined;
        }
        for row in seqs.chunks(ROW_EVENTS_MAX) {
            let (Some(first), Some(last)) = (row.first(), row.last()) else {
                continue;
            };
            tx.query(PUT_ROW)
                .bind(tenant_no)
                .bind(number)
                .bind(*first as i64)
                .bind(*last as i64)
                .bind(row.len() as i64)
                .bind(pack(row))
                .execute()
                .await?;
        }
        Ok(())
    }
}
