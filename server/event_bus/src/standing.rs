//! Where an event stands for a subscription. An event that goes its way leaves nothing behind:
//! where it stands follows from the position of the subscription, and is stored only where that
//! would say something else.
//!
//! The first of these that holds:
//! 1. Its owner says so, this process or another one that was asked: it is not settled, or was
//!    settled a moment ago, which is not stored yet.
//! 2. It was settled otherwise than by an ack: there is an exception.
//! 3. It is among the unsettled ones that were stored, and its owner does not say that it is not.
//! 4. It was not routed to the subscription.
//! 5. It is of the hub's own default subscription, which is settled at once.
//! 6. It is in a range that was never looked at: skipped by a seek, or expired.
//! 7. The subscription has passed it: it was acknowledged.
//! 8. The subscription has not reached it. What retention passes before is no longer in the log.

use std::collections::{BTreeSet, HashMap, HashSet};

use hub_core::clock::{Micros, timestamp};
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::module::Core;
use hub_proto::hub::event_bus::v1::{EventDelivery, EventDeliveryState, NotRoutedReason};

use crate::groups::Groups;
use crate::leasing::{self, Key, Phase, Saved, UnsettledState};
use crate::log_entry::{HUB, Named};
use crate::owners::{self, Asking, Owners, Said, Wanted};
use crate::routing::Outcome;
use crate::store::standings::{self as store, Row};

/// Those who work on subscriptions, who know more than what is stored.
pub(crate) trait AtWork: Owners {
    /// Where an unsettled event stands; none if nobody in this process has it.
    fn state_of(&self, subscription_id: &str, seq: u64) -> Option<UnsettledState>;
}

impl AtWork for Groups {
    fn state_of(&self, subscription_id: &str, seq: u64) -> Option<UnsettledState> {
        self.find(subscription_id)?.state_of(seq)
    }
}

/// Where an event stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) state: EventDeliveryState,
    /// Why it was not routed.
    pub(crate) reason: NotRoutedReason,
    /// Times it was leased. Of an event that was acknowledged only that it was is known: 1.
    pub(crate) attempts: u32,
    /// Error of the last attempt, or why it was skipped.
    pub(crate) error: String,
    /// When its retry is due.
    pub(crate) due: Option<Micros>,
    /// Last change of state; none where it is not stored.
    pub(crate) time: Option<Micros>,
    /// The event that it waits for, of the same key.
    pub(crate) behind: Option<u64>,
}

impl Standing {
    fn new(state: EventDeliveryState) -> Standing {
        Standing {
            state,
            reason: NotRoutedReason::Unspecified,
            attempts: 0,
            error: String::new(),
            due: None,
            time: None,
            behind: None,
        }
    }

    /// Whether the subscription has it still to do.
    pub(crate) fn is_unsettled(&self) -> bool {
        use EventDeliveryState::{InFlight, KeyBlocked, Queued, RetryWait};
        matches!(self.state, Queued | InFlight | RetryWait | KeyBlocked)
    }

    /// As the log shows it.
    pub(crate) fn delivery(self, event_id: &str, named: &Named) -> EventDelivery {
        EventDelivery {
            event_id: event_id.to_owned(),
            subscription_id: named.subscription_id.clone(),
            product: named.product.clone(),
            state: self.state.into(),
            attempts: self.attempts,
            last_error: self.error,
            next_attempt_time: self.due.map(timestamp),
            update_time: self.time.map(timestamp),
            not_routed_reason: self.reason.into(),
        }
    }
}

/// Where events of one tenant stand: read for many of them at once, all of one moment.
pub(crate) struct Standings<'a> {
    at_work: &'a dyn AtWork,
    subscriptions: HashMap<String, Known>,
    /// By event, the subscriptions of which it is stored what became of it.
    told: HashMap<u64, BTreeSet<String>>,
    /// Where events stand at subscriptions, as their owners said.
    heard: HashMap<String, HashMap<u64, Said>>,
}

/// What is stored about a subscription.
#[derive(Debug, Default)]
struct Known {
    /// Slug of the product that owns it; empty if its row is not there.
    product: String,
    is_default: bool,
    cursor: u64,
    unsettled: Vec<Saved>,
    /// Keys that failed events hold back; read only if an event may be blocked by one.
    held: HashMap<Key, u64>,
    exceptions: HashMap<u64, Standing>,
    ranges: Vec<(u64, u64, Standing)>,
}

impl<'a> Standings<'a> {
    /// Reads what is stored about events, for all subscriptions or for one.
    /// Errors: `STORE_BUSY`.
    pub(crate) async fn load(
        core: &Core,
        tenant: &TenantRef,
        at_work: &'a dyn AtWork,
        subscription_id: Option<&str>,
        seqs: &[u64],
    ) -> Result<Standings<'a>> {
        let mut standings = Standings {
            at_work,
            subscriptions: HashMap::new(),
            told: HashMap::new(),
            heard: HashMap::new(),
        };
        if seqs.is_empty() {
            return Ok(standings);
        }
        for (id, row) in store::of(&core.db, tenant, subscription_id, seqs).await? {
            let known = standings.subscriptions.entry(id).or_default();
            known.add(row)?;
        }
        standings.tell(seqs);
        for (id, known) in &mut standings.subscriptions {
            if known.may_be_held(seqs) {
                let failed = EventDeliveryState::Failed as i64;
                let held = store::held(&core.db, tenant, id, failed).await?;
                known.held = held.into_iter().map(|(key, seq)| (Key(key), seq)).collect();
            }
        }
        Ok(standings)
    }

    /// The same of this moment: asks the owners of the subscriptions in question first, and then
    /// reads what is stored. Of those that do not answer, what is stored is all that is known.
    /// Errors: `STORE_BUSY`.
    pub(crate) async fn now(
        core: &Core,
        asking: &'a Asking<'a>,
        at_work: &'a dyn AtWork,
        subscription_id: Option<&str>,
        events: &[(u64, &[Named])],
    ) -> Result<Standings<'a>> {
        let tenant = asking.caller.tenant()?;
        let seqs: Vec<u64> = events.iter().map(|(seq, _)| *seq).collect();
        let wanted = Wanted {
            live: false,
            seqs: &seqs,
        };
        let named = events.iter().flat_map(|(_, named)| *named);
        let named =
            named.filter(|named| subscription_id.is_none_or(|id| named.subscription_id == id));
        let mut asked: BTreeSet<&str> = named.map(|named| &*named.subscription_id).collect();
        asked.remove("");
        let ids: Vec<&str> = asked.iter().copied().collect();
        let mut said = at_work.live(asking, &ids, wanted).await?;
        let mut standings = Standings::load(core, tenant, at_work, subscription_id, &seqs).await?;
        let given = standings.told.values().flatten();
        let given: BTreeSet<String> = given
            .filter(|id| !asked.contains(id.as_str()))
            .cloned()
            .collect();
        if !given.is_empty() {
            let ids: Vec<&str> = given.iter().map(String::as_str).collect();
            said.extend(at_work.live(asking, &ids, wanted).await?);
            standings = Standings::load(core, tenant, at_work, subscription_id, &seqs).await?;
        }
        standings.hear(said);
        Ok(standings)
    }

    /// What is known of an event that retention removed: asks the owners of all subscriptions.
    /// Errors: `STORE_BUSY`.
    pub(crate) async fn removed(
        core: &Core,
        asking: &'a Asking<'a>,
        at_work: &'a dyn AtWork,
        seq: u64,
    ) -> Result<Standings<'a>> {
        let (tenant, seqs) = (asking.caller.tenant()?, [seq]);
        let found = Standings::load(core, tenant, at_work, None, &seqs).await?;
        let ids: Vec<&str> = found.subscriptions.keys().map(String::as_str).collect();
        let wanted = Wanted {
            live: false,
            seqs: &seqs,
        };
        let said = at_work.live(asking, &ids, wanted).await?;
        let mut standings = Standings::load(core, tenant, at_work, None, &seqs).await?;
        // Of those of whom nobody knows, nothing is said.
        let silent = said
            .iter()
            .filter(|(_, known)| matches!(known, owners::Known::Silent));
        for (id, _) in silent {
            standings.subscriptions.remove(id);
        }
        standings.hear(said);
        Ok(standings)
    }

    fn tell(&mut self, seqs: &[u64]) {
        let asked: HashSet<u64> = seqs.iter().copied().collect();
        for (id, known) in &self.subscriptions {
            let unsettled = known.unsettled.iter().map(|saved| &saved.seq);
            let told = known.exceptions.keys().chain(unsettled);
            for seq in told.filter(|seq| asked.contains(seq)) {
                self.told.entry(*seq).or_default().insert(id.clone());
            }
        }
    }

    /// The subscriptions that an event was given to later, by a call, though nothing named them for
    /// it when it was recorded.
    pub(crate) fn given(&self, seq: u64, named: &[Named]) -> Vec<Named> {
        let told = self.told.get(&seq).into_iter().flatten();
        let is_named = |id: &String| named.iter().any(|named| named.subscription_id == *id);
        let given = told.filter(|id| !is_named(id)).filter_map(|id| {
            let known = self.subscriptions.get(id)?;
            (!known.product.is_empty()).then(|| Named {
                subscription_id: id.clone(),
                product: known.product.clone(),
                is_default: known.is_default,
                outcome: Outcome::NotRouted(NotRoutedReason::Unspecified),
            })
        });
        given.collect()
    }

    /// Whether an event counts as delivered if nothing is stored of it.
    pub(crate) fn derives_delivered(&self, named: &Named, seq: u64) -> bool {
        let known = self.subscriptions.get(&named.subscription_id);
        named.outcome == Outcome::Flows
            && known.is_some_and(|known| seq <= known.cursor && known.range(seq).is_none())
    }

    /// Where one of the events stands at a destination that is named for it.
    pub(crate) fn of(&self, named: &Named, seq: u64, recorded: Micros) -> Standing {
        let heard = self.heard.get(&named.subscription_id);
        let heard = heard.and_then(|heard| heard.get(&seq));
        if let Some(told) = heard.and_then(|heard| told(heard, recorded)) {
            return told;
        }
        if heard.is_none()
            && let Some(state) = self.at_work.state_of(&named.subscription_id, seq)
        {
            return of_group(state, recorded);
        }
        let known = self.subscriptions.get(&named.subscription_id);
        let stored = known.and_then(|known| match heard {
            Some(_) => known.exceptions.get(&seq).cloned(),
            None => known.stored(seq, recorded),
        });
        if let Some(standing) = stored {
            return standing;
        }
        let plain = |state| Standing {
            time: Some(recorded),
            ..Standing::new(state)
        };
        if let Outcome::NotRouted(reason) = named.outcome {
            return Standing {
                reason,
                ..plain(EventDeliveryState::NotRouted)
            };
        }
        if named.product == HUB && named.is_default {
            return plain(EventDeliveryState::Delivered);
        }
        if let Some(range) = known.and_then(|known| known.range(seq)) {
            return range;
        }
        if heard.is_some() || known.is_some_and(|known| seq <= known.cursor) {
            return Standing {
                attempts: 1,
                ..Standing::new(EventDeliveryState::Delivered)
            };
        }
        plain(EventDeliveryState::Queued)
    }

    /// The subscriptions that did not come to an event before retention removed it, nor settled it
    /// otherwise. Whether it was routed to them is not known any more.
    pub(crate) fn expired_for(&self, seq: u64) -> Vec<&str> {
        let known = self.subscriptions.iter();
        let expired = known.filter(|(id, known)| self.is_expired_for(id, known, seq));
        let mut ids: Vec<&str> = expired.map(|(id, _)| id.as_str()).collect();
        ids.sort_unstable();
        ids
    }

    fn is_expired_for(&self, id: &str, known: &Known, seq: u64) -> bool {
        let expired = EventDeliveryState::Expired;
        let is_passed = match self.heard.get(id).and_then(|heard| heard.get(&seq)) {
            Some(Said::Settled { state, .. }) => return *state == expired,
            // Who has it may still settle it.
            Some(Said::Unsettled(_)) => return false,
            Some(Said::Passed) => true,
            None => false,
        };
        if self.at_work.state_of(id, seq).is_some() {
            return false;
        }
        let exception = known.exceptions.get(&seq).cloned();
        match exception.or_else(|| known.range(seq)) {
            Some(standing) => standing.state == expired,
            // Nobody was at work on it since: that is stored only by the next one who is.
            None => !is_passed && (seq > known.cursor || known.saved(seq).is_some()),
        }
    }

    /// What the owners of subscriptions said, who may be other processes, before what is stored was
    /// read.
    pub(crate) fn hear(&mut self, said: HashMap<String, owners::Known>) {
        let told = said.into_iter().filter_map(|(id, known)| match known {
            owners::Known::Told { said, .. } => Some((id, said)),
            owners::Known::Silent => None,
        });
        self.heard.extend(told);
    }

    /// Up to where a subscription has looked at events; none if it never did.
    pub(crate) fn cursor(&self, subscription_id: &str) -> Option<u64> {
        let known = self.subscriptions.get(subscription_id)?;
        Some(known.cursor)
    }
}

impl Known {
    fn add(&mut self, row: Row) -> Result<()> {
        match row {
            Row::Position {
                product,
                is_default,
                cursor,
                unsettled,
            } => {
                self.product = product;
                self.is_default = is_default;
                self.cursor = cursor;
                self.unsettled = leasing::unpack(&unsettled).map_err(Error::internal)?;
            }
            Row::Exception {
                seq,
                state,
                attempts,
                error,
                time,
            } => {
                let standing = Standing {
                    attempts,
                    error,
                    time: Some(time),
                    ..Standing::new(state_of(state)?)
                };
                self.exceptions.insert(seq, standing);
            }
            Row::Range {
                from,
                to,
                state,
                time,
            } => {
                let standing = Standing {
                    time: Some(time),
                    ..Standing::new(state_of(state)?)
                };
                self.ranges.push((from, to, standing));
            }
        }
        Ok(())
    }

    fn saved(&self, seq: u64) -> Option<&Saved> {
        let at = self.unsettled.binary_search_by_key(&seq, |saved| saved.seq);
        at.ok().map(|at| &self.unsettled[at])
    }

    /// Whether it takes the held keys to say where one of these events stands.
    fn may_be_held(&self, seqs: &[u64]) -> bool {
        let mut saved = seqs.iter().filter_map(|seq| self.saved(*seq));
        saved.any(|saved| saved.key.is_some() && !saved.in_flight && saved.due == 0)
    }

    /// By an exception, or as one of the unsettled events.
    fn stored(&self, seq: u64, recorded: Micros) -> Option<Standing> {
        if let Some(exception) = self.exceptions.get(&seq) {
            return Some(exception.clone());
        }
        let saved = self.saved(seq)?;
        let phase = match self.behind(saved) {
            _ if saved.in_flight => Phase::InFlight { until: 0 },
            _ if saved.due != 0 => Phase::RetryWait { due: saved.due },
            Some(behind) => Phase::KeyBlocked { behind },
            None => Phase::Queued,
        };
        let state = UnsettledState {
            phase,
            attempts: saved.attempts + u32::from(saved.in_flight),
            error: Some(saved.error.clone()),
            redelivery: saved.redelivery,
        };
        Some(of_group(state, recorded))
    }

    /// The event of the same key that has to be settled before.
    fn behind(&self, saved: &Saved) -> Option<u64> {
        let key = saved.key?;
        let earlier = self.unsettled.iter().take_while(|one| one.seq < saved.seq);
        let mut earlier = earlier.filter(|one| one.key == Some(key));
        let head = earlier.next().map(|one| one.seq);
        let holder = self.held.get(&key).copied().filter(|seq| *seq < saved.seq);
        head.into_iter().chain(holder).min()
    }

    fn range(&self, seq: u64) -> Option<Standing> {
        let mut ranges = self.ranges.iter();
        let found = ranges.find(|(from, to, _)| (*from..=*to).contains(&seq));
        found.map(|(_, _, standing)| standing.clone())
    }
}

/// Where an event stands as an owner said; `None` if what is stored decides.
fn told(said: &Said, recorded: Micros) -> Option<Standing> {
    match said {
        Said::Unsettled(state) => Some(of_group(state.clone(), recorded)),
        Said::Settled {
            state,
            attempts,
            error,
            time,
        } => Some(Standing {
            attempts: *attempts,
            error: error.clone(),
            time: *time,
            ..Standing::new(*state)
        }),
        Said::Passed => None,
    }
}

/// Where an unsettled event stands. When it came there is stored only of one that nobody touched.
fn of_group(state: UnsettledState, recorded: Micros) -> Standing {
    let plain = match state.phase {
        Phase::Queued => Standing::new(EventDeliveryState::Queued),
        Phase::InFlight { .. } => Standing::new(EventDeliveryState::InFlight),
        Phase::KeyBlocked { behind } => Standing {
            behind: Some(behind),
            ..Standing::new(EventDeliveryState::KeyBlocked)
        },
        Phase::RetryWait { due } => Standing {
            due: Some(due),
            ..Standing::new(EventDeliveryState::RetryWait)
        },
    };
    let untouched = state.phase == Phase::Queued && state.attempts == 0 && !state.redelivery;
    Standing {
        attempts: state.attempts,
        error: state
            .error
            .as_deref()
            .map(str::to_owned)
            .unwrap_or_default(),
        time: untouched.then_some(recorded),
        ..plain
    }
}

fn state_of(number: i64) -> Result<EventDeliveryState> {
    let number = i32::try_from(number).map_err(Error::internal)?;
    EventDeliveryState::try_from(number).map_err(Error::internal)
}

#[cfg(test)]
mod tests;
