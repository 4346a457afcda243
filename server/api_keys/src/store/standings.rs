//! Statements about what the processes counted of the requests of a subject.

use std::collections::HashMap;

use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::storage::{Db, Sql, Tx};

/// Rows that one transaction of a sweep removes.
const SWEPT_MAX: i64 = 1000;

const LOCK: Sql = Sql::each(
    "select subject, standings from rate_standings
     where subject in (select value from json_each($1)) order by subject",
    "select subject, standings from rate_standings
     where subject in (select jsonb_array_elements_text(cast($1 as jsonb)))
     order by subject for update",
);
const INSERT: Sql = Sql::same(
    "insert into rate_standings (subject, standings, update_time) values ($1, $2, $3)
     on conflict (subject) do nothing",
);
const UPDATE: Sql =
    Sql::same("update rate_standings set standings = $2, update_time = $3 where subject = $1");
// What is refreshed meanwhile stays: PostgreSQL looks at a row again when it locks it. Processes
// that sweep at once do not wait for each other.
const SWEEP: Sql = Sql::each(
    "delete from rate_standings where subject in (
         select subject from rate_standings where update_time < $1 order by update_time limit $2)",
    "delete from rate_standings where subject in (
         select subject from rate_standings where update_time < $1 order by update_time limit $2
         for update skip locked)",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[LOCK, INSERT, UPDATE, SWEEP];

/// What is stored of these subjects, by name; nobody else changes it until `tx` ends.
pub(crate) async fn lock(tx: &mut Tx, names: &[String]) -> Result<HashMap<String, String>> {
    let names = serde_json::json!(names).to_string();
    let rows: Vec<(String, String)> = tx.query(LOCK).bind(names).all().await?;
    Ok(rows.into_iter().collect())
}

/// Stores subjects: name, whether it was there, standings. False if one that was not there is there
/// now: then nothing of `tx` may be kept.
pub(crate) async fn put(
    tx: &mut Tx,
    changed: &mut [(String, bool, String)],
    now: Micros,
) -> Result<bool> {
    // All processes add in one order, so that none waits for another that waits for it.
    changed.sort();
    for (name, was_there, standings) in changed {
        let sql = if *was_there { UPDATE } else { INSERT };
        let query = tx.query(sql).bind(name.clone());
        let query = query.bind(standings.clone()).bind(now);
        if query.execute().await? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes subjects that nobody counted since a time; true if there may be more.
pub(crate) async fn sweep(db: &Db, before: Micros) -> Result<bool> {
    let mut tx = db.begin().await?;
    let query = tx.query(SWEEP).bind(before).bind(SWEPT_MAX);
    let swept = query.execute().await?;
    tx.commit().await?;
    Ok(swept >= SWEPT_MAX.unsigned_abs())
}
