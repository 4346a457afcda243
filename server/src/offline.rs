//! What is done to a database without serving.

use hub_core::clock::Clock;

use crate::config::Config;
use crate::modules;

pub use crate::modules::Replaced;

/// Makes a new operator key; with `revoke` those that the hub made before end.
///
/// On SQLite no hub may be running; on PostgreSQL the others learn of it within the time for
/// which they believe keys.
pub async fn replace_operator_key(config: &Config, revoke: bool) -> Result<Replaced, String> {
    let core = crate::open(config, Clock::system(), "", None).await?;
    let keys = modules::keys(&core)?;
    let replaced = keys.keys.replace_operator(revoke).await;
    core.journal.close().await;
    core.processes.leave().await;
    core.db.close().await;
    replaced.map_err(|error| format!("cannot make an operator key: {error}"))
}
