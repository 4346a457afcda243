//! A line of the event log: an event with its state at each destination.
//!
//! Nothing is stored for an event that goes its way: where it stands follows from the configuration
//! under which it was recorded.

use std::sync::Arc;

use hub_core::clock::timestamp;
use hub_core::error::{Error, Result};
use hub_core::id;
use hub_core::journal::{Segment, StoredEvent, TenantRef};
use hub_proto::hub::event_bus::v1::{
    CloudEvent, EventDelivery, EventDeliveryState, EventLogEntry, EventRecord, NotRoutedReason,
};
use prost::Message;

use crate::default_subscriptions;
use crate::filter::Filter;
use crate::routing::{self, Configuration, Configurations, Destination, Outcome};
use crate::visibility::Viewer;

/// The hub itself: what goes there is settled at once.
pub(crate) const HUB: &str = "hub";
/// Deliveries that an entry shows; `delivery_count` has all.
const DELIVERIES_MAX: usize = 50;

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

    /// Where an event of this segment stands, at each destination that is named for it.
    pub(crate) async fn deliveries(
        &mut self,
        segment: &Segment,
        event: &StoredEvent<'_>,
    ) -> Result<Vec<EventDelivery>> {
        let configuration = self.configuration(segment.routing_epoch()).await?;
        let routed = routing::Event {
            kind: event.kind,
            source: event.product,
        };
        let bytes = event.event();
        let matches = |filter: &Filter| filter.takes(routed, &bytes);
        let event_id = id::event(self.tenant.key(event.seq));
        let recorded = timestamp(segment.record_time());
        let destinations = routing::destinations(&configuration, routed, Some(event.seq), matches);
        let deliveries = destinations.into_iter().map(|destination| {
            let (state, reason) = match destination.outcome {
                Outcome::Flows if destination.product == HUB => {
                    (EventDeliveryState::Delivered, NotRoutedReason::Unspecified)
                }
                Outcome::Flows => (EventDeliveryState::Queued, NotRoutedReason::Unspecified),
                Outcome::NotRouted(reason) => (EventDeliveryState::NotRouted, reason),
            };
            EventDelivery {
                event_id: event_id.clone(),
                subscription_id: self.subscription_id(&configuration, &destination),
                product: destination.product.to_owned(),
                state: state.into(),
                update_time: Some(recorded),
                not_routed_reason: reason.into(),
                ..EventDelivery::default()
            }
        });
        Ok(deliveries.collect())
    }

    /// Empty for a product that the catalogue names and that the tenant never had.
    fn subscription_id(
        &self,
        configuration: &Configuration,
        destination: &Destination<'_>,
    ) -> String {
        match destination.subscription {
            Some(own) => own.subscription_id.clone(),
            None if default_subscriptions::exists(configuration, destination.product) => {
                default_subscriptions::id(self.tenant, destination.product)
            }
            None => String::new(),
        }
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
