//! The rows of the catalogue: a tenant's own entries, with their history.

use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Sql, Tx};

use crate::catalogue::EventType;

/// The columns of [`Row`].
macro_rules! columns {
    () => {
        "type, routing_epoch, purpose, sources, destinations, json_schema, example, deprecated"
    };
}

const LATEST: Sql = Sql::same(
    "select max(routing_epoch) from event_types where tenant_no = $1 and routing_epoch <= $2",
);
const AT: Sql = Sql::same(concat!(
    "select ",
    columns!(),
    " from event_types t where tenant_no = $1 and routing_epoch = (
        select max(l.routing_epoch) from event_types l
        where l.tenant_no = $1 and l.type = t.type and l.routing_epoch <= $2)"
));
const DESTINATIONS: Sql =
    Sql::same("select distinct type, destinations from event_types where tenant_no = $1 limit $2");
const FIND: Sql = Sql::same(concat!(
    "select ",
    columns!(),
    " from event_types where tenant_no = $1 and type = $2 order by routing_epoch desc limit 1"
));
const SIZE: Sql = Sql::same(
    "select count(distinct type), cast(coalesce(sum(octet_length(json_schema)), 0) as bigint)
     from event_types where tenant_no = $1 and type <> $2",
);
const PUT: Sql = Sql::same(concat!(
    "insert into event_types (tenant_no, ",
    columns!(),
    ", update_time, updated_by) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
));
// What another process still uses for a second is the row before, which stays as it is.
const STRIP: Sql = Sql::same(
    "update event_types set json_schema = '', example = ''
     where tenant_no = $1 and type = $2 and routing_epoch < $3
        and (json_schema <> '' or example <> '')",
);
const FORGET: Sql = Sql::same(
    "delete from event_types where tenant_no = $1 and type = $2 and routing_epoch < (
        select max(l.routing_epoch) from event_types l
        where l.tenant_no = $1 and l.type = $2 and l.routing_epoch <= $3)",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[LATEST, AT, DESTINATIONS, FIND, SIZE, PUT, STRIP, FORGET];

hub_core::row! {
    struct Row {
        r#type: String,
        routing_epoch: i64,
        purpose: String,
        sources: String,
        destinations: String,
        json_schema: String,
        example: String,
        deprecated: bool,
    }
}

impl Row {
    fn entry(self) -> Result<EventType> {
        let list = |json: &str| serde_json::from_str(json).map_err(Error::internal);
        Ok(EventType {
            sources: list(&self.sources)?,
            destinations: list(&self.destinations)?,
            name: self.r#type,
            purpose: self.purpose,
            json_schema: self.json_schema.into(),
            example: self.example,
            built_in: false,
            deprecated: self.deprecated,
            epoch: self.routing_epoch.unsigned_abs(),
        })
    }
}

/// The epoch of the last change up to an epoch; `None` = the tenant has no entries of its own then.
pub async fn latest(db: &Db, tenant: &TenantRef, epoch: u64) -> Result<Option<u64>> {
    let query = db.query(LATEST).bind(tenant.number());
    let (latest,): (Option<i64>,) = query.bind(epoch.cast_signed()).one().await?;
    Ok(latest.map(i64::unsigned_abs))
}

/// A tenant's own entries at an epoch.
pub async fn at(db: &Db, tenant: &TenantRef, epoch: u64) -> Result<Vec<EventType>> {
    let query = db.query(AT).bind(tenant.number()).bind(epoch.cast_signed());
    let rows: Vec<Row> = query.all().await?;
    rows.into_iter().map(Row::entry).collect()
}

/// The types of a tenant's own entries of all times that still matter, each with its destinations;
/// `None` if there are more than `most`.
pub async fn destinations(
    db: &Db,
    tenant: &TenantRef,
    most: usize,
) -> Result<Option<Vec<(String, Vec<String>)>>> {
    let query = db.query(DESTINATIONS).bind(tenant.number());
    let rows: Vec<(String, String)> = query.bind(most as i64 + 1).all().await?;
    if rows.len() > most {
        return Ok(None);
    }
    let read = |(kind, destinations): (String, String)| {
        let destinations = serde_json::from_str(&destinations).map_err(Error::internal)?;
        Ok((kind, destinations))
    };
    rows.into_iter().map(read).collect::<Result<_>>().map(Some)
}

/// A tenant's own entry of a type as it is now.
pub async fn find(tx: &mut Tx, tenant: &TenantRef, name: &str) -> Result<Option<EventType>> {
    let query = tx.query(FIND).bind(tenant.number()).bind(name.to_owned());
    let row: Option<Row> = query.optional().await?;
    row.map(Row::entry).transpose()
}

/// How many types beside one a tenant has of its own, and the bytes of their schemas.
pub async fn size_beside(tx: &mut Tx, tenant: &TenantRef, name: &str) -> Result<(u64, u64)> {
    let query = tx.query(SIZE).bind(tenant.number()).bind(name.to_owned());
    let (types, bytes): (i64, i64) = query.one().await?;
    Ok((types.unsigned_abs(), bytes.unsigned_abs()))
}

/// Adds an entry at its epoch. Of those before it, `replaced` was in force; no event before the
/// epoch `oldest` is kept.
pub async fn put(
    tx: &mut Tx,
    tenant: &TenantRef,
    entry: &EventType,
    replaced: Option<u64>,
    oldest: u64,
    (now, by): (Micros, &str),
) -> Result<()> {
    let list = |slugs: &[String]| serde_json::to_string(slugs).map_err(Error::internal);
    tx.query(PUT)
        .bind(tenant.number())
        .bind(entry.name.clone())
        .bind(entry.epoch.cast_signed())
        .bind(entry.purpose.clone())
        .bind(list(&entry.sources)?)
        .bind(list(&entry.destinations)?)
        .bind(entry.json_schema.to_string())
        .bind(entry.example.clone())
        .bind(entry.deprecated)
        .bind(now)
        .bind(by.to_owned())
        .execute()
        .await?;
    let Some(replaced) = replaced else {
        return Ok(());
    };
    for (statement, epoch) in [(STRIP, replaced), (FORGET, oldest)] {
        let query = tx.query(statement).bind(tenant.number());
        let query = query.bind(entry.name.clone()).bind(epoch.cast_signed());
        query.execute().await?;
    }
    Ok(())
}
