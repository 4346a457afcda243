//! Bad input and broken surroundings: a clear error or a clean close, and nothing lost.

mod clients;
mod disk;
mod half_open;
mod postgres;
mod streams;

use hub_client::{CloudEvent, Data, Hub};

use crate::durability::load::{self, SCOPES};
use crate::support::{Tenant, TestProcess};

/// The client of a product that publishes and reads everything of a new tenant.
async fn tenant(process: &TestProcess) -> (Hub, String) {
    let operator = load::client(
        process.addr(),
        process.ready["operatorKey"].as_str().unwrap(),
    );
    let tenant = Tenant::create(&operator).await;
    let admin = load::client(process.addr(), &tenant.admin_key);
    let key = tenant.key(&admin, "psa", &SCOPES).await;
    (load::client(process.addr(), &key), key)
}

fn event(id: String, bytes: usize) -> CloudEvent {
    CloudEvent {
        id,
        source: "/psa/faults".into(),
        spec_version: "1.0".into(),
        r#type: "ticket.created".into(),
        data: Some(Data::TextData("x".repeat(bytes))),
        ..CloudEvent::default()
    }
}
