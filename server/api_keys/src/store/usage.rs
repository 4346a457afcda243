//! Statements about what keys were used for.

use std::sync::Arc;

use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Sql};
use serde_json::{Value, json};

use crate::usage::Counted;

/// Rows that one transaction of a sweep removes.
const SWEPT_MAX: i64 = 1000;

const BEGIN: Sql = Sql::same(
    "insert into key_usage_batches (writer_id, batch, update_time) values ($1, $2, $3)
     on conflict (writer_id) do update
     set batch = excluded.batch, update_time = excluded.update_time
     where key_usage_batches.batch < excluded.batch returning batch",
);
// Here and below processes that sweep at once do not wait for each other, nor for who writes: one
// leaves to the other what that has begun with.
const SWEEP_BATCHES: Sql = Sql::each(
    "delete from key_usage_batches where update_time < $1",
    "delete from key_usage_batches where writer_id in (
         select writer_id from key_usage_batches where update_time < $1 for update skip locked)",
);

// Many rows of JSON in one statement, `[[tenant_no, family, …], …]`: one each costs several times
// as much. SQLite, which has one writer, takes them as they come. PostgreSQL wants each row
// once, and in the order in which all processes lock them, so that none waits for another that
// waits for it.
const ADD: Sql = Sql::each(
    "insert into key_usage (tenant_no, family, span, start_time, outcome, requests)
     select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5
     from json_each($1) where true
     on conflict (tenant_no, family, span, start_time, outcome) do update
     set requests = key_usage.requests + excluded.requests",
    "insert into key_usage (tenant_no, family, span, start_time, outcome, requests)
     select tenant_no, family, span, start_time, outcome, sum(requests)
     from (select cast(v ->> 0 as bigint) as tenant_no, v ->> 1 as family,
                  cast(v ->> 2 as bigint) as span, cast(v ->> 3 as bigint) as start_time,
                  v ->> 4 as outcome, cast(v ->> 5 as bigint) as requests
           from jsonb_array_elements(cast($1 as jsonb)) v) r
     group by tenant_no, family, span, start_time, outcome
     order by tenant_no, family, span, start_time, outcome
     on conflict (tenant_no, family, span, start_time, outcome) do update
     set requests = key_usage.requests + excluded.requests",
);
// JSON too, `[[key_id, time], …]`. A join locks rows in any order, hence the lock before.
const SET_LAST_USE: Sql = Sql::each(
    "update api_keys set last_use_time = u.value ->> 1 from json_each($1) u
     where api_keys.key_id = u.value ->> 0
       and (last_use_time is null or last_use_time < u.value ->> 1)",
    "with used as (select v ->> 0 as key_id, cast(v ->> 1 as bigint) as time
                   from jsonb_array_elements(cast($1 as jsonb)) v),
          locked as (select k.key_id, used.time from api_keys k join used using (key_id)
                     where k.last_use_time is null or k.last_use_time < used.time
                     order by k.key_id for update of k)
     update api_keys set last_use_time = locked.time from locked
     where api_keys.key_id = locked.key_id",
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
const SWEEP: Sql = Sql::each(
    "delete from key_usage where (tenant_no, family, span, start_time, outcome) in (
         select tenant_no, family, span, start_time, outcome from key_usage
         where span = $1 and start_time < $2 order by start_time limit $3)",
    "delete from key_usage where (tenant_no, family, span, start_time, outcome) in (
         select tenant_no, family, span, start_time, outcome from key_usage
         where span = $1 and start_time < $2 order by start_time limit $3
         for update skip locked)",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[
    BEGIN,
    SWEEP_BATCHES,
    ADD,
    SET_LAST_USE,
    OF_FAMILY,
    OF_TENANT,
    SWEEP,
];

/// Which batch it is of those who write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch<'a> {
    pub writer_id: &'a str,
    /// Greater than that of the batch before.
    pub number: i64,
}

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

/// Adds counts to what is stored, all or none; a batch that is stored already is left as it is.
pub(crate) async fn add(db: &Db, batch: Batch<'_>, counted: &[Counted], now: Micros) -> Result<()> {
    let row = |row: &Counted| {
        let (family, requests) = (&*row.family, row.requests);
        json!([
            row.tenant_no,
            family,
            row.span,
            row.start,
            row.outcome,
            requests
        ])
    };
    let rows = Value::from_iter(counted.iter().map(row));
    let mut tx = db.begin().await?;
    let begin = tx.query(BEGIN).bind(batch.writer_id.to_owned());
    let begun: Option<(i64,)> = begin.bind(batch.number).bind(now).optional().await?;
    if begun.is_some() {
        tx.query(ADD).bind(rows.to_string()).execute().await?;
        tx.commit().await?;
    }
    Ok(())
}

/// Forgets writers that have written nothing since a time.
pub(crate) async fn sweep_batches(db: &Db, before: Micros) -> Result<()> {
    let mut tx = db.begin().await?;
    tx.query(SWEEP_BATCHES).bind(before).execute().await?;
    tx.commit().await?;
    Ok(())
}

/// Stores when keys were used last.
pub(crate) async fn set_last_use(db: &Db, uses: &[(Arc<str>, Micros)]) -> Result<()> {
    let uses = Value::from_iter(uses.iter().map(|(key_id, time)| json!([&**key_id, time])));
    let mut tx = db.begin().await?;
    let query = tx.query(SET_LAST_USE).bind(uses.to_string());
    query.execute().await?;
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

/// Removes counts of a span that began before a time, the oldest first; true if there may be more.
pub(crate) async fn sweep(db: &Db, span: Micros, before: Micros) -> Result<bool> {
    let mut tx = db.begin().await?;
    let query = tx.query(SWEEP).bind(span).bind(before).bind(SWEPT_MAX);
    let swept = query.execute().await?;
    tx.commit().await?;
    Ok(swept >= SWEPT_MAX.unsigned_abs())
}
