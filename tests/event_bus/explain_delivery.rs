//! ExplainEvent about events that were routed: what became of them at their consumers.

use std::time::Duration;

use hub_proto::hub::event_bus::v1::{
    AckBatch, LeasedEvent, ListSubscriptionsRequest, NackAction, PullRequest, RedeliverRequest,
};
use serde_json::{Value, json};

use super::consumer::{nack, of_key};
use super::explain::{Explained, caused_by, explain, run};
use super::log::switch;
use super::owner::{Owner, named};
use super::redeliver::{ended, redeliver};
use super::{Product, of_types, ticket};
use crate::support::{Backend, TestHub};

/// A hub with a manual clock, its publisher and its consumer.
struct Suite {
    hub: TestHub,
    psa: Product,
    portal: Product,
}

impl Suite {
    async fn start(backend: Backend) -> Suite {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let psa = Product::new(&hub, "psa").await;
        let portal = Product::new(&hub, "portal").await;
        Suite { hub, psa, portal }
    }

    /// Publishes a ticket and returns the question about it.
    async fn publish(&self, event: hub_client::CloudEvent) -> Value {
        let published = self.psa.publish(vec![event]).await;
        json!({"eventId": published.results[0].event_id, "destination": "portal"})
    }

    async fn pull(&self, events: u32) -> Vec<LeasedEvent> {
        let request = PullRequest {
            subscription: "portal".to_owned(),
            max_events: events,
            ..PullRequest::default()
        };
        self.portal.pull(request).await.events
    }

    async fn ack(&self, lease: &LeasedEvent) {
        let acks = AckBatch {
            ack: vec![lease.lease_id.clone()],
            ..AckBatch::default()
        };
        self.portal.acknowledge("portal", acks).await;
    }

    async fn nack(&self, lease: &LeasedEvent, action: NackAction, error: &str) {
        let acks = AckBatch {
            nack: vec![nack(lease, action, error)],
            ..AckBatch::default()
        };
        self.portal.acknowledge("portal", acks).await;
    }

    async fn explain(&self, asked: &Value) -> Explained {
        explain(&self.hub, asked.clone()).await
    }
}

const CONNECTED: &str = "EVT_SUBSCRIBER_CONNECTED";

both_databases! {
    async fn a_subscription_that_nobody_consumes_is_told_and_consumed(backend: Backend) {
        let suite = Suite::start(backend).await;
        let asked = suite.publish(ticket("a")).await;
        let never = suite.explain(&asked).await;
        assert_eq!((never.verdict(), never.cause()), ("BLOCKED", CONNECTED));
        assert!(never.summary().contains("No consumer has ever used it"), "{never:?}");
        run(&suite.hub, &suite.portal.key, &never.fixes()[0]).await;
        let at_work = suite.explain(&asked).await;
        assert_eq!(at_work.results(CONNECTED), ("PASS", "PASS"));
        assert_eq!(at_work.results("EVT_DELIVERED").0, "PASS");
        assert_eq!((at_work.verdict(), at_work.cause()), ("IN_PROGRESS", ""));
        assert!(at_work.0["expectBy"].is_string());
        // Once used, it counts that the consumer is gone.
        suite.hub.clock.advance(Duration::from_secs(3600));
        let next = suite.publish(ticket("b")).await;
        let gone = suite.explain(&next).await;
        assert_eq!((gone.verdict(), gone.cause()), ("BLOCKED", CONNECTED));
        gone.evidence(CONNECTED, "first_used_at");
        run(&suite.hub, &suite.portal.key, &gone.fixes()[0]).await;
        assert_eq!(suite.explain(&next).await.results(CONNECTED).1, "PASS");
    }

    async fn an_event_that_was_acknowledged_is_done(backend: Backend) {
        let suite = Suite::start(backend).await;
        let asked = suite.publish(ticket("a")).await;
        let leases = suite.pull(1).await;
        suite.ack(&leases[0]).await;
        suite.hub.clock.advance(Duration::from_secs(3600));
        let done = suite.explain(&asked).await;
        assert_eq!((done.verdict(), done.cause()), ("WORKING", ""), "{done:?}");
        for code in ["EVT_DELIVERED", "EVT_ACKED", "EVT_CONSUMER_OUTCOME"] {
            assert_eq!(done.results(code), ("PASS", "PASS"));
        }
        assert_eq!(done.check("EVT_CONSUMER_OUTCOME")["basis"], "CHECK_BASIS_REPORTED");
        assert_eq!(done.results("EVT_FOLLOW_UP").0, "UNKNOWN");
        assert!(done.fixes().is_empty());
    }

    async fn an_event_that_follows_is_found_by_its_cause(backend: Backend) {
        let suite = Suite::start(backend).await;
        let asked = suite.publish(ticket("a")).await;
        let leases = suite.pull(1).await;
        let event_id = asked["eventId"].as_str().unwrap();
        let portal = Product::with(&suite.hub, "portal", &["hub:events.publish"]).await;
        portal.publish(vec![caused_by("ticket.other", "1", "evt_0")]).await;
        let caused = portal.publish(vec![caused_by("ticket.shown", "2", event_id)]).await;
        suite.ack(&leases[0]).await;
        let done = suite.explain(&asked).await;
        assert_eq!(done.results("EVT_FOLLOW_UP"), ("PASS", "PASS"));
        let followed = done.evidence("EVT_FOLLOW_UP", "event_id");
        assert_eq!(followed, &json!(caused.results[0].event_id));
        assert!(done.summary().ends_with("an event followed from it."), "{}", done.summary());
    }

    async fn an_event_that_waits_for_its_retry_goes_on_by_itself(backend: Backend) {
        let suite = Suite::start(backend).await;
        let asked = suite.publish(ticket("a")).await;
        let leases = suite.pull(1).await;
        suite.nack(&leases[0], NackAction::Retry, "no connection").await;
        let waits = suite.explain(&asked).await;
        assert_eq!((waits.verdict(), waits.cause()), ("IN_PROGRESS", ""), "{waits:?}");
        assert_eq!(waits.evidence("EVT_ACKED", "error"), "no connection");
        let due = waits.evidence("EVT_ACKED", "next_attempt_time");
        assert_eq!(&waits.0["expectBy"], due);
        assert_eq!(waits.fixes()[0]["actor"], "FIX_ACTOR_WAIT");
    }

    async fn an_event_that_failed_for_good_is_told_with_its_error(backend: Backend) {
        let suite = Suite::start(backend).await;
        let asked = suite.publish(ticket("a")).await;
        let leases = suite.pull(1).await;
        suite.nack(&leases[0], NackAction::Fail, "no such customer").await;
        let failed = suite.explain(&asked).await;
        assert_eq!((failed.verdict(), failed.cause()), ("BLOCKED", "EVT_ACKED"), "{failed:?}");
        assert_eq!(failed.evidence("EVT_ACKED", "error"), "no such customer");
        assert!(failed.summary().contains("no such customer"), "{}", failed.summary());
        assert_eq!(failed.rpcs(), ["Redeliver"]);
    }

    async fn an_event_that_its_consumer_skipped_is_told_with_the_reason(backend: Backend) {
        let suite = Suite::start(backend).await;
        let asked = suite.publish(ticket("a")).await;
        let leases = suite.pull(1).await;
        suite.nack(&leases[0], NackAction::Skip, "not ours").await;
        let skipped = suite.explain(&asked).await;
        assert_eq!((skipped.verdict(), skipped.cause()), ("BLOCKED", "EVT_CONSUMER_OUTCOME"));
        assert_eq!(skipped.evidence("EVT_CONSUMER_OUTCOME", "reason"), "not ours");
        assert_eq!(skipped.results("EVT_ACKED").0, "PASS");
        assert_eq!(skipped.rpcs(), ["Redeliver"]);
    }

    async fn what_was_delivered_later_by_a_call_is_explained_by_what_became_of_it(
        backend: Backend,
    ) {
        let suite = Suite::start(backend).await;
        // It stays as it was: nobody asks for it there.
        let own = named("portal-own", of_types(&["ticket.*"]));
        let owner = Owner::new(&suite.hub, "portal").await;
        owner.create(own).await;
        let (all, _) = owner.list(ListSubscriptionsRequest::default()).await.unwrap();
        let default = all.into_iter().find(|one| one.name == "portal").unwrap();
        switch(&suite.hub, "psa", "portal", false).await;
        let asked = suite.publish(ticket("a")).await;
        switch(&suite.hub, "psa", "portal", true).await;
        let fixed = suite.explain(&asked).await;
        let code = "EVT_INTEGRATION_ENABLED";
        assert_eq!((fixed.verdict(), fixed.cause()), ("FIXED_SINCE", code), "{fixed:?}");
        let again = RedeliverRequest {
            event_ids: vec![asked["eventId"].as_str().unwrap().to_owned()],
            subscription_id: default.subscription_id,
            ..RedeliverRequest::default()
        };
        let started = redeliver(&suite.hub, again).await.unwrap();
        ended(&suite.hub, started.job).await;
        let queued = suite.explain(&asked).await;
        assert_eq!(queued.cause(), "EVT_SUBSCRIBER_CONNECTED", "nobody takes it: {queued:?}");
        switch(&suite.hub, "psa", "portal", false).await;
        let queued = suite.explain(&asked).await;
        assert_eq!(queued.cause(), "EVT_SUBSCRIBER_CONNECTED", "it has it: {queued:?}");
        let first = queued.fixes()[0].to_string();
        assert!(!first.contains("Integration"), "it is of no use: {first}");
        switch(&suite.hub, "psa", "portal", true).await;
        let leases = suite.pull(1).await;
        suite.nack(&leases[0], NackAction::Fail, "no such customer").await;
        let failed = suite.explain(&asked).await;
        assert_eq!((failed.verdict(), failed.cause()), ("BLOCKED", "EVT_ACKED"), "{failed:?}");
        assert_eq!(failed.results(code), ("FAIL", "PASS"), "what was decided stays");
        assert!(failed.summary().contains("no such customer"), "{}", failed.summary());
    }

    async fn an_earlier_event_of_its_key_that_waits_is_named(backend: Backend) {
        let suite = Suite::start(backend).await;
        let first = suite.publish(of_key("a", "ticket/1")).await;
        let second = suite.publish(of_key("b", "ticket/1")).await;
        let leases = suite.pull(10).await;
        assert_eq!(leases.len(), 1);
        let behind = suite.explain(&second).await;
        assert_eq!(behind.verdict(), "IN_PROGRESS", "the one before is worked on");
        suite.nack(&leases[0], NackAction::Retry, "busy").await;
        let blocked = suite.explain(&second).await;
        let code = "EVT_NOT_BLOCKED_BY_EARLIER";
        assert_eq!((blocked.verdict(), blocked.cause()), ("BLOCKED", code), "{blocked:?}");
        assert_eq!(blocked.evidence(code, "blocked_by"), &first["eventId"]);
        assert_eq!(blocked.evidence(code, "error"), "busy");
        assert_eq!(blocked.fixes()[0]["actor"], "FIX_ACTOR_WAIT");
        suite.hub.clock.advance(Duration::from_secs(120));
        let again = suite.pull(10).await;
        suite.ack(&again[0]).await;
        assert_eq!(suite.explain(&second).await.results(code), ("PASS", "PASS"));
    }
}
