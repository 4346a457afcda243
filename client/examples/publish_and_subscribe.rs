//! Publishes a ticket as PSA and receives it as Portal.
//!
//! With `hub dev` running, set `HUB_PSA_KEY` and `HUB_PORTAL_KEY` to the keys that it printed:
//! `cargo run -p hub-client --example publish_and_subscribe`. `HUB_URL` is
//! `http://127.0.0.1:7070` unless set.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use hub_client::{CloudEvent, Data, Delivery, Hub, SubscribeOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = env::var("HUB_URL").unwrap_or_else(|_| "http://127.0.0.1:7070".to_owned());
    let psa = Hub::builder(&url)
        .api_key(env::var("HUB_PSA_KEY")?)
        .connect_lazy()?;
    let portal = Hub::builder(&url)
        .api_key(env::var("HUB_PORTAL_KEY")?)
        .connect_lazy()?;

    // An id of the ticket's own would do: publishing it twice stores it once.
    let id = format!(
        "example-{}",
        SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos()
    );
    let event = CloudEvent {
        id: id.clone(),
        source: "/psa/tickets".into(),
        spec_version: "1.0".into(),
        r#type: "ticket.created".into(),
        data: Some(Data::TextData(
            r#"{"id":42,"title":"Printer on fire"}"#.into(),
        )),
        ..Default::default()
    };
    let publisher = psa.publisher();
    let receipt = publisher.publish(event).await?;
    println!("published {id}, duplicate: {}", receipt.duplicate);

    let options = SubscribeOptions::default().types(["ticket.*"]).earliest();
    let mut deliveries = portal.subscribe(options);
    while let Some(delivery) = deliveries.next().await {
        let Delivery::Events(batch) = delivery? else {
            continue;
        };
        for record in batch.events {
            let Some(event) = record.event else { continue };
            if event.id == id {
                println!("received {id} as event {} of the bus", record.sequence);
                publisher.close().await?;
                return Ok(());
            }
        }
        // A real consumer stores batch.cursor here, and starts with `after(cursor)` next time.
    }
    Err("the stream ended before the event came".into())
}
