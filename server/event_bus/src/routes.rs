//! What a publisher is told of where its events go: the count of destinations, and warnings.

use std::sync::Arc;

use bytes::Bytes;
use hub_core::error::Result;
use hub_core::journal::{Journal, Log, Segment};
use hub_proto::hub::event_bus::v1::{PublishResult, PublishWarning};

use crate::filter::Filter;
use crate::routing::{
    self, Configuration, Configurations, Destination, Event, Outcome, Subscription,
};

/// Where events of one product go by one configuration; asked once for each type in a batch.
pub(crate) struct Routes<'a> {
    configuration: &'a Configuration,
    product: &'a str,
    /// No filter looks into an event, so that its type alone decides.
    by_type: bool,
    known: Vec<(Bytes, Arc<Decided>)>,
}

/// Where an event goes, and where it does not though something names the product.
#[derive(Debug)]
pub(crate) struct Decided {
    /// How many durable subscriptions it goes to.
    pub(crate) destinations: u32,
    outcomes: Vec<(String, Outcome)>,
}

impl Decided {
    fn new(destinations: &[Destination<'_>]) -> Decided {
        let outcome = |to: &Destination<'_>| (to.product.to_owned(), to.outcome);
        Decided {
            destinations: routing::count(destinations),
            outcomes: destinations.iter().map(outcome).collect(),
        }
    }

    /// Counts that it was decided so of so many events.
    pub(crate) fn tell(&self, events: u64) {
        for (product, outcome) in &self.outcomes {
            let (outcome, reason) = match outcome {
                Outcome::Flows => ("flows", ""),
                Outcome::NotRouted(reason) => ("not_routed", reason.as_str_name()),
            };
            let dest = product.clone();
            metrics::counter!("hub_event_decisions_total",
                "dest" => dest, "outcome" => outcome, "reason" => reason)
            .increment(events);
        }
    }
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

    /// Where an event goes.
    pub(crate) fn decide(&mut self, kind: &Bytes, event: &Bytes) -> Arc<Decided> {
        let known = self.known.iter().find(|(known, _)| known == kind);
        if let Some((_, decided)) = known {
            return decided.clone();
        }
        let (configuration, product) = (self.configuration, self.product);
        let decided = decide(configuration, product, kind, event, None, Decided::new);
        let decided = Arc::new(decided);
        if self.by_type {
            self.known.push((kind.clone(), decided.clone()));
        }
        decided
    }
}

fn decide<T>(
    configuration: &Configuration,
    source: &str,
    kind: &Bytes,
    event: &Bytes,
    seq: Option<u64>,
    read: impl FnOnce(&[Destination<'_>]) -> T,
) -> T {
    let kind = String::from_utf8_lossy(kind);
    let about = Event {
        kind: &kind,
        source,
    };
    let takes = |filter: &Filter| filter.takes(about, event);
    read(&routing::destinations(configuration, about, seq, takes))
}

/// Decides again for events that were not committed under the epoch by which they were checked:
/// the configuration changed in between, or they are duplicates of older ones.
///
/// The events are stored whatever comes of it. Errors: `STORE_BUSY`, as of a commit whose outcome
/// is unknown: sent again, the events are found and counted. Only of an event of which retention or
/// a damaged file has left nothing, it is told what was checked.
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
        let Ok(run) = segment.run() else {
            return Ok(None);
        };
        let index = (seq - segment.first()) as usize;
        let Some(entry) = run.entries.get(index) else {
            return Ok(None);
        };
        let kind = &run.kinds[usize::from(entry.kind)];
        let event = run
            .records
            .slice(entry.event_start as usize..entry.event_end as usize);
        let name = Bytes::copy_from_slice(kind.kind.as_bytes());
        let (product, seq) = (&kind.product, Some(seq));
        let count = decide(&configuration, product, &name, &event, seq, routing::count);
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
