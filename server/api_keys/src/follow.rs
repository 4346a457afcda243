//! What other processes change in keys: each follows the system log and forgets what changed.
//!
//! A hint wakes it up within milliseconds (PostgreSQL), the beat within a second. If neither comes,
//! nothing is believed for longer than `Limits::key_cache_ttl` all the same.

use std::sync::Arc;
use std::time::Duration;

use hub_core::error::Result;
use hub_core::journal::{Log, Page};
use hub_core::worker::Turn;

use crate::change::{self, CREATED, Change, Whose};
use crate::keys::Keys;

/// After so long without anything to do, the worker says that it lives.
const IDLE: Duration = Duration::from_secs(10);

/// Follows the system log until it is stopped.
pub(crate) async fn run(keys: Arc<Keys>, turn: Turn) -> Result<()> {
    let log = keys.system_log().await?;
    let mut head = log.watch();
    // What was missed while nobody followed is not known.
    let mut at = log.head().seq;
    keys.cache.forget_all(|_| true);
    keys.epoch.send_replace(at);
    loop {
        turn.passed_for(IDLE);
        tokio::select! {
            moved = head.changed() => if moved.is_err() { return Ok(()) },
            again = turn.pause(IDLE) => if !again { return Ok(()) },
        }
        at = catch_up(&keys, &log, at).await?;
    }
}

/// Takes up what the log has after `at`, and returns where it ends.
pub(crate) async fn catch_up(keys: &Keys, log: &Log, mut at: u64) -> Result<u64> {
    loop {
        match keys.core.journal.read_after(log, at).await? {
            Page::AtEnd => return Ok(at),
            Page::Gap { to, .. } => {
                keys.cache.forget_all(|_| true);
                keys.lookup.made();
                at = to;
            }
            Page::Segments(segments) => {
                for segment in segments {
                    for change in change::read(&segment, at)? {
                        apply(keys, &change);
                    }
                    at = segment.last().max(at);
                }
            }
        }
        keys.epoch.send_replace(at);
    }
}

fn apply(keys: &Keys, change: &Change) {
    match &change.whose {
        Whose::Key(_) if change.kind == CREATED => keys.lookup.made(),
        Whose::Key(key_id) => keys.cache.forget(key_id),
        Whose::All => keys.cache.forget_all(|record| {
            let tenant = record.caller.tenant.as_ref();
            change.tenant_id.is_empty()
                || tenant.is_none_or(|tenant| tenant.id() == change.tenant_id)
        }),
    }
}
