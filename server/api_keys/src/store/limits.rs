//! Statements about limits.

use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Sql, Tx};

const OF_TENANT: Sql =
    Sql::same("select requests_per_minute from tenant_rate_limits where tenant_no = $1");
const SET_OF_TENANT: Sql = Sql::same(
    "insert into tenant_rate_limits (tenant_no, requests_per_minute, update_time)
     values ($1, $2, $3)
     on conflict (tenant_no) do update
     set requests_per_minute = excluded.requests_per_minute, update_time = excluded.update_time",
);
const SET_OF_FAMILY: Sql = Sql::same(
    "update api_keys set requests_per_minute = $3, update_time = $4,
       version = version + 1
     where tenant_no = $1 and family = $2",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[OF_TENANT, SET_OF_TENANT, SET_OF_FAMILY];

/// The limit of a tenant; 0 = the default.
pub(crate) async fn of_tenant(db: &Db, tenant: &TenantRef) -> Result<u32> {
    let query = db.query(OF_TENANT).bind(tenant.number());
    let row: Option<(i64,)> = query.optional().await?;
    Ok(row.map_or(0, read))
}

/// The same, as a transaction sees it.
pub(crate) async fn of_tenant_in(tx: &mut Tx, tenant: &TenantRef) -> Result<u32> {
    let query = tx.query(OF_TENANT).bind(tenant.number());
    let row: Option<(i64,)> = query.optional().await?;
    Ok(row.map_or(0, read))
}

fn read((limit,): (i64,)) -> u32 {
    u32::try_from(limit).unwrap_or(u32::MAX)
}

/// Sets the limit of a tenant; 0 = the default.
pub(crate) async fn set_of_tenant(
    tx: &mut Tx,
    tenant: &TenantRef,
    limit: u32,
    now: Micros,
) -> Result<()> {
    let query = tx.query(SET_OF_TENANT).bind(tenant.number());
    query.bind(i64::from(limit)).bind(now).execute().await?;
    Ok(())
}

/// Sets the limit of a key and of all that it was rotated from or to; 0 = none.
pub(crate) async fn set_of_family(
    tx: &mut Tx,
    tenant: &TenantRef,
    family: &str,
    limit: u32,
    now: Micros,
) -> Result<()> {
    let query = tx.query(SET_OF_FAMILY).bind(tenant.number());
    let query = query.bind(family.to_owned()).bind(i64::from(limit));
    query.bind(now).execute().await?;
    Ok(())
}
