//! The head row of a log, for a domain's transaction that stores the sequence of its own event.

use super::TenantRef;
use crate::storage::{Failure, Sql, Tx};

const LOCK: Sql = Sql::each(
    "select head from journal_heads where tenant_no = $1",
    "select head from journal_heads where tenant_no = $1 for update",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[LOCK];

/// Locks the log until the transaction ends, and returns the last sequence: the first event that
/// [`super::Journal::commit`] then stores with this transaction gets the next one.
///
/// Nobody else can append meanwhile, so only for short transactions.
pub async fn lock(tx: &mut Tx, tenant: &TenantRef) -> Result<u64, Failure> {
    let (head,): (i64,) = tx.query(LOCK).bind(tenant.number()).one().await?;
    Ok(head.unsigned_abs())
}
