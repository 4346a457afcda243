//! What a commit appends to the logs, and the statements that do it if the heads are where this
//! process believes them to be.

use std::sync::Arc;

use sqlx::{PgConnection, PgPool, Postgres, Transaction};

use super::{Known, State};
use crate::clock::Micros;
use crate::journal::ledger::{Ledger, Seen, decide};
use crate::journal::segment::{Builder, RowOf, Segment, rows};
use crate::journal::{Outcome, TenantRef, Work, Written};
use crate::storage::Failure;

/// Appends if the head is where this process believes it to be and nobody holds it.
pub(super) const APPEND: &str = "
with free as (
    select tenant_no, routing_epoch from journal_heads where tenant_no = $1 and head = $2
    for update skip locked),
moved as (
    update journal_heads set head = $2 + $3, record_time = $4
    from free where journal_heads.tenant_no = free.tenant_no)
insert into journal_segments (key, tenant_no, n, record_time, ids, data, routing_epoch)
select ($1::bigint << 40) + $2 + 1, $1, $3, $4, $5, $6, free.routing_epoch from free
returning tenant_no, routing_epoch";

/// The same for several logs: each that is where it is believed to be.
pub(super) const APPEND_EACH: &str = "
with new as (
    select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[],
        $6::bytea[]) new (tenant_no, base, n, record_time, ids, data)),
ends as (
    select tenant_no, min(base) as base, max(base + n) as head, max(record_time) as record_time
    from new group by tenant_no),
free as (
    select heads.tenant_no, heads.routing_epoch from journal_heads heads join ends
        on heads.tenant_no = ends.tenant_no and heads.head = ends.base
    order by heads.tenant_no for update of heads skip locked),
moved as (
    update journal_heads set head = ends.head, record_time = ends.record_time
    from ends join free on free.tenant_no = ends.tenant_no
    where journal_heads.tenant_no = ends.tenant_no)
insert into journal_segments (key, tenant_no, n, record_time, ids, data, routing_epoch)
select (new.tenant_no << 40) + new.base + 1, new.tenant_no, new.n, new.record_time, new.ids,
    new.data, free.routing_epoch
from new join free on free.tenant_no = new.tenant_no
returning tenant_no, routing_epoch";

/// What a commit will store of a tenant; undone if it fails.
pub(super) struct Plan {
    pub(super) tenant: TenantRef,
    base: u64,
    record_time: Micros,
    builder: Builder,
    outcomes: Vec<Vec<Outcome>>,
    claimed: Vec<u128>,
}

impl Plan {
    pub(super) fn new(
        work: &Work<'_>,
        seen: &mut Seen,
        older: &Seen,
        (base, record_time): (u64, Micros),
        mut builder: Builder,
    ) -> Plan {
        let mut ledger = Ledger {
            seen,
            older,
            claimed: Vec::with_capacity(work.events()),
        };
        let mut next = base + 1;
        let outcomes = work
            .appends
            .iter()
            .map(|append| decide(append, &mut ledger, &mut next, &mut builder))
            .collect();
        Plan {
            tenant: work.log.tenant().clone(),
            base,
            record_time,
            builder,
            outcomes,
            claimed: ledger.claimed,
        }
    }

    fn rows(&self) -> impl Iterator<Item = RowOf<'_>> {
        rows(&self.builder.ids, &self.builder.data, &self.builder.cuts)
    }

    pub(super) fn has_rows(&self) -> bool {
        self.builder.count > 0
    }

    /// The epoch under which it was stored: none if it was not, any if there was nothing to store.
    pub(super) fn epoch_in(&self, stored: &[Stored]) -> Option<u64> {
        let mine = stored
            .iter()
            .find(|(tenant_no, _)| *tenant_no == self.tenant.number());
        match mine {
            Some((_, epoch)) => Some(epoch.unsigned_abs()),
            None => (!self.has_rows()).then_some(0),
        }
    }

    /// What is one row.
    async fn append(&self, connection: &mut PgConnection) -> Result<Vec<Stored>, Failure> {
        // Not the first row alone: a row comes before the commit, and would be believed although
        // the connection is cut in between. All of them end with the server's word that it is done.
        let stored = sqlx::query_as(APPEND)
            .bind(self.tenant.number())
            .bind(self.base as i64)
            .bind(i64::from(self.builder.count))
            .bind(self.record_time)
            .bind(&self.builder.ids)
            .bind(&self.builder.data)
            .fetch_all(connection)
            .await?;
        Ok(stored)
    }

    pub(super) fn finish(self, state: &mut State, epoch: u64, contended: bool) -> Written {
        if !self.has_rows() {
            return Written {
                outcomes: self.outcomes,
                segment: None,
            };
        }
        let tenant_no = self.tenant.number();
        let Builder { ids, data, .. } = self.builder;
        let segment =
            Segment::new(self.tenant, self.base + 1, self.record_time, ids, data).under(epoch);
        let known = Known {
            head: segment.last(),
            record_time: self.record_time,
            contended,
            partial: false,
        };
        state.known.insert(tenant_no, known);
        Written {
            outcomes: self.outcomes,
            segment: Some(Arc::new(segment)),
        }
    }

    /// Nothing is claimed any more, and the head is asked for before the next guess.
    pub(super) fn undo(self, state: &mut State) {
        for identity in &self.claimed {
            state.identities.recent.remove(identity);
        }
        if let Some(known) = state.known.get_mut(&self.tenant.number()) {
            known.contended = true;
        }
    }
}

/// Number of a tenant, and its epoch.
pub(super) type Stored = (i64, i64);

/// One statement that commits by itself. Returns the tenants whose head was as believed.
pub(super) async fn append_guessed(
    state: &mut State,
    pool: &PgPool,
    plans: &[&Plan],
) -> Result<Vec<Stored>, Failure> {
    let connection = state.connection(pool).await?;
    if let [plan] = plans
        && plan.builder.cuts.is_empty()
    {
        return plan.append(connection).await;
    }
    let rows = Rows::new(plans);
    Ok(rows.bound(APPEND_EACH).fetch_all(connection).await?)
}

/// Stores under locks that are held, and commits.
pub(super) async fn store(
    mut tx: Transaction<'static, Postgres>,
    plans: &[&Plan],
) -> Result<Vec<Stored>, Failure> {
    let mut stored = Vec::new();
    if !plans.is_empty() {
        let rows = Rows::new(plans);
        let count = rows.tenants.len();
        stored = rows.bound(APPEND_EACH).fetch_all(&mut *tx).await?;
        if stored.len() != count {
            let lost = "a head moved although it was locked";
            return Err(sqlx::Error::Protocol(lost.into()).into());
        }
    }
    tx.commit().await?;
    Ok(stored)
}

/// Columns of what a commit stores.
#[derive(Default)]
struct Rows<'a> {
    tenants: Vec<i64>,
    bases: Vec<i64>,
    counts: Vec<i64>,
    times: Vec<Micros>,
    ids: Vec<&'a [u8]>,
    data: Vec<&'a [u8]>,
}

type Bound<'a> = sqlx::query::QueryAs<'a, Postgres, Stored, sqlx::postgres::PgArguments>;

impl<'a> Rows<'a> {
    fn new(plans: &[&'a Plan]) -> Rows<'a> {
        let mut columns = Rows::default();
        for plan in plans {
            for row in plan.rows() {
                columns.tenants.push(plan.tenant.number());
                columns.bases.push(plan.base as i64 + row.before);
                columns.counts.push(row.count);
                columns.times.push(plan.record_time);
                columns.ids.push(row.ids);
                columns.data.push(row.data);
            }
        }
        columns
    }

    fn bound(self, text: &'static str) -> Bound<'a> {
        sqlx::query_as(text)
            .bind(self.tenants)
            .bind(self.bases)
            .bind(self.counts)
            .bind(self.times)
            .bind(self.ids)
            .bind(self.data)
    }
}
