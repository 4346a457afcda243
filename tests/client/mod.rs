//! What the client crate does against the real server, also while that stops and starts.

mod api_key_layer;
mod consumer;
mod publisher;
mod subscriber;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use hub_client::{CloudEvent, Data, Delivery, Hub, Publisher, SubscribeOptions};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tower::service_fn;

use crate::support::{TestHub, TestProcess};

/// Events that a steady publisher keeps in flight.
const IN_FLIGHT: usize = 64;

/// Where the server is: it listens elsewhere after each start, and its clients follow.
#[derive(Clone)]
struct Address(Arc<Mutex<SocketAddr>>);

impl Address {
    fn new(addr: SocketAddr) -> Self {
        Address(Arc::new(Mutex::new(addr)))
    }

    fn moved(&self, addr: SocketAddr) {
        *self.0.lock().unwrap() = addr;
    }

    /// The client crate with a key, over TCP to wherever the server is.
    fn client(&self, key: &str) -> Hub {
        let address = self.0.clone();
        let connect = service_fn(move |_| {
            let addr = *address.lock().unwrap();
            async move {
                let stream = TcpStream::connect(addr).await?;
                stream.set_nodelay(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        Hub::builder("http://hub.test")
            .api_key(key)
            .connect_with(|endpoint| endpoint.connect_with_connector_lazy(connect))
            .unwrap()
    }
}

/// Keys of the products at both ends of `ticket.created`.
struct Keys {
    psa: String,
    portal: String,
}

impl Keys {
    async fn of(hub: &TestHub) -> Self {
        Keys {
            psa: hub.key("psa", &["hub:events.publish"]).await,
            portal: hub.key("portal", &["hub:events.read"]).await,
        }
    }
}

/// `ticket.created`, which goes from PSA to Portal.
fn ticket(number: u32) -> CloudEvent {
    CloudEvent {
        id: number.to_string(),
        source: "/psa/tickets".into(),
        spec_version: "1.0".into(),
        r#type: "ticket.created".into(),
        data: Some(Data::TextData(format!("{{\"number\":{number}}}"))),
        ..CloudEvent::default()
    }
}

/// Publishes tickets 0..`count` in order, some of them in flight, and tells how many are stored.
fn publish(publisher: Publisher, count: u32) -> (watch::Receiver<u32>, JoinHandle<()>) {
    publish_all(publisher, (0..count).map(ticket))
}

/// As [`publish`], these events.
fn publish_all(
    publisher: Publisher,
    events: impl Iterator<Item = CloudEvent> + Send + 'static,
) -> (watch::Receiver<u32>, JoinHandle<()>) {
    let (stored, progress) = watch::channel(0);
    let publishing = tokio::spawn(async move {
        let mut in_flight = VecDeque::new();
        for event in events {
            if in_flight.len() == IN_FLIGHT {
                settle(&mut in_flight, &stored).await;
            }
            in_flight.push_back(publisher.send(event).await.unwrap());
        }
        while !in_flight.is_empty() {
            settle(&mut in_flight, &stored).await;
        }
    });
    (progress, publishing)
}

async fn settle(in_flight: &mut VecDeque<hub_client::PendingReceipt>, stored: &watch::Sender<u32>) {
    in_flight.pop_front().unwrap().await.unwrap();
    stored.send_modify(|count| *count += 1);
}

/// Waits until so many are stored.
async fn reaches(progress: &mut watch::Receiver<u32>, count: u32) {
    progress.wait_for(|stored| *stored >= count).await.unwrap();
}

/// Sequences and ids of all tickets that Portal gets, read in one go.
async fn stored(portal: &Hub) -> Vec<(u64, String)> {
    let options = SubscribeOptions::default()
        .types(["ticket.created"])
        .earliest();
    let mut deliveries = portal.subscribe(options.stop_when_caught_up());
    let mut found = Vec::new();
    while let Some(delivery) = deliveries.next().await {
        if let Delivery::Events(batch) = delivery.unwrap() {
            let records = batch.events.into_iter();
            found.extend(records.map(|record| (record.sequence, record.event.unwrap().id)));
        }
    }
    found
}

/// Tickets 0..`count`, each once, in order, without a hole between their sequences.
fn assert_complete(found: &[(u64, String)], count: u32) {
    let numbers: Vec<u32> = found.iter().map(|(_, id)| id.parse().unwrap()).collect();
    assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    assert!(
        found.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1),
        "{found:?}"
    );
}

/// Ends a process as a power cut would, and starts it again.
async fn crash(process: &mut TestProcess, address: &Address) {
    process.kill().await;
    process.start_again().await;
    address.moved(process.addr());
}
