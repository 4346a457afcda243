//! ExplainEvent: what keeps a subscription from its events, and the fix that it names, run as it is
//! given.

use std::time::Duration;

use http::StatusCode;
use hub_proto::hub::event_bus::v1::{AckBatch, LeasedEvent, NackAction, PullRequest};
use serde_json::{Value, json};

use super::consumer::{nack, of_key};
use super::explain::{CHECKS, Explained, explain, run};
use super::log::switch;
use super::{Product, event, ticket};
use crate::support::{Backend, TestHub, post_json};

const PATIENCE: Duration = Duration::from_secs(20);
const BUS: &str = "hub.event_bus.v1.EventBus";
const CONNECTED: &str = "EVT_SUBSCRIBER_CONNECTED";

/// A publisher, and a consumer that manages its subscriptions.
struct Suite {
    hub: TestHub,
    psa: Product,
    portal: Product,
}

impl Suite {
    async fn new(hub: TestHub) -> Suite {
        let psa = Product::new(&hub, "psa").await;
        let portal = Product::with(&hub, "portal", &["hub:*"]).await;
        Suite { hub, psa, portal }
    }

    async fn publish(&self, event: hub_client::CloudEvent) -> Value {
        let published = self.psa.publish(vec![event]).await;
        json!({"eventId": published.results[0].event_id, "destination": "portal"})
    }

    /// A call of Portal.
    async fn call(&self, rpc: &str, body: Value) -> Value {
        let method = format!("{BUS}/{rpc}");
        let answer = post_json(self.hub.addr, &method, &self.portal.key, &body.to_string()).await;
        assert_eq!(
            answer.status,
            StatusCode::OK,
            "{rpc} {body}: {}",
            answer.text()
        );
        answer.json()
    }

    /// Events that come within some seconds.
    async fn pull(&self, subscription: &str) -> Vec<LeasedEvent> {
        let request = PullRequest {
            subscription: subscription.to_owned(),
            max_events: 100,
            wait: Some(prost_types::Duration {
                seconds: 10,
                nanos: 0,
            }),
            ..PullRequest::default()
        };
        self.portal.pull(request).await.events
    }

    /// Pulls until an event comes, and acknowledges all that came.
    async fn work(&self, subscription: &str) {
        let working = async {
            loop {
                let events = self.pull(subscription).await;
                let acks = AckBatch {
                    ack: events.iter().map(|event| event.lease_id.clone()).collect(),
                    ..AckBatch::default()
                };
                if !events.is_empty() {
                    self.portal.acknowledge(subscription, acks).await;
                    return;
                }
            }
        };
        let worked = tokio::time::timeout(PATIENCE, working).await;
        worked.expect("an event comes");
    }

    async fn nack(&self, lease: &LeasedEvent, action: NackAction, error: &str) {
        let acks = AckBatch {
            nack: vec![nack(lease, action, error)],
            ..AckBatch::default()
        };
        self.portal.acknowledge("portal", acks).await;
    }

    /// Runs the first fix, and waits for the end of its job if it made one.
    async fn mend(&self, explained: &Explained) {
        let answer = run(&self.hub, &self.portal.key, &explained.fixes()[0]).await;
        let Some(job_id) = answer["job"]["jobId"].as_str() else {
            return;
        };
        let method = "hub.platform.v1.Platform/GetJob";
        let body = json!({"jobId": job_id}).to_string();
        let ended = async {
            loop {
                let key = &self.hub.first_tenant().admin_key;
                let answer = post_json(self.hub.addr, method, key, &body).await.json();
                if answer["job"]["completeTime"].is_string() {
                    return answer["job"]["state"].clone();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let ended = tokio::time::timeout(PATIENCE, ended).await;
        assert_eq!(ended.expect("the job ends"), "JOB_STATE_SUCCEEDED");
    }

    async fn explain(&self, asked: &Value) -> Explained {
        explain(&self.hub, asked.clone()).await
    }

    /// It is blocked by this; once the first fix was run and the consumer worked, it is done.
    async fn is_mended(&self, asked: &Value, code: &str, subscription: &str) {
        let blocked = self.explain(asked).await;
        let found = (blocked.verdict(), blocked.cause());
        assert_eq!(found, ("BLOCKED", code), "{blocked:?}");
        self.mend(&blocked).await;
        self.work(subscription).await;
        let mended = self.explain(asked).await;
        assert_eq!(mended.verdict(), "WORKING", "{mended:?}");
    }
}

async fn default_id(suite: &Suite) -> String {
    let listed = suite
        .call("ListSubscriptions", json!({"product": "portal"}))
        .await;
    let mut all = listed["subscriptions"].as_array().unwrap().iter();
    let found = all.find(|one| one["name"] == "portal").unwrap();
    found["subscriptionId"].as_str().unwrap().to_owned()
}

both_databases! {
    async fn what_failed_for_good_is_delivered_again(hub: TestHub) {
        let suite = Suite::new(hub).await;
        let asked = suite.publish(ticket("a")).await;
        let leases = suite.pull("portal").await;
        suite.nack(&leases[0], NackAction::Fail, "no such customer").await;
        suite.is_mended(&asked, "EVT_ACKED", "portal").await;
    }

    async fn what_a_consumer_skipped_is_delivered_again(hub: TestHub) {
        let suite = Suite::new(hub).await;
        let asked = suite.publish(ticket("a")).await;
        let leases = suite.pull("portal").await;
        suite.nack(&leases[0], NackAction::Skip, "not ours").await;
        suite.is_mended(&asked, "EVT_CONSUMER_OUTCOME", "portal").await;
    }

    async fn what_a_seek_skipped_is_delivered_again(hub: TestHub) {
        let suite = Suite::new(hub).await;
        let asked = suite.publish(ticket("a")).await;
        suite.work("portal").await;
        let skipped = suite.publish(ticket("b")).await;
        let last = suite.psa.publish(vec![ticket("c")]).await;
        let to = json!({"afterSequence": last.results[0].sequence.to_string()});
        let id = default_id(&suite).await;
        suite.call("SeekSubscription", json!({"subscriptionId": id, "to": to})).await;
        assert_eq!(suite.explain(&asked).await.verdict(), "WORKING");
        // The seek ended what the consumer had, which is not why the event was skipped.
        assert_eq!(suite.explain(&skipped).await.cause(), "EVT_DELIVERED");
        suite.pull("portal").await;
        suite.is_mended(&skipped, "EVT_DELIVERED", "portal").await;
    }

    async fn what_was_not_routed_is_delivered_once_the_integration_is_on(hub: TestHub) {
        let suite = Suite::new(hub).await;
        suite.publish(ticket("before")).await;
        suite.work("portal").await;
        switch(&suite.hub, "psa", "portal", false).await;
        let asked = suite.publish(ticket("off")).await;
        let blocked = suite.explain(&asked).await;
        assert_eq!(blocked.cause(), "EVT_INTEGRATION_ENABLED");
        suite.mend(&blocked).await;
        let fixed = suite.explain(&asked).await;
        assert_eq!(fixed.verdict(), "FIXED_SINCE");
        suite.mend(&fixed).await;
        let under_way = suite.explain(&asked).await;
        assert_eq!(under_way.verdict(), "IN_PROGRESS", "{under_way:?}");
        assert_eq!(under_way.cause(), "", "what was decided is no obstacle any more");
        assert_eq!(under_way.results("EVT_INTEGRATION_ENABLED").0, "FAIL");
        suite.work("portal").await;
        let done = suite.explain(&asked).await;
        assert_eq!((done.verdict(), done.results("EVT_ACKED").0), ("WORKING", "PASS"));
    }

    async fn a_paused_subscription_is_resumed(hub: TestHub) {
        let suite = Suite::new(hub).await;
        suite.publish(ticket("a")).await;
        suite.work("portal").await;
        let id = default_id(&suite).await;
        let pause = json!({"subscriptionId": id, "reason": "maintenance"});
        suite.call("PauseSubscription", pause).await;
        let asked = suite.publish(ticket("b")).await;
        let paused = suite.explain(&asked).await;
        assert_eq!(paused.evidence(CONNECTED, "reason"), "maintenance");
        suite.is_mended(&asked, CONNECTED, "portal").await;
    }

    async fn an_earlier_event_that_blocks_its_key_is_delivered_again(hub: TestHub) {
        let suite = Suite::new(hub).await;
        suite.publish(ticket("a")).await;
        suite.work("portal").await;
        let retry = json!({"onExhausted": "EXHAUSTED_ACTION_BLOCK_KEY"});
        let id = default_id(&suite).await;
        let subscription = json!({"subscriptionId": id, "retry": retry});
        let update = json!({"subscription": subscription, "updateMask": "retry"});
        suite.call("UpdateSubscription", update).await;
        let first = suite.publish(of_key("b", "ticket/1")).await;
        let second = suite.publish(of_key("c", "ticket/1")).await;
        let leases = suite.pull("portal").await;
        assert_eq!(leases.len(), 1);
        suite.nack(&leases[0], NackAction::Fail, "no such customer").await;
        let code = "EVT_NOT_BLOCKED_BY_EARLIER";
        let blocked = suite.explain(&second).await;
        assert_eq!((blocked.verdict(), blocked.cause()), ("BLOCKED", code), "{blocked:?}");
        assert_eq!(blocked.evidence(code, "blocked_by"), &first["eventId"]);
        suite.mend(&blocked).await;
        suite.work("portal").await;
        assert_eq!(suite.explain(&second).await.results(code), ("PASS", "PASS"));
        suite.work("portal").await;
        assert_eq!(suite.explain(&second).await.verdict(), "WORKING");
    }

    async fn a_subscription_that_begins_after_the_event_is_given_it(hub: TestHub) {
        let suite = Suite::new(hub).await;
        let asked = suite.publish(event("own.kind", "a")).await;
        let filter = json!({"types": ["own.*"]});
        let subscription = json!({"name": "portal-own", "filter": filter});
        suite.call("CreateSubscription", json!({"subscription": subscription})).await;
        let later = suite.explain(&asked).await;
        assert_eq!(later.codes(), CHECKS);
        suite.is_mended(&asked, "EVT_SUBSCRIBER_EXISTS", "portal-own").await;
    }

    async fn a_filter_that_does_not_take_the_event_is_widened(hub: TestHub) {
        let suite = Suite::new(hub).await;
        let filter = json!({"types": ["own.kind"]});
        let subscription = json!({"name": "portal-own", "filter": filter});
        suite.call("CreateSubscription", json!({"subscription": subscription})).await;
        let asked = suite.publish(event("other.kind", "a")).await;
        // The subscription passes it.
        suite.publish(event("own.kind", "b")).await;
        suite.work("portal-own").await;
        let blocked = suite.explain(&asked).await;
        let code = "EVT_ROUTE_MATCHED";
        assert_eq!((blocked.verdict(), blocked.cause()), ("BLOCKED", code));
        assert_eq!(blocked.evidence(code, "wanted"), "own.kind");
        assert_eq!(blocked.evidence(code, "seen"), "other.kind");
        suite.mend(&blocked).await;
        let wide = suite.explain(&asked).await;
        assert_eq!((wide.results(code).1, wide.verdict()), ("PASS", "FIXED_SINCE"));
        assert_eq!((blocked.rpcs()[1], &blocked.fixes()[1]), ("Redeliver", &wide.fixes()[0]));
        // The event of before comes by the replay.
        suite.mend(&wide).await;
        suite.work("portal-own").await;
        assert_eq!(suite.explain(&asked).await.verdict(), "WORKING");
    }

    async fn a_filter_of_attributes_that_does_not_take_the_event_is_widened(hub: TestHub) {
        let suite = Suite::new(hub).await;
        let filter = json!({"types": ["own.*"], "attributes": {"subject": "ticket/7"}});
        let subscription = json!({"name": "portal-own", "filter": filter});
        suite.call("CreateSubscription", json!({"subscription": subscription})).await;
        let asked = suite.publish(event("own.kind", "a")).await;
        let blocked = suite.explain(&asked).await;
        let code = "EVT_ROUTE_MATCHED";
        assert_eq!(blocked.evidence(code, "filter"), "subject");
        assert_eq!(blocked.evidence(code, "wanted"), "ticket/7");
        suite.mend(&blocked).await;
        let next = suite.publish(event("own.kind", "b")).await;
        suite.work("portal-own").await;
        assert_eq!(suite.explain(&next).await.verdict(), "WORKING");
    }

    async fn a_filter_that_nothing_would_be_left_of_stays_beside_a_new_subscription(hub: TestHub) {
        let suite = Suite::new(hub).await;
        let filter = json!({"attributes": {"subject": "ticket/7"}});
        let subscription = json!({"name": "portal-own", "filter": filter});
        suite.call("CreateSubscription", json!({"subscription": subscription})).await;
        let asked = suite.publish(event("own.kind", "a")).await;
        let blocked = suite.explain(&asked).await;
        assert_eq!(blocked.rpcs(), ["CreateSubscription"], "which begins with the event");
        suite.is_mended(&asked, "EVT_ROUTE_MATCHED", "portal-own.kind").await;
        let seven = of_key("b", "ticket/7");
        suite.psa.publish(vec![hub_client::CloudEvent { r#type: "else.kind".into(), ..seven }]).await;
        suite.work("portal-own").await;
    }

    async fn a_filter_that_does_not_take_what_the_default_subscription_has_is_told(hub: TestHub) {
        let suite = Suite::new(hub).await;
        let filter = json!({"attributes": {"subject": "ticket/7"}});
        let subscription = json!({"name": "portal-own", "filter": filter});
        let made = suite.call("CreateSubscription", json!({"subscription": subscription})).await;
        let asked = suite.publish(ticket("a")).await;
        let code = "EVT_ROUTE_MATCHED";
        let told = suite.explain(&asked).await;
        assert_eq!(told.results(code), ("PASS", "PASS"));
        let own = &made["subscription"]["subscriptionId"];
        assert_eq!(told.evidence(code, "subscription"), own);
        assert_eq!(told.evidence(code, "wanted"), "ticket/7");
    }

    async fn a_type_outside_the_catalogue_is_subscribed_to_and_nobody_else_loses_it(hub: TestHub) {
        let suite = Suite::new(hub).await;
        let crm = Product::with(&suite.hub, "crm", &["hub:*"]).await;
        let filter = json!({"types": ["ticket.create"]});
        let body = json!({"subscription": {"name": "crm-own", "filter": filter}}).to_string();
        let method = format!("{BUS}/CreateSubscription");
        let made = post_json(suite.hub.addr, &method, &crm.key, &body).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.text());
        let asked = suite.publish(event("ticket.create", "a")).await;
        let blocked = suite.explain(&asked).await;
        let code = "EVT_ROUTE_MATCHED";
        assert_eq!(blocked.evidence(code, "nearest_type"), "ticket.created");
        suite.is_mended(&asked, code, "portal-ticket.create").await;
        let next = suite.psa.publish(vec![event("ticket.create", "c")]).await;
        assert_eq!(next.results[0].destinations, 2);
        let other = crm.publish(vec![event("ticket.create", "d")]).await;
        assert_eq!(other.results[0].destinations, 1, "who published it before, still may");
        // One that was never published: from now on.
        let search = json!({"type": "unheard.of", "subject": "a"});
        let never = suite.explain(&json!({"search": search, "destination": "portal"})).await;
        let mut fixes = never.fixes().iter();
        let create = json!(format!("{BUS}/CreateSubscription"));
        let subscribe = fixes.find(|fix| fix["rpc"] == create);
        run(&suite.hub, &suite.portal.key, subscribe.unwrap()).await;
        let next = suite.psa.publish(vec![event("unheard.of", "e")]).await;
        assert_eq!(next.results[0].destinations, 1);
    }

    async fn a_full_window_is_told_with_what_fills_it_and_skipped(backend: Backend) {
        let options = TestHub::options(backend);
        let hub = options.limits(|limits| limits.subscription_window_max = 2).start().await;
        let suite = Suite::new(hub).await;
        let first = suite.publish(of_key("a", "ticket/1")).await;
        suite.publish(of_key("b", "ticket/1")).await;
        let third = suite.publish(of_key("c", "ticket/2")).await;
        let leases = suite.pull("portal").await;
        assert_eq!(leases.len(), 1);
        suite.nack(&leases[0], NackAction::Retry, "busy").await;
        let full = suite.explain(&third).await;
        let code = "EVT_CURSOR_PASSED";
        assert_eq!(full.evidence(code, "oldest_unsettled"), &first["eventId"]);
        assert_eq!(full.fixes()[0]["destructive"], true);
        assert_eq!(full.fixes()[0]["affects"], "2");
        suite.is_mended(&third, code, "portal").await;
    }
}
