//! Durable jobs: work that outlives the call that started it.
//!
//! A job is a row. It is worked off in chunks, each a call of its [`Kind`], which gets the progress
//! that the last chunk stored and stores where the next one begins. Several processes on one
//! PostgreSQL share the jobs chunk by chunk: whoever takes a job for a chunk is its owner until the
//! chunk is stored, and raises its epoch; an owner that gives no sign for 30 s is gone, another
//! takes the job, and what the first may still want to store is refused.
//!
//! Invariants:
//! - A chunk's progress is stored once: by the process that owns the job, under the epoch of that
//!   chunk. Where a kind stores it in its own transaction ([`Run::save`]), effect and progress are
//!   one commit, so that each item is done exactly once; else a process that ends in between does
//!   the chunk again.
//! - What ControlJob says is stored at once and takes effect between chunks. A chunk at work comes
//!   to its end, and its progress counts; a cancelled job stays cancelled.
//! - Tenants take turns, and so do the jobs of each; a job between two chunks holds no place.
//! - Everything has a bound: 100 jobs of a tenant that have not ended, 4 chunks at once in a
//!   process, 500 items in a chunk, 20 errors and 64 counters of a job, 30 days after its end.
//!
//! # A domain with a job
//!
//! ```
//! use std::sync::Arc;
//! use hub_core::auth::Caller;
//! use hub_core::error::Result;
//! use hub_core::jobs::{Chunk, Ended, Job, Kind, NewJob, Next, Run, Working};
//! use hub_core::module::Core;
//!
//! const KIND: &str = "event_bus.redeliver";
//!
//! struct Redelivery {
//!     core: Core,
//! }
//!
//! impl Kind for Redelivery {
//!     fn chunk<'a>(&'a self, run: &'a Run) -> Working<'a> {
//!         Box::pin(async move {
//!             // What the last chunk stored; empty in the first one.
//!             let done_before = run.progress().len();
//!             // ... read at most run.items_max() items from there on ...
//!             let mut tx = self.core.db.begin().await?;
//!             // ... change what these items need by `tx`, and last:
//!             let chunk = Chunk {
//!                 progress: Some(vec![0; done_before + 1]),
//!                 done: 1,
//!                 next: if done_before < 9 { Next::More } else { Next::Finished },
//!                 ..Chunk::default()
//!             };
//!             let saved = run.save(&mut tx, chunk).await?;
//!             tx.commit().await?;
//!             Ok(Ended::Saved(saved))
//!         })
//!     }
//! }
//!
//! /// In `module()`: from now on this process works on jobs of the kind.
//! fn register(core: &Core) {
//!     core.jobs.register(KIND, Arc::new(Redelivery { core: core.clone() }));
//! }
//!
//! /// In the call: the job, its audit entry and the answer to the request_id are one commit.
//! async fn start(core: &Core, caller: &Caller, parameters: Vec<u8>) -> Result<Job> {
//!     let mut tx = core.db.begin().await?;
//!     // ... hub_core::replay::Call::begin ...
//!     let new = NewJob {
//!         kind: KIND,
//!         resource: "sub_06exh9".to_owned(),
//!         total: 10,
//!         dry_run: false,
//!         max_per_second: 100,
//!         parameters,
//!         created_by: caller.key_id.to_string(),
//!     };
//!     let job = core.jobs.create(&mut tx, caller.tenant()?, new).await?;
//!     // ... hub_core::audit::record, then Call::finish with job.to_proto() in the answer ...
//!     core.jobs.commit(tx).await?;
//!     Ok(job)
//! }
//! ```
//!
//! A chunk should take less than a second: a server that stops waits for it, and what ControlJob
//! says waits too. An error of a chunk that passes by itself (`STORE_BUSY` and its like) brings the
//! chunk again after 5 s, without end; a refusal, e.g. `SUBSCRIPTION_NOT_FOUND`, makes the job
//! FAILED with its message; a defect (`INTERNAL`, a panic, a process that ended in the middle)
//! makes it FAILED after five in a row. A failed item is no failed chunk: count it in
//! [`Chunk::failed`] and go on. A kind that no process knows waits, as in the middle of an upgrade.

mod control;
mod job;
mod run;
mod store;
mod work;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hub_proto::hub::core::v1::JobState;
use tokio::sync::Notify;
use tonic::Code;

pub use control::{Action, control, lock};
pub use job::{ItemError, Job};
pub use run::{Chunk, Ended, Next, Run, Saved};
pub use store::STATEMENTS;

use crate::clock::{Clock, Micros};
use crate::error::{CORE, Error, Result};
use crate::id;
use crate::journal::TenantRef;
use crate::storage::{Db, Tx};
use crate::worker::Workers;

/// How long a job is kept after its end, in microseconds: 30 days.
pub const KEPT: Micros = 30 * 24 * 3600 * 1_000_000;
/// Most jobs of a tenant that have not ended; of calls at the same moment a few more may pass.
pub const UNFINISHED_MAX: i64 = 100;
/// Failed items that a job keeps: its first.
pub const ERRORS_MAX: usize = 20;
/// Names of outcomes that a job counts.
pub const COUNTERS_MAX: usize = 64;

/// How often old jobs are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
/// Rows that one statement of a sweep removes.
const SWEPT_MAX: i64 = 500;
/// A tenant with too many jobs waits for one of them to end, or cancels one.
const QUOTA_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The future of [`Kind::chunk`].
pub type Working<'a> = Pin<Box<dyn Future<Output = Result<Ended>> + Send + 'a>>;

/// What jobs of one kind do.
pub trait Kind: Send + Sync {
    /// Does the next chunk of a job. It may be dropped at any await once another process has the
    /// job, and then has no effect.
    fn chunk<'a>(&'a self, run: &'a Run) -> Working<'a>;
}

/// The jobs of a database; cheap to clone.
#[derive(Clone)]
pub struct Jobs {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    clock: Clock,
    /// Names this process, newly at each start.
    owner: String,
    kinds: RwLock<Kinds>,
    woken: Notify,
}

type Kinds = BTreeMap<&'static str, Arc<dyn Kind>>;

/// A job about to be made.
#[derive(Debug, Clone, Default)]
pub struct NewJob {
    /// Name of a [`Kind`]: the domain, a dot, the verb.
    pub kind: &'static str,
    /// What it works on: a resource id or a product slug.
    pub resource: String,
    /// Items to do, or as many as were counted; 0 if they are not counted yet.
    pub total: i64,
    /// It counts only; the kind minds it.
    pub dry_run: bool,
    /// Speed limit, in items a second; 0 = none.
    pub max_per_second: u32,
    /// What to do, in the domain's own encoding; as bounded as the request that it comes from.
    pub parameters: Vec<u8>,
    /// Who starts it: key id or user.
    pub created_by: String,
}

/// Which jobs a list shows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only kinds with this prefix; empty = any.
    pub kind: String,
    /// Only these states; empty = any.
    pub states: Vec<JobState>,
}

impl Jobs {
    /// The jobs of a database. Nothing is worked off before [`Jobs::work`].
    pub fn new(db: &Db, clock: &Clock) -> Self {
        let inner = Inner {
            db: db.clone(),
            clock: clock.clone(),
            owner: id::new("prc"),
            kinds: RwLock::default(),
            woken: Notify::new(),
        };
        Jobs {
            inner: Arc::new(inner),
        }
    }

    /// From now on this process works on jobs of a kind; a kind of the same name is replaced.
    pub fn register(&self, name: &'static str, kind: Arc<dyn Kind>) {
        let kinds = &self.inner.kinds;
        let mut kinds = kinds.write().unwrap_or_else(PoisonError::into_inner);
        kinds.insert(name, kind);
        drop(kinds);
        self.wake();
    }

    /// Begins to work off jobs, and to remove those that ended 30 days ago, until the workers stop.
    pub fn work(&self, workers: &Workers) {
        let jobs = self.clone();
        workers.spawn("jobs", move |turn| work::work(jobs.clone(), turn));
        let jobs = self.clone();
        workers.every("job-sweep", SWEEP_INTERVAL, move || {
            let jobs = jobs.clone();
            async move { jobs.sweep().await }
        });
    }

    /// Makes a job, QUEUED, as part of `tx`. End `tx` by [`Jobs::commit`].
    ///
    /// Errors: `QUOTA_EXCEEDED` if the tenant has 100 jobs that have not ended, `STORE_BUSY`.
    pub async fn create(&self, tx: &mut Tx, tenant: &TenantRef, new: NewJob) -> Result<Job> {
        if store::unfinished(tx, tenant).await? >= UNFINISHED_MAX {
            return Err(too_many());
        }
        let job = Job {
            job_id: id::new("job"),
            kind: new.kind.to_owned(),
            state: JobState::Queued,
            resource: new.resource.clone(),
            total: new.total,
            done: 0,
            failed: 0,
            counters: BTreeMap::new(),
            errors: Vec::new(),
            message: String::new(),
            dry_run: new.dry_run,
            created_by: new.created_by.clone(),
            create_time: self.inner.clock.now(),
            complete_time: None,
        };
        store::insert(tx, tenant, &job, new).await?;
        Ok(job)
    }

    /// Ends a transaction that made or changed a job, and lets this process look for work at once;
    /// others do within 20 seconds. It runs to its end even if the caller is gone.
    ///
    /// Errors: `STORE_BUSY`.
    pub async fn commit(&self, tx: Tx) -> Result<()> {
        let jobs = self.clone();
        let task = tokio::spawn(async move {
            tx.commit().await?;
            jobs.wake();
            Ok(())
        });
        task.await
            .map_err(|error| Error::internal(format!("a commit panicked: {error}")))?
    }

    /// Lets this process look for work at once, after a transaction that was committed otherwise.
    pub fn wake(&self) {
        self.inner.woken.notify_one();
    }

    /// A job of a tenant. Errors: `STORE_BUSY`.
    pub async fn find(&self, tenant: &TenantRef, job_id: &str) -> Result<Option<Job>> {
        store::find(&self.inner.db, tenant, job_id).await
    }

    /// At most `count` jobs of a tenant, newest first, before the one made at a time with an id.
    /// Errors: `STORE_BUSY`.
    pub async fn list(
        &self,
        tenant: &TenantRef,
        filter: &Filter,
        before: Option<(Micros, &str)>,
        count: usize,
    ) -> Result<Vec<Job>> {
        store::list(&self.inner.db, tenant, filter, before, count).await
    }

    /// Removes jobs that ended 30 days ago. Errors: `STORE_BUSY`.
    pub async fn sweep(&self) -> Result<()> {
        let ended = self.inner.clock.now() - KEPT;
        loop {
            // Short transactions: on SQLite each holds the only writer.
            let mut tx = self.inner.db.begin().await?;
            let removed = store::sweep(&mut tx, ended, SWEPT_MAX).await?;
            tx.commit().await?;
            if removed < SWEPT_MAX.unsigned_abs() {
                return Ok(());
            }
        }
    }

    fn kinds(&self) -> Kinds {
        let kinds = self.inner.kinds.read();
        kinds.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// `QUOTA_EXCEEDED`.
fn too_many() -> Error {
    let message = format!(
        "The tenant has {UNFINISHED_MAX} jobs that have not ended. Wait for one of them, or cancel \
         one with Platform.ControlJob."
    );
    Error::new(Code::ResourceExhausted, CORE, "QUOTA_EXCEEDED", message)
        .retry_after(QUOTA_RETRY_AFTER)
        .with("quota", "jobs")
        .with("limit", UNFINISHED_MAX)
}
