//! ExplainEvent about events that were expected: found by what they are about, or never published.

use std::time::Duration;

use hub_client::Data;
use hub_proto::hub::event_bus::v1::get_event_request::Event as Asked;
use serde_json::{Value, json};

use super::consume_shared::{acks_of, pull_of};
use super::{Product, event, text, ticket, with_attributes};
use crate::event_bus::explain::{Explained, explain, run};
use crate::support::{Backend, TestHub};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
const PATIENCE: Duration = Duration::from_secs(20);

fn about(event: hub_client::CloudEvent, subject: &str) -> hub_client::CloudEvent {
    with_attributes(event, &[("subject", text(subject))])
}

fn search(kind: &str, subject: &str) -> Value {
    let search = json!({"type": kind, "subject": subject});
    json!({"search": search, "destination": "portal"})
}

fn around(mut asked: Value, at: i64) -> Value {
    let at = hub_core::clock::timestamp(at);
    asked["search"]["around"] = json!(at.to_string());
    asked
}

fn received(explained: &Explained) -> &str {
    explained.check("EVT_RECEIVED")["detail"].as_str().unwrap()
}

async fn manual(backend: Backend) -> (TestHub, Product) {
    let hub = TestHub::options(backend).manual_clock().start().await;
    let psa = Product::new(&hub, "psa").await;
    Product::new(&hub, "portal").await;
    (hub, psa)
}

both_databases! {
    async fn an_event_is_found_by_type_subject_and_time(backend: Backend) {
        let (hub, psa) = manual(backend).await;
        let start = hub.clock.now();
        let mut ids = Vec::new();
        for name in ["a", "b", "c"] {
            let published = psa.publish(vec![about(ticket(name), "ticket/42")]).await;
            psa.publish(vec![about(ticket(&format!("{name} other")), "ticket/7")]).await;
            ids.push(published.results[0].event_id.clone());
            hub.clock.advance(10 * MINUTE);
        }
        let newest = explain(&hub, search("ticket.created", "ticket/42")).await;
        assert_eq!(newest.evidence("EVT_RECEIVED", "event_id"), &json!(ids[2]));
        for (minutes, expected) in [(0, 0), (4, 0), (6, 1), (14, 1), (16, 2), (70, 2)] {
            let at = start + minutes * 60_000_000;
            let asked = around(search("ticket.created", "ticket/42"), at);
            let found = explain(&hub, asked).await;
            let event_id = found.evidence("EVT_RECEIVED", "event_id");
            assert_eq!(event_id, &json!(ids[expected]), "around minute {minutes}");
            assert_eq!(found.results("EVT_RECEIVED").0, "PASS");
        }
        let elsewhen = around(search("ticket.created", "ticket/42"), start + 5 * 3_600_000_000);
        let missing = explain(&hub, elsewhen).await;
        assert_eq!((missing.verdict(), missing.cause()), ("BLOCKED", "EVT_RECEIVED"));
        assert_eq!(missing.evidence("EVT_RECEIVED", "elsewhen"), &json!(ids[2]));
        let answer = run(&hub, "", &missing.fixes()[0]).await;
        let found = Explained(answer["explanation"].clone());
        assert_eq!(found.results("EVT_RECEIVED").0, "PASS");
    }

    async fn a_type_that_was_mistyped_by_its_product_is_told_and_published_again(backend: Backend) {
        let (hub, psa) = manual(backend).await;
        let mut wrong = about(event("ticket.create", "42"), "ticket/42");
        wrong.data = Some(Data::TextData("{\"id\":42}".to_owned()));
        let published = psa.publish(vec![wrong]).await;
        hub.clock.advance(Duration::from_secs(3));
        let asked = around(search("ticket.created", "ticket/42"), hub.clock.now());
        let missing = explain(&hub, asked.clone()).await;
        assert_eq!((missing.verdict(), missing.cause()), ("BLOCKED", "EVT_RECEIVED"));
        let nearest = "nearest: psa published ticket.create 3 s earlier, did you mean \
                       ticket.created";
        assert!(received(&missing).starts_with(nearest), "{missing:?}");
        assert!(received(&missing).contains("last event of psa: ticket.create"), "{missing:?}");
        let near = missing.evidence("EVT_RECEIVED", "nearest");
        assert_eq!(near, &json!(published.results[0].event_id));
        run(&hub, &psa.key, &missing.fixes()[0]).await;
        let found = explain(&hub, asked).await;
        assert_eq!(found.results("EVT_RECEIVED").0, "PASS");
        let again = run(&hub, &psa.key, &missing.fixes()[0]).await;
        assert_eq!(again["results"][0]["duplicate"], true, "the fix can be repeated");
    }

    async fn a_type_that_was_mistyped_by_who_asks_is_told(backend: Backend) {
        let (hub, psa) = manual(backend).await;
        let published = psa.publish(vec![about(ticket("a"), "ticket/42")]).await;
        for mistyped in ["ticket.creatd", "tickets.created", "Ticket.Created"] {
            let missing = explain(&hub, search(mistyped, "ticket/42")).await;
            assert_eq!(missing.cause(), "EVT_RECEIVED");
            let meant = missing.evidence("EVT_RECEIVED", "nearest_type");
            assert_eq!(meant, "ticket.created", "{mistyped}");
            let answer = run(&hub, "", &missing.fixes()[0]).await;
            let found = Explained(answer["explanation"].clone());
            let event_id = found.evidence("EVT_RECEIVED", "event_id");
            assert_eq!(event_id, &json!(published.results[0].event_id));
        }
    }

    async fn what_was_never_published_is_told_with_the_last_event_of_its_sources(backend: Backend) {
        let (hub, psa) = manual(backend).await;
        let last = psa.publish(vec![event("time_entry.created", "a")]).await;
        let asked = search("ticket.created", "ticket/42");
        let missing = explain(&hub, asked.clone()).await;
        assert_eq!(missing.cause(), "EVT_RECEIVED");
        let of_source = missing.evidence("EVT_RECEIVED", "last_of_source");
        assert_eq!(of_source, &json!(last.results[0].event_id));
        assert_eq!(missing.results("EVT_INTEGRATION_ENABLED"), ("SKIPPED", "PASS"));
        run(&hub, &psa.key, &missing.fixes()[0]).await;
        let found = explain(&hub, asked).await;
        assert_eq!(found.results("EVT_RECEIVED").0, "PASS");
        // It would not have come far either.
        crate::event_bus::log::switch(&hub, "rmm", "psa", false).await;
        let alert = json!({"search": {"type": "alert.triggered"}, "destination": "psa"});
        let missing = explain(&hub, alert).await;
        assert_eq!(missing.results("EVT_INTEGRATION_ENABLED"), ("SKIPPED", "FAIL"));
        assert_eq!(missing.rpcs(), ["Publish", "SetIntegration"]);
    }

    async fn another_subject_of_the_same_type_is_told(backend: Backend) {
        let (hub, psa) = manual(backend).await;
        let published = psa.publish(vec![about(ticket("a"), "ticket/421")]).await;
        let missing = explain(&hub, search("ticket.created", "ticket/42")).await;
        let near = missing.evidence("EVT_RECEIVED", "same_type");
        assert_eq!(near, &json!(published.results[0].event_id));
        assert!(received(&missing).contains("about \"ticket/421\""), "{missing:?}");
        let answer = run(&hub, "", &missing.fixes()[0]).await;
        assert_eq!(answer["explanation"]["checks"][0]["result"], "CHECK_RESULT_PASS");
    }

    async fn an_event_that_retention_removed_is_told_and_the_next_is_kept_longer(backend: Backend) {
        let (hub, psa) = manual(backend).await;
        let published = psa.publish(vec![ticket("a")]).await;
        hub.clock.advance(Duration::from_secs(40 * 24 * 3600));
        crate::event_bus::retention::removed(&hub, 1).await;
        let asked = json!({"eventId": published.results[0].event_id});
        let gone = explain(&hub, asked.clone()).await;
        assert_eq!((gone.verdict(), gone.cause()), ("BLOCKED", "EVT_RETAINED"));
        assert_eq!(gone.codes(), crate::event_bus::explain::CHECKS);
        assert_eq!(gone.results("EVT_RECEIVED").0, "PASS");
        assert_eq!(gone.results("EVT_ROUTE_MATCHED"), ("SKIPPED", ""));
        assert_eq!(gone.evidence("EVT_RETAINED", "retention"), "2592000s");
        run(&hub, "", &gone.fixes()[0]).await;
        let longer = explain(&hub, asked).await;
        assert_eq!(longer.evidence("EVT_RETAINED", "retention"), "5184000s");
        let kept = psa.publish(vec![ticket("b")]).await;
        hub.clock.advance(Duration::from_secs(40 * 24 * 3600));
        let kept = explain(&hub, json!({"eventId": kept.results[0].event_id})).await;
        assert_eq!(kept.results("EVT_RETAINED"), ("PASS", "PASS"));
    }

    async fn for_whom_an_event_expired_is_told_for_ninety_days_from_when_they_went_on(
        backend: Backend,
    ) {
        let (mut hub, psa) = manual(backend).await;
        let portal = Product::new(&hub, "portal").await;
        let first = psa.publish(vec![ticket("acked")]).await;
        let events = portal.pull(pull_of(10, 10)).await.events;
        portal.acknowledge("portal", acks_of(&events)).await;
        let entry = psa.get(Asked::Sequence(1)).await.unwrap();
        let mut deliveries = entry.deliveries.into_iter();
        let delivery = deliveries.find(|one| one.product == "portal").unwrap();
        // Nobody is at work on the subscription from here on.
        hub.restart().await;
        let [psa, portal] = [psa, portal].map(|product| Product {
            bus: hub.client(&product.key).event_bus(),
            ..product
        });
        let lost = psa.publish(vec![ticket("lost")]).await;
        let [first, lost] = [&first, &lost].map(|one| json!({"eventId": one.results[0].event_id}));
        let told = async |asked: &Value| {
            let gone = explain(&hub, asked.clone()).await;
            assert_eq!((gone.verdict(), gone.cause()), ("BLOCKED", "EVT_RETAINED"));
            let seen = gone.check("EVT_RETAINED")["evidence"].to_string();
            seen.contains(&delivery.subscription_id)
        };
        hub.clock.advance(40 * DAY);
        crate::event_bus::retention::removed(&hub, 2).await;
        assert!(!told(&first).await, "it was delivered");
        assert!(told(&lost).await);
        hub.clock.advance(100 * DAY);
        assert!(told(&lost).await, "it is still to come to it");
        // From here on it is kept as a range.
        psa.publish(vec![ticket("next")]).await;
        let events = portal.pull(pull_of(10, 10)).await.events;
        portal.acknowledge("portal", acks_of(&events)).await;
        assert!(told(&lost).await);
        hub.clock.advance(89 * DAY);
        assert!(told(&lost).await);
        hub.clock.advance(2 * DAY);
        // Who forgets may still have been at work when the clock was moved: then in the next hour.
        let forgotten = async {
            while told(&lost).await {
                hub.clock.advance(60 * MINUTE);
            }
        };
        tokio::time::timeout(PATIENCE, forgotten).await.expect("it is forgotten");
    }
}

both_databases! {
    async fn an_event_that_was_refused_is_told_with_the_reason(backend: Backend) {
        let (hub, psa) = manual(backend).await;
        let alert = || event("alert.triggered", "1");
        psa.send(crate::event_bus::batch(vec![alert()])).await.unwrap_err();
        let asked = json!({"search": {"type": "alert.triggered"}, "destination": "oncall"});
        let refused = explain(&hub, asked.clone()).await;
        assert_eq!((refused.verdict(), refused.cause()), ("BLOCKED", "EVT_VALID"), "{refused:?}");
        assert_eq!(refused.codes(), crate::event_bus::explain::CHECKS);
        assert_eq!(refused.results("EVT_RECEIVED").0, "PASS");
        let reason = refused.evidence("EVT_VALID", "reason");
        assert_eq!(reason, "EVENT_SOURCE_NOT_ALLOWED");
        let cured = refused.is_cured(&hub, "EVT_VALID", asked.clone()).await;
        assert_eq!(cured.verdict(), "FIXED_SINCE");
        psa.publish(vec![alert()]).await;
        assert_eq!(explain(&hub, asked).await.results("EVT_VALID").0, "PASS");
        // What others send is of no concern.
        let stranger = hub.tenant().await;
        let asked = json!({"search": {"type": "alert.triggered"}});
        let theirs = crate::event_bus::explain::explain_as(&hub, &stranger.admin_key, asked).await;
        assert_eq!(theirs.cause(), "EVT_RECEIVED");
    }

    async fn an_event_with_the_identity_of_an_earlier_one_is_told_and_published_anew(
        backend: Backend,
    ) {
        let (hub, psa) = manual(backend).await;
        let first = psa.publish(vec![about(ticket("42"), "ticket/42")]).await;
        hub.clock.advance(Duration::from_secs(6 * 3600));
        psa.publish(vec![about(ticket("42"), "ticket/42")]).await;
        let asked = around(search("ticket.created", "ticket/42"), hub.clock.now());
        let repeated = explain(&hub, asked.clone()).await;
        let code = "EVT_NOT_DEDUPED";
        assert_eq!((repeated.verdict(), repeated.cause()), ("BLOCKED", code), "{repeated:?}");
        let before = repeated.evidence(code, "first");
        assert_eq!(before, &json!(first.results[0].event_id));
        run(&hub, &psa.key, &repeated.fixes()[0]).await;
        assert_eq!(explain(&hub, asked.clone()).await.results(code).0, "PASS");
        hub.clock.advance(Duration::from_secs(6 * 3600));
        psa.send(crate::event_bus::batch(vec![about(ticket("42"), "ticket/7")])).await.unwrap_err();
        let asked = around(search("ticket.created", "ticket/42"), hub.clock.now());
        let reused = explain(&hub, asked).await;
        let detail = reused.check(code)["detail"].as_str().unwrap();
        assert!(detail.contains("[EVENT_ID_REUSED]"), "{reused:?}");
    }
}
