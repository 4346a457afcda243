//! What Publish refuses, with the reason and the variables of the contract.

use hub_client::{Attr, CloudEvent, CloudEventAttributeValue, Data};
use prost::Message;
use prost_types::Timestamp;

use super::{
    Product, attribute, batch, earliest, event, large_ticket, numbered, text, ticket,
    with_attributes,
};
use crate::support::TestHub;

const MIB: usize = 1 << 20;

/// An event that is wrong in one attribute, and the attribute's name.
type Wrong = (CloudEvent, String);

/// Wrong in a field of its own.
fn wrong_fields() -> Vec<Wrong> {
    let long = "x".repeat(1025);
    let with_source = |source: &str| CloudEvent {
        source: source.to_owned(),
        ..ticket("a")
    };
    let with_version = |version: &str| CloudEvent {
        spec_version: version.to_owned(),
        ..ticket("a")
    };
    let mut with_text = ticket("a");
    with_text.data = Some(Data::TextData("a\0b".into()));
    let ids = ["", &long, "a\0b"].map(|id| (ticket(id), "id"));
    let sources = ["", &long, "/with space", "/<tag>", "/a\0b"];
    let sources = sources.map(|source| (with_source(source), "source"));
    let versions = ["", "0.3"].map(|version| (with_version(version), "specversion"));
    let kinds = [
        "",
        &long[..256],
        "ticket..created",
        ".ticket",
        "ticket.",
        "ticket.*",
        "ticket created",
        "a\0b",
    ];
    let kinds = kinds.map(|kind| (event(kind, "a"), "type"));
    let all = ids.into_iter().chain(sources).chain(versions).chain(kinds);
    let all = all.chain([(with_text, "text_data")]);
    all.map(|(event, name)| (event, name.to_owned())).collect()
}

/// Wrong in the map of attributes.
fn wrong_attributes() -> Vec<Wrong> {
    let long = "x".repeat(1025);
    let too_late = Timestamp {
        seconds: 0,
        nanos: 1_000_000_000,
    };
    let nothing = CloudEventAttributeValue { attr: None };
    let values = [
        ("Subject", text("x")),
        ("with-dash", text("x")),
        ("", text("x")),
        (&long[..65], text("x")),
        ("id", text("x")),
        ("source", text("x")),
        ("specversion", text("1.0")),
        ("type", text("x")),
        ("data", text("x")),
        ("extension", nothing),
        ("extension", text(&long)),
        ("extension", text("a\0b")),
        ("extension", attribute(Attr::CeBytes(vec![1; 1025].into()))),
        ("extension", attribute(Attr::CeTimestamp(too_late))),
        ("subject", text("")),
        ("subject", attribute(Attr::CeInteger(1))),
        ("partitionkey", text("")),
        ("datacontenttype", attribute(Attr::CeBoolean(true))),
        ("time", text("2026-01-01T00:00:00Z")),
        ("dataschema", attribute(Attr::CeInteger(1))),
    ];
    let mut many = ticket("a");
    for number in 0..65 {
        many.attributes.insert(format!("a{number}"), text("x"));
    }
    let all = values.into_iter().map(|(name, value)| {
        let event = with_attributes(ticket("a"), &[(name, value)]);
        (event, name.to_owned())
    });
    all.chain([(many, "attributes".to_owned())]).collect()
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
        for (event, attribute) in wrong_fields().into_iter().chain(wrong_attributes()) {
            let shown = format!("{event:?}");
            let error = psa.send(batch(vec![ticket("good"), event])).await.unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{shown}");
            assert_eq!(error.reason(), Some("EVENT_INVALID"), "{shown}");
            assert_eq!(error.metadata()["index"], "1", "{shown}");
            assert_eq!(error.metadata()["attribute"], attribute, "{shown}");
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
