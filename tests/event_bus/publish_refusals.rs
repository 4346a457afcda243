//! What Publish refuses, with the reason and the variables of the contract.

use hub_client::{Attr, CloudEvent, Data};
use prost::Message;
use prost_types::Timestamp;

use super::{
    Product, attribute, batch, earliest, event, large_ticket, numbered, text, ticket,
    with_attributes,
};
use crate::support::TestHub;

const MIB: usize = 1 << 20;

/// An event that is wrong in one attribute, and which one.
fn invalid() -> Vec<(CloudEvent, &'static str)> {
    let a = || ticket("a");
    let with = |name: &str, value| with_attributes(ticket("a"), &[(name, value)]);
    let nothing = hub_client::CloudEventAttributeValue { attr: None };
    let late = Attr::CeTimestamp(Timestamp {
        seconds: 0,
        nanos: 1_000_000_000,
    });
    let long = "x".repeat(1025);
    let mut many = a();
    for number in 0..65 {
        many.attributes.insert(format!("a{number}"), text("x"));
    }
    vec![
        (ticket(""), "id"),
        (ticket(&long), "id"),
        (ticket("a\0b"), "id"),
        (
            CloudEvent {
                source: String::new(),
                ..a()
            },
            "source",
        ),
        (
            CloudEvent {
                source: long.clone(),
                ..a()
            },
            "source",
        ),
        (
            CloudEvent {
                source: "/with space".into(),
                ..a()
            },
            "source",
        ),
        (
            CloudEvent {
                source: "/<tag>".into(),
                ..a()
            },
            "source",
        ),
        (
            CloudEvent {
                spec_version: String::new(),
                ..a()
            },
            "specversion",
        ),
        (
            CloudEvent {
                spec_version: "0.3".into(),
                ..a()
            },
            "specversion",
        ),
        (event("", "a"), "type"),
        (event(&"x".repeat(256), "a"), "type"),
        (event("ticket..created", "a"), "type"),
        (event(".ticket", "a"), "type"),
        (event("ticket.", "a"), "type"),
        (event("ticket.*", "a"), "type"),
        (event("ticket created", "a"), "type"),
        (many, "attributes"),
        (with("Subject", text("x")), "Subject"),
        (with("with-dash", text("x")), "with-dash"),
        (with("", text("x")), ""),
        (with(&"x".repeat(65), text("x")), "xxxxx"),
        (with("id", text("x")), "id"),
        (with("specversion", text("1.0")), "specversion"),
        (with("data", text("x")), "data"),
        (with("extension", nothing), "extension"),
        (with("extension", text(&long)), "extension"),
        (with("extension", text("a\0b")), "extension"),
        (
            with("extension", attribute(Attr::CeBytes(vec![1; 1025].into()))),
            "extension",
        ),
        (with("extension", attribute(late)), "extension"),
        (with("subject", text("")), "subject"),
        (with("subject", attribute(Attr::CeInteger(1))), "subject"),
        (with("partitionkey", text("")), "partitionkey"),
        (
            with("datacontenttype", attribute(Attr::CeBoolean(true))),
            "datacontenttype",
        ),
        (with("time", text("2026-01-01T00:00:00Z")), "time"),
        (
            with("dataschema", attribute(Attr::CeInteger(1))),
            "dataschema",
        ),
        (
            CloudEvent {
                data: Some(Data::TextData("a\0b".into())),
                ..a()
            },
            "text_data",
        ),
    ]
}

/// An event of exactly so many bytes.
fn sized(id: &str, bytes: usize) -> CloudEvent {
    let less = large_ticket(id, bytes - 64);
    let missing = bytes - less.encoded_len();
    let event = large_ticket(id, bytes - 64 + missing);
    assert_eq!(event.encoded_len(), bytes);
    event
}

both_databases! {
    async fn an_event_that_breaks_a_rule_is_refused_with_its_attribute(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        for (event, attribute) in invalid() {
            let shown = format!("{event:?}");
            let error = psa.send(batch(vec![ticket("good"), event])).await.unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{shown}");
            assert_eq!(error.reason(), Some("EVENT_INVALID"), "{shown}");
            assert_eq!(error.metadata()["index"], "1", "{shown}");
            let told = &error.metadata()["attribute"];
            assert!(told == attribute || (attribute.len() > 4 && told.starts_with(attribute)));
        }
        assert_eq!(portal.dump_ids(earliest()).await, [""; 0]);
    }

    async fn an_event_of_a_mebibyte_is_stored_and_a_larger_one_refused(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let error = psa.send(batch(vec![ticket("a"), sized("b", MIB + 1)])).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert_eq!(error.reason(), Some("EVENT_TOO_LARGE"));
        assert_eq!(error.metadata()["index"], "1");
        assert_eq!(error.metadata()["size"], (MIB + 1).to_string());
        assert_eq!(error.metadata()["limit"], MIB.to_string());
        psa.publish(vec![sized("b", MIB)]).await;
        assert_eq!(portal.dump_ids(earliest()).await, ["b"]);
    }

    async fn a_batch_of_too_many_events_or_bytes_is_refused(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let thousand: Vec<_> = numbered("n", 1000).iter().map(|id| ticket(id)).collect();
        let mut more = thousand.clone();
        more.push(ticket("one more"));
        let error = psa.send(batch(more)).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert_eq!(error.reason(), Some("BATCH_TOO_LARGE"));
        assert_eq!(error.metadata()["count"], "1001");
        let large: Vec<_> = numbered("l", 5).iter().map(|id| sized(id, MIB - 100_000)).collect();
        let error = psa.send(batch(large)).await.unwrap_err();
        assert_eq!(error.reason(), Some("BATCH_TOO_LARGE"));
        assert_eq!(error.metadata()["size"], (5 * (MIB - 100_000)).to_string());
        assert_eq!(portal.dump_ids(earliest()).await, [""; 0]);
        psa.publish(thousand).await;
        let fits: Vec<_> = numbered("f", 4).iter().map(|id| sized(id, MIB)).collect();
        psa.publish(fits).await;
        assert_eq!(portal.dump_ids(earliest()).await.len(), 1004);
    }

    async fn a_type_is_published_by_its_products_only(hub: TestHub) {
        let (crm, auditor) = (Product::new(&hub, "crm").await, Product::auditor(&hub).await);
        let request = batch(vec![event("company.updated", "a"), ticket("b")]);
        let error = crm.send(request).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::PermissionDenied);
        assert_eq!(error.reason(), Some("EVENT_SOURCE_NOT_ALLOWED"));
        let told = ["index", "type", "product", "sources"].map(|name| &*error.metadata()[name]);
        assert_eq!(told, ["1", "ticket.created", "crm", "psa"]);
        assert_eq!(auditor.dump_ids(earliest()).await, [""; 0]);
    }

    async fn an_empty_batch_and_a_key_without_product_are_refused(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let error = psa.send(batch(Vec::new())).await.unwrap_err();
        assert_eq!(error.reason(), Some("FIELD_INVALID"));
        assert_eq!(error.violations()[0].field, "events");
        let nobody = Product::with(&hub, "", &["hub:events.publish"]).await;
        let error = nobody.send(batch(vec![ticket("a")])).await.unwrap_err();
        assert_eq!(error.reason(), Some("PRODUCT_REQUIRED"));
    }
}
