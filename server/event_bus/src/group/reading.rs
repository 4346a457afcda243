//! Reading ahead: which events of the log the subscription takes, in their order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hub_core::error::{Error, Result};
use hub_core::journal::{Page, Run, Segment};
use hub_core::peers::moving;
use hub_proto::wire::{CloudEventView, attribute_value::Attr};
use prost::Message;
use sha2::{Digest, Sha256};

use super::Group;
use crate::filter::Filter;
use crate::leasing::Key;
use crate::routing::{self, Configuration, Event, Outcome};

/// Bytes of segments that are kept for events read ahead; others are read again when leased.
const HELD_BYTES_MAX: usize = 8 << 20;

/// A call that waits for events to be looked at is sent again after this time.
const REACHED_WITHIN: Duration = Duration::from_secs(5);

/// Events that are looked at to count a backlog.
const BACKLOG_EVENTS_MAX: u64 = 1000;

/// Segments of events that were read ahead.
#[derive(Debug, Default)]
pub(super) struct Held {
    segments: BTreeMap<u64, Arc<Segment>>,
    bytes: usize,
    /// Of the log, when they were read.
    view: u64,
}

impl Held {
    /// Before use: what was read under another view of the log may show what was erased since.
    pub(super) fn see(&mut self, view: u64) {
        if self.view != view {
            self.clear();
            self.view = view;
        }
    }

    /// The segment that holds an event.
    pub(super) fn find(&self, seq: u64) -> Option<Arc<Segment>> {
        let (_, segment) = self.segments.range(..=seq).next_back()?;
        (segment.last() >= seq).then(|| segment.clone())
    }

    fn keep(&mut self, segment: &Arc<Segment>) {
        // A commit may have been read by its rows, or as a whole: the larger one stays.
        let known = self.segments.get(&segment.first());
        if known.is_none_or(|known| known.last() < segment.last()) {
            self.bytes += segment.size();
            let known = self.segments.insert(segment.first(), segment.clone());
            self.bytes -= known.map_or(0, |known| known.size());
        }
        while self.bytes > HELD_BYTES_MAX && self.segments.len() > 1 {
            if let Some((_, oldest)) = self.segments.pop_first() {
                self.bytes -= oldest.size();
            }
        }
    }

    /// Nothing that was read ahead is left.
    pub(super) fn clear(&mut self) {
        self.segments.clear();
        self.bytes = 0;
    }
}

/// What reading came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// There may be more.
    Some,
    /// There is nothing newer now.
    AtEnd,
}

/// What is not settled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backlog {
    /// Events, as far as they were counted.
    pub(super) count: u64,
    /// The first of them.
    pub(super) first: Option<u64>,
    /// There are no more.
    pub(super) whole: bool,
}

/// A matching event.
struct Found {
    seq: u64,
    key: Option<Key>,
    bytes: u32,
}

/// An ordering key as it is remembered: 64 bits of its SHA-256, never 0. Two keys that are the same
/// to it are only kept in order with each other.
pub(crate) fn key_of(text: &[u8]) -> Key {
    let digest = Sha256::digest(text);
    let bits = digest[..8]
        .iter()
        .fold(0, |bits, byte| bits << 8 | u64::from(*byte));
    Key(bits.max(1))
}

/// The ordering key of an encoded event: `partitionkey`, else `subject`, else none.
pub(crate) fn ordering_key(event: Bytes) -> Option<Bytes> {
    let view = CloudEventView::decode(event).ok()?;
    let text = |name: &[u8]| {
        let mut attributes = view.attributes.iter().rev();
        let found = attributes.find(|entry| entry.key == name)?;
        match found.value.as_ref()?.attr.as_ref()? {
            Attr::CeString(text) => Some(text.clone()),
            _ => None,
        }
    };
    text(b"partitionkey").or_else(|| text(b"subject"))
}

impl Group {
    /// Reads the next page of the log and takes at most `room` matching events of it.
    ///
    /// Only the driver reads. Errors: `STORE_BUSY`.
    pub(super) async fn read(self: &Arc<Self>, room: usize) -> Result<Read> {
        let (after, view) = (self.lock().leasing.position().cursor, self.log.view());
        let journal = &self.parts.core.journal;
        match journal.read_after(&self.log, after).await? {
            Page::AtEnd => Ok(Read::AtEnd),
            Page::Gap { from, to } => {
                self.expire(from, to);
                Ok(Read::Some)
            }
            Page::Segments(segments) => {
                self.take_in(&segments, (after, view), room).await?;
                Ok(Read::Some)
            }
        }
    }

    async fn take_in(
        self: &Arc<Self>,
        segments: &[Arc<Segment>],
        (after, view): (u64, u64),
        room: usize,
    ) -> Result<()> {
        let (mut found, mut through) = (Vec::new(), after);
        let mut kept = 0;
        for segment in segments {
            let configuration = self.configuration(segment.routing_epoch()).await?;
            let before = found.len();
            through = self.select(segment, &configuration, (through, room), &mut found)?;
            if found.len() > before {
                kept += 1;
            }
            if found.len() >= room {
                break;
            }
        }
        let mut state = self.lock();
        // A seek or a loss meanwhile has made this void.
        if state.over || state.leasing.position().cursor != after {
            return Ok(());
        }
        for event in &found {
            state.leasing.offer(event.seq, event.key, event.bytes);
        }
        state.leasing.looked_through(through);
        // Else they are read again when they are leased.
        if kept > 0 && view == self.log.view() {
            state.held.see(view);
            let holds = |segment: &&Arc<Segment>| {
                let mut found = found.iter();
                found.any(|event| segment.first() <= event.seq && event.seq <= segment.last())
            };
            segments
                .iter()
                .filter(holds)
                .for_each(|segment| state.held.keep(segment));
        }
        self.follow_up(&mut state);
        self.looked.send_replace(through);
        Ok(())
    }

    /// Looks at the log up to an event, also while nobody consumes. False if so many events before
    /// it are unsettled that it cannot. Errors: `STORE_BUSY`.
    pub(crate) async fn reach(self: &Arc<Self>, seq: u64) -> Result<bool> {
        let mut looked = self.looked.subscribe();
        let reaching = async {
            loop {
                looked.borrow_and_update();
                {
                    let mut state = self.lock();
                    if state.over {
                        return Err(moving("moved"));
                    }
                    if state.leasing.position().cursor >= seq {
                        return Ok(true);
                    }
                    if state.leasing.window_left() == 0 {
                        return Ok(false);
                    }
                    state.reach = state.reach.max(seq);
                }
                self.wake.notify_one();
                // The sender lives in `self`, so that the wait cannot fail.
                let _ = looked.changed().await;
            }
        };
        let reached = tokio::time::timeout(REACHED_WITHIN, reaching).await;
        reached.unwrap_or_else(|_| Err(moving("owner_busy")))
    }

    async fn configuration(&self, epoch: u64) -> Result<Arc<Configuration>> {
        self.parts.configurations.at(&self.tenant, epoch).await
    }

    /// Adds the events of a segment after `through` that the subscription takes, until there are
    /// `room`; returns up to where it looked.
    fn select(
        &self,
        segment: &Segment,
        configuration: &Configuration,
        (through, room): (u64, usize),
        found: &mut Vec<Found>,
    ) -> Result<u64> {
        let run = segment.run().map_err(Error::internal)?;
        let own = match self.is_default {
            true => None,
            false => {
                let mut own = configuration.subscriptions.iter();
                own.find(|own| *own.subscription_id == *self.id)
            }
        };
        let flows: Vec<bool> = run
            .kinds
            .iter()
            .map(|kind| {
                let event = Event {
                    kind: &kind.kind,
                    source: &kind.product,
                };
                let chosen = !self.is_default;
                routing::flows(configuration, event, &self.product, chosen) == Some(Outcome::Flows)
            })
            .collect();
        let by_key = self.is_ordered_by_key();
        let skip = (through + 1).saturating_sub(segment.first()) as usize;
        let mut looked = through;
        for (index, entry) in run.entries.iter().enumerate().skip(skip) {
            if found.len() >= room {
                break;
            }
            looked = segment.first() + index as u64;
            if !flows[usize::from(entry.kind)] {
                continue;
            }
            let bytes = event_at(run, index);
            let filter = own.map(|own| own.filter_at(Some(looked)));
            let takes = |filter: &Filter| filter.takes(event_kind(run, index), &bytes);
            // A default one has no filter of its own; one of a product's does not have what came
            // before its first.
            if filter.is_some_and(|filter| !filter.is_some_and(takes))
                || (own.is_none() && !self.is_default)
            {
                continue;
            }
            let start = if index == 0 {
                0
            } else {
                run.entries[index - 1].end
            };
            found.push(Found {
                seq: looked,
                key: by_key
                    .then(|| ordering_key(bytes))
                    .flatten()
                    .map(|key| key_of(&key)),
                bytes: entry.end - start,
            });
        }
        Ok(looked)
    }

    /// Matching events that are not settled; beyond [`BACKLOG_EVENTS_MAX`] events that were not
    /// looked at yet, a lower bound. Errors: `STORE_BUSY`.
    pub(super) async fn backlog(&self) -> Result<Backlog> {
        let (unsettled, mut first, mut at) = {
            let state = self.lock();
            let unsettled = state.leasing.counts().unsettled;
            let oldest = state.leasing.oldest_unsettled();
            (unsettled, oldest, state.leasing.position().cursor)
        };
        let mut count = unsettled as u64;
        let last = at + BACKLOG_EVENTS_MAX;
        while at < last {
            let page = self.parts.core.journal.read_after(&self.log, at).await?;
            let Page::Segments(segments) = page else {
                break;
            };
            for segment in segments {
                let configuration = self.configuration(segment.routing_epoch()).await?;
                let mut found = Vec::new();
                at = self.select(&segment, &configuration, (at, usize::MAX), &mut found)?;
                count += found.len() as u64;
                first = first.or(found.first().map(|found| found.seq));
            }
        }
        Ok(Backlog {
            count,
            first,
            whole: at >= self.log.head().seq,
        })
    }

    fn is_ordered_by_key(&self) -> bool {
        use hub_proto::hub::event_bus::v1::Ordering;
        let ordering = self.lock().settings.ordering;
        matches!(ordering, Ordering::ByKey | Ordering::Unspecified)
    }

    /// Retention was faster: what is not settled up to `to` never will be delivered.
    pub(super) fn expire(self: &Arc<Self>, from: u64, to: u64) {
        let now = self.now();
        let mut state = self.lock();
        state.leasing.expire_through(to, now);
        self.tell_gap(&state, from, to);
        self.follow_up(&mut state);
        self.looked.send_replace(to);
    }
}

fn event_at(run: &Run, index: usize) -> Bytes {
    let entry = &run.entries[index];
    run.records
        .slice(entry.event_start as usize..entry.event_end as usize)
}

fn event_kind(run: &Run, index: usize) -> Event<'_> {
    let kind = &run.kinds[usize::from(run.entries[index].kind)];
    Event {
        kind: &kind.kind,
        source: &kind.product,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_the_number_that_means_none_and_never_changes() {
        // Stored in databases: it must never change.
        assert_eq!(key_of(b"ticket/42"), key_of(b"ticket/42"));
        assert_eq!(key_of(b"").0, 0xe3b0_c442_98fc_1c14);
        assert_ne!(key_of(b"ticket/42"), key_of(b"ticket/43"));
    }
}
