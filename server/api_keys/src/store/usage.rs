//! Statements about what keys were used for.

use std::collections::BTreeMap;
use std::sync::Arc;

use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Sql, Tx};

use crate::rollup::{Mark, Marks};
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

// Many rows in one statement: one each costs several times as much. They are the members of JSON
// objects, `{tenant_no: {family: requests, …}, …}`, so that nothing is looked for in them. On
// PostgreSQL in the order in which all processes lock them, so that none waits for another that
// waits for it.
const ADD: Sql = Sql::each(
    "insert into key_counts (span, start_time, outcome, tenant_no, family, requests)
     select $1, $2, $3, cast(t.key as integer), f.key, f.value
     from json_each($4) t, json_each(t.value) f where true
     on conflict (span, start_time, tenant_no, family, outcome) do update
     set requests = key_counts.requests + excluded.requests",
    "insert into key_counts (span, start_time, outcome, tenant_no, family, requests)
     select cast($1 as bigint), cast($2 as bigint), cast($3 as text), cast(t.key as bigint),
            f.key, cast(f.value as bigint)
     from json_each(cast($4 as json)) t, json_each_text(t.value) f
     order by cast(t.key as bigint), f.key collate \"C\"
     on conflict (span, start_time, tenant_no, family, outcome) do update
     set requests = key_counts.requests + excluded.requests",
);
// The same: `{key_id: time, …}`.
const SET_LAST_USE: Sql = Sql::each(
    "insert into key_uses (key_id, use_time) select key, value from json_each($1) where true
     on conflict (key_id) do update set use_time = excluded.use_time
     where key_uses.use_time < excluded.use_time",
    "insert into key_uses (key_id, use_time)
     select u.key, cast(u.value as bigint) from json_each_text(cast($1 as json)) u
     order by u.key collate \"C\"
     on conflict (key_id) do update set use_time = excluded.use_time
     where key_uses.use_time < excluded.use_time",
);
// Looked at without a lock, so that who finds nothing to do is in nobody's way.
const BEHIND_MARKS: Sql = Sql::same(
    "select m.span from key_count_marks m
     where exists (
         select 1 from key_counts c
         where c.span = m.span
           and (c.start_time, c.tenant_no, c.family, c.outcome)
             > (m.start_time, m.tenant_no, m.family, m.outcome)
           and c.start_time < case when m.span = 60000000 then cast($1 as bigint)
                                   else cast($2 as bigint) end)
     order by m.span",
);
// On SQLite a transaction is the only writer.
const SHARE_MARKS: Sql = Sql::each(
    "select span, start_time, tenant_no, family, outcome from key_count_marks order by span",
    "select span, start_time, tenant_no, family, outcome from key_count_marks order by span
     for share",
);
// PostgreSQL ends a transaction that stands still for so long, before who waits for its locks gives
// up. Else a process that is frozen while it writes would keep the counts of all others from being
// written.
const HOLD_BRIEFLY: Sql = Sql::each(
    "select 1",
    "select set_config('idle_in_transaction_session_timeout', '2s', true)",
);
const LOCK_MARKS: Sql = Sql::each(
    "select span, start_time, tenant_no, family, outcome from key_count_marks order by span",
    "select span, start_time, tenant_no, family, outcome from key_count_marks order by span
     for update",
);
const MOVE_MARK: Sql = Sql::same(
    "update key_count_marks set start_time = $2, tenant_no = $3, family = $4, outcome = $5
     where span = $1",
);
const AFTER_MARK: Sql = Sql::same(
    "select span, start_time, tenant_no, family, outcome, requests from key_counts
     where span = $1 and (start_time, tenant_no, family, outcome) > ($2, $3, $4, $5)
       and start_time < $6
     order by start_time, tenant_no, family, outcome limit $7",
);

// Rows of one key lie apart, one for each time. So the times that there are of a span are looked up
// one after the other, and then the rows of each: of the span itself, and of the shorter ones what
// is not rolled up yet. The `+` keeps SQLite from deriving a range of all times of `key_counts`,
// which it prefers to one time after the other.
macro_rules! read {
    ($of:literal) => {
        concat!(
            "with recursive times (span, start_time) as (
                 select cast($2 as bigint),
                        (select u.start_time from key_counts u
                         where u.span = $2 and u.start_time >= $3 order by u.start_time limit 1)
                 union all
                 select r.span,
                        (select u.start_time from key_counts u
                         where u.span = r.span and u.start_time >= r.start_time
                           and u.start_time >= $3
                         order by u.start_time limit 1)
                 from key_count_marks r where r.span < $2
                 union all
                 select t.span,
                        (select u.start_time from key_counts u
                         where u.span = t.span and u.start_time > t.start_time
                         order by u.start_time limit 1)
                 from times t where t.start_time < $4
             )
             select u.start_time - u.start_time % $2 as bucket, u.outcome,
                    cast(sum(u.requests) as bigint)
             from times t cross join key_counts u left join key_count_marks r on r.span = u.span
             where +t.start_time < $4 and u.span = t.span and u.start_time = t.start_time
               and u.tenant_no = $1 and ",
            $of,
            " and (u.span = $2 or (u.start_time, u.tenant_no, u.family, u.outcome)
                    > (r.start_time, r.tenant_no, r.family, r.outcome))
             group by bucket, u.outcome order by bucket, u.outcome"
        )
    };
}

const OF_FAMILY: Sql = Sql::same(read!("u.family = $5"));
const OF_TENANT: Sql = Sql::same(read!("true"));
// What waits to be rolled up stays, however old it is.
macro_rules! old {
    () => {
        "select k.span, k.start_time, k.tenant_no, k.family, k.outcome from key_counts k
         where k.span = $1 and k.start_time < $2 and not exists (
             select 1 from key_count_marks m
             where m.span = k.span and (k.start_time, k.tenant_no, k.family, k.outcome)
                 > (m.start_time, m.tenant_no, m.family, m.outcome))
         order by k.start_time limit $3"
    };
}
const SWEEP: Sql = Sql::each(
    concat!(
        "delete from key_counts where (span, start_time, tenant_no, family, outcome) in (",
        old!(),
        ")"
    ),
    concat!(
        "delete from key_counts where (span, start_time, tenant_no, family, outcome) in (",
        old!(),
        " for update of k skip locked)"
    ),
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[
    BEGIN,
    SWEEP_BATCHES,
    ADD,
    SET_LAST_USE,
    BEHIND_MARKS,
    SHARE_MARKS,
    HOLD_BRIEFLY,
    LOCK_MARKS,
    MOVE_MARK,
    AFTER_MARK,
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

/// Which counts are read. All of its times are positive.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    /// Length of a bucket: one of those that are stored.
    pub length: Micros,
    /// From this bucket on, which begins then.
    pub since: Micros,
    /// Buckets that begin before.
    pub until: Micros,
}

/// Start of a bucket, outcome, requests.
pub(crate) type Row = (Micros, String, i64);

/// How long marks stay as they are: until the transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// For all who only look at them.
    Shared,
    /// For who moves one.
    Alone,
}

hub_core::row! {
    struct MarkRow {
        span: Micros,
        start_time: Micros,
        tenant_no: i64,
        family: String,
        outcome: String,
    }
}

hub_core::row! {
    struct CountRow {
        span: Micros,
        start_time: Micros,
        tenant_no: i64,
        family: String,
        outcome: String,
        requests: i64,
    }
}

fn read_marks(rows: Vec<MarkRow>) -> Marks {
    let mark = |row: MarkRow| Mark {
        span: row.span,
        start: row.start_time,
        tenant_no: row.tenant_no,
        family: row.family.into(),
        outcome: row.outcome.into(),
    };
    Marks(rows.into_iter().map(mark).collect())
}

/// Begins a transaction that writes usage.
pub(crate) async fn begin(db: &Db) -> Result<Tx> {
    let mut tx = db.begin().await?;
    if db.is_postgres() {
        tx.query(HOLD_BRIEFLY).execute().await?;
    }
    Ok(tx)
}

/// Adds counts of minutes to what is stored, all or none, and to what they come too late for; a
/// batch that is stored already is left as it is.
pub(crate) async fn add(
    db: &Db,
    batch: Batch<'_>,
    mut counted: Vec<Counted>,
    now: Micros,
) -> Result<()> {
    let mut tx = begin(db).await?;
    let query = tx.query(BEGIN).bind(batch.writer_id.to_owned());
    let begun: Option<(i64,)> = query.bind(batch.number).bind(now).optional().await?;
    if begun.is_some() {
        let marks = hold_marks(&mut tx, Hold::Shared).await?;
        marks.complete(&mut counted);
        add_rows(&mut tx, &counted).await?;
        tx.commit().await?;
    }
    Ok(())
}

/// Requests by tenant and family.
type Requests<'a> = BTreeMap<i64, BTreeMap<&'a str, u64>>;

/// The same as they are, as part of a transaction: a statement for each span, start and outcome.
pub(crate) async fn add_rows(tx: &mut Tx, counted: &[Counted]) -> Result<()> {
    let mut alike: BTreeMap<(Micros, Micros, &str), Requests<'_>> = BTreeMap::new();
    for row in counted {
        let requests = alike
            .entry((row.span, row.start, &row.outcome))
            .or_default();
        let of_tenant = requests.entry(row.tenant_no).or_default();
        *of_tenant.entry(&row.family).or_default() += row.requests;
    }
    for ((span, start, outcome), requests) in alike {
        let requests = serde_json::to_string(&requests).map_err(Error::internal)?;
        let query = tx.query(ADD).bind(span).bind(start);
        let query = query.bind(outcome.to_owned()).bind(requests);
        query.execute().await?;
    }
    Ok(())
}

/// The spans of which rows that begin before a time wait to be rolled up: minutes before the first
/// time, hours before the second.
pub(crate) async fn behind_marks(db: &Db, minutes: Micros, hours: Micros) -> Result<Vec<Micros>> {
    let query = db.query(BEHIND_MARKS).bind(minutes).bind(hours);
    let spans: Vec<(Micros,)> = query.all().await?;
    Ok(spans.into_iter().map(|(span,)| span).collect())
}

/// How far each span is rolled up, until the transaction ends.
pub(crate) async fn hold_marks(tx: &mut Tx, hold: Hold) -> Result<Marks> {
    let sql = match hold {
        Hold::Shared => SHARE_MARKS,
        Hold::Alone => LOCK_MARKS,
    };
    Ok(read_marks(tx.query(sql).all().await?))
}

/// Moves the mark of its span.
pub(crate) async fn move_mark(tx: &mut Tx, to: &Mark) -> Result<()> {
    let query = tx.query(MOVE_MARK).bind(to.span).bind(to.start);
    let query = query.bind(to.tenant_no).bind((*to.family).to_owned());
    query.bind((*to.outcome).to_owned()).execute().await?;
    Ok(())
}

/// At most `count` rows behind a mark that begin before a time.
pub(crate) async fn after(
    tx: &mut Tx,
    mark: &Mark,
    before: Micros,
    count: usize,
) -> Result<Vec<Counted>> {
    let query = tx.query(AFTER_MARK).bind(mark.span).bind(mark.start);
    let query = query
        .bind(mark.tenant_no)
        .bind((*mark.family).to_owned())
        .bind((*mark.outcome).to_owned());
    let query = query
        .bind(before)
        .bind(i64::try_from(count).unwrap_or(i64::MAX));
    let read = |row: CountRow| Counted {
        tenant_no: row.tenant_no,
        family: row.family.into(),
        span: row.span,
        start: row.start_time,
        outcome: row.outcome.into(),
        requests: row.requests.unsigned_abs(),
    };
    Ok(query.all().await?.into_iter().map(read).collect())
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
    let uses = uses.iter().map(|(key_id, time)| (&**key_id, *time));
    let uses: BTreeMap<&str, Micros> = uses.collect();
    let uses = serde_json::to_string(&uses).map_err(Error::internal)?;
    let mut tx = begin(db).await?;
    tx.query(SET_LAST_USE).bind(uses).execute().await?;
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
    // The last bucket has all that lies in it.
    let until = span.until + span.length - 1;
    let until = until - until.rem_euclid(span.length);
    let query = db.query(sql).bind(tenant.number()).bind(span.length);
    let query = query.bind(span.since).bind(until);
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
