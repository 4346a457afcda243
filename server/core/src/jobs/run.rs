//! One chunk of a job: what its kind is given, and what it hands back.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::Code;

use super::job::cut;
use super::{COUNTERS_MAX, ERRORS_MAX, ItemError, Job, store};
use crate::clock::{Clock, Micros, micros};
use crate::error::{Error, Result};
use crate::journal::TenantRef;
use crate::storage::Tx;

/// Most items of a chunk.
const ITEMS_MAX: u32 = 500;
/// Failures in a row after which a job is given up: those that are the hub's own fault, and ends of
/// the process in the middle of a chunk. A database that is away is waited for without end.
pub(super) const FAILURES_MAX: i64 = 5;
/// Pause after the first failure; it doubles with each in a row.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Pause after something that passes by itself, as a database that is away.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest message of a job, in bytes; the rest is cut.
const MESSAGE_BYTES_MAX: usize = 1024;

/// A job that somebody has a chunk of at work.
#[derive(Debug)]
pub(super) struct Claimed {
    pub job: Job,
    pub tenant: TenantRef,
    pub confirmed: bool,
    pub max_per_second: i64,
    pub parameters: Vec<u8>,
    pub progress: Vec<u8>,
    /// Failures in a row; an owner that did not end its chunk is one.
    pub failures: i64,
    /// Number of the chunk, by which what it stores is told from what an earlier owner would.
    pub epoch: i64,
    pub claim_time: Micros,
}

/// Where a job stands, about to be stored.
#[derive(Debug, PartialEq)]
pub(super) struct Progress {
    pub bytes: Vec<u8>,
    pub total: i64,
    pub done: i64,
    pub failed: i64,
    pub counters: BTreeMap<String, i64>,
    pub errors: Vec<ItemError>,
    pub next: Next,
    pub failures: i64,
    /// When the next chunk may begin.
    pub due: Micros,
    /// Now.
    pub time: Micros,
}

/// A job at work on one chunk, as its kind sees it.
pub struct Run {
    pub(super) claimed: Claimed,
    pub(super) clock: Clock,
}

/// What a chunk did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Where the next chunk begins, in the domain's own encoding, a few KiB at most; none = where
    /// this one began.
    pub progress: Option<Vec<u8>>,
    /// Items of the whole job, if more is known than before; what is done counts at least.
    pub total: Option<i64>,
    /// Items that this chunk finished, failures included. They are what `max_per_second` counts.
    pub done: i64,
    /// Items of these that failed.
    pub failed: i64,
    /// To be added to the job's outcomes by name; a job keeps 64 names.
    pub counters: BTreeMap<String, i64>,
    /// The failed items; a job keeps its first 20.
    pub errors: Vec<ItemError>,
    /// How the job goes on.
    pub next: Next,
    /// The next chunk begins so much later, because there is no room for more now.
    pub pause: Duration,
}

/// How a job goes on after a chunk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Next {
    /// With another chunk.
    #[default]
    More,
    /// Not at all, all is done: SUCCEEDED, also if single items failed.
    Finished,
    /// Once somebody confirms it: NEEDS_CONFIRMATION with this message. The chunk that found it
    /// should store no progress, and begins again with [`Run::is_confirmed`].
    Confirm(String),
    /// Not at all, it cannot finish: FAILED with this message.
    Failed(String),
}

/// How a chunk ended.
#[derive(Debug)]
pub enum Ended {
    /// What it did is still to be stored, in a transaction that holds nothing else. A process that
    /// ends before that does the chunk once more.
    Unsaved(Chunk),
    /// [`Run::save`] stored it in a transaction of the kind, which was committed.
    Saved(Saved),
}

/// Proof of [`Run::save`].
#[derive(Debug)]
pub struct Saved(());

impl Run {
    /// The job as it stood when the chunk began.
    pub fn job(&self) -> &Job {
        &self.claimed.job
    }

    /// Whose job it is.
    pub fn tenant(&self) -> &TenantRef {
        &self.claimed.tenant
    }

    /// What the domain stored when it made the job.
    pub fn parameters(&self) -> &[u8] {
        &self.claimed.parameters
    }

    /// Where this chunk begins: what the last one stored; empty at first.
    pub fn progress(&self) -> &[u8] {
        &self.claimed.progress
    }

    /// CONFIRM lifted the guard of this job.
    pub fn is_confirmed(&self) -> bool {
        self.claimed.confirmed
    }

    /// Most items that this chunk should do: 500, or what the job may do in a second.
    pub fn items_max(&self) -> usize {
        let allowed = u32::try_from(self.claimed.max_per_second).unwrap_or(u32::MAX);
        let items = if allowed == 0 { ITEMS_MAX } else { allowed };
        items.min(ITEMS_MAX) as usize
    }

    /// Stores what the chunk did as part of `tx`, so that its effect and the progress are one
    /// commit. Once for each chunk, and last: commit at once, also by `Journal::commit`.
    ///
    /// Errors: `STORE_BUSY` if another process has the job by now; drop the transaction and return
    /// the error.
    pub async fn save(&self, tx: &mut Tx, chunk: Chunk) -> Result<Saved> {
        let new = self.claimed.after(chunk, self.clock.now());
        match store::save(tx, &self.claimed, new).await? {
            true => Ok(Saved(())),
            false => Err(lost()),
        }
    }
}

impl Claimed {
    /// Where the job stands after a chunk that went well.
    pub fn after(&self, chunk: Chunk, now: Micros) -> Progress {
        let job = &self.job;
        let done = job.done + chunk.done;
        let mut counters = job.counters.clone();
        for (name, count) in chunk.counters {
            let known = counters.len() < COUNTERS_MAX || counters.contains_key(&name);
            if known {
                *counters.entry(name).or_default() += count;
            }
        }
        let room = ERRORS_MAX.saturating_sub(job.errors.len());
        let new = chunk.errors.into_iter().take(room).map(ItemError::cut);
        let next = match chunk.next {
            Next::Confirm(message) => Next::Confirm(cut(message, MESSAGE_BYTES_MAX)),
            Next::Failed(message) => Next::Failed(cut(message, MESSAGE_BYTES_MAX)),
            next => next,
        };
        Progress {
            bytes: chunk.progress.unwrap_or_else(|| self.progress.clone()),
            // What was counted may be a lower bound.
            total: chunk.total.unwrap_or(job.total).max(done),
            done,
            failed: job.failed + chunk.failed,
            counters,
            errors: job.errors.iter().cloned().chain(new).collect(),
            next,
            failures: 0,
            due: (now + micros(chunk.pause))
                .max(self.claim_time + pace(chunk.done, self.max_per_second)),
            time: now,
        }
    }

    /// Where the job stands after a chunk that failed: where it was, later or never again.
    pub fn after_failure(&self, error: &Error, now: Micros) -> Progress {
        let again = |failures, pause| (failures, Next::More, now + micros(pause));
        let (failures, next, due) = match error.code() {
            Code::Unavailable
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::DeadlineExceeded
            | Code::Cancelled => again(self.failures, PAUSE),
            Code::Internal | Code::Unknown if self.failures + 1 < FAILURES_MAX => {
                let doubled = 2u32.saturating_pow(u32::try_from(self.failures).unwrap_or(0));
                again(self.failures + 1, PAUSE_MIN.saturating_mul(doubled))
            }
            Code::Internal | Code::Unknown => (self.failures + 1, Next::Failed(given_up()), now),
            _ => (0, Next::Failed(error.message().to_owned()), now),
        };
        let chunk = Chunk {
            next,
            ..Chunk::default()
        };
        Progress {
            failures,
            due,
            ..self.after(chunk, now)
        }
    }
}

/// How long so many items take at a speed, in microseconds.
fn pace(items: i64, max_per_second: i64) -> Micros {
    match max_per_second {
        0 => 0,
        speed => items.saturating_mul(1_000_000) / speed,
    }
}

/// Why a job FAILED whose chunks failed by a fault of the hub.
pub(super) fn given_up() -> String {
    format!("The hub failed at it {FAILURES_MAX} times in a row; its log tells why.")
}

/// Another process has the job.
fn lost() -> Error {
    Error::store_busy("The job is at work elsewhere", "job_taken")
}

#[cfg(test)]
mod tests {
    use hub_proto::hub::core::v1::JobState;

    use super::*;

    const NOW: Micros = 50_000_000;

    fn claimed(max_per_second: i64, failures: i64) -> Claimed {
        let job = Job {
            job_id: "job_1".to_owned(),
            kind: "test.count".to_owned(),
            state: JobState::Running,
            resource: String::new(),
            total: 10,
            done: 3,
            failed: 1,
            counters: BTreeMap::from([("created".to_owned(), 2)]),
            errors: vec![item_error(0)],
            message: String::new(),
            dry_run: false,
            created_by: "key_1".to_owned(),
            create_time: 0,
            complete_time: None,
        };
        Claimed {
            job,
            tenant: TenantRef::new(1, "tnt_1"),
            confirmed: false,
            max_per_second,
            parameters: Vec::new(),
            progress: vec![3],
            failures,
            epoch: 1,
            claim_time: NOW,
        }
    }

    fn item_error(number: usize) -> ItemError {
        ItemError {
            resource: format!("evt_{number}"),
            reason: "EVENT_NOT_FOUND".to_owned(),
            message: "x".repeat(5000),
        }
    }

    #[test]
    fn what_is_to_do_is_never_less_than_what_is_done() {
        for (total, expected) in [(None, 33), (Some(20), 33), (Some(33), 33), (Some(34), 34)] {
            let chunk = Chunk {
                total,
                done: 30,
                ..Chunk::default()
            };
            let after = claimed(0, 2).after(chunk, NOW);
            assert_eq!((after.total, after.done), (expected, 33), "{total:?}");
        }
    }

    #[test]
    fn a_chunk_is_added_to_what_was_there_and_the_first_twenty_errors_stay() {
        let chunk = Chunk {
            progress: Some(vec![9]),
            total: Some(40),
            done: 30,
            failed: 30,
            counters: (0..100).map(|n| (format!("n{n}"), 1)).collect(),
            errors: (1..=30).map(item_error).collect(),
            next: Next::Finished,
            pause: Duration::ZERO,
        };
        let after = claimed(0, 2).after(chunk, NOW);
        assert_eq!((after.total, after.done, after.failed), (40, 33, 31));
        assert_eq!((after.failures, after.due), (0, NOW));
        assert_eq!(after.counters.len(), COUNTERS_MAX);
        assert_eq!(after.counters["created"], 2);
        let named: Vec<_> = after.errors.iter().map(|error| &*error.resource).collect();
        let wanted: Vec<_> = (0..ERRORS_MAX).map(|n| format!("evt_{n}")).collect();
        assert_eq!(named, wanted);
        assert!(after.errors[1].message.len() < 1000);
    }

    #[test]
    fn the_speed_limit_sets_the_size_of_a_chunk_and_when_the_next_begins() {
        let run = |max_per_second| Run {
            claimed: claimed(max_per_second, 0),
            clock: Clock::manual(NOW),
        };
        let sizes = [0, 1, 100, 100_000].map(|speed| run(speed).items_max());
        assert_eq!(sizes, [500, 1, 100, 500]);
        let due = |speed, done, now| {
            let chunk = Chunk {
                done,
                ..Chunk::default()
            };
            claimed(speed, 0).after(chunk, now).due - NOW
        };
        assert_eq!(due(100, 100, NOW), 1_000_000);
        assert_eq!(due(100, 50, NOW + 100_000), 500_000);
        assert_eq!(due(100, 50, NOW + 700_000), 700_000, "it took longer");
        assert_eq!(due(0, 50, NOW + 1), 1);
        let waits = Chunk {
            pause: Duration::from_secs(2),
            ..Chunk::default()
        };
        let after = claimed(100, 0).after(waits, NOW + 700_000);
        assert_eq!(after.due - NOW, 2_700_000, "there was no room");
    }

    #[test]
    fn a_failed_chunk_comes_again_unless_it_is_refused_or_has_failed_too_often() {
        let failing = |failures, error: &Error| {
            let after = claimed(100, failures).after_failure(error, NOW);
            assert_eq!((after.bytes, after.done, after.total), (vec![3], 3, 10));
            (after.failures, after.due - NOW, after.next)
        };
        let busy = Error::store_busy("The database is locked", "locked");
        assert_eq!(failing(4, &busy), (4, 5_000_000, Next::More));
        let defect = Error::internal("on purpose");
        assert_eq!(failing(0, &defect), (1, 1_000_000, Next::More));
        assert_eq!(failing(3, &defect), (4, 8_000_000, Next::More));
        assert_eq!(failing(4, &defect).2, Next::Failed(given_up()));
        let refused = Error::field("filter", "is empty");
        let message = refused.message().to_owned();
        assert_eq!(failing(0, &refused), (0, 0, Next::Failed(message)));
    }
}
