//! Retention: the oldest events of each tenant go by age and by size, behind the appends.

use std::time::Duration;

use hub_core::error::Result;
use hub_core::journal::Kept;
use hub_core::module::Core;

/// How often the logs are looked at.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);
/// Pause between two chunks, in which appends have the database for themselves.
const CHUNK_PAUSE: Duration = Duration::from_millis(20);

/// Looks at the log of every tenant once. Errors: `STORE_BUSY`.
pub(crate) async fn pass(core: &Core) -> Result<()> {
    let mut after = 0;
    loop {
        let tenants = core.journal.kept(after).await?;
        let Some(last) = tenants.last() else {
            return Ok(());
        };
        after = last.tenant.number();
        for kept in &tenants {
            // Another process may have removed what this one has in memory.
            core.journal.forget_removed(kept);
            if kept.is_due(core.clock.now(), core.limits.identities_window) {
                remove(core, kept).await?;
            }
            if core.draining.is_cancelled() {
                return Ok(());
            }
        }
    }
}

async fn remove(core: &Core, kept: &Kept) -> Result<()> {
    let mut events = 0;
    loop {
        let removed = core.journal.remove_old(kept, core.clock.now()).await?;
        events += removed.events;
        if !removed.more || core.draining.is_cancelled() {
            break;
        }
        tokio::time::sleep(CHUNK_PAUSE).await;
    }
    if events > 0 {
        let tenant = kept.tenant.id();
        tracing::info!(tenant, events, "events passed their retention");
        core.journal.forget_removed_listed(&kept.tenant).await?;
    }
    Ok(())
}
