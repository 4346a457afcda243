//! A subscription that the destination made, whose filter does not take the event.

use bytes::Bytes;
use hub_core::explain::Finding;
use hub_proto::hub::event_bus::v1::EventFilter;
use hub_proto::hub::explain::v1::Fix;

use super::fixes::Fixes;
use super::route::Way;
use crate::filter::{Filter, Mismatch};
use crate::routing::Event;
use crate::store::subscriptions::Stored as Row;

/// Conditions of a filter that are not attributes: types and products.
const OTHER_CONDITIONS: usize = 2;

/// Why a filter does not take an event.
pub(super) struct Refusing<'a> {
    row: &'a Row,
    mismatch: Mismatch,
    event: Event<'a>,
    bytes: &'a Bytes,
}

impl Way<'_> {
    /// The first subscription that the destination made and that does not take the event, by the
    /// filter that it had then.
    pub(super) fn refusing_filter(&self) -> Option<Refusing<'_>> {
        let stored = self.stored?;
        let event = Event {
            kind: self.kind,
            source: &stored.source,
        };
        let own = self.present().subscriptions.iter();
        let mut own = own.filter(|own| own.product == self.product);
        let (own, mismatch) = own.find_map(|own| {
            let filter = own.filter_at(Some(stored.seq)).or(own.filter_at(None))?;
            Some((own, filter.mismatch(event, &stored.bytes)?))
        })?;
        Some(Refusing {
            row: self.question.row(&own.subscription_id)?,
            mismatch,
            event,
            bytes: &stored.bytes,
        })
    }
}

impl Refusing<'_> {
    /// The subscription that takes the event once the filter is widened.
    pub(super) fn widens(&self) -> Option<&str> {
        let wide = widened(&self.row.filter, self.event, self.bytes)?;
        (wide != EventFilter::default()).then_some(self.row.id.as_str())
    }

    pub(super) fn sentence(&self) -> String {
        let Mismatch {
            condition,
            wanted,
            seen,
        } = &self.mismatch;
        let name = &self.row.name;
        format!("The filter of {name} takes {condition} {wanted}, not {seen:?}.")
    }

    pub(super) fn tell(&self, finding: Finding) -> Finding {
        finding
            .detail(self.sentence())
            .saw_resource("subscription", self.row.id.as_str())
            .saw_text("filter", self.mismatch.condition.as_str())
            .saw_text("wanted", self.mismatch.wanted.as_str())
            .saw_text("seen", self.mismatch.seen.as_str())
    }

    /// Lets it take such events; nothing if it does by now. A filter of which nothing would be left
    /// stays as it is, beside a subscription to the type.
    pub(super) fn fix(&self, way: &Way<'_>, fixes: &Fixes<'_>) -> Option<Fix> {
        let wide = widened(&self.row.filter, self.event, self.bytes)?;
        if wide == EventFilter::default() {
            let from = way.stored.map(|stored| stored.seq);
            return Some(fixes.subscribe(way.product, way.kind, from));
        }
        let title = format!("Let the filter of {} take {}", self.row.name, way.kind);
        Some(fixes.widen(&self.row.id, title, &wide))
    }
}

/// The same filter with as much more as it takes for an event; `None` if it takes it already. The
/// empty one takes everything.
fn widened(filter: &EventFilter, event: Event<'_>, bytes: &Bytes) -> Option<EventFilter> {
    let mut wide = filter.clone();
    for _ in 0..OTHER_CONDITIONS + filter.attributes.len() {
        let Some(mismatch) = Filter::new(&wide).ok()?.mismatch(event, bytes) else {
            break;
        };
        match mismatch.condition.as_str() {
            "types" => wide.types.push(event.kind.to_owned()),
            "products" => wide.products.push(event.source.to_owned()),
            name => {
                wide.attributes.remove(name);
            }
        }
    }
    (wide != *filter).then_some(wide)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(types: &[&str], products: &[&str], attributes: &[(&str, &str)]) -> EventFilter {
        let owned = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        let attributes = attributes.iter();
        EventFilter {
            types: owned(types),
            products: owned(products),
            attributes: attributes
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    #[test]
    fn a_filter_is_widened_by_as_much_as_an_event_needs() {
        let event = Event {
            kind: "ticket.solved",
            source: "psa",
        };
        let widened = |filter: &EventFilter| widened(filter, event, &Bytes::new());
        for (narrow, wide) in [
            (
                filter(&["ticket.created"], &["crm"], &[]),
                filter(&["ticket.created", "ticket.solved"], &["crm", "psa"], &[]),
            ),
            (
                filter(&["ticket.*"], &[], &[("subject", "a"), ("tier", "b")]),
                filter(&["ticket.*"], &[], &[]),
            ),
            (
                filter(&[], &[], &[("subject", "a")]),
                EventFilter::default(),
            ),
        ] {
            assert_eq!(widened(&narrow), Some(wide.clone()));
            assert_eq!(widened(&wide), None);
        }
    }
}
