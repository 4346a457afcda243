//! Positions of subscriptions as calls change them: made, fenced off from their owner, moved,
//! deleted. What an owner stores itself is in `positions.rs`.

use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Sql, Tx};
use hub_proto::hub::event_bus::v1::EventDeliveryState;

const MAKE: Sql = Sql::same(
    "insert into subscription_positions (subscription_id, tenant_no, owner, epoch, floor, cursor,
        replay_until, unsettled, update_time)
     values ($1, $2, '', 0, $3, $3, 0, $4, $5)",
);
// Without a row nothing was ever delivered: its first owner may be about to make it.
const FENCE: Sql = Sql::same(
    "insert into subscription_positions (subscription_id, tenant_no, owner, epoch, floor, cursor,
        replay_until, unsettled, update_time)
     values ($1, $2, '', 1, 0, 0, 0, $3, $4)
     on conflict (subscription_id) do update
     set epoch = subscription_positions.epoch + 1, update_time = excluded.update_time
     returning epoch, floor, cursor, replay_until, unsettled",
);
const MOVE: Sql = Sql::same(
    "update subscription_positions
     set floor = $2, cursor = $2, replay_until = $3, unsettled = $4, update_time = $5
     where subscription_id = $1",
);
// One statement for all, however many they are: pairs of sequence and attempts as JSON.
const SKIP: Sql = Sql::each(
    "insert into subscription_exceptions (subscription_id, seq, tenant_no, state, attempts, error,
        held_key, update_time)
     select $1, json_extract(value, '$[0]'), $2, $3, json_extract(value, '$[1]'), $4, 0, $5
     from json_each($6) where true
     on conflict (subscription_id, seq) do update set state = excluded.state,
        attempts = excluded.attempts, error = excluded.error, held_key = 0,
        update_time = excluded.update_time",
    "insert into subscription_exceptions (subscription_id, seq, tenant_no, state, attempts, error,
        held_key, update_time)
     select $1::text, (value->>0)::bigint, $2::bigint, $3::bigint, (value->>1)::bigint, $4::text,
        0, $5::bigint
     from json_array_elements($6::text::json)
     on conflict (subscription_id, seq) do update set state = excluded.state,
        attempts = excluded.attempts, error = excluded.error, held_key = 0,
        update_time = excluded.update_time",
);
const EXCEPTIONS_AFTER: Sql = Sql::same(
    "select seq, state from subscription_exceptions where subscription_id = $1 and seq > $2
     order by seq",
);
const FORGET_EXCEPTIONS: Sql = Sql::each(
    "delete from subscription_exceptions where subscription_id = $1 and seq > $2
       and seq not in (select value from json_each($3))",
    "delete from subscription_exceptions where subscription_id = $1 and seq > $2
       and seq not in (select v::bigint from json_array_elements_text($3::text::json) v)",
);
const RELEASE_KEYS_AFTER: Sql = Sql::same(
    "update subscription_exceptions set held_key = 0
     where subscription_id = $1 and seq > $2 and held_key <> 0",
);
const FORGET_RANGES: Sql =
    Sql::same("delete from subscription_ranges where subscription_id = $1 and from_seq > $2");
const CUT_RANGES: Sql = Sql::same(
    "update subscription_ranges set to_seq = $2
     where subscription_id = $1 and from_seq <= $2 and to_seq > $2",
);
const ADD_RANGE: Sql = Sql::same(
    "insert into subscription_ranges (subscription_id, from_seq, to_seq, tenant_no, state,
        update_time)
     values ($1, $2, $3, $4, $5, $6)
     on conflict (subscription_id, from_seq) do update set to_seq = excluded.to_seq,
        state = excluded.state, update_time = excluded.update_time",
);
const RELEASE_KEYS: Sql = Sql::same(
    "update subscription_exceptions set held_key = 0
     where subscription_id = $1 and state = $2 and held_key <> 0",
);
const DELETE_POSITION: Sql =
    Sql::same("delete from subscription_positions where subscription_id = $1");
const DELETE_EXCEPTIONS: Sql = Sql::same(
    "delete from subscription_exceptions where subscription_id = $1 and seq in (
        select seq from subscription_exceptions where subscription_id = $1 order by seq limit $2)",
);
const DELETE_RANGES: Sql = Sql::same(
    "delete from subscription_ranges where subscription_id = $1 and from_seq in (
        select from_seq from subscription_ranges where subscription_id = $1
        order by from_seq limit $2)",
);
const ORPHAN: Sql = Sql::same(
    "select subscription_id from (
        select subscription_id from subscription_exceptions
        union all select subscription_id from subscription_ranges) o
     where not exists (
        select 1 from subscriptions s where s.subscription_id = o.subscription_id) limit 1",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[
    MAKE,
    FENCE,
    MOVE,
    SKIP,
    EXCEPTIONS_AFTER,
    FORGET_EXCEPTIONS,
    RELEASE_KEYS_AFTER,
    FORGET_RANGES,
    CUT_RANGES,
    ADD_RANGE,
    RELEASE_KEYS,
    DELETE_POSITION,
    DELETE_EXCEPTIONS,
    DELETE_RANGES,
    ORPHAN,
];

/// Where a subscription is, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// Only who raised it to this number writes.
    pub epoch: u64,
    /// Everything up to here is settled.
    pub floor: u64,
    /// Everything up to here was looked at.
    pub cursor: u64,
    /// Events up to here were delivered before a seek led back.
    pub replay_until: u64,
    /// Packed events that are not settled.
    pub unsettled: Vec<u8>,
}

pub(super) type Row = (i64, i64, i64, i64, Vec<u8>);

impl From<Row> for Stored {
    fn from((epoch, floor, cursor, replay_until, unsettled): Row) -> Stored {
        Stored {
            epoch: epoch.unsigned_abs(),
            floor: floor.unsigned_abs(),
            cursor: cursor.unsigned_abs(),
            replay_until: replay_until.unsigned_abs(),
            unsettled,
        }
    }
}

/// Events never looked at, and what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first one.
    pub from: u64,
    /// The last one.
    pub to: u64,
    /// What they became.
    pub state: EventDeliveryState,
}

/// Begins at a place: everything up to `seq` is settled.
pub async fn make(tx: &mut Tx, tenant: &TenantRef, id: &str, seq: u64, now: Micros) -> Result<()> {
    tx.query(MAKE)
        .bind(id.to_owned())
        .bind(tenant.number())
        .bind(seq.cast_signed())
        .bind(Vec::<u8>::new())
        .bind(now)
        .execute()
        .await?;
    Ok(())
}

/// Raises the epoch, so that whoever owned the subscription writes nothing more, and returns where
/// it is.
pub async fn fence(tx: &mut Tx, tenant: &TenantRef, id: &str, now: Micros) -> Result<Stored> {
    let row: Row = tx
        .query(FENCE)
        .bind(id.to_owned())
        .bind(tenant.number())
        .bind(Vec::<u8>::new())
        .bind(now)
        .one()
        .await?;
    Ok(row.into())
}

/// Goes on after `seq`, with nothing unsettled.
pub async fn go_to(tx: &mut Tx, id: &str, seq: u64, replay_until: u64, now: Micros) -> Result<()> {
    tx.query(MOVE)
        .bind(id.to_owned())
        .bind(seq.cast_signed())
        .bind(replay_until.cast_signed())
        .bind(Vec::<u8>::new())
        .bind(now)
        .execute()
        .await?;
    Ok(())
}

/// Unsettled events, each with its attempts, become skipped.
pub async fn skip(
    tx: &mut Tx,
    tenant: &TenantRef,
    id: &str,
    events: &[(u64, u32)],
    why: &str,
    now: Micros,
) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let events = serde_json::to_string(events).map_err(Error::internal)?;
    tx.query(SKIP)
        .bind(id.to_owned())
        .bind(tenant.number())
        .bind(i64::from(EventDeliveryState::Skipped as i32))
        .bind(why.to_owned())
        .bind(now)
        .bind(events)
        .execute()
        .await?;
    Ok(())
}

/// Events that were never looked at become what the range says.
pub async fn add_range(
    tx: &mut Tx,
    tenant: &TenantRef,
    id: &str,
    range: Range,
    now: Micros,
) -> Result<()> {
    tx.query(ADD_RANGE)
        .bind(id.to_owned())
        .bind(range.from.cast_signed())
        .bind(range.to.cast_signed())
        .bind(tenant.number())
        .bind(i64::from(range.state as i32))
        .bind(now)
        .execute()
        .await?;
    Ok(())
}

/// An event of which it is stored what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// The event.
    pub seq: u64,
    /// It failed.
    pub is_failed: bool,
}

impl From<(i64, i64)> for Exception {
    fn from((seq, state): (i64, i64)) -> Exception {
        Exception {
            seq: seq.unsigned_abs(),
            is_failed: state == i64::from(EventDeliveryState::Failed as i32),
        }
    }
}

/// The events after `seq` of which it is stored what became of them, one by one, in their order.
pub async fn exceptions_after(db: &Db, id: &str, seq: u64) -> Result<Vec<Exception>> {
    let query = db.query(EXCEPTIONS_AFTER).bind(id.to_owned());
    let rows: Vec<(i64, i64)> = query.bind(seq.cast_signed()).all().await?;
    Ok(rows.into_iter().map(Exception::from).collect())
}

/// The same as a transaction sees them.
pub async fn exceptions_after_in(tx: &mut Tx, id: &str, seq: u64) -> Result<Vec<Exception>> {
    let query = tx.query(EXCEPTIONS_AFTER).bind(id.to_owned());
    let rows: Vec<(i64, i64)> = query.bind(seq.cast_signed()).all().await?;
    Ok(rows.into_iter().map(Exception::from).collect())
}

/// What became of events after `seq` is forgotten, but for some, which hold back no keys any more.
pub async fn forget_after(tx: &mut Tx, id: &str, seq: u64, but: &[u64]) -> Result<()> {
    let but = serde_json::to_string(but).map_err(Error::internal)?;
    let query = tx.query(FORGET_EXCEPTIONS).bind(id.to_owned());
    query.bind(seq.cast_signed()).bind(but).execute().await?;
    for statement in [RELEASE_KEYS_AFTER, FORGET_RANGES, CUT_RANGES] {
        let query = tx.query(statement).bind(id.to_owned());
        query.bind(seq.cast_signed()).execute().await?;
    }
    Ok(())
}

/// Failed events hold back their keys no more.
pub async fn release_keys(tx: &mut Tx, id: &str) -> Result<()> {
    let query = tx.query(RELEASE_KEYS).bind(id.to_owned());
    let failed = i64::from(EventDeliveryState::Failed as i32);
    query.bind(failed).execute().await?;
    Ok(())
}

/// Deletes where a subscription is. Its owner cannot write any more.
pub async fn delete(tx: &mut Tx, id: &str) -> Result<()> {
    let query = tx.query(DELETE_POSITION).bind(id.to_owned());
    query.execute().await?;
    Ok(())
}

/// Deletes what became of events, at most `max` of each kind. True if there may be more.
pub async fn delete_outcomes(tx: &mut Tx, id: &str, max: u32) -> Result<bool> {
    let mut more = false;
    for statement in [DELETE_EXCEPTIONS, DELETE_RANGES] {
        let query = tx.query(statement).bind(id.to_owned());
        let deleted = query.bind(i64::from(max)).execute().await?;
        more |= deleted >= u64::from(max);
    }
    Ok(more)
}

/// A subscription that is gone and of which something is left.
pub async fn orphan(db: &Db) -> Result<Option<String>> {
    let row: Option<(String,)> = db.query(ORPHAN).optional().await?;
    Ok(row.map(|(id,)| id))
}
