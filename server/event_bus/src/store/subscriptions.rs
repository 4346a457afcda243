//! The rows of subscriptions.

use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Sql, Tx};

/// Tenants that are looked at in one statement.
const BEHIND_MAX: i64 = 500;

const BEHIND: Sql = Sql::same(
    "select t.tenant_no, t.tenant_id, h.routing_epoch
     from journal_heads h join tenants t on t.tenant_no = h.tenant_no
        left join subscription_epochs e on e.tenant_no = h.tenant_no
     where h.tenant_no > $1 and h.routing_epoch > coalesce(e.routing_epoch, -1)
     order by h.tenant_no limit $2",
);
const ADD_DEFAULT: Sql = Sql::same(
    "insert into subscriptions
        (subscription_id, tenant_no, product, name, is_default, create_time)
     values ($1, $2, $3, $3, 1, $4) on conflict do nothing",
);
const DONE: Sql = Sql::same(
    "insert into subscription_epochs (tenant_no, routing_epoch) values ($1, $2)
     on conflict (tenant_no) do update set routing_epoch = excluded.routing_epoch
     where subscription_epochs.routing_epoch < excluded.routing_epoch",
);
const LIST: Sql = Sql::same(
    "select subscription_id, product, name, is_default, create_time, used_time
     from subscriptions where tenant_no = $1 order by product, name",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[BEHIND, ADD_DEFAULT, DONE, LIST];

/// A subscription as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Id, `sub_…`.
    pub id: String,
    /// Slug of the owning product.
    pub product: String,
    /// Name, unique within the product.
    pub name: String,
    /// Made with the product's subscription, not by a call.
    pub is_default: bool,
    /// When it was made.
    pub create_time: Micros,
    /// When a consumer first used it; `None` = dormant.
    pub used_time: Option<Micros>,
}

/// Tenants after number `after` whose default subscriptions are not those of their present epoch,
/// with that epoch.
pub async fn behind(db: &Db, after: i64) -> Result<Vec<(TenantRef, u64)>> {
    let rows: Vec<(i64, String, i64)> = db.query(BEHIND).bind(after).bind(BEHIND_MAX).all().await?;
    let tenants = rows.into_iter();
    Ok(tenants
        .map(|(number, id, epoch)| (TenantRef::new(number, &id), epoch.unsigned_abs()))
        .collect())
}

/// Adds a default subscription unless it is there.
pub async fn add_default(
    tx: &mut Tx,
    tenant: &TenantRef,
    id: &str,
    product: &str,
    now: Micros,
) -> Result<()> {
    tx.query(ADD_DEFAULT)
        .bind(id.to_owned())
        .bind(tenant.number())
        .bind(product.to_owned())
        .bind(now)
        .execute()
        .await?;
    Ok(())
}

/// The default subscriptions of this epoch are there.
pub async fn done(tx: &mut Tx, tenant: &TenantRef, epoch: u64) -> Result<()> {
    tx.query(DONE)
        .bind(tenant.number())
        .bind(epoch as i64)
        .execute()
        .await?;
    Ok(())
}

type Row = (String, String, String, i64, Micros, Micros);

/// All subscriptions of a tenant by product and name.
pub async fn list(db: &Db, tenant: &TenantRef) -> Result<Vec<Stored>> {
    let rows: Vec<Row> = db.query(LIST).bind(tenant.number()).all().await?;
    let stored = |(id, product, name, is_default, create_time, used): Row| Stored {
        id,
        product,
        name,
        is_default: is_default != 0,
        create_time,
        used_time: (used > 0).then_some(used),
    };
    Ok(rows.into_iter().map(stored).collect())
}
