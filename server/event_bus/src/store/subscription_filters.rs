//! The filters of subscriptions: which one decides about which events.

use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Sql, Tx};
use hub_proto::hub::event_bus::v1::EventFilter;
use prost::Message;

const LIST: Sql = Sql::same(
    "select s.subscription_id, s.product, f.from_seq, f.filter
     from subscription_filters f join subscriptions s on s.subscription_id = f.subscription_id
     where f.tenant_no = $1 order by s.product, s.name, f.from_seq",
);
const SIZE: Sql = Sql::same(
    "select cast(coalesce(sum(octet_length(filter)), 0) as bigint) from subscription_filters
     where tenant_no = $1",
);
const COUNT: Sql =
    Sql::same("select count(*) from subscription_filters where subscription_id = $1");
const ADD: Sql = Sql::same(
    "insert into subscription_filters (subscription_id, from_seq, tenant_no, filter)
     values ($1, $2, $3, $4)",
);
const FORGET_FROM: Sql =
    Sql::same("delete from subscription_filters where subscription_id = $1 and from_seq >= $2");
// The filter that decides about `$2` is the last one up to it.
const FORGET_BEFORE: Sql = Sql::same(
    "delete from subscription_filters where subscription_id = $1 and from_seq < (
        select max(l.from_seq) from subscription_filters l
        where l.subscription_id = $1 and l.from_seq <= $2)",
);
const REACH_BACK: Sql = Sql::same(
    "update subscription_filters set from_seq = $2
     where subscription_id = $1 and from_seq > $2 and from_seq = (
        select min(l.from_seq) from subscription_filters l where l.subscription_id = $1)",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[
    LIST,
    SIZE,
    COUNT,
    ADD,
    FORGET_FROM,
    FORGET_BEFORE,
    REACH_BACK,
];

/// A filter of a subscription.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Id, `sub_…`.
    pub subscription_id: String,
    /// Slug of the product that owns the subscription.
    pub product: String,
    /// The first event that it decides about.
    pub from_seq: u64,
    /// Which events.
    pub filter: EventFilter,
}

/// All filters of a tenant, by product, name and sequence.
pub async fn list(db: &Db, tenant: &TenantRef) -> Result<Vec<Row>> {
    let rows: Vec<(String, String, i64, Vec<u8>)> =
        db.query(LIST).bind(tenant.number()).all().await?;
    let row = |(subscription_id, product, from_seq, filter): (_, _, i64, Vec<u8>)| {
        Ok(Row {
            subscription_id,
            product,
            from_seq: from_seq.unsigned_abs(),
            filter: EventFilter::decode(filter.as_slice()).map_err(Error::internal)?,
        })
    };
    rows.into_iter().map(row).collect()
}

/// Bytes of all filters of a tenant.
pub async fn size(tx: &mut Tx, tenant: &TenantRef) -> Result<u64> {
    let (bytes,): (i64,) = tx.query(SIZE).bind(tenant.number()).one().await?;
    Ok(bytes.unsigned_abs())
}

/// How many filters a subscription has had of which events are left.
pub async fn count(tx: &mut Tx, id: &str) -> Result<u64> {
    let (count,): (i64,) = tx.query(COUNT).bind(id.to_owned()).one().await?;
    Ok(count.unsigned_abs())
}

/// Keeps the filters that decide about events from `oldest` on up to the one before `from_seq`.
pub async fn keep(tx: &mut Tx, id: &str, from_seq: u64, oldest: u64) -> Result<()> {
    for (statement, seq) in [(FORGET_FROM, from_seq), (FORGET_BEFORE, oldest)] {
        let query = tx.query(statement).bind(id.to_owned());
        query.bind(seq.cast_signed()).execute().await?;
    }
    Ok(())
}

/// From `from_seq` on this filter decides.
pub async fn add(
    tx: &mut Tx,
    tenant: &TenantRef,
    id: &str,
    from_seq: u64,
    filter: &EventFilter,
) -> Result<()> {
    tx.query(ADD)
        .bind(id.to_owned())
        .bind(from_seq.cast_signed())
        .bind(tenant.number())
        .bind(filter.encode_to_vec())
        .execute()
        .await?;
    Ok(())
}

/// The first filter decides about events from `seq` on, if that is earlier than it did. True if so.
pub async fn reach_back(tx: &mut Tx, id: &str, seq: u64) -> Result<bool> {
    let query = tx.query(REACH_BACK).bind(id.to_owned());
    Ok(query.bind(seq.cast_signed()).execute().await? > 0)
}

/// Deletes all filters of a subscription.
pub async fn delete(tx: &mut Tx, id: &str) -> Result<()> {
    let query = tx.query(FORGET_FROM).bind(id.to_owned());
    query.bind(0_i64).execute().await?;
    Ok(())
}
