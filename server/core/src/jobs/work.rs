//! The worker: takes the jobs whose turn it is, one chunk at a time, several at once.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::JoinSet;

use super::run::{Chunk, Ended, FAILURES_MAX, Next, Progress, Run, given_up};
use super::{Jobs, Kind, store};
use crate::clock::{Micros, micros};
use crate::error::{Error, Result};
use crate::worker::Turn;

/// Chunks at once in a process.
const CHUNKS_MAX: usize = 4;
/// How often an idle process looks for jobs that others made, or that a process left behind. Who
/// makes one begins at once, so this is not hurried.
pub(super) const POLL: Duration = Duration::from_secs(20);
/// How long the owner of a chunk is believed without a sign. Clocks of processes may differ by
/// what is left of it between two signs.
pub(super) const LEASE: Duration = Duration::from_secs(30);
/// How often an owner gives a sign.
const RENEWAL: Duration = Duration::from_secs(10);
/// Jobs that are tried when others take them at the same time.
const CANDIDATES_MAX: i64 = 8;

/// What there is to do.
enum Found {
    /// A chunk of a job, which is now this process's.
    Work(Box<Run>, Arc<dyn Kind>),
    /// Nothing until then.
    Nothing(Micros),
}

/// Works until it is told to stop; chunks that began come to their end.
pub(super) async fn work(jobs: Jobs, turn: Turn) -> Result<()> {
    let mut chunks = JoinSet::new();
    let worked = fill(&jobs, &turn, &mut chunks).await;
    while chunks.join_next().await.is_some() {}
    worked
}

async fn fill(jobs: &Jobs, turn: &Turn, chunks: &mut JoinSet<()>) -> Result<()> {
    while !turn.stopped().is_cancelled() {
        let clock = &jobs.inner.clock;
        let mut look_at = clock.now() + micros(POLL);
        while chunks.len() < CHUNKS_MAX {
            match jobs.find_work().await? {
                Found::Work(run, kind) => {
                    let jobs = jobs.clone();
                    chunks.spawn(async move { jobs.do_chunk(&run, &*kind).await });
                }
                Found::Nothing(until) => {
                    look_at = until;
                    break;
                }
            }
        }
        turn.passed_for(POLL);
        tokio::select! {
            () = jobs.inner.woken.notified() => {}
            Some(_) = chunks.join_next() => {}
            () = clock.sleep_until(look_at) => {}
            () = turn.stopped().cancelled() => {}
        }
    }
    Ok(())
}

impl Jobs {
    /// Does one chunk of the job whose turn it is; false if there is none now. The worker does the
    /// same. Errors: `STORE_BUSY`.
    pub async fn step(&self) -> Result<bool> {
        match self.find_work().await? {
            Found::Work(run, kind) => {
                self.do_chunk(&run, &*kind).await;
                Ok(true)
            }
            Found::Nothing(_) => Ok(false),
        }
    }

    async fn find_work(&self) -> Result<Found> {
        let inner = &self.inner;
        let now = inner.clock.now();
        let look_at = now + micros(POLL);
        let kinds = self.kinds();
        if kinds.is_empty() {
            return Ok(Found::Nothing(look_at));
        }
        let names: Vec<&str> = kinds.keys().copied().collect();
        let names = serde_json::to_string(&names).map_err(Error::internal)?;
        let asker = store::Asker {
            kinds: &names,
            owner: &inner.owner,
            alone: !inner.db.is_postgres(),
        };
        // A read: on SQLite who looks in vain does not hold the writer.
        let candidates = store::next(&inner.db, &asker, now, CANDIDATES_MAX).await?;
        for (job_id, due) in candidates {
            if due > now {
                return Ok(Found::Nothing(due.min(look_at)));
            }
            let mut tx = inner.db.begin().await?;
            let lease_end = now + micros(LEASE);
            let claimed = store::claim(&mut tx, &asker, &job_id, now, lease_end).await?;
            tx.commit().await?;
            let Some(claimed) = claimed else { continue };
            if let Some(kind) = kinds.get(claimed.job.kind.as_str()) {
                let clock = inner.clock.clone();
                return Ok(Found::Work(Box::new(Run { claimed, clock }), kind.clone()));
            }
        }
        Ok(Found::Nothing(look_at))
    }

    /// Does a chunk to its end, unless the job is lost meanwhile.
    async fn do_chunk(&self, run: &Run, kind: &dyn Kind) {
        let job_id = &run.job().job_id;
        let ended = if run.claimed.failures >= FAILURES_MAX {
            let next = Next::Failed(given_up());
            Ok(Ended::Unsaved(Chunk {
                next,
                ..Chunk::default()
            }))
        } else {
            // The call is inside too: it may panic before there is a future.
            let working = AssertUnwindSafe(async { kind.chunk(run).await }).catch_unwind();
            tokio::select! {
                ended = working => ended.unwrap_or_else(|_| panicked()),
                () = self.keep(run) => {
                    tracing::warn!(job_id, "a job was taken over in the middle of a chunk");
                    return;
                }
            }
        };
        let new = match ended {
            Ok(Ended::Saved(_)) => return,
            Ok(Ended::Unsaved(chunk)) => run.claimed.after(chunk, self.inner.clock.now()),
            Err(error) => {
                tracing::warn!(job_id, kind = run.job().kind, "a chunk failed: {error}");
                run.claimed.after_failure(&error, self.inner.clock.now())
            }
        };
        // Whoever takes it next begins where the last stored chunk ended.
        match self.save(run, new).await {
            Ok(true) => {}
            Ok(false) => tracing::debug!(job_id, "a chunk had been stored or lost before"),
            Err(error) => tracing::warn!(job_id, "a chunk was not stored: {error}"),
        }
    }

    async fn save(&self, run: &Run, new: Progress) -> Result<bool> {
        let mut tx = self.inner.db.begin().await?;
        let saved = store::save(&mut tx, &run.claimed, new).await?;
        tx.commit().await?;
        Ok(saved)
    }

    /// Keeps a job as long as its chunk takes; returns when it is lost.
    async fn keep(&self, run: &Run) {
        let clock = &self.inner.clock;
        let mut began = clock.now();
        loop {
            // From sign to sign, however long the database takes for one.
            clock.sleep_until(began + micros(RENEWAL)).await;
            began = clock.now();
            match self.renew(run).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(job_id = run.job().job_id, "a job was not kept: {error}");
                }
            }
        }
    }

    async fn renew(&self, run: &Run) -> Result<bool> {
        let (job_id, epoch) = (&run.job().job_id, run.claimed.epoch);
        let lease_end = self.inner.clock.now() + micros(LEASE);
        let mut tx = self.inner.db.begin().await?;
        let kept = store::renew(&mut tx, job_id, epoch, lease_end).await?;
        tx.commit().await?;
        Ok(kept)
    }
}

/// A chunk panicked: a defect.
fn panicked() -> Result<Ended> {
    Err(Error::internal("a chunk panicked"))
}
