//! How far each durable subscription is, fenced by its epoch; and what became of single events.

use std::collections::HashMap;

use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Failure, Sql, Tx};

/// Rows that one statement removes or one look at backlogs reads.
const CHUNK_ROWS_MAX: i64 = 500;

/// Takes a position, `$empty` being no bytes, and `$lock` what keeps a subscription from being
/// deleted meanwhile.
macro_rules! acquire {
    ($empty:literal, $lock:literal) => {
        concat!(
            "insert into subscription_positions (subscription_id, tenant_no, owner, epoch, floor,
                cursor, replay_until, unsettled, update_time)
             select s.subscription_id, $2, $3, 1, 0, 0, 0, ",
            $empty,
            ", $4 from subscriptions s where s.subscription_id = $1 ",
            $lock,
            " on conflict (subscription_id) do update
             set owner = excluded.owner, epoch = subscription_positions.epoch + 1
             where subscription_positions.owner in ('', excluded.owner)
                or subscription_positions.owner not in (select process_id from live_processes)
             returning epoch, floor, cursor, replay_until, unsettled"
        )
    };
}

// Taken from whoever has it no longer; raising the epoch shuts the one before out.
const ACQUIRE: Sql = Sql::each(acquire!("x''", ""), acquire!("''", "for key share of s"));
const EPOCHS: Sql = Sql::each(
    "select p.subscription_id, p.epoch, s.version
     from subscription_positions p join subscriptions s on s.subscription_id = p.subscription_id
     where p.subscription_id in (select value from json_each($1))",
    "select p.subscription_id, p.epoch, s.version
     from subscription_positions p join subscriptions s on s.subscription_id = p.subscription_id
     where p.subscription_id in (select json_array_elements_text($1::json))",
);
const RELEASE: Sql = Sql::same(
    "update subscription_positions set owner = ''
     where subscription_id = $1 and epoch = $2 and owner = $3",
);
const RELEASE_ALL: Sql = Sql::same("update subscription_positions set owner = '' where owner = $1");
const OWNER: Sql = Sql::same("select owner from subscription_positions where subscription_id = $1");
const SAVE: Sql = Sql::same(
    "update subscription_positions set floor = $3, cursor = $4, replay_until = $5, unsettled = $6,
        update_time = $7
     where subscription_id = $1 and epoch = $2",
);
const PUT_EXCEPTION: Sql = Sql::same(
    "insert into subscription_exceptions (subscription_id, seq, tenant_no, state, attempts, error,
        held_key, update_time)
     values ($1, $2, $3, $4, $5, $6, $7, $8)
     on conflict (subscription_id, seq) do update
     set state = excluded.state, attempts = excluded.attempts, error = excluded.error,
         held_key = excluded.held_key, update_time = excluded.update_time",
);
const REMOVE_EXCEPTION: Sql =
    Sql::same("delete from subscription_exceptions where subscription_id = $1 and seq = $2");
const PUT_RANGE: Sql = Sql::same(
    "insert into subscription_ranges (subscription_id, from_seq, to_seq, tenant_no, state,
        update_time)
     values ($1, $2, $3, $4, $5, $6)
     on conflict (subscription_id, from_seq) do update
     set to_seq = excluded.to_seq, state = excluded.state, update_time = excluded.update_time",
);
const HELD: Sql = Sql::same(
    "select held_key, seq from subscription_exceptions
     where subscription_id = $1 and state = $2 and held_key <> 0 order by seq",
);
const PAUSE: Sql = Sql::same(
    "update subscriptions set paused_since = $2, paused_until = 0, paused_by = 'hub',
        pause_reason = $3, version = version + 1
     where subscription_id = $1",
);
// As who deletes a subscription: its row before that of its position.
const LOCK_SETTINGS: Sql = Sql::each(
    "select version from subscriptions where subscription_id = $1",
    "select version from subscriptions where subscription_id = $1 for no key update",
);
const USED: Sql = Sql::same(
    "update subscriptions set used_time = $2 where subscription_id = $1 and used_time = 0",
);
// Subscriptions of one name with something to do, in order of the tenants. A default one whose row
// is not made yet has delivered nothing.
const BEHIND: Sql = Sql::same(
    "select h.tenant_no, t.tenant_id
     from journal_heads h join tenants t on t.tenant_no = h.tenant_no
        left join subscriptions s
            on s.tenant_no = h.tenant_no and s.product = $2 and s.name = $3
        left join subscription_positions p on p.subscription_id = s.subscription_id
     where h.tenant_no > $1 and h.head > 0
        and (s.subscription_id is not null or $2 = $3)
        and (p.subscription_id is null or p.cursor < h.head or length(p.unsettled) > 0)
     order by h.tenant_no limit $4",
);
const IS_BEHIND: Sql = Sql::same(
    "select h.tenant_no from journal_heads h
        left join subscription_positions p on p.subscription_id = $2
     where h.tenant_no = $1
        and (h.head > coalesce(p.cursor, 0) or coalesce(length(p.unsettled), 0) > 0)",
);
const OWNERS: Sql = Sql::each(
    "select s.tenant_no, p.owner from subscriptions s
        join subscription_positions p on p.subscription_id = s.subscription_id
     where s.product = $1 and s.name = $2 and p.owner <> ''
        and s.tenant_no in (select value from json_each($3))",
    "select s.tenant_no, p.owner from subscriptions s
        join subscription_positions p on p.subscription_id = s.subscription_id
     where s.product = $1 and s.name = $2 and p.owner <> ''
        and s.tenant_no in (select json_array_elements_text($3::json)::bigint)",
);
const FORGET_EXCEPTIONS: Sql = Sql::each(
    "delete from subscription_exceptions where (subscription_id, seq) in (
        select e.subscription_id, e.seq from subscription_exceptions e
        join journal_floors f on f.tenant_no = e.tenant_no
        where e.seq <= f.floor and e.update_time < $1 limit $2)",
    "delete from subscription_exceptions where (subscription_id, seq) in (
        select e.subscription_id, e.seq from subscription_exceptions e
        join journal_floors f on f.tenant_no = e.tenant_no
        where e.seq <= f.floor and e.update_time < $1 limit $2 for update of e skip locked)",
);
const FORGET_RANGES: Sql = Sql::each(
    "delete from subscription_ranges where (subscription_id, from_seq) in (
        select r.subscription_id, r.from_seq from subscription_ranges r
        join journal_floors f on f.tenant_no = r.tenant_no
        where r.to_seq <= f.floor and r.update_time < $1 limit $2)",
    "delete from subscription_ranges where (subscription_id, from_seq) in (
        select r.subscription_id, r.from_seq from subscription_ranges r
        join journal_floors f on f.tenant_no = r.tenant_no
        where r.to_seq <= f.floor and r.update_time < $1 limit $2 for update of r skip locked)",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[
    ACQUIRE,
    EPOCHS,
    RELEASE,
    RELEASE_ALL,
    OWNER,
    SAVE,
    PUT_EXCEPTION,
    REMOVE_EXCEPTION,
    PUT_RANGE,
    HELD,
    PAUSE,
    LOCK_SETTINGS,
    USED,
    BEHIND,
    IS_BEHIND,
    OWNERS,
    FORGET_EXCEPTIONS,
    FORGET_RANGES,
];

/// A position and the right to write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acquired {
    /// Number of the owner; only it writes.
    pub epoch: u64,
    /// Everything up to here is settled.
    pub floor: u64,
    /// Everything up to here was looked at.
    pub cursor: u64,
    /// What is delivered up to here was delivered or skipped before.
    pub replay_until: u64,
    /// Packed list of what is not settled.
    pub unsettled: Vec<u8>,
}

/// A position about to be stored.
#[derive(Debug, Clone)]
pub struct Saving {
    /// As in [`Acquired`].
    pub floor: u64,
    /// As in [`Acquired`].
    pub cursor: u64,
    /// As in [`Acquired`].
    pub replay_until: u64,
    /// As in [`Acquired`].
    pub unsettled: Vec<u8>,
}

/// What became of an event, where it does not follow from the position.
#[derive(Debug, Clone)]
pub struct Exception<'a> {
    /// Sequence of the event.
    pub seq: u64,
    /// Number of an `EventDeliveryState`.
    pub state: i32,
    /// Times it was leased.
    pub attempts: u32,
    /// Last error.
    pub error: &'a str,
    /// Key that it holds back, 0 = none.
    pub held_key: u64,
    /// When.
    pub at: Micros,
}

/// A subscription whose rows are written.
#[derive(Debug, Clone, Copy)]
pub struct Whose<'a> {
    /// Its tenant.
    pub tenant: &'a TenantRef,
    /// Id, `sub_…`.
    pub id: &'a str,
    /// The epoch that was acquired.
    pub epoch: u64,
}

/// Makes `owner` the only one that writes; `None` if a live process is it, or if the subscription
/// is gone. Errors: `STORE_BUSY`.
pub async fn acquire(
    tx: &mut Tx,
    tenant: &TenantRef,
    id: &str,
    owner: &str,
    now: Micros,
) -> Result<Option<Acquired>> {
    type Row = (i64, i64, i64, i64, Vec<u8>);
    let query = tx.query(ACQUIRE).bind(id.to_owned()).bind(tenant.number());
    let row: Option<Row> = query.bind(owner.to_owned()).bind(now).optional().await?;
    let acquired = |(epoch, floor, cursor, replay_until, unsettled): Row| Acquired {
        epoch: epoch.unsigned_abs(),
        floor: floor.unsigned_abs(),
        cursor: cursor.unsigned_abs(),
        replay_until: replay_until.unsigned_abs(),
        unsettled,
    };
    Ok(row.map(acquired))
}

/// Present epoch, and version of the settings, of those of these subscriptions that are there.
pub async fn epochs(db: &Db, ids: &[&str]) -> Result<HashMap<String, (u64, u64)>> {
    let ids = serde_json::to_string(ids).map_err(Error::internal)?;
    let rows: Vec<(String, i64, i64)> = db.query(EPOCHS).bind(ids).all().await?;
    let rows = rows.into_iter();
    Ok(rows
        .map(|(id, epoch, version)| (id, (epoch.unsigned_abs(), version.unsigned_abs())))
        .collect())
}

/// Lets another process have at once what `owner` acquired with this epoch. An epoch that was not
/// committed may be of another one by now.
pub async fn release(tx: &mut Tx, id: &str, epoch: u64, owner: &str) -> Result<(), Failure> {
    let query = tx.query(RELEASE).bind(id.to_owned());
    let query = query.bind(epoch as i64).bind(owner.to_owned());
    query.execute().await?;
    Ok(())
}

/// Lets the other processes have all that `owner` has.
pub async fn release_all(tx: &mut Tx, owner: &str) -> Result<(), Failure> {
    let query = tx.query(RELEASE_ALL).bind(owner.to_owned());
    query.execute().await?;
    Ok(())
}

/// The process that has a subscription, alive or dead; `None` if nobody has. Errors: `STORE_BUSY`.
pub async fn owner(db: &Db, id: &str) -> Result<Option<String>> {
    let row: Option<(String,)> = db.query(OWNER).bind(id.to_owned()).optional().await?;
    Ok(row.map(|(owner,)| owner).filter(|owner| !owner.is_empty()))
}

/// Keys that failed events hold back, and the events. `failed` is the state's number.
pub async fn held(db: &Db, id: &str, failed: i32) -> Result<Vec<(u64, u64)>> {
    let query = db.query(HELD).bind(id.to_owned()).bind(i64::from(failed));
    let rows: Vec<(i64, i64)> = query.all().await?;
    let rows = rows.into_iter();
    Ok(rows
        .map(|(key, seq)| (key.cast_unsigned(), seq.unsigned_abs()))
        .collect())
}

/// A consumer uses it: it is not dormant any more.
pub async fn used(tx: &mut Tx, id: &str, now: Micros) -> Result<(), Failure> {
    tx.query(USED)
        .bind(id.to_owned())
        .bind(now)
        .execute()
        .await?;
    Ok(())
}

/// Stores a position; false if the subscription has another owner by now.
pub async fn save(
    tx: &mut Tx,
    whose: Whose<'_>,
    saving: &Saving,
    now: Micros,
) -> Result<bool, Failure> {
    let saved = tx
        .query(SAVE)
        .bind(whose.id.to_owned())
        .bind(whose.epoch as i64)
        .bind(saving.floor as i64)
        .bind(saving.cursor as i64)
        .bind(saving.replay_until as i64)
        .bind(saving.unsettled.clone())
        .bind(now)
        .execute()
        .await?;
    Ok(saved > 0)
}

/// Stores what became of an event.
pub async fn put_exception(
    tx: &mut Tx,
    whose: Whose<'_>,
    exception: &Exception<'_>,
) -> Result<(), Failure> {
    tx.query(PUT_EXCEPTION)
        .bind(whose.id.to_owned())
        .bind(exception.seq as i64)
        .bind(whose.tenant.number())
        .bind(i64::from(exception.state))
        .bind(i64::from(exception.attempts))
        .bind(exception.error.to_owned())
        .bind(exception.held_key.cast_signed())
        .bind(exception.at)
        .execute()
        .await?;
    Ok(())
}

/// What became of an event follows from the position again.
pub async fn remove_exception(tx: &mut Tx, whose: Whose<'_>, seq: u64) -> Result<(), Failure> {
    let query = tx.query(REMOVE_EXCEPTION).bind(whose.id.to_owned());
    query.bind(seq as i64).execute().await?;
    Ok(())
}

/// Stores what became of events that were never looked at.
pub async fn put_range(
    tx: &mut Tx,
    whose: Whose<'_>,
    (from, to): (u64, u64),
    state: i32,
    now: Micros,
) -> Result<(), Failure> {
    tx.query(PUT_RANGE)
        .bind(whose.id.to_owned())
        .bind(from as i64)
        .bind(to as i64)
        .bind(whose.tenant.number())
        .bind(i64::from(state))
        .bind(now)
        .execute()
        .await?;
    Ok(())
}

/// Who will pause a subscription takes its settings before its position. Errors: `STORE_BUSY`.
pub async fn lock_settings(tx: &mut Tx, id: &str) -> Result<(), Failure> {
    let query = tx.query(LOCK_SETTINGS).bind(id.to_owned());
    let _: Option<(i64,)> = query.optional().await?;
    Ok(())
}

/// The retry policy pauses the subscription until somebody resumes it.
pub async fn pause(
    tx: &mut Tx,
    whose: Whose<'_>,
    since: Micros,
    reason: &str,
) -> Result<(), Failure> {
    let query = tx.query(PAUSE).bind(whose.id.to_owned());
    query.bind(since).bind(reason.to_owned()).execute().await?;
    Ok(())
}

/// Tenants after number `after` whose subscription of this product and name has something to do.
pub async fn behind(db: &Db, after: i64, product: &str, name: &str) -> Result<Vec<TenantRef>> {
    let query = db.query(BEHIND).bind(after).bind(product.to_owned());
    let query = query.bind(name.to_owned()).bind(CHUNK_ROWS_MAX);
    let rows: Vec<(i64, String)> = query.all().await?;
    let tenants = rows.into_iter();
    Ok(tenants
        .map(|(number, id)| TenantRef::new(number, &id))
        .collect())
}

/// Whether a subscription of a tenant has something to do. Errors: `STORE_BUSY`.
pub async fn is_behind(db: &Db, tenant_no: i64, id: &str) -> Result<bool> {
    let query = db.query(IS_BEHIND).bind(tenant_no).bind(id.to_owned());
    let row: Option<(i64,)> = query.optional().await?;
    Ok(row.is_some())
}

/// The processes that have the subscriptions of a name, by number of the tenant.
/// Errors: `STORE_BUSY`.
pub async fn owners(
    db: &Db,
    product: &str,
    name: &str,
    tenants: &[i64],
) -> Result<HashMap<i64, String>> {
    let tenants = serde_json::to_string(tenants).map_err(Error::internal)?;
    let query = db.query(OWNERS).bind(product.to_owned());
    let query = query.bind(name.to_owned()).bind(tenants);
    let rows: Vec<(i64, String)> = query.all().await?;
    Ok(rows.into_iter().collect())
}

/// Removes what is told of events that passed retention and were settled before `before`; true if
/// there may be more.
pub async fn forget(db: &Db, before: Micros) -> Result<bool> {
    let mut tx = db.begin().await?;
    let mut more = false;
    for statement in [FORGET_EXCEPTIONS, FORGET_RANGES] {
        let query = tx.query(statement).bind(before).bind(CHUNK_ROWS_MAX);
        more |= query.execute().await? >= CHUNK_ROWS_MAX.unsigned_abs();
    }
    tx.commit().await?;
    Ok(more)
}
