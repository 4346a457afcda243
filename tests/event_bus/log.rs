//! GetEvent and ListEvents: what the log says, and to whom.

use hub_client::Error;
use hub_proto::hub::event_bus::v1::get_event_request::Event as Asked;
use hub_proto::hub::event_bus::v1::{
    EventDelivery, EventDeliveryState, EventFilter, EventIdentity, EventLogEntry, EventLogFilter,
    GetEventRequest, ListEventsRequest, ListEventsResponse, NotRoutedReason,
};
use hub_proto::hub::platform::v1::SetIntegrationRequest;

use super::{
    Product, batch, event, large_ticket, numbered, of_types, text, ticket, with_attributes,
};
use crate::support::TestHub;

impl Product {
    pub(super) async fn get(&self, event: Asked) -> Result<EventLogEntry, Error> {
        let request = GetEventRequest { event: Some(event) };
        let answer = self.bus.clone().get_event(request).await;
        Ok(answer.map_err(Error::from)?.into_inner().entry.unwrap())
    }

    pub(super) async fn list(
        &self,
        request: ListEventsRequest,
    ) -> Result<ListEventsResponse, Error> {
        let answer = self.bus.clone().list_events(request).await;
        answer.map(tonic::Response::into_inner).map_err(Error::from)
    }

    /// All pages of a filter: the ids of the events, and how many pages.
    pub(super) async fn list_all(&self, request: ListEventsRequest) -> (Vec<String>, usize) {
        let (mut found, mut pages, mut request) = (Vec::new(), 0, request);
        loop {
            let page = self.list(request.clone()).await.unwrap();
            pages += 1;
            found.extend(ids(&page.entries));
            if page.next_page_token.is_empty() {
                return (found, pages);
            }
            request.page_token = page.next_page_token;
        }
    }
}

/// Sees all of the tenant, and speaks for no product.
pub(super) async fn admin(hub: &TestHub) -> Product {
    let key = hub.first_tenant().admin_key.clone();
    Product {
        bus: hub.client(&key).event_bus(),
        key,
    }
}

fn ids(entries: &[EventLogEntry]) -> Vec<String> {
    let records = entries.iter().map(|entry| entry.record.as_ref().unwrap());
    records
        .map(|record| record.event.as_ref().unwrap().id.clone())
        .collect()
}

pub(super) fn of(filter: EventLogFilter) -> ListEventsRequest {
    ListEventsRequest {
        filter: Some(filter),
        ..ListEventsRequest::default()
    }
}

fn of_event(event: EventFilter) -> ListEventsRequest {
    of(EventLogFilter {
        event: Some(event),
        ..EventLogFilter::default()
    })
}

fn list_types(types: &[&str]) -> ListEventsRequest {
    of_event(of_types(types))
}

fn states(entry: &EventLogEntry) -> Vec<(&str, EventDeliveryState, NotRoutedReason)> {
    let state = |delivery: &'_ EventDelivery| (delivery.state(), delivery.not_routed_reason());
    let shown = entry.deliveries.iter();
    shown
        .map(|delivery| {
            let (state, reason) = state(delivery);
            (delivery.product.as_str(), state, reason)
        })
        .collect()
}

pub(super) async fn switch(hub: &TestHub, source: &str, destination: &str, enabled: bool) {
    let request = SetIntegrationRequest {
        source: source.to_owned(),
        destination: destination.to_owned(),
        enabled,
        ..SetIntegrationRequest::default()
    };
    let admin = hub.client(&hub.first_tenant().admin_key);
    admin.platform().set_integration(request).await.unwrap();
}

const FLOWED: NotRoutedReason = NotRoutedReason::Unspecified;

both_databases! {
    async fn an_event_is_found_by_id_sequence_and_identity(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let portal = Product::new(&hub, "portal").await;
        let with_subject = with_attributes(ticket("b"), &[("subject", text("ticket/42"))]);
        psa.publish(vec![ticket("a"), with_subject.clone()]).await;
        let identity = |product: &str| {
            Asked::Identity(EventIdentity {
                source: "/test".to_owned(),
                id: "b".to_owned(),
                product: product.to_owned(),
            })
        };
        let entry = psa.get(Asked::Sequence(2)).await.unwrap();
        let record = entry.record.clone().unwrap();
        assert_eq!(record.event, Some(with_subject));
        assert_eq!((record.sequence, &*record.product), (2, "psa"));
        assert_eq!(record.tenant_id, hub.first_tenant().id);
        let by_id = Asked::EventId(record.event_id.clone());
        assert_eq!(psa.get(by_id.clone()).await.unwrap(), entry);
        assert_eq!(psa.get(identity("")).await.unwrap(), entry);
        assert_eq!(psa.get(identity("psa")).await.unwrap(), entry);
        let seen = portal.get(identity("psa")).await.unwrap();
        assert_eq!(seen.record.unwrap(), record);
        let sees_all = admin(&hub).await;
        assert_eq!(sees_all.get(by_id).await.unwrap().record.unwrap(), record);
        let nobody = sees_all.get(identity("")).await.unwrap_err();
        assert_eq!(nobody.reason(), Some("FIELD_INVALID"));
        for unknown in [
            Asked::Sequence(0),
            Asked::Sequence(3),
            Asked::Sequence(u64::MAX >> 1),
            Asked::EventId("evt_nonsense".to_owned()),
            Asked::EventId("evt_0000000000001".to_owned()),
            identity("crm"),
        ] {
            let error = psa.get(unknown.clone()).await.unwrap_err();
            assert_eq!(error.reason(), Some("EVENT_NOT_FOUND"), "{unknown:?}");
        }
    }

    async fn an_event_has_a_state_for_each_destination_that_is_named(hub: TestHub) {
        use EventDeliveryState::{Delivered, NotRouted, Queued};
        let psa = Product::new(&hub, "psa").await;
        let admin = admin(&hub).await;
        psa.publish(vec![ticket("before")]).await;
        switch(&hub, "psa", "portal", false).await;
        psa.publish(vec![ticket("off")]).await;
        switch(&hub, "psa", "portal", true).await;
        psa.publish(vec![ticket("on"), event("unheard.of", "none")]).await;
        let page = admin.list(of_event(EventFilter {
            products: vec!["psa".to_owned()],
            ..EventFilter::default()
        })).await.unwrap();
        assert_eq!(ids(&page.entries), ["none", "on", "off", "before"]);
        let routed = [("hub", Delivered, FLOWED), ("portal", Queued, FLOWED)];
        let off = NotRoutedReason::IntegrationOff;
        assert_eq!(states(&page.entries[0]), []);
        assert_eq!(states(&page.entries[1]), routed);
        // What was recorded stays as it was, however it is switched later.
        assert_eq!(
            states(&page.entries[2]),
            [("hub", Delivered, FLOWED), ("portal", NotRouted, off)]
        );
        assert_eq!(states(&page.entries[3]), routed);
        assert_eq!(page.entries[1].delivery_count, 2);
        for delivery in &page.entries[1].deliveries {
            assert!(delivery.subscription_id.starts_with("sub_"), "{delivery:?}");
            assert_eq!(delivery.event_id, page.entries[1].record.as_ref().unwrap().event_id);
        }
        let with_state = |state: EventDeliveryState| of(EventLogFilter {
            states: vec![state.into()],
            event: Some(of_types(&["ticket.*"])),
            ..EventLogFilter::default()
        });
        assert_eq!(admin.list_all(with_state(NotRouted)).await.0, ["off"]);
        assert_eq!(admin.list_all(with_state(Queued)).await.0, ["on", "before"]);
        assert_eq!(admin.list_all(with_state(EventDeliveryState::Failed)).await.0, [""; 0]);
    }

    async fn a_product_sees_its_own_and_what_flows_to_it(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let portal = Product::new(&hub, "portal").await;
        let crm = Product::new(&hub, "crm").await;
        let reader = Product::with(&hub, "", &["hub:events.read"]).await;
        let diagnostics =
            Product::with(&hub, "crm", &["hub:events.read", "hub:diagnostics.read"]).await;
        psa.publish(vec![ticket("routed"), event("own.kind", "unrouted")]).await;
        switch(&hub, "psa", "portal", false).await;
        psa.publish(vec![ticket("off")]).await;
        let all = || list_types(&["ticket.*", "own.*"]);
        for (product, expected) in [
            (&psa, &["off", "unrouted", "routed"][..]),
            (&portal, &["routed"][..]),
            (&crm, &[][..]),
            (&reader, &[][..]),
            (&diagnostics, &["off", "unrouted", "routed"][..]),
        ] {
            assert_eq!(product.list_all(all()).await.0, expected);
            assert_eq!(product.get(Asked::Sequence(1)).await.is_ok(), expected.contains(&"routed"));
        }
        let off = psa.list(all()).await.unwrap().entries.remove(0);
        let to_portal = off.deliveries.iter().find(|d| d.product == "portal").unwrap();
        assert_eq!(to_portal.state(), EventDeliveryState::NotRouted);
        assert_eq!(to_portal.not_routed_reason(), FLOWED, "of others only the state");
        let mine = portal.get(Asked::Sequence(1)).await.unwrap();
        let own = mine.deliveries.iter().find(|d| d.product == "portal").unwrap();
        assert!(own.update_time.is_some());
        let hidden = portal.get(Asked::Sequence(2)).await.unwrap_err();
        let missing = portal.get(Asked::Sequence(999)).await.unwrap_err();
        assert_eq!(hidden.reason(), Some("EVENT_NOT_FOUND"));
        assert_eq!(hidden.reason(), missing.reason());
    }

    async fn a_subscription_narrows_the_log_to_its_deliveries(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let portal = Product::new(&hub, "portal").await;
        psa.publish(vec![ticket("a"), event("company.updated", "b")]).await;
        let entry = portal.get(Asked::Sequence(1)).await.unwrap();
        let id = |product: &str| {
            let mut all = entry.deliveries.iter();
            all.find(|d| d.product == product).unwrap().subscription_id.clone()
        };
        let of_subscription = |id: String| of(EventLogFilter {
            subscription_id: id,
            ..EventLogFilter::default()
        });
        let page = portal.list(of_subscription(id("portal"))).await.unwrap();
        assert_eq!(ids(&page.entries), ["b", "a"]);
        assert_eq!(page.entries[0].deliveries.len(), 1);
        assert_eq!(page.entries[0].deliveries[0].product, "portal");
        for foreign in [id("hub"), "sub_00000000000000000000000000".to_owned()] {
            let refused = portal.list(of_subscription(foreign)).await.unwrap_err();
            assert_eq!(refused.reason(), Some("SUBSCRIPTION_NOT_FOUND"));
        }
        let of_hub = admin(&hub).await.list(of_subscription(id("hub"))).await.unwrap();
        assert_eq!(ids(&of_hub.entries), ["b", "a"]);
    }

    async fn every_condition_narrows_the_log_with_and_without_its_index(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let crm = Product::new(&hub, "crm").await;
        let admin = admin(&hub).await;
        for round in 0..3 {
            let subject = text(&format!("ticket/{round}"));
            let named = |kind: &str, name: &str| event(kind, &format!("{name}{round}"));
            psa.publish(vec![
                with_attributes(named("ticket.created", "created"), &[("subject", subject)]),
                named("ticket.note.added", "note"),
            ]).await;
            crm.publish(vec![named("company.updated", "company")]).await;
            if round == 1 {
                // The index has the first two rounds, the last one is newer than it.
                hub.core.journal.write_listing().await.unwrap();
            }
        }
        let products = |slugs: &[&str], types: &[&str]| of_event(EventFilter {
            products: slugs.iter().map(|slug| (*slug).to_owned()).collect(),
            ..of_types(types)
        });
        let subject = |value: &str, types: &[&str]| of_event(EventFilter {
            attributes: [("subject".to_owned(), value.to_owned())].into(),
            ..of_types(types)
        });
        let each = |name: &str| -> Vec<String> {
            (0..3).rev().map(|round| format!("{name}{round}")).collect()
        };
        for (request, expected) in [
            (list_types(&["ticket.created"]), each("created")),
            (list_types(&["ticket.note.*"]), each("note")),
            (list_types(&["company.updated", "nothing"]), each("company")),
            (products(&["crm"], &[]), each("company")),
            (products(&["crm"], &["ticket.**"]), vec![]),
            (products(&["psa"], &["*.created"]), each("created")),
            (subject("ticket/1", &[]), vec!["created1".to_owned()]),
            (subject("ticket/*", &["ticket.**"]), each("created")),
            (subject("ticket/9", &["ticket.created"]), vec![]),
        ] {
            for size in [0, 1] {
                let request = ListEventsRequest { page_size: size, ..request.clone() };
                let (found, _) = admin.list_all(request.clone()).await;
                assert_eq!(found, expected, "{request:?}");
            }
        }
        let all = of_event(EventFilter {
            products: vec!["psa".to_owned(), "crm".to_owned()],
            ..EventFilter::default()
        });
        assert_eq!(admin.list_all(all).await.0.len(), 9);
        let wrong = admin.list(list_types(&["a..b"])).await.unwrap_err();
        assert_eq!(wrong.reason(), Some("FILTER_INVALID"));
    }

    async fn a_type_of_many_segments_is_listed_by_the_index(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        for name in numbered("t", 40) {
            psa.publish(vec![event("own.kind", &format!("{name} of another type"))]).await;
            psa.publish(vec![ticket(&name)]).await;
        }
        psa.publish(numbered("b", 40).iter().map(|name| ticket(name)).collect()).await;
        hub.core.journal.write_listing().await.unwrap();
        let mut expected = [numbered("t", 40), numbered("b", 40)].concat();
        expected.reverse();
        for size in [1, 7, 50, 1000] {
            let request = ListEventsRequest {
                page_size: size,
                ..list_types(&["ticket.created"])
            };
            assert_eq!(psa.list_all(request).await.0, expected, "pages of {size}");
        }
    }

    async fn an_empty_filter_lists_everything_newest_first(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        for name in numbered("t", 7) {
            psa.publish(vec![large_ticket(&name, 10)]).await;
        }
        let request = ListEventsRequest {
            page_size: 3,
            omit_data: true,
            ..ListEventsRequest::default()
        };
        let (found, pages) = psa.list_all(request.clone()).await;
        let mut expected = numbered("t", 7);
        expected.reverse();
        assert_eq!(found, expected);
        assert!(pages >= 3, "{pages}");
        let page = psa.list(request.clone()).await.unwrap();
        let event = page.entries[0].record.clone().unwrap().event.unwrap();
        assert_eq!(event.data, None);
        // A token is of its tenant and filter.
        let mut other = list_types(&["ticket.*"]);
        other.page_token = page.next_page_token.clone();
        assert_eq!(psa.list(other).await.unwrap_err().reason(), Some("PAGE_TOKEN_INVALID"));
        let stranger = hub.tenant().await;
        let stranger = hub.client(&stranger.admin_key).event_bus();
        let request = ListEventsRequest { page_token: page.next_page_token, ..request };
        let refused = stranger.clone().list_events(request).await.map_err(Error::from);
        assert_eq!(refused.unwrap_err().reason(), Some("PAGE_TOKEN_INVALID"));
    }

    async fn pages_end_at_a_mebibyte_and_lose_nothing(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        for name in numbered("large", 5) {
            psa.publish(vec![large_ticket(&name, 400 << 10)]).await;
        }
        psa.publish(vec![large_ticket("huge", 900 << 10)]).await;
        for request in [ListEventsRequest::default(), list_types(&["ticket.created"])] {
            let (found, pages) = psa.list_all(request).await;
            let mut expected = numbered("large", 5);
            expected.push("huge".to_owned());
            expected.reverse();
            assert_eq!((found, pages), (expected, 4));
        }
    }
}

/// A hub whose pages examine few events.
async fn with_short_pages(backend: crate::support::Backend) -> TestHub {
    let options = TestHub::options(backend).manual_clock();
    options
        .limits(|limits| limits.listing_events_max = 10)
        .start()
        .await
}

both_databases! {
    async fn a_page_may_be_empty_and_have_a_next_one(backend: crate::support::Backend) {
        let hub = with_short_pages(backend).await;
        let psa = Product::new(&hub, "psa").await;
        psa.publish(vec![with_attributes(ticket("first"), &[("subject", text("one"))])]).await;
        psa.publish(numbered("t", 45).iter().map(|name| ticket(name)).collect()).await;
        let request = of_event(EventFilter {
            attributes: [("subject".to_owned(), "one".to_owned())].into(),
            ..EventFilter::default()
        });
        let page = psa.list(request.clone()).await.unwrap();
        assert!(page.entries.is_empty() && !page.next_page_token.is_empty());
        let (found, pages) = psa.list_all(request).await;
        assert_eq!(found, ["first"]);
        assert!((5..=6).contains(&pages), "{pages}");
    }

    async fn since_and_until_are_times_of_record(backend: crate::support::Backend) {
        let hub = with_short_pages(backend).await;
        let psa = Product::new(&hub, "psa").await;
        let second = std::time::Duration::from_secs(1);
        let start = hub.clock.now();
        for name in numbered("t", 6) {
            psa.publish(vec![ticket(&name)]).await;
            hub.clock.advance(second);
        }
        let at = |seconds: i64| Some(hub_core::clock::timestamp(start + seconds * 1_000_000));
        let between = |since, until| of(EventLogFilter {
            since,
            until,
            event: Some(of_types(&["ticket.*"])),
            ..EventLogFilter::default()
        });
        for (since, until, expected) in [
            (at(2), None, &["t-5", "t-4", "t-3", "t-2"][..]),
            (None, at(2), &["t-1", "t-0"][..]),
            (at(2), at(4), &["t-3", "t-2"][..]),
            (at(4), at(2), &[][..]),
            (at(100), None, &[][..]),
        ] {
            assert_eq!(psa.list_all(between(since, until)).await.0, expected);
            hub.core.journal.write_listing().await.unwrap();
            assert_eq!(psa.list_all(between(since, until)).await.0, expected, "by the index");
        }
    }

    async fn default_subscriptions_are_the_same_after_a_restart(backend: crate::support::Backend) {
        let mut hub = TestHub::options(backend).manual_clock().start().await;
        let tenant = hub.core.tenancy.find(&hub.first_tenant().id).await.unwrap();
        let psa = Product::new(&hub, "psa").await;
        psa.publish(vec![ticket("a")]).await;
        let before = psa.get(Asked::Sequence(1)).await.unwrap();
        let rows = rows(&hub, &tenant).await;
        hub.restart().await;
        let psa = Product { bus: hub.client(&psa.key).event_bus(), key: psa.key };
        assert_eq!(psa.get(Asked::Sequence(1)).await.unwrap(), before);
        let portal = rows.iter().find(|row| row.product == "portal").unwrap();
        let delivery = before.deliveries.iter().find(|d| d.product == "portal").unwrap();
        assert_eq!(portal.id, delivery.subscription_id);
        assert_eq!((&*portal.name, portal.used_time), ("portal", None), "dormant");
        assert_eq!(self::rows(&hub, &tenant).await, rows);
    }
}

/// The rows of a tenant's default subscriptions, once they are there.
async fn rows(
    hub: &TestHub,
    tenant: &hub_core::journal::TenantRef,
) -> Vec<hub_event_bus::default_subscriptions::Stored> {
    for _ in 0..2000 {
        let rows = hub_event_bus::default_subscriptions::stored(&hub.core, tenant)
            .await
            .unwrap();
        if !rows.is_empty() {
            return rows;
        }
        hub.clock.advance(std::time::Duration::from_secs(1));
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("no default subscription was made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_listed_event_by_event() {
    let hub = TestHub::start(crate::support::Backend::Sqlite).await;
    let psa = Product::new(&hub, "psa").await;
    let names = numbered("t", 120);
    psa.send(batch(names.iter().map(|name| ticket(name)).collect()))
        .await
        .unwrap();
    let page = psa.list(ListEventsRequest::default()).await.unwrap();
    assert_eq!(page.entries.len(), 50);
    assert_eq!(ids(&page.entries)[0], "t-119");
}
