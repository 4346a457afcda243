//! Statements about how far processes have taken up the changes of keys.

use hub_core::error::Result;
use hub_core::storage::{Db, Sql};

const PUT: Sql = Sql::same(
    "insert into key_followers (process_id, epoch) values ($1, $2)
     on conflict (process_id) do update set epoch = excluded.epoch",
);
const FORGET: Sql = Sql::same(
    "delete from key_followers where process_id not in (select process_id from live_processes)",
);
// A process that does not follow yet keeps no key.
const BEHIND: Sql = Sql::same(
    "select count(*) from key_followers f join live_processes p on p.process_id = f.process_id
     where f.process_id <> $1 and f.epoch < $2",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[PUT, FORGET, BEHIND];

/// A process has taken up all changes up to an epoch.
pub(crate) async fn put(db: &Db, process_id: &str, epoch: u64) -> Result<()> {
    let mut tx = db.begin().await?;
    let query = tx.query(PUT).bind(process_id.to_owned());
    query.bind(epoch.cast_signed()).execute().await?;
    tx.commit().await?;
    Ok(())
}

/// Removes what is known of processes that live no more.
pub(crate) async fn forget(db: &Db) -> Result<()> {
    let mut tx = db.begin().await?;
    tx.query(FORGET).execute().await?;
    tx.commit().await?;
    Ok(())
}

/// How many other live processes have not taken up the change of an epoch.
pub(crate) async fn behind(db: &Db, process_id: &str, epoch: u64) -> Result<u32> {
    let query = db.query(BEHIND).bind(process_id.to_owned());
    let (count,): (i64,) = query.bind(epoch.cast_signed()).one().await?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}
