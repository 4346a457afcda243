//! JSON Schema of event types: what is refused when it is put, and when an event is published.

use hub_client::proto::hub::event_bus::v1::{EventType, PublishStreamRequest};
use hub_client::{Attr, Data};
use hub_proto::hub::event_bus::v1::PublishRequest;
use hub_proto::hub::event_bus::v1::publish_stream_response::Frame;

use super::event_types::{Manager, entry};
use super::{Product, attribute, batch, earliest, event, with_attributes};
use crate::support::TestHub;

const SCHEMA: &str = r#"{
    "type": "object",
    "properties": { "id": { "type": "integer" }, "priority": { "enum": ["low", "high"] } },
    "required": ["id"]
}"#;

fn deal() -> EventType {
    EventType {
        json_schema: SCHEMA.to_owned(),
        example: r#"{"id":42,"priority":"low"}"#.to_owned(),
        ..entry("deal.won", &["crm"])
    }
}

fn with_text(id: &str, json: &str) -> hub_client::CloudEvent {
    hub_client::CloudEvent {
        data: Some(Data::TextData(json.to_owned())),
        ..event("deal.won", id)
    }
}

fn with_bytes(id: &str, json: &str, content_type: &str) -> hub_client::CloudEvent {
    let content_type = attribute(Attr::CeString(content_type.to_owned()));
    let event = hub_client::CloudEvent {
        data: Some(Data::BinaryData(json.as_bytes().to_vec().into())),
        ..event("deal.won", id)
    };
    with_attributes(event, &[("datacontenttype", content_type)])
}

both_databases! {
    async fn data_that_does_not_match_the_schema_is_refused_with_its_places(hub: TestHub) {
        Manager::new(&hub).await.put(deal()).await.unwrap();
        let psa = Product::new(&hub, "psa").await;
        psa.publish(vec![with_text("1", r#"{"id":1}"#)]).await;
        psa.publish(vec![with_bytes("2", r#"{"id":1}"#, "application/json")]).await;
        let wrong = with_text("3", r#"{"id":"one","priority":"urgent"}"#);
        let events = vec![with_text("4", r#"{"id":1}"#), wrong];
        let error = psa.send(batch(events)).await.unwrap_err();
        assert_eq!(error.reason(), Some("SCHEMA_VIOLATION"));
        let metadata = error.metadata();
        assert_eq!((&*metadata["index"], &*metadata["type"]), ("1", "deal.won"));
        assert_eq!(metadata["path"], "/id");
        let fields: Vec<_> = error.violations().iter().map(|one| one.field.as_str()).collect();
        assert_eq!(fields, ["events[1].data/id", "events[1].data/priority"]);
        assert!(!format!("{error:?}").contains("urgent"), "{error:?}");
        for other in [
            with_bytes("5", r#"{"id":1}"#, "application/octet-stream"),
            with_text("6", "no JSON"),
            event("deal.won", "7"),
        ] {
            let error = psa.send(batch(vec![other])).await.unwrap_err();
            assert_eq!(error.reason(), Some("SCHEMA_VIOLATION"));
        }
        // Nothing of the refused batches was stored.
        let again = psa.publish(vec![with_text("4", r#"{"id":2}"#)]).await;
        assert!(!again.results[0].duplicate);
    }

    async fn an_independent_batch_loses_the_wrong_events_only(hub: TestHub) {
        Manager::new(&hub).await.put(deal()).await.unwrap();
        let (psa, crm) = (Product::new(&hub, "psa").await, Product::new(&hub, "crm").await);
        let events = vec![
            with_text("1", r#"{"id":1}"#),
            with_text("2", r#"{"id":[]}"#),
            with_text("3", r#"{"id":3}"#),
            event("deal.lost", "4"),
        ];
        let request = PublishRequest { independent: true, ..batch(events) };
        let results = psa.send(request).await.unwrap().results;
        let reasons = results.iter().map(|result| Some(&*result.error.as_ref()?.reason));
        let reasons: Vec<_> = reasons.collect();
        assert_eq!(reasons, [None, Some("SCHEMA_VIOLATION"), None, None]);
        assert_eq!(results[1].error.as_ref().unwrap().metadata["index"], "1");
        assert_eq!(results[3].sequence, results[0].sequence + 2);
        assert_eq!(crm.dump_ids(earliest()).await, ["1", "3"]);
    }

    async fn a_stream_of_events_is_checked_too(hub: TestHub) {
        Manager::new(&hub).await.put(deal()).await.unwrap();
        let psa = Product::new(&hub, "psa").await;
        let frame = PublishStreamRequest {
            frame: 1,
            continue_on_error: true,
            events: vec![with_text("1", "{}")],
            ..PublishStreamRequest::default()
        };
        let frames = futures_util::stream::iter([frame]);
        let mut answers = psa.bus.clone().publish_stream(frames).await.unwrap().into_inner();
        let problem = loop {
            let answer = answers.message().await.unwrap().expect("an answer to the frame");
            if let Some(Frame::Rejected(rejected)) = answer.frame {
                break rejected.problem.unwrap();
            }
        };
        assert_eq!(problem.reason, "SCHEMA_VIOLATION");
    }

    async fn a_schema_that_cannot_be_used_is_refused_with_its_place(hub: TestHub) {
        let manager = Manager::new(&hub).await;
        for (schema, position) in [
            ("{", "/"),
            (r#"{"properties":{"id":{"type":"number?"}}}"#, "/properties/id/type"),
            (r#"{"items":{"$ref":"https://example.com/a.json"}}"#, "/items/$ref"),
            (r##"{"$ref":"#"}"##, "/"),
            (r#"{"$schema":"http://json-schema.org/draft-07/schema#"}"#, "/$schema"),
        ] {
            let wrong = EventType { json_schema: schema.to_owned(), ..deal() };
            let error = manager.put(wrong).await.unwrap_err();
            assert_eq!(error.reason(), Some("SCHEMA_INVALID"), "{schema}");
            assert_eq!(error.metadata()["position"], position, "{schema}");
        }
        let example = r#"{"id":1,"priority":"none"}"#.to_owned();
        let error = manager.put(EventType { example, ..deal() }).await.unwrap_err();
        assert_eq!(error.reason(), Some("SCHEMA_INVALID"));
        assert_eq!(error.metadata()["position"], "/priority");
        assert!(error.message().starts_with("example "), "{error}");
    }

    async fn a_schema_can_be_changed_and_taken_away(hub: TestHub) {
        let manager = Manager::new(&hub).await;
        let psa = Product::new(&hub, "psa").await;
        let publish = async |id: &str| psa.send(batch(vec![with_text(id, r#"{"id":"x"}"#)])).await;
        manager.put(deal()).await.unwrap();
        assert!(publish("1").await.is_err());
        let schema = SCHEMA.replace("integer", "string");
        let changed = EventType { json_schema: schema, example: String::new(), ..deal() };
        manager.put(changed).await.unwrap();
        assert!(publish("2").await.is_ok());
        manager.put(deal()).await.unwrap();
        assert!(publish("3").await.is_err());
        manager.put(EventType { json_schema: String::new(), ..deal() }).await.unwrap();
        assert!(publish("4").await.is_ok());
    }
}
