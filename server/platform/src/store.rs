//! The statements about tenants that only this domain has. Products, subscriptions and
//! integrations are those of `hub_core::tenancy`.

use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::storage::{Db, Failure, Sql, Tx};

/// The columns of [`Tenant`].
macro_rules! columns {
    () => {
        "tenant_id, name, create_time, retention, retention_bytes, version"
    };
}

const FIND: Sql = Sql::same(concat!(
    "select ",
    columns!(),
    " from tenants where tenant_id = $1"
));
const LIST: Sql = Sql::same(concat!(
    "select ",
    columns!(),
    " from tenants where tenant_id > $1 order by tenant_id limit $2"
));
const UPDATE: Sql = Sql::same(
    "update tenants set name = $2, retention = $3, retention_bytes = $4, version = $5
     where tenant_id = $1",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[FIND, LIST, UPDATE];

hub_core::row! {
    /// A tenant as it is stored.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) struct Tenant {
        pub tenant_id: String,
        pub name: String,
        pub create_time: Micros,
        /// How long events are kept, in microseconds.
        pub retention: Micros,
        /// How many bytes of events are kept; 0 = no limit.
        pub retention_bytes: i64,
        /// Rises with every change.
        pub version: i64,
    }
}

/// The tenant of this id.
pub(crate) async fn find(db: &Db, tenant_id: &str) -> Result<Option<Tenant>> {
    let query = db.query(FIND).bind(tenant_id.to_owned());
    Ok(query.optional().await?)
}

/// The same for a transaction.
pub(crate) async fn find_in(tx: &mut Tx, tenant_id: &str) -> Result<Option<Tenant>> {
    let query = tx.query(FIND).bind(tenant_id.to_owned());
    Ok(query.optional().await?)
}

/// At most `count` tenants by id, after the one named `after`.
pub(crate) async fn list(db: &Db, after: &str, count: usize) -> Result<Vec<Tenant>> {
    let query = db
        .query(LIST)
        .bind(after.to_owned())
        .bind(i64::try_from(count).unwrap_or(i64::MAX));
    Ok(query.all().await?)
}

/// Changes a tenant. A name that is taken is a unique violation.
pub(crate) async fn update(tx: &mut Tx, tenant: &Tenant) -> Result<(), Failure> {
    tx.query(UPDATE)
        .bind(tenant.tenant_id.clone())
        .bind(tenant.name.clone())
        .bind(tenant.retention)
        .bind(tenant.retention_bytes)
        .bind(tenant.version)
        .execute()
        .await?;
    Ok(())
}
