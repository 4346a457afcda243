//! How subscriptions are doing: what is stored of them, what their owner knows beyond that, and
//! what of the log is before them.

use std::sync::Arc;

use hub_core::clock::{Micros, timestamp};
use hub_core::error::{Error, Result};
use hub_core::id;
use hub_core::journal::{Log, TenantRef};
use hub_proto::hub::event_bus::v1::{BlockedKey, SubscriptionStatus};

use crate::event;
use crate::log_entry::HUB;
use crate::matching::{Budget, First, Passed, Probes, Target, Walk};
use crate::owners::{Asking, Blocked, Known, Live, Wanted};
use crate::routing::Configuration;
use crate::store::progress::{self, Failed, Held};
use crate::subscriptions::{Settings, Stored, Subscriptions};

mod state;

use state::Facts;
pub(crate) use state::{RISK_PART, SILENT};

/// A backlog is counted up to this.
const BACKLOG_MAX: u64 = 10_000;
/// Events that one call examines to count backlogs; where that is not enough they are lower bounds.
const EXAMINED_MAX: usize = 50_000;
/// Keys that a status names.
const BLOCKED_KEYS_MAX: usize = 20;
/// Events that one call looks up, for the names of blocked keys.
const LOOKED_UP_MAX: usize = 200;

/// Finds out how subscriptions of one tenant are doing, for one call.
pub(crate) struct Statuses<'a> {
    of: &'a Subscriptions,
    log: Arc<Log>,
    head: u64,
    present: Arc<Configuration>,
    retention: Micros,
    budget: Budget,
    lookups_left: usize,
}

/// What is before a subscription that it did not look at.
#[derive(Debug, Clone, Copy, Default)]
struct Ahead {
    /// Events of it that were found.
    count: u64,
    /// When the oldest of them was recorded; where that is not known, not before this.
    oldest: Option<Micros>,
    rest: Rest,
}

/// What is before a subscription beside that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Rest {
    /// Nothing.
    #[default]
    Nothing,
    /// The oldest one, and maybe more that were not counted.
    More,
    /// Whether it has events from this one on that were not counted is not known.
    Unknown(u64),
}

impl<'a> Statuses<'a> {
    /// At the present end of the tenant's log. Errors: `STORE_BUSY`.
    pub(crate) async fn new(of: &'a Subscriptions, tenant: &TenantRef) -> Result<Statuses<'a>> {
        let journal = &of.core.journal;
        let log = journal.log(tenant).await?;
        let head = journal.refresh(&log).await?.seq;
        Ok(Statuses {
            of,
            log,
            head,
            present: of.configurations.current(tenant).await?,
            retention: journal.retention_age(tenant).await?,
            budget: Budget {
                events: EXAMINED_MAX,
                bytes: of.core.limits.listing_bytes_max,
            },
            lookups_left: LOOKED_UP_MAX,
        })
    }

    /// How these subscriptions are doing, in their order. Errors: `STORE_BUSY`.
    pub(crate) async fn of_all(
        &mut self,
        asking: &Asking<'_>,
        stored: &[Stored],
    ) -> Result<Vec<SubscriptionStatus>> {
        let (db, tenant) = (&self.of.core.db, self.log.tenant().clone());
        let ids: Vec<&str> = stored.iter().map(|one| one.id.as_str()).collect();
        let wanted = Wanted {
            live: true,
            seqs: &[],
        };
        let mut live = self.of.owners.live(asking, &ids, wanted).await?;
        // Only now: what was let go before somebody was asked is stored.
        let positions = progress::positions(db, &tenant, &ids).await?;
        let held = progress::held(db, &tenant, &ids).await?;
        let failed = progress::failed(db, &tenant, &ids, u64::MAX).await?;
        let mut known = Vec::with_capacity(stored.len());
        for one in stored {
            let held = held.get(&one.id).map_or(&[][..], Vec::as_slice);
            let live = match live.remove(&one.id) {
                Some(Known::Told { live, .. }) => *live,
                untold => {
                    let position = positions.get(&one.id).cloned().unwrap_or_default();
                    Live {
                        is_silent: untold.is_some(),
                        ..Live::stored(&Settings::of(one), &position, held)?
                    }
                }
            };
            known.push(self.settled_by_hub(one, live));
        }
        let mut wanted = Vec::with_capacity(stored.len());
        for (one, live) in stored.iter().zip(&known) {
            wanted.push((Target::of(&self.present, one), live.cursor));
        }
        let ahead = self.ahead(&mut wanted).await?;
        let mut statuses = Vec::with_capacity(stored.len());
        for ((one, live), ahead) in stored.iter().zip(&known).zip(ahead) {
            let held = held.get(&one.id).map_or(&[][..], Vec::as_slice);
            let failed = failed.get(&one.id).copied().unwrap_or_default();
            statuses.push(self.status(one, live, ahead, failed, held).await?);
        }
        Ok(statuses)
    }

    /// How a subscription would be doing at a place, without anything unsettled.
    pub(crate) async fn of_place(
        &mut self,
        stored: &Stored,
        target: Target,
        seq: u64,
        failed: Failed,
    ) -> Result<SubscriptionStatus> {
        let live = Live {
            floor: seq,
            cursor: seq,
            ..Live::default()
        };
        let ahead = self.ahead(&mut [(target, seq)]).await?;
        let ahead = ahead.first().copied().unwrap_or_default();
        self.status(stored, &live, ahead, failed, &[]).await
    }

    /// What goes to the hub itself is settled at once.
    fn settled_by_hub(&self, stored: &Stored, live: Live) -> Live {
        if !(stored.is_default && stored.product == HUB) {
            return live;
        }
        Live {
            floor: self.head,
            cursor: self.head,
            ..Live::default()
        }
    }

    /// What is before each of the subscriptions: one walk back from the end of the log for all.
    async fn ahead(&mut self, wanted: &mut [(Target, u64)]) -> Result<Vec<Ahead>> {
        let mut ahead = vec![Ahead::default(); wanted.len()];
        let lowest = wanted.iter().map(|(_, cursor)| *cursor).min();
        let Some(lowest) = lowest.filter(|lowest| *lowest < self.head) else {
            return Ok(ahead);
        };
        let (core, configurations) = (&self.of.core, &self.of.configurations);
        let mut walk = Walk::new(core, configurations, &self.log, self.budget);
        let each = |passed: Passed<'_>| {
            let mut more = false;
            for ((target, cursor), ahead) in wanted.iter_mut().zip(&mut ahead) {
                if passed.event.seq <= *cursor || ahead.count >= BACKLOG_MAX {
                    continue;
                }
                more = true;
                if target.has(passed.configuration, passed.event) {
                    ahead.count += 1;
                    ahead.oldest = Some(passed.time);
                }
            }
            more
        };
        let reached = walk.back(lowest, self.head, each).await?;
        self.budget = walk.left();
        self.oldest_of(walk, wanted, &mut ahead, reached).await?;
        Ok(ahead)
    }

    /// Not all events were examined: the oldest one may be before those that were, which are those
    /// behind `reached`.
    async fn oldest_of(
        &self,
        walk: Walk<'_>,
        wanted: &mut [(Target, u64)],
        ahead: &mut [Ahead],
        reached: u64,
    ) -> Result<()> {
        let mut probes = Probes::new(walk);
        for ((target, cursor), ahead) in wanted.iter_mut().zip(ahead) {
            let to = match ahead.count >= BACKLOG_MAX {
                true => self.head,
                false => reached,
            };
            if *cursor >= to {
                continue;
            }
            match probes.first(target, *cursor, to).await? {
                First::Nothing => {}
                First::At(oldest) => {
                    ahead.oldest = Some(oldest);
                    ahead.count = ahead.count.max(1);
                    ahead.rest = Rest::More;
                }
                First::Unknown(after) => {
                    let journal = &self.of.core.journal;
                    let oldest = journal.record_time(self.log.tenant(), after + 1).await?;
                    ahead.oldest = oldest.or(ahead.oldest);
                    ahead.rest = Rest::Unknown(after + 1);
                }
            }
        }
        Ok(())
    }

    async fn status(
        &mut self,
        stored: &Stored,
        live: &Live,
        ahead: Ahead,
        failed: Failed,
        held: &[Held],
    ) -> Result<SubscriptionStatus> {
        // Nobody is told that nothing is left where that is not known.
        let guessed = u64::from(ahead.count == 0 && ahead.rest != Rest::Nothing);
        let backlog = live.unsettled + ahead.count + guessed;
        let oldest = self.oldest(live, ahead).await?;
        let deadline = oldest.map(|oldest| oldest.saturating_add(self.retention));
        let blocked_keys = self.blocked_keys(&live.blocked, held).await?;
        let held_back: u64 = live.blocked.iter().map(|blocked| blocked.waiting).sum();
        let under_way = u64::from(live.in_flight) + u64::from(live.retrying) + held_back;
        let facts = Facts {
            now: self.of.core.clock.now(),
            stored,
            entitled: self.present.is_active(&stored.product),
            dormant: stored.is_default && stored.used_time.is_none() && stored.product != HUB,
            deadline,
            retention: self.retention,
            live,
            backlog,
            free: backlog.saturating_sub(under_way),
            guessed,
            rest: ahead.rest,
            blocking: blocked_keys.first(),
        };
        let (state, reason) = facts.state();
        let last_error = match live.last_error.is_empty() && failed.count > 0 {
            true => self.newest_error(stored, failed).await?,
            false => live.last_error.clone(),
        };
        Ok(SubscriptionStatus {
            state: state.into(),
            reason,
            settled_sequence: live.floor,
            head_sequence: self.head,
            backlog,
            in_flight: live.in_flight,
            retrying: live.retrying,
            failed: failed.count,
            oldest_unsettled_time: oldest.map(timestamp),
            retention_deadline: deadline.map(timestamp),
            members: live.members.clone(),
            blocked_keys,
            last_error,
        })
    }

    async fn newest_error(&self, stored: &Stored, failed: Failed) -> Result<String> {
        let (db, tenant) = (&self.of.core.db, self.log.tenant());
        let error = progress::error(db, tenant, &stored.id, failed.newest).await?;
        Ok(error.unwrap_or_default())
    }

    /// When the oldest unsettled event was recorded.
    async fn oldest(&self, live: &Live, ahead: Ahead) -> Result<Option<Micros>> {
        let Some(seq) = live.oldest_unsettled else {
            return Ok(ahead.oldest);
        };
        let tenant = self.log.tenant();
        let time = self.of.core.journal.record_time(tenant, seq).await?;
        Ok(time.or(ahead.oldest))
    }

    async fn blocked_keys(
        &mut self,
        blocked: &[Blocked],
        held: &[Held],
    ) -> Result<Vec<BlockedKey>> {
        let tenant = self.log.tenant();
        let mut keys = Vec::new();
        for blocked in blocked.iter().take(BLOCKED_KEYS_MAX) {
            if self.lookups_left == 0 {
                break;
            }
            self.lookups_left -= 1;
            let segment = self
                .of
                .core
                .journal
                .segment_at(&self.log, blocked.seq)
                .await?;
            let stored = match &segment {
                Some(segment) => segment.event_at(blocked.seq).map_err(Error::internal)?,
                None => None,
            };
            let key = stored.and_then(|stored| event::ordering_key(&stored.event()));
            let failed = held.iter().find(|held| held.seq == blocked.seq);
            keys.push(BlockedKey {
                key: key.unwrap_or_default(),
                event_id: id::event(tenant.key(blocked.seq)),
                attempts: failed.map_or(blocked.attempts, |failed| failed.attempts),
                waiting: blocked.waiting,
                next_attempt_time: blocked.due.map(timestamp),
            });
        }
        Ok(keys)
    }
}
