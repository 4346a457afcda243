//! Statements about how far processes have taken up the changes of keys.

use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::storage::{Db, Sql};

const PUT: Sql = Sql::same(
    "insert into key_followers (process_id, epoch) values ($1, $2)
     on conflict (process_id) do update set epoch = excluded.epoch",
);
const FORGET: Sql = Sql::same(
    "delete from key_followers where process_id not in (select process_id from processes)",
);
// A process that does not follow yet keeps no key. One that is not believed to live may only be cut
// off, and goes on with what it has in memory.
const BEHIND: Sql = Sql::each(
    "select count(*) from key_followers f join processes p on p.process_id = f.process_id
     where f.process_id <> $1 and f.epoch < $2 and p.beat_time > -$3",
    "select count(*) from key_followers f join processes p on p.process_id = f.process_id
     where f.process_id <> $1 and f.epoch < $2 and p.beat_time
        > cast(extract(epoch from statement_timestamp()) * 1000000 as bigint) - $3",
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

/// Removes what is known of processes that are forgotten.
pub(crate) async fn forget(db: &Db) -> Result<()> {
    let mut tx = db.begin().await?;
    tx.query(FORGET).execute().await?;
    tx.commit().await?;
    Ok(())
}

/// How many other processes have not taken up the change of an epoch, of those that said within
/// `lately` that they live.
pub(crate) async fn behind(db: &Db, process_id: &str, epoch: u64, lately: Micros) -> Result<u32> {
    let query = db.query(BEHIND).bind(process_id.to_owned());
    let query = query.bind(epoch.cast_signed()).bind(lately);
    let (count,): (i64,) = query.one().await?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}
