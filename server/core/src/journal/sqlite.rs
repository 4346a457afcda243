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
use super::segment::{Builder, Cut, RowOf, Segment, rows};
use super::{Work, Written};
use crate::clock::{Clock, Micros};
use crate::limits::Limits;
use crate::storage::{Db, Failure, Writer};

/// Name of the derived file beside the database.
const INDEX_FILE: &str = "hub-index.db";

const HEAD: &str = "select head, record_time, routing_epoch from journal_heads where tenant_no = ?";

/// Texts that are kept: for commits of so many rows.
const STATEMENTS_KEPT: usize = 32;

pub(super) struct SqliteJournal {
    sqlite: Arc<crate::storage::Sqlite>,
    direct: Direct,
    state: Mutex<State>,
    /// One text for each number of rows in a commit, up to [`STATEMENTS_KEPT`].
    inserts: Vec<Arc<str>>,
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

/// What a commit stores of a tenant.
struct Stored {
    segment: Segment,
    cuts: Vec<Cut>,
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
        let inserts = (1..=STATEMENTS_KEPT).map(insert_text).collect();
        let state = Mutex::new(State {
            heads: HashMap::new(),
            identities,
        });
        let direct = Direct::new(sqlite.direct()?, STATEMENTS_KEPT);
        Ok(SqliteJournal {
            sqlite,
            direct,
            state,
            inserts,
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
        let done = match self.insert_directly(&plan) {
            true => Ok(()),
            false => self.insert(writer.connection(), &plan).await,
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
        let done = match self.insert(writer.connection(), &plan).await {
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
            let record_time = head.record_time.max(self.clock.now());
            let mut ledger = Ledger {
                seen: &mut state.identities.recent,
                older: &older,
                claimed: Vec::with_capacity(work.events()),
            };
            let mut builder = Builder::new(work, works.len(), self.segment_bytes_max);
            let mut next = head.seq + 1;
            let outcomes = work
                .appends
                .iter()
                .map(|append| decide(append, &mut ledger, &mut next, &mut builder))
                .collect();
            plan.claimed.append(&mut ledger.claimed);
            plan.outcomes.push(outcomes);
            plan.stored.push((builder.count > 0).then(|| {
                let tenant = work.log.tenant().clone();
                let first = head.seq + 1;
                let segment = Segment::new(tenant, first, record_time, builder.ids, builder.data)
                    .under(head.routing_epoch);
                let cuts = builder.cuts;
                Stored { segment, cuts }
            }));
        }
        Ok(plan)
    }

    /// Nothing new is nothing to do.
    fn insert_directly(&self, plan: &Plan) -> bool {
        let count = plan.rows().count();
        let stored = count > 0 && self.direct.insert(&self.text(count), plan.rows());
        if stored {
            let bytes = plan.rows().map(|(_, row)| row.ids.len() + row.data.len());
            self.sqlite.stored(bytes.sum());
        }
        stored
    }

    /// One statement, which is whole or nothing.
    async fn insert(&self, connection: &mut SqliteConnection, plan: &Plan) -> sqlx::Result<()> {
        let count = plan.rows().count();
        if count == 0 {
            return Ok(());
        }
        let mut query = sqlx::query(AssertSqlSafe(self.text(count)));
        for (segment, row) in plan.rows() {
            query = query
                .bind(segment.key_of(&row))
                .bind(segment.tenant_no())
                .bind(row.count)
                .bind(segment.record_time())
                .bind(row.ids.to_vec())
                .bind(row.data.to_vec())
                .bind(segment.routing_epoch().cast_signed());
        }
        query.execute(connection).await?;
        Ok(())
    }

    /// The statement that inserts so many rows.
    fn text(&self, rows: usize) -> Arc<str> {
        let kept = rows.checked_sub(1).and_then(|at| self.inserts.get(at));
        kept.cloned().unwrap_or_else(|| insert_text(rows))
    }

    async fn finish(&self, mut state: MutexGuard<'_, State>, plan: Plan) -> Vec<Written> {
        for Stored { segment, .. } in plan.stored.iter().flatten() {
            let head = Head {
                seq: segment.last(),
                record_time: segment.record_time(),
                routing_epoch: segment.routing_epoch(),
            };
            state.heads.insert(segment.tenant_no(), head);
        }
        state.identities.tend().await;
        plan.outcomes
            .into_iter()
            .zip(plan.stored)
            .map(|(outcomes, stored)| Written {
                outcomes,
                segment: stored.map(|stored| Arc::new(stored.segment)),
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
    /// For each work; none if nothing of it was new.
    stored: Vec<Option<Stored>>,
    outcomes: Vec<Vec<Vec<super::Outcome>>>,
    claimed: Vec<u128>,
}

impl Plan {
    fn rows(&self) -> impl Iterator<Item = (&Segment, RowOf<'_>)> {
        self.stored.iter().flatten().flat_map(|stored| {
            let segment = &stored.segment;
            let rows = rows(segment.ids(), segment.data(), &stored.cuts);
            rows.map(move |row| (segment, row))
        })
    }
}

fn insert_text(rows: usize) -> Arc<str> {
    let values = vec!["(?,?,?,?,?,?,?)"; rows].join(",");
    format!("insert into journal_segments values {values}").into()
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
        heads.push(head);
    }
    // Not before all are there: one that fails is followed by no commit, which would set right what
    // this transaction alone has changed.
    for (work, head) in works.iter().zip(&heads) {
        state.heads.insert(work.log.tenant().number(), *head);
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
