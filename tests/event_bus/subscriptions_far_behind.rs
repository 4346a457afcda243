//! The status of subscriptions that are so far behind that one call does not examine all that is
//! before them: that something is left is never missed, and what is not known is said.

use std::time::Duration;

use hub_client::start_at::At;
use hub_core::clock::timestamp;
use hub_proto::hub::event_bus::v1::{EventFilter, Subscription, SubscriptionState};

use super::consumer::open;
use super::owner::{Owner, becomes, starting, state, status};
use super::subscriptions_seek::reach;
use super::{Product, earliest, event, numbered, of_types, ticket};
use crate::support::{Backend, TestHub};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Sequence of the only event of its type.
const RARE: u64 = 450;
/// Events of the log.
const ALL: u64 = 1000;

/// A hub of which one call examines about 200 events at the end of a log, and reads about 200 of
/// each place.
async fn hub_of_little(backend: Backend) -> TestHub {
    let options = TestHub::options(backend).manual_clock().limits(|limits| {
        limits.page_bytes_max = 4 << 10;
        limits.listing_bytes_max = 8 << 10;
    });
    options.start().await
}

/// A log of deals, with one quote far from both ends.
async fn publish_rare(hub: &TestHub) -> Product {
    let psa = Product::new(hub, "psa").await;
    let deals = numbered("d", (ALL - 1) as usize);
    let mut events: Vec<_> = deals.iter().map(|id| event("deal.won", id)).collect();
    events.insert(RARE as usize - 1, event("quote.sent", "rare"));
    for some in events.chunks(100) {
        psa.publish(some.to_vec()).await;
    }
    psa
}

async fn from_the_first(owner: &Owner, name: &str, filter: EventFilter) -> Subscription {
    owner.create(starting(name, filter, earliest())).await
}

/// Deals with an attribute that none has.
fn of_urgent_deals() -> EventFilter {
    let mut deals = of_types(&["deal.won"]);
    let urgent = ("priority".to_owned(), "urgent".to_owned());
    deals.attributes.extend([urgent]);
    deals
}

both_databases! {
    async fn one_rare_event_far_from_the_end_is_not_missed(backend: Backend) {
        let hub = hub_of_little(backend).await;
        let recorded = hub.clock.now();
        publish_rare(&hub).await;
        hub.core.journal.write_listing().await.unwrap();
        hub.clock.advance(DAY);
        let crm = Owner::new(&hub, "crm").await;
        for (name, types) in [("named", "quote.sent"), ("pattern", "quote.**")] {
            let made = from_the_first(&crm, name, of_types(&[types])).await;
            let found = crm.get(&made.subscription_id).await.unwrap();
            let told = status(&found);
            assert_eq!(state(&found), SubscriptionState::NoConsumer, "{told:?}");
            assert_eq!(told.backlog, 1);
            assert_eq!(told.reason, "At least 1 event waits and no consumer is connected.");
            assert_eq!(told.oldest_unsettled_time, Some(timestamp(recorded)));
        }
        let all = Owner::admin(&hub).list(Default::default()).await.unwrap().0;
        let named = all.iter().find(|one| one.name == "named").unwrap();
        hub.clock.advance(DAY * 23 + Duration::from_secs(1));
        let found = crm.get(&named.subscription_id).await.unwrap();
        assert_eq!(state(&found), SubscriptionState::RetentionRisk);
        assert!(status(&found).reason.starts_with("The oldest unsettled event passes"));
        // It was the only one.
        reach(&hub, &named.subscription_id, RARE).await;
        let found = crm.get(&named.subscription_id).await.unwrap();
        assert_eq!((state(&found), status(&found).backlog), (SubscriptionState::Live, 0));
    }

    async fn what_a_default_subscription_got_long_ago_is_not_missed(backend: Backend) {
        let hub = hub_of_little(backend).await;
        let psa = Product::new(&hub, "psa").await;
        psa.publish(vec![ticket("1")]).await;
        publish_rare(&hub).await;
        hub.core.journal.write_listing().await.unwrap();
        let all = Owner::admin(&hub).list(Default::default()).await.unwrap().0;
        let of = |product: &str| all.iter().find(|one| one.product == product).unwrap();
        let told = status(of("portal"));
        assert_eq!((told.backlog, told.oldest_unsettled_time.is_some()), (1, true));
        // What the catalogue sends to others only is not looked for.
        let told = status(of("oncall"));
        assert_eq!((told.backlog, told.oldest_unsettled_time), (0, None));
    }

    async fn a_filter_that_nothing_matches_is_not_behind(backend: Backend) {
        let hub = hub_of_little(backend).await;
        publish_rare(&hub).await;
        hub.core.journal.write_listing().await.unwrap();
        let crm = Owner::new(&hub, "crm").await;
        let quiet = from_the_first(&crm, "quiet", of_types(&["invoice.paid"])).await;
        let found = crm.get(&quiet.subscription_id).await.unwrap();
        let told = status(&found);
        assert_eq!((state(&found), told.backlog), (SubscriptionState::Live, 0));
        assert_eq!((told.oldest_unsettled_time, told.reason), (None, String::new()));
    }

    async fn what_is_not_known_is_behind_until_it_is_read(backend: Backend) {
        let hub = hub_of_little(backend).await;
        let recorded = hub.clock.now();
        let psa = publish_rare(&hub).await;
        hub.core.journal.write_listing().await.unwrap();
        let crm = Owner::new(&hub, "crm").await;
        let urgent = from_the_first(&crm, "urgent", of_urgent_deals()).await;
        let id = urgent.subscription_id;
        let found = crm.get(&id).await.unwrap();
        let told = status(&found);
        assert_eq!((state(&found), told.backlog), (SubscriptionState::NoConsumer, 1));
        let reason = &told.reason;
        assert!(reason.starts_with("Whether there are matching events from sequence "));
        assert!(reason.ends_with("once they are read. No consumer is connected."), "{reason}");
        // No event that is left is older than this.
        assert_eq!(told.oldest_unsettled_time, Some(timestamp(recorded)));
        hub.clock.advance(DAY * 24 + Duration::from_secs(1));
        let found = crm.get(&id).await.unwrap();
        assert_eq!(state(&found), SubscriptionState::RetentionRisk);
        assert!(status(&found).reason.starts_with("Whether there are"));
        // A consumer that has it read carries its place on, though nothing comes.
        let consumer = Product::new(&hub, "crm").await.consume(open("urgent", 10)).await;
        let found = becomes(&crm, &id, SubscriptionState::Live).await;
        assert_eq!((status(&found).backlog, status(&found).oldest_unsettled_time), (0, None));
        drop(consumer);
        psa.publish(vec![event("deal.won", "one more")]).await;
        assert_eq!(status(&crm.get(&id).await.unwrap()).backlog, 0);
    }

    async fn before_the_index_has_an_event_it_is_looked_for_in_the_log(backend: Backend) {
        let hub = hub_of_little(backend).await;
        publish_rare(&hub).await;
        let crm = Owner::new(&hub, "crm").await;
        let made = from_the_first(&crm, "quotes", of_types(&["quote.sent"])).await;
        let told = status(&crm.get(&made.subscription_id).await.unwrap());
        assert_eq!(told.backlog, 1, "it is not known");
        assert!(told.reason.starts_with("Whether there are"), "{}", told.reason);
        let at = At::AfterSequence(RARE - 50);
        let near = crm.create(starting("near", of_types(&["quote.sent"]), at)).await;
        let told = status(&crm.get(&near.subscription_id).await.unwrap());
        assert_eq!(told.backlog, 1);
        assert!(told.reason.starts_with("At least 1 event waits"), "{}", told.reason);
    }
}
