//! The durable subscriptions of a run: of each order and policy, and the default ones.

use hub_client::Hub;
use hub_client::proto::hub::event_bus::v1::{
    CreateSubscriptionRequest, ExhaustedAction, ListSubscriptionsRequest, Ordering as Order,
    RetryPolicy, StartAt, Subscription, UpdateSubscriptionRequest, start_at,
};

use super::filter::{ALERT, TICK, TICK_DEEP, TICKET, Wanted};
use super::load::{duration, filter};
use super::records::{Durable, Micros, Ordering};

/// Time to ack.
const LEASE: Micros = 2_000_000;

/// Those of the portal's own, from the beginning of the log.
pub fn own() -> Vec<Durable> {
    let all = Wanted::types(&[TICKET, "load.**"]);
    let keyed = Wanted {
        key_prefix: "key-1".to_owned(),
        ..Wanted::types(&[TICK, ALERT])
    };
    let deep = || Wanted::types(&[TICK_DEEP]);
    vec![
        durable("portal-keys", all, Ordering::ByKey),
        Durable {
            redelivered: true,
            ..durable("portal-none", Wanted::types(&[TICKET]), Ordering::None)
        },
        Durable {
            redelivered: true,
            ..durable("portal-some", keyed, Ordering::ByKey)
        },
        durable("portal-total", deep(), Ordering::Total),
        Durable {
            block_key: true,
            ..durable("portal-block", deep(), Ordering::ByKey)
        },
        // Nobody works it off.
        Durable {
            consumed: false,
            ..durable("portal-idle", deep(), Ordering::ByKey)
        },
    ]
}

fn durable(name: &str, wanted: Wanted, ordering: Ordering) -> Durable {
    Durable {
        subscription_id: String::new(),
        name: name.to_owned(),
        product: "portal".to_owned(),
        default: false,
        wanted,
        ordering,
        delays: vec![100_000, 250_000],
        block_key: false,
        lease: LEASE,
        consumed: true,
        redelivered: false,
    }
}

/// Makes one.
pub async fn create(hub: &Hub, mut durable: Durable) -> Durable {
    let request = CreateSubscriptionRequest {
        subscription: Some(subscription(&durable)),
        start: Some(StartAt {
            at: Some(start_at::At::Earliest(true)),
        }),
        ..CreateSubscriptionRequest::default()
    };
    let made = hub.event_bus().create_subscription(request).await.unwrap();
    let made = made.into_inner().subscription.unwrap();
    durable.subscription_id = made.subscription_id;
    durable
}

/// The default one of a product, which is made to retry soon.
pub async fn default(hub: &Hub, product: &str) -> Durable {
    let request = ListSubscriptionsRequest {
        product: product.to_owned(),
        ..ListSubscriptionsRequest::default()
    };
    let listed = hub.event_bus().list_subscriptions(request).await.unwrap();
    let listed = listed.into_inner().subscriptions.into_iter();
    let found = listed.into_iter().find(|one| one.name == product).unwrap();
    let durable = Durable {
        subscription_id: found.subscription_id.clone(),
        product: product.to_owned(),
        default: true,
        ..durable(product, Wanted::default(), Ordering::ByKey)
    };
    let mut changed = subscription(&durable);
    changed.subscription_id = found.subscription_id;
    let request = UpdateSubscriptionRequest {
        subscription: Some(changed),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["retry".to_owned(), "lease_duration".to_owned()],
        }),
    };
    hub.event_bus().update_subscription(request).await.unwrap();
    durable
}

fn subscription(durable: &Durable) -> Subscription {
    let ordering = match durable.ordering {
        Ordering::ByKey => Order::ByKey,
        Ordering::Total => Order::Total,
        Ordering::None => Order::None,
    };
    let on_exhausted = match durable.block_key {
        true => ExhaustedAction::BlockKey,
        false => ExhaustedAction::Fail,
    };
    Subscription {
        name: durable.name.clone(),
        filter: filter(&durable.wanted),
        ordering: ordering.into(),
        retry: Some(RetryPolicy {
            delays: durable
                .delays
                .iter()
                .map(|delay| duration(*delay))
                .collect(),
            on_exhausted: on_exhausted.into(),
        }),
        lease_duration: Some(duration(durable.lease)),
        ..Subscription::default()
    }
}
