//! The listing index: for each product and type of a tenant, the sequences of its events.
//!
//! It is derived from the segments and written behind them ([`super::listing_writer`]), so it ends
//! at `covered`; newer events are found by reading the segments. Time is not in it: record times
//! never decrease within a log, so a time is a sequence ([`Journal::first_since`]).
//!
//! A row holds the first sequence and the distances of the following ones as varints.

use prost::encoding::{decode_varint, encode_varint};

use super::segment::Kind;
use super::{Journal, TenantRef};
use crate::error::Result;
use crate::storage::{Failure, Sql, Tx};

/// Events of a row: about 1 KiB when every hundredth event is of its kind.
pub(super) const ROW_EVENTS_MAX: usize = 512;
/// Kinds that have a list of their own, per tenant. All others share the list [`OTHERS`].
pub(super) const KINDS_MAX: usize = 10_000;
/// Number of the list of events whose kind has none of its own.
pub(super) const OTHERS: i64 = 0;

const COVERED: Sql =
    Sql::same("select covered, fingerprint from listing_covered where tenant_no = $1");
const KINDS: Sql =
    Sql::same("select kind_no, product, kind from listing_kinds where tenant_no = $1");
const KINDS_OF_TYPE: Sql = Sql::same(
    "select kind_no, product, kind from listing_kinds where tenant_no = $1 and kind = $2",
);
const NEWEST_ROW: Sql = Sql::same(
    "select first_seq, data from listing_postings
     where tenant_no = $1 and kind_no = $2 and first_seq < $3 order by first_seq desc limit 1",
);
// The row that a place lies in, or the last one before it, and the row behind that.
const NEXT_ROWS: Sql = Sql::same(
    "select first_seq, data from listing_postings
     where tenant_no = $1 and kind_no = $2 and first_seq >= coalesce((
        select max(first_seq) from listing_postings
        where tenant_no = $1 and kind_no = $2 and first_seq <= $3), 0)
     order by first_seq limit 2",
);
const GONE_ROWS: Sql = Sql::same(
    "select first_seq from listing_postings
     where tenant_no = $1 and kind_no = $2 and first_seq <= $3 and last_seq <= $3
     order by first_seq desc limit 1",
);
const FORGET: Sql = Sql::same(
    "delete from listing_postings
     where tenant_no = $1 and kind_no = $2 and first_seq <= $3",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[
    COVERED,
    KINDS,
    KINDS_OF_TYPE,
    NEWEST_ROW,
    NEXT_ROWS,
    GONE_ROWS,
    FORGET,
];

/// A product and type with the number of its list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedKind {
    /// Number of the list.
    pub number: i64,
    /// Who published what.
    pub kind: Kind,
}

/// Events of some kinds, the newest first, as far as the index reaches.
#[derive(Debug)]
pub struct Listed {
    tenant: TenantRef,
    lists: Vec<List>,
}

/// The list of one kind, read a row at a time.
#[derive(Debug)]
struct List {
    number: i64,
    /// Read and not yet taken, ascending.
    seqs: Vec<u64>,
    /// What is still in the database is before this.
    before: u64,
    done: bool,
}

/// Events of some kinds, the oldest first, as far as the index reaches.
#[derive(Debug)]
pub struct ListedAfter {
    tenant: TenantRef,
    lists: Vec<Ahead>,
}

/// The list of one kind, read forward.
#[derive(Debug)]
struct Ahead {
    number: i64,
    /// Read and not yet taken, descending.
    seqs: Vec<u64>,
    /// What is still in the database is after this.
    after: u64,
    done: bool,
}

impl Journal {
    /// Up to which sequence the listing index reaches; 0 = it has nothing. Errors: `STORE_BUSY`.
    pub async fn listing_covered(&self, tenant: &TenantRef) -> Result<u64> {
        Ok(self.covered(tenant).await?.map_or(0, |(seq, _)| seq))
    }

    /// The same with the fingerprint of the event there; `None` before the first one.
    pub(super) async fn covered(&self, tenant: &TenantRef) -> Result<Option<(u64, u64)>> {
        let row: Option<(i64, i64)> = self
            .db
            .query(COVERED)
            .bind(tenant.number())
            .optional()
            .await?;
        Ok(row.map(|(seq, fingerprint)| (seq.unsigned_abs(), fingerprint as u64)))
    }

    /// The kinds that have a list, those of one type if it is given. Errors: `STORE_BUSY`.
    pub async fn listed_kinds(
        &self,
        tenant: &TenantRef,
        kind: Option<&str>,
    ) -> Result<Vec<ListedKind>> {
        let query = match kind {
            None => self.db.query(KINDS).bind(tenant.number()),
            Some(kind) => self
                .db
                .query(KINDS_OF_TYPE)
                .bind(tenant.number())
                .bind(kind.to_owned()),
        };
        let rows: Vec<(i64, String, String)> = query.all().await?;
        let listed = rows.into_iter().map(|(number, product, kind)| ListedKind {
            number,
            kind: Kind { product, kind },
        });
        Ok(listed.collect())
    }

    /// Events of these kinds before `before`, the newest first. Those whose kind has no list of its
    /// own are among them: look at the kind of each.
    pub fn listed(&self, tenant: &TenantRef, kinds: &[ListedKind], before: u64) -> Listed {
        let numbers = kinds.iter().map(|listed| listed.number);
        let list = |number| List {
            number,
            seqs: Vec::new(),
            before,
            done: false,
        };
        Listed {
            tenant: tenant.clone(),
            lists: numbers.chain([OTHERS]).map(list).collect(),
        }
    }

    /// The same after `after`, the oldest first. Errors are told by [`ListedAfter::next`].
    pub fn listed_after(
        &self,
        tenant: &TenantRef,
        kinds: impl Iterator<Item = i64>,
        after: u64,
    ) -> ListedAfter {
        let list = |number| Ahead {
            number,
            seqs: Vec::new(),
            after,
            done: false,
        };
        ListedAfter {
            tenant: tenant.clone(),
            lists: kinds.chain([OTHERS]).map(list).collect(),
        }
    }

    /// Removes the lists' rows that end at or before `floor`. Errors: `STORE_BUSY`.
    pub(super) async fn forget_listed(&self, tenant: &TenantRef, floor: u64) -> Result<()> {
        let kinds = self.listed_kinds(tenant, None).await?;
        for number in kinds.iter().map(|kind| kind.number).chain([OTHERS]) {
            let newest: Option<(i64,)> = self
                .db
                .query(GONE_ROWS)
                .bind(tenant.number())
                .bind(number)
                .bind(floor as i64)
                .optional()
                .await?;
            if let Some((newest,)) = newest {
                let mut tx = self.db.begin().await?;
                forget(&mut tx, tenant, number, newest).await?;
                tx.commit().await?;
            }
        }
        Ok(())
    }
}

/// Removes the rows of a list up to the one that begins at `last`.
pub(super) async fn forget(
    tx: &mut Tx,
    tenant: &TenantRef,
    number: i64,
    last: i64,
) -> Result<u64, Failure> {
    tx.query(FORGET)
        .bind(tenant.number())
        .bind(number)
        .bind(last)
        .execute()
        .await
}

impl Listed {
    /// The next older one; `None` at the end of the lists. Errors: `STORE_BUSY`.
    pub async fn next(&mut self, journal: &Journal) -> Result<Option<u64>> {
        for list in &mut self.lists {
            list.fill(journal, &self.tenant).await?;
        }
        let newest = self
            .lists
            .iter_mut()
            .filter(|list| !list.seqs.is_empty())
            .max_by_key(|list| list.seqs.last().copied());
        Ok(newest.and_then(|list| list.seqs.pop()))
    }
}

impl List {
    async fn fill(&mut self, journal: &Journal, tenant: &TenantRef) -> Result<()> {
        while self.seqs.is_empty() && !self.done {
            let row: Option<(i64, Vec<u8>)> = journal
                .db
                .query(NEWEST_ROW)
                .bind(tenant.number())
                .bind(self.number)
                .bind(self.before as i64)
                .optional()
                .await?;
            let Some((first, data)) = row else {
                self.done = true;
                return Ok(());
            };
            let first = first.unsigned_abs();
            self.seqs = unpack(first, &data);
            self.seqs.retain(|seq| *seq < self.before);
            self.before = first;
        }
        Ok(())
    }
}

impl ListedAfter {
    /// The next newer one; `None` at the end of the lists. Errors: `STORE_BUSY`.
    pub async fn next(&mut self, journal: &Journal) -> Result<Option<u64>> {
        for list in &mut self.lists {
            list.fill(journal, &self.tenant).await?;
        }
        let lists = self.lists.iter_mut().filter(|list| !list.seqs.is_empty());
        let oldest = lists.min_by_key(|list| list.seqs.last().copied());
        Ok(oldest.and_then(|list| list.seqs.pop()))
    }
}

impl Ahead {
    async fn fill(&mut self, journal: &Journal, tenant: &TenantRef) -> Result<()> {
        if !self.seqs.is_empty() || self.done {
            return Ok(());
        }
        let query = journal.db.query(NEXT_ROWS).bind(tenant.number());
        let query = query.bind(self.number).bind(self.after as i64);
        let rows: Vec<(i64, Vec<u8>)> = query.all().await?;
        let rows = rows.iter();
        let seqs = rows.flat_map(|(first, data)| unpack(first.unsigned_abs(), data));
        self.seqs = seqs.filter(|seq| *seq > self.after).collect();
        self.after = self.seqs.last().copied().unwrap_or(self.after);
        self.seqs.reverse();
        self.done = self.seqs.is_empty();
        Ok(())
    }
}

/// The distances between sequences that rise.
pub(super) fn pack(seqs: &[u64]) -> Vec<u8> {
    let mut data = Vec::with_capacity(2 * seqs.len());
    for pair in seqs.windows(2) {
        encode_varint(pair[1].wrapping_sub(pair[0]), &mut data);
    }
    data
}

/// The sequences of a row; what is damaged ends it.
pub(super) fn unpack(first: u64, mut data: &[u8]) -> Vec<u64> {
    let mut seqs = vec![first];
    let mut last = first;
    while !data.is_empty() {
        let Ok(distance) = decode_varint(&mut data) else {
            break;
        };
        last = last.saturating_add(distance);
        seqs.push(last);
    }
    seqs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_returns_the_sequences_that_it_was_made_of() {
        for seqs in [vec![1], vec![7, 8, 9], vec![1, 1 << 20, 1 << 39]] {
            assert_eq!(unpack(seqs[0], &pack(&seqs)), seqs);
        }
        let dense: Vec<u64> = (5..517).collect();
        assert_eq!(pack(&dense).len(), 511);
    }
}
