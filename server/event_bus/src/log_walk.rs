//! A page of the log walks back from its position.
//!
//! Where the filter names types or products, the listing index tells which events to look at; what
//! the index does not have yet, and what no filter narrows, is read segment by segment. The dead
//! letters of a subscription are found by its exceptions. Where events stand is read for many of
//! them at once. A page ends when it is full, when it has examined as many events as one call may,
//! or when it has read as many bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use hub_core::error::{Error, Result};
use hub_core::journal::{Listed, Log, Segment, StoredEvent};
use hub_core::module::Core;
use hub_proto::hub::event_bus::v1::{EventDelivery, EventLogEntry, EventLogFilter};
use prost::Message;

use crate::filter::Filter;
use crate::log_entry::{Entries, Named};
use crate::log_exceptions::Exceptions;
use crate::owners::Asking;
use crate::standing::{AtWork, Standings};

/// Bytes of a page of entries; one larger entry goes alone.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// Segments that are read at once; other calls need connections too.
const READ_AT_ONCE: usize = 6;
/// Segments that are read before the first of them is looked at: as many as are of so many bytes,
/// and at least those that are read at once.
const AHEAD_BYTES_MAX: usize = 4 << 20;
/// Events of the index that are looked at to choose them.
const AHEAD_EVENTS_MAX: usize = 256;
/// A filter that matches more kinds than this walks over all events.
const KINDS_MAX: usize = 256;
/// Events whose standings are read at once where only some states are asked for.
const CANDIDATES_MAX: usize = 512;

/// An event that the filter takes, before it is known where it stands.
pub(crate) struct Candidate {
    segment: Arc<Segment>,
    seq: u64,
    destinations: Vec<Named>,
}

/// What tells which events to look at, the newest first.
enum Source {
    Index(Listed),
    Exceptions(Exceptions),
}

impl Source {
    async fn next(&mut self, core: &Core) -> Result<Option<u64>> {
        match self {
            Source::Index(listed) => listed.next(&core.journal).await,
            Source::Exceptions(exceptions) => exceptions.next(&core.db).await,
        }
    }
}

/// A page under way.
pub(crate) struct Walk<'a> {
    pub(crate) core: &'a Core,
    pub(crate) log: &'a Arc<Log>,
    pub(crate) filter: &'a Filter,
    pub(crate) wanted: &'a EventLogFilter,
    pub(crate) at_work: &'a dyn AtWork,
    /// The owners of subscriptions are asked once for a page, where only some states are asked for
    /// once for [`CANDIDATES_MAX`] events.
    pub(crate) owners: &'a Asking<'a>,
    pub(crate) entries: Entries<'a>,
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) found: Vec<EventLogEntry>,
    pub(crate) size: usize,
    /// Bytes of `found`.
    pub(crate) bytes: usize,
    pub(crate) examined_left: usize,
    pub(crate) read_left: usize,
    /// Everything from here on was examined.
    pub(crate) before: u64,
    pub(crate) lowest: u64,
}

impl Walk<'_> {
    /// True if there may be more after this page. Errors: `STORE_BUSY`.
    pub(crate) async fn run(&mut self) -> Result<bool> {
        Ok(self.walk().await? || self.settle().await?)
    }

    async fn walk(&mut self) -> Result<bool> {
        let subscription_id = &self.wanted.subscription_id;
        if !subscription_id.is_empty() && Exceptions::cover(&self.wanted.states) {
            let (tenant, states) = (self.log.tenant(), &self.wanted.states);
            let range = (self.lowest, self.before);
            let exceptions = Exceptions::new(tenant, subscription_id, states, range);
            return self.pick(Source::Exceptions(exceptions)).await;
        }
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
            Some((_, listed)) => self.pick(Source::Index(listed)).await,
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

    async fn scan_segment(&mut self, segment: &Arc<Segment>, lowest: u64) -> Result<bool> {
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
        match self.read_left {
            0 => self.end().await,
            _ => Ok(false),
        }
    }

    /// Looks at the events that a source names. True if the page ends before their end.
    async fn pick(&mut self, mut source: Source) -> Result<bool> {
        let (mut next, mut held) = (VecDeque::new(), Vec::new());
        loop {
            while next.len() < AHEAD_EVENTS_MAX {
                match source.next(self.core).await? {
                    Some(seq) if seq >= self.lowest => next.push_back(seq),
                    _ => break,
                }
            }
            let Some(seq) = next.pop_front() else {
                return Ok(false);
            };
            if holding(&held, seq).is_none() {
                if self.read_left == 0 {
                    return self.end().await;
                }
                held.retain(|segment: &Arc<Segment>| segment.first() <= seq);
                held.append(&mut self.fetch(seq, &next, &held).await?);
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
    /// in others: segments are at most about as long as those before. A rare type would otherwise
    /// wait for the disk once for each event. What is `held` is not read again.
    async fn fetch(
        &mut self,
        seq: u64,
        next: &VecDeque<u64>,
        held: &[Arc<Segment>],
    ) -> Result<Vec<Arc<Segment>>> {
        let mut wanted = vec![seq];
        let lengths = held.iter().map(|held| held.last() - held.first() + 1);
        if let Some(length) = lengths.max() {
            let most =
                AHEAD_BYTES_MAX.saturating_sub(size(held)) / (size(held) / held.len()).max(1);
            let most = most.max(READ_AT_ONCE).min(self.size - self.found.len());
            let mut last = seq;
            for seq in next {
                if wanted.len() >= most {
                    break;
                }
                if last - seq >= length && holding(held, *seq).is_none() {
                    wanted.push(*seq);
                    last = *seq;
                }
            }
        }
        let (journal, tenant) = (&self.core.journal, self.log.tenant());
        let reads = wanted
            .into_iter()
            .map(|seq| journal.stored_segment(tenant, seq));
        let reads = stream::iter(reads).buffered(READ_AT_ONCE);
        let segments: Vec<_> = reads.try_collect().await?;
        let segments: Vec<Arc<Segment>> = segments.into_iter().flatten().collect();
        self.read_left = self.read_left.saturating_sub(size(&segments));
        Ok(segments)
    }

    /// Keeps the event if the filter takes it. True if the page ends here.
    async fn examine(&mut self, segment: &Arc<Segment>, event: &StoredEvent<'_>) -> Result<bool> {
        if let Some(destinations) = self.candidate(segment, event).await? {
            self.candidates.push(Candidate {
                segment: segment.clone(),
                seq: event.seq,
                destinations,
            });
        }
        self.before = event.seq;
        self.examined_left = self.examined_left.saturating_sub(1);
        if self.examined_left == 0 {
            return self.end().await;
        }
        // Otherwise most of them may be looked at for nothing.
        let all_fit = self.wanted.states.is_empty() && self.wanted.subscription_id.is_empty();
        let enough = match all_fit {
            true => self.size - self.found.len(),
            false => CANDIDATES_MAX,
        };
        Ok(self.candidates.len() >= enough && self.settle().await?)
    }

    /// The page ends here, whatever comes.
    async fn end(&mut self) -> Result<bool> {
        self.settle().await?;
        Ok(true)
    }

    /// Takes of the candidates those that are asked for, by where they stand. True if the page is
    /// full.
    async fn settle(&mut self) -> Result<bool> {
        let candidates = std::mem::take(&mut self.candidates);
        let events = candidates.iter();
        let events = events.map(|candidate| (candidate.seq, candidate.destinations.as_slice()));
        let events: Vec<(u64, &[Named])> = events.collect();
        let asked = &self.wanted.subscription_id;
        // Who sees an event by its own subscription must not be judged by another one.
        let only =
            Some(asked.as_str()).filter(|id| !id.is_empty() && self.entries.viewer.sees_all());
        let (core, owners, at_work) = (self.core, self.owners, self.at_work);
        let standings = Standings::now(core, owners, at_work, only, &events).await?;
        for candidate in &candidates {
            let Some(entry) = self.entry(&standings, candidate)? else {
                continue;
            };
            let length = entry.encoded_len();
            if !self.found.is_empty() && self.bytes + length > PAGE_BYTES_MAX {
                self.before = candidate.seq + 1;
                return Ok(true);
            }
            self.bytes += length;
            self.found.push(entry);
            if self.found.len() >= self.size {
                self.before = candidate.seq;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The destinations of an event that the filter takes.
    async fn candidate(
        &mut self,
        segment: &Segment,
        event: &StoredEvent<'_>,
    ) -> Result<Option<Vec<Named>>> {
        if !self.filter.covers(event.kind, event.product) {
            return Ok(None);
        }
        if self.filter.has_attributes() && !self.filter.matches_attributes(event.event()) {
            return Ok(None);
        }
        let named = self.entries.destinations(segment, event).await?;
        Ok(Some(named))
    }

    /// The entry of a candidate that is asked for and that the viewer sees.
    fn entry(
        &self,
        standings: &Standings<'_>,
        candidate: &Candidate,
    ) -> Result<Option<EventLogEntry>> {
        let Candidate {
            segment,
            seq,
            destinations,
        } = candidate;
        let event = segment.event_at(*seq).map_err(Error::internal)?;
        let event = event.ok_or_else(|| Error::internal("a segment lacks its event"))?;
        let mut deliveries = self
            .entries
            .deliveries(standings, segment, *seq, destinations);
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
        self.entries.entry(segment, &event, deliveries).map(Some)
    }
}

/// Bytes of segments.
fn size(segments: &[Arc<Segment>]) -> usize {
    segments.iter().map(|segment| segment.size()).sum()
}

/// The segment that holds an event, of those that were read.
fn holding(held: &[Arc<Segment>], seq: u64) -> Option<&Arc<Segment>> {
    let mut held = held.iter();
    held.find(|segment| segment.first() <= seq && seq <= segment.last())
}
