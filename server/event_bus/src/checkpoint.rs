//! Stores what was delivered: the positions of all groups that changed in one transaction, off the
//! path of events and acks.
//!
//! Between two checkpoints lie at least 50 ms, unless somebody waits for an ack to be durable. What
//! a crash of the hub loses is acks since the last one; their events are delivered again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hub_core::error::Result;
use hub_core::module::Core;
use hub_core::storage::{Failure, Tx};
use hub_core::worker::Turn;
use tokio::sync::Notify;

use crate::group::{Change, Group, Prepared, Unsaved};
use crate::store::positions::{self, Exception};
use crate::subscriptions;

/// Shortest time between two checkpoints that nobody waits for.
const INTERVAL: Duration = Duration::from_millis(50);
/// Subscriptions in one transaction: on SQLite it holds the only writer.
const CHUNK_GROUPS_MAX: usize = 100;
/// After so long without anything to store, the worker says that it lives.
const IDLE: Duration = Duration::from_secs(10);

/// The groups that have something to store.
pub(crate) struct Checkpoints {
    core: Core,
    waiting: Mutex<Vec<Arc<Group>>>,
    /// Held by who stores. A checkpoint drops the changes that it has stored from the front of
    /// those that wait, so that two of a group at once would drop what is on no disk; and who
    /// leaves a group may not find that an earlier checkpoint of it is still under way.
    storing: tokio::sync::Mutex<()>,
    added: Notify,
    urgent: AtomicBool,
    hurried: Notify,
}

impl std::fmt::Debug for Checkpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checkpoints")
    }
}

/// Groups of which a checkpoint was prepared. If it fails they wait again, and also if nobody is
/// left to store it: that may be a call whose caller went away.
struct Chunk<'a> {
    checkpoints: &'a Checkpoints,
    groups: Vec<Arc<Group>>,
}

impl Drop for Chunk<'_> {
    fn drop(&mut self) {
        for group in &self.groups {
            group.is_not_saved(self.checkpoints);
        }
    }
}

impl Checkpoints {
    pub(crate) fn new(core: &Core) -> Arc<Checkpoints> {
        Arc::new(Checkpoints {
            core: core.clone(),
            waiting: Mutex::default(),
            storing: tokio::sync::Mutex::default(),
            added: Notify::new(),
            urgent: AtomicBool::new(false),
            hurried: Notify::new(),
        })
    }

    /// A group has something to store; called under its lock.
    pub(crate) fn add(&self, group: &Arc<Group>, unsaved: &mut Unsaved) {
        if unsaved.list() {
            self.lock().push(group.clone());
            self.added.notify_one();
        }
    }

    /// Somebody waits for it.
    pub(crate) fn hurry(&self) {
        self.urgent.store(true, Ordering::Release);
        self.hurried.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Group>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores until it is stopped, and once more then. In time of its own: a clock that stands
    /// still must not keep acks in memory.
    pub(crate) async fn run(self: Arc<Self>, turn: Turn) -> Result<()> {
        loop {
            tokio::select! {
                () = self.added.notified() => {}
                () = self.hurried.notified() => {}
                () = turn.stopped().cancelled() => {}
                () = tokio::time::sleep(IDLE) => {}
            }
            if !self.urgent.swap(false, Ordering::AcqRel) && !turn.stopped().is_cancelled() {
                tokio::select! {
                    () = self.hurried.notified() => {}
                    () = tokio::time::sleep(INTERVAL) => {}
                    () = turn.stopped().cancelled() => {}
                }
            }
            self.store().await?;
            turn.passed_for(IDLE);
            if turn.stopped().is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Stores all that waits now, after what another task is storing. Errors: `STORE_BUSY`; what
    /// could not be stored waits again.
    pub(crate) async fn store(&self) -> Result<()> {
        let _turn = self.storing.lock().await;
        let mut failed = Ok(());
        // What is added meanwhile, or waits again, is for the next time.
        let mut left = self.lock().len();
        while left > 0 {
            let count = left.min(CHUNK_GROUPS_MAX);
            let groups = self.lock().drain(..count).collect();
            let stored = self.store_chunk(groups).await;
            failed = failed.and(stored);
            left -= count;
        }
        failed.map_err(Into::into)
    }

    async fn store_chunk(&self, groups: Vec<Arc<Group>>) -> Result<(), Failure> {
        let started = std::time::Instant::now();
        let prepared: Vec<Prepared> = groups.iter().map(|group| group.prepare()).collect();
        let mut chunk = Chunk {
            checkpoints: self,
            groups,
        };
        let owned = self.write(&chunk.groups, &prepared).await?;
        let groups = std::mem::take(&mut chunk.groups);
        for ((group, prepared), owned) in groups.iter().zip(&prepared).zip(owned) {
            match owned {
                true => {
                    group.is_saved(prepared);
                    self.tell(group, &prepared.changes);
                }
                false => group.lose(),
            }
        }
        metrics::histogram!("hub_event_bus_checkpoint_seconds").record(started.elapsed());
        metrics::counter!("hub_event_bus_checkpoints_total").increment(1);
        Ok(())
    }

    /// What the log of the tenant tells of changes that are stored.
    fn tell(&self, group: &Group, changes: &[Change]) {
        if !changes
            .iter()
            .any(|change| matches!(change, Change::Pause(_)))
        {
            return;
        }
        let (core, tenant, id) = (self.core.clone(), group.tenant.clone(), group.id.clone());
        tokio::spawn(async move {
            let told = subscriptions::tell_exhausted(&core, &tenant, &id).await;
            told.unwrap_or_else(|error| tracing::warn!("the pause of {id} is not told: {error}"));
        });
    }

    /// One transaction; for each group, whether this process still owns it.
    async fn write(
        &self,
        groups: &[Arc<Group>],
        prepared: &[Prepared],
    ) -> Result<Vec<bool>, Failure> {
        let now = self.core.clock.now();
        // In order of their ids: two processes that lock the same rows do not wait in a circle.
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.sort_by(|one, other| groups[*one].id.cmp(&groups[*other].id));
        let mut owned = vec![false; groups.len()];
        let mut tx = self.core.db.begin().await?;
        for index in order {
            let (group, prepared) = (&groups[index], &prepared[index]);
            let pauses = |change: &Change| matches!(change, Change::Pause(_));
            if prepared.changes.iter().any(pauses) {
                positions::lock_settings(&mut tx, &group.id).await?;
            }
            owned[index] = positions::save(&mut tx, group.whose(), &prepared.saving, now).await?;
            if owned[index] {
                write_changes(&mut tx, group, &prepared.changes, now).await?;
            }
        }
        tx.commit().await?;
        Ok(owned)
    }
}

async fn write_changes(
    tx: &mut Tx,
    group: &Group,
    changes: &[Change],
    now: hub_core::clock::Micros,
) -> Result<(), Failure> {
    let whose = group.whose();
    for change in changes {
        match change {
            Change::Put(exception) => {
                let stored = Exception {
                    seq: exception.seq,
                    state: Change::state(exception.state).into(),
                    attempts: exception.attempts,
                    error: &exception.error,
                    held_key: exception.held_key.as_ref().map_or(0, |key| key.0),
                    at: exception.at,
                };
                positions::put_exception(tx, whose, &stored).await?;
            }
            Change::Remove(seq) => positions::remove_exception(tx, whose, *seq).await?,
            Change::Range(from, to, state) => {
                let state = Change::state(*state).into();
                positions::put_range(tx, whose, (*from, *to), state, now).await?;
            }
            Change::Pause(pause) => {
                positions::pause(tx, whose, pause.since, &pause.reason).await?;
            }
        }
    }
    Ok(())
}
