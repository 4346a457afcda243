//! Where events stand for the subscriptions of a tenant. Others write these rows; here they are
//! only read, many events by one statement.

use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Sql};

/// Positions, exceptions and ranges in one statement, so that all three are of one moment: an event
/// that is settled in between would be in none of them. `$seqs` reads a list of numbers from JSON.
macro_rules! standings {
    ($seqs:literal, $nothing:literal) => {
        concat!(
            "select cast(0 as bigint) as kind, p.subscription_id, p.floor as first,
                p.cursor as last, coalesce(s.is_default, 0) as state,
                cast(0 as bigint) as attempts, '' as error, p.update_time, p.unsettled,
                coalesce(s.product, '') as product
             from subscription_positions p
                left join subscriptions s on s.subscription_id = p.subscription_id
             where p.tenant_no = $1 and ($2 = '' or p.subscription_id = $2)
             union all
             select 1, e.subscription_id, e.seq, e.seq, e.state, e.attempts, e.error,
                e.update_time, ",
            $nothing,
            ", '' from subscription_positions p
                join subscription_exceptions e on e.subscription_id = p.subscription_id
             where p.tenant_no = $1 and ($2 = '' or p.subscription_id = $2) and e.seq in (",
            $seqs,
            ") union all
             select 2, r.subscription_id, r.from_seq, r.to_seq, r.state, 0, '', r.update_time, ",
            $nothing,
            ", '' from subscription_positions p
                join subscription_ranges r on r.subscription_id = p.subscription_id
             where p.tenant_no = $1 and ($2 = '' or p.subscription_id = $2)
                and r.from_seq <= $5 and r.to_seq >= $4"
        )
    };
}

const STANDINGS: Sql = Sql::each(
    standings!("select value from json_each($3)", "x''"),
    standings!(
        "select cast(value as bigint) from json_array_elements_text(cast($3 as json)) as t(value)",
        "cast('' as bytea)"
    ),
);
const HELD: Sql = Sql::same(
    "select held_key, min(seq) from subscription_exceptions
     where tenant_no = $1 and subscription_id = $2 and state = $3 and held_key <> 0
     group by held_key",
);
const EXCEPTIONS_BEFORE: Sql = Sql::same(
    "select seq from subscription_exceptions
     where tenant_no = $1 and subscription_id = $2 and state = $3 and seq < $4 and seq >= $5
     order by seq desc limit $6",
);
const RANGES_BEFORE: Sql = Sql::same(
    "select from_seq, to_seq from subscription_ranges
     where tenant_no = $1 and subscription_id = $2 and state = $3 and from_seq < $4
        and to_seq >= $5
     order by to_seq desc, from_seq limit $6",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[STANDINGS, HELD, EXCEPTIONS_BEFORE, RANGES_BEFORE];

/// What is stored about a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// How far it is.
    Position {
        /// Slug of the product that owns the subscription; empty if its row is not there.
        product: String,
        /// It is the default subscription of the product.
        is_default: bool,
        /// Everything up to here was looked at.
        cursor: u64,
        /// What of that is not settled, packed.
        unsettled: Vec<u8>,
    },
    /// An event that was settled otherwise than by an ack of it.
    Exception {
        /// The event.
        seq: u64,
        /// Number of its state.
        state: i64,
        /// Times that it was leased.
        attempts: u32,
        /// Error of the last attempt, or why it was skipped.
        error: String,
        /// When.
        time: Micros,
    },
    /// Events that were never looked at.
    Range {
        /// The first one.
        from: u64,
        /// The last one.
        to: u64,
        /// Number of their state.
        state: i64,
        /// When.
        time: Micros,
    },
}

hub_core::row! {
    struct Stored {
        kind: i64,
        subscription_id: String,
        first: i64,
        last: i64,
        state: i64,
        attempts: i64,
        error: String,
        update_time: Micros,
        unsettled: Vec<u8>,
        product: String,
    }
}

impl Stored {
    fn read(self) -> (String, Row) {
        let (first, last) = (self.first.unsigned_abs(), self.last.unsigned_abs());
        let row = match self.kind {
            0 => Row::Position {
                product: self.product,
                is_default: self.state != 0,
                cursor: last,
                unsettled: self.unsettled,
            },
            1 => Row::Exception {
                seq: first,
                state: self.state,
                attempts: u32::try_from(self.attempts).unwrap_or(u32::MAX),
                error: self.error,
                time: self.update_time,
            },
            _ => Row::Range {
                from: first,
                to: last,
                state: self.state,
                time: self.update_time,
            },
        };
        (self.subscription_id, row)
    }
}

/// What is stored about these events, of all subscriptions of a tenant or of one; all of one
/// moment. `seqs` must not be empty.
pub async fn of(
    db: &Db,
    tenant: &TenantRef,
    subscription_id: Option<&str>,
    seqs: &[u64],
) -> Result<Vec<(String, Row)>> {
    let numbers = serde_json::to_string(seqs).map_err(Error::internal)?;
    let lowest = seqs.iter().min().copied().unwrap_or_default();
    let highest = seqs.iter().max().copied().unwrap_or_default();
    let rows: Vec<Stored> = db
        .query(STANDINGS)
        .bind(tenant.number())
        .bind(subscription_id.unwrap_or_default().to_owned())
        .bind(numbers)
        .bind(lowest.cast_signed())
        .bind(highest.cast_signed())
        .all()
        .await?;
    Ok(rows.into_iter().map(Stored::read).collect())
}

/// Ordering keys that failed events hold back, each with the first of its events.
pub async fn held(
    db: &Db,
    tenant: &TenantRef,
    subscription_id: &str,
    failed: i64,
) -> Result<Vec<(u64, u64)>> {
    let rows: Vec<(i64, i64)> = db
        .query(HELD)
        .bind(tenant.number())
        .bind(subscription_id.to_owned())
        .bind(failed)
        .all()
        .await?;
    // A key is stored as the signed number with the same bits.
    let held = rows.into_iter();
    Ok(held
        .map(|(key, seq)| (key.cast_unsigned(), seq.unsigned_abs()))
        .collect())
}

/// Which events or ranges of a subscription are read back from a place.
#[derive(Debug, Clone, Copy)]
pub struct Back<'a> {
    /// The subscription.
    pub subscription_id: &'a str,
    /// Number of the state.
    pub state: i64,
    /// Only those before.
    pub before: u64,
    /// Only those from here on.
    pub lowest: u64,
    /// At most so many.
    pub count: usize,
}

/// Events with an exception of a state, the newest first.
pub async fn exceptions_before(db: &Db, tenant: &TenantRef, back: Back<'_>) -> Result<Vec<u64>> {
    let query = db.query(EXCEPTIONS_BEFORE).bind(tenant.number());
    let rows: Vec<(i64,)> = query
        .bind(back.subscription_id.to_owned())
        .bind(back.state)
        .bind(back.before.cast_signed())
        .bind(back.lowest.cast_signed())
        .bind(i64::try_from(back.count).unwrap_or(i64::MAX))
        .all()
        .await?;
    Ok(rows.into_iter().map(|(seq,)| seq.unsigned_abs()).collect())
}

/// Ranges of a state, those that end last first.
pub async fn ranges_before(db: &Db, tenant: &TenantRef, back: Back<'_>) -> Result<Vec<(u64, u64)>> {
    let query = db.query(RANGES_BEFORE).bind(tenant.number());
    let rows: Vec<(i64, i64)> = query
        .bind(back.subscription_id.to_owned())
        .bind(back.state)
        .bind(back.before.cast_signed())
        .bind(back.lowest.cast_signed())
        .bind(i64::try_from(back.count).unwrap_or(i64::MAX))
        .all()
        .await?;
    let ranges = rows.into_iter();
    Ok(ranges
        .map(|(from, to)| (from.unsigned_abs(), to.unsigned_abs()))
        .collect())
}
