//! Tenants, their products and integrations, and who changed what.

mod audit;
mod entitlements;
mod integrations;
mod jobs;
mod listing;
mod products;
mod propagation;
mod snapshots;
mod tenants;
mod toggle;
mod updates;

use hub_client::proto::hub::platform::v1::platform_client::PlatformClient;
use hub_client::proto::hub::platform::v1::{
    AuditEntry, Integration, ListAuditEntriesRequest, Product, SetIntegrationRequest,
    SetProductSubscriptionRequest,
};
use hub_client::{CloudEvent, Error, Hub, Transport};
use hub_proto::hub::event_bus::v1::{PublishRequest, PublishResponse};

use crate::support::TestHub;

/// A key, and what it does.
#[derive(Clone)]
struct Client {
    hub: Hub,
}

impl Client {
    fn new(hub: &TestHub, key: &str) -> Client {
        Client {
            hub: hub.client(key),
        }
    }

    /// The administrator of the first tenant.
    fn admin(hub: &TestHub) -> Client {
        Client::new(hub, &hub.first_tenant().admin_key)
    }

    fn operator(hub: &TestHub) -> Client {
        Client::new(hub, &hub.operator_key)
    }

    fn platform(&self) -> PlatformClient<Transport> {
        self.hub.platform()
    }

    /// Switches a product of the caller's tenant.
    async fn subscribe(&self, product: &str, active: bool) -> Result<Product, Error> {
        let request = SetProductSubscriptionRequest {
            product: product.to_owned(),
            active,
            ..SetProductSubscriptionRequest::default()
        };
        let answer = self.platform().set_product_subscription(request).await?;
        Ok(answer.into_inner().product.unwrap())
    }

    /// Switches an integration of the caller's tenant.
    async fn switch(
        &self,
        source: &str,
        destination: &str,
        on: bool,
    ) -> Result<Integration, Error> {
        let request = SetIntegrationRequest {
            source: source.to_owned(),
            destination: destination.to_owned(),
            enabled: on,
            reason: "a test".to_owned(),
            ..SetIntegrationRequest::default()
        };
        let answer = self.platform().set_integration(request).await?;
        Ok(answer.into_inner().integration.unwrap())
    }

    async fn audit(&self, request: ListAuditEntriesRequest) -> Vec<AuditEntry> {
        let answer = self.platform().list_audit_entries(request).await;
        answer.unwrap().into_inner().entries
    }

    /// Publishes one event.
    async fn publish(&self, kind: &str, id: &str) -> Result<PublishResponse, Error> {
        let event = CloudEvent {
            id: id.to_owned(),
            source: "/test".to_owned(),
            spec_version: "1.0".to_owned(),
            r#type: kind.to_owned(),
            ..CloudEvent::default()
        };
        let request = PublishRequest {
            events: vec![event],
            ..PublishRequest::default()
        };
        Ok(self.hub.event_bus().publish(request).await?.into_inner())
    }
}

/// A product of the first tenant that publishes and reads.
async fn product(hub: &TestHub, slug: &str) -> Client {
    let key = hub
        .key(slug, &["hub:events.publish", "hub:events.read"])
        .await;
    Client::new(hub, &key)
}

/// Its reason, for a call that must fail.
fn reason<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "OK".to_owned(),
        Err(error) => error.reason().unwrap_or_default().to_owned(),
    }
}
