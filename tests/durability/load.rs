//! Publishers that note what was acknowledged, and the check of their notes against the log.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use hub_client::proto::hub::event_bus::v1::PublishRequest;
use hub_client::{CloudEvent, Data, Delivery, Hub, SubscribeOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// An answer that takes longer is given up; the batch is sent again.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// Between attempts against a hub that is down.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// A key that publishes and reads everything of its tenant.
pub const SCOPES: [&str; 3] = [
    "hub:events.publish",
    "hub:events.read",
    "hub:events.read_all",
];

/// Batches that one publisher sent, one after the other, with their sequences.
pub type Notes = Vec<Vec<(String, u64)>>;

/// Publishes until told to stop. Each batch is sent, unchanged, until it is acknowledged.
pub async fn publish(
    name: String,
    key: String,
    address: watch::Receiver<SocketAddr>,
    stop: CancellationToken,
) -> Notes {
    let mut notes = Notes::new();
    while !stop.is_cancelled() {
        let count = 1 + notes.len() * 7 % 5;
        let events: Vec<CloudEvent> = (0..count).map(|at| event(&name, notes.len(), at)).collect();
        let ids: Vec<String> = events.iter().map(|event| event.id.clone()).collect();
        let sequences = send(&key, &address, events).await;
        notes.push(ids.into_iter().zip(sequences).collect());
    }
    notes
}

fn event(name: &str, batch: usize, at: usize) -> CloudEvent {
    CloudEvent {
        id: format!("{name}-{batch}-{at}"),
        source: "/psa/load".into(),
        spec_version: "1.0".into(),
        r#type: "ticket.created".into(),
        data: Some(Data::TextData("x".repeat(100 + batch % 200))),
        ..CloudEvent::default()
    }
}

async fn send(
    key: &str,
    address: &watch::Receiver<SocketAddr>,
    events: Vec<CloudEvent>,
) -> Vec<u64> {
    loop {
        let at = *address.borrow();
        let hub = client(at, key);
        // One connection serves until it fails.
        loop {
            let request = PublishRequest {
                events: events.clone(),
                ..Default::default()
            };
            match hub.event_bus().publish(request).await {
                Ok(answer) => {
                    let results = answer.into_inner().results;
                    return results.into_iter().map(|result| result.sequence).collect();
                }
                Err(status) => {
                    let code = status.code();
                    let again = matches!(
                        code,
                        tonic::Code::Unavailable
                            | tonic::Code::DeadlineExceeded
                            | tonic::Code::Cancelled
                            | tonic::Code::Unknown
                            | tonic::Code::Internal
                    );
                    assert!(again, "a refusal under load: {status:?}");
                    tokio::time::sleep(RETRY_PAUSE).await;
                    if *address.borrow() != at {
                        break;
                    }
                }
            }
        }
    }
}

/// The client crate at an address.
pub fn client(at: SocketAddr, key: &str) -> Hub {
    Hub::builder(format!("http://{at}"))
        .api_key(key)
        .timeout(ATTEMPT_TIMEOUT)
        .connect_lazy()
        .unwrap()
}

/// Reads a tenant's whole log and holds it against the notes of its publishers.
/// Returns how many events were acknowledged.
pub async fn check(hub: &Hub, notes: &[Notes]) -> usize {
    let log = read(hub).await;
    for (index, (sequence, id)) in log.iter().enumerate() {
        assert_eq!(*sequence, index as u64 + 1, "the log is not dense at {id}");
    }
    let distinct: HashSet<&String> = log.iter().map(|(_, id)| id).collect();
    assert_eq!(distinct.len(), log.len(), "an event is in the log twice");
    let place: HashMap<&str, u64> = log.iter().map(|(seq, id)| (id.as_str(), *seq)).collect();
    let mut acknowledged = 0;
    for notes in notes {
        let mut last = 0;
        for batch in notes {
            for (id, sequence) in batch {
                let found = place.get(id.as_str());
                assert_eq!(found, Some(sequence), "{id} was acknowledged at {sequence}");
                assert!(
                    *sequence > last,
                    "{id} is before what its publisher sent earlier"
                );
                last = *sequence;
                acknowledged += 1;
            }
            let (first, end) = (batch[0].1, batch[batch.len() - 1].1);
            assert_eq!(
                end - first + 1,
                batch.len() as u64,
                "a batch was torn: {batch:?}"
            );
        }
    }
    acknowledged
}

/// A tenant's whole log: sequences and ids.
pub async fn read(hub: &Hub) -> Vec<(u64, String)> {
    let options = SubscribeOptions::default()
        .all_products()
        .earliest()
        .stop_when_caught_up();
    let mut stream = hub.subscribe(options);
    let mut log = Vec::new();
    while let Some(delivery) = stream.next().await {
        match delivery.unwrap() {
            Delivery::Events(batch) => {
                let told = |record: hub_client::EventRecord| {
                    (record.sequence, record.event.unwrap_or_default().id)
                };
                log.extend(batch.events.into_iter().map(told));
            }
            Delivery::Gap(gap) => panic!("nothing was removed, but {gap:?}"),
            _ => {}
        }
    }
    log
}
