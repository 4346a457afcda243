//! A toggle takes effect at an exact sequence of the log, whatever is published meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hub_client::{Data, EventRecord};
use hub_proto::hub::event_bus::v1::subscribe_response::Frame;
use hub_proto::hub::event_bus::v1::{EventFilter, StartAt, SubscribeRequest, start_at};

use super::{Client, product};
use crate::support::TestHub;

/// Switches during the test.
const SWITCHES: usize = 12;
/// Publishers at once.
const PUBLISHERS: u64 = 8;

fn request(types: &[&str], all_products: bool) -> SubscribeRequest {
    SubscribeRequest {
        filter: Some(EventFilter {
            types: types.iter().map(|kind| (*kind).to_owned()).collect(),
            ..EventFilter::default()
        }),
        start: Some(StartAt {
            at: Some(start_at::At::AfterSequence(0)),
        }),
        all_products,
        stop_when_caught_up: true,
        ..SubscribeRequest::default()
    }
}

async fn read(client: &Client, request: SubscribeRequest) -> Vec<EventRecord> {
    let mut frames = client
        .hub
        .event_bus()
        .subscribe(request)
        .await
        .unwrap()
        .into_inner();
    let mut events = Vec::new();
    while let Some(frame) = frames.message().await.unwrap() {
        if let Some(Frame::Events(batch)) = frame.frame {
            events.extend(batch.events);
        }
    }
    events
}

/// Whether a switch event says on.
fn is_on(record: &EventRecord) -> bool {
    let Some(Data::TextData(json)) = record.event.as_ref().unwrap().data.clone() else {
        panic!("{record:?}");
    };
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["enabled"].as_bool().unwrap()
}

/// The sequences that must have been routed: those of tickets while the switch was on.
fn expected(log: &[EventRecord]) -> Vec<u64> {
    let mut on = true;
    let mut routed = Vec::new();
    for record in log {
        match record.event.as_ref().unwrap().r#type.as_str() {
            "integration.updated" => on = is_on(record),
            "ticket.created" if on => routed.push(record.sequence),
            _ => {}
        }
    }
    routed
}

/// Publishes tickets until it is told to stop; checks each answer's count of destinations later.
async fn publish(
    psa: Client,
    number: u64,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> Vec<(u64, u32)> {
    let mut answers = Vec::new();
    for count in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let answer = psa
            .publish("ticket.created", &format!("{number}-{count}"))
            .await
            .unwrap();
        answers.push((answer.results[0].sequence, answer.results[0].destinations));
        done.fetch_add(1, Ordering::Relaxed);
    }
    answers
}

async fn wait_for(done: &AtomicU64, count: u64) {
    let enough = async {
        while done.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), enough)
        .await
        .expect("they publish");
}

both_databases! {
    async fn events_before_it_are_routed_and_those_after_are_not(hub: TestHub) {
        let (admin, psa) = (Client::admin(&hub), product(&hub, "psa").await);
        let portal = product(&hub, "portal").await;
        let auditor = hub.key("cmdb", &["hub:events.read", "hub:events.read_all"]).await;
        let auditor = Client::new(&hub, &auditor);
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|number| {
                tokio::spawn(publish(psa.clone(), number, stop.clone(), done.clone()))
            })
            .collect();
        for switch in 0..SWITCHES {
            wait_for(&done, done.load(Ordering::Relaxed) + 5).await;
            admin.switch("psa", "portal", switch % 2 == 1).await.unwrap();
        }
        wait_for(&done, done.load(Ordering::Relaxed) + 5).await;
        stop.store(true, Ordering::Relaxed);
        let mut answers = Vec::new();
        for publisher in publishers {
            answers.extend(publisher.await.unwrap());
        }
        let log = read(&auditor, request(&["ticket.created", "integration.updated"], true)).await;
        assert_eq!(log.len(), answers.len() + SWITCHES);
        let routed = expected(&log);
        assert!(routed.len() > SWITCHES && routed.len() < answers.len(), "{}", routed.len());
        let seen = read(&portal, request(&[], false)).await;
        let seen: Vec<u64> = seen.iter().map(|record| record.sequence).collect();
        assert_eq!(seen, routed);
        // The publishers were told the same: portal and hub, or hub alone.
        for (sequence, destinations) in answers {
            let expected = 1 + u32::from(routed.binary_search(&sequence).is_ok());
            assert_eq!(destinations, expected, "sequence {sequence}");
        }
    }

    async fn the_past_stays_as_it_was_also_after_a_restart(hub: TestHub) {
        let mut hub = hub;
        let psa = hub.key("psa", &["hub:events.publish"]).await;
        let portal = hub.key("portal", &["hub:events.read"]).await;
        for (id, on) in [("1", true), ("2", false), ("3", true), ("4", false)] {
            Client::admin(&hub).switch("psa", "portal", on).await.unwrap();
            Client::new(&hub, &psa).publish("ticket.created", id).await.unwrap();
        }
        hub.restart().await;
        let seen = read(&Client::new(&hub, &portal), request(&[], false)).await;
        let ids: Vec<_> = seen.into_iter().map(|record| record.event.unwrap().id).collect();
        assert_eq!(ids, ["1", "3"]);
        let published = Client::new(&hub, &psa).publish("ticket.created", "5").await.unwrap();
        assert_eq!(published.results[0].destinations, 1, "it is still off");
    }
}
