//! How far subscriptions are, for who looks at them. Sets of subscriptions are bound as JSON.

use std::collections::HashMap;

use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Query, Sql};
use hub_proto::hub::event_bus::v1::EventDeliveryState;

use super::seeks::Stored;

/// Failed events that hold back their keys, of all subscriptions that are asked for at once.
const HELD_MAX: i64 = 10_000;

/// A statement about the subscriptions in `$1`.
macro_rules! of_each {
    ($before:literal, $after:literal) => {
        Sql::each(
            concat!($before, " in (select value from json_each($1)) ", $after),
            concat!(
                $before,
                " in (select json_array_elements_text($1::text::json)) ",
                $after
            ),
        )
    };
}

const POSITIONS: Sql = of_each!(
    "select subscription_id, epoch, floor, cursor, replay_until, unsettled
     from subscription_positions where subscription_id",
    "and tenant_no = $2"
);
const OWNERS: Sql = of_each!(
    "select subscription_id, owner from subscription_positions where subscription_id",
    "and tenant_no = $2 and owner <> ''"
);
const FAILED: Sql = of_each!(
    "select subscription_id, count(*), max(seq) from subscription_exceptions
     where subscription_id",
    "and tenant_no = $2 and state = $3 and seq <= $4 group by subscription_id"
);
const ERROR: Sql = Sql::same(
    "select error from subscription_exceptions
     where subscription_id = $1 and tenant_no = $2 and seq = $3",
);
const HELD: Sql = of_each!(
    "select subscription_id, seq, held_key, attempts from subscription_exceptions
     where subscription_id",
    "and tenant_no = $2 and state = $3 and held_key <> 0 order by seq limit $4"
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[POSITIONS, OWNERS, FAILED, ERROR, HELD];

/// The failed events of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Failed {
    /// How many there are.
    pub count: u64,
    /// The newest one.
    pub newest: u64,
}

/// A failed event that holds back its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The event.
    pub seq: u64,
    /// Hash of the key.
    pub key: u64,
    /// Its attempts.
    pub attempts: u32,
}

fn about<'a>(db: &'a Db, statement: Sql, tenant: &TenantRef, ids: &[&str]) -> Result<Query<'a>> {
    let ids = serde_json::to_string(ids).map_err(Error::internal)?;
    Ok(db.query(statement).bind(ids).bind(tenant.number()))
}

const FAILED_STATE: i64 = EventDeliveryState::Failed as i64;

/// Where subscriptions are. Of one that is missing nothing was ever delivered.
pub async fn positions(
    db: &Db,
    tenant: &TenantRef,
    ids: &[&str],
) -> Result<HashMap<String, Stored>> {
    type Row = (String, i64, i64, i64, i64, Vec<u8>);
    let rows: Vec<Row> = about(db, POSITIONS, tenant, ids)?.all().await?;
    let stored = |(id, epoch, floor, cursor, replay_until, unsettled): Row| {
        (id, (epoch, floor, cursor, replay_until, unsettled).into())
    };
    Ok(rows.into_iter().map(stored).collect())
}

/// The processes that have subscriptions at work, or had until they died.
pub async fn owners(db: &Db, tenant: &TenantRef, ids: &[&str]) -> Result<HashMap<String, String>> {
    let rows: Vec<(String, String)> = about(db, OWNERS, tenant, ids)?.all().await?;
    Ok(rows.into_iter().collect())
}

/// The failed events up to `seq` of subscriptions that have some.
pub async fn failed(
    db: &Db,
    tenant: &TenantRef,
    ids: &[&str],
    seq: u64,
) -> Result<HashMap<String, Failed>> {
    let query = about(db, FAILED, tenant, ids)?.bind(FAILED_STATE);
    let seq = i64::try_from(seq).unwrap_or(i64::MAX);
    let rows: Vec<(String, i64, i64)> = query.bind(seq).all().await?;
    let failed = |(id, count, newest): (String, i64, i64)| {
        let (count, newest) = (count.unsigned_abs(), newest.unsigned_abs());
        (id, Failed { count, newest })
    };
    Ok(rows.into_iter().map(failed).collect())
}

/// The error of an event that was not settled by an ack.
pub async fn error(db: &Db, tenant: &TenantRef, id: &str, seq: u64) -> Result<Option<String>> {
    let query = db.query(ERROR).bind(id.to_owned()).bind(tenant.number());
    let row: Option<(String,)> = query.bind(seq.cast_signed()).optional().await?;
    Ok(row.map(|(error,)| error))
}

/// The failed events of subscriptions that hold back their keys.
pub async fn held(db: &Db, tenant: &TenantRef, ids: &[&str]) -> Result<HashMap<String, Vec<Held>>> {
    let query = about(db, HELD, tenant, ids)?.bind(FAILED_STATE);
    let rows: Vec<(String, i64, i64, i64)> = query.bind(HELD_MAX).all().await?;
    let mut held: HashMap<String, Vec<Held>> = HashMap::new();
    for (id, seq, key, attempts) in rows {
        held.entry(id).or_default().push(Held {
            seq: seq.unsigned_abs(),
            key: key.cast_unsigned(),
            attempts: u32::try_from(attempts).map_err(Error::internal)?,
        });
    }
    Ok(held)
}
