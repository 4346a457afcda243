//! Metrics, log lines, traces and workers, as an operator sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::{Method, StatusCode};
use hub_server::telemetry::metrics::{Kind, METRICS};
use serde_json::Value;

use crate::support::{Backend, Command, TestHub, TestProcess, post_json, request};

const WHO_AM_I: &str = "hub.api_keys.v1.ApiKeys/WhoAmI";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// Names with kind and labels, as the page has them.
fn page() -> BTreeMap<String, (String, String)> {
    let page = include_str!("../../docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let row = |row: &str| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[2].replace('`', "");
        (
            cells[0].trim_end_matches('`').to_owned(),
            (cells[1].to_owned(), labels),
        )
    };
    rows.map(row).collect()
}

/// Names with the labels of each, as a scrape shows them.
fn shown(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut shown = BTreeMap::<String, BTreeSet<String>>::new();
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        let histogram = METRICS
            .iter()
            .filter(|metric| metric.kind == Kind::Histogram);
        let mut of = histogram.filter(|metric| name.starts_with(metric.name));
        let name = of.next().map_or(name, |metric| metric.name);
        let labels = rest
            .split('"')
            .step_by(2)
            .filter_map(|part| part.strip_suffix('='));
        let labels = labels.map(|label| label.trim_start_matches(['{', ',']).to_owned());
        let labels = labels.filter(|label| label != "le");
        shown.entry(name.to_owned()).or_default().extend(labels);
    }
    shown
}

#[test]
fn the_page_lists_exactly_the_metrics_there_are() {
    let listed = METRICS.iter().map(|metric| {
        let kind = format!("{:?}", metric.kind).to_lowercase();
        (metric.name.to_owned(), (kind, metric.labels.join(" ")))
    });
    assert_eq!(page(), listed.collect());
    let text = include_str!("../../docs/metrics.md");
    for metric in METRICS {
        assert!(
            text.contains(&format!("| {} |", metric.help)),
            "{}",
            metric.name
        );
    }
}

/// Portal takes an event and acknowledges it, which is answered after a checkpoint.
async fn consume_one(hub: &TestHub) {
    let key = hub.key("portal", &["hub:events.read"]).await;
    let call = async |method: &str, body: &str| {
        let method = format!("hub.event_bus.v1.EventBus/{method}");
        let answer = post_json(hub.addr, &method, &key, body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()
    };
    let pull = r#"{"subscription":"portal","maxEvents":1,"wait":"20s"}"#;
    let pulled = call("Pull", pull).await;
    let lease = pulled["events"][0]["leaseId"].as_str().unwrap();
    let acks = format!(r#"{{"subscription":"portal","acks":{{"ack":["{lease}"]}}}}"#);
    let acked = call("Acknowledge", &acks).await;
    assert_eq!(acked["results"][0]["outcome"], "ACK_OUTCOME_OK");
}

both_databases! {
    async fn what_is_shown_is_what_the_page_lists(hub: TestHub) {
        let key = hub.key("psa", &["hub:events.publish"]).await;
        let event = r#"{"events":[{"id":"1","source":"/psa","specVersion":"1.0",
            "type":"ticket.created","textData":"{}"}]}"#;
        let published = post_json(hub.addr, "hub.event_bus.v1.EventBus/Publish", &key, event).await;
        assert_eq!(published.status, StatusCode::OK, "{}", published.text());
        consume_one(&hub).await;
        let metrics = request(hub.addr, Method::GET, "/metrics", &[], "").await;
        let shown = shown(metrics.text());
        let labels = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect();
        let listed = METRICS.iter().map(|metric| (metric.name.to_owned(), labels(metric.labels)));
        assert_eq!(shown, listed.collect(), "{}", metrics.text());
        for decided in [
            "hub_event_decisions_total{dest=\"portal\",outcome=\"flows\",reason=\"\"} ",
            "hub_subscription_lag_seconds{dest=\"portal\"} ",
        ] {
            assert!(metrics.text().contains(decided), "{}", metrics.text());
        }
    }

    async fn a_worker_that_fails_is_seen_and_started_again(hub: TestHub) {
        let postgres = hub.core.db.is_postgres();
        // The hubs of one process share its metrics.
        let name = if postgres { "failing-on-postgres" } else { "failing-on-sqlite" };
        let (allow, allowed) = tokio::sync::watch::channel(false);
        hub.core.workers().every(name, Duration::from_millis(10), move || {
            let allowed = *allowed.borrow();
            async move { if allowed { Ok(()) } else { Err("on purpose") } }
        });
        let ready = |path: &'static str| request(hub.addr, Method::GET, path, &[], "");
        let until = async |status: StatusCode| loop {
            let answer = ready("/readyz").await;
            if answer.status == status {
                return answer;
            }
        };
        let told = until(StatusCode::SERVICE_UNAVAILABLE).await;
        assert!(told.text().contains(&format!("worker {name} failed\n")), "{}", told.text());
        let metrics = request(hub.addr, Method::GET, "/metrics", &[], "").await;
        let down = format!("hub_worker_up{{worker=\"{name}\"}} 0\n");
        assert!(metrics.text().contains(&down), "{}", metrics.text());
        let none = format!("hub_worker_restarts_total{{worker=\"{name}\",cause=\"error\"}} 0\n");
        assert!(!metrics.text().contains(&none), "{}", metrics.text());
        allow.send_replace(true);
        let told = until(StatusCode::OK).await;
        assert!(told.text().ends_with("workers ok\n"), "{}", told.text());
        let verbose = ready("/readyz?verbose").await;
        assert!(verbose.text().contains(&format!("worker {name} ok\n")), "{}", verbose.text());
    }

    async fn a_call_is_one_line_with_its_reason_its_id_and_the_callers_trace(backend: Backend) {
        let process = TestProcess::start(Command::Serve, backend, &[]).await;
        let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
        let headers = [("content-type", "application/json"), ("traceparent", &parent)];
        let path = format!("/{WHO_AM_I}");
        let refused = request(process.addr(), Method::POST, &path, &headers, "{}").await;
        assert_eq!(refused.reason(), "KEY_MISSING");
        let operator_key = process.ready["operatorKey"].as_str().unwrap();
        let answered = post_json(process.addr(), WHO_AM_I, operator_key, "{}").await;
        assert_eq!(answered.status, StatusCode::OK, "{}", answered.text());
        // Lines are written together, a moment later.
        process.log_until(answered.header("x-request-id")).await;
        let lines = lines(&process);
        let line = |call: &str| {
            let of_call = |line: &&Value| line["call"] == call && line["target"] == "rpc";
            let found: Vec<&Value> = lines.iter().filter(of_call).collect();
            assert_eq!(found.len(), 1, "{call}: {lines:?}");
            found[0]
        };
        let first = line(refused.header("x-request-id"));
        assert_eq!(first["method"], WHO_AM_I);
        assert_eq!(first["code"], "Unauthenticated");
        assert_eq!(first["reason"], "KEY_MISSING");
        assert_eq!(first["trace"], TRACE);
        let second = line(answered.header("x-request-id"));
        assert_eq!((&second["code"], &second["reason"]), (&"OK".into(), &"".into()));
        let trace = second["trace"].as_str().unwrap();
        assert!(trace.len() == 32 && trace != TRACE, "{second}");
        assert!(second["key"].as_str().unwrap().starts_with("key_"), "{second}");
    }
}

/// What a process logged.
fn lines(process: &TestProcess) -> Vec<Value> {
    let log = process.log();
    log.lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

/// The panic is in a task of this thread, so the hub of the test is not blamed for it.
#[tokio::test]
async fn a_worker_that_panics_is_seen_and_started_again() {
    let hub = TestHub::start(Backend::Sqlite).await;
    let name = "panicking-on-purpose";
    let mut rounds = 0;
    hub.core
        .workers()
        .every(name, Duration::from_millis(10), move || {
            rounds += 1;
            let round = rounds;
            async move {
                assert!(round != 1, "on purpose");
                Ok::<(), String>(())
            }
        });
    let mut statuses = Vec::new();
    while statuses.last() != Some(&StatusCode::OK) || statuses.len() < 2 {
        let told = request(hub.addr, Method::GET, "/readyz", &[], "").await;
        if statuses.last() != Some(&told.status) {
            statuses.push(told.status);
        }
    }
    let metrics = request(hub.addr, Method::GET, "/metrics", &[], "").await;
    let counted = format!("hub_worker_restarts_total{{worker=\"{name}\",cause=\"panic\"}} 1\n");
    assert!(metrics.text().contains(&counted), "{}", metrics.text());
}
