//! The first event that a subscription has behind a place, however far the place is from the end of
//! the log. The listing index tells which events it can be; what the index does not have yet is
//! read. Both have bounds, and where they are not enough it is said from where on nothing is known.

use std::collections::HashMap;
use std::sync::Arc;

use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::journal::{ListedKind, Log, Page, Segment};

use super::{Taker, Target, Walk};
use crate::catalogue::{ALL, Catalogue};
use crate::store::event_types;

/// Lists of the index that are looked into for one subscription, one for each pair of type and
/// product that it can have; with more, the log itself is read.
const KINDS_MAX: usize = 256;
/// The same for all subscriptions of one call.
const LISTS_MAX: usize = 2000;
/// Events that the index names which are looked at for one subscription.
const LISTED_MAX: usize = 10_000;
/// Segments that are fetched for them, for one subscription and for all of one call: each costs a
/// query.
const FETCHED_MAX: usize = 100;
const FETCHED_OF_CALL_MAX: usize = 500;
/// Pages of the log that are read for one subscription, and for all of one call.
const PAGES_MAX: usize = 4;
const PAGES_OF_CALL_MAX: usize = 80;
/// Entries of the catalogue of a tenant, of all times, that are read to know what a default
/// subscription can have.
const ENTRIES_MAX: usize = 10_000;

/// What is known of the first event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// There is one, recorded then.
    At(Micros),
    /// There is none.
    Nothing,
    /// There is none up to here; what follows was not looked at.
    Unknown(u64),
}

/// Looks for one call.
pub(crate) struct Probes<'a> {
    walk: Walk<'a>,
    index: Option<Index>,
    lists_left: usize,
    fetched_left: usize,
    bytes_left: usize,
}

/// The listing index, as far as it is the same for all subscriptions.
struct Index {
    /// The first event that the log still has; `None` if it has none.
    earliest: Option<u64>,
    /// Up to there it has the events.
    covered: u64,
    kinds: Vec<ListedKind>,
    named: Option<Named>,
}

/// The products to which the tenant's catalogue ever sent a type, by type.
struct Named(HashMap<String, Vec<String>>);

impl<'a> Probes<'a> {
    /// Over the log of `walk`.
    pub(crate) fn new(walk: Walk<'a>) -> Self {
        let page = walk.core.limits.page_bytes_max;
        Probes {
            walk,
            index: None,
            lists_left: LISTS_MAX,
            fetched_left: FETCHED_OF_CALL_MAX,
            bytes_left: page * PAGES_OF_CALL_MAX,
        }
    }

    /// The first event behind `after` and up to `to` that a subscription has.
    /// Errors: `STORE_BUSY`.
    pub(crate) async fn first(
        &mut self,
        target: &mut Target,
        after: u64,
        to: u64,
    ) -> Result<First> {
        let index = self.index().await?;
        let Some(earliest) = index.earliest else {
            return Ok(First::Nothing);
        };
        let mut after = after.max(earliest - 1);
        let (covered, kinds) = (index.covered.min(to), index.kinds_of(target));
        let kinds = kinds.filter(|kinds| kinds.len() < self.lists_left);
        let page = self.walk.core.limits.page_bytes_max;
        let most = self.bytes_left.min(page * PAGES_MAX);
        let (mut first, mut bytes) = (First::Nothing, most);
        if let Some(kinds) = kinds.filter(|_| after < covered) {
            self.lists_left -= kinds.len() + 1;
            let range = (after, covered);
            first = self.listed(target, kinds, range, &mut bytes).await?;
            after = covered;
        }
        if first == First::Nothing {
            first = self.read(target, (after, to), &mut bytes).await?;
        }
        self.bytes_left -= most - bytes;
        Ok(first)
    }

    async fn index(&mut self) -> Result<&Index> {
        let index = match self.index.take() {
            Some(index) => index,
            None => self.look().await?,
        };
        Ok(self.index.insert(index))
    }

    async fn look(&self) -> Result<Index> {
        let (core, log) = (self.walk.core, self.walk.log);
        let (journal, tenant) = (&core.journal, log.tenant());
        let earliest = journal.earliest(log).await?;
        // Before the kinds and the lists: what is written to them meanwhile is behind it.
        let covered = journal.listing_covered(tenant).await?;
        Ok(Index {
            earliest: earliest.map(|(seq, _)| seq),
            covered: covered.min(log.head().seq),
            kinds: journal.listed_kinds(tenant, None).await?,
            named: event_types::destinations(&core.db, tenant, ENTRIES_MAX)
                .await?
                .map(Named::of),
        })
    }

    /// By the index.
    async fn listed(
        &mut self,
        target: &mut Target,
        kinds: Vec<i64>,
        (after, to): (u64, u64),
        bytes: &mut usize,
    ) -> Result<First> {
        let (core, log) = (self.walk.core, self.walk.log);
        let (journal, tenant) = (&core.journal, log.tenant());
        let mut listed = journal.listed_after(tenant, kinds.into_iter(), after);
        let mut held: Option<Arc<Segment>> = None;
        let mut before = after;
        let mut fetched_left = self.fetched_left.min(FETCHED_MAX);
        for _ in 0..LISTED_MAX {
            let Some(seq) = listed.next(journal).await?.filter(|seq| *seq <= to) else {
                return Ok(First::Nothing);
            };
            held = held.filter(|held| held.last() >= seq);
            if held.is_none() {
                if *bytes == 0 || fetched_left == 0 {
                    return Ok(First::Unknown(before));
                }
                fetched_left -= 1;
                self.fetched_left -= 1;
                held = journal.stored_segment(tenant, seq).await?;
                let size = held.as_ref().map_or(1, |held| held.size());
                *bytes = bytes.saturating_sub(size);
            }
            if let Some(held) = &held
                && let Some(event) = held.event_at(seq).map_err(Error::internal)?
            {
                let configuration = self.walk.configuration(held.routing_epoch()).await?;
                if target.has(&configuration, &event) {
                    return Ok(First::At(held.record_time()));
                }
            }
            before = seq;
        }
        Ok(First::Unknown(before))
    }

    /// By reading the log.
    async fn read(
        &mut self,
        target: &mut Target,
        (mut after, to): (u64, u64),
        bytes: &mut usize,
    ) -> Result<First> {
        let log: &Arc<Log> = self.walk.log;
        while after < to {
            if *bytes == 0 {
                return Ok(First::Unknown(after));
            }
            let segments = match self.walk.core.journal.read_after(log, after).await? {
                Page::Segments(segments) => segments,
                Page::Gap { to, .. } => {
                    after = to;
                    continue;
                }
                Page::AtEnd => break,
            };
            for segment in segments {
                let configuration = self.walk.configuration(segment.routing_epoch()).await?;
                for event in segment.events() {
                    let event = event.map_err(Error::internal)?;
                    let is_meant = event.seq > after && event.seq <= to;
                    if is_meant && target.has(&configuration, &event) {
                        return Ok(First::At(segment.record_time()));
                    }
                }
                *bytes = bytes.saturating_sub(segment.size());
                after = segment.last();
            }
        }
        Ok(First::Nothing)
    }
}

impl Index {
    /// The lists of what a subscription can have; `None` if those are too many.
    fn kinds_of(&self, target: &Target) -> Option<Vec<i64>> {
        let named = self.named.as_ref();
        let mine = self.kinds.iter().filter(|listed| {
            let (kind, source) = (&listed.kind.kind, &listed.kind.product);
            match &target.taker {
                Taker::Default(product) => {
                    let names = |named: &Named| named.sends(kind, &product.slug);
                    *source != product.slug && named.is_none_or(names)
                }
                Taker::Own(own) => {
                    let mut filters = own.filters.iter();
                    let covered = filters.any(|(_, filter)| filter.covers(kind, source));
                    let may = |named: &Named| named.may_send(kind, &own.product);
                    covered && *source != own.product && named.is_none_or(may)
                }
                Taker::Nothing => false,
            }
        });
        let numbers: Vec<i64> = mine.map(|listed| listed.number).collect();
        (numbers.len() <= KINDS_MAX).then_some(numbers)
    }
}

impl Named {
    fn of(entries: Vec<(String, Vec<String>)>) -> Named {
        let mut named: HashMap<String, Vec<String>> = HashMap::new();
        for (kind, mut products) in entries {
            named.entry(kind).or_default().append(&mut products);
        }
        Named(named)
    }

    /// Whether the catalogue ever sent a type to the default subscription of a product.
    fn sends(&self, kind: &str, product: &str) -> bool {
        let own = self.0.get(kind).into_iter().flatten();
        let built_in = Catalogue::built_in();
        let built_in = built_in.find(kind);
        let mut own = own.map(String::as_str);
        own.any(|slug| slug == ALL || slug == product)
            || built_in.is_some_and(|entry| entry.goes_to(product))
    }

    /// Whether a filter ever could let a product have a type: what no catalogue has goes to who
    /// asks for it, but what comes with the hub always was in one.
    fn may_send(&self, kind: &str, product: &str) -> bool {
        self.sends(kind, product) || Catalogue::built_in().find(kind).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_catalogue_ever_sent_somewhere_can_be_there() {
        let entry = |kind: &str, product: &str| (kind.to_owned(), vec![product.to_owned()]);
        let named = Named::of(vec![
            entry("deal.won", "books"),
            entry("deal.won", "portal"),
            entry("deal.lost", ALL),
            entry("ticket.created", "books"),
        ]);
        for (kind, product, sends, may) in [
            ("deal.won", "books", true, true),
            ("deal.won", "portal", true, true),
            // It may have come before the entry was made.
            ("deal.won", "crm", false, true),
            ("deal.lost", "crm", true, true),
            ("quote.sent", "crm", false, true),
            // Those of the hub count beside those that lie over them.
            ("ticket.created", "books", true, true),
            ("ticket.created", "portal", true, true),
            ("ticket.created", "crm", false, false),
        ] {
            assert_eq!(named.sends(kind, product), sends, "{kind} to {product}");
            assert_eq!(named.may_send(kind, product), may, "{kind} to {product}");
        }
    }
}
