//! The tenants, by id and by number. The number is part of every event id and never used again.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use tonic::Code;

use crate::clock::Micros;
use crate::error::{Error, Result};
use crate::id;
use crate::journal::TenantRef;
use crate::storage::{Db, Sql, Tx};

/// Tenants kept in memory; past this they are looked up again.
const CACHED_MAX: usize = 100_000;

const FIND: Sql = Sql::same("select tenant_no, tenant_id from tenants where tenant_id = $1");
const BY_NUMBER: Sql = Sql::same("select tenant_no, tenant_id from tenants where tenant_no = $1");
// The row of the system log is the lock under which numbers are given out.
const LOCK: Sql = Sql::each(
    "select head from journal_heads where tenant_no = 0",
    "select head from journal_heads where tenant_no = 0 for update",
);
const NEXT: Sql = Sql::same("select cast(coalesce(max(tenant_no), 0) + 1 as bigint) from tenants");
const INSERT: Sql = Sql::same(
    "insert into tenants (tenant_no, tenant_id, name, create_time) values ($1, $2, $3, $4)",
);
const INSERT_HEAD: Sql =
    Sql::same("insert into journal_heads (tenant_no, head, record_time) values ($1, 0, 0)");
const BY_NAME: Sql = Sql::same("select tenant_no, tenant_id from tenants where name = $1");

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[FIND, BY_NUMBER, LOCK, NEXT, INSERT, INSERT_HEAD, BY_NAME];

/// Looks tenants up; cheap to clone.
#[derive(Clone)]
pub struct Tenancy {
    db: Db,
    known: Arc<RwLock<HashMap<String, TenantRef>>>,
}

impl Tenancy {
    /// Over the tenants of a database.
    pub fn new(db: Db) -> Self {
        Tenancy {
            db,
            known: Arc::default(),
        }
    }

    /// The tenant of this id, or `TENANT_NOT_FOUND`.
    pub async fn find(&self, tenant_id: &str) -> Result<TenantRef> {
        if let Some(known) = self
            .known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(tenant_id)
        {
            return Ok(known.clone());
        }
        let row: Option<(i64, String)> = self
            .db
            .query(FIND)
            .bind(tenant_id.to_owned())
            .optional()
            .await?;
        let (number, id) = row.ok_or_else(|| not_found(tenant_id))?;
        let tenant = TenantRef::new(number, &id);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() < CACHED_MAX {
            known.insert(id, tenant.clone());
        }
        Ok(tenant)
    }

    /// The tenant of this number, or `TENANT_NOT_FOUND`.
    pub async fn by_number(&self, number: i64) -> Result<TenantRef> {
        let row: Option<(i64, String)> = self.db.query(BY_NUMBER).bind(number).optional().await?;
        let (number, id) = row.ok_or_else(|| not_found(&number.to_string()))?;
        Ok(TenantRef::new(number, &id))
    }

    /// The tenant of this name, if there is one.
    pub async fn by_name(&self, name: &str) -> Result<Option<TenantRef>> {
        let row: Option<(i64, String)> = self
            .db
            .query(BY_NAME)
            .bind(name.to_owned())
            .optional()
            .await?;
        Ok(row.map(|(number, id)| TenantRef::new(number, &id)))
    }
}

/// Adds a tenant with an empty log. A name that is taken is a unique violation.
pub async fn create(
    tx: &mut Tx,
    name: &str,
    now: Micros,
) -> Result<TenantRef, crate::storage::Failure> {
    let _: (i64,) = tx.query(LOCK).one().await?;
    let (number,): (i64,) = tx.query(NEXT).one().await?;
    let tenant = TenantRef::new(number, &id::new("tnt"));
    tx.query(INSERT)
        .bind(number)
        .bind(tenant.id().to_owned())
        .bind(name.to_owned())
        .bind(now)
        .execute()
        .await?;
    tx.query(INSERT_HEAD).bind(number).execute().await?;
    Ok(tenant)
}

/// `TENANT_NOT_FOUND`.
pub fn not_found(tenant_id: &str) -> Error {
    let message = format!("There is no tenant {tenant_id}. Use an id that CreateTenant returned.");
    Error::new(Code::NotFound, "hub.platform", "TENANT_NOT_FOUND", message)
        .with("tenantId", tenant_id)
}
