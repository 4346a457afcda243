//! Messages from and to JSON, by the descriptors of the contract.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hub_core::error::Error;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor,
    ReflectMessage, SerializeOptions, Value,
};
use prost_types::{Any, FileDescriptorSet};
use serde_json::{Map, Value as Json, json};

use super::malformed;

/// Messages packed in messages are shown to this depth; deeper ones as base64.
const PACKED_DEPTH_MAX: usize = 8;
/// Type URL that stands for a packed message that is shown as base64; a number follows.
const HIDDEN: &str = "hub-hidden-";
const ANY: &str = "google.protobuf.Any";

/// Knows all messages.
pub struct Transcoder {
    pool: DescriptorPool,
}

impl Transcoder {
    /// With the contract, the error details and the health service.
    pub fn new() -> Result<Self, String> {
        let mut pool = DescriptorPool::global();
        for encoded in crate::listen::descriptor_sets() {
            let set = FileDescriptorSet::decode(encoded)
                .map_err(|error| format!("a descriptor set is damaged: {error}"))?;
            let new = set
                .file
                .into_iter()
                .filter(|file| pool.get_file_by_name(file.name()).is_none());
            let new: Vec<_> = new.collect();
            pool.add_file_descriptor_protos(new)
                .map_err(|error| format!("a descriptor set does not fit: {error}"))?;
        }
        Ok(Transcoder { pool })
    }

    /// All methods by path.
    pub fn methods(&self) -> HashMap<String, MethodDescriptor> {
        let services: Vec<_> = self.pool.services().collect();
        let methods = services.iter().flat_map(|service| {
            service.methods().map(|method| {
                (
                    format!("/{}/{}", service.full_name(), method.name()),
                    method,
                )
            })
        });
        methods.collect()
    }

    /// A request. No body at all is the empty message, so that `curl -d ''` works.
    pub fn to_proto(&self, kind: &MessageDescriptor, json: &[u8]) -> Result<Bytes, Error> {
        if json.is_empty() {
            return Ok(Bytes::new());
        }
        let mut reader = serde_json::Deserializer::from_slice(json);
        let options = DeserializeOptions::new();
        let message = DynamicMessage::deserialize_with_options(kind.clone(), &mut reader, &options)
            .map_err(malformed)?;
        reader.end().map_err(malformed)?;
        Ok(message.encode_to_vec().into())
    }

    /// A response.
    pub fn to_json(&self, kind: &MessageDescriptor, proto: Bytes) -> Result<Bytes, Error> {
        let mut message = DynamicMessage::decode(kind.clone(), proto)
            .map_err(|error| Error::internal(format!("an answer does not decode: {error}")))?;
        let mut hidden = Vec::new();
        self.hide(&mut message, 0, &mut hidden);
        let failed = |error| Error::internal(format!("an answer is no JSON: {error}"));
        if hidden.is_empty() {
            // Straight to text, which keeps the fields in the order of the contract.
            let mut text = Vec::new();
            let mut writer = serde_json::Serializer::new(&mut text);
            let written = message.serialize_with_options(&mut writer, &SerializeOptions::new());
            written.map_err(failed)?;
            return Ok(text.into());
        }
        let mut json = serialize(&message).map_err(failed)?;
        show(&mut json, &hidden);
        Ok(json.to_string().into())
    }

    /// A packed message as JSON, if its type is known.
    pub fn unpacked(&self, any: &Any) -> Option<Json> {
        serialize(&self.unpack(any)?).ok()
    }

    fn unpack(&self, any: &Any) -> Option<DynamicMessage> {
        let name = any.type_url.rsplit('/').next()?;
        let kind = self.pool.get_message_by_name(name)?;
        DynamicMessage::decode(kind, any.value.as_slice()).ok()
    }

    /// Replaces every packed message that has no JSON of its own, because its type is not the
    /// hub's or it lies too deep.
    fn hide(&self, message: &mut DynamicMessage, depth: usize, hidden: &mut Vec<Any>) {
        if message.descriptor().full_name() == ANY {
            return self.hide_any(message, depth, hidden);
        }
        for (_, value) in message.fields_mut() {
            match value {
                Value::Message(inner) => self.hide(inner, depth, hidden),
                Value::List(items) => {
                    let inner = items.iter_mut().filter_map(Value::as_message_mut);
                    inner.for_each(|inner| self.hide(inner, depth, hidden));
                }
                Value::Map(entries) => {
                    let inner = entries.values_mut().filter_map(Value::as_message_mut);
                    inner.for_each(|inner| self.hide(inner, depth, hidden));
                }
                _ => {}
            }
        }
    }

    fn hide_any(&self, message: &mut DynamicMessage, depth: usize, hidden: &mut Vec<Any>) {
        let Ok(any) = message.transcode_to::<Any>() else {
            return;
        };
        let before = hidden.len();
        if depth < PACKED_DEPTH_MAX
            && !any.type_url.starts_with(HIDDEN)
            && any.type_url.contains('/')
            && let Some(mut inner) = self.unpack(&any)
        {
            self.hide(&mut inner, depth + 1, hidden);
            if serialize(&inner).is_ok() {
                let value = Value::Bytes(inner.encode_to_vec().into());
                return message.set_field_by_name("value", value);
            }
            hidden.truncate(before);
        }
        let stand_in = format!("{HIDDEN}{}/google.protobuf.Duration", hidden.len());
        hidden.push(any);
        message.set_field_by_name("type_url", Value::String(stand_in));
        message.set_field_by_name("value", Value::Bytes(Bytes::new()));
    }
}

fn serialize(message: &DynamicMessage) -> Result<Json, serde_json::Error> {
    message.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())
}

/// Puts what was hidden back, as base64.
fn show(json: &mut Json, hidden: &[Any]) {
    match json {
        Json::Array(items) => items.iter_mut().for_each(|item| show(item, hidden)),
        Json::Object(fields) => match stand_in(fields, hidden) {
            Some(any) => {
                *json = json!({"@type": any.type_url, "value": STANDARD.encode(&any.value)});
            }
            None => fields.values_mut().for_each(|field| show(field, hidden)),
        },
        _ => {}
    }
}

fn stand_in<'a>(fields: &Map<String, Json>, hidden: &'a [Any]) -> Option<&'a Any> {
    let number = fields.get("@type")?.as_str()?.strip_prefix(HIDDEN)?;
    hidden.get(number.split('/').next()?.parse::<usize>().ok()?)
}

#[cfg(test)]
mod tests {
    use hub_proto::hub::event_bus::v1::cloud_event::Data;
    use hub_proto::hub::event_bus::v1::{CloudEvent, PublishRequest};

    use super::*;

    fn as_json(any: Any) -> Json {
        let transcoder = Transcoder::new().unwrap();
        let kind = transcoder
            .pool
            .get_message_by_name("hub.event_bus.v1.PublishRequest")
            .unwrap();
        let event = CloudEvent {
            data: Some(Data::ProtoData(any)),
            ..CloudEvent::default()
        };
        let request = PublishRequest {
            events: vec![event],
            ..PublishRequest::default()
        };
        let json = transcoder
            .to_json(&kind, request.encode_to_vec().into())
            .unwrap();
        let mut json: Json = serde_json::from_slice(&json).unwrap();
        json["events"][0]["protoData"].take()
    }

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: type_url.to_owned(),
            value,
        }
    }

    #[test]
    fn a_packed_message_of_an_unknown_type_is_shown_as_base64() {
        let json = as_json(any("type.example/acme.Invoice", vec![1, 2, 3]));
        assert_eq!(
            json,
            json!({"@type": "type.example/acme.Invoice", "value": "AQID"})
        );
        let json = as_json(any("", vec![1]));
        assert_eq!(json, json!({"@type": "", "value": "AQ=="}));
    }

    #[test]
    fn a_packed_message_of_a_known_type_is_shown_as_json() {
        let url = "type.googleapis.com/google.protobuf.Duration";
        let json = as_json(any(url, vec![8, 5]));
        assert_eq!(json, json!({"@type": url, "value": "5s"}));
    }

    #[test]
    fn a_packed_message_that_does_not_decode_or_print_is_shown_as_base64() {
        let url = "type.googleapis.com/google.protobuf.Timestamp";
        assert_eq!(
            as_json(any(url, vec![255])),
            json!({"@type": url, "value": "/w=="})
        );
        let late = prost_types::Timestamp {
            seconds: i64::MAX,
            nanos: 0,
        }
        .encode_to_vec();
        let shown = STANDARD.encode(&late);
        assert_eq!(
            as_json(any(url, late)),
            json!({"@type": url, "value": shown})
        );
    }

    #[test]
    fn packing_without_end_ends_in_base64() {
        let url = "type.googleapis.com/google.protobuf.Any";
        let mut packed = any("type.example/acme.Invoice", vec![1]);
        for _ in 0..5000 {
            packed = any(url, packed.encode_to_vec());
        }
        let text = as_json(packed).to_string();
        assert_eq!(
            text.matches("google.protobuf.Any").count(),
            PACKED_DEPTH_MAX + 1
        );
    }

    #[test]
    fn a_type_url_that_looks_like_a_stand_in_is_shown_as_it_is() {
        let url = "hub-hidden-0/google.protobuf.Duration";
        assert_eq!(
            as_json(any(url, vec![])),
            json!({"@type": url, "value": ""})
        );
    }

    #[test]
    fn a_field_that_does_not_exist_is_named() {
        let transcoder = Transcoder::new().unwrap();
        let kind = transcoder
            .pool
            .get_message_by_name("hub.event_bus.v1.PublishRequest")
            .unwrap();
        let error = transcoder.to_proto(&kind, br#"{"evnts": []}"#).unwrap_err();
        assert_eq!(error.reason(), "FIELD_INVALID");
        assert!(error.message().contains("evnts"), "{}", error.message());
    }
}
