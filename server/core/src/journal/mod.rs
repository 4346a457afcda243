//! The append-only log of each tenant: everything that happens is an event in it.
//!
//! Invariants:
//! - An append that was answered is on disk.
//! - Sequences are dense per tenant, in commit order, never used twice.
//! - An identity is stored once; a retry is told where the first one is.
//! - A domain's change and its events are one commit ([`Journal::commit`]).
//! - Readers see committed events only, in order, without a hole.

#[cfg(test)]
mod crash_tests;
mod direct;
mod epochs;
mod erase;
mod filter;
mod follow;
mod growth;
mod heads;
mod identities;
mod index;
mod ledger;
mod listing;
mod listing_writer;
mod notify;
mod postgres;
mod read;
mod retention;
mod scan;
mod scratch;
mod segment;
mod sequencer;
mod sqlite;
mod tables;
mod tail;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use epochs::{Bumped, STATEMENTS as EPOCH_STATEMENTS, bump};
pub use erase::{Reduce, STATEMENTS as ERASE_STATEMENTS};
pub use growth::{Growth, STATEMENTS as GROWTH_STATEMENTS};
pub use heads::{STATEMENTS as HEAD_STATEMENTS, lock as lock_head};
pub use identities::STATEMENTS as IDENTITY_STATEMENTS;
pub use listing::{Listed, ListedAfter, ListedKind, STATEMENTS as LISTING_STATEMENTS};
pub use listing_writer::STATEMENTS as LISTING_WRITER_STATEMENTS;
pub use read::{Page, STATEMENTS as READ_STATEMENTS};
pub use retention::{Kept, Removed, STATEMENTS as RETENTION_STATEMENTS};
pub use scan::{StoredEvent, StoredEvents};
pub use segment::{Damaged, Entry, Kind, NewEvent, Run, Segment};
pub use sequencer::Row;
pub use tables::migrations;
pub use tail::{Log, Position};

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::processes::Processes;
use crate::storage::{Db, Failure, Tx, TxParts};
use crate::worker::Workers;
use segment::SEQ_BITS;
use tail::Budget;

/// Pause between attempts to read what a lost connection may have committed.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(500);

/// Statements that only PostgreSQL runs, for the test that prepares them.
pub fn postgres_statements() -> &'static [&'static str] {
    postgres::STATEMENTS
}

/// A tenant by number and id; cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRef {
    number: i64,
    id: Arc<str>,
}

impl TenantRef {
    /// A tenant that exists.
    pub fn new(number: i64, id: &str) -> Self {
        TenantRef {
            number,
            id: id.into(),
        }
    }

    /// The hub itself: its log holds operators' changes and the epochs of keys.
    pub fn system() -> Self {
        TenantRef::new(0, "")
    }

    /// Its number, part of every key of its log.
    pub fn number(&self) -> i64 {
        self.number
    }

    /// Its id, `tnt_…`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Tenant and sequence in one number.
    pub fn key(&self, seq: u64) -> i64 {
        (self.number << SEQ_BITS) + seq as i64
    }

    /// The sequence in a key of this tenant.
    pub fn seq(&self, key: i64) -> u64 {
        (key & ((1 << SEQ_BITS) - 1)) as u64
    }
}

/// Events to be stored together.
#[derive(Debug)]
pub struct Append {
    /// The log, from [`Journal::log`].
    pub log: Arc<Log>,
    /// The events, in order.
    pub events: Vec<NewEvent>,
    /// Each event on its own merit; otherwise all or none.
    pub independent: bool,
    /// It is one of several that a publisher sends in a row.
    pub row: Option<Row>,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is new.
    Stored {
        /// Its sequence.
        seq: u64,
    },
    /// It was stored before with the same content, there.
    Duplicate(Position),
    /// Its identity was used before with other content; it was not stored.
    Reused {
        /// Sequence of the first one; 0 if it is in the same batch, which was not stored.
        seq: u64,
    },
    /// Not stored, because another event of its batch was not.
    NotStored,
}

/// What became of an append.
#[derive(Debug, Clone)]
pub struct Appended {
    /// One for each event.
    pub outcomes: Vec<Outcome>,
    /// Position after the last of its events.
    pub position: Position,
}

impl Appended {
    fn new(append: &Append, outcomes: Vec<Outcome>, head: Position) -> Self {
        let place = |(at, outcome): (usize, &Outcome)| match outcome {
            Outcome::Stored { seq } => {
                let event = &append.events[at];
                let fingerprint = segment::fingerprint(*seq, event.identity, event.content);
                Some(Position {
                    seq: *seq,
                    fingerprint,
                })
            }
            Outcome::Duplicate(position) => Some(*position),
            _ => None,
        };
        let places = outcomes.iter().enumerate().filter_map(place);
        let position = places.max_by_key(|position| position.seq).unwrap_or(head);
        Appended { outcomes, position }
    }
}

/// Appends of one tenant that go into one segment.
#[derive(Clone)]
pub(crate) struct Work<'a> {
    log: &'a Arc<Log>,
    appends: Vec<&'a Append>,
}

impl Work<'_> {
    fn tenant_no(&self) -> i64 {
        self.log.tenant().number()
    }

    fn events(&self) -> usize {
        self.appends.iter().map(|append| append.events.len()).sum()
    }

    fn bytes(&self) -> usize {
        self.appends
            .iter()
            .flat_map(|append| &append.events)
            .map(NewEvent::size)
            .sum()
    }
}

/// What a commit stored of a [`Work`].
pub(crate) struct Written {
    /// For each append, for each event.
    outcomes: Vec<Vec<Outcome>>,
    /// Absent if nothing was new.
    segment: Option<Arc<Segment>>,
}

enum Store {
    Sqlite(sqlite::SqliteJournal),
    Postgres(postgres::PostgresJournal),
}

impl Store {
    /// `None` for a log whose head another process holds: it waits for the next group.
    async fn write(&self, works: &[Work<'_>]) -> Result<Vec<Option<Written>>, Failure> {
        match self {
            Store::Sqlite(store) => Ok(store.write(works).await?.into_iter().map(Some).collect()),
            Store::Postgres(store) => store.write(works).await,
        }
    }
}

/// The logs of all tenants.
pub struct Journal {
    db: Db,
    store: Store,
    logs: RwLock<HashMap<i64, Arc<Log>>>,
    budget: Budget,
    epochs: epochs::Epochs,
    growths: growth::Growths,
    queue: sequencer::Queue,
    clock: Clock,
    limits: Arc<Limits>,
    stopped: CancellationToken,
    workers: Workers,
    hints: Option<Arc<notify::Hints>>,
    processes: Arc<Processes>,
    /// Logs that have readers and that other processes wrote to.
    behind: watch::Sender<Arc<[Arc<Log>]>>,
}

impl Journal {
    /// Opens the journal of a migrated database beside the processes that serve it, and starts its
    /// sequencer.
    pub async fn open(db: &Db, clock: Clock, limits: Arc<Limits>) -> Result<Arc<Self>, String> {
        let processes = Processes::aside(db, clock.clone());
        Self::open_with(db, clock, limits, processes, None).await
    }

    /// The same as one of the processes that serve it.
    pub async fn open_as(
        processes: &Arc<Processes>,
        db: &Db,
        clock: Clock,
        limits: Arc<Limits>,
    ) -> Result<Arc<Self>, String> {
        Self::open_with(db, clock, limits, processes.clone(), None).await
    }

    async fn open_with(
        db: &Db,
        clock: Clock,
        limits: Arc<Limits>,
        processes: Arc<Processes>,
        steps: Option<index::Steps>,
    ) -> Result<Arc<Self>, String> {
        let store = match db.is_postgres() {
            true => {
                let clock = clock.clone();
                Store::Postgres(postgres::PostgresJournal::open(db, clock, &limits).await?)
            }
            false => {
                let clock = clock.clone();
                Store::Sqlite(sqlite::SqliteJournal::open(db, clock, &limits, steps).await?)
            }
        };
        let journal = Arc::new(Journal {
            db: db.clone(),
            store,
            logs: RwLock::default(),
            budget: Budget::new(limits.tail_bytes_max),
            epochs: epochs::Epochs::default(),
            growths: growth::Growths::default(),
            queue: sequencer::Queue::new(limits.clone()),
            workers: Workers::new(clock.clone()),
            hints: notify::Hints::new(db, limits.notify_interval).map(Arc::new),
            clock,
            limits,
            stopped: CancellationToken::new(),
            processes,
            behind: watch::Sender::new(Arc::from([])),
        });
        let sequencer = tokio::spawn(sequencer::run(journal.clone(), journal.stopped.clone()));
        tokio::spawn(async move {
            // A panic half-way leaves memory that cannot be trusted; a restart reads the log again.
            if sequencer.await.is_err_and(|error| error.is_panic()) {
                tracing::error!("the journal's sequencer panicked: the process ends");
                std::process::abort();
            }
        });
        journal.begin_following();
        let listed = Arc::downgrade(&journal);
        journal.workers.spawn("listing-index", move |turn| {
            listing_writer::run(listed.clone(), turn)
        });
        Ok(journal)
    }

    /// The supervised workers of this process; [`Journal::close`] stops them first.
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// The log of a tenant, at its present head.
    pub async fn log(&self, tenant: &TenantRef) -> Result<Arc<Log>> {
        let number = tenant.number();
        let known = |logs: &HashMap<i64, Arc<Log>>| logs.get(&number).cloned();
        if let Some(log) = known(&self.logs.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(log);
        }
        let head = self.load_head(tenant).await?;
        let mut logs = self.logs.write().unwrap_or_else(PoisonError::into_inner);
        let log = logs
            .entry(number)
            .or_insert_with(|| Arc::new(Log::new(tenant.clone(), head)));
        Ok(log.clone())
    }

    /// Stores events; returns once they are on disk. Errors: `STORE_BUSY`, `SERVER_DRAINING`.
    pub async fn append(&self, append: Append) -> Result<Appended> {
        self.submit(append).await?.wait().await
    }

    /// Puts events into the queue, behind those of the same tenant that were submitted before.
    pub async fn submit(&self, append: Append) -> Result<Pending> {
        self.get_to_know(&append.log).await?;
        Ok(Pending {
            answer: self.queue.push(append).await?,
        })
    }

    /// Ends a domain's transaction together with the events that tell of it: one commit.
    ///
    /// It runs to its end even if the caller is gone.
    pub async fn commit(self: &Arc<Self>, tx: Tx, appends: Vec<Append>) -> Result<Vec<Appended>> {
        let journal = self.clone();
        let task = tokio::spawn(async move { journal.commit_now(tx, appends).await });
        task.await
            .map_err(|error| Error::internal(format!("a commit panicked: {error}")))?
    }

    async fn commit_now(self: &Arc<Self>, tx: Tx, appends: Vec<Append>) -> Result<Vec<Appended>> {
        let works = by_log(&appends);
        for work in &works {
            self.get_to_know(work.log).await?;
        }
        let written = match (&self.store, tx.into_parts()) {
            (Store::Sqlite(store), TxParts::Sqlite(writer)) => store.commit(writer, &works).await?,
            (Store::Postgres(store), TxParts::Postgres(tx)) => store.commit(tx, &works).await?,
            _ => return Err(Error::internal("a transaction of another database")),
        };
        let mut outcomes = HashMap::new();
        for (work, written) in works.iter().zip(written) {
            if let Some(segment) = written.segment {
                self.publish(work.log, segment).await;
            }
            let number = work.log.tenant().number();
            outcomes.insert(number, written.outcomes.into_iter());
        }
        let answer = |append: &Append| {
            let mine = outcomes
                .get_mut(&append.log.tenant().number())
                .and_then(Iterator::next);
            Appended::new(append, mine.unwrap_or_default(), append.log.head())
        };
        Ok(appends.iter().map(answer).collect())
    }

    /// Before the first append to a log, and beside the appends to others: a large log may take
    /// seconds to read.
    async fn get_to_know(&self, log: &Log) -> Result<()> {
        if let Store::Postgres(store) = &self.store {
            let read = || store.get_to_know(log.tenant().number());
            log.met.get_or_try_init(read).await?;
        }
        Ok(())
    }

    /// The sequence of the event with this identity, if it is remembered. Errors: `STORE_BUSY`.
    pub async fn find_identity(&self, log: &Log, identity: u128) -> Result<Option<u64>> {
        let key = match &self.store {
            Store::Sqlite(store) => store.find(identity).await?,
            Store::Postgres(store) => store.find(log.tenant(), identity).await?,
        };
        Ok(key.map(|key| log.tenant().seq(key)))
    }

    /// Shows a committed segment to readers; a hole before it is read from the database.
    async fn publish(self: &Arc<Self>, log: &Arc<Log>, segment: Arc<Segment>) {
        let tenant_no = log.tenant().number();
        self.epochs.observe(tenant_no, segment.routing_epoch());
        if let Some(hints) = &self.hints {
            hints.grown(tenant_no, segment.last());
        }
        if log.offer(segment, &self.budget) {
            metrics::counter!("hub_journal_tail_holes_total").increment(1);
            if self.catch_up(log).await.is_err() {
                self.catch_up_later(log);
            }
        }
        metrics::gauge!("hub_journal_tail_bytes").set(self.budget.bytes() as f64);
        self.growths.tell(tenant_no);
    }

    /// Catches up as soon as the database answers again; one task, however many commits wait.
    fn catch_up_later(self: &Arc<Self>, log: &Arc<Log>) {
        if log.read_on.swap(true, Ordering::AcqRel) {
            return;
        }
        let (journal, log) = (self.clone(), log.clone());
        tokio::spawn(async move {
            loop {
                // Before the read: what it does not see needs another one.
                log.read_on.store(false, Ordering::Release);
                let Err(error) = journal.catch_up(&log).await else {
                    return;
                };
                tracing::warn!("the newest events are not readable yet: {error}");
                if log.read_on.swap(true, Ordering::AcqRel) {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(CATCH_UP_PAUSE) => {}
                    () = journal.stopped.cancelled() => return,
                }
            }
        });
    }

    /// Stops the workers, commits what waits, takes nothing more.
    pub async fn close(&self) {
        self.workers.stop().await;
        if let Some(hints) = &self.hints {
            hints.close().await;
        }
        self.queue.close();
        self.stopped.cancelled().await;
        match &self.store {
            Store::Sqlite(store) => store.close().await,
            Store::Postgres(store) => store.close().await,
        }
    }
}

impl Drop for Journal {
    /// Nobody can stop the workers after this.
    fn drop(&mut self) {
        self.workers.begin_stop();
    }
}

/// Appends of one log go into one segment, in order of the logs' numbers.
fn by_log(appends: &[Append]) -> Vec<Work<'_>> {
    let mut works: Vec<Work<'_>> = Vec::new();
    for append in appends {
        let number = append.log.tenant().number();
        match works
            .iter_mut()
            .find(|work| work.log.tenant().number() == number)
        {
            Some(work) => work.appends.push(append),
            None => works.push(Work {
                log: &append.log,
                appends: vec![append],
            }),
        }
    }
    works.sort_by_key(|work| work.log.tenant().number());
    works
}

/// An append in the queue.
pub struct Pending {
    answer: oneshot::Receiver<Result<Appended>>,
}

impl Pending {
    /// Waits until it is on disk. Dropping this does not take the append back.
    pub async fn wait(self) -> Result<Appended> {
        self.answer.await.unwrap_or_else(|_| Err(Error::draining()))
    }
}
