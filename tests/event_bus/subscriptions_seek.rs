//! SeekSubscription: what becomes of events that are passed or come again.

use hub_client::start_at::At;
use hub_core::journal::TenantRef;
use hub_core::storage::Sql;
use hub_event_bus::leasing::{Key, Saved, pack, unpack};
use hub_proto::hub::event_bus::v1::{
    EventDeliveryState, EventFilter, PullRequest, SeekSubscriptionRequest, Subscription,
};

use super::consume_shared::{acks_of, psa_of, pull_of};
use super::owner::{Owner, named, seeking, starting, status};
use super::positions::remove_before;
use super::{Product, earliest, event, numbered, of_types, ticket};
use crate::support::TestHub;

const SET: Sql = Sql::same(
    "update subscription_positions set floor = $2, cursor = $3, unsettled = $4
     where subscription_id = $1",
);
const FAIL: Sql = Sql::same(
    "insert into subscription_exceptions (subscription_id, seq, tenant_no, state, attempts, error,
        held_key, update_time)
     values ($1, $2, $3, $4, 5, 'refused', $5, 1)",
);
const POSITION: Sql = Sql::same(
    "select epoch, floor, cursor, replay_until, unsettled from subscription_positions
     where subscription_id = $1",
);
const EXCEPTIONS: Sql = Sql::same(
    "select seq, state, attempts, error, held_key from subscription_exceptions
     where subscription_id = $1 order by seq",
);
const RANGES: Sql = Sql::same(
    "select from_seq, to_seq, state from subscription_ranges where subscription_id = $1
     order by from_seq",
);

const FAILED: i64 = EventDeliveryState::Failed as i64;
const SKIPPED: i64 = EventDeliveryState::Skipped as i64;
const EXPIRED: i64 = EventDeliveryState::Expired as i64;

async fn tenant(hub: &TestHub) -> TenantRef {
    hub.core.tenancy.find(&hub.first_tenant().id).await.unwrap()
}

pub(super) fn waiting(seq: u64, attempts: u32) -> Saved {
    Saved {
        seq,
        key: Some(Key(7)),
        bytes: 100,
        attempts,
        losses: 0,
        due: i64::from(attempts),
        in_flight: false,
        redelivery: false,
        derived_delivered: true,
        error: if attempts > 0 { "refused" } else { "" }.into(),
    }
}

/// As if a consumer had come so far, with these events not settled.
pub(super) async fn place(hub: &TestHub, id: &str, cursor: u64, unsettled: &[Saved]) {
    let floor = unsettled.first().map_or(cursor, |first| first.seq - 1);
    let mut tx = hub.core.db.begin().await.unwrap();
    let query = tx.query(SET).bind(id.to_owned()).bind(floor as i64);
    let query = query.bind(cursor as i64).bind(pack(unsettled));
    assert_eq!(query.execute().await.unwrap(), 1);
    tx.commit().await.unwrap();
}

/// As if a consumer had settled everything so far.
pub(super) async fn reach(hub: &TestHub, id: &str, cursor: u64) {
    place(hub, id, cursor, &[]).await;
}

/// As if an event had failed for good; it holds back `key`, 0 = none.
pub(super) async fn fail(hub: &TestHub, id: &str, seq: u64, key: u64) {
    let number = tenant(hub).await.number();
    let mut tx = hub.core.db.begin().await.unwrap();
    let query = tx.query(FAIL).bind(id.to_owned()).bind(seq as i64);
    let query = query.bind(number).bind(FAILED).bind(key as i64);
    query.execute().await.unwrap();
    tx.commit().await.unwrap();
}

/// What is stored.
#[derive(Debug, PartialEq)]
struct Rows {
    epoch: i64,
    place: (i64, i64, i64),
    unsettled: usize,
    exceptions: Vec<(i64, i64, i64, String, i64)>,
    ranges: Vec<(i64, i64, i64)>,
}

async fn rows(hub: &TestHub, id: &str) -> Rows {
    let query = hub.core.db.query(POSITION).bind(id.to_owned());
    let (epoch, floor, cursor, replay, unsettled): (i64, i64, i64, i64, Vec<u8>) =
        query.one().await.unwrap();
    let query = |sql| hub.core.db.query(sql).bind(id.to_owned());
    Rows {
        epoch,
        place: (floor, cursor, replay),
        unsettled: unpack(&unsettled).unwrap().len(),
        exceptions: query(EXCEPTIONS).all().await.unwrap(),
        ranges: query(RANGES).all().await.unwrap(),
    }
}

/// Twelve events of which every second one is a deal, and a subscription to deals from the first.
async fn deals(hub: &TestHub) -> (Owner, String) {
    let psa = Product::new(hub, "psa").await;
    for id in numbered("d", 6) {
        let quote = event("quote.sent", &format!("quote-{id}"));
        psa.publish(vec![event("deal.won", &id), quote]).await;
    }
    let crm = Owner::new(hub, "crm").await;
    let made = crm
        .create(starting("deals", of_types(&["deal.*"]), earliest()))
        .await;
    (crm, made.subscription_id)
}

fn dry(request: SeekSubscriptionRequest) -> SeekSubscriptionRequest {
    SeekSubscriptionRequest {
        dry_run: true,
        ..request
    }
}

both_databases! {
    async fn a_cursor_that_is_foreign_or_forged_leads_nowhere(hub: TestHub) {
        let other = psa_of(&hub, &hub.tenant().await).await;
        let foreign = other.publish(vec![ticket("a")]).await.cursor;
        let own = Product::new(&hub, "psa").await.publish(vec![ticket("a")]).await.cursor;
        let forged = format!("{own}A");
        let owner = Owner::new(&hub, "crm").await;
        let deals = || of_types(&["deal.*"]);
        let id = owner.create(named("deals", deals())).await.subscription_id;
        owner.seek(seeking(&id, At::Cursor(own))).await.unwrap();
        for cursor in [foreign, forged] {
            let error = owner.seek(seeking(&id, At::Cursor(cursor.clone()))).await.unwrap_err();
            assert_eq!(error.reason(), Some("CURSOR_INVALID"));
            let made = owner.try_create(starting("more", deals(), At::Cursor(cursor))).await;
            assert_eq!(made.unwrap_err().reason(), Some("CURSOR_INVALID"));
        }
    }

    async fn what_comes_though_its_end_is_stored_ends_as_it_does_now(hub: TestHub) {
        let (_crm, id) = deals(&hub).await;
        // As if it had failed when a redelivery brought it, before a seek led back.
        fail(&hub, &id, 3, 0).await;
        let crm = Product::new(&hub, "crm").await;
        let request = PullRequest { subscription: "deals".to_owned(), ..pull_of(100, 10) };
        let events = crm.pull(request).await.events;
        assert_eq!(events.len(), 6);
        crm.acknowledge("deals", acks_of(&events)).await;
        assert_eq!(rows(&hub, &id).await.exceptions, []);
    }

    async fn going_forward_skips_what_is_passed(hub: TestHub) {
        let (crm, id) = deals(&hub).await;
        // The deals are 1, 3, 5, 7, 9, 11.
        place(&hub, &id, 5, &[waiting(3, 2), waiting(5, 0)]).await;
        fail(&hub, &id, 1, 7).await;
        let before = rows(&hub, &id).await;
        let asked = seeking(&id, At::AfterSequence(9));
        let preview = crm.seek(dry(asked.clone())).await.unwrap();
        assert_eq!((preview.replayed, preview.skipped), (0, 4));
        assert_eq!(status(&preview.subscription.unwrap()).backlog, 5);
        assert_eq!(rows(&hub, &id).await, before, "a preview changes nothing");
        let sought = crm.seek(asked).await.unwrap();
        assert_eq!((sought.replayed, sought.skipped), (0, 4));
        let shown = status(&sought.subscription.clone().unwrap());
        assert_eq!((shown.settled_sequence, shown.backlog, shown.failed), (9, 1, 1));
        let skipped = |seq, attempts| {
            (seq, SKIPPED, attempts, "skipped by SeekSubscription".to_owned(), 0)
        };
        assert_eq!(rows(&hub, &id).await, Rows {
            epoch: before.epoch + 1,
            place: (9, 9, 0),
            unsettled: 0,
            // The key is free.
            exceptions: vec![
                (1, FAILED, 5, "refused".to_owned(), 0),
                skipped(3, 2),
                skipped(5, 0),
            ],
            ranges: vec![(6, 9, SKIPPED)],
        });
        let now = crm.get(&id).await.unwrap();
        assert_eq!(now, sought.subscription.unwrap(), "as it was told");
    }

    async fn going_back_delivers_again_and_forgets_what_became_of_it(hub: TestHub) {
        let (crm, id) = deals(&hub).await;
        crm.seek(seeking(&id, At::AfterSequence(6))).await.unwrap();
        place(&hub, &id, 11, &[waiting(9, 1)]).await;
        for seq in [3, 7] {
            fail(&hub, &id, seq, 0).await;
        }
        let asked = seeking(&id, At::AfterSequence(4));
        let preview = crm.seek(dry(asked.clone())).await.unwrap();
        // 5 was skipped, 7 failed, 11 was delivered; 9 waits anyway.
        assert_eq!((preview.replayed, preview.skipped), (3, 0));
        let sought = crm.seek(asked).await.unwrap();
        assert_eq!((sought.replayed, sought.skipped), (3, 0));
        let shown = status(&sought.subscription.unwrap());
        assert_eq!((shown.settled_sequence, shown.backlog, shown.failed), (4, 4, 1));
        let stored = rows(&hub, &id).await;
        assert_eq!(stored.place, (4, 4, 11));
        assert_eq!(stored.exceptions.iter().map(|one| one.0).collect::<Vec<_>>(), [3]);
        assert_eq!(stored.ranges, [(1, 4, SKIPPED)]);
        // And back once more: what was delivered before stays marked.
        crm.seek(seeking(&id, earliest())).await.unwrap();
        let stored = rows(&hub, &id).await;
        assert_eq!((stored.place, stored.exceptions, stored.ranges), ((0, 0, 11), vec![], vec![]));
    }

    async fn what_waits_before_the_place_is_skipped_when_going_back_too(hub: TestHub) {
        let (crm, id) = deals(&hub).await;
        place(&hub, &id, 9, &[waiting(3, 1), waiting(7, 0)]).await;
        let asked = seeking(&id, At::AfterSequence(4));
        let preview = crm.seek(dry(asked.clone())).await.unwrap();
        assert_eq!((preview.replayed, preview.skipped), (2, 1), "5 and 9, and 3");
        crm.seek(asked).await.unwrap();
        let stored = rows(&hub, &id).await;
        assert_eq!((stored.place, stored.unsettled), ((4, 4, 9), 0));
        assert_eq!(stored.exceptions.iter().map(|one| one.0).collect::<Vec<_>>(), [3]);
        // To where it is: what waits is skipped.
        place(&hub, &id, 9, &[waiting(7, 0)]).await;
        let here = crm.seek(seeking(&id, At::AfterSequence(9))).await.unwrap();
        assert_eq!((here.replayed, here.skipped), (0, 1));
    }

    async fn a_retry_moves_nothing_and_answers_the_same(hub: TestHub) {
        let (crm, id) = deals(&hub).await;
        let asked = SeekSubscriptionRequest {
            request_id: uuid::Uuid::new_v4().to_string(),
            ..seeking(&id, At::AfterSequence(4))
        };
        let first = crm.seek(asked.clone()).await.unwrap();
        reach(&hub, &id, 12).await;
        let stored = rows(&hub, &id).await;
        assert_eq!(crm.seek(asked.clone()).await.unwrap(), first);
        assert_eq!(rows(&hub, &id).await, stored);
        let other = SeekSubscriptionRequest {
            request_id: asked.request_id,
            ..seeking(&id, At::AfterSequence(5))
        };
        let error = crm.seek(other).await.unwrap_err();
        assert_eq!(error.reason(), Some("REQUEST_ID_REUSED"));
    }

    async fn places_that_are_not_there_are_refused(hub: TestHub) {
        let (crm, id) = deals(&hub).await;
        let before = rows(&hub, &id).await;
        for (at, reason) in [
            (At::AfterSequence(1000), "SEQUENCE_AHEAD"),
            (At::Cursor("x".to_owned()), "CURSOR_INVALID"),
        ] {
            for asked in [seeking(&id, at.clone()), dry(seeking(&id, at))] {
                let error = crm.seek(asked).await.unwrap_err();
                assert_eq!(error.reason(), Some(reason));
            }
        }
        let nowhere = SeekSubscriptionRequest { to: None, ..seeking(&id, earliest()) };
        assert_eq!(crm.seek(nowhere).await.unwrap_err().reason(), Some("FIELD_INVALID"));
        assert_eq!(rows(&hub, &id).await, before);
        let hubs = Owner::admin(&hub).list(Default::default()).await.unwrap().0;
        let hubs = hubs.into_iter().find(|one| one.product == "hub").unwrap();
        let error = Owner::admin(&hub).seek(seeking(&hubs.subscription_id, earliest())).await;
        assert_eq!(error.unwrap_err().reason(), Some("FIELD_INVALID"));
    }

    async fn going_back_before_its_creation_it_has_what_was_there(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let crm = Owner::new(&hub, "crm").await;
        for id in numbered("d", 3) {
            psa.publish(vec![event("deal.won", &id)]).await;
        }
        let id = crm.create(named("deals", of_types(&["deal.*"]))).await.subscription_id;
        let asked = seeking(&id, At::AfterSequence(1));
        assert_eq!(crm.seek(dry(asked.clone())).await.unwrap().replayed, 2);
        assert_eq!(status(&crm.get(&id).await.unwrap()).backlog, 0);
        assert_eq!(crm.seek(asked).await.unwrap().replayed, 2);
        assert_eq!(status(&crm.get(&id).await.unwrap()).backlog, 2);
        let again = psa.publish(vec![event("deal.won", "d-2")]).await;
        assert_eq!(again.results[0].destinations, 1, "it is known to routing");
    }

    async fn one_that_was_never_used_can_be_moved(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let portal = Owner::new(&hub, "portal").await;
        for id in numbered("t", 3) {
            psa.publish(vec![ticket(&id)]).await;
        }
        let found: Subscription = portal.list(Default::default()).await.unwrap().0.remove(0);
        assert_eq!(status(&found).backlog, 3);
        let id = &found.subscription_id;
        let sought = portal.seek(seeking(id, At::AfterSequence(2))).await.unwrap();
        assert_eq!((sought.skipped, status(&sought.subscription.unwrap()).backlog), (2, 1));
        assert_eq!(rows(&hub, id).await.ranges, [(1, 2, SKIPPED)]);
    }

    async fn a_change_of_filter_fences_its_owner_off(hub: TestHub) {
        let (crm, id) = deals(&hub).await;
        let before = rows(&hub, &id).await.epoch;
        let change = |filter: EventFilter| Subscription {
            subscription_id: id.clone(),
            filter: Some(filter),
            max_per_second: 3,
            ..Subscription::default()
        };
        crm.update(change(of_types(&["quote.*"])), &["max_per_second"]).await.unwrap();
        assert_eq!(rows(&hub, &id).await.epoch, before);
        crm.update(change(of_types(&["quote.*"])), &["filter"]).await.unwrap();
        assert_eq!(rows(&hub, &id).await.epoch, before + 1);
    }

    async fn what_retention_has_removed_cannot_be_begun_or_sought(hub: TestHub) {
        let mut hub = hub;
        let psa = Product::new(&hub, "psa").await;
        for id in numbered("t", 6) {
            psa.publish(vec![ticket(&id)]).await;
        }
        let key = hub.key("portal", &["hub:subscriptions.read", "hub:subscriptions.write"]).await;
        remove_before(&mut hub, 4).await;
        let portal = Owner { hub: hub.client(&key) };
        let tickets = of_types(&["ticket.*"]);
        let found = portal.list(Default::default()).await.unwrap().0.remove(0);
        let id = &found.subscription_id;
        let begun = starting("a", tickets.clone(), At::AfterSequence(0));
        let sought = seeking(id, At::AfterSequence(2));
        for error in [
            portal.try_create(begun).await.unwrap_err(),
            portal.seek(dry(sought.clone())).await.unwrap_err(),
            portal.seek(sought).await.unwrap_err(),
        ] {
            assert_eq!(error.reason(), Some("CURSOR_EXPIRED"));
            assert_eq!(error.metadata()["missedTo"], "3");
        }
        let made = portal.create(starting("a", tickets, earliest())).await;
        assert_eq!((status(&made).settled_sequence, status(&made).backlog), (3, 3));
        // What it never looked at was lost before it was skipped.
        let sought = portal.seek(seeking(id, At::AfterSequence(5))).await.unwrap();
        assert_eq!(sought.skipped, 2);
        assert_eq!(rows(&hub, id).await.ranges, [(1, 3, EXPIRED), (4, 5, SKIPPED)]);
    }
}
