//! Where events stand for their subscriptions, as the log tells it from what is stored.

use hub_core::journal::TenantRef;
use hub_core::storage::Sql;
use hub_event_bus::leasing::{self, Key, Saved};
use hub_proto::hub::event_bus::v1::EventDeliveryState::{
    Delivered, Expired, Failed, InFlight, KeyBlocked, NotRouted, Queued, RetryWait, Skipped,
};
use hub_proto::hub::event_bus::v1::get_event_request::Event as Asked;
use hub_proto::hub::event_bus::v1::{
    EventDelivery, EventDeliveryState, EventLogFilter, ListEventsRequest, NotRoutedReason,
};

use super::log::{of, switch};
use super::{Product, event, numbered, ticket};
use crate::support::{Backend, TestHub};

const PUT_POSITION: Sql = Sql::same(
    "insert into subscription_positions (subscription_id, tenant_no, owner, epoch, floor, cursor,
        replay_until, unsettled, update_time) values ($1, $2, '', 1, 0, $3, 0, $4, $5)",
);
const PUT_EXCEPTION: Sql = Sql::same(
    "insert into subscription_exceptions (subscription_id, seq, tenant_no, state, attempts, error,
        held_key, update_time) values ($1, $2, $3, $4, $5, $6, $7, $8)",
);
const PUT_RANGE: Sql = Sql::same(
    "insert into subscription_ranges (subscription_id, from_seq, to_seq, tenant_no, state,
        update_time) values ($1, $2, $3, $4, $5, $6)",
);

/// When planted rows were changed.
const CHANGED: i64 = 1_767_225_600_000_000;

/// Plants what the owner of a subscription would have stored.
struct Plant<'a> {
    hub: &'a TestHub,
    tenant: TenantRef,
    id: String,
}

impl<'a> Plant<'a> {
    /// For the default subscription of a product, which got the event at sequence 1.
    async fn new(hub: &'a TestHub, product: &Product, slug: &str) -> Plant<'a> {
        let entry = product.get(Asked::Sequence(1)).await.unwrap();
        let mut all = entry.deliveries.iter();
        let id = all
            .find(|d| d.product == slug)
            .unwrap()
            .subscription_id
            .clone();
        let tenant = hub.core.tenancy.find(&hub.first_tenant().id).await.unwrap();
        Plant { hub, tenant, id }
    }

    async fn position(&self, cursor: i64, unsettled: &[Saved]) {
        let mut tx = self.hub.core.db.begin().await.unwrap();
        let query = tx.query(PUT_POSITION).bind(self.id.clone());
        let query = query.bind(self.tenant.number()).bind(cursor);
        let query = query.bind(leasing::pack(unsettled)).bind(CHANGED);
        query.execute().await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn exception(&self, seq: i64, state: EventDeliveryState, held_key: i64) {
        let mut tx = self.hub.core.db.begin().await.unwrap();
        let query = tx.query(PUT_EXCEPTION).bind(self.id.clone()).bind(seq);
        let query = query.bind(self.tenant.number()).bind(state as i64);
        let query = query.bind(5_i64).bind("refused".to_owned());
        query.bind(held_key).bind(CHANGED).execute().await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn range(&self, from: i64, to: i64, state: EventDeliveryState) {
        let mut tx = self.hub.core.db.begin().await.unwrap();
        let query = tx
            .query(PUT_RANGE)
            .bind(self.id.clone())
            .bind(from)
            .bind(to);
        let query = query.bind(self.tenant.number()).bind(state as i64);
        query.bind(CHANGED).execute().await.unwrap();
        tx.commit().await.unwrap();
    }

    /// The delivery of an event to the subscription.
    async fn delivery(&self, product: &Product, sequence: u64) -> EventDelivery {
        let entry = product.get(Asked::Sequence(sequence)).await.unwrap();
        let mut all = entry.deliveries.into_iter();
        all.find(|delivery| delivery.subscription_id == self.id)
            .unwrap()
    }

    fn asks(&self, states: &[EventDeliveryState]) -> ListEventsRequest {
        of(EventLogFilter {
            subscription_id: self.id.clone(),
            states: states.iter().map(|state| i32::from(*state)).collect(),
            ..EventLogFilter::default()
        })
    }
}

fn saved(seq: u64, key: u64) -> Saved {
    Saved {
        seq,
        key: (key > 0).then_some(Key(key)),
        bytes: 10,
        attempts: 0,
        losses: 0,
        due: 0,
        in_flight: false,
        redelivery: false,
        derived_delivered: true,
        error: "".into(),
    }
}

both_databases! {
    async fn a_delivery_tells_where_the_event_stands_and_what_was_tried(hub: TestHub) {
        let portal = Product::new(&hub, "portal").await;
        let psa = Product::new(&hub, "psa").await;
        psa.publish_each(numbered("t", 12)).await;
        let plant = Plant::new(&hub, &portal, "portal").await;
        let leased = Saved { in_flight: true, attempts: 1, ..saved(3, 7) };
        let retried = Saved { due: CHANGED + 60_000_000, attempts: 2, ..saved(4, 8) };
        let retried = Saved { error: "no connection".into(), ..retried };
        let unsettled = [leased, retried, saved(5, 7), saved(6, 9), saved(7, 10)];
        plant.position(9, &unsettled).await;
        plant.exception(2, Failed, 9).await;
        plant.exception(8, Skipped, 0).await;
        plant.range(10, 11, Expired).await;
        let expected = [
            Delivered, Failed, InFlight, RetryWait, KeyBlocked, KeyBlocked, Queued, Skipped,
            Delivered, Expired, Expired, Queued,
        ];
        for (sequence, state) in (1..).zip(expected) {
            let found = plant.delivery(&portal, sequence).await;
            assert_eq!(found.state(), state, "{sequence}: {found:?}");
        }
        let failed = plant.delivery(&portal, 2).await;
        assert_eq!((failed.attempts, &*failed.last_error), (5, "refused"));
        assert_eq!(failed.update_time, Some(hub_core::clock::timestamp(CHANGED)));
        let leased = plant.delivery(&portal, 3).await;
        assert_eq!((leased.attempts, leased.next_attempt_time), (2, None));
        let retried = plant.delivery(&portal, 4).await;
        assert_eq!((retried.attempts, &*retried.last_error), (2, "no connection"));
        let due = hub_core::clock::timestamp(CHANGED + 60_000_000);
        assert_eq!(retried.next_attempt_time, Some(due));
        // Of other products a product sees the state and nothing else.
        let seen = plant.delivery(&psa, 2).await;
        assert_eq!((seen.state(), seen.attempts, &*seen.last_error), (Failed, 0, ""));
    }

    async fn an_event_that_was_not_routed_is_seen_once_it_was_delivered_again(hub: TestHub) {
        let portal = Product::new(&hub, "portal").await;
        let psa = Product::new(&hub, "psa").await;
        psa.publish(vec![ticket("first")]).await;
        let plant = Plant::new(&hub, &portal, "portal").await;
        switch(&hub, "psa", "portal", false).await;
        let off = psa.publish(vec![ticket("a"), ticket("b"), ticket("c")]).await;
        let first = off.results[0].sequence;
        plant.position(1, &[saved(first, 0)]).await;
        plant.exception(first.cast_signed() + 1, Delivered, 0).await;
        assert_eq!(plant.delivery(&portal, first).await.state(), Queued);
        let delivered = plant.delivery(&portal, first + 1).await;
        assert_eq!(delivered.state(), Delivered);
        assert_eq!(delivered.not_routed_reason(), NotRoutedReason::Unspecified);
        let hidden = portal.get(Asked::Sequence(first + 2)).await.unwrap_err();
        assert_eq!(hidden.reason(), Some("EVENT_NOT_FOUND"));
        assert_eq!(plant.delivery(&psa, first + 2).await.state(), NotRouted);
        let listed = portal.list_all(ListEventsRequest::default()).await.0;
        assert_eq!(listed, ["b", "a", "first"]);
    }

    async fn the_log_is_narrowed_by_where_events_stand(hub: TestHub) {
        let portal = Product::new(&hub, "portal").await;
        let psa = Product::new(&hub, "psa").await;
        psa.publish(numbered("t", 600).iter().map(|name| ticket(name)).collect()).await;
        psa.publish(vec![event("company.updated", "company")]).await;
        let plant = Plant::new(&hub, &portal, "portal").await;
        plant.position(590, &[saved(1, 0), saved(580, 0)]).await;
        plant.exception(300, Failed, 0).await;
        let narrowed = async |states: &[EventDeliveryState]| {
            portal.list_all(plant.asks(states)).await.0
        };
        let queued = narrowed(&[Queued]).await;
        assert_eq!(queued.len(), 13);
        assert_eq!(queued[..2], ["company", "t-599"]);
        assert_eq!(queued[11..], ["t-579", "t-0"]);
        assert_eq!(narrowed(&[Failed, Queued]).await.len(), 14);
        assert_eq!(narrowed(&[Delivered]).await.len(), 587);
        assert_eq!(narrowed(&[RetryWait]).await, [""; 0]);
        // Without a subscription any destination may stand so.
        let any = of(EventLogFilter { states: vec![Failed.into()], ..EventLogFilter::default() });
        assert_eq!(psa.list_all(any).await.0, ["t-299"]);
    }
}

/// A hub whose pages examine ten events, with a hundred of them.
async fn with_short_pages(backend: Backend) -> (TestHub, Product, Product) {
    let options = TestHub::options(backend).manual_clock();
    let hub = options
        .limits(|limits| limits.listing_events_max = 10)
        .start()
        .await;
    let psa = Product::new(&hub, "psa").await;
    let portal = Product::new(&hub, "portal").await;
    for names in numbered("t", 100).chunks(10) {
        psa.publish(names.iter().map(|name| ticket(name)).collect())
            .await;
    }
    (hub, psa, portal)
}

both_databases! {
    async fn dead_letters_are_found_without_walking_over_the_log(backend: Backend) {
        let (hub, psa, portal) = with_short_pages(backend).await;
        let plant = Plant::new(&hub, &portal, "portal").await;
        plant.position(100, &[]).await;
        for seq in [3, 40, 41, 99] {
            plant.exception(seq, Failed, 0).await;
        }
        plant.exception(50, Skipped, 0).await;
        plant.exception(60, Expired, 0).await;
        let failed = ["t-98", "t-40", "t-39", "t-2"];
        assert_eq!(portal.list_all(plant.asks(&[Failed])).await, (owned(&failed), 1));
        let both = owned(&["t-98", "t-49", "t-40", "t-39", "t-2"]);
        assert_eq!(portal.list_all(plant.asks(&[Failed, Skipped])).await, (both.clone(), 1));
        let one = ListEventsRequest { page_size: 1, ..plant.asks(&[Skipped, Failed]) };
        assert_eq!(portal.list_all(one).await.0, both);
        // The same by all that there is to look at.
        let all = portal.list_all(plant.asks(&[Failed, Queued])).await;
        assert!(all.0 == failed && all.1 >= 10, "{all:?}");
        let refused = psa.list(plant.asks(&[Failed])).await.unwrap_err();
        assert_eq!(refused.reason(), Some("SUBSCRIPTION_NOT_FOUND"));
    }

    async fn what_a_seek_skipped_is_listed_with_what_consumers_skipped(backend: Backend) {
        let (hub, _psa, portal) = with_short_pages(backend).await;
        let plant = Plant::new(&hub, &portal, "portal").await;
        plant.position(95, &[]).await;
        plant.range(11, 30, Skipped).await;
        plant.range(31, 33, Expired).await;
        plant.range(80, 80, Skipped).await;
        plant.exception(20, Failed, 0).await;
        plant.exception(25, Delivered, 0).await;
        plant.exception(90, Skipped, 0).await;
        let mut expected = vec!["t-89".to_owned(), "t-79".to_owned()];
        let within = (10..30).rev().filter(|number| ![19, 24].contains(number));
        expected.extend(within.map(|number| format!("t-{number}")));
        assert_eq!(portal.list_all(plant.asks(&[Skipped])).await.0, expected);
        let since = hub_core::clock::timestamp(hub.clock.now() + 1);
        let asked = plant.asks(&[Skipped]).filter.unwrap();
        let filter = EventLogFilter { since: Some(since), ..asked };
        assert_eq!(portal.list_all(of(filter)).await.0, [""; 0]);
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
