//! Subscriptions to products: what ends with one, and what stays.

use std::time::Duration;

use hub_client::proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest, WhoAmIRequest};
use hub_client::proto::hub::platform::v1::{CreateTenantRequest, SetProductSubscriptionRequest};
use hub_proto::hub::event_bus::v1::subscribe_response::Frame;
use hub_proto::hub::event_bus::v1::{StartAt, SubscribeRequest, start_at};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

use super::{Client, product, reason};
use crate::support::TestHub;

const PATIENCE: Duration = Duration::from_secs(20);

fn earliest() -> SubscribeRequest {
    SubscribeRequest {
        start: Some(StartAt {
            at: Some(start_at::At::Earliest(true)),
        }),
        stop_when_caught_up: true,
        ..SubscribeRequest::default()
    }
}

/// Ids of the events that a product sees, up to the end of the log.
async fn seen(client: &Client) -> Vec<String> {
    let mut frames = client
        .hub
        .event_bus()
        .subscribe(earliest())
        .await
        .unwrap()
        .into_inner();
    let mut ids = Vec::new();
    while let Some(frame) = frames.message().await.unwrap() {
        if let Some(Frame::Events(batch)) = frame.frame {
            ids.extend(
                batch
                    .events
                    .into_iter()
                    .map(|record| record.event.unwrap().id),
            );
        }
    }
    ids
}

async fn active_products(client: &Client) -> Vec<String> {
    let me = client.hub.api_keys().who_am_i(WhoAmIRequest {}).await;
    me.unwrap().into_inner().active_products
}

both_databases! {
    async fn keys_of_a_product_work_while_its_subscription_is_active(hub: TestHub) {
        let (admin, portal) = (Client::admin(&hub), product(&hub, "portal").await);
        let before = admin.subscribe("portal", true).await.unwrap().subscription.unwrap();
        assert!(before.active && before.update_time.is_none() && before.updated_by.is_empty());
        let ended = admin.subscribe("portal", false).await.unwrap().subscription.unwrap();
        assert!(!ended.active && ended.update_time.is_some());
        assert!(ended.updated_by.starts_with("key_"), "{ended:?}");
        let error = portal.publish("portal.opened", "1").await.unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied);
        assert_eq!(error.reason(), Some("SUBSCRIPTION_INACTIVE"));
        assert_eq!(error.metadata()["product"], "portal");
        let me = portal.hub.api_keys().who_am_i(WhoAmIRequest {}).await;
        assert_eq!(reason(me.map_err(Into::into)), "SUBSCRIPTION_INACTIVE");
        let others: Vec<_> = active_products(&admin).await;
        assert!(!others.contains(&"portal".to_owned()) && others.len() == 11);
        admin.subscribe("portal", true).await.unwrap();
        portal.publish("portal.opened", "1").await.unwrap();
        assert_eq!(active_products(&admin).await.len(), 12);
    }

    async fn another_tenant_keeps_what_one_ended(hub: TestHub) {
        let other = hub.tenant().await;
        let other_admin = Client::new(&hub, &other.admin_key);
        let key = other.key(&other_admin.hub, "psa", &["hub:events.publish"]).await;
        Client::admin(&hub).subscribe("psa", false).await.unwrap();
        let published = Client::new(&hub, &key).publish("ticket.created", "1").await.unwrap();
        assert_eq!(published.results[0].destinations, 2);
        assert_eq!(active_products(&other_admin).await.len(), 12);
        // Naming the other one does not help.
        let request = SetProductSubscriptionRequest {
            tenant_id: other.id.clone(),
            product: "psa".to_owned(),
            active: false,
        };
        let mut platform = Client::admin(&hub).platform();
        let refused = platform.set_product_subscription(request.clone()).await;
        assert_eq!(reason(refused.map_err(Into::into)), "TENANT_NOT_FOUND");
        let operator = Client::operator(&hub);
        operator.platform().set_product_subscription(request).await.unwrap();
        assert_eq!(active_products(&other_admin).await.len(), 11);
    }

    async fn a_key_of_all_tenants_is_checked_for_the_tenant_that_it_names(hub: TestHub) {
        let operator = Client::operator(&hub);
        let api_key = ApiKey {
            name: "psa for all".to_owned(),
            product: "psa".to_owned(),
            scopes: vec!["hub:*".to_owned()],
            all_tenants: true,
            ..ApiKey::default()
        };
        let request = CreateApiKeyRequest { api_key: Some(api_key), ..Default::default() };
        let made = operator.hub.api_keys().create_api_key(request).await.unwrap().into_inner();
        let (one, other) = (hub.first_tenant().id.clone(), hub.tenant().await.id);
        Client::admin(&hub).subscribe("psa", false).await.unwrap();
        let backend = hub.client(&made.plaintext);
        let call = async |tenant: &str| {
            let mut request = Request::new(WhoAmIRequest {});
            let value = MetadataValue::try_from(tenant).unwrap();
            request.metadata_mut().insert("x-hub-tenant", value);
            reason(backend.api_keys().who_am_i(request).await.map_err(Into::into))
        };
        assert_eq!(call(&one).await, "SUBSCRIPTION_INACTIVE");
        assert_eq!(call(&other).await, "OK");
        assert_eq!(reason(backend.api_keys().who_am_i(WhoAmIRequest {}).await.map_err(Into::into)),
            "OK");
    }

    async fn a_stream_ends_when_its_product_does(hub: TestHub) {
        let (admin, portal) = (Client::admin(&hub), product(&hub, "portal").await);
        let mut bus = portal.hub.event_bus();
        let mut frames = bus.subscribe(SubscribeRequest::default()).await.unwrap().into_inner();
        while !matches!(frames.message().await.unwrap().unwrap().frame, Some(Frame::CaughtUp(_))) {}
        admin.subscribe("portal", false).await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, async {
            loop {
                match frames.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("it ended without a reason"),
                    Err(status) => return hub_client::Error::from(status),
                }
            }
        });
        let error = ended.await.expect("at once, for the change is an event of the log");
        assert_eq!(error.reason(), Some("SUBSCRIPTION_INACTIVE"));
    }

    async fn events_of_the_time_without_subscription_are_not_sent_later(hub: TestHub) {
        let (admin, psa) = (Client::admin(&hub), product(&hub, "psa").await);
        let portal = product(&hub, "portal").await;
        let destinations = async |id: &str| {
            psa.publish("ticket.created", id).await.unwrap().results[0].destinations
        };
        assert_eq!(destinations("before").await, 2);
        admin.subscribe("portal", false).await.unwrap();
        assert_eq!(destinations("while").await, 1);
        admin.subscribe("portal", true).await.unwrap();
        assert_eq!(destinations("after").await, 2);
        assert_eq!(seen(&portal).await, ["before", "after"]);
        // A duplicate is told what was true of the first one.
        assert_eq!(destinations("while").await, 1);
        assert_eq!(destinations("before").await, 2);
    }

    async fn a_tenant_begins_with_the_products_chosen_for_it(hub: TestHub) {
        let operator = Client::operator(&hub);
        let request = CreateTenantRequest {
            name: "Small".to_owned(),
            products: vec!["psa".to_owned(), "hub".to_owned(), "psa".to_owned()],
            ..CreateTenantRequest::default()
        };
        let made = operator.platform().create_tenant(request).await.unwrap().into_inner();
        let admin = Client::new(&hub, &made.admin_key);
        assert_eq!(active_products(&admin).await, ["psa", "hub"]);
        let request = CreateApiKeyRequest {
            api_key: Some(ApiKey {
                name: "psa".to_owned(),
                product: "psa".to_owned(),
                scopes: vec!["hub:events.publish".to_owned()],
                ..ApiKey::default()
            }),
            ..CreateApiKeyRequest::default()
        };
        let key = admin.hub.api_keys().create_api_key(request).await.unwrap().into_inner();
        let psa = Client::new(&hub, &key.plaintext);
        let published = psa.publish("ticket.created", "1").await.unwrap();
        assert_eq!((published.results[0].sequence, published.results[0].destinations), (1, 1));
    }

    async fn an_unknown_product_is_refused_with_a_hint(hub: TestHub) {
        let error = Client::admin(&hub).subscribe("potral", true).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::NotFound, Some("PRODUCT_NOT_FOUND")));
        assert_eq!(error.metadata()["didYouMean"], "portal");
    }
}
