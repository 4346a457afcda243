//! Erasure: the content of single events is replaced within their segments.
//!
//! Sequences, identities and so fingerprints stay, so every cursor stays valid. `erasures` of the
//! log rises in the same transaction; whoever sees it rise drops what it has in memory of the log:
//! other processes with their next beat (`follow.rs`).

use std::sync::PoisonError;

use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

use super::segment::ID_BYTES;
use super::{Damaged, Journal, Log, TenantRef, retention};
use crate::error::{Error, Result};
use crate::storage::{Sql, Tx};

const HOLDING: Sql = Sql::each(
    "select key, length(ids), data from journal_segments
     where key <= $1 and key >= $2 order by key desc limit 1",
    "select key, length(ids)::bigint, data from journal_segments
     where key <= $1 and key >= $2 order by key desc limit 1 for update",
);
// Before the segment, as retention does, so that the two never wait for each other in a circle.
const LOCK: Sql = Sql::each(
    "select erasures from journal_floors where tenant_no = $1",
    "select erasures from journal_floors where tenant_no = $1 for update",
);
const REPLACE: Sql = Sql::same("update journal_segments set data = $2 where key = $1");
const COUNT: Sql = Sql::same(
    "update journal_floors set erasures = erasures + 1,
        bytes = case when counted >= $2 and bytes > $3 then bytes - $3 else bytes end
     where tenant_no = $1",
);
// What is freed is overwritten, so that it cannot be read from the file.
const OVERWRITE: Sql = Sql::each("pragma secure_delete = on", "select 1");
const OVERWRITE_NO_MORE: Sql = Sql::each("pragma secure_delete = off", "select 1");

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[LOCK, HOLDING, REPLACE, COUNT, OVERWRITE, OVERWRITE_NO_MORE];

/// What is left of an event; `None` leaves it as it is.
pub type Reduce<'a> = &'a (dyn Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync);

impl Journal {
    /// Erases events of one segment, the one that holds the first of `seqs`, as part of `tx`.
    /// Returns those that were changed, and removes from `seqs` all that it looked at.
    ///
    /// After the commit call [`Journal::forget`]. Errors: `STORE_BUSY`.
    pub async fn erase(
        &self,
        tx: &mut Tx,
        tenant: &TenantRef,
        seqs: &mut Vec<u64>,
        reduce: Reduce<'_>,
    ) -> Result<Vec<u64>> {
        seqs.sort_unstable();
        seqs.dedup();
        let Some(asked) = seqs.first().copied() else {
            return Ok(Vec::new());
        };
        retention::begin(tx, tenant).await?;
        let _: (i64,) = tx.query(LOCK).bind(tenant.number()).one().await?;
        let row: Option<(i64, i64, Vec<u8>)> = tx
            .query(HOLDING)
            .bind(tenant.key(asked))
            .bind(tenant.key(0))
            .optional()
            .await?;
        let (key, ids, data) = row.unwrap_or((tenant.key(asked), ID_BYTES as i64, Vec::new()));
        let first = tenant.seq(key);
        let last = first + ids.unsigned_abs() / ID_BYTES as u64 - 1;
        let mine: Vec<u64> = seqs.extract_if(.., |seq| *seq <= last.max(asked)).collect();
        if data.is_empty() || last < asked {
            return Ok(Vec::new());
        }
        let size = data.len();
        let wanted = mine.iter().map(|seq| seq - first).collect::<Vec<_>>();
        let (data, changed) = rewrite(&data, &wanted, reduce).map_err(Error::internal)?;
        if changed.is_empty() {
            return Ok(Vec::new());
        }
        let saved = size.saturating_sub(data.len());
        let _: Option<(i32,)> = tx.query(OVERWRITE).optional().await?;
        tx.query(REPLACE).bind(key).bind(data).execute().await?;
        let _: Option<(i32,)> = tx.query(OVERWRITE_NO_MORE).optional().await?;
        tx.query(COUNT)
            .bind(tenant.number())
            .bind(last as i64)
            .bind(saved as i64)
            .execute()
            .await?;
        Ok(changed.into_iter().map(|at| first + at).collect())
    }

    /// Drops what is in memory of a log: events in the database were changed.
    pub fn forget(&self, log: &Log) {
        log.forget(&self.budget);
    }

    /// Another process erased something in the log of this tenant.
    pub(super) fn forget_erased(&self, tenant_no: i64) {
        let log = {
            let logs = self.logs.read().unwrap_or_else(PoisonError::into_inner);
            logs.get(&tenant_no).cloned()
        };
        if let Some(log) = log {
            self.forget(&log);
        }
    }
}

/// The packed events with those at the places `wanted` reduced, and the places that changed.
fn rewrite(
    data: &[u8],
    wanted: &[u64],
    reduce: Reduce<'_>,
) -> Result<(Vec<u8>, Vec<u64>), Damaged> {
    let (mut out, mut changed) = (Vec::with_capacity(data.len()), Vec::new());
    let (mut rest, mut at) = (data, 0);
    while !rest.is_empty() {
        let header = decode_varint(&mut rest).map_err(|_| Damaged)?;
        let body = rest.split_off(..(header >> 1) as usize).ok_or(Damaged)?;
        let (names, event) = split(body)?;
        let reduced = match wanted.binary_search(&at) {
            Ok(_) => reduce(event),
            Err(_) => None,
        };
        let event = match &reduced {
            Some(reduced) => {
                changed.push(at);
                reduced.as_slice()
            }
            None => event,
        };
        let length = (names.len() + event.len()) as u64;
        encode_varint(length << 1 | (header & 1), &mut out);
        out.extend_from_slice(names);
        out.extend_from_slice(event);
        at += 1;
    }
    Ok((out, changed))
}

/// Product and type as they are stored, and the event.
fn split(body: &[u8]) -> Result<(&[u8], &[u8]), Damaged> {
    let product_len = usize::from(*body.first().ok_or(Damaged)?);
    let mut rest = body.get(1 + product_len..).ok_or(Damaged)?;
    let kind_len = decode_varint(&mut rest).map_err(|_| Damaged)?;
    let names = 1 + product_len + encoded_len_varint(kind_len) + kind_len as usize;
    body.split_at_checked(names).ok_or(Damaged)
}
