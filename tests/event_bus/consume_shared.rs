//! Consume by several members, by Pull, and for all tenants at once.

use std::time::Duration;

use hub_client::proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest};
use hub_proto::hub::event_bus::v1::consume_response::Frame;
use hub_proto::hub::event_bus::v1::{AckBatch, AckOutcome, NackAction, PullRequest};

use super::consumer::{ids_of, nack, of_key, open};
use super::{Product, numbered, ticket};
use crate::support::{Tenant, TestHub};

async fn pair(hub: &TestHub) -> (Product, Product) {
    (
        Product::new(hub, "psa").await,
        Product::new(hub, "portal").await,
    )
}

/// Portal's backend, which serves all tenants.
pub(super) async fn backend_of_all(hub: &TestHub) -> Product {
    let api_key = ApiKey {
        name: "portal backend".to_owned(),
        product: "portal".to_owned(),
        scopes: vec!["hub:events.read".to_owned()],
        all_tenants: true,
        ..ApiKey::default()
    };
    let request = CreateApiKeyRequest {
        api_key: Some(api_key),
        ..CreateApiKeyRequest::default()
    };
    let operator = hub.client(&hub.operator_key);
    let created = operator.api_keys().create_api_key(request).await.unwrap();
    let key = created.into_inner().plaintext;
    Product {
        bus: hub.client(&key).event_bus(),
        key,
    }
}

pub(super) async fn psa_of(hub: &TestHub, tenant: &Tenant) -> Product {
    let admin = hub.client(&tenant.admin_key);
    let key = tenant
        .key(&admin, "psa", &["hub:events.publish", "hub:events.read"])
        .await;
    Product {
        bus: hub.client(&key).event_bus(),
        key,
    }
}

pub(super) fn pull_of(max_events: u32, seconds: i64) -> PullRequest {
    PullRequest {
        subscription: "portal".to_owned(),
        max_events,
        wait: Some(prost_types::Duration { seconds, nanos: 0 }),
        member: "puller".to_owned(),
        ..PullRequest::default()
    }
}

pub(super) fn acks_of(events: &[hub_proto::hub::event_bus::v1::LeasedEvent]) -> AckBatch {
    AckBatch {
        ack: events.iter().map(|event| event.lease_id.clone()).collect(),
        ..AckBatch::default()
    }
}

both_databases! {
    async fn members_share_the_work_and_a_lost_one_leaves_it_to_the_others(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        let mut one = portal.consume(open("portal", 2)).await;
        psa.publish_each(numbered("t", 4)).await;
        let mine = one.events(2).await;
        let mut two = portal.consume(open("portal", 100)).await;
        let others = two.events(2).await;
        assert_eq!(ids_of(&mine), numbered("t", 2));
        assert_eq!(ids_of(&others), ["t-2", "t-3"]);
        two.ack(&others).await;
        drop(one);
        let left = two.events(2).await;
        assert_eq!(ids_of(&left), numbered("t", 2));
        assert_eq!(left[0].attempt, 1);
    }

    async fn an_event_held_at_three_lost_connections_was_tried(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        psa.publish(vec![ticket("poison")]).await;
        for _ in 0..3 {
            let mut consumer = portal.consume(open("portal", 1)).await;
            assert_eq!(consumer.events(1).await[0].attempt, 1);
        }
        let mut consumer = portal.consume(open("portal", 1)).await;
        consumer.nothing().await;
    }

    async fn a_lease_of_another_tenant_is_not_known_and_stays(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        psa.publish(vec![ticket("a")]).await;
        let mine = portal.pull(pull_of(1, 10)).await.events;
        let other = hub.tenant().await;
        let admin = hub.client(&other.admin_key);
        let key = other.key(&admin, "portal", &["hub:events.read"]).await;
        let stranger = Product { bus: hub.client(&key).event_bus(), key };
        let told = stranger.acknowledge("portal", acks_of(&mine)).await;
        assert_eq!(told[0].outcome(), AckOutcome::Unknown);
        let told = portal.acknowledge("portal", acks_of(&mine)).await;
        assert_eq!(told[0].outcome(), AckOutcome::Ok);
    }

    async fn pull_and_acknowledge_do_what_a_stream_does(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        for id in ["a1", "a2", "b1"] {
            psa.publish(vec![of_key(id, &id[..1])]).await;
        }
        let pulled = portal.pull(pull_of(10, 5)).await;
        assert_eq!(ids_of(&pulled.events), ["a1", "b1"]);
        assert_eq!(pulled.backlog, 3);
        let nothing = portal.pull(pull_of(10, 0)).await;
        assert!(nothing.events.is_empty());
        let mut acks = acks_of(&pulled.events[..1]);
        acks.nack = vec![nack(&pulled.events[1], NackAction::Fail, "broken")];
        let results = portal.acknowledge("portal", acks.clone()).await;
        assert!(results.iter().all(|result| result.outcome() == AckOutcome::Ok));
        let again = portal.acknowledge("portal", acks).await;
        assert!(again.iter().all(|result| result.outcome() == AckOutcome::AlreadySettled));
        let next = portal.pull(pull_of(10, 5)).await;
        assert_eq!(ids_of(&next.events), ["a2"]);
        portal.acknowledge("portal", acks_of(&next.events)).await;
        let end = portal.pull(pull_of(10, 0)).await;
        assert_eq!((end.events.len(), end.backlog), (0, 0));
    }

    async fn a_pull_waits_for_the_first_event(hub: TestHub) {
        let (psa, portal) = pair(&hub).await;
        let pulling = portal.pull(pull_of(10, 20));
        let publishing = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            psa.publish(vec![ticket("t")]).await
        };
        let (pulled, _) = tokio::join!(pulling, publishing);
        assert_eq!(ids_of(&pulled.events), ["t"]);
    }

    async fn one_stream_serves_all_tenants_and_acks_find_theirs(hub: TestHub) {
        let (first, second) = (hub.first_tenant().clone(), hub.tenant().await);
        let (one, two) = (psa_of(&hub, &first).await, psa_of(&hub, &second).await);
        one.publish(vec![ticket("one-before")]).await;
        let portal = backend_of_all(&hub).await;
        let mut consumer = portal.consume(open("portal", 100)).await;
        let before = consumer.events(1).await;
        assert_eq!(before[0].record.as_ref().unwrap().tenant_id, first.id);
        two.publish(vec![ticket("two-after")]).await;
        let after = consumer.events(1).await;
        assert_eq!(after[0].record.as_ref().unwrap().tenant_id, second.id);
        let third = psa_of(&hub, &hub.tenant().await).await;
        third.publish(vec![ticket("three")]).await;
        let newest = consumer.events(1).await;
        let all = [before, after, newest].concat();
        consumer.ack(&all).await;
        consumer.ack(&all).await;
        let results = consumer.results().await;
        let outcomes: Vec<_> = results.iter().map(|result| result.outcome()).collect();
        assert_eq!(outcomes, [AckOutcome::AlreadySettled; 3]);
    }

    async fn a_tenants_own_consumer_and_that_of_all_share_its_events(hub: TestHub) {
        let first = hub.first_tenant().clone();
        let psa = psa_of(&hub, &first).await;
        let mut own = Product::new(&hub, "portal").await.consume(open("portal", 1)).await;
        psa.publish(vec![ticket("a"), ticket("b")]).await;
        let mine = own.events(1).await;
        let mut all = backend_of_all(&hub).await.consume(open("portal", 10)).await;
        let others = all.events(1).await;
        assert_eq!((ids_of(&mine), ids_of(&others)), (vec!["a".to_owned()], vec!["b".to_owned()]));
    }

    async fn a_stream_for_all_tenants_names_no_single_subscription(hub: TestHub) {
        let portal = backend_of_all(&hub).await;
        let refused = portal.try_consume(open("sub_0123456789", 1)).await.error().await;
        assert_eq!(refused.reason(), Some("FIELD_INVALID"));
        let mut consumer = portal.consume(open("portal", 1)).await;
        let stopped = consumer.frame(|frame| matches!(frame, Frame::Closing(_)).then_some(()));
        let ((), ()) = tokio::join!(stopped, hub.stop());
    }
}
