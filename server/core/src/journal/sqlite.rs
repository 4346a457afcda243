//! The journal's store on SQLite: one process, so sequences and identities are decided in memory
//! under the writer's lock, and a commit is one statement.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqliteConnection};
use tokio::sync::{Mutex, MutexGuard};

use super::direct::Direct;
use super::identities::Identities;
use super::index::Steps;
use super::ledger::{Ledger, decide};
use super::segment::{Packer, Segment};
use super::{Work, Written};
use crate::clock::{Clock, Micros};
use crate::limits::Limits;
use crate::storage::{Db, Failure, Writer};

/// Name of the derived file beside the database.
const INDEX_FILE: &str = "hub-index.db";

const HEAD: &str = "select head, record_time, routing_epoch from journal_heads where tenant_no = ?";

/// Texts that are kept prepared: for commits of so many segments.
const STATEMENTS_KEPT: usize = 32;

pub(super) struct SqliteJournal {
    sqlite: Arc<crate::storage::Sqlite>,
    direct: Direct,
    state: Mutex<State>,
    segment_bytes_max: usize,
    clock: Clock,
}

/// Only touched while the writer's lock is held.
struct State {
    heads: HashMap<i64, Head>,
    identities: Identities,
}

#[derive(Clone, Copy)]
struct Head {
    seq: u64,
    record_time: Micros,
    routing_epoch: u64,
}

struct Row {
    segment: Segment,
    tenant_no: i64,
}

impl SqliteJournal {
    pub(super) async fn open(
        db: &Db,
        clock: Clock,
        limits: &Limits,
        steps: Option<Steps>,
    ) -> Result<Self, String> {
        let sqlite = db.sqlite().ok_or("not an SQLite database")?.clone();
        let path = sqlite.beside(INDEX_FILE);
        let identities = Identities::load(db, path, limits, clock.clone(), steps)
            .await
            .map_err(|error| format!("cannot read the journal: {error}"))?;
        let state = Mutex::new(State {
            heads: HashMap::new(),
            identities,
        });
        let direct = Direct::new(sqlite.direct()?, STATEMENTS_KEPT);
        Ok(SqliteJournal {
            sqlite,
            direct,
            state,
            segment_bytes_max: limits.segment_bytes_max,
            clock,
        })
    }

    /// Commits a group: all of its segments in one statement, which is its own transaction.
    pub(super) async fn write(&self, works: &[Work<'_>]) -> Result<Vec<Written>, Failure> {
        let mut writer = self.sqlite.writer().await?;
        let mut state = self.state.lock().await;
        // Memory stays bounded while the derived index cannot be written.
        if state.identities.overfull() {
            state.identities.tend().await;
            return Err(sqlx::Error::Io(std::io::Error::other("the index falls behind")).into());
        }
        let plan = self.plan(&mut writer, &mut state, works).await?;
        writer.set_dirty(true);
        let done = match self.insert_directly(&plan.rows) {
            true => Ok(()),
            false => self.insert(writer.connection(), &plan.rows).await,
        };
        match done {
            Ok(()) => {
                writer.set_dirty(false);
                Ok(self.finish(state, plan).await)
            }
            Err(error) => {
                writer.rollback().await;
                undo(&mut state, &plan);
                Err(error.into())
            }
        }
    }

    /// Ends a domain's transaction with its events.
    pub(super) async fn commit(
        &self,
        mut writer: tokio::sync::OwnedMutexGuard<Writer>,
        works: &[Work<'_>],
    ) -> Result<Vec<Written>, Failure> {
        let mut state = self.state.lock().await;
        for work in works {
            // The transaction itself may have raised the epoch.
            state.heads.remove(&work.log.tenant().number());
        }
        let plan = self.plan(&mut writer, &mut state, works).await?;
        let done = match self.insert(writer.connection(), &plan.rows).await {
            Ok(()) => writer.commit().await,
            Err(error) => {
                writer.rollback().await;
                Err(error.into())
            }
        };
        match done {
            Ok(()) => Ok(self.finish(state, plan).await),
            Err(failure) => {
                undo(&mut state, &plan);
                Err(failure)
            }
        }
    }

    async fn plan(
        &self,
        writer: &mut Writer,
        state: &mut State,
        works: &[Work<'_>],
    ) -> Result<Plan, Failure> {
        // All that can fail comes before the first claim: a claim that nothing takes back would
        // answer the next try of the event with a place where it is not.
        let older = state.identities.older_of(works).await?;
        let heads = load_heads(writer, state, works).await?;
        let mut plan = Plan::default();
        for (work, head) in works.iter().zip(heads) {
            let tenant_no = work.log.tenant().number();
            let record_time = head.record_time.max(self.clock.now());
            let mut ledger = Ledger {
                seen: &mut state.identities.recent,
                older: &older,
                claimed: Vec::with_capacity(work.events()),
            };
            let mut packer = Packer::new(work, works.len(), self.segment_bytes_max);
            let mut next = head.seq + 1;
            let outcomes = work
                .appends
                .iter()
                .map(|append| decide(append, &mut ledger, &mut next, &mut packer))
                .collect();
            plan.claimed.append(&mut ledger.claimed);
            plan.outcomes.push(outcomes);
            let builders = packer.finish();
            plan.segments.push(builders.len());
            let mut first = head.seq + 1;
            for builder in builders {
                let tenant = work.log.tenant().clone();
                let segment = Segment::new(tenant, first, record_time, builder.ids, builder.data)
                    .under(head.routing_epoch);
                first = segment.last() + 1;
                plan.rows.push(Row { segment, tenant_no });
            }
        }
        Ok(plan)
    }

    fn insert_directly(&self, rows: &[Row]) -> bool {
        let segments = rows.iter().map(|row| (row.tenant_no, &row.segment));
        !rows.is_empty() && self.direct.insert(&insert_text(rows.len()), segments)
    }

    /// One statement, which is whole or nothing; nothing new is nothing to do.
    async fn insert(&self, connection: &mut SqliteConnection, rows: &[Row]) -> sqlx::Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut query = sqlx::query(AssertSqlSafe(insert_text(rows.len())));
        for Row { segment, tenant_no } in rows {
            query = query
                .bind((tenant_no << super::segment::SEQ_BITS) + segment.first() as i64)
                .bind(*tenant_no)
                .bind(segment.count())
                .bind(segment.record_time())
                .bind(segment.ids().to_vec())
                .bind(segment.data().to_vec())
                .bind(segment.routing_epoch().cast_signed());
        }
        query.execute(connection).await?;
        Ok(())
    }

    async fn finish(&self, mut state: MutexGuard<'_, State>, plan: Plan) -> Vec<Written> {
        for row in &plan.rows {
            let head = Head {
                seq: row.segment.last(),
                record_time: row.segment.record_time(),
                routing_epoch: row.segment.routing_epoch(),
            };
            state.heads.insert(row.tenant_no, head);
        }
        state.identities.tend().await;
        let mut rows = plan.rows.into_iter();
        plan.outcomes
            .into_iter()
            .zip(plan.segments)
            .map(|(outcomes, segments)| Written {
                outcomes,
                segments: rows
                    .by_ref()
                    .take(segments)
                    .map(|row| Arc::new(row.segment))
                    .collect(),
            })
            .collect()
    }

    /// Where an event with this identity is stored.
    pub(super) async fn find(&self, identity: u128) -> Result<Option<i64>, Failure> {
        let known = self.state.lock().await.identities.find(identity).await?;
        Ok(known.map(|known| known.key))
    }

    pub(super) async fn close(&self) {
        let mut state = self.state.lock().await;
        self.direct.close();
        state.identities.close().await;
    }
}

/// What a commit will store; undone if it fails.
#[derive(Default)]
struct Plan {
    rows: Vec<Row>,
    /// How many of the rows each work has.
    segments: Vec<usize>,
    outcomes: Vec<Vec<Vec<super::Outcome>>>,
    claimed: Vec<u128>,
}

/// The statement that inserts so many segments.
fn insert_text(rows: usize) -> String {
    let values = vec!["(?,?,?,?,?,?,?)"; rows].join(",");
    format!("insert into journal_segments values {values}")
}

/// Heads are read again from the file: after an error only it knows them.
fn undo(state: &mut State, plan: &Plan) {
    for identity in &plan.claimed {
        state.identities.recent.remove(identity);
    }
    state.heads.clear();
}

/// One for each work, in its order.
async fn load_heads(
    writer: &mut Writer,
    state: &mut State,
    works: &[Work<'_>],
) -> Result<Vec<Head>, Failure> {
    let mut heads = Vec::with_capacity(works.len());
    for work in works {
        let tenant_no = work.log.tenant().number();
        let head = match state.heads.get(&tenant_no) {
            Some(head) => *head,
            None => load_head(writer.connection(), tenant_no).await?,
        };
        state.heads.insert(tenant_no, head);
        heads.push(head);
    }
    Ok(heads)
}

async fn load_head(connection: &mut SqliteConnection, tenant_no: i64) -> Result<Head, Failure> {
    let (seq, record_time, routing_epoch): (i64, i64, i64) = sqlx::query_as(HEAD)
        .bind(tenant_no)
        .fetch_one(connection)
        .await?;
    Ok(Head {
        seq: seq as u64,
        record_time,
        routing_epoch: routing_epoch.unsigned_abs(),
    })
}
