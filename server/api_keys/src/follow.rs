//! What other processes change in keys: each follows the system log and forgets what changed.
//!
//! A hint wakes it up within milliseconds (PostgreSQL), the beat within a second. Until [`IN_USE`]
//! after a key was asked for, the database is asked every [`RENEWED_EACH`] for the end of the log:
//! what did not change up to there is as it was looked up, so that keys in use stay in memory. If
//! it cannot be asked, nothing is believed for longer than `Limits::key_cache_ttl`.

use std::sync::Arc;
use std::time::Duration;

use hub_core::clock::micros;
use hub_core::error::Result;
use hub_core::journal::{Log, Page, TenantRef};
use hub_core::processes::LIVE_FOR;
use hub_core::worker::Turn;
use tokio::time::MissedTickBehavior;

use crate::change::{self, CREATED, Change, TENANT_LIMITED, Whose};
use crate::keys::Keys;
use crate::store::followers;

/// After so long without anything to do, the worker says that it lives.
const IDLE: Duration = Duration::from_secs(10);

/// Pause between two questions for the end of the log; with the time that one takes, less than
/// `Limits::key_cache_ttl`.
const RENEWED_EACH: Duration = Duration::from_secs(2);
/// How long an answer is waited for.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// After so long without a call an idle process asks no more.
const IN_USE: Duration = Duration::from_secs(60);

/// How long a revocation waits for the other processes.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);
/// Pause between two looks at how far they are.
const ASKED_EACH: Duration = Duration::from_millis(20);

/// Follows the system log until it is stopped.
pub(crate) async fn run(keys: Arc<Keys>, turn: Turn) -> Result<()> {
    let log = keys.system_log().await?;
    let mut head = log.watch();
    // What was missed while nobody followed is not known.
    let mut at = log.head().seq;
    keys.cache.forget_all(|_| true);
    keys.tenant_limits.forget();
    keys.core.journal.doubt_epochs();
    keys.epoch.send_replace(at);
    if keys.core.db.is_postgres() {
        followers::forget(&keys.core.db).await?;
    }
    let mut term = keys.core.processes.term();
    confirm(&keys, at).await?;
    keys.cache.keep();
    // In time of its own, as the beat: a clock that stands still must not hide what others do.
    let mut renewals = tokio::time::interval(RENEWED_EACH);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut used_at = None;
    loop {
        turn.passed_for(IDLE);
        // Before anything is believed again: who was cut off for long was forgotten.
        let now = keys.core.processes.term();
        if now.is_some() && now != term {
            confirm(&keys, at).await?;
            term = now;
        }
        let before = at;
        at = tokio::select! {
            moved = head.changed() => match moved {
                Ok(()) => catch_up(&keys, &log, at).await?,
                Err(_) => return Ok(()),
            },
            tick = renewals.tick() => {
                if keys.cache.was_used() {
                    used_at = Some(tick);
                }
                match used_at.is_some_and(|used| tick.saturating_duration_since(used) < IN_USE) {
                    true => renew(&keys, &log, at).await?,
                    false => at,
                }
            },
            () = turn.stopped().cancelled() => return Ok(()),
        };
        if at > before {
            confirm(&keys, at).await?;
        }
    }
}

/// Takes up what the database has after `at`, keeps what did not change for longer, and returns
/// where the log ends. If the database does not answer, what is kept grows old.
pub(crate) async fn renew(keys: &Keys, log: &Arc<Log>, at: u64) -> Result<u64> {
    let asked_at = keys.core.clock.now();
    // While it waits, it does not hear of what other processes change.
    let refreshed = keys.core.journal.refresh_whole(log);
    match tokio::time::timeout(ANSWERED_WITHIN, refreshed).await {
        Ok(Ok(Some(_))) => {
            let at = catch_up(keys, log, at).await?;
            keys.cache.renew(asked_at);
            return Ok(at);
        }
        Ok(Ok(None)) => {
            if keys.cache.end_renewals() {
                tracing::error!("the database was put back: start this process again");
            }
            keys.cache.forget_all(|_| true);
            keys.tenant_limits.forget();
        }
        Ok(Err(error)) => tracing::debug!("keys in memory could not be renewed: {error}"),
        Err(_) => tracing::debug!("keys in memory could not be renewed: there is no answer"),
    }
    Ok(at)
}

/// Tells the other processes, if there may be any, how far this one is.
async fn confirm(keys: &Keys, at: u64) -> Result<()> {
    let core = &keys.core;
    match core.db.is_postgres() {
        true => followers::put(&core.db, core.processes.id(), at).await,
        false => Ok(()),
    }
}

impl Keys {
    /// Waits until all other processes have taken up a change, and returns how many have not in
    /// time.
    pub(crate) async fn confirmed(&self, epoch: u64) -> u32 {
        let core = &self.core;
        if !core.db.is_postgres() {
            return 0;
        }
        // After that even one that cannot reach the database believes no key.
        let lately = micros(LIVE_FOR + core.limits.key_cache_ttl);
        // In time of its own: a clock that stands still must not keep the caller waiting.
        let began = tokio::time::Instant::now();
        loop {
            let behind = followers::behind(&core.db, core.processes.id(), epoch, lately).await;
            match behind {
                Ok(0) => return 0,
                // What cannot be asked is not confirmed.
                Err(_) => return u32::try_from(self.others()).unwrap_or(u32::MAX),
                Ok(behind) if began.elapsed() >= CONFIRMED_WITHIN => return behind,
                Ok(_) => tokio::time::sleep(ASKED_EACH).await,
            }
        }
    }

    fn others(&self) -> usize {
        self.core.processes.watch().borrow().len()
    }
}

/// Takes up what the log has after `at`, and returns where it ends.
pub(crate) async fn catch_up(keys: &Keys, log: &Log, mut at: u64) -> Result<u64> {
    loop {
        match keys.core.journal.read_after(log, at).await? {
            Page::AtEnd => return Ok(at),
            Page::Gap { to, .. } => {
                keys.cache.forget_all(|_| true);
                keys.tenant_limits.forget();
                keys.core.journal.doubt_epochs();
                keys.lookup.made();
                at = to;
            }
            Page::Segments(segments) => {
                for segment in segments {
                    for change in change::read(&segment, at)? {
                        apply(keys, &change).await?;
                    }
                    at = segment.last().max(at);
                }
            }
        }
        keys.epoch.send_replace(at);
    }
}

/// Takes up a change, before anybody is told that decisions have it.
async fn apply(keys: &Keys, change: &Change) -> Result<()> {
    if let Some(epoch) = change.routing_epoch {
        let core = &keys.core;
        let tenant = match change.tenant_id.as_str() {
            "" => TenantRef::system(),
            tenant_id => core.tenancy.find(tenant_id).await?,
        };
        core.journal.observe_epoch(&tenant, epoch);
    }
    if change.kind == TENANT_LIMITED {
        keys.tenant_limits.forget();
    }
    match &change.whose {
        Whose::Key(_) if change.kind == CREATED => keys.lookup.made(),
        Whose::Key(key_id) => keys.cache.forget(key_id),
        Whose::All => keys.cache.forget_all(|record| {
            let tenant = record.caller.tenant.as_ref();
            change.tenant_id.is_empty()
                || tenant.is_none_or(|tenant| tenant.id() == change.tenant_id)
        }),
    }
    Ok(())
}
