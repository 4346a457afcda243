//! Durable jobs, driven directly: chunk by chunk, on a clock that stands still.

mod chunks;
mod control;
mod failures;
mod owners;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hub_core::clock::{Clock, Micros};
use hub_core::error::{Error, Result};
use hub_core::jobs::{self, Action, Chunk, Ended, Job, Jobs, Kind, NewJob, Next, Run, Working};
use hub_core::journal::TenantRef;
use hub_core::limits::Limits;
use hub_core::storage::{Db, Sql};
use hub_proto::hub::core::v1::JobState;
use tokio::sync::Notify;

use crate::journal::store::{Store, execute};
use crate::support::{Backend, Database};

const KIND: &str = "test.count";
/// 2026-01-01T00:00:00Z.
const START: Micros = 1_767_225_600_000_000;

const EFFECT: Sql = Sql::same("insert into effects (job_id, item) values ($1, $2)");
const LEASE_END: Sql = Sql::same("select lease_end from jobs");
const EFFECTS: Sql = Sql::same("select item from effects where job_id = $1 order by item");

/// What a chunk does instead of, or before, what all do.
enum Trick {
    /// Ends with this error after its effects, which are lost with the transaction.
    Fail(Error),
    Panic,
    /// Waits before it does anything.
    Wait(Arc<Gate>),
    /// Hands back what to store, without an effect.
    Say(Chunk),
    /// Asks to be confirmed unless it was.
    Guard,
}

/// Where a chunk waits until the test lets it go on.
#[derive(Default)]
struct Gate {
    reached: Notify,
    opened: Notify,
}

/// A kind that stores a row for each item, in the transaction of the progress.
struct Counting {
    db: Db,
    tricks: Mutex<VecDeque<Trick>>,
    /// Most items of a chunk, besides what the engine says.
    items_max: usize,
    /// Chunks at work now, and the most there ever were.
    running: AtomicUsize,
    running_max: AtomicUsize,
    /// Ids of the jobs, by chunk.
    order: Mutex<Vec<String>>,
}

impl Kind for Counting {
    fn chunk<'a>(&'a self, run: &'a Run) -> Working<'a> {
        Box::pin(async move {
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.running_max.fetch_max(running, Ordering::SeqCst);
            self.order.lock().unwrap().push(run.job().job_id.clone());
            let trick = self.tricks.lock().unwrap().pop_front();
            self.count(run, trick, AtWork(&self.running)).await
        })
    }
}

/// A chunk at work, until it is dropped.
struct AtWork<'a>(&'a AtomicUsize);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Counting {
    async fn count(&self, run: &Run, trick: Option<Trick>, at_work: AtWork<'_>) -> Result<Ended> {
        let mut failure = None;
        match trick {
            None => {}
            Some(Trick::Fail(error)) => failure = Some(error),
            Some(Trick::Panic) => panic!("on purpose"),
            Some(Trick::Wait(gate)) => {
                gate.reached.notify_one();
                gate.opened.notified().await;
            }
            Some(Trick::Guard) if run.is_confirmed() => {}
            Some(Trick::Guard) => {
                return Ok(Ended::Unsaved(Chunk {
                    next: Next::Confirm("too many".to_owned()),
                    ..Chunk::default()
                }));
            }
            Some(Trick::Say(chunk)) => return Ok(Ended::Unsaved(chunk)),
        }
        let begin = number(run.progress());
        let items = run.items_max().min(self.items_max) as i64;
        let end = number(run.parameters()).min(begin + items);
        let mut tx = self.db.begin().await?;
        for item in begin..end {
            let query = tx.query(EFFECT).bind(run.job().job_id.clone());
            query.bind(item).execute().await?;
        }
        if let Some(error) = failure {
            return Err(error);
        }
        let is_last = end == number(run.parameters());
        let chunk = Chunk {
            progress: Some(end.to_be_bytes().to_vec()),
            done: end - begin,
            next: if is_last { Next::Finished } else { Next::More },
            ..Chunk::default()
        };
        let saved = run.save(&mut tx, chunk).await?;
        // Another process may begin the next chunk before this one hears of the commit.
        drop(at_work);
        tx.commit().await?;
        Ok(Ended::Saved(saved))
    }
}

fn number(bytes: &[u8]) -> i64 {
    bytes.try_into().map_or(0, i64::from_be_bytes)
}

/// A process that works off jobs.
struct Process {
    store: Store,
    jobs: Jobs,
    kind: Arc<Counting>,
}

/// A database, its clock, and a process on it.
struct Place {
    process: Process,
    clock: Clock,
    tenant: TenantRef,
    database: Database,
}

impl Process {
    fn on(store: Store, clock: &Clock, items_max: usize) -> Process {
        let jobs = Jobs::new(&store.db, clock);
        let kind = Arc::new(Counting {
            db: store.db.clone(),
            tricks: Mutex::default(),
            items_max,
            running: AtomicUsize::new(0),
            running_max: AtomicUsize::new(0),
            order: Mutex::default(),
        });
        jobs.register(KIND, kind.clone());
        Process { store, jobs, kind }
    }

    /// What the next chunks do, in order.
    fn play(&self, tricks: impl IntoIterator<Item = Trick>) {
        self.kind.tricks.lock().unwrap().extend(tricks);
    }

    /// Does chunks until there is none now; returns how many.
    async fn run_all(&self) -> usize {
        let mut chunks = 0;
        while self.jobs.step().await.unwrap() {
            chunks += 1;
        }
        chunks
    }
}

impl Place {
    async fn new(backend: Backend) -> Place {
        let (database, clock) = (Database::new(backend).await, Clock::manual(START));
        let store = Store::open(&database, Limits::default(), clock.clone()).await;
        let process = Process::on(store, &clock, 500);
        let table = "create table effects (job_id text not null, item bigint not null)";
        execute(&database, table).await;
        let tenant = process.store.tenant("one").await;
        Place {
            process,
            clock,
            tenant,
            database,
        }
    }

    /// A further process on the database. One on SQLite is the next one there: it has the file
    /// that the first one had.
    async fn another(&self, items_max: usize) -> Process {
        let first = &self.process.store;
        let store = match self.database.backend() {
            Backend::Postgres => {
                Store::open(&self.database, Limits::default(), self.clock.clone()).await
            }
            Backend::Sqlite => Store {
                db: first.db.clone(),
                journal: first.journal.clone(),
            },
        };
        Process::on(store, &self.clock, items_max)
    }

    /// A job of so many items.
    async fn job(&self, items: i64) -> String {
        self.job_of(&self.tenant, items, 0).await.unwrap()
    }

    async fn job_of(&self, tenant: &TenantRef, items: i64, speed: u32) -> Result<String> {
        let new = NewJob {
            kind: KIND,
            resource: "sub_1".to_owned(),
            total: items,
            max_per_second: speed,
            parameters: items.to_be_bytes().to_vec(),
            created_by: "key_1".to_owned(),
            ..NewJob::default()
        };
        let mut tx = self.process.store.db.begin().await.unwrap();
        let job = self.process.jobs.create(&mut tx, tenant, new).await?;
        tx.commit().await.unwrap();
        Ok(job.job_id)
    }

    async fn get(&self, job_id: &str) -> Job {
        let found = self.process.jobs.find(&self.tenant, job_id).await;
        found.unwrap().unwrap()
    }

    async fn state(&self, job_id: &str) -> JobState {
        self.get(job_id).await.state
    }

    /// What an action makes of a job; none if its state does not allow it.
    async fn control(&self, job_id: &str, action: Action) -> Option<JobState> {
        let (mut tx, now) = (
            self.process.store.db.begin().await.unwrap(),
            self.clock.now(),
        );
        let job = jobs::lock(&mut tx, &self.tenant, job_id).await.unwrap();
        let after = jobs::control(&mut tx, &self.tenant, &job.unwrap(), action, now).await;
        tx.commit().await.unwrap();
        after.unwrap().map(|job| job.state)
    }

    /// The items whose effects are in the database.
    async fn effects(&self, job_id: &str) -> Vec<i64> {
        let query = self.process.store.db.query(EFFECTS).bind(job_id.to_owned());
        let rows: Vec<(i64,)> = query.all().await.unwrap();
        rows.into_iter().map(|(item,)| item).collect()
    }

    /// Asserts that each of the first so many items was done exactly once.
    async fn assert_done(&self, job_id: &str, items: i64) {
        assert_eq!(self.effects(job_id).await, Vec::from_iter(0..items));
        assert_eq!(self.get(job_id).await.done, items);
    }
}
