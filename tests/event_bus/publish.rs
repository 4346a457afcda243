//! Publish: what is stored, what a retry is told, and what comes back.

use hub_client::{Attr, Data};
use hub_proto::hub::event_bus::v1::{PublishRequest, PublishWarning};
use prost_types::{Any, Timestamp};

use super::{
    Product, attribute, batch, earliest, event, ids, large_ticket, numbered, text, ticket,
    with_attributes,
};
use crate::support::TestHub;

both_databases! {
    async fn what_is_published_comes_back_whole_whatever_kind_of_data_it_is(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let attributes = [
            ("subject", text("ticket/42")),
            ("flag", attribute(Attr::CeBoolean(true))),
            ("count", attribute(Attr::CeInteger(-7))),
            ("blob", attribute(Attr::CeBytes(vec![0, 255, 1].into()))),
            ("dataschema", attribute(Attr::CeUri("https://example.com/s".into()))),
            ("ref", attribute(Attr::CeUriRef("../x".into()))),
            ("time", attribute(Attr::CeTimestamp(Timestamp { seconds: -5, nanos: 999 }))),
        ];
        let kinds = [
            None,
            Some(Data::TextData("{\"ü\": 1}".into())),
            Some(Data::BinaryData(vec![0, 1, 2, 255].into())),
            Some(Data::ProtoData(Any { type_url: "a/b.C".into(), value: vec![8, 0, 8, 1] })),
            Some(Data::TextData(String::new())),
        ];
        let mut events = Vec::new();
        for (number, data) in kinds.into_iter().enumerate() {
            let mut event = with_attributes(ticket(&number.to_string()), &attributes);
            event.data = data;
            events.push(event);
        }
        let answer = psa.publish(events.clone()).await;
        let records = portal.dump(earliest()).await;
        assert_eq!(records.len(), events.len());
        for (at, record) in records.iter().enumerate() {
            assert_eq!(record.event.as_ref(), Some(&events[at]));
            assert_eq!(record.sequence, at as u64 + 1);
            assert_eq!(record.event_id, answer.results[at].event_id);
            assert_eq!(record.product, "psa");
            assert_eq!(record.tenant_id, hub.first_tenant().id);
            assert!(record.record_time.is_some());
        }
    }

    async fn a_batch_gets_neighbouring_sequences_and_is_told_where_it_goes(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        psa.publish(vec![ticket("before")]).await;
        let events = vec![ticket("a"), event("unheard.of", "b"), event("company.updated", "c")];
        let results = psa.publish(events).await.results;
        let sequences: Vec<u64> = results.iter().map(|result| result.sequence).collect();
        assert_eq!(sequences, [2, 3, 4]);
        let destinations: Vec<u32> = results.iter().map(|result| result.destinations).collect();
        assert_eq!(destinations, [2, 0, 11]);
        let unknown = [PublishWarning::TypeUnknown as i32, PublishWarning::NoRoute as i32];
        assert_eq!(results[0].warnings, [0; 0]);
        assert_eq!(results[1].warnings, unknown);
        assert!(results.iter().all(|result| result.event_id.starts_with("evt_")));
        assert!(results.iter().all(|result| !result.duplicate && result.error.is_none()));
    }

    async fn validate_only_checks_and_stores_nothing(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let request = PublishRequest { validate_only: true, ..batch(vec![ticket("a")]) };
        let answer = psa.send(request).await.unwrap();
        assert_eq!(answer.results[0].sequence, 0);
        assert_eq!(answer.results[0].destinations, 2);
        let request = PublishRequest { validate_only: true, ..batch(vec![ticket("")]) };
        assert_eq!(psa.send(request).await.unwrap_err().reason(), Some("EVENT_INVALID"));
        let stored = psa.publish(vec![ticket("a")]).await;
        assert_eq!((stored.results[0].sequence, stored.results[0].duplicate), (1, false));
    }

    async fn a_batch_with_one_bad_event_is_not_stored_at_all(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let error = psa.send(batch(vec![ticket("a"), ticket("")])).await.unwrap_err();
        assert_eq!(error.reason(), Some("EVENT_INVALID"));
        assert_eq!(error.metadata()["index"], "1");
        assert_eq!(portal.dump_ids(earliest()).await, [""; 0]);
    }

    async fn independent_events_are_stored_each_on_its_own_merit(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish(vec![ticket("old")]).await;
        let events = vec![
            ticket("a"),
            ticket(""),
            large_ticket("old", 1),
            ticket("old"),
            event("invoice.created", "b"),
            ticket("c"),
            ticket("a"),
        ];
        let request = PublishRequest { independent: true, ..batch(events) };
        let results = psa.send(request).await.unwrap().results;
        let told: Vec<_> = results
            .iter()
            .map(|result| {
                let reason = result.error.as_ref().map(|error| error.reason.as_str());
                (result.sequence, result.duplicate, reason)
            })
            .collect();
        let expected = [
            (2, false, None),
            (0, false, Some("EVENT_INVALID")),
            (0, false, Some("EVENT_ID_REUSED")),
            (1, true, None),
            (0, false, Some("EVENT_SOURCE_NOT_ALLOWED")),
            (3, false, None),
            (2, true, None),
        ];
        assert_eq!(told, expected);
        for (index, result) in results.iter().enumerate() {
            if let Some(error) = &result.error {
                assert_eq!(error.metadata["index"], index.to_string());
                assert_eq!(error.domain, "hub.event_bus");
            }
        }
        assert_eq!(portal.dump_ids(earliest()).await, ["old", "a", "c"]);
    }

    async fn a_retry_is_told_of_the_first_and_stored_once(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let events = vec![ticket("a"), ticket("b")];
        let first = psa.publish(events.clone()).await;
        let again = psa.publish(events).await;
        for (first, again) in first.results.iter().zip(&again.results) {
            assert_eq!((first.sequence, &first.event_id), (again.sequence, &again.event_id));
            assert!(!first.duplicate && again.duplicate);
        }
        assert_eq!(first.cursor, again.cursor);
        let mixed = psa.publish(vec![ticket("b"), ticket("c"), ticket("c")]).await.results;
        let told: Vec<_> = mixed.iter().map(|one| (one.sequence, one.duplicate)).collect();
        assert_eq!(told, [(2, true), (3, false), (3, true)]);
        assert_eq!(portal.dump_ids(earliest()).await, ["a", "b", "c"]);
    }

    async fn an_event_is_known_again_after_a_restart_and_after_many_others(mut hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        psa.publish(vec![ticket("first")]).await;
        for batch in 0..5 {
            let events = numbered(&format!("batch {batch}"), 1000);
            psa.publish(events.iter().map(|id| ticket(id)).collect()).await;
        }
        hub.restart().await;
        let psa = Product { bus: hub.client(&psa.key).event_bus(), key: psa.key };
        let again = psa.publish(vec![ticket("first"), ticket("batch 3-17")]).await.results;
        let told: Vec<_> = again.iter().map(|one| (one.sequence, one.duplicate)).collect();
        assert_eq!(told, [(1, true), (1 + 3 * 1000 + 18, true)]);
    }

    async fn a_used_identity_with_other_content_is_refused_with_its_batch(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let first = psa.publish(vec![ticket("a")]).await.results[0].event_id.clone();
        for other in [
            large_ticket("a", 1),
            event("ticket.updated", "a"),
            with_attributes(ticket("a"), &[("subject", text("x"))]),
        ] {
            let error = psa.send(batch(vec![ticket("b"), other])).await.unwrap_err();
            assert_eq!(error.code(), tonic::Code::AlreadyExists);
            assert_eq!(error.reason(), Some("EVENT_ID_REUSED"));
            assert_eq!(error.metadata()["eventId"], first);
            assert_eq!(error.metadata()["index"], "1");
        }
        assert_eq!(portal.dump_ids(earliest()).await, ["a"]);
        let stored = psa.publish(vec![ticket("b")]).await;
        assert_eq!(stored.results[0].sequence, 2, "its id is still free");
    }

    async fn an_identity_used_twice_within_a_batch_names_no_foreign_event(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish(vec![ticket("other")]).await;
        let twice = batch(vec![ticket("a"), large_ticket("a", 1)]);
        let error = psa.send(twice).await.unwrap_err();
        assert_eq!(error.reason(), Some("EVENT_ID_REUSED"));
        assert_eq!(error.metadata()["index"], "1");
        assert_eq!(error.metadata().get("eventId"), None, "{error}");
        assert_eq!(portal.dump_ids(earliest()).await, ["other"]);
    }

    async fn an_identity_belongs_to_its_product_and_tenant(hub: TestHub) {
        let (psa, crm) = (Product::new(&hub, "psa").await, Product::new(&hub, "crm").await);
        let other = hub.tenant().await;
        let admin = hub.client(&other.admin_key);
        let key = other.key(&admin, "psa", &["hub:events.publish", "hub:events.read"]).await;
        let elsewhere = Product { bus: hub.client(&key).event_bus(), key };
        let company = |data| {
            let mut company = event("company.updated", "1");
            company.data = Some(Data::TextData(data));
            vec![company]
        };
        psa.publish(company("psa".into())).await;
        let second = psa_free(&crm.publish(company("crm".into())).await);
        let first = psa_free(&elsewhere.publish(company("elsewhere".into())).await);
        assert_eq!((second, first), (2, 1), "each tenant has its own sequences");
        let auditor = Product::auditor(&hub).await;
        let seen = auditor.dump(earliest()).await;
        assert_eq!(ids(&seen), ["1", "1"]);
    }
}

/// Sequence of the only event, which is no duplicate.
fn psa_free(answer: &hub_proto::hub::event_bus::v1::PublishResponse) -> u64 {
    assert!(!answer.results[0].duplicate);
    answer.results[0].sequence
}
