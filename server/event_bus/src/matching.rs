//! Which stored events a subscription has: for counts of what waits, what a seek repeats and what
//! it skips. A walk reads the log from a place back to another one, and ends early when it has
//! examined as much as one call may.

mod first;

use std::sync::Arc;

use bytes::Bytes;
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::journal::{Log, StoredEvent};
use hub_core::module::Core;
use hub_core::products::Product;

use crate::filter::Filter;
use crate::routing::{self, Configuration, Configurations, Event, Outcome, Subscription};
use crate::subscriptions::Stored;

pub(crate) use first::{First, Probes};

/// Decisions about pairs of type and product that are remembered.
const REMEMBERED_MAX: usize = 16;

/// A subscription, as far as it decides about events.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    taker: Taker,
    /// The epoch of `remembered`.
    epoch: u64,
    remembered: Vec<(String, String, bool)>,
}

#[derive(Debug, Clone)]
enum Taker {
    /// The default subscription of a product.
    Default(Product),
    /// One that a product made.
    Own(Subscription),
    /// One that just now is made or deleted.
    Nothing,
}

impl Target {
    /// With the products and subscriptions that there are now.
    pub(crate) fn of(present: &Configuration, stored: &Stored) -> Target {
        let taker = if stored.is_default {
            let mut products = present.products.iter();
            let found = products.find(|product| product.slug == stored.product);
            found.cloned().map(Taker::Default)
        } else {
            let mut own = present.subscriptions.iter();
            let found = own.find(|own| own.subscription_id == stored.id);
            found.cloned().map(Taker::Own)
        };
        Target {
            taker: taker.unwrap_or(Taker::Nothing),
            epoch: 0,
            remembered: Vec::new(),
        }
    }

    /// One that is about to be made, with this filter for all events.
    pub(crate) fn new(product: &str, filter: Filter) -> Target {
        let own = Subscription {
            subscription_id: String::new(),
            product: product.to_owned(),
            filters: vec![(0, filter)],
        };
        Target {
            taker: Taker::Own(own),
            epoch: 0,
            remembered: Vec::new(),
        }
    }

    /// Whether an event flows to it, by the configuration under which the event was recorded.
    pub(crate) fn has(&mut self, configuration: &Configuration, event: &StoredEvent<'_>) -> bool {
        if self.epoch != configuration.epoch {
            self.epoch = configuration.epoch;
            self.remembered.clear();
        }
        if !self.reaches(event.seq) {
            return false;
        }
        let known = self.remembered.iter();
        let mut known =
            known.filter(|(kind, source, _)| kind == event.kind && source == event.product);
        if let Some((_, _, has)) = known.next() {
            return *has;
        }
        let has = self.outcome(configuration, event) == Some(Outcome::Flows);
        if self.by_type() && self.remembered.len() < REMEMBERED_MAX {
            let (kind, source) = (event.kind.to_owned(), event.product.to_owned());
            self.remembered.push((kind, source, has));
        }
        has
    }

    /// What becomes of an event for it; `None` if it does not have the event at all.
    pub(crate) fn outcome(
        &self,
        configuration: &Configuration,
        event: &StoredEvent<'_>,
    ) -> Option<Outcome> {
        let about = Event {
            kind: event.kind,
            source: event.product,
        };
        match &self.taker {
            Taker::Default(product) => routing::to_default(configuration, about, product),
            Taker::Own(own) => {
                let bytes: Bytes = event.event();
                let takes = |filter: &Filter| filter.takes(about, &bytes);
                routing::to_own(configuration, about, Some(event.seq), own, takes)
            }
            Taker::Nothing => None,
        }
    }

    /// Its first filter decides about events from `seq` on, if that is earlier than it did.
    pub(crate) fn reach_back(&mut self, seq: u64) {
        if let Taker::Own(own) = &mut self.taker
            && let Some((from, _)) = own.filters.first_mut()
        {
            *from = seq.min(*from);
        }
    }

    /// Whether the event at `seq` is not from before it.
    fn reaches(&self, seq: u64) -> bool {
        match &self.taker {
            Taker::Own(own) => own.filters.first().is_some_and(|(from, _)| *from <= seq),
            Taker::Default(_) | Taker::Nothing => true,
        }
    }

    /// Whether the type of an event decides, and not its place or content.
    fn by_type(&self) -> bool {
        match &self.taker {
            Taker::Own(own) => match own.filters.as_slice() {
                [(_, filter)] => !filter.has_attributes(),
                _ => false,
            },
            Taker::Default(_) | Taker::Nothing => true,
        }
    }
}

/// What one call may examine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Events.
    pub(crate) events: usize,
    /// Bytes of segments that are read.
    pub(crate) bytes: usize,
}

/// Walks over one log.
pub(crate) struct Walk<'a> {
    core: &'a Core,
    configurations: &'a Configurations,
    log: &'a Arc<Log>,
    left: Budget,
    /// Of the segment that was looked at last.
    at: Option<Arc<Configuration>>,
}

/// An event on the way.
pub(crate) struct Passed<'a> {
    /// The configuration under which it was recorded.
    pub(crate) configuration: &'a Configuration,
    /// The event.
    pub(crate) event: &'a StoredEvent<'a>,
    /// When it was recorded.
    pub(crate) time: Micros,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(
        core: &'a Core,
        configurations: &'a Configurations,
        log: &'a Arc<Log>,
        budget: Budget,
    ) -> Self {
        Walk {
            core,
            configurations,
            log,
            left: budget,
            at: None,
        }
    }

    /// What may still be examined.
    pub(crate) fn left(&self) -> Budget {
        self.left
    }

    /// From `to` back to the one behind `after`, newest first. `each` says whether to go on.
    /// Returns where it ended: all that follows was examined. Errors: `STORE_BUSY`.
    pub(crate) async fn back(
        &mut self,
        after: u64,
        to: u64,
        mut each: impl FnMut(Passed<'_>) -> bool + Send,
    ) -> Result<u64> {
        let mut before = to + 1;
        while before > after + 1 && self.left.events > 0 && self.left.bytes > 0 {
            let bytes = self.core.limits.page_bytes_max.min(self.left.bytes);
            let journal = &self.core.journal;
            let page = journal.page_before(self.log, before, after + 1, bytes);
            let segments = page.await?;
            if segments.is_empty() {
                // Retention has removed the rest.
                return Ok(after);
            }
            for segment in segments {
                let configuration = self.configuration(segment.routing_epoch()).await?;
                let events: Vec<StoredEvent<'_>> = segment
                    .events()
                    .collect::<Result<_, _>>()
                    .map_err(Error::internal)?;
                let newest = before;
                let mine = events.iter().rev();
                for event in mine.filter(|event| event.seq < newest && event.seq > after) {
                    if self.left.events == 0 {
                        return Ok(before - 1);
                    }
                    self.left.events -= 1;
                    before = event.seq;
                    let passed = Passed {
                        configuration: &configuration,
                        event,
                        time: segment.record_time(),
                    };
                    if !each(passed) {
                        return Ok(before - 1);
                    }
                }
                self.left.bytes = self.left.bytes.saturating_sub(segment.size());
            }
        }
        Ok(before - 1)
    }

    async fn configuration(&mut self, epoch: u64) -> Result<Arc<Configuration>> {
        if let Some(known) = self.at.as_ref().filter(|known| known.epoch == epoch) {
            return Ok(known.clone());
        }
        let found = self.configurations.at(self.log.tenant(), epoch).await?;
        self.at = Some(found.clone());
        Ok(found)
    }
}
