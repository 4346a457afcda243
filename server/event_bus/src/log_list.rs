//! The event log in pages, newest first.
//!
//! A page walks back from its position. Where the filter names types or products, the listing index
//! tells which events to look at; what the index does not have yet, and what no filter narrows, is
//! read segment by segment. A page ends when it is full, when it has examined as many events as
//! one call may, or when it has read as many bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use hub_core::auth::Caller;
use hub_core::clock::from_timestamp;
use hub_core::error::{Error, Result};
use hub_core::journal::{Listed, Log, Segment, StoredEvent};
use hub_core::module::Core;
use hub_core::page::{self, List};
use hub_proto::hub::event_bus::v1::{
    EventDelivery, EventLogEntry, EventLogFilter, ListEventsRequest, ListEventsResponse,
};
use prost::Message;

use crate::filter::Filter;
use crate::log_entry::Entries;
use crate::routing::Configurations;
use crate::visibility::Viewer;
use crate::{default_subscriptions, error};

/// Bytes of a page of entries; one larger entry goes alone.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// Segments that are read at once; other calls need connections too.
const AHEAD_SEGMENTS_MAX: usize = 6;
/// Events of the index that are looked at to choose them.
const AHEAD_EVENTS_MAX: usize = 256;
/// A filter that matches more kinds than this walks over all events.
const KINDS_MAX: usize = 256;

/// A page of the log. Errors: `FILTER_INVALID`, `FIELD_INVALID`, `PAGE_TOKEN_INVALID`,
/// `SUBSCRIPTION_NOT_FOUND`.
pub(crate) async fn list(
    core: &Core,
    configurations: &Configurations,
    caller: &Caller,
    request: ListEventsRequest,
) -> Result<ListEventsResponse> {
    let tenant = caller.tenant()?;
    let size = page::size(request.page_size)?;
    let wanted = request.filter.unwrap_or_default();
    let filter_bytes = wanted.encode_to_vec();
    let list = List {
        name: "ListEvents",
        tenant,
        filter: &filter_bytes,
    };
    let now = core.clock.now();
    let after = core.cursors.read_page(list, now, &request.page_token)?;
    let filter = Filter::new(&wanted.event.clone().unwrap_or_default())?;
    let viewer = Viewer::of(caller);
    if !wanted.subscription_id.is_empty() {
        let present = configurations.current(tenant).await?;
        let id = &wanted.subscription_id;
        let mut own = present.subscriptions.iter();
        let own = own.find(|known| known.subscription_id == *id);
        let product = match own {
            Some(own) => Some(own.product.as_str()),
            None => default_subscriptions::product_of(&present, tenant, id),
        };
        if !product.is_some_and(|product| viewer.sees_product(product)) {
            return Err(error::subscription_not_found(id));
        }
    }
    let log = core.journal.log(tenant).await?;
    let range = Range::of(core, &log, &wanted, after).await?;
    let mut walk = Walk {
        core,
        log: &log,
        filter: &filter,
        wanted: &wanted,
        entries: Entries::new(configurations, tenant, &viewer, request.omit_data),
        found: Vec::new(),
        size,
        bytes: 0,
        examined_left: core.limits.listing_events_max,
        read_left: core.limits.listing_bytes_max,
        before: range.before,
        lowest: range.lowest,
    };
    let more = walk.run().await?;
    let before = walk.before;
    Ok(ListEventsResponse {
        entries: walk.found,
        next_page_token: match more {
            true => core.cursors.write_page(list, now, &before.to_string()),
            false => String::new(),
        },
    })
}

/// The sequences that are asked for.
struct Range {
    lowest: u64,
    before: u64,
}

impl Range {
    async fn of(
        core: &Core,
        log: &Arc<Log>,
        wanted: &EventLogFilter,
        after: Option<String>,
    ) -> Result<Range> {
        let head = core.journal.refresh(log).await?.seq;
        let lowest = match &wanted.since {
            Some(since) => core.journal.first_since(log, from_timestamp(since)).await?,
            None => core
                .journal
                .earliest(log)
                .await?
                .map_or(head + 1, |(seq, _)| seq),
        };
        let before = match (after, &wanted.until) {
            // A token is authenticated: it has what was written into it.
            (Some(after), _) => after.parse().map_err(Error::internal)?,
            (None, Some(until)) => core.journal.first_since(log, from_timestamp(until)).await?,
            (None, None) => head + 1,
        };
        Ok(Range { lowest, before })
    }
}

/// The segment that holds an event, of those that were read.
fn holding(held: &[Arc<Segment>], seq: u64) -> Option<&Arc<Segment>> {
    let mut held = held.iter();
    held.find(|segment| segment.first() <= seq && seq <= segment.last())
}

struct Walk<'a> {
    core: &'a Core,
    log: &'a Arc<Log>,
    filter: &'a Filter,
    wanted: &'a EventLogFilter,
    entries: Entries<'a>,
    found: Vec<EventLogEntry>,
    size: usize,
    /// Bytes of `found`.
    bytes: usize,
    examined_left: usize,
    read_left: usize,
    /// Everything from here on was examined.
    before: u64,
    lowest: u64,
}

impl Walk<'_> {
    /// True if there may be more after this page.
    async fn run(&mut self) -> Result<bool> {
        let listed = self.listed().await?;
        let covered = match &listed {
            Some((covered, _)) => *covered,
            None => 0,
        };
        // What the index does not have yet is walked over.
        if self
            .scan(covered.max(self.lowest.saturating_sub(1)) + 1)
            .await?
        {
            return Ok(true);
        }
        match listed {
            Some((_, listed)) => self.pick(listed).await,
            None => Ok(false),
        }
    }

    /// The events that the index names, and how far it reaches; `None` if the filter does not
    /// narrow the kinds enough.
    async fn listed(&self) -> Result<Option<(u64, Listed)>> {
        let (journal, tenant) = (&self.core.journal, self.log.tenant());
        if !self.filter.narrows_kinds() {
            return Ok(None);
        }
        // Before the lists: what is written to them meanwhile is seen by both ways at worst.
        let covered = journal
            .listing_covered(tenant)
            .await?
            .min(self.log.head().seq);
        let mut kinds = Vec::new();
        match self.filter.literal_types() {
            Some(types) => {
                for kind in types {
                    kinds.append(&mut journal.listed_kinds(tenant, Some(&kind)).await?);
                }
            }
            None => kinds = journal.listed_kinds(tenant, None).await?,
        }
        kinds.retain(|listed| self.filter.covers(&listed.kind.kind, &listed.kind.product));
        if kinds.len() > KINDS_MAX {
            return Ok(None);
        }
        let before = self.before.min(covered + 1);
        Ok(Some((covered, journal.listed(tenant, &kinds, before))))
    }

    /// Walks over all events down to `lowest`. True if the page ends before.
    async fn scan(&mut self, lowest: u64) -> Result<bool> {
        while self.before > lowest {
            let page = self.core.limits.page_bytes_max.min(self.read_left);
            let journal = &self.core.journal;
            let segments = journal
                .page_before(self.log, self.before, lowest, page)
                .await?;
            if segments.is_empty() {
                break;
            }
            for segment in segments {
                if self.scan_segment(&segment, lowest).await? {
                    return Ok(true);
                }
            }
        }
        self.before = self.before.min(lowest);
        Ok(false)
    }

    async fn scan_segment(&mut self, segment: &Segment, lowest: u64) -> Result<bool> {
        let events: Vec<StoredEvent<'_>> = segment
            .events()
            .collect::<Result<_, _>>()
            .map_err(Error::internal)?;
        let before = self.before;
        let mine = events.iter().rev();
        for event in mine.filter(|event| event.seq < before && event.seq >= lowest) {
            if self.examine(segment, event).await? {
                return Ok(true);
            }
        }
        self.before = self.before.min(segment.first().max(lowest));
        self.read_left = self.read_left.saturating_sub(segment.size());
        Ok(self.read_left == 0)
    }

    /// Looks at the events that the index names. True if the page ends before their end.
    async fn pick(&mut self, mut listed: Listed) -> Result<bool> {
        let (mut next, mut held) = (VecDeque::new(), Vec::new());
        loop {
            while next.len() < AHEAD_EVENTS_MAX {
                match listed.next(&self.core.journal).await? {
                    Some(seq) if seq >= self.lowest => next.push_back(seq),
                    _ => break,
                }
            }
            let Some(seq) = next.pop_front() else {
                return Ok(false);
            };
            if holding(&held, seq).is_none() {
                if self.read_left == 0 {
                    return Ok(true);
                }
                held = self.fetch(seq, &next, &held).await?;
            }
            let Some(segment) = holding(&held, seq) else {
                // Retention was faster.
                continue;
            };
            let event = segment.event_at(seq).map_err(Error::internal)?;
            if let Some(event) = event
                && self.examine(segment, &event).await?
            {
                return Ok(true);
            }
        }
    }

    /// Reads the segment of `seq`, and at the same time those of the next events that are probably
    /// in others: segments are about as long as the one before. A rare type would otherwise wait
    /// for the disk once for each event.
    async fn fetch(
        &mut self,
        seq: u64,
        next: &VecDeque<u64>,
        before: &[Arc<Segment>],
    ) -> Result<Vec<Arc<Segment>>> {
        let mut wanted = vec![seq];
        if let Some(before) = before.last() {
            let length = before.last() - before.first() + 1;
            let most = AHEAD_SEGMENTS_MAX.min(self.size - self.found.len());
            let mut last = seq;
            for seq in next {
                if wanted.len() >= most {
                    break;
                }
                if last - seq >= length {
                    wanted.push(*seq);
                    last = *seq;
                }
            }
        }
        let (journal, tenant) = (&self.core.journal, self.log.tenant());
        let reads = wanted
            .into_iter()
            .map(|seq| journal.stored_segment(tenant, seq));
        let segments: Vec<_> = futures_util::future::try_join_all(reads).await?;
        let segments: Vec<Arc<Segment>> = segments.into_iter().flatten().collect();
        for segment in &segments {
            self.read_left = self.read_left.saturating_sub(segment.size());
        }
        Ok(segments)
    }

    /// Takes the event if it is asked for. True if the page ends here.
    async fn examine(&mut self, segment: &Segment, event: &StoredEvent<'_>) -> Result<bool> {
        if let Some(entry) = self.matching(segment, event).await? {
            let length = entry.encoded_len();
            if !self.found.is_empty() && self.bytes + length > PAGE_BYTES_MAX {
                return Ok(true);
            }
            self.bytes += length;
            self.found.push(entry);
        }
        self.before = event.seq;
        self.examined_left = self.examined_left.saturating_sub(1);
        Ok(self.found.len() >= self.size || self.examined_left == 0)
    }

    async fn matching(
        &mut self,
        segment: &Segment,
        event: &StoredEvent<'_>,
    ) -> Result<Option<EventLogEntry>> {
        if !self.filter.covers(event.kind, event.product) {
            return Ok(None);
        }
        if self.filter.has_attributes() && !self.filter.matches_attributes(event.event()) {
            return Ok(None);
        }
        let mut deliveries = self.entries.deliveries(segment, event).await?;
        if !self.entries.viewer.sees(event.product, &deliveries) {
            return Ok(None);
        }
        if !self.wanted.subscription_id.is_empty() {
            let asked = &self.wanted.subscription_id;
            deliveries.retain(|delivery| delivery.subscription_id == *asked);
            if deliveries.is_empty() {
                return Ok(None);
            }
        }
        let asked = |delivery: &EventDelivery| self.wanted.states.contains(&delivery.state);
        if !self.wanted.states.is_empty() && !deliveries.iter().any(asked) {
            return Ok(None);
        }
        self.entries.entry(segment, event, deliveries).map(Some)
    }
}
