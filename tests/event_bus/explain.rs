//! ExplainEvent: why an event of the log did, or did not, go to a destination. Each cause is made
//! for real, and the first fix is run exactly as it is given.

use http::{Method, StatusCode};
use hub_client::CloudEvent;
use hub_proto::hub::event_bus::v1::PublishResponse;
use serde_json::{Value, json};

use super::event_types::{Manager, entry};
use super::log::switch;
use super::{Product, event, ticket};
use crate::support::{TestHub, post_json, request};

const METHOD: &str = "hub.event_bus.v1.EventBus/ExplainEvent";

/// All checks, in their order.
pub(super) const CHECKS: [&str; 17] = [
    "EVT_RECEIVED",
    "EVT_VALID",
    "EVT_NOT_DEDUPED",
    "EVT_RETAINED",
    "EVT_SOURCE_SUBSCRIPTION",
    "EVT_DEST_SUBSCRIPTION",
    "EVT_INTEGRATION_ENABLED",
    "EVT_ROUTE_MATCHED",
    "EVT_DEST_PRINCIPAL_ALLOWED",
    "EVT_SUBSCRIBER_EXISTS",
    "EVT_SUBSCRIBER_CONNECTED",
    "EVT_CURSOR_PASSED",
    "EVT_NOT_BLOCKED_BY_EARLIER",
    "EVT_DELIVERED",
    "EVT_ACKED",
    "EVT_CONSUMER_OUTCOME",
    "EVT_FOLLOW_UP",
];

/// An answer as JSON shows it.
#[derive(Debug)]
pub(super) struct Explained(pub(super) Value);

/// Asks as the administrator of the first tenant.
pub(super) async fn explain(hub: &TestHub, asked: Value) -> Explained {
    explain_as(hub, &hub.first_tenant().admin_key, asked).await
}

pub(super) async fn explain_as(hub: &TestHub, key: &str, asked: Value) -> Explained {
    let answer = post_json(hub.addr, METHOD, key, &asked.to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{asked}: {}", answer.text());
    Explained(answer.json()["explanation"].clone())
}

/// Asks about the first event of a batch.
pub(super) async fn explain_first(
    hub: &TestHub,
    published: &PublishResponse,
    destination: &str,
) -> Explained {
    let event_id = &published.results[0].event_id;
    explain(
        hub,
        json!({"eventId": event_id, "destination": destination}),
    )
    .await
}

/// Runs a fix as it stands, by the key of who has to act.
pub(super) async fn run(hub: &TestHub, product_key: &str, fix: &Value) -> Value {
    let rpc = fix["rpc"]
        .as_str()
        .unwrap_or_else(|| panic!("no call: {fix}"));
    let policy = hub_proto::policy::method_policy(&format!("/{rpc}")).unwrap();
    assert_eq!(fix["requiredScope"], policy.scope);
    let cli = fix["cli"].as_str().unwrap();
    assert!(
        cli.starts_with("curl ") && cli.ends_with(&format!("{}/{rpc}", hub.url())),
        "{cli}"
    );
    let key = match fix["actor"].as_str().unwrap() {
        "FIX_ACTOR_PRODUCT" => product_key,
        _ => &hub.first_tenant().admin_key,
    };
    let answer = post_json(hub.addr, rpc, key, &fix["request"].to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{fix}: {}", answer.text());
    answer.json()
}

impl Explained {
    pub(super) fn verdict(&self) -> &str {
        self.0["verdict"]
            .as_str()
            .unwrap()
            .strip_prefix("VERDICT_")
            .unwrap()
    }

    pub(super) fn cause(&self) -> &str {
        self.0["primaryCause"].as_str().unwrap_or_default()
    }

    pub(super) fn summary(&self) -> &str {
        self.0["summary"].as_str().unwrap()
    }

    pub(super) fn checks(&self) -> &[Value] {
        self.0["checks"].as_array().unwrap()
    }

    pub(super) fn codes(&self) -> Vec<&str> {
        let checks = self.checks().iter();
        checks
            .map(|check| check["code"].as_str().unwrap())
            .collect()
    }

    pub(super) fn check(&self, code: &str) -> &Value {
        let mut checks = self.checks().iter();
        let found = checks.find(|check| check["code"] == code);
        found.unwrap_or_else(|| panic!("no {code} in {self:?}"))
    }

    /// The result of a check then and now.
    pub(super) fn results(&self, code: &str) -> (&str, &str) {
        let check = self.check(code);
        let of = |field: &str| match check[field].as_str() {
            Some(name) => name.strip_prefix("CHECK_RESULT_").unwrap(),
            None => "",
        };
        (of("result"), of("resultNow"))
    }

    /// The value of an evidence of a check.
    pub(super) fn evidence(&self, code: &str, key: &str) -> &Value {
        let evidence = self.check(code)["evidence"].as_array();
        let mut evidence = evidence.map_or(&[][..], Vec::as_slice).iter();
        let found = evidence.find(|evidence| evidence["key"] == key);
        let found = found.unwrap_or_else(|| panic!("no {key} of {code} in {self:?}"));
        let values = ["text", "number", "time", "span", "resource"];
        let mut values = values.iter().map(|kind| &found[*kind]);
        values.find(|value| !value.is_null()).unwrap()
    }

    pub(super) fn fixes(&self) -> &[Value] {
        self.0["fixes"].as_array().map_or(&[][..], Vec::as_slice)
    }

    pub(super) fn rpcs(&self) -> Vec<&str> {
        let rpcs = self.fixes().iter().filter_map(|fix| fix["rpc"].as_str());
        rpcs.map(|rpc| rpc.rsplit('/').next().unwrap()).collect()
    }

    /// It is blocked by this, and the first fix makes that pass now.
    pub(super) async fn is_cured(&self, hub: &TestHub, code: &str, again: Value) -> Explained {
        assert_eq!(
            (self.verdict(), self.cause()),
            ("BLOCKED", code),
            "{self:?}"
        );
        run(hub, "", &self.fixes()[0]).await;
        let cured = explain(hub, again).await;
        assert_eq!(cured.results(code).1, "PASS", "{cured:?}");
        cured
    }
}

async fn activate(hub: &TestHub, product: &str, active: bool) {
    let method = "hub.platform.v1.Platform/SetProductSubscription";
    let body = json!({"product": product, "active": active}).to_string();
    let answer = post_json(hub.addr, method, &hub.first_tenant().admin_key, &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
}

/// Why the log says that an event was not routed to a product.
async fn reason(hub: &TestHub, published: &PublishResponse, product: &str) -> String {
    let method = "hub.event_bus.v1.EventBus/GetEvent";
    let body = json!({"eventId": published.results[0].event_id}).to_string();
    let answer = post_json(hub.addr, method, &hub.first_tenant().admin_key, &body).await;
    let entry = answer.json()["entry"].clone();
    let mut deliveries = entry["deliveries"].as_array().unwrap().iter();
    let delivery = deliveries
        .find(|delivery| delivery["product"] == product)
        .unwrap();
    delivery["notRoutedReason"].as_str().unwrap().to_owned()
}

/// An event that the hub itself publishes while its own subscription is not active.
async fn of_inactive_hub(hub: &TestHub) -> String {
    let manager = Manager::new(hub).await;
    manager
        .put(entry("event_type.updated", &["portal"]))
        .await
        .unwrap();
    activate(hub, "hub", false).await;
    manager.put(entry("some.type", &["crm"])).await.unwrap();
    let search = json!({"search": {"type": "event_type.updated", "subject": "some.type"}});
    let found = explain(hub, search).await;
    found
        .evidence("EVT_RECEIVED", "event_id")
        .as_str()
        .unwrap()
        .to_owned()
}

both_databases! {
    async fn an_integration_that_was_off_is_told_and_turned_on(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        Product::new(&hub, "portal").await;
        switch(&hub, "psa", "portal", false).await;
        let off = psa.publish(vec![ticket("off")]).await;
        let asked = json!({"eventId": off.results[0].event_id, "destination": "portal"});
        let blocked = explain(&hub, asked.clone()).await;
        assert_eq!(blocked.codes(), CHECKS);
        assert_eq!(blocked.results("EVT_INTEGRATION_ENABLED"), ("FAIL", "FAIL"));
        assert_eq!(blocked.results("EVT_ROUTE_MATCHED"), ("PASS", "PASS"));
        assert_eq!(blocked.results("EVT_ACKED"), ("SKIPPED", ""));
        assert_eq!(reason(&hub, &off, "portal").await, "NOT_ROUTED_REASON_INTEGRATION_OFF");
        assert_eq!(blocked.rpcs(), ["SetIntegration", "Redeliver"]);
        let fixed = blocked.is_cured(&hub, "EVT_INTEGRATION_ENABLED", asked).await;
        assert_eq!(fixed.verdict(), "FIXED_SINCE");
        assert_eq!(fixed.cause(), "EVT_INTEGRATION_ENABLED");
        assert_eq!(fixed.rpcs(), ["Redeliver"], "to try again is enough");
        let off_at = fixed.evidence("EVT_INTEGRATION_ENABLED", "disabled_at").as_str().unwrap();
        let on_at = fixed.evidence("EVT_INTEGRATION_ENABLED", "enabled_at").as_str().unwrap();
        assert!(off_at < on_at);
        let event_id = &off.results[0].event_id;
        let summary = format!(
            "portal never got {event_id}: integration psa -> portal was off from {off_at} to \
             {on_at}."
        );
        assert_eq!(fixed.summary(), summary);
        // What was decided for other destinations stays.
        let to_hub = explain_first(&hub, &off, "hub").await;
        assert_eq!((to_hub.verdict(), to_hub.cause()), ("WORKING", ""));
        assert!(to_hub.fixes().is_empty());
    }

    async fn a_destination_that_was_not_active_is_told_and_activated(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        Product::new(&hub, "portal").await;
        activate(&hub, "portal", false).await;
        switch(&hub, "psa", "portal", false).await;
        let published = psa.publish(vec![ticket("a")]).await;
        let asked = json!({"eventId": published.results[0].event_id, "destination": "portal"});
        let blocked = explain(&hub, asked.clone()).await;
        let reason = reason(&hub, &published, "portal").await;
        assert_eq!(reason, "NOT_ROUTED_REASON_DESTINATION_INACTIVE");
        assert_eq!(blocked.results("EVT_INTEGRATION_ENABLED"), ("FAIL", "FAIL"));
        let active = ["SetProductSubscription", "SetIntegration", "Redeliver"];
        assert_eq!(blocked.rpcs(), active);
        let still = blocked.is_cured(&hub, "EVT_DEST_SUBSCRIPTION", asked.clone()).await;
        assert_eq!((still.verdict(), still.cause()), ("BLOCKED", "EVT_DEST_SUBSCRIPTION"));
        run(&hub, "", &still.fixes()[0]).await;
        assert_eq!(explain(&hub, asked).await.verdict(), "FIXED_SINCE");
    }

    async fn a_source_that_was_not_active_is_told_before_all_else(hub: TestHub) {
        let event_id = of_inactive_hub(&hub).await;
        activate(&hub, "portal", false).await;
        let asked = json!({"eventId": event_id, "destination": "portal"});
        let blocked = explain(&hub, asked.clone()).await;
        assert_eq!(blocked.results("EVT_DEST_SUBSCRIPTION"), ("PASS", "FAIL"));
        let cured = blocked.is_cured(&hub, "EVT_SOURCE_SUBSCRIPTION", asked).await;
        assert_eq!(cured.verdict(), "BLOCKED", "the destination was ended since");
        assert_eq!(cured.rpcs(), ["SetProductSubscription", "Redeliver"]);
    }

    async fn a_type_that_nothing_sends_to_the_destination_is_put_into_the_catalogue(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        Product::new(&hub, "portal").await;
        let published = psa.publish(vec![ticket("b")]).await;
        // The whole entry is repeated.
        let event_id = &published.results[0].event_id;
        let asked = json!({"eventId": event_id, "destination": "crm"});
        let blocked = explain(&hub, asked.clone()).await;
        assert_eq!(blocked.evidence("EVT_ROUTE_MATCHED", "destinations"), "portal hub");
        blocked.is_cured(&hub, "EVT_ROUTE_MATCHED", asked).await;
        let next = psa.publish(vec![ticket("d")]).await;
        assert_eq!(next.results[0].destinations, 3);
        let own = explain(&hub, json!({"eventId": event_id, "destination": "psa"})).await;
        assert_eq!((own.verdict(), own.cause()), ("BLOCKED", "EVT_ROUTE_MATCHED"));
        assert!(own.summary().contains("no product is sent its own events"), "{own:?}");
        let nowhere = psa.publish(vec![event("unheard.of", "e")]).await;
        let nowhere = explain(&hub, json!({"eventId": nowhere.results[0].event_id})).await;
        assert_eq!((nowhere.codes(), nowhere.cause()), (CHECKS.to_vec(), "EVT_ROUTE_MATCHED"));
    }

    async fn a_destination_without_a_key_gets_one_and_only_who_sees_keys_is_told(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let published = psa.publish(vec![ticket("a")]).await;
        let asked = json!({"eventId": published.results[0].event_id, "destination": "portal"});
        let looker = hub.key("", &["hub:diagnostics.read"]).await;
        let hidden = explain_as(&hub, &looker, asked.clone()).await;
        assert_eq!(hidden.results("EVT_DEST_PRINCIPAL_ALLOWED"), ("REDACTED", "REDACTED"));
        assert_eq!(hidden.cause(), "EVT_SUBSCRIBER_CONNECTED");
        assert!(!hidden.rpcs().contains(&"CreateApiKey"), "{hidden:?}");
        let blocked = explain(&hub, asked.clone()).await;
        let cured = blocked.is_cured(&hub, "EVT_DEST_PRINCIPAL_ALLOWED", asked.clone()).await;
        assert_eq!(cured.cause(), "EVT_SUBSCRIBER_CONNECTED");
        activate(&hub, "portal", false).await;
        let blocked = explain(&hub, asked.clone()).await;
        blocked.is_cured(&hub, "EVT_DEST_PRINCIPAL_ALLOWED", asked).await;
    }

    async fn without_a_destination_each_of_the_catalogue_is_told(hub: TestHub) {
        let crm = Product::new(&hub, "crm").await;
        for slug in ["psa", "portal", "voice"] {
            Product::new(&hub, slug).await;
        }
        switch(&hub, "crm", "voice", false).await;
        let published = crm.publish(vec![event("company.updated", "a")]).await;
        let all = explain(&hub, json!({"eventId": published.results[0].event_id})).await;
        assert_eq!((all.verdict(), all.cause()), ("BLOCKED", "EVT_INTEGRATION_ENABLED"));
        assert_eq!(all.checks().len(), 5 + 11 * 12);
        let code_of = |at: usize| all.codes()[5 + at * 12];
        assert!((0..11).all(|at| code_of(at) == "EVT_DEST_SUBSCRIPTION"), "{all:?}");
        let destination = |at: usize| {
            let evidence = &all.checks()[5 + at * 12]["evidence"];
            evidence[0]["text"].as_str().unwrap().to_owned()
        };
        let told: Vec<String> = (0..11).map(destination).collect();
        assert_eq!(told[0], "voice", "what needs somebody comes first");
        assert_eq!(told.last().unwrap(), "hub", "what works comes last");
        assert!(all.summary().ends_with("1 of 11 have it: hub."), "{}", all.summary());
        assert_eq!(all.rpcs()[..2], ["SetIntegration", "Redeliver"]);
        // Where nobody says that something should have happened, silence is no fault.
        let connected = "EVT_SUBSCRIBER_CONNECTED";
        let of_portal = 5 + told.iter().position(|slug| slug == "portal").unwrap() * 12;
        let check = all.checks()[of_portal..].iter().find(|check| check["code"] == connected);
        assert_eq!(check.unwrap()["result"], "CHECK_RESULT_UNKNOWN");
        let asked = explain_first(&hub, &published, "portal").await;
        assert_eq!(asked.results(connected), ("FAIL", "FAIL"));
    }

    async fn only_who_may_diagnose_is_told_and_of_the_own_tenant_only(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let published = psa.publish(vec![ticket("a")]).await;
        let asked = json!({"eventId": published.results[0].event_id}).to_string();
        let refused = post_json(hub.addr, METHOD, &psa.key, &asked).await;
        assert_eq!(refused.reason(), "SCOPE_MISSING");
        let stranger = hub.tenant().await;
        let refused = post_json(hub.addr, METHOD, &stranger.admin_key, &asked).await;
        assert_eq!(refused.reason(), "EVENT_NOT_FOUND");
        let admin = &hub.first_tenant().admin_key;
        for (asked, reason) in [
            (json!({"eventId": "evt_nonsense"}), "EVENT_NOT_FOUND"),
            (json!({"search": {"type": "a"}, "destination": "potral"}), "PRODUCT_NOT_FOUND"),
            (json!({"search": {"type": "a.*"}}), "FIELD_INVALID"),
            (json!({"search": {"type": "a", "subject": "a*b"}}), "FILTER_INVALID"),
            (json!({}), "FIELD_INVALID"),
        ] {
            let refused = post_json(hub.addr, METHOD, admin, &asked.to_string()).await;
            assert_eq!(refused.reason(), reason, "{asked}");
        }
    }

    async fn every_check_leads_to_its_page(hub: TestHub) {
        let search = json!({"search": {"type": "ticket.created"}, "destination": "portal"});
        let explained = explain(&hub, search).await;
        assert_eq!(explained.codes(), CHECKS);
        for check in explained.checks() {
            let url = check["docUrl"].as_str().unwrap();
            let path = url.strip_prefix(&hub.url()).unwrap();
            let page = request(hub.addr, Method::GET, path, &[], "").await;
            let title = format!("# {}\n", check["code"].as_str().unwrap());
            assert!(page.status == StatusCode::OK && page.text().starts_with(&title), "{url}");
        }
        let none = request(hub.addr, Method::GET, "/checks/NO_SUCH", &[], "").await;
        assert_eq!(none.status, StatusCode::NOT_FOUND);
        assert!(none.text().contains("EVT_RECEIVED"), "{}", none.text());
    }
}

/// An event that names its cause.
pub(super) fn caused_by(kind: &str, id: &str, cause: &str) -> CloudEvent {
    super::with_attributes(event(kind, id), &[("causationid", super::text(cause))])
}
