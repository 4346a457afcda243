use hub_proto::hub::event_bus::v1::CloudEvent;
use hub_proto::hub::event_bus::v1::cloud_event::cloud_event_attribute_value::Attr as Value;
use hub_proto::hub::event_bus::v1::cloud_event::{CloudEventAttributeValue, Data as Body};
use serde_json::json;

use super::*;
use crate::catalogue::EventType;

const TICKET: &str = r##"{
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "id": { "type": "integer" },
        "priority": { "enum": ["low", "normal", "high"] },
        "notes": { "type": "array", "items": { "$ref": "#/$defs/note" } }
    },
    "required": ["id"],
    "additionalProperties": false,
    "$defs": { "note": { "type": "string", "maxLength": 5 } }
}"##;

fn schema(text: &str) -> Schema {
    Schema::compile(text).unwrap()
}

fn refused(text: &str) -> String {
    Schema::compile(text).unwrap_err().to_string()
}

fn violations(schema: &Schema, data: &str) -> Vec<String> {
    let found = schema.check(data.as_bytes()).err().unwrap_or_default();
    found.iter().map(Problem::to_string).collect()
}

fn event(data: Option<Body>, content_type: &str) -> Bytes {
    let attr = Some(Value::CeString(content_type.to_owned()));
    let attributes = [(
        "datacontenttype".to_owned(),
        CloudEventAttributeValue { attr },
    )];
    let event = CloudEvent {
        r#type: "ticket.created".to_owned(),
        attributes: attributes
            .into_iter()
            .filter(|_| !content_type.is_empty())
            .collect(),
        data,
        ..CloudEvent::default()
    };
    event.encode_to_vec().into()
}

fn typed(text: &str, event: Bytes) -> Typed {
    Typed {
        index: 7,
        event,
        schema: Ok(Arc::new(schema(text))),
    }
}

#[test]
fn violations_are_told_with_their_places_and_without_the_data() {
    let ticket = schema(TICKET);
    assert_eq!(violations(&ticket, r#"{"id":1,"priority":"low"}"#), [""; 0]);
    let data = r#"{"priority":"secret!","notes":["ok","too long"],"x~/y":1}"#;
    let found = violations(&ticket, data).join("; ");
    for part in [
        r#"it needs the property "id""#,
        r#"/priority is not one of "low", "normal" or "high""#,
        "/notes/1 is longer than 5 characters",
    ] {
        assert!(found.contains(part), "{found}");
    }
    assert!(
        !found.contains("secret!") && !found.contains("too long"),
        "{found}"
    );
    assert_eq!(violations(&ticket, "[1]").len(), 1);
    assert!(
        violations(&ticket, "{\"id\":")
            .concat()
            .contains("is not JSON")
    );
}

#[test]
fn violations_are_few() {
    let numbers = schema(r#"{"items":{"type":"integer"}}"#);
    let data = json!(vec!["x"; 500]).to_string();
    assert_eq!(violations(&numbers, &data).len(), VIOLATIONS_MAX);
    // Of large data only the first place is looked for, or none where there are alternatives.
    let data = json!(vec!["x"; 100_000]).to_string();
    assert_eq!(violations(&numbers, &data).len(), 1);
    assert!(violations(&numbers, &data)[0].starts_with("/0 "));
    let either = schema(r#"{"items":{"anyOf":[{"type":"integer"},{"type":"null"}]}}"#);
    assert!(violations(&either, &data)[0].contains("too large to say where"));
}

#[test]
fn what_is_no_schema_is_refused_with_its_place() {
    assert!(refused("{").contains("is not JSON"));
    assert!(refused(r#"{"properties":{"a":{"type":"text"}}}"#).starts_with("/properties/a/type"));
    let older = r#"{"$schema":"http://json-schema.org/draft-07/schema#"}"#;
    assert!(refused(older).starts_with("/$schema must be"));
    assert!(refused(r#"{"$ref":"https://example.com/a.json"}"#).contains("must begin with #"));
    assert!(refused(r#"{"pattern":"(?=a)b"}"#).starts_with("/pattern"));
    assert!(refused(r#"{"pattern":"(a{1000}){1000}"}"#).starts_with("/pattern"));
    assert!(refused("3").contains(" "));
}

#[test]
fn definitions_used_many_times_are_compiled_in_little_time() {
    let mut doubling = json!({ "$ref": "#/$defs/d0", "$defs": { "d60": { "type": "integer" } } });
    for at in 0..60 {
        let next = json!({ "$ref": format!("#/$defs/d{}", at + 1) });
        doubling["$defs"][format!("d{at}")] = json!({ "properties": { "x": next, "y": next } });
    }
    let doubling = schema(&doubling.to_string());
    assert_eq!(violations(&doubling, r#"{"x":{"y":{"x":{}}}}"#), [""; 0]);
}

#[test]
fn regular_expressions_take_linear_time() {
    let nested = schema(r#"{"pattern":"^(a+)+$"}"#);
    let data = json!("a".repeat(100_000) + "b").to_string();
    assert_eq!(violations(&nested, &data).len(), 1);
}

#[test]
fn recursion_goes_as_deep_as_data_may_and_no_deeper() {
    let tree = schema(r##"{"properties":{"a":{"$ref":"#"}},"additionalProperties":false}"##);
    let nested = |levels: usize| "{\"a\":".repeat(levels) + "1" + &"}".repeat(levels);
    assert_eq!(violations(&tree, &nested(64)), [""; 0]);
    assert!(violations(&tree, &nested(65))[0].contains("64 levels"));
    let wrong = nested(63).replace('1', r#"{"b":1}"#);
    assert_eq!(violations(&tree, &wrong).len(), 1);
    assert!(violations(&tree, &nested(1_000_000))[0].contains("64 levels"));
}

#[test]
fn only_json_is_taken() {
    let ok = br#"{"id":1}"#;
    let text = || Some(Body::TextData(r#"{"id":1}"#.to_owned()));
    let binary = || Some(Body::BinaryData(Bytes::from_static(ok)));
    let any = prost_types::Any::default();
    for (data, content_type, taken) in [
        (text(), "", true),
        (text(), "text/plain", true),
        (binary(), "application/json", true),
        (binary(), "Application/JSON; charset=utf-8", true),
        (binary(), "application/vnd.tickets+json", true),
        (binary(), "", false),
        (binary(), "application/octet-stream", false),
        (Some(Body::ProtoData(any)), "application/json", false),
        (None, "application/json", false),
    ] {
        let mut left = BATCH_LOOKS_MAX;
        let checked = typed(TICKET, event(data.clone(), content_type)).check(&mut left);
        assert_eq!(
            checked.is_ok(),
            taken,
            "{data:?} {content_type} {checked:?}"
        );
    }
}

/// The catalogue has `ticket.created` with this schema.
fn catalogue(json_schema: &str) -> Arc<Catalogue> {
    Catalogue::with(vec![EventType {
        name: "ticket.created".to_owned(),
        json_schema: json_schema.into(),
        ..EventType::default()
    }])
}

fn stored(kind: &'static str, data: &str) -> NewEvent {
    NewEvent {
        product: "psa".into(),
        kind: Bytes::from_static(kind.as_bytes()),
        event: event(Some(Body::TextData(data.to_owned())), ""),
        identity: 1,
        content: 1,
    }
}

#[tokio::test]
async fn each_refusal_names_its_event_and_other_types_are_free() {
    let schemas = Schemas::default();
    let (good, bad) = (r#"{"id":1}"#, r#"{"id":"x"}"#);
    let events = [
        stored("ticket.created", good),
        stored("ticket.created", bad),
        stored("ticket.solved", bad),
    ];
    let places = [0, 3, 4].into_iter().zip(&events);
    let refused = schemas.check(&catalogue(TICKET), places).await.unwrap();
    assert_eq!(refused.keys().collect::<Vec<_>>(), [&3]);
    assert_eq!(refused[&3].reason(), "SCHEMA_VIOLATION");
    let metadata = refused[&3].metadata();
    for (key, value) in [("index", "3"), ("type", "ticket.created"), ("path", "/id")] {
        assert!(metadata.contains(&(key, value.to_owned())), "{metadata:?}");
    }
}

#[tokio::test]
async fn a_batch_that_asks_for_too_much_work_is_refused() {
    // 199,000 values looked at 300 times each.
    let options: Vec<u32> = (0..300).collect();
    let costly = json!({ "items": { "enum": options } }).to_string();
    let event = stored("ticket.created", &json!(vec![0; 199_000]).to_string());
    let schemas = Schemas::default();
    let refused = schemas
        .check(&catalogue(&costly), [(0, &event)].into_iter())
        .await;
    let refused = refused.unwrap();
    assert!(
        refused[&0].message().contains("too large"),
        "{:?}",
        refused[&0]
    );
}

#[tokio::test]
async fn a_schema_is_compiled_once() {
    let schemas = Schemas::default();
    let (one, same): (Arc<str>, Arc<str>) = (TICKET.into(), TICKET.into());
    let first = schemas.get(&one).await.unwrap().unwrap();
    assert!(Arc::ptr_eq(
        &first,
        &schemas.get(&same).await.unwrap().unwrap()
    ));
}

#[test]
fn compiled_schemas_are_bounded_and_those_in_use_stay() {
    let mut compiled = Compiled::default();
    let one = Arc::new(schema("true"));
    let text = |at: usize| -> Arc<str> { format!("{at:08}{}", " ".repeat(60_000)).into() };
    for at in 0..200 {
        compiled.put(text(at), one.clone());
        assert!(compiled.bytes <= COMPILED_BYTES_MAX);
        assert!(compiled.find(&text(0)).is_some(), "{at}");
    }
    assert!(compiled.by_text.len() < 40);
    assert!(compiled.find(&text(1)).is_none() && compiled.find(&text(199)).is_some());
}
