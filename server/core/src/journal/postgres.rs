//! The journal's store on PostgreSQL: many processes, so the head row is the lock and a unique
//! table of identities the authority.
//!
//! One tenant's commit is one statement that assumes every event to be new. A unique violation
//! is the slow path: lock the head, look the identities up, store the rest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};

use super::ledger::{Known, Ledger, Seen, decide};
use super::segment::{Builder, SEQ_BITS, Segment};
use super::{Append, Outcome, Work, Written};
use crate::clock::{Clock, Micros};
use crate::storage::{Db, Failure};

const APPEND: &str = "
with head as (
    update journal_heads set head = head + $2, record_time = greatest(record_time, $3)
    where tenant_no = $1 returning head - $2 as base, record_time),
known as (
    insert into journal_identities (identity, key, content)
    select new.identity, ($1::bigint << 40) + head.base + new.place, new.content
    from head, unnest($4::bytea[], $5::bytea[]) with ordinality new (identity, content, place))
insert into journal_segments (key, tenant_no, n, record_time, ids, data)
select ($1::bigint << 40) + head.base + 1, $1, $2, head.record_time, $6, $7 from head
returning key & ((1::bigint << 40) - 1), record_time";

const LOCK: &str = "select tenant_no, head, record_time from journal_heads
where tenant_no = any($1) order by tenant_no for update";

/// A tenant that is busy in another process does not hold up the others.
const LOCK_FREE: &str = "select tenant_no, head, record_time from journal_heads
where tenant_no = any($1) order by tenant_no for update skip locked";

const KNOWN: &str =
    "select identity, key, content from journal_identities where identity = any($1)";

const STORE: &str = "
with head as (
    update journal_heads set head = new.head, record_time = new.record_time
    from unnest($1::bigint[], $2::bigint[], $3::bigint[]) new (tenant_no, head, record_time)
    where journal_heads.tenant_no = new.tenant_no),
known as (
    insert into journal_identities (identity, key, content)
    select * from unnest($4::bytea[], $5::bigint[], $6::bytea[]))
insert into journal_segments (key, tenant_no, n, record_time, ids, data)
select * from unnest($7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bytea[],
    $12::bytea[])";

const HEADS: &str = "select tenant_no, head from journal_heads where tenant_no = any($1)";

/// Statements of this file, for the test that prepares them.
pub(super) const STATEMENTS: &[&str] = &[APPEND, LOCK, LOCK_FREE, KNOWN, STORE, HEADS];

/// Within the time that an append may wait for its turn.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections of the sequencer: one commits at a time, one may be on its way out.
const CONNECTIONS_MAX: u32 = 2;

pub(super) struct PostgresJournal {
    /// Its own connections, so that commits never wait for readers.
    pool: PgPool,
    readers: PgPool,
    clock: Clock,
}

impl PostgresJournal {
    pub(super) fn open(db: &Db, clock: Clock) -> Result<Self, String> {
        let shared = db.postgres().ok_or("not a PostgreSQL database")?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A ping before each commit would be a second round trip. A connection that is gone
            // costs its group a STORE_BUSY.
            .test_before_acquire(false)
            .connect_lazy_with((*shared.connect_options()).clone());
        Ok(PostgresJournal {
            pool,
            readers: shared.clone(),
            clock,
        })
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    /// The last sequence of each of these tenants, by number.
    pub(super) async fn heads(&self, tenants: &[i64]) -> Result<HashMap<i64, u64>, Failure> {
        let rows: Vec<(i64, i64)> = sqlx::query_as(HEADS)
            .bind(tenants)
            .fetch_all(&self.readers)
            .await?;
        let heads = rows.into_iter();
        Ok(heads.map(|(number, head)| (number, head as u64)).collect())
    }

    /// Commits a group; `None` for a log whose head another process holds.
    pub(super) async fn write(&self, works: &[Work<'_>]) -> Result<Vec<Option<Written>>, Failure> {
        if let [work] = works {
            match self.append(work).await {
                Err(failure) if failure.is_unique_violation() => {}
                done => return done.map(|written| vec![Some(written)]),
            }
        }
        let lock = if works.len() > 1 { LOCK_FREE } else { LOCK };
        let mut tx = self.pool.begin().await?;
        let written = self.write_in(&mut tx, works, lock).await?;
        tx.commit().await?;
        Ok(written)
    }

    /// Ends a domain's transaction with its events.
    pub(super) async fn commit(
        &self,
        mut tx: Transaction<'static, Postgres>,
        works: &[Work<'_>],
    ) -> Result<Vec<Written>, Failure> {
        let written = self.write_in(&mut tx, works, LOCK).await?;
        tx.commit().await?;
        Ok(written.into_iter().flatten().collect())
    }

    /// One statement, one round trip: everything is assumed to be new.
    async fn append(&self, work: &Work<'_>) -> Result<Written, Failure> {
        let mut builder = Builder::with_capacity(work.events(), work.bytes());
        let mut identities = Vec::with_capacity(work.events());
        let mut contents = Vec::with_capacity(work.events());
        for append in &work.appends {
            for (at, event) in append.events.iter().enumerate() {
                builder.push(event, at == 0 || append.independent);
                identities.push(event.identity.to_be_bytes().to_vec());
                contents.push(event.content.to_be_bytes().to_vec());
            }
        }
        let row: Option<(i64, Micros)> = sqlx::query_as(APPEND)
            .bind(work.log.tenant().number())
            .bind(i64::from(builder.count))
            .bind(self.clock.now())
            .bind(identities)
            .bind(contents)
            .bind(&builder.ids)
            .bind(&builder.data)
            .fetch_optional(&self.pool)
            .await?;
        let (first, record_time) = row.ok_or(Failure::from(sqlx::Error::RowNotFound))?;
        let mut next = first as u64;
        let outcomes = work
            .appends
            .iter()
            .map(|append| all_stored(append, &mut next))
            .collect();
        let tenant = work.log.tenant().clone();
        let segment = Segment::new(tenant, first as u64, record_time, builder.ids, builder.data);
        Ok(Written {
            outcomes,
            segment: Some(Arc::new(segment)),
        })
    }

    /// Under the heads' locks, in the order of the tenants' numbers so that no two processes wait
    /// for each other.
    async fn write_in(
        &self,
        connection: &mut PgConnection,
        works: &[Work<'_>],
        lock: &'static str,
    ) -> Result<Vec<Option<Written>>, Failure> {
        let tenants: Vec<i64> = works
            .iter()
            .map(|work| work.log.tenant().number())
            .collect();
        let heads: Vec<(i64, i64, Micros)> = sqlx::query_as(LOCK)
            .bind(&tenants)
            .fetch_all(&mut *connection)
            .await?;
        let older = known(connection, works).await?;
        let mut rows = Rows::default();
        let mut written = Vec::with_capacity(works.len());
        for work in works {
            let tenant_no = work.log.tenant().number();
            match heads.iter().find(|head| head.0 == tenant_no) {
                Some((_, head, last_time)) => {
                    let record_time = (*last_time).max(self.clock.now());
                    let planned = plan(work, &older, *head as u64, record_time, &mut rows);
                    written.push(Some(planned));
                }
                None if lock == LOCK_FREE => written.push(None),
                None => return Err(sqlx::Error::RowNotFound.into()),
            }
        }
        if !rows.keys.is_empty() {
            rows.store(connection).await?;
        }
        Ok(written)
    }
}

fn all_stored(append: &Append, next: &mut u64) -> Vec<Outcome> {
    let first = *next;
    *next += append.events.len() as u64;
    (first..*next).map(|seq| Outcome::Stored { seq }).collect()
}

async fn known(connection: &mut PgConnection, works: &[Work<'_>]) -> Result<Seen, Failure> {
    let identities: Vec<Vec<u8>> = works
        .iter()
        .flat_map(|work| &work.appends)
        .flat_map(|append| &append.events)
        .map(|event| event.identity.to_be_bytes().to_vec())
        .collect();
    let rows: Vec<(Vec<u8>, i64, Vec<u8>)> = sqlx::query_as(KNOWN)
        .bind(identities)
        .fetch_all(connection)
        .await?;
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0u128, |value, b| value << 8 | u128::from(*b))
    };
    Ok(rows
        .into_iter()
        .map(|(identity, key, content)| {
            (
                number(&identity),
                Known {
                    key,
                    content: number(&content),
                },
            )
        })
        .collect())
}

fn plan(work: &Work<'_>, older: &Seen, head: u64, record_time: Micros, rows: &mut Rows) -> Written {
    let mut seen = Seen::default();
    let mut ledger = Ledger {
        seen: &mut seen,
        older,
        claimed: Vec::new(),
    };
    let mut builder = Builder::with_capacity(work.events(), work.bytes());
    let mut next = head + 1;
    let outcomes = work
        .appends
        .iter()
        .map(|append| decide(append, &mut ledger, &mut next, &mut builder))
        .collect();
    if builder.count == 0 {
        return Written {
            outcomes,
            segment: None,
        };
    }
    let tenant = work.log.tenant().clone();
    for (identity, known) in seen {
        rows.identities.push(identity.to_be_bytes().to_vec());
        rows.identity_keys.push(known.key);
        rows.contents.push(known.content.to_be_bytes().to_vec());
    }
    rows.tenants.push(tenant.number());
    rows.heads.push(next as i64 - 1);
    rows.times.push(record_time);
    rows.keys
        .push((tenant.number() << SEQ_BITS) + head as i64 + 1);
    rows.counts.push(i64::from(builder.count));
    rows.ids.push(builder.ids.clone());
    rows.data.push(builder.data.clone());
    let segment = Segment::new(tenant, head + 1, record_time, builder.ids, builder.data);
    Written {
        outcomes,
        segment: Some(Arc::new(segment)),
    }
}

/// Columns of what a commit stores.
#[derive(Default)]
struct Rows {
    tenants: Vec<i64>,
    heads: Vec<i64>,
    times: Vec<Micros>,
    identities: Vec<Vec<u8>>,
    identity_keys: Vec<i64>,
    contents: Vec<Vec<u8>>,
    keys: Vec<i64>,
    counts: Vec<i64>,
    ids: Vec<Vec<u8>>,
    data: Vec<Vec<u8>>,
}

impl Rows {
    async fn store(self, connection: &mut PgConnection) -> Result<(), Failure> {
        sqlx::query(STORE)
            .bind(&self.tenants)
            .bind(&self.heads)
            .bind(&self.times)
            .bind(&self.identities)
            .bind(&self.identity_keys)
            .bind(&self.contents)
            .bind(&self.keys)
            .bind(&self.tenants)
            .bind(&self.counts)
            .bind(&self.times)
            .bind(&self.ids)
            .bind(&self.data)
            .execute(connection)
            .await?;
        Ok(())
    }
}
