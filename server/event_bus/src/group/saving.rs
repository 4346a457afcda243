//! What of a group is to be stored, and what is.

use std::sync::Arc;
use std::time::Duration;

use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_proto::hub::event_bus::v1::EventDeliveryState;

use super::{Group, State};
use crate::checkpoint::Checkpoints;
use crate::leasing::{self, Changes, Exception, Settled};
use crate::owners::Said;
use crate::store::positions::{self, Saving};
use crate::subscriptions::Pause;

/// How long a checkpoint is waited for, in time of its own.
const SAVED_WITHIN: Duration = Duration::from_secs(10);

/// What is on disk.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Saved {
    /// Everything up to this generation is.
    generation: u64,
    /// Another process owns the subscription, or it is gone: nothing more will be.
    lost: bool,
}

/// What waits for the next checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Unsaved {
    changes: Vec<Change>,
    /// Generation of the last position that was prepared.
    prepared: u64,
    /// The checkpoints know of it.
    listed: bool,
}

/// A change beside the position.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// An event was settled otherwise than by an ack.
    Put(Exception),
    /// What was said of an event is over.
    Remove(u64),
    /// Events that were never looked at.
    Range(u64, u64, Settled),
    /// The retry policy paused the subscription.
    Pause(Pause),
}

/// A position about to be stored with all changes before it.
#[derive(Debug)]
pub(crate) struct Prepared {
    generation: u64,
    pub(crate) saving: Saving,
    pub(crate) changes: Vec<Change>,
    /// Redelivered events that may be leased once this is on disk.
    redelivered: Vec<u64>,
}

impl Unsaved {
    pub(super) fn add(&mut self, changes: Changes) {
        let put = changes.put.into_iter().map(Change::Put);
        let removed = changes.removed.into_iter().map(Change::Remove);
        let ranges = changes.ranges.into_iter();
        let ranges = ranges.map(|(from, to, state)| Change::Range(from, to, state));
        self.changes.extend(put.chain(removed).chain(ranges));
    }

    /// How an event was settled, if the next checkpoint stores that.
    pub(super) fn of(&self, seq: u64) -> Option<Said> {
        self.changes.iter().rev().find_map(|change| match change {
            Change::Put(exception) if exception.seq == seq => Some(Said::Settled {
                state: Change::state(exception.state),
                attempts: exception.attempts,
                error: exception.error.to_string(),
                time: Some(exception.at),
            }),
            Change::Range(from, to, settled) if (*from..=*to).contains(&seq) => {
                Some(Said::Settled {
                    state: Change::state(*settled),
                    attempts: 0,
                    error: String::new(),
                    time: None,
                })
            }
            _ => None,
        })
    }

    /// The generation that the changes so far belong to.
    pub(super) fn generation(&self) -> u64 {
        self.prepared + u64::from(self.listed)
    }

    /// Notes that the checkpoints know of it; false if they did.
    pub(crate) fn list(&mut self) -> bool {
        !std::mem::replace(&mut self.listed, true)
    }
}

impl Change {
    /// The state as it is stored.
    pub(crate) fn state(settled: Settled) -> EventDeliveryState {
        match settled {
            Settled::Failed => EventDeliveryState::Failed,
            Settled::Skipped => EventDeliveryState::Skipped,
            Settled::Expired => EventDeliveryState::Expired,
            Settled::Delivered => EventDeliveryState::Delivered,
        }
    }
}

impl State {
    /// The retry policy ran out with the action to pause: it holds at once, and the row follows.
    pub(super) fn pause_by_policy(&mut self, now: Micros) {
        let pause = Pause {
            since: now,
            until: None,
            by: "hub".to_owned(),
            reason: "All attempts of an event failed, and the retry policy says to pause."
                .to_owned(),
        };
        self.settings.pause = Some(pause.clone());
        self.settings.version += 1;
        self.unsaved.changes.push(Change::Pause(pause));
    }
}

impl Group {
    /// Whose rows are written, and under which epoch.
    pub(crate) fn whose(&self) -> positions::Whose<'_> {
        positions::Whose {
            tenant: &self.tenant,
            id: &self.id,
            epoch: self.epoch,
        }
    }

    /// What the next checkpoint stores.
    pub(crate) fn prepare(&self) -> Prepared {
        let mut state = self.lock();
        let (position, unsettled) = state.leasing.save_short();
        state.unsaved.listed = false;
        state.unsaved.prepared += 1;
        Prepared {
            generation: state.unsaved.prepared,
            saving: Saving {
                floor: position.floor,
                cursor: position.cursor,
                replay_until: position.replay_until,
                unsettled: leasing::pack(&unsettled),
            },
            changes: state.unsaved.changes.clone(),
            redelivered: state.leasing.unstored(),
        }
    }

    /// What was prepared is on disk.
    pub(crate) fn is_saved(self: &Arc<Self>, prepared: &Prepared) {
        let stored = prepared.changes.len();
        let mut state = self.lock();
        state.unsaved.changes.drain(..stored);
        if !prepared.redelivered.is_empty() {
            state.leasing.stored(&prepared.redelivered);
            self.changed(&mut state);
        }
        drop(state);
        self.saved
            .send_modify(|saved| saved.generation = prepared.generation);
    }

    /// What was prepared is not on disk: the next checkpoint has it again.
    pub(crate) fn is_not_saved(self: &Arc<Self>, checkpoints: &Checkpoints) {
        let mut state = self.lock();
        checkpoints.add(self, &mut state.unsaved);
    }

    /// Another process owns the subscription, or it was changed: all that is here is void.
    pub(crate) fn lose(self: &Arc<Self>) {
        self.end();
        self.saved.send_modify(|saved| saved.lost = true);
    }

    /// Waits until a generation is on disk. Errors: `STORE_BUSY` if it never will be, or not soon.
    pub(crate) async fn saved(&self, generation: u64) -> Result<()> {
        let mut saved = self.saved.subscribe();
        let done = |saved: &Saved| saved.lost || saved.generation >= generation;
        if !done(&saved.borrow()) {
            self.parts.checkpoints.hurry();
        }
        // The sender lives in `self`, so that the wait cannot fail.
        let lost = async { saved.wait_for(done).await.is_ok_and(|saved| saved.lost) };
        match tokio::time::timeout(SAVED_WITHIN, lost).await {
            Ok(true) => Err(Error::store_busy(
                "The subscription moved to another server",
                "moved",
            )),
            Ok(false) => Ok(()),
            // It may be all the same.
            Err(_) => Err(Error::store_busy(
                "What was acknowledged is not stored yet",
                "checkpoint_late",
            )),
        }
    }
}
