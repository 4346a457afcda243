//! Group commit: whatever waits when the last commit returns goes into the next one.
//!
//! Each tenant has its own queue; they are drained round robin with a cap, so that a flooding
//! tenant delays itself only. A database error is tried again member by member, so that one
//! poisoned append never fails its neighbours.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::tail::Log;
use super::{Append, Appended, Journal, Outcome, Work, Written};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::storage::Failure;

/// Pause before heads that are all locked by others are tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(2);

/// An append that waits for its commit.
pub(super) struct Member {
    append: Append,
    bytes: usize,
    reply: oneshot::Sender<Result<Appended>>,
    _room: [OwnedSemaphorePermit; 2],
}

/// Appends that a publisher sends without waiting for the one before. None of them is stored behind
/// one that was not: sent again, that one would come after it.
#[derive(Debug, Clone, Default)]
pub struct Row {
    broken: Arc<AtomicBool>,
}

impl Row {
    fn end(&self) {
        self.broken.store(true, Ordering::Release);
    }

    fn has_ended(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }
}

impl Member {
    /// It is not stored, or nobody knows; nor is anything behind it in its row.
    fn refuse(self, error: &Error) {
        if let Some(row) = &self.append.row {
            row.end();
        }
        // The caller may be gone.
        let _ = self.reply.send(Err(error.clone()));
    }
}

/// What waits, by tenant.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    ready: Notify,
    room: Arc<Semaphore>,
    tenant_bytes_max: usize,
    limits: Arc<Limits>,
}

#[derive(Default)]
struct Waiting {
    tenants: HashMap<i64, VecDeque<Member>>,
    /// Tenants with members, in turn.
    turns: VecDeque<i64>,
    /// Room of each tenant that ever waited; small, and as many as tenants that publish.
    rooms: HashMap<i64, Arc<Semaphore>>,
    closed: bool,
}

/// The members of one tenant in a group.
struct Batch {
    log: Arc<Log>,
    members: Vec<Member>,
}

impl Queue {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        Queue {
            waiting: Mutex::default(),
            ready: Notify::new(),
            room: Arc::new(Semaphore::new(limits.append_bytes_max)),
            tenant_bytes_max: limits.append_tenant_bytes_max,
            limits,
        }
    }

    /// Waits for room, then for its turn. The order of calls of one tenant is kept.
    pub(super) async fn push(&self, append: Append) -> Result<oneshot::Receiver<Result<Appended>>> {
        let bytes = append
            .events
            .iter()
            .map(|event| event.size())
            .sum::<usize>()
            .max(1);
        let room = self.acquire(append.log.tenant().number(), bytes);
        let room = tokio::time::timeout(self.limits.append_wait_max, room)
            .await
            .map_err(|_| Error::store_busy("Too many events wait for the disk", "queue_full"))??;
        let (reply, answer) = oneshot::channel();
        let tenant_no = append.log.tenant().number();
        let member = Member {
            append,
            bytes,
            reply,
            _room: room,
        };
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(Error::draining());
        }
        let queue = waiting.tenants.entry(tenant_no).or_default();
        queue.push_back(member);
        if queue.len() == 1 {
            waiting.turns.push_back(tenant_no);
        }
        drop(waiting);
        self.ready.notify_one();
        Ok(answer)
    }

    async fn acquire(&self, tenant_no: i64, bytes: usize) -> Result<[OwnedSemaphorePermit; 2]> {
        let own = {
            let mut waiting = self.lock();
            let room = || Arc::new(Semaphore::new(self.tenant_bytes_max));
            waiting.rooms.entry(tenant_no).or_insert_with(room).clone()
        };
        let permits = |max: usize| u32::try_from(bytes.min(max)).unwrap_or(u32::MAX);
        let own = own.acquire_many_owned(permits(self.tenant_bytes_max)).await;
        let all = self
            .room
            .clone()
            .acquire_many_owned(permits(self.limits.append_bytes_max))
            .await;
        match (own, all) {
            (Ok(own), Ok(all)) => Ok([own, all]),
            _ => Err(Error::draining()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next group: each tenant in its turn, up to its cap.
    fn take(&self) -> Vec<Batch> {
        let mut waiting = self.lock();
        let mut group = Vec::new();
        while group.len() < self.limits.group_tenants_max {
            let Some(tenant_no) = waiting.turns.pop_front() else {
                break;
            };
            let Some(queue) = waiting.tenants.get_mut(&tenant_no) else {
                continue;
            };
            let mut bytes = 0;
            let mut members = Vec::new();
            while let Some(next) = queue.front() {
                if !members.is_empty() && bytes + next.bytes > self.limits.group_tenant_bytes_max {
                    break;
                }
                bytes += next.bytes;
                members.extend(queue.pop_front());
            }
            if queue.is_empty() {
                waiting.tenants.remove(&tenant_no);
            }
            if let Some(first) = members.first() {
                group.push((
                    tenant_no,
                    Batch {
                        log: first.append.log.clone(),
                        members,
                    },
                ));
            }
        }
        // Who still waits goes to the end of the line.
        for (tenant_no, _) in &group {
            if waiting.tenants.contains_key(tenant_no) {
                waiting.turns.push_back(*tenant_no);
            }
        }
        group.into_iter().map(|(_, batch)| batch).collect()
    }

    /// Puts a batch back before what came later: its head is locked by another process.
    fn put_back(&self, batch: Batch) {
        let tenant_no = batch.log.tenant().number();
        let mut waiting = self.lock();
        let queue = waiting.tenants.entry(tenant_no).or_default();
        let had_turn = !queue.is_empty();
        for member in batch.members.into_iter().rev() {
            queue.push_front(member);
        }
        if !had_turn {
            waiting.turns.push_back(tenant_no);
        }
    }

    /// Takes no more; what waits is still committed.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_one();
    }

    fn has_some(&self) -> bool {
        !self.lock().turns.is_empty()
    }

    fn is_done(&self) -> bool {
        let waiting = self.lock();
        waiting.closed && waiting.turns.is_empty()
    }
}

/// Commits groups until the queue is closed and empty.
pub(super) async fn run(journal: Arc<Journal>, done: CancellationToken) {
    let linger = journal.limits.group_linger;
    while !journal.queue.is_done() {
        let group = journal.queue.take();
        let group: Vec<Batch> = group.into_iter().filter_map(Batch::in_its_row).collect();
        if group.is_empty() {
            if journal.queue.has_some() {
                continue;
            }
            journal.queue.ready.notified().await;
            if !linger.is_zero() {
                tokio::time::sleep(linger).await;
            }
            continue;
        }
        commit(&journal, group).await;
        // Answers leave, and what has come meanwhile is read, before the next commit holds the
        // thread again.
        tokio::task::yield_now().await;
    }
    done.cancel();
}

async fn commit(journal: &Arc<Journal>, group: Vec<Batch>) {
    let started = std::time::Instant::now();
    let written = {
        let works: Vec<Work<'_>> = group.iter().map(Batch::work).collect();
        journal.store.write(&works).await
    };
    match written {
        Ok(written) => {
            metrics::histogram!("hub_journal_commit_seconds").record(started.elapsed());
            let all_busy = written.iter().all(Option::is_none);
            for (batch, written) in group.into_iter().zip(written) {
                match written {
                    Some(written) => batch.answer(journal, written).await,
                    None => journal.queue.put_back(batch),
                }
            }
            if all_busy {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
        }
        Err(failure) => commit_one_by_one(journal, group, failure).await,
    }
}

/// After an error that a member may have caused, each is tried alone; after any other, all are
/// told. The outcome of a lost connection is unknown: a client that sends again is told of the
/// first by the identities.
async fn commit_one_by_one(journal: &Arc<Journal>, group: Vec<Batch>, failure: Failure) {
    let members = group.iter().map(|batch| batch.members.len()).sum::<usize>();
    tracing::warn!(members, "a commit of the journal failed: {failure}");
    metrics::counter!("hub_journal_commit_failures_total").increment(1);
    let retry = members > 1 && failure.may_be_poisoned();
    if !failure.is_definite() {
        // It may have been committed all the same: readers shall see it.
        group
            .iter()
            .for_each(|batch| journal.catch_up_later(&batch.log));
    }
    let error = Error::from(failure);
    for batch in group {
        for member in batch.members {
            if !retry {
                member.refuse(&error);
                continue;
            }
            let one = Batch {
                log: batch.log.clone(),
                members: vec![member],
            };
            let Some(batch) = one.in_its_row() else {
                continue;
            };
            let written = journal.store.write(&[batch.work()]).await;
            match written.map(|mut written| written.pop().flatten()) {
                Ok(Some(written)) => batch.answer(journal, written).await,
                Ok(None) => journal.queue.put_back(batch),
                Err(failure) => batch.refuse(&failure.into()),
            }
        }
    }
}

impl Batch {
    fn work(&self) -> Work<'_> {
        Work {
            log: &self.log,
            appends: self.members.iter().map(|member| &member.append).collect(),
        }
    }

    /// Readers see the events before their publisher is answered.
    async fn answer(self, journal: &Arc<Journal>, written: Written) {
        if let Some(segment) = written.segment {
            metrics::counter!("hub_journal_events_total").increment(segment.count() as u64);
            journal.publish(&self.log, segment).await;
        }
        let head = self.log.head();
        let ahead = |outcome: &Outcome| match outcome {
            Outcome::Duplicate(position) => position.seq > head.seq,
            _ => false,
        };
        // The first one was committed, but its commit was not seen to succeed.
        if written.outcomes.iter().flatten().any(ahead) {
            journal.catch_up_later(&self.log);
        }
        for (member, outcomes) in self.members.into_iter().zip(written.outcomes) {
            let appended = Appended::new(&member.append, outcomes, head);
            let _ = member.reply.send(Ok(appended));
        }
    }

    fn refuse(self, error: &Error) {
        self.members
            .into_iter()
            .for_each(|member| member.refuse(error));
    }

    /// Without the members whose row has ended, if any are left.
    fn in_its_row(mut self) -> Option<Batch> {
        let has_ended = |member: &Member| member.append.row.as_ref().is_some_and(Row::has_ended);
        if self.members.iter().any(has_ended) {
            let (late, rest) = self.members.into_iter().partition(has_ended);
            self.members = rest;
            let late: Vec<Member> = late;
            let error = Error::store_busy("An earlier frame was not stored", "earlier_frame");
            late.into_iter().for_each(|member| member.refuse(&error));
        }
        (!self.members.is_empty()).then_some(self)
    }
}
