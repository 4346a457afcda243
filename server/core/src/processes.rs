//! The hub processes on one database: who of them lives, and where they are reached.
//!
//! Some work has an owner: one process does it, whichever took it. A process says twice a second
//! that it lives, by one statement that also reads whatever it has to look at all the time
//! (`Processes::beat`), and is believed to live for [`LIVE_FOR`] after that. A store takes work
//! over in one statement, from whoever has it no longer. For that the view `live_processes` has the
//! ids of those that live, on both databases:
//!
//! ```sql
//! update … set owner = $1, epoch = epoch + 1
//! where … and (owner = $1 or owner not in (select process_id from live_processes))
//! ```
//!
//! where nobody's work has the owner ''. The epoch is what shuts the owner before out: whatever it
//! writes names its own epoch. Whether a process lives only says when others may begin.
//!
//! Invariants:
//! - A process stops to believe that it lives before the others do: it counts from before it sent
//!   its beat, by a clock that nobody sets, and a beat that was answered is on disk.
//! - On PostgreSQL the database's clock judges who lives, for the clocks of processes differ.
//! - On SQLite there is one process, which lives from its start to its end and beats once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::sync::{Mutex, watch};

use crate::clock::{Clock, Micros, micros};
use crate::error::Result;
use crate::id;
use crate::storage::{Db, Failure, Sql};

/// Pause between two beats. All that an idle process asks of a PostgreSQL is to stay below two
/// statements a second; this leaves room for what workers look at less often.
pub const BEAT_INTERVAL: Duration = Duration::from_millis(550);
/// Pause after a beat that failed.
pub const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long a process is believed to live after a beat. The migration that makes `live_processes`
/// says the same.
pub const LIVE_FOR: Duration = Duration::from_millis(1500);
/// A process that cannot enter within this time does not start.
const ENTER_TIMEOUT: Duration = Duration::from_secs(10);
/// Who has not beaten for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// Processes that one sees; more than that is a mistake.
const PROCESSES_MAX: i64 = 1000;

const ENTER: Sql =
    Sql::same("insert into processes (process_id, address, beat_time) values ($1, $2, $3)");
const FORGET_OTHERS: Sql = Sql::same("delete from processes where process_id <> $1");
const LEAVE: Sql = Sql::same("delete from processes where process_id = $1");
const FIND: Sql = Sql::same("select address from live_processes where process_id = $1");

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[ENTER, FORGET_OTHERS, LEAVE, FIND];

/// Statement that only PostgreSQL runs: says that process $1 at address $2 lives, unless that is
/// empty, and reads all that a process looks at all the time. Who was silent for $3 microseconds
/// goes; nobody waits for the row of another. $4 are numbers of tenants, $5 is the most processes,
/// and $6 asks for the heads of all tenants too.
pub(crate) const BEAT: &str = "with beat as (
    insert into processes (process_id, address, beat_time)
    select $1, $2, cast(extract(epoch from clock_timestamp()) * 1000000 as bigint) where $2 <> ''
    on conflict (process_id) do update
    set address = excluded.address, beat_time = excluded.beat_time
), gone as (
    delete from processes where process_id in (
        select process_id from processes where process_id <> $1 and beat_time
            < cast(extract(epoch from clock_timestamp()) * 1000000 as bigint) - $3
        for update skip locked)
)
select 0, '', '', cast(extract(epoch from clock_timestamp()) * 1000000 as bigint), 0::bigint,
    0::bigint
union all
(select 1, process_id, address, 0, 0, 0 from live_processes where process_id <> $1 limit $5)
union all
select 2, '', '', tenant_no, head, routing_epoch from journal_heads where tenant_no = any($4)
union all
select 3, '', '', tenant_no, erasures, 0 from journal_floors where erasures > 0
union all
select 4, '', '', tenant_no, head, 0 from journal_heads where $6 and tenant_no > 0";

/// Another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where it is reached, `http://host:port` or `https://host:port`.
    pub address: Arc<str>,
}

/// The other live processes by id.
pub type Peers = Arc<BTreeMap<Arc<str>, Peer>>;

/// A stretch of time in which no other process could believe that this one is dead, so that what it
/// owned at its beginning it owns at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term(u64);

/// What a beat reads for the journal.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Number, head and routing epoch of the tenants that were asked for.
    pub heads: Vec<(i64, u64, u64)>,
    /// Number and head of all tenants, if that was asked for.
    pub all_heads: Vec<(i64, u64)>,
    /// Number, and how often something was erased, of all tenants where something was.
    pub erasures: Vec<(i64, i64)>,
}

/// This process among those on its database.
pub struct Processes {
    id: Arc<str>,
    /// Empty: it takes no part.
    address: Arc<str>,
    db: Db,
    clock: Clock,
    belief: Belief,
    /// It has told that it could not beat.
    silent: AtomicBool,
    /// Beats wait for nothing else; none until the first, and after one that failed.
    connection: Mutex<Option<PgConnection>>,
    peers: watch::Sender<Peers>,
}

impl Processes {
    /// Enters this process, which the others reach at `address`.
    pub async fn enter(db: &Db, clock: Clock, address: &str) -> Result<Arc<Self>> {
        let this = Self::new(db, clock, address);
        if db.is_postgres() {
            this.beat_within(ENTER_TIMEOUT, &[], false).await?;
        } else {
            let mut tx = db.begin().await?;
            let others = tx.query(FORGET_OTHERS).bind(this.id.to_string());
            others.execute().await?;
            tx.query(ENTER)
                .bind(this.id.to_string())
                .bind(address.to_owned())
                .bind(this.clock.now())
                .execute()
                .await?;
            tx.commit().await?;
            this.belief.begin_for_ever();
        }
        let live = this.peers.borrow().len() + 1;
        metrics::gauge!("hub_processes_live").set(live as f64);
        Ok(Arc::new(this))
    }

    /// One that takes no part: the others do not see it, and it may own nothing.
    pub fn aside(db: &Db, clock: Clock) -> Arc<Self> {
        Arc::new(Self::new(db, clock, ""))
    }

    fn new(db: &Db, clock: Clock, address: &str) -> Self {
        Processes {
            id: id::new("prc").into(),
            address: address.into(),
            db: db.clone(),
            clock,
            belief: Belief::new(),
            silent: AtomicBool::new(false),
            connection: Mutex::new(None),
            peers: watch::Sender::default(),
        }
    }

    /// Its id, `prc_…`, new with every start.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// Whether the others believe that it lives. One that does not must not act as an owner; nor
    /// may one that lives again, of what it owned before: see [`Processes::is_in`].
    pub fn is_live(&self) -> bool {
        self.belief.holds(Instant::now())
    }

    /// The term that it is in; none if it does not live. Who asks before it takes something over
    /// owns that for no longer than the term.
    pub fn term(&self) -> Option<Term> {
        self.belief.term(Instant::now())
    }

    /// Whether a term goes on. After a pause, or while the database was away, another one has begun
    /// with the first beat: the others may have taken all that this process owned meanwhile.
    pub fn is_in(&self, term: Term) -> bool {
        self.term() == Some(term)
    }

    /// Another live process, as the last beat saw it.
    pub fn peer(&self, process_id: &str) -> Option<Peer> {
        self.peers.borrow().get(process_id).cloned()
    }

    /// Another live process; one that no beat has seen yet is looked for. Errors: `STORE_BUSY`.
    pub async fn find(&self, process_id: &str) -> Result<Option<Peer>> {
        if let Some(peer) = self.peer(process_id) {
            return Ok(Some(peer));
        }
        let query = self.db.query(FIND).bind(process_id.to_owned());
        let row: Option<(String,)> = query.optional().await?;
        Ok(row.map(|(address,)| Peer {
            address: address.into(),
        }))
    }

    /// The other live processes, and each change of them: within a second of a start or a stop,
    /// within [`LIVE_FOR`] and a second of a death.
    pub fn watch(&self) -> watch::Receiver<Peers> {
        self.peers.subscribe()
    }

    /// The time by which processes judge what another one says, whatever their own clocks are: the
    /// database's, as the last beat saw it. On SQLite the clock's.
    pub fn time(&self) -> Micros {
        match self.db.is_postgres() {
            true => self.belief.database_time(Instant::now()),
            false => self.clock.now(),
        }
    }

    /// Says that this process lives, and reads what is needed of these tenants, and the heads of
    /// all if that is asked for (PostgreSQL).
    pub(crate) async fn beat(&self, tenants: &[i64], all_heads: bool) -> Result<Told, Failure> {
        // An answer that comes later is of no use.
        self.beat_within(LIVE_FOR, tenants, all_heads).await
    }

    async fn beat_within(
        &self,
        timeout: Duration,
        tenants: &[i64],
        all_heads: bool,
    ) -> Result<Told, Failure> {
        let sent_at = Instant::now();
        let beaten = tokio::time::timeout(timeout, self.ask(tenants, all_heads)).await;
        let late = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
        let beaten = beaten.unwrap_or_else(|_| Err(late().into()));
        match &beaten {
            Ok(_) if self.address.is_empty() => {}
            Ok(_) => {
                self.belief.begin(sent_at, Instant::now());
                if self.silent.swap(false, Ordering::AcqRel) {
                    tracing::info!("this process is known to live again");
                }
            }
            Err(error) if !self.is_live() && !self.silent.swap(true, Ordering::AcqRel) => {
                tracing::warn!(
                    "this process could not say that it lives, and owns no work: {error}"
                );
            }
            Err(_) => {}
        }
        beaten
    }

    async fn ask(&self, tenants: &[i64], all_heads: bool) -> Result<Told, Failure> {
        let mut kept = self.connection.lock().await;
        // It goes with whatever fails, or takes too long.
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => PgConnection::connect_with(&self.options()?).await?,
        };
        let rows: Vec<Row> = sqlx::query_as(BEAT)
            .bind(&*self.id)
            .bind(&*self.address)
            .bind(micros(FORGOTTEN_AFTER))
            .bind(tenants)
            .bind(PROCESSES_MAX)
            .bind(all_heads)
            .fetch_all(&mut connection)
            .await?;
        *kept = Some(connection);
        Ok(self.sort(rows))
    }

    /// A beat waits for its sync as any commit does: if a crash of the database could take back one
    /// that was answered, the others would take work that this process believes to own.
    fn options(&self) -> Result<PgConnectOptions, Failure> {
        let pool = self.db.postgres().ok_or(sqlx::Error::PoolClosed)?;
        let options = pool.connect_options().as_ref().clone();
        Ok(options.application_name("hub beat"))
    }

    fn sort(&self, rows: Vec<Row>) -> Told {
        let (mut told, mut peers) = (Told::default(), BTreeMap::new());
        for (kind, process_id, address, number, first, second) in rows {
            match kind {
                0 => self.belief.set_database_time(number, Instant::now()),
                1 => {
                    let address = address.into();
                    peers.insert(process_id.into(), Peer { address });
                }
                2 => {
                    let (head, epoch) = (first.unsigned_abs(), second.unsigned_abs());
                    told.heads.push((number, head, epoch));
                }
                3 => told.erasures.push((number, first)),
                _ => told.all_heads.push((number, first.unsigned_abs())),
            }
        }
        let is_news = self.peers.send_if_modified(|known| {
            let is_news = **known != peers;
            if is_news {
                *known = Arc::new(peers);
            }
            is_news
        });
        if is_news && !self.address.is_empty() {
            let live = self.peers.borrow().len() + 1;
            metrics::gauge!("hub_processes_live").set(live as f64);
        }
        told
    }

    /// Ends what the others believe, so that they take its work at once. The last thing that a
    /// process does.
    pub async fn leave(&self) {
        self.belief.end();
        if let Err(error) = self.remove().await {
            tracing::debug!("this process has not left, and is believed to live: {error}");
        }
        if let Some(connection) = self.connection.lock().await.take() {
            // The server notices a connection that is just dropped, too.
            let _ = connection.close().await;
        }
    }

    async fn remove(&self) -> Result<(), Failure> {
        if self.address.is_empty() {
            return Ok(());
        }
        let mut tx = self.db.begin().await?;
        let own = tx.query(LEAVE).bind(self.id.to_string());
        own.execute().await?;
        tx.commit().await
    }
}

/// Kind, process id, address, and three numbers; see [`BEAT`].
type Row = (i32, String, String, i64, i64, i64);

/// What a process believes of itself, by a clock that nobody sets.
struct Belief {
    origin: Instant,
    /// Until when it lives, in microseconds since the origin.
    until: AtomicU64,
    /// Terms that have begun.
    terms: AtomicU64,
    /// The database's time at the origin.
    database_origin: AtomicI64,
}

impl Belief {
    fn new() -> Self {
        Belief {
            origin: Instant::now(),
            until: AtomicU64::new(0),
            terms: AtomicU64::new(0),
            database_origin: AtomicI64::new(0),
        }
    }

    fn since_origin(&self, at: Instant) -> u64 {
        micros(at.saturating_duration_since(self.origin)).unsigned_abs()
    }

    /// A beat that was sent then has been answered, as is known `now`.
    fn begin(&self, sent_at: Instant, now: Instant) {
        if !self.holds(now) {
            // Before it holds: who sees that it does sees that this is another term.
            self.terms.fetch_add(1, Ordering::AcqRel);
        }
        let until = self.since_origin(sent_at + LIVE_FOR);
        self.until.fetch_max(until, Ordering::AcqRel);
    }

    fn begin_for_ever(&self) {
        self.until.store(u64::MAX, Ordering::Release);
    }

    fn end(&self) {
        self.until.store(0, Ordering::Release);
    }

    fn holds(&self, now: Instant) -> bool {
        self.since_origin(now) < self.until.load(Ordering::Acquire)
    }

    fn term(&self, now: Instant) -> Option<Term> {
        let holds = self.holds(now);
        holds.then(|| Term(self.terms.load(Ordering::Acquire)))
    }

    fn set_database_time(&self, time: Micros, now: Instant) {
        let origin = time - self.since_origin(now).cast_signed();
        self.database_origin.store(origin, Ordering::Release);
    }

    fn database_time(&self, now: Instant) -> Micros {
        let origin = self.database_origin.load(Ordering::Acquire);
        origin + self.since_origin(now).cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_believes_that_it_lives_from_before_its_beat_was_sent() {
        let belief = Belief::new();
        let sent_at = belief.origin + Duration::from_secs(7);
        assert!(!belief.holds(sent_at), "it never beat");
        belief.begin(sent_at, sent_at);
        let moment = Duration::from_micros(1);
        assert!(belief.holds(sent_at + LIVE_FOR - moment));
        assert!(!belief.holds(sent_at + LIVE_FOR));
        belief.begin(sent_at - moment, sent_at);
        assert!(
            belief.holds(sent_at + LIVE_FOR - moment),
            "an older beat ends nothing"
        );
        belief.end();
        assert!(!belief.holds(sent_at));
        belief.begin_for_ever();
        assert!(belief.holds(sent_at + Duration::from_secs(1 << 32)));
    }

    #[test]
    fn a_term_goes_on_with_each_beat_that_is_answered_before_the_one_before_is_too_old() {
        let belief = Belief::new();
        let (first, moment) = (belief.origin, Duration::from_micros(1));
        assert_eq!(belief.term(first), None);
        belief.begin(first, first);
        let term = belief.term(first);
        assert!(term.is_some());
        // Answered at the last moment.
        let second = first + BEAT_INTERVAL;
        belief.begin(second, first + LIVE_FOR - moment);
        assert_eq!(belief.term(second + LIVE_FOR - moment), term);
        // Sent in time and answered too late: nobody knows when it was stored.
        let third = second + BEAT_INTERVAL;
        let answered = second + LIVE_FOR;
        assert_eq!(belief.term(answered), None);
        belief.begin(third, answered);
        assert!(belief.holds(answered));
        assert_ne!(belief.term(answered), term);
    }

    #[test]
    fn the_time_of_the_database_goes_on_by_a_clock_that_nobody_sets() {
        let belief = Belief::new();
        let beat = belief.origin + Duration::from_secs(3);
        belief.set_database_time(1_000_000_000, beat);
        let later = beat + Duration::from_millis(20);
        assert_eq!(belief.database_time(later), 1_000_020_000);
    }

    #[test]
    fn the_view_and_the_processes_agree_on_how_long_one_lives() {
        let view = include_str!("../../../migrations/core/postgres/0008_processes.sql");
        let length = format!("- {};", micros(LIVE_FOR));
        assert!(view.contains(&length), "{length}");
        assert!(BEAT_INTERVAL * 2 < LIVE_FOR, "one beat may be lost");
    }
}
