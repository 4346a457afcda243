//! Removes what is kept no longer: counts of use, refusals, and what the processes counted.
//!
//! A worker of its own, so that the counts are written on time however much there is to remove. Its
//! transactions are short, because on SQLite each holds the only writer, and it says after each
//! that it works: there may be many after a time in which nothing could be removed.

use std::sync::Arc;
use std::time::Duration;

use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::storage::Db;
use hub_core::worker::Turn;

use crate::denials;
use crate::keys::Keys;
use crate::store::{self, standings};
use crate::usage::{DAY, SPANS};

/// Pause between two sweeps.
const INTERVAL: Duration = Duration::from_secs(600);
/// Subjects of limits without requests for so long are removed: longer than a minute and a portion.
const STANDINGS_KEPT: Micros = 120_000_000;

/// Sweeps, until it is stopped.
pub(crate) async fn run(keys: Arc<Keys>, turn: Turn) -> Result<()> {
    let goes_on = || {
        turn.passed();
        !turn.stopped().is_cancelled()
    };
    loop {
        sweep(&keys.core.db, keys.core.clock.now(), goes_on).await?;
        turn.passed_for(INTERVAL);
        if !turn.pause(INTERVAL).await {
            return Ok(());
        }
    }
}

/// Removes all that is too old, as long as `goes_on` says so after each transaction.
pub(crate) async fn sweep(db: &Db, now: Micros, goes_on: impl Fn() -> bool) -> Result<()> {
    // Of writers that are gone.
    store::usage::sweep_batches(db, now - DAY).await?;
    for (span, kept) in SPANS {
        while store::usage::sweep(db, span, now - kept).await? && goes_on() {}
    }
    while store::denials::sweep(db, now - denials::KEPT).await? && goes_on() {}
    // On SQLite this process counts alone, and in memory.
    if db.is_postgres() {
        while standings::sweep(db, now - STANDINGS_KEPT).await? && goes_on() {}
    }
    Ok(())
}
