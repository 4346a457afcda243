//! Statements about what keys were used for.

use std::sync::Arc;

use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Sql};

use crate::usage::Counted;

/// Rows that one sweep removes.
const SWEPT_MAX: i64 = 1000;

const ADD: Sql = Sql::same(
    "insert into key_usage (tenant_no, family, span, start_time, outcome, requests)
     values ($1, $2, $3, $4, $5, $6)
     on conflict (tenant_no, family, span, start_time, outcome) do update
     set requests = key_usage.requests + excluded.requests",
);
const SET_LAST_USE: Sql = Sql::same(
    "update api_keys set last_use_time = $2
     where key_id = $1 and (last_use_time is null or last_use_time < $2)",
);
const OF_FAMILY: Sql = Sql::same(
    "select start_time, outcome, requests from key_usage
     where tenant_no = $1 and span = $2 and start_time >= $3 and start_time < $4 and family = $5
     order by start_time, outcome",
);
const OF_TENANT: Sql = Sql::same(
    "select start_time, outcome, cast(sum(requests) as bigint) from key_usage
     where tenant_no = $1 and span = $2 and start_time >= $3 and start_time < $4
     group by start_time, outcome order by start_time, outcome",
);
const SWEEP: Sql = Sql::same(
    "delete from key_usage where (tenant_no, family, span, start_time, outcome) in (
         select tenant_no, family, span, start_time, outcome from key_usage
         where span = $1 and start_time < $2 limit $3)",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[ADD, SET_LAST_USE, OF_FAMILY, OF_TENANT, SWEEP];

/// Which counts are read.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    /// Length of a bucket: one of those that are stored.
    pub length: Micros,
    /// From this bucket on.
    pub since: Micros,
    /// Buckets that begin before.
    pub until: Micros,
}

/// Start of a bucket, outcome, requests.
pub(crate) type Row = (Micros, String, i64);

/// Adds counts to what is stored, all or none.
pub(crate) async fn add(db: &Db, counted: &[Counted]) -> Result<()> {
    let mut tx = db.begin().await?;
    for row in counted {
        tx.query(ADD)
            .bind(row.tenant_no)
            .bind(row.family.to_string())
            .bind(row.span)
            .bind(row.start)
            .bind(row.outcome)
            .bind(row.requests.cast_signed())
            .execute()
            .await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Stores when keys were used last.
pub(crate) async fn set_last_use(db: &Db, uses: &[(Arc<str>, Micros)]) -> Result<()> {
    let mut tx = db.begin().await?;
    for (key_id, time) in uses {
        let query = tx.query(SET_LAST_USE).bind(key_id.to_string()).bind(*time);
        query.execute().await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Counts of the keys of a tenant, of one family if it is named.
pub(crate) async fn read(
    db: &Db,
    tenant: &TenantRef,
    family: Option<&str>,
    span: &Span,
) -> Result<Vec<Row>> {
    let sql = if family.is_some() {
        OF_FAMILY
    } else {
        OF_TENANT
    };
    let query = db.query(sql).bind(tenant.number()).bind(span.length);
    let query = query.bind(span.since).bind(span.until);
    Ok(match family {
        Some(family) => query.bind(family.to_owned()).all().await?,
        None => query.all().await?,
    })
}

/// Removes counts of a span that began before a time; the oldest go with later sweeps.
pub(crate) async fn sweep(db: &Db, span: Micros, before: Micros) -> Result<()> {
    let mut tx = db.begin().await?;
    let query = tx.query(SWEEP).bind(span).bind(before).bind(SWEPT_MAX);
    query.execute().await?;
    tx.commit().await?;
    Ok(())
}
