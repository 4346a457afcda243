//! What one process stores, the others see: soon by hints, and within a second without.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use http::Method;
use hub_client::proto::hub::event_bus::v1::PublishRequest;
use hub_client::{CloudEvent, Delivery, Hub, SubscribeOptions};
use tokio::sync::mpsc;

use super::Fleet;
use crate::durability::load;
use crate::support::request;

const EVENTS: usize = 200;
/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn event(id: String) -> CloudEvent {
    CloudEvent {
        id,
        source: "/psa/hints".into(),
        spec_version: "1.0".into(),
        r#type: "ticket.created".into(),
        ..CloudEvent::default()
    }
}

/// Sends the ids that a hub shows, and "" when it is at the end of the log for the first time.
fn watch(hub: &Hub) -> mpsc::UnboundedReceiver<(String, Instant)> {
    let mut stream = hub.subscribe(SubscribeOptions::default().all_products());
    let (seen, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(delivery) = stream.next().await {
            let ids: Vec<String> = match delivery.unwrap() {
                Delivery::Events(batch) => {
                    let id = |record: hub_client::EventRecord| record.event.unwrap_or_default().id;
                    batch.events.into_iter().map(id).collect()
                }
                Delivery::CaughtUp(_) => vec![String::new()],
                _ => Vec::new(),
            };
            let now = Instant::now();
            for id in ids {
                // The test may have ended.
                let _ = seen.send((id, now));
            }
        }
    });
    receiver
}

/// How long events took from their acknowledgement at one process to a reader at another.
async fn propagation(fleet: &Fleet, events: usize) -> Vec<Duration> {
    let key = fleet.key().await;
    let (here, there) = (
        load::client(fleet.addr(0), &key),
        load::client(fleet.addr(1), &key),
    );
    let mut seen = watch(&there);
    assert_eq!(seen.recv().await.unwrap().0, "");
    let mut took = Vec::new();
    for number in 0..events {
        let id = number.to_string();
        let request = PublishRequest {
            events: vec![event(id.clone())],
            ..PublishRequest::default()
        };
        here.event_bus().publish(request).await.unwrap();
        let acknowledged = Instant::now();
        loop {
            let next = tokio::time::timeout(PATIENCE, seen.recv()).await;
            let (shown, at) = next.expect("it arrives").unwrap();
            if shown == id {
                took.push(at.saturating_duration_since(acknowledged));
                break;
            }
            assert_eq!(shown, "", "events arrive in order, each once");
        }
    }
    took.sort_unstable();
    took
}

fn report(what: &str, took: &[Duration]) {
    let at = |share: usize| took[(took.len() - 1) * share / 100];
    let (half, most, all) = (at(50), at(99), at(100));
    println!(
        "{what}: {} events, p50 {half:?}, p99 {most:?}, max {all:?}",
        took.len()
    );
}

async fn metric(fleet: &Fleet, hub: usize, name: &str) -> f64 {
    let page = request(fleet.addr(hub), Method::GET, "/metrics", &[], "").await;
    let line = page
        .text()
        .lines()
        .find(|line| line.starts_with(&format!("{name} ")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {}", page.text()));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_at_another_process_is_woken_by_a_hint() {
    let fleet = Fleet::start(2, &[]).await;
    let took = propagation(&fleet, EVENTS).await;
    report("from process to process with hints", &took);
    assert!(metric(&fleet, 0, "hub_journal_hints_sent_total").await >= 1.0);
    assert!(metric(&fleet, 1, "hub_journal_hints_received_total").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_hints_a_reader_at_another_process_sees_everything_too() {
    let fleet = Fleet::start(2, &["--notify-interval", "0s"]).await;
    let took = propagation(&fleet, 10).await;
    report("from process to process by polling", &took);
    for hub in 0..2 {
        let page = request(fleet.addr(hub), Method::GET, "/readyz?verbose", &[], "").await;
        assert!(!page.text().contains("journal-listen"), "{}", page.text());
        assert_eq!(
            metric(&fleet, hub, "hub_journal_hints_sent_total").await,
            0.0
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_commits_are_told_in_few_hints() {
    let fleet = Fleet::start(2, &["--notify-interval", "200ms"]).await;
    let before = metric(&fleet, 0, "hub_journal_hints_sent_total").await;
    let began = Instant::now();
    let took = propagation(&fleet, 50).await;
    let sent = metric(&fleet, 0, "hub_journal_hints_sent_total").await - before;
    report("from process to process with a hint in 200 ms", &took);
    let most = began.elapsed().as_secs_f64() / 0.2 + 2.0;
    assert!(sent <= most, "{sent} hints, {most} at most");
}
