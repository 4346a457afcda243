//! What a publisher is told of where its events go: the count of destinations, and warnings.

use std::sync::Arc;

use bytes::Bytes;
use hub_core::error::Result;
use hub_core::journal::{Journal, Log, Segment};
use hub_proto::hub::event_bus::v1::{PublishResult, PublishWarning};

use crate::filter::Filter;
use crate::routing::{self, Configuration, Configurations, Event, Subscription};

/// Where events of one product go by one configuration; asked once for each type in a batch.
pub(crate) struct Routes<'a> {
    configuration: &'a Configuration,
    product: &'a str,
    /// No filter looks into an event, so that its type alone decides.
    by_type: bool,
    known: Vec<(Bytes, u32)>,
}

impl<'a> Routes<'a> {
    pub(crate) fn new(configuration: &'a Configuration, product: &'a str) -> Self {
        let mut filters = configuration.subscriptions.iter();
        let looks_in = |own: &Subscription| own.filter_at(None).is_some_and(Filter::has_attributes);
        Routes {
            configuration,
            product,
            by_type: !filters.any(looks_in),
            known: Vec::new(),
        }
    }

    /// How many durable subscriptions an event goes to.
    pub(crate) fn count(&mut self, kind: &Bytes, event: &Bytes) -> u32 {
        let known = self.known.iter().find(|(known, _)| known == kind);
        if let Some((_, count)) = known {
            return *count;
        }
        let count = count(self.configuration, self.product, kind, event, None);
        if self.by_type {
            self.known.push((kind.clone(), count));
        }
        count
    }
}

fn count(
    configuration: &Configuration,
    source: &str,
    kind: &Bytes,
    event: &Bytes,
    seq: Option<u64>,
) -> u32 {
    let kind = String::from_utf8_lossy(kind);
    let about = Event {
        kind: &kind,
        source,
    };
    let takes = |filter: &Filter| filter.takes(about, event);
    routing::count(&routing::destinations(configuration, about, seq, takes))
}

/// Decides again for events that were not committed under the epoch by which they were checked:
/// the configuration changed in between, or they are duplicates of older ones.
///
/// The events are stored whatever comes of it. Errors: `STORE_BUSY`, as of a commit whose outcome
/// is unknown: sent again, the events are found and counted. A count of what was is never told.
pub(crate) async fn settle(
    journal: &Journal,
    log: &Log,
    configurations: &Configurations,
    checked: &Configuration,
    results: &mut [PublishResult],
) -> Result<()> {
    let moved = journal.seen_epoch(log.tenant()) != checked.epoch;
    if !moved && !results.iter().any(|result| result.duplicate) {
        return Ok(());
    }
    let mut recorded = Recorded {
        journal,
        log,
        configurations,
        segment: None,
        configuration: None,
    };
    for result in results {
        if result.sequence == 0 || !(moved || result.duplicate) {
            continue;
        }
        if let Some(count) = recorded.count(result.sequence).await? {
            tell(result, count);
        }
    }
    Ok(())
}

fn tell(result: &mut PublishResult, destinations: u32) {
    const NO_ROUTE: i32 = PublishWarning::NoRoute as i32;
    result.destinations = destinations;
    result.warnings.retain(|warning| *warning != NO_ROUTE);
    if destinations == 0 {
        result.warnings.push(NO_ROUTE);
    }
}

/// Looks at events where they are stored; neighbours share segment and configuration.
struct Recorded<'a> {
    journal: &'a Journal,
    log: &'a Log,
    configurations: &'a Configurations,
    segment: Option<Arc<Segment>>,
    configuration: Option<Arc<Configuration>>,
}

impl Recorded<'_> {
    /// `None` if the log no longer has the event.
    async fn count(&mut self, seq: u64) -> Result<Option<u32>> {
        let Some(segment) = self.segment(seq).await? else {
            return Ok(None);
        };
        let configuration = self.configuration(segment.routing_epoch()).await?;
        let run = segment.run().map_err(hub_core::error::Error::internal)?;
        let index = (seq - segment.first()) as usize;
        let Some(entry) = run.entries.get(index) else {
            return Ok(None);
        };
        let kind = &run.kinds[usize::from(entry.kind)];
        let event = run
            .records
            .slice(entry.event_start as usize..entry.event_end as usize);
        let name = Bytes::copy_from_slice(kind.kind.as_bytes());
        let count = count(&configuration, &kind.product, &name, &event, Some(seq));
        Ok(Some(count))
    }

    async fn segment(&mut self, seq: u64) -> Result<Option<Arc<Segment>>> {
        let holds = |held: &Arc<Segment>| (held.first()..=held.last()).contains(&seq);
        if !self.segment.as_ref().is_some_and(holds) {
            self.segment = self.journal.segment_at(self.log, seq).await?;
        }
        Ok(self.segment.clone().filter(holds))
    }

    async fn configuration(&mut self, epoch: u64) -> Result<Arc<Configuration>> {
        if let Some(known) = &self.configuration
            && known.epoch == epoch
        {
            return Ok(known.clone());
        }
        let found = self.configurations.at(self.log.tenant(), epoch).await?;
        self.configuration = Some(found.clone());
        Ok(found)
    }
}
