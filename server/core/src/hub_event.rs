//! Events that the hub itself tells of: keys and tenants, in the system log.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hub_proto::hub::event_bus::v1::CloudEvent;
use hub_proto::hub::event_bus::v1::cloud_event::cloud_event_attribute_value::Attr;
use hub_proto::hub::event_bus::v1::cloud_event::{CloudEventAttributeValue, Data};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::clock::{Micros, timestamp};
use crate::journal::{NewEvent, TenantRef};

/// The product that these events come from.
pub const PRODUCT: &str = "hub";

/// What happened.
#[derive(Debug, Clone)]
pub struct HubEvent<'a> {
    /// Log that it goes into.
    pub log: &'a TenantRef,
    /// Which part of the hub tells it, e.g. `/hub/api-keys`.
    pub source: &'static str,
    /// What, e.g. `key.created`.
    pub kind: &'static str,
    /// Unique within `source`, e.g. the resource and its version.
    pub id: String,
    /// The resource, e.g. `key_…`.
    pub subject: &'a str,
    /// Tenant that the resource belongs to; empty = none.
    pub tenant_id: &'a str,
    /// Key or user that did it.
    pub actor: &'a str,
    /// When.
    pub time: Micros,
    /// More about it, as JSON.
    pub json: String,
}

impl HubEvent<'_> {
    /// As the journal stores it.
    pub fn encode(self) -> NewEvent {
        let text = |value: &str| Attr::CeString(value.to_owned());
        let mut attributes = vec![
            ("actor", text(self.actor)),
            ("datacontenttype", text("application/json")),
            ("subject", text(self.subject)),
            ("time", Attr::CeTimestamp(timestamp(self.time))),
        ];
        if !self.tenant_id.is_empty() {
            attributes.push(("tenantid", text(self.tenant_id)));
        }
        let attributes: BTreeMap<String, CloudEventAttributeValue> = attributes
            .into_iter()
            .map(|(name, attr)| {
                (
                    name.to_owned(),
                    CloudEventAttributeValue { attr: Some(attr) },
                )
            })
            .collect();
        let log = self.log.number().to_be_bytes();
        let identity = hash(&[
            &log,
            PRODUCT.as_bytes(),
            self.source.as_bytes(),
            self.id.as_bytes(),
        ]);
        let event = CloudEvent {
            id: self.id,
            source: self.source.to_owned(),
            spec_version: "1.0".to_owned(),
            r#type: self.kind.to_owned(),
            attributes,
            data: Some(Data::TextData(self.json)),
        };
        let event = event.encode_to_vec();
        NewEvent {
            product: Arc::from(PRODUCT),
            kind: Bytes::from_static(self.kind.as_bytes()),
            content: hash(&[&event]),
            event: event.into(),
            identity,
        }
    }
}

/// First half of SHA-256 over the parts with their lengths.
fn hash(parts: &[&[u8]]) -> u128 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .take(16)
        .fold(0, |value, byte| value << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, json: &str) -> NewEvent {
        let log = TenantRef::system();
        HubEvent {
            log: &log,
            source: "/hub/api-keys",
            kind: "key.created",
            id: id.to_owned(),
            subject: "key_1",
            tenant_id: "tnt_1",
            actor: "key_0",
            time: 1_000_000,
            json: json.to_owned(),
        }
        .encode()
    }

    #[test]
    fn the_identity_is_of_the_id_and_the_content_of_everything() {
        let (one, same) = (event("key_1.1", "{}"), event("key_1.1", "{}"));
        let (other_id, other_data) = (event("key_1.2", "{}"), event("key_1.1", "[]"));
        assert_eq!((one.identity, one.content), (same.identity, same.content));
        assert_ne!(one.identity, other_id.identity);
        assert_eq!(one.identity, other_data.identity);
        assert_ne!(one.content, other_data.content);
    }

    #[test]
    fn the_event_is_a_cloud_event_that_names_its_tenant() {
        let stored = CloudEvent::decode(event("key_1.1", "{}").event).unwrap();
        assert_eq!(
            (stored.r#type.as_str(), stored.source.as_str()),
            ("key.created", "/hub/api-keys")
        );
        let tenant = stored.attributes["tenantid"].attr.clone();
        assert_eq!(tenant, Some(Attr::CeString("tnt_1".into())));
    }
}
