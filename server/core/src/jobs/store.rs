//! The statements about jobs. States are the numbers of `hub.core.v1.JobState`: 1 queued,
//! 2 running, 3 paused, 4 needs confirmation, 5 succeeded, 6 failed, 7 cancelled.

use hub_proto::hub::core::v1::JobState;

use super::control::Controlled;
use super::job::{errors_from_json, errors_to_json};
use super::run::{Claimed, Next, Progress};
use super::{Filter, Job, NewJob};
use crate::clock::Micros;
use crate::error::{Error, Result};
use crate::journal::TenantRef;
use crate::storage::{Db, Failure, Sql, Tx};

/// The columns of [`Row`].
macro_rules! columns {
    () => {
        "job_id, kind, state, resource, total, done, failed, counters, errors, message, dry_run,
         created_by, create_time, complete_time"
    };
}

const INSERT: Sql = Sql::same(
    "insert into jobs (job_id, tenant_no, kind, state, resource, total, done, failed, counters,
        errors, message, dry_run, created_by, create_time, complete_time, confirmed,
        max_per_second, parameters, progress, failures, due, owner, lease_end, epoch, claim_time)
     values ($1, $2, $3, $4, $5, $6, 0, 0, '{}', '[]', '', $7, $8, $9, null, $10, $11, $12, $13, 0,
        $9, '', 0, 0, 0)",
);
const UNFINISHED: Sql =
    Sql::same("select count(*) from jobs where tenant_no = $1 and complete_time is null");
const FIND: Sql = Sql::same(concat!(
    "select ",
    columns!(),
    " from jobs where tenant_no = $1 and job_id = $2"
));
const LOCK: Sql = Sql::each(
    concat!(
        "select ",
        columns!(),
        " from jobs where tenant_no = $1 and job_id = $2"
    ),
    concat!(
        "select ",
        columns!(),
        " from jobs where tenant_no = $1 and job_id = $2 for update"
    ),
);
const LIST: Sql = Sql::same(concat!(
    "select ",
    columns!(),
    " from jobs where tenant_no = $1 and (create_time, job_id) < ($2, $3)
        and substr(kind, 1, length(cast($4 as text))) = cast($4 as text)
        and (cast($5 as bigint) >> cast(state as integer)) & 1 = 1
     order by create_time desc, job_id desc limit $6"
));
const CONTROL: Sql = Sql::same(
    "update jobs set state = $3, complete_time = $4, confirmed = (confirmed or $5), message = '',
        due = $6, failures = 0
     where tenant_no = $1 and job_id = $2",
);
// The job of a tenant that has waited longest for a chunk comes first; behind all that may begin
// now, what may begin later. `$3`: no other process is on this database, so that what another owner
// has was left behind by a process that is gone.
const NEXT: Sql = Sql::each(
    "select job_id, due from (
         select job_id, due, owner, lease_end, claim_time,
             max(claim_time) over (partition by tenant_no) as served
         from jobs where complete_time is null and state in (1, 2)
             and kind in (select value from json_each($1))) as unfinished
     where owner = '' or lease_end <= $2 or ($3 and owner <> $4)
     order by case when due <= $2 then 0 else 1 end, case when due <= $2 then served else due end,
         due, claim_time, job_id limit $5",
    "select job_id, due from (
         select job_id, due, owner, lease_end, claim_time,
             max(claim_time) over (partition by tenant_no) as served
         from jobs where complete_time is null and state in (1, 2)
             and kind in (select jsonb_array_elements_text(cast($1 as jsonb)))) as unfinished
     where owner = '' or lease_end <= $2 or ($3 and owner <> $4)
     order by case when due <= $2 then 0 else 1 end, case when due <= $2 then served else due end,
         due, claim_time, job_id limit $5",
);
// An owner that is named still did not come to the end of its chunk.
const CLAIM: Sql = Sql::same(concat!(
    "update jobs set state = 2, owner = $4, lease_end = $5, claim_time = $2, epoch = epoch + 1,
        failures = failures + case when owner = '' then 0 else 1 end
     where job_id = $1 and state in (1, 2) and due <= $2
        and (owner = '' or lease_end <= $2 or ($3 and owner <> $4))
     returning ",
    columns!(),
    ", tenant_no, coalesce((select tenant_id from tenants
            where tenants.tenant_no = jobs.tenant_no), '') as tenant_id,
        confirmed, max_per_second, parameters, progress, failures, epoch, claim_time"
));
const RENEW: Sql =
    Sql::same("update jobs set lease_end = $3 where job_id = $1 and epoch = $2 and owner <> ''");
// What ControlJob did meanwhile stays: a cancelled job is not revived. One that is paused and has
// nothing left to do has ended.
const SAVE: Sql = Sql::same(
    "update jobs set total = $4, done = $5, failed = $6, counters = $7, errors = $8,
        progress = $10, failures = $11, due = $12, owner = '',
        state = case when state = 7 then state when $3 in (5, 6) then $3
            when state in (1, 2) then $3 else state end,
        message = case when state in (1, 2) or (state <> 7 and $3 in (5, 6)) then $9
            else message end,
        complete_time = case when state <> 7 and $3 in (5, 6) then $13 else complete_time end
     where job_id = $1 and epoch = $2 and owner <> ''",
);
const SWEEP: Sql = Sql::each(
    "delete from jobs where job_id in (
         select job_id from jobs where complete_time <= $1 order by complete_time limit $2)",
    "delete from jobs where job_id in (
         select job_id from jobs where complete_time <= $1 order by complete_time limit $2
         for update skip locked)",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[
    INSERT, UNFINISHED, FIND, LOCK, LIST, CONTROL, NEXT, CLAIM, RENEW, SAVE, SWEEP,
];

crate::row! {
    struct Row {
        job_id: String,
        kind: String,
        state: i64,
        resource: String,
        total: i64,
        done: i64,
        failed: i64,
        counters: String,
        errors: String,
        message: String,
        dry_run: bool,
        created_by: String,
        create_time: Micros,
        complete_time: Option<Micros>,
    }
}

crate::row! {
    struct ClaimedRow {
        tenant_no: i64,
        tenant_id: String,
        confirmed: bool,
        max_per_second: i64,
        parameters: Vec<u8>,
        progress: Vec<u8>,
        failures: i64,
        epoch: i64,
        claim_time: Micros,
    } and job: Row
}

/// Who asks for work, and what it can do.
pub(super) struct Asker<'a> {
    /// Names of kinds, as a list in JSON.
    pub kinds: &'a str,
    pub owner: &'a str,
    /// No other process is on this database.
    pub alone: bool,
}

pub(super) async fn insert(tx: &mut Tx, tenant: &TenantRef, job: &Job, new: NewJob) -> Result<()> {
    tx.query(INSERT)
        .bind(job.job_id.clone())
        .bind(tenant.number())
        .bind(job.kind.clone())
        .bind(i64::from(job.state as i32))
        .bind(job.resource.clone())
        .bind(job.total)
        .bind(job.dry_run)
        .bind(job.created_by.clone())
        .bind(job.create_time)
        .bind(false)
        .bind(i64::from(new.max_per_second))
        .bind(new.parameters)
        .bind(Vec::<u8>::new())
        .execute()
        .await?;
    Ok(())
}

/// Jobs of a tenant that have not ended.
pub(super) async fn unfinished(tx: &mut Tx, tenant: &TenantRef) -> Result<i64> {
    let query = tx.query(UNFINISHED).bind(tenant.number());
    let (count,): (i64,) = query.one().await?;
    Ok(count)
}

pub(super) async fn find(db: &Db, tenant: &TenantRef, job_id: &str) -> Result<Option<Job>> {
    let query = db.query(FIND).bind(tenant.number());
    let row: Option<Row> = query.bind(job_id.to_owned()).optional().await?;
    row.map(job).transpose()
}

pub(super) async fn lock(tx: &mut Tx, tenant: &TenantRef, job_id: &str) -> Result<Option<Job>> {
    let query = tx.query(LOCK).bind(tenant.number());
    let row: Option<Row> = query.bind(job_id.to_owned()).optional().await?;
    row.map(job).transpose()
}

/// At most `count` jobs, newest first, before the one of this time and id.
pub(super) async fn list(
    db: &Db,
    tenant: &TenantRef,
    filter: &Filter,
    before: Option<(Micros, &str)>,
    count: usize,
) -> Result<Vec<Job>> {
    let (time, job_id) = before.unwrap_or((Micros::MAX, ""));
    let rows: Vec<Row> = db
        .query(LIST)
        .bind(tenant.number())
        .bind(time)
        .bind(job_id.to_owned())
        .bind(filter.kind.clone())
        .bind(bits(&filter.states))
        .bind(i64::try_from(count).unwrap_or(i64::MAX))
        .all()
        .await?;
    rows.into_iter().map(job).collect()
}

/// A bit for each state that is wanted; none named = all.
fn bits(states: &[JobState]) -> i64 {
    let bits = states.iter().map(|state| 1 << (*state as i32));
    match states {
        [] => i64::MAX,
        _ => bits.fold(0, |all, bit| all | bit),
    }
}

pub(super) async fn control(
    tx: &mut Tx,
    tenant: &TenantRef,
    job_id: &str,
    controlled: Controlled,
    now: Micros,
) -> Result<()> {
    let ends = controlled.state == JobState::Cancelled;
    tx.query(CONTROL)
        .bind(tenant.number())
        .bind(job_id.to_owned())
        .bind(i64::from(controlled.state as i32))
        .bind(ends.then_some(now))
        .bind(controlled.confirmed)
        .bind(now)
        .execute()
        .await?;
    Ok(())
}

/// At most `count` jobs that somebody could begin a chunk of, each with the time from which on.
pub(super) async fn next(
    db: &Db,
    asker: &Asker<'_>,
    now: Micros,
    count: i64,
) -> Result<Vec<(String, Micros)>> {
    let rows = db
        .query(NEXT)
        .bind(asker.kinds.to_owned())
        .bind(now)
        .bind(asker.alone)
        .bind(asker.owner.to_owned())
        .bind(count)
        .all()
        .await?;
    Ok(rows)
}

/// Takes a job for one chunk, unless somebody else has it.
pub(super) async fn claim(
    tx: &mut Tx,
    asker: &Asker<'_>,
    job_id: &str,
    now: Micros,
    lease_end: Micros,
) -> Result<Option<Claimed>> {
    let row: Option<ClaimedRow> = tx
        .query(CLAIM)
        .bind(job_id.to_owned())
        .bind(now)
        .bind(asker.alone)
        .bind(asker.owner.to_owned())
        .bind(lease_end)
        .optional()
        .await?;
    let claimed = |row: ClaimedRow| {
        Ok(Claimed {
            job: job(row.job)?,
            tenant: TenantRef::new(row.tenant_no, &row.tenant_id),
            confirmed: row.confirmed,
            max_per_second: row.max_per_second,
            parameters: row.parameters,
            progress: row.progress,
            failures: row.failures,
            epoch: row.epoch,
            claim_time: row.claim_time,
        })
    };
    row.map(claimed).transpose()
}

/// Keeps a job for its chunk; false if it was lost.
pub(super) async fn renew(
    tx: &mut Tx,
    job_id: &str,
    epoch: i64,
    lease_end: Micros,
) -> Result<bool> {
    let query = tx.query(RENEW).bind(job_id.to_owned()).bind(epoch);
    Ok(query.bind(lease_end).execute().await? > 0)
}

/// Stores where a job stands after a chunk and gives it back; false if it was lost.
pub(super) async fn save(tx: &mut Tx, claimed: &Claimed, new: Progress) -> Result<bool> {
    let state = match new.next {
        Next::More => JobState::Running,
        Next::Finished => JobState::Succeeded,
        Next::Confirm(_) => JobState::NeedsConfirmation,
        Next::Failed(_) => JobState::Failed,
    };
    let message = match new.next {
        Next::More | Next::Finished => String::new(),
        Next::Confirm(message) | Next::Failed(message) => message,
    };
    let saved = tx
        .query(SAVE)
        .bind(claimed.job.job_id.clone())
        .bind(claimed.epoch)
        .bind(i64::from(state as i32))
        .bind(new.total)
        .bind(new.done)
        .bind(new.failed)
        .bind(serde_json::to_string(&new.counters).map_err(Error::internal)?)
        .bind(errors_to_json(&new.errors))
        .bind(message)
        .bind(new.bytes)
        .bind(new.failures)
        .bind(new.due)
        .bind(new.time)
        .execute()
        .await?;
    Ok(saved > 0)
}

/// Removes at most `count` jobs that ended up to a time; returns how many.
pub(super) async fn sweep(tx: &mut Tx, ended: Micros, count: i64) -> Result<u64, Failure> {
    tx.query(SWEEP).bind(ended).bind(count).execute().await
}

fn job(row: Row) -> Result<Job> {
    let damaged = |what| Error::internal(format!("{what} of job {} is damaged", row.job_id));
    let state = i32::try_from(row.state).ok();
    let state = state.and_then(|state| JobState::try_from(state).ok());
    Ok(Job {
        state: state.ok_or_else(|| damaged("the state"))?,
        counters: serde_json::from_str(&row.counters).map_err(|_| damaged("a counter"))?,
        errors: errors_from_json(&row.errors).ok_or_else(|| damaged("an error"))?,
        job_id: row.job_id,
        kind: row.kind,
        resource: row.resource,
        total: row.total,
        done: row.done,
        failed: row.failed,
        message: row.message,
        dry_run: row.dry_run,
        created_by: row.created_by,
        create_time: row.create_time,
        complete_time: row.complete_time,
    })
}
