//! Decisions that may be used again, and what has made some of them void. It knows no connection
//! and no clock, so that every interleaving can be tested.
//!
//! Invariants:
//! - A decision is used again only while the watch had a frame in the last 5 s, for at most 5 s
//!   from the moment when it was asked for, and for no more requests than were counted for it.
//! - A decision that is older than a change of its key, by epoch, is never used, whichever of the
//!   two arrives first: one that was asked for before a revocation and arrives after it is void.
//! - What was asked for before the watch broke is not kept: changes may have been missed since.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hub_proto::hub::api_keys::v1::{ApiKeyChanges, VerifyApiKeyResponse};
use tokio::time::Instant;

use super::question::Question;
use super::voids::Voids;

/// A frame of the watch, and a decision, are good for so long at most.
const GOOD_FOR: Duration = Duration::from_secs(5);
/// Decisions that are kept; of more, the oldest are forgotten.
pub(super) const DECISIONS_MAX: usize = 10_000;
/// Requests are counted ahead for about so long.
const AHEAD: Duration = Duration::from_secs(1);
/// At most this part of what is left of a limit is counted ahead, so that little is lost if the
/// requests do not come.
const SHARE: u32 = 10;

/// A decision about one request.
#[derive(Debug, Clone)]
pub(super) struct Decision {
    pub(super) told: Arc<VerifyApiKeyResponse>,
    /// Requests that were counted with it and have not come yet.
    pub(super) ahead: u32,
    /// It covers no more requests, and the hub could not be asked.
    pub(super) degraded: bool,
}

/// An answer of the hub on its way into the cache.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) told: Arc<VerifyApiKeyResponse>,
    /// Requests that it covers, and how many of them have not come yet.
    pub(super) covers: u32,
    pub(super) left: u32,
    /// When it was asked for, and in which generation.
    pub(super) asked: Instant,
    pub(super) generation: u64,
}

struct Kept {
    answer: Answer,
    until: Instant,
}

/// See the module.
#[derive(Default)]
pub(super) struct Cache {
    kept: HashMap<Arc<Question>, Kept>,
    /// In the order of their coming; those that were replaced stay until their time.
    order: VecDeque<(Arc<Question>, Instant)>,
    voids: Voids,
    /// The last frame of the watch; none while it is broken.
    heard: Option<Instant>,
    /// How often the watch broke.
    generation: u64,
}

impl Cache {
    /// A decision that covers one more request.
    pub(super) fn take(&mut self, asked: &Question, now: Instant) -> Option<Decision> {
        if !self.is_watching(now) {
            return None;
        }
        let kept = self.kept.get_mut(asked)?;
        let answer = &mut kept.answer;
        if kept.until <= now || !self.voids.keeps(&answer.told) {
            return None;
        }
        answer.left = answer.left.checked_sub(1)?;
        Some(Decision {
            told: answer.told.clone(),
            ahead: answer.left,
            degraded: false,
        })
    }

    /// A decision that allows, whatever it covers: for when the hub cannot be asked.
    pub(super) fn known(&self, asked: &Question, now: Instant) -> Option<Decision> {
        let kept = self.kept.get(asked).filter(|_| self.is_watching(now))?;
        let told = &kept.answer.told;
        let good = kept.until > now && told.allowed && self.voids.keeps(told);
        good.then(|| Decision {
            told: told.clone(),
            ahead: 0,
            degraded: true,
        })
    }

    /// Requests to count with the next call: as many as came lately in a second, at most twice as
    /// many as before.
    pub(super) fn portion(&self, asked: &Question, most: u32, now: Instant) -> u32 {
        let Some(kept) = self.kept.get(asked) else {
            return 1;
        };
        let answer = &kept.answer;
        let came = f64::from(answer.covers - answer.left);
        let seconds = now.duration_since(answer.asked).as_secs_f64();
        let wanted = came * AHEAD.as_secs_f64() / seconds.max(f64::EPSILON);
        let left = answer.told.rate_limit.as_ref();
        let share = left.map_or(most, |left| left.remaining / SHARE);
        // As from infinity, what is too large becomes the largest.
        let wanted = (wanted as u32).min(answer.covers.saturating_mul(2));
        wanted.min(share).min(most).max(1)
    }

    /// Whether the key has changed since the decision.
    pub(super) fn is_stale(&self, told: &VerifyApiKeyResponse) -> bool {
        self.voids.is_stale(told)
    }

    /// To be given back with the answer that is asked for now.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Keeps an answer, if it may be used again.
    pub(super) fn keep(&mut self, asked: Arc<Question>, answer: Answer, now: Instant) {
        let told = &answer.told;
        let good_for = told.cache_for.and_then(|told| told.try_into().ok());
        let good_for: Duration = good_for.unwrap_or(Duration::ZERO);
        let until = answer.asked + good_for.min(GOOD_FOR);
        let is_current = answer.generation == self.generation && self.is_watching(now);
        if !is_current || until <= now || !self.voids.keeps(told) {
            // What was known before is older.
            self.kept.remove(&asked);
            return;
        }
        self.order.push_back((asked.clone(), until));
        self.kept.insert(asked, Kept { answer, until });
        while self.order.len() > DECISIONS_MAX {
            self.forget_oldest();
        }
    }

    /// The watch was opened, at this epoch.
    pub(super) fn opened(&mut self, epoch: u64, now: Instant) {
        self.broke();
        self.voids.opened(epoch);
        self.heard = Some(now);
    }

    /// A frame came.
    pub(super) fn heard(&mut self, now: Instant) {
        if self.heard.is_some() {
            self.heard = Some(now);
        }
        while let Some((_, until)) = self.order.front() {
            // A little longer than it is used, because it tells how many requests came.
            if *until + GOOD_FOR > now {
                break;
            }
            self.forget_oldest();
        }
    }

    /// Keys have changed.
    pub(super) fn changed(&mut self, changes: &ApiKeyChanges) {
        self.voids.changed(changes);
    }

    /// Changes up to this epoch are not known.
    pub(super) fn missed(&mut self, epoch: u64) {
        self.voids.missed(epoch);
    }

    /// The watch broke.
    pub(super) fn broke(&mut self) {
        self.heard = None;
        self.generation += 1;
        self.kept.clear();
        self.order.clear();
    }

    /// Decisions that are kept.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    fn is_watching(&self, now: Instant) -> bool {
        self.heard.is_some_and(|heard| now < heard + GOOD_FOR)
    }

    fn forget_oldest(&mut self) {
        let Some((asked, until)) = self.order.pop_front() else {
            return;
        };
        if self
            .kept
            .get(&asked)
            .is_some_and(|kept| kept.until <= until)
        {
            self.kept.remove(&asked);
        }
    }
}
