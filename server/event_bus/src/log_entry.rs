//! A line of the event log: an event with its state at each destination.
//!
//! Which destinations are named follows from the configuration under which the event was recorded;
//! where it stands at each is in [`crate::standing`].

use std::sync::Arc;

use hub_core::clock::timestamp;
use hub_core::error::{Error, Result};
use hub_core::id;
use hub_core::journal::{Segment, StoredEvent, TenantRef};
use hub_proto::hub::event_bus::v1::{CloudEvent, EventDelivery, EventLogEntry, EventRecord};
use prost::Message;

use crate::default_subscriptions;
use crate::filter::Filter;
use crate::routing::{self, Configuration, Configurations, Destination, Outcome};
use crate::standing::Standings;
use crate::visibility::Viewer;

/// The hub itself: what goes to its default subscription is settled at once.
pub(crate) const HUB: &str = "hub";
/// Deliveries that an entry shows; `delivery_count` has all.
const DELIVERIES_MAX: usize = 50;

/// A destination that the catalogue or a filter names for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// Empty for a product that the catalogue names and that the tenant never had.
    pub(crate) subscription_id: String,
    /// Slug of the product that owns the subscription.
    pub(crate) product: String,
    /// It is the default subscription of the product.
    pub(crate) is_default: bool,
    /// Whether the event was routed there when it was recorded. Without a reason why not, nothing
    /// named the destination then: a call gave it the event later.
    pub(crate) outcome: Outcome,
}

/// Makes the entries of one tenant for one viewer.
pub(crate) struct Entries<'a> {
    pub(crate) configurations: &'a Configurations,
    pub(crate) tenant: &'a TenantRef,
    pub(crate) viewer: &'a Viewer,
    /// Without payload.
    pub(crate) omit_data: bool,
    /// Of the segment that was looked at last.
    at: Option<Arc<Configuration>>,
}

impl<'a> Entries<'a> {
    pub(crate) fn new(
        configurations: &'a Configurations,
        tenant: &'a TenantRef,
        viewer: &'a Viewer,
        omit_data: bool,
    ) -> Self {
        Entries {
            configurations,
            tenant,
            viewer,
            omit_data,
            at: None,
        }
    }

    /// The destinations that are named for an event of this segment.
    pub(crate) async fn destinations(
        &mut self,
        segment: &Segment,
        event: &StoredEvent<'_>,
    ) -> Result<Vec<Named>> {
        let configuration = self.configuration(segment.routing_epoch()).await?;
        Ok(destinations(self.tenant, &configuration, event))
    }

    /// Where the event at `seq` of this segment stands at each of its destinations, and wherever it
    /// was given to later.
    pub(crate) fn deliveries(
        &self,
        standings: &Standings<'_>,
        segment: &Segment,
        seq: u64,
        destinations: &[Named],
    ) -> Vec<EventDelivery> {
        let event_id = id::event(self.tenant.key(seq));
        let recorded = segment.record_time();
        let given = standings.given(seq, destinations);
        let deliveries = destinations.iter().chain(&given);
        let deliveries = deliveries.map(|named| {
            standings
                .of(named, seq, recorded)
                .delivery(&event_id, named)
        });
        deliveries.collect()
    }

    async fn configuration(&mut self, epoch: u64) -> Result<Arc<Configuration>> {
        if let Some(known) = self.at.as_ref().filter(|known| known.epoch == epoch) {
            return Ok(known.clone());
        }
        let found = self.configurations.at(self.tenant, epoch).await?;
        self.at = Some(found.clone());
        Ok(found)
    }

    /// The entry as the viewer may see it.
    pub(crate) fn entry(
        &self,
        segment: &Segment,
        event: &StoredEvent<'_>,
        mut deliveries: Vec<EventDelivery>,
    ) -> Result<EventLogEntry> {
        let delivery_count = u32::try_from(deliveries.len()).unwrap_or(u32::MAX);
        // Its own come first where not all are shown.
        deliveries.sort_by_key(|delivery| !self.viewer.is(&delivery.product));
        deliveries.truncate(DELIVERIES_MAX);
        deliveries.sort_by(|one, two| one.product.cmp(&two.product));
        let mut stored = CloudEvent::decode(event.event()).map_err(Error::internal)?;
        if self.omit_data {
            stored.data = None;
        }
        let record = EventRecord {
            sequence: event.seq,
            event: Some(stored),
            record_time: Some(timestamp(segment.record_time())),
            event_id: id::event(self.tenant.key(event.seq)),
            product: event.product.to_owned(),
            tenant_id: self.tenant.id().to_owned(),
        };
        Ok(EventLogEntry {
            record: Some(record),
            deliveries: deliveries
                .into_iter()
                .map(|delivery| self.viewer.show(delivery))
                .collect(),
            delivery_count,
        })
    }
}

/// The destinations of an event by the configuration under which it was recorded.
pub(crate) fn destinations(
    tenant: &TenantRef,
    configuration: &Configuration,
    event: &StoredEvent<'_>,
) -> Vec<Named> {
    let routed = routing::Event {
        kind: event.kind,
        source: event.product,
    };
    let bytes = event.event();
    let matches = |filter: &Filter| filter.takes(routed, &bytes);
    let found = routing::destinations(configuration, routed, Some(event.seq), matches);
    let named = found.into_iter().map(|destination| Named {
        subscription_id: subscription_id(tenant, configuration, &destination),
        product: destination.product.to_owned(),
        is_default: destination.subscription.is_none(),
        outcome: destination.outcome,
    });
    named.collect()
}

fn subscription_id(
    tenant: &TenantRef,
    configuration: &Configuration,
    destination: &Destination<'_>,
) -> String {
    match destination.subscription {
        Some(own) => own.subscription_id.clone(),
        None if default_subscriptions::exists(configuration, destination.product) => {
            default_subscriptions::id(tenant, destination.product)
        }
        None => String::new(),
    }
}
