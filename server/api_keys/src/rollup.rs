//! Counts of minutes are rolled up into hours, and those of hours into days, off the path of calls.
//!
//! A batch of counts adds to minutes. Of each span a *mark* says up to which row it is part
//! of the next longer span; who reads a longer span adds what is behind the mark. A count that
//! comes so late that the mark has passed its row is added to the longer span as well. Both look
//! at the marks in the transaction in which they write, so that each request counts once in each
//! span, whenever it is written and whoever rolls up.

use std::sync::Arc;
use std::time::Duration;

use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::storage::Db;
use hub_core::worker::Turn;

use crate::keys::Keys;
use crate::store::usage::{self as store, Hold};
use crate::usage::{BATCH_INTERVAL, Counted, DAY, HOUR, MINUTE};

/// Pause between two rounds: who reads hours sums up the minutes of about two rounds.
const INTERVAL: Duration = Duration::from_secs(60);
/// So long after its end a minute or an hour is rolled up: batches of it are hardly to come then.
const SETTLED_AFTER: Micros = 2 * BATCH_INTERVAL.as_micros() as Micros;
/// Rows that one transaction rolls up. On SQLite it holds the only writer.
pub(crate) const CHUNK_ROWS: usize = 1200;

/// What is part of the next longer span: all rows up to this one, in the order of the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Of the shorter span.
    pub span: Micros,
    pub start: Micros,
    pub tenant_no: i64,
    pub family: Arc<str>,
    pub outcome: Arc<str>,
}

impl Mark {
    fn at(row: &Counted) -> Mark {
        Mark {
            span: row.span,
            start: row.start,
            tenant_no: row.tenant_no,
            family: row.family.clone(),
            outcome: Arc::from(&*row.outcome),
        }
    }

    fn has_passed(&self, row: &Counted) -> bool {
        let mark = (self.start, self.tenant_no, &*self.family, &*self.outcome);
        (row.start, row.tenant_no, &*row.family, &*row.outcome) <= mark
    }
}

/// The mark of each span that has a longer one.
#[derive(Debug)]
pub(crate) struct Marks(pub Vec<Mark>);

impl Marks {
    pub fn of(&self, span: Micros) -> Option<&Mark> {
        self.0.iter().find(|mark| mark.span == span)
    }

    /// Puts behind rows that are to be added those of the longer spans that they are missed in,
    /// because the mark has passed them.
    pub fn complete(&self, rows: &mut Vec<Counted>) {
        let mut at = 0;
        while let Some(row) = rows.get(at) {
            let passed = self.of(row.span).is_some_and(|mark| mark.has_passed(row));
            if let Some(longer) = longer(row.span).filter(|_| passed) {
                let row = part_of(row, longer);
                rows.push(row);
            }
            at += 1;
        }
    }
}

/// The span that another one is rolled up into.
fn longer(span: Micros) -> Option<Micros> {
    match span {
        MINUTE => Some(HOUR),
        HOUR => Some(DAY),
        _ => None,
    }
}

/// The same count, as one of a longer span.
fn part_of(row: &Counted, span: Micros) -> Counted {
    Counted {
        span,
        start: row.start - row.start.rem_euclid(span),
        ..row.clone()
    }
}

/// Rolls up, until it is stopped.
pub(crate) async fn run(keys: Arc<Keys>, turn: Turn) -> Result<()> {
    let goes_on = || {
        turn.passed();
        !turn.stopped().is_cancelled()
    };
    loop {
        // Late is harmless. So nobody is told that this process fails while another holds it up.
        let now = keys.core.clock.now();
        if let Err(error) = roll_up(&keys.core.db, now, CHUNK_ROWS, goes_on).await {
            tracing::debug!("the counts of keys are not rolled up: {error}");
        }
        turn.passed_for(INTERVAL);
        if !turn.pause(INTERVAL).await {
            return Ok(());
        }
    }
}

/// Rolls up the minutes that are over, and then the hours, `chunk_rows` in each transaction, as
/// long as `goes_on` says so after each. Errors: `STORE_BUSY`.
pub(crate) async fn roll_up(
    db: &Db,
    now: Micros,
    chunk_rows: usize,
    goes_on: impl Fn() -> bool,
) -> Result<()> {
    let settled = now - SETTLED_AFTER;
    let before = |span: Micros| settled - settled.rem_euclid(span);
    loop {
        // An hour before its last minutes is right too, and costs a row twice.
        let behind = store::behind_marks(db, before(MINUTE), before(HOUR)).await?;
        let Some(span) = behind.first().copied() else {
            return Ok(());
        };
        roll_up_some(db, span, before(span), chunk_rows).await?;
        if !goes_on() {
            return Ok(());
        }
    }
}

/// Rolls up the next rows of a span that begin before a time.
async fn roll_up_some(db: &Db, span: Micros, before: Micros, chunk_rows: usize) -> Result<()> {
    let mut tx = store::begin(db).await?;
    let marks = store::hold_marks(&mut tx, Hold::Alone).await?;
    let (Some(longer), Some(mark)) = (longer(span), marks.of(span)) else {
        return Ok(());
    };
    let found = store::after(&mut tx, mark, before, chunk_rows).await?;
    // Another process may have done it meanwhile.
    let Some(last) = found.last() else {
        return Ok(());
    };
    let mut rows = found.iter().map(|row| part_of(row, longer)).collect();
    marks.complete(&mut rows);
    store::add_rows(&mut tx, &rows).await?;
    store::move_mark(&mut tx, &Mark::at(last)).await?;
    tx.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(span: Micros, start: Micros) -> Counted {
        Counted {
            tenant_no: 1,
            family: "key_1".into(),
            span,
            start,
            outcome: "".into(),
            requests: 1,
        }
    }

    /// All rows that begin by then.
    fn mark(span: Micros, start: Micros) -> Mark {
        Mark {
            tenant_no: i64::MAX,
            ..Mark::at(&row(span, start))
        }
    }

    fn completed(marks: &Marks, row: Counted) -> Vec<(Micros, Micros)> {
        let mut rows = vec![row];
        marks.complete(&mut rows);
        rows.iter().map(|row| (row.span, row.start)).collect()
    }

    #[test]
    fn a_count_is_added_to_the_longer_spans_that_have_passed_it() {
        let marks = Marks(vec![mark(MINUTE, DAY + 3 * HOUR - 1), mark(HOUR, DAY - 1)]);
        let ahead = DAY + 3 * HOUR;
        assert_eq!(completed(&marks, row(MINUTE, ahead)), [(MINUTE, ahead)]);
        let late = ahead - MINUTE;
        assert_eq!(
            completed(&marks, row(MINUTE, late)),
            [(MINUTE, late), (HOUR, DAY + 2 * HOUR)]
        );
        let later = DAY - MINUTE;
        assert_eq!(
            completed(&marks, row(MINUTE, later)),
            [(MINUTE, later), (HOUR, 23 * HOUR), (DAY, 0)]
        );
        assert_eq!(completed(&marks, row(HOUR, DAY)), [(HOUR, DAY)]);
    }

    #[test]
    fn a_mark_within_a_minute_has_passed_the_rows_up_to_its_own() {
        let mark = Mark {
            span: MINUTE,
            start: HOUR,
            tenant_no: 1,
            family: "key_1".into(),
            outcome: "".into(),
        };
        let at = |tenant_no, family: &str, outcome: &'static str| Counted {
            tenant_no,
            family: family.into(),
            outcome: outcome.into(),
            ..row(MINUTE, HOUR)
        };
        assert!(mark.has_passed(&at(1, "key_1", "")) && mark.has_passed(&at(0, "key_9", "z")));
        assert!(!mark.has_passed(&at(1, "key_1", "RATE_LIMITED")));
        assert!(!mark.has_passed(&at(1, "key_10", "")) && !mark.has_passed(&at(2, "key_0", "")));
    }
}
