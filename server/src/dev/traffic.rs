//! A small simulated suite: its products publish what the catalogue says they publish.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use hub_client::{Attr, CloudEvent, CloudEventAttributeValue, Data, Hub, Publisher};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Three events per second.
const INTERVAL: Duration = Duration::from_millis(333);

const CUSTOMERS: [&str; 5] = ["Acme", "Globex", "Initech", "Umbrella", "Wayne Enterprises"];
const TROUBLES: [&str; 4] = [
    "Printer on fire",
    "VPN is slow",
    "Mailbox is full",
    "Laptop does not start",
];

/// What happens, in turn: product, type, and what it is about.
const STORY: [(&str, &str, &str); 7] = [
    ("psa", "ticket.created", "ticket"),
    ("rmm", "alert.triggered", "device"),
    ("crm", "company.updated", "company"),
    ("psa", "ticket.created", "ticket"),
    ("books", "invoice.created", "invoice"),
    ("security", "alert.triggered", "device"),
    ("psa", "company.updated", "company"),
];

/// Publishes until `stop`, each event with the key of its product.
pub async fn run(url: String, keys: BTreeMap<String, String>, stop: CancellationToken) {
    let mut publishers: HashMap<&str, Publisher> = HashMap::new();
    for (product, ..) in STORY {
        let Some(key) = keys.get(product) else {
            continue;
        };
        match Hub::builder(url.as_str()).api_key(key).connect_lazy() {
            Ok(hub) => {
                publishers.entry(product).or_insert_with(|| hub.publisher());
            }
            Err(error) => tracing::warn!("{product} cannot publish: {error}"),
        }
    }
    let mut ticks = tokio::time::interval(INTERVAL);
    for number in 0_usize.. {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        let (product, kind, noun) = STORY[number % STORY.len()];
        let Some(publisher) = publishers.get(product) else {
            continue;
        };
        let event = event(product, kind, noun, number);
        let published = tokio::select! {
            () = stop.cancelled() => break,
            published = publisher.publish(event) => published,
        };
        if let Err(error) = published {
            tracing::warn!("{product} could not publish {kind}: {error}");
        }
    }
}

fn event(product: &str, kind: &str, noun: &str, number: usize) -> CloudEvent {
    let about = number % 50 + 1;
    let text = |value: String| CloudEventAttributeValue {
        attr: Some(Attr::CeString(value)),
    };
    CloudEvent {
        id: hub_core::id::new("demo"),
        source: format!("/{product}/demo"),
        spec_version: "1.0".to_owned(),
        r#type: kind.to_owned(),
        attributes: [
            ("subject".to_owned(), text(format!("{noun}/{about}"))),
            (
                "datacontenttype".to_owned(),
                text("application/json".to_owned()),
            ),
        ]
        .into(),
        data: Some(Data::TextData(data(kind, about, number).to_string())),
    }
}

fn data(kind: &str, about: usize, number: usize) -> Value {
    let customer = CUSTOMERS[number % CUSTOMERS.len()];
    match kind {
        "ticket.created" => {
            json!({"id": about, "customer": customer, "title": TROUBLES[number % TROUBLES.len()]})
        }
        "invoice.created" => {
            let total = 90 + number % 400;
            json!({"id": about, "customer": customer, "total": total, "currency": "EUR"})
        }
        "alert.triggered" => json!({"device": about, "customer": customer, "severity": "warning"}),
        _ => json!({"id": about, "name": customer}),
    }
}
