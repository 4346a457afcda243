//! A CloudEvent on its way in: checked without a copy, hashed, and stored as it came.
//!
//! Rules are those of CloudEvents 1.0.2
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md>) and the contract's.

use std::sync::Arc;

use bytes::Bytes;
use hub_core::error::Result;
use hub_core::journal::{NewEvent, TenantRef};
use hub_proto::wire::{CloudEventView, attribute_value::Attr, cloud_event_view::Data};
use prost::Message;
use twox_hash::XxHash3_128;

use crate::error;

/// Largest encoded event.
pub const EVENT_BYTES_MAX: usize = 1 << 20;
const TEXT_BYTES_MAX: usize = 1024;
const TYPE_BYTES_MAX: usize = 255;
const ATTRIBUTES_MAX: usize = 64;
const ATTRIBUTE_NAME_BYTES_MAX: usize = 64;
/// For each byte, whether a URI-reference may have it.
const URI_REFERENCE: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        allowed[byte] = byte >= 0x80 || (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let marks = b"-._~:/?#[]@!$&'()*+,;=%";
    let mut at = 0;
    while at < marks.len() {
        allowed[marks[at] as usize] = true;
        at += 1;
    }
    allowed
};
/// Attributes with a field of their own; they cannot come in the map too.
const OWN_FIELDS: [&[u8]; 5] = [b"id", b"source", b"specversion", b"type", b"data"];

/// Checks an event and makes it ready to be stored. `index` is its place in the request.
/// Errors: `EVENT_INVALID`, `EVENT_TOO_LARGE`.
pub fn check(
    index: usize,
    bytes: Bytes,
    tenant: &TenantRef,
    product: &Arc<str>,
) -> Result<NewEvent> {
    if bytes.len() > EVENT_BYTES_MAX {
        return Err(error::event_too_large(index, bytes.len(), EVENT_BYTES_MAX));
    }
    let invalid = |attribute: &str, problem: &str| error::event_invalid(index, attribute, problem);
    let view = CloudEventView::decode(bytes.clone())
        .map_err(|_| invalid("event", "is not an encoded CloudEvent"))?;
    for (name, value, limit) in [
        ("id", &view.id, TEXT_BYTES_MAX),
        ("source", &view.source, TEXT_BYTES_MAX),
        ("type", &view.r#type, TYPE_BYTES_MAX),
    ] {
        required(value, limit).map_err(|problem| invalid(name, problem))?;
    }
    if view.spec_version != "1.0" {
        return Err(invalid("specversion", "must be \"1.0\""));
    }
    is_uri_reference(&view.source).map_err(|problem| invalid("source", problem))?;
    is_type(&view.r#type).map_err(|problem| invalid("type", problem))?;
    if view.attributes.len() > ATTRIBUTES_MAX {
        return Err(invalid("attributes", "are more than 64"));
    }
    for entry in &view.attributes {
        let value = entry.value.as_ref().and_then(|value| value.attr.as_ref());
        attribute(&entry.key, value)
            .map_err(|problem| invalid(&String::from_utf8_lossy(&entry.key), problem))?;
    }
    if let Some(Data::TextData(data)) = &view.data {
        text(data).map_err(|problem| invalid("text_data", problem))?;
    }
    Ok(NewEvent {
        identity: identity(tenant, product, &view.source, &view.id),
        content: content(&view, bytes.len()),
        product: product.clone(),
        kind: view.r#type,
        event: bytes,
    })
}

/// The key by which an encoded event is ordered: its `partitionkey`, else its `subject`.
pub fn ordering_key(event: &Bytes) -> Option<String> {
    let view = CloudEventView::decode(event.clone()).ok()?;
    // A map entry may come twice on the wire: the last one counts, as for every decoder.
    let text = |name: &[u8]| {
        let mut entries = view.attributes.iter().rev();
        let entry = entries.find(|entry| entry.key == name)?;
        match entry.value.as_ref()?.attr.as_ref()? {
            Attr::CeString(text) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        }
    };
    text(b"partitionkey").or_else(|| text(b"subject"))
}

/// Whether a text can be the type of an event; else what is wrong with it.
pub fn check_type(text: &str) -> Result<(), &'static str> {
    required(text.as_bytes(), TYPE_BYTES_MAX)?;
    is_type(text.as_bytes())
}

fn required(value: &[u8], limit: usize) -> Result<(), &'static str> {
    if value.is_empty() {
        return Err("is required");
    }
    if value.len() > limit {
        return Err("is too long");
    }
    text(value)
}

fn text(value: &[u8]) -> Result<(), &'static str> {
    if std::str::from_utf8(value).is_err() {
        return Err("is not UTF-8");
    }
    if value.contains(&0) {
        return Err("contains NUL");
    }
    Ok(())
}

/// Characters that RFC 3986 allows in a URI-reference; the rest must be percent-encoded.
fn is_uri_reference(value: &[u8]) -> Result<(), &'static str> {
    match value.iter().all(|b| URI_REFERENCE[usize::from(*b)]) {
        true => Ok(()),
        false => Err("is not a URI-reference"),
    }
}

/// Filters work by segments, so a type has whole ones and no wildcard.
fn is_type(value: &[u8]) -> Result<(), &'static str> {
    if value.split(|b| *b == b'.').any(<[u8]>::is_empty) {
        return Err("has an empty segment");
    }
    if value
        .iter()
        .any(|b| *b == b'*' || b.is_ascii_whitespace() || b.is_ascii_control())
    {
        return Err("has a space or a *");
    }
    Ok(())
}

fn attribute(name: &[u8], value: Option<&Attr>) -> Result<(), &'static str> {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if name.is_empty() || name.len() > ATTRIBUTE_NAME_BYTES_MAX || !name.iter().all(plain) {
        return Err("is not a name of lower-case letters and digits");
    }
    if OWN_FIELDS.contains(&name) {
        return Err("has a field of its own");
    }
    let value = value.ok_or("has no value")?;
    match value {
        Attr::CeString(value) | Attr::CeUri(value) | Attr::CeUriRef(value) => {
            if value.len() > TEXT_BYTES_MAX {
                return Err("is too long");
            }
            text(value)?;
        }
        Attr::CeBytes(value) if value.len() > TEXT_BYTES_MAX => return Err("is too long"),
        Attr::CeTimestamp(time) if !(0..1_000_000_000).contains(&time.nanos) => {
            return Err("is not a time");
        }
        _ => {}
    }
    match (name, value) {
        (b"subject" | b"partitionkey" | b"datacontenttype", Attr::CeString(value)) => {
            if value.is_empty() {
                Err("is empty")
            } else {
                Ok(())
            }
        }
        (b"subject" | b"partitionkey" | b"datacontenttype", _) => Err("must be a string"),
        (b"time", Attr::CeTimestamp(_)) => Ok(()),
        (b"time", _) => Err("must be a timestamp"),
        (b"dataschema", Attr::CeUri(_) | Attr::CeString(_)) => Ok(()),
        (b"dataschema", _) => Err("must be a URI"),
        _ => Ok(()),
    }
}

/// Who says that it is the same event: tenant, product, source, id. By BLAKE3: nobody can make an
/// event that is taken for one of somebody else. It is fast also on processors without instructions
/// for SHA-256.
pub fn identity(tenant: &TenantRef, product: &str, source: &[u8], id: &[u8]) -> u128 {
    let mut parts = Parts::with_room_for(product.len() + source.len() + id.len());
    parts.0.extend_from_slice(&tenant.number().to_be_bytes());
    for part in [product.as_bytes(), source, id] {
        parts.add(0, part);
    }
    let digest = blake3::hash(&parts.0);
    let half = digest.as_bytes().first_chunk();
    u128::from_be_bytes(half.copied().unwrap_or_default())
}

/// Over decoded, sorted fields: a retry may write the map in another order. By XXH3, which took a
/// tenth of the processor time of a publish less: contents are compared only under one identity, so
/// that who makes two of one hash misleads nobody but itself.
fn content(view: &CloudEventView, size: usize) -> u128 {
    let mut parts = Parts::with_room_for(size);
    parts.add(0, &view.r#type);
    let mut entries: Vec<_> = view.attributes.iter().enumerate().collect();
    // Of entries with the same name the last one counts.
    entries.sort_by(|(at, a), (bt, b)| a.key.cmp(&b.key).then(bt.cmp(at)));
    entries.dedup_by(|(_, later), (_, first)| later.key == first.key);
    for (_, entry) in entries {
        parts.add(1, &entry.key);
        match entry.value.as_ref().and_then(|value| value.attr.as_ref()) {
            Some(Attr::CeBoolean(value)) => parts.add(2, &[u8::from(*value)]),
            Some(Attr::CeInteger(value)) => parts.add(3, &value.to_be_bytes()),
            Some(Attr::CeString(value)) => parts.add(4, value),
            Some(Attr::CeBytes(value)) => parts.add(5, value),
            Some(Attr::CeUri(value)) => parts.add(6, value),
            Some(Attr::CeUriRef(value)) => parts.add(7, value),
            Some(Attr::CeTimestamp(value)) => parts.add(8, &value.encode_to_vec()),
            None => parts.add(9, &[]),
        }
    }
    match &view.data {
        Some(Data::BinaryData(data)) => parts.add(10, data),
        Some(Data::TextData(data)) => parts.add(11, data),
        Some(Data::ProtoData(data)) => parts.add(12, data),
        None => parts.add(13, &[]),
    }
    XxHash3_128::oneshot(&parts.0)
}

/// Parts that cannot be mistaken for others, to be hashed.
struct Parts(Vec<u8>);

impl Parts {
    /// Bytes of a few heads.
    const ROOM_FOR_HEADS: usize = 64;

    fn with_room_for(bytes: usize) -> Self {
        Parts(Vec::with_capacity(bytes + Self::ROOM_FOR_HEADS))
    }

    fn add(&mut self, tag: u8, bytes: &[u8]) {
        self.0.push(tag);
        self.0
            .extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        self.0.extend_from_slice(bytes);
    }
}
