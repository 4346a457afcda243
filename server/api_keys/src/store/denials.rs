//! Statements about calls that were refused.

use std::collections::BTreeSet;

use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::storage::{Db, Sql};

use crate::denials::Denial;

/// The newest that are kept of each tenant; of keys of all tenants, of each that they name.
const OF_TENANT_MAX: i64 = 10_000;
/// Rows that one transaction of a sweep removes.
const SWEPT_MAX: i64 = 1000;

const INSERT: Sql = Sql::same(
    "insert into key_denials (call_id, tenant_no, key_id, time, reason, product, action, host,
       path, client_ip, cost, named_tenant, lacking)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
     on conflict (call_id) do nothing",
);
const FIND: Sql = Sql::same(
    "select call_id, tenant_no, key_id, time, reason, product, action, host, path, client_ip,
       cost, named_tenant, lacking
     from key_denials where call_id = $1",
);
const CROP: Sql = Sql::same(
    "delete from key_denials where tenant_no = $1 and named_tenant = $2 and time < (
         select time from key_denials where tenant_no = $1 and named_tenant = $2
         order by time desc limit 1 offset $3)",
);
// Processes that sweep at once do not wait for each other.
const SWEEP: Sql = Sql::each(
    "delete from key_denials where call_id in (
         select call_id from key_denials where time < $1 order by time limit $2)",
    "delete from key_denials where call_id in (
         select call_id from key_denials where time < $1 order by time limit $2
         for update skip locked)",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[INSERT, FIND, CROP, SWEEP];

type Row = (
    String,
    i64,
    String,
    Micros,
    String,
    String,
    String,
    String,
    String,
    String,
    i64,
    String,
    String,
);

/// Stores denials, and removes the oldest of tenants that have too many.
pub(crate) async fn insert(db: &Db, denials: &[Denial]) -> Result<()> {
    let mut tx = db.begin().await?;
    for denial in denials {
        tx.query(INSERT)
            .bind(denial.call_id.clone())
            .bind(denial.tenant_no)
            .bind(denial.key_id.clone())
            .bind(denial.time)
            .bind(denial.reason.clone())
            .bind(denial.product.clone())
            .bind(denial.action.clone())
            .bind(denial.host.clone())
            .bind(denial.path.clone())
            .bind(denial.client_ip.clone())
            .bind(i64::from(denial.cost))
            .bind(denial.named_tenant.clone())
            .bind(denial.lacking.clone())
            .execute()
            .await?;
    }
    let tenants = denials.iter();
    let tenants = tenants.map(|denial| (denial.tenant_no, &denial.named_tenant));
    for (tenant_no, named_tenant) in tenants.collect::<BTreeSet<_>>() {
        let query = tx.query(CROP).bind(tenant_no).bind(named_tenant.clone());
        query.bind(OF_TENANT_MAX - 1).execute().await?;
    }
    tx.commit().await?;
    Ok(())
}

/// The denial of a call.
pub(crate) async fn find(db: &Db, call_id: &str) -> Result<Option<Denial>> {
    let row: Option<Row> = db.query(FIND).bind(call_id.to_owned()).optional().await?;
    Ok(row.map(|row| Denial {
        call_id: row.0,
        tenant_no: row.1,
        key_id: row.2,
        time: row.3,
        reason: row.4,
        product: row.5,
        action: row.6,
        host: row.7,
        path: row.8,
        client_ip: row.9,
        cost: u32::try_from(row.10).unwrap_or(u32::MAX),
        named_tenant: row.11,
        lacking: row.12,
    }))
}

/// Removes denials from before a time, the oldest first; true if there may be more.
pub(crate) async fn sweep(db: &Db, before: Micros) -> Result<bool> {
    let mut tx = db.begin().await?;
    let query = tx.query(SWEEP).bind(before).bind(SWEPT_MAX);
    let swept = query.execute().await?;
    tx.commit().await?;
    Ok(swept >= SWEPT_MAX.unsigned_abs())
}
