//! Who has durable subscriptions, and what it asks for.

use std::time::Duration;

use hub_client::{Error, Hub, start_at::At};
use hub_proto::hub::event_bus::v1::{
    CreateSubscriptionRequest, DeleteSubscriptionRequest, EventFilter, GetSubscriptionRequest,
    ListSubscriptionsRequest, PauseSubscriptionRequest, ResumeSubscriptionRequest,
    SeekSubscriptionRequest, SeekSubscriptionResponse, StartAt, Subscription, SubscriptionState,
    SubscriptionStatus, UpdateSubscriptionRequest,
};
use prost_types::FieldMask;

use crate::support::TestHub;

const SCOPES: [&str; 2] = ["hub:subscriptions.read", "hub:subscriptions.write"];

/// Who has subscriptions.
pub(super) struct Owner {
    pub(super) hub: Hub,
}

impl Owner {
    pub(super) async fn new(hub: &TestHub, product: &str) -> Owner {
        Owner::with(hub, product, &SCOPES).await
    }

    pub(super) async fn with(hub: &TestHub, product: &str, scopes: &[&str]) -> Owner {
        let key = hub.key(product, scopes).await;
        Owner {
            hub: hub.client(&key),
        }
    }

    /// The administrator of the first tenant.
    pub(super) fn admin(hub: &TestHub) -> Owner {
        Owner {
            hub: hub.client(&hub.first_tenant().admin_key),
        }
    }

    pub(super) async fn try_create(
        &self,
        request: CreateSubscriptionRequest,
    ) -> Result<Subscription, Error> {
        let answer = self.hub.event_bus().create_subscription(request).await?;
        Ok(answer.into_inner().subscription.unwrap())
    }

    pub(super) async fn create(&self, request: CreateSubscriptionRequest) -> Subscription {
        self.try_create(request).await.unwrap()
    }

    pub(super) async fn get(&self, id: &str) -> Result<Subscription, Error> {
        let request = GetSubscriptionRequest {
            subscription_id: id.to_owned(),
        };
        let answer = self.hub.event_bus().get_subscription(request).await?;
        Ok(answer.into_inner().subscription.unwrap())
    }

    /// All pages of a list, and how many.
    pub(super) async fn list(
        &self,
        mut request: ListSubscriptionsRequest,
    ) -> Result<(Vec<Subscription>, usize), Error> {
        let (mut found, mut pages) = (Vec::new(), 0);
        loop {
            let mut bus = self.hub.event_bus();
            let page = bus.list_subscriptions(request.clone()).await?.into_inner();
            found.extend(page.subscriptions);
            pages += 1;
            if page.next_page_token.is_empty() {
                return Ok((found, pages));
            }
            request.page_token = page.next_page_token;
        }
    }

    pub(super) async fn update(
        &self,
        subscription: Subscription,
        paths: &[&str],
    ) -> Result<Subscription, Error> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        let request = UpdateSubscriptionRequest {
            subscription: Some(subscription),
            update_mask: Some(FieldMask { paths }),
        };
        let answer = self.hub.event_bus().update_subscription(request).await?;
        Ok(answer.into_inner().subscription.unwrap())
    }

    pub(super) async fn delete(&self, id: &str, etag: &str) -> Result<(), Error> {
        let request = DeleteSubscriptionRequest {
            subscription_id: id.to_owned(),
            etag: etag.to_owned(),
        };
        self.hub.event_bus().delete_subscription(request).await?;
        Ok(())
    }

    pub(super) async fn pause(
        &self,
        request: PauseSubscriptionRequest,
    ) -> Result<Subscription, Error> {
        let answer = self.hub.event_bus().pause_subscription(request).await?;
        Ok(answer.into_inner().subscription.unwrap())
    }

    pub(super) async fn resume(&self, id: &str) -> Result<Subscription, Error> {
        let request = ResumeSubscriptionRequest {
            subscription_id: id.to_owned(),
        };
        let answer = self.hub.event_bus().resume_subscription(request).await?;
        Ok(answer.into_inner().subscription.unwrap())
    }

    pub(super) async fn seek(
        &self,
        request: SeekSubscriptionRequest,
    ) -> Result<SeekSubscriptionResponse, Error> {
        let answer = self.hub.event_bus().seek_subscription(request).await?;
        Ok(answer.into_inner())
    }
}

/// A subscription that begins now.
pub(super) fn named(name: &str, filter: EventFilter) -> CreateSubscriptionRequest {
    CreateSubscriptionRequest {
        subscription: Some(Subscription {
            name: name.to_owned(),
            filter: Some(filter),
            ..Subscription::default()
        }),
        ..CreateSubscriptionRequest::default()
    }
}

/// One that begins at a place.
pub(super) fn starting(name: &str, filter: EventFilter, at: At) -> CreateSubscriptionRequest {
    CreateSubscriptionRequest {
        start: Some(StartAt { at: Some(at) }),
        ..named(name, filter)
    }
}

pub(super) fn paused(id: &str, reason: &str) -> PauseSubscriptionRequest {
    PauseSubscriptionRequest {
        subscription_id: id.to_owned(),
        reason: reason.to_owned(),
        until: None,
    }
}

pub(super) fn state(subscription: &Subscription) -> SubscriptionState {
    subscription.status.as_ref().unwrap().state()
}

pub(super) fn status(subscription: &Subscription) -> SubscriptionStatus {
    subscription.status.clone().unwrap()
}

/// A seek to a place.
pub(super) fn seeking(id: &str, at: At) -> SeekSubscriptionRequest {
    SeekSubscriptionRequest {
        subscription_id: id.to_owned(),
        to: Some(StartAt { at: Some(at) }),
        ..SeekSubscriptionRequest::default()
    }
}

/// Waits until a subscription is in a state.
pub(super) async fn becomes(owner: &Owner, id: &str, wanted: SubscriptionState) -> Subscription {
    let found = async {
        loop {
            let found = owner.get(id).await.unwrap();
            if state(&found) == wanted {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(20), found).await;
    found.unwrap_or_else(|_| panic!("it never was {wanted:?}"))
}
