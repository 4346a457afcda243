//! The events of a subscription that failed or were skipped, newest first: its dead letters, found
//! by the index of exceptions however long the log is. A seek forward skips whole ranges.

use std::collections::VecDeque;

use hub_core::error::Result;
use hub_core::journal::TenantRef;
use hub_core::storage::Db;
use hub_proto::hub::event_bus::v1::EventDeliveryState;

use crate::store::standings::{self as store, Back};

/// Rows that are read at once.
const ROWS_MAX: usize = 256;

/// Sequences at which to look; what stands there now may be something else.
pub(crate) struct Exceptions {
    tenant: TenantRef,
    subscription_id: String,
    lowest: u64,
    lists: Vec<List>,
    ranges: Ranges,
    /// The one that was given last.
    before: u64,
}

/// The exceptions of one state.
struct List {
    state: i64,
    /// Read and not yet taken, the newest first.
    seqs: VecDeque<u64>,
    before: u64,
    done: bool,
}

/// The ranges that a seek skipped.
#[derive(Default)]
struct Ranges {
    /// Those that end last first.
    read: VecDeque<(u64, u64)>,
    before: u64,
    done: bool,
}

impl Exceptions {
    /// Whether events in these states are found here, all of them.
    pub(crate) fn cover(states: &[i32]) -> bool {
        let covered = [EventDeliveryState::Failed, EventDeliveryState::Skipped];
        let is_covered = |state: &i32| covered.iter().any(|covered| *covered as i32 == *state);
        !states.is_empty() && states.iter().all(is_covered)
    }

    /// Those of a subscription in these states, before `before` and from `lowest` on.
    pub(crate) fn new(
        tenant: &TenantRef,
        subscription_id: &str,
        states: &[i32],
        (lowest, before): (u64, u64),
    ) -> Exceptions {
        let mut numbers: Vec<i64> = states.iter().map(|state| i64::from(*state)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let lists = numbers.iter().map(|state| List {
            state: *state,
            seqs: VecDeque::new(),
            before,
            done: false,
        });
        Exceptions {
            tenant: tenant.clone(),
            subscription_id: subscription_id.to_owned(),
            lowest,
            lists: lists.collect(),
            ranges: Ranges {
                read: VecDeque::new(),
                before,
                done: !numbers.contains(&(EventDeliveryState::Skipped as i64)),
            },
            before,
        }
    }

    /// The next older one; `None` at the end. Errors: `STORE_BUSY`.
    pub(crate) async fn next(&mut self, db: &Db) -> Result<Option<u64>> {
        self.fill(db).await?;
        let lists = self.lists.iter().filter_map(|list| list.seqs.front());
        let newest = lists.copied().chain(self.ranges.newest()).max();
        let Some(seq) = newest.filter(|seq| *seq >= self.lowest) else {
            return Ok(None);
        };
        self.before = seq;
        for list in &mut self.lists {
            list.seqs.pop_front_if(|first| *first >= seq);
        }
        self.ranges.passed(seq);
        Ok(Some(seq))
    }

    async fn fill(&mut self, db: &Db) -> Result<()> {
        let back = Back {
            subscription_id: &self.subscription_id,
            state: EventDeliveryState::Skipped as i64,
            before: self.before,
            lowest: self.lowest,
            count: ROWS_MAX,
        };
        for list in &mut self.lists {
            if list.seqs.is_empty() && !list.done {
                let back = Back {
                    state: list.state,
                    before: list.before,
                    ..back
                };
                let rows = store::exceptions_before(db, &self.tenant, back).await?;
                list.done = rows.len() < ROWS_MAX;
                list.before = rows.last().copied().unwrap_or(self.lowest);
                list.seqs = rows.into();
            }
        }
        if self.ranges.read.is_empty() && !self.ranges.done {
            let rows = store::ranges_before(db, &self.tenant, back).await?;
            self.ranges.done = rows.len() < ROWS_MAX;
            self.ranges.read = rows.into();
        }
        Ok(())
    }
}

impl Ranges {
    /// The newest sequence that is not passed yet.
    fn newest(&self) -> Option<u64> {
        let below = self.before.checked_sub(1)?;
        let ranges = self.read.iter().map(|(from, to)| (*from, (*to).min(below)));
        let newest = ranges.filter(|(from, to)| from <= to);
        newest.map(|(_, to)| to).max()
    }

    /// Everything from here on was given.
    fn passed(&mut self, seq: u64) {
        self.before = seq;
        self.read.retain(|(from, _)| *from < seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_walked_back_though_they_overlap() {
        let mut ranges = Ranges {
            read: [(1, 6), (4, 5), (9, 9)].into(),
            before: 10,
            done: true,
        };
        let mut found = Vec::new();
        while let Some(seq) = ranges.newest() {
            found.push(seq);
            ranges.passed(seq);
        }
        assert_eq!(found, [9, 6, 5, 4, 3, 2, 1]);
        assert!(ranges.read.is_empty());
    }

    #[test]
    fn only_what_has_an_exception_is_found_by_exceptions() {
        let of = |states: &[EventDeliveryState]| {
            let states: Vec<i32> = states.iter().map(|state| i32::from(*state)).collect();
            Exceptions::cover(&states)
        };
        use EventDeliveryState::{Failed, Queued, Skipped};
        assert!(of(&[Failed]) && of(&[Skipped, Failed]));
        assert!(!of(&[]) && !of(&[Failed, Queued]));
    }
}
