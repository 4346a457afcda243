//! What became of the event at the consumer, as far as the hub is told.

use hub_core::clock::{Micros, timestamp};
use hub_core::error::Result;
use hub_proto::hub::event_bus::v1::{EventDeliveryState, EventFilter, EventLogFilter};
use hub_proto::hub::explain::v1::CheckResult;

use super::branch::Branch;
use super::codes::{ACKED, FOLLOW_UP};
use super::delivery::Delivered;
use super::route::Way;

/// How long after an event one that it causes is looked for, in microseconds: 10 min.
const FOLLOWS_WITHIN: Micros = 600_000_000;
/// Events of the destination that are looked at for that.
const FOLLOWING_MAX: usize = 1000;
/// Attribute by which an event names its cause.
const CAUSE: &str = "causationid";

/// Looks for an event of the destination that names this one as its cause, by the hub's id or the
/// producer's. Not every product tells causes, so that none proves nothing.
pub(super) async fn follow_up(
    way: &Way<'_>,
    branch: &mut Branch,
    delivered: &Delivered<'_>,
) -> Result<bool> {
    let (stored, product) = (delivered.stored, way.product);
    let title = format!("An event of {product} names it as its cause");
    let finding = way.current(FOLLOW_UP, title).needs(&[ACKED]);
    if delivered.landed.standing.state != EventDeliveryState::Delivered {
        branch.look(finding.then(CheckResult::Unknown), vec![]);
        return Ok(false);
    }
    for cause in [&stored.event_id, &stored.event.id] {
        let wanted = EventLogFilter {
            event: Some(EventFilter {
                products: vec![product.to_owned()],
                attributes: [(CAUSE.to_owned(), cause.clone())].into(),
                ..EventFilter::default()
            }),
            since: Some(timestamp(stored.recorded)),
            until: Some(timestamp(stored.recorded.saturating_add(FOLLOWS_WITHIN))),
            ..EventLogFilter::default()
        };
        // A star would match more than itself.
        if cause.contains('*') {
            continue;
        }
        let found = way
            .question
            .look_before(&wanted, None, 1, FOLLOWING_MAX)
            .await?;
        let record = found.entries.into_iter().find_map(|entry| entry.record);
        if let Some(record) = record {
            let kind = record.event.map(|event| event.r#type).unwrap_or_default();
            let detail = format!("{product} published {kind} because of it.");
            let finding = finding.both(CheckResult::Pass).detail(detail);
            branch.look(finding.saw_resource("event_id", record.event_id), vec![]);
            return Ok(true);
        }
    }
    let detail = format!("Within 10 min {product} published none; not every product tells causes.");
    branch.look(finding.both(CheckResult::Unknown).detail(detail), vec![]);
    Ok(false)
}
