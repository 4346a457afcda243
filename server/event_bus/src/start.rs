//! Where reading starts: what a caller asks for becomes a position of the log.

use std::sync::Arc;

use hub_core::clock::{from_timestamp, timestamp};
use hub_core::cursor::{Cursor, Stream};
use hub_core::error::{Error, Result};
use hub_core::journal::{Log, Position};
use hub_core::module::Core;
use hub_proto::hub::event_bus::v1::start_at::At;

use crate::error;

/// The asked place. A cursor that was made with another filter than `filter` is refused; none
/// accepts them all, for who asks for no more than a place.
///
/// Errors: `CURSOR_INVALID`, `CURSOR_FILTER_MISMATCH`, `LOG_REWOUND`, `SEQUENCE_AHEAD`,
/// `STORE_BUSY`.
pub(crate) async fn position(
    core: &Core,
    log: &Arc<Log>,
    start: Option<At>,
    filter: Option<u64>,
) -> Result<Position> {
    // Another process may have written what this one has not seen yet.
    let head = core.journal.refresh(log).await?;
    match start {
        None => Ok(head),
        Some(At::Cursor(cursor)) => resume(core, log, &cursor, filter, head).await,
        Some(At::AfterSequence(seq)) if seq > head.seq => Err(error::sequence_ahead(seq, head.seq)),
        Some(At::AfterSequence(seq)) => place(core, log, seq).await,
        Some(At::Time(time)) => {
            let first = core.journal.first_since(log, from_timestamp(&time)).await?;
            place(core, log, first.saturating_sub(1)).await
        }
        Some(At::Earliest(_)) => match core.journal.earliest(log).await? {
            Some((first, _)) => place(core, log, first.saturating_sub(1)).await,
            None => Ok(head),
        },
    }
}

/// The asked place, if the log still has all that follows it. Errors: as [`position`], and
/// `CURSOR_EXPIRED`.
pub(crate) async fn kept(core: &Core, log: &Arc<Log>, start: Option<At>) -> Result<Position> {
    let asked = position(core, log, start, None).await?;
    let earliest = core.journal.earliest(log).await?;
    let earliest = earliest.map_or(log.head().seq + 1, |(seq, _)| seq);
    if asked.seq + 1 < earliest {
        let first = place(core, log, earliest - 1).await?;
        let cursor = Cursor {
            position: first,
            filter: 0,
        };
        let cursor = core.cursors.write(log.tenant(), Stream::Events, cursor);
        return Err(error::cursor_expired(asked.seq + 1, earliest - 1, &cursor));
    }
    Ok(asked)
}

/// A place that the log no longer has gets no fingerprint; reading on from it tells the gap.
pub(crate) async fn place(core: &Core, log: &Log, seq: u64) -> Result<Position> {
    let position = core.journal.position_at(log, seq).await?;
    Ok(position.unwrap_or(Position {
        seq,
        fingerprint: 0,
    }))
}

async fn resume(
    core: &Core,
    log: &Log,
    text: &str,
    filter: Option<u64>,
    head: Position,
) -> Result<Position> {
    let cursor = core.cursors.read(log.tenant(), Stream::Events, text)?;
    if cursor.filter != 0 && filter.is_some_and(|filter| cursor.filter != filter) {
        return Err(error::cursor_filter_mismatch());
    }
    let position = cursor.position;
    if position.seq > head.seq {
        return Err(rewound(core, log).await);
    }
    let found = core.journal.position_at(log, position.seq).await?;
    let differs = found.is_some_and(|found| {
        position.fingerprint != 0
            && found.fingerprint != 0
            && found.fingerprint != position.fingerprint
    });
    if differs {
        return Err(rewound(core, log).await);
    }
    Ok(position)
}

/// The log says something else at this place, or ends before it. When it was restored is not
/// recorded; it was not before its newest event.
async fn rewound(core: &Core, log: &Log) -> Error {
    let newest = core.journal.segment_at(log, log.head().seq).await;
    let newest = newest.ok().flatten();
    let since = newest.map_or(0, |segment| segment.record_time());
    error::log_rewound(&timestamp(since).to_string())
}
