//! What to do: complete calls, made of what was seen.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hub_core::clock::Micros;
use hub_core::explain::Checklist;
use hub_proto::hub::event_bus::v1::cloud_event::Data;
use hub_proto::hub::event_bus::v1::cloud_event::cloud_event_attribute_value::Attr;
use hub_proto::hub::event_bus::v1::{CloudEvent, EventFilter};
use hub_proto::hub::explain::v1::{Fix, FixActor};
use serde_json::{Value as Json, json};

use super::Question;
use super::nearby::Near;
use super::subject::Never;
use crate::event_types::EventType;
use crate::subscriptions::NAME_CHARS_MAX;

/// Largest event or schema that is repeated in a request, in bytes.
const REPEATED_BYTES_MAX: usize = 8 << 10;

const SET_PRODUCT: &str = "hub.platform.v1.Platform/SetProductSubscription";
const SET_INTEGRATION: &str = "hub.platform.v1.Platform/SetIntegration";
const UPDATE_TENANT: &str = "hub.platform.v1.Platform/UpdateTenant";
const CREATE_KEY: &str = "hub.api_keys.v1.ApiKeys/CreateApiKey";
const PUBLISH: &str = "hub.event_bus.v1.EventBus/Publish";
const PUT_TYPE: &str = "hub.event_bus.v1.EventBus/PutEventType";
const CREATE_SUBSCRIPTION: &str = "hub.event_bus.v1.EventBus/CreateSubscription";
const UPDATE_SUBSCRIPTION: &str = "hub.event_bus.v1.EventBus/UpdateSubscription";
const RESUME: &str = "hub.event_bus.v1.EventBus/ResumeSubscription";
const SEEK: &str = "hub.event_bus.v1.EventBus/SeekSubscription";
const PULL: &str = "hub.event_bus.v1.EventBus/Pull";
const REDELIVER: &str = "hub.event_bus.v1.EventBus/Redeliver";
const EXPLAIN: &str = "hub.event_bus.v1.EventBus/ExplainEvent";

/// Makes calls for the tenant of a question.
pub(super) struct Fixes<'a> {
    question: &'a Question<'a>,
    checks: &'a Checklist,
}

impl<'a> Fixes<'a> {
    pub(super) fn new(question: &'a Question<'a>, checks: &'a Checklist) -> Self {
        Fixes { question, checks }
    }

    fn tenant_id(&self) -> &str {
        self.question.log.tenant().id()
    }

    fn operator(&self, title: String, method: &'static str, request: Json) -> Fix {
        self.checks.fix(FixActor::Operator, title, method, request)
    }

    /// Activates the subscription to a product.
    pub(super) fn activate(&self, product: &str) -> Fix {
        let title = format!("Activate the subscription to {product}");
        let request = json!({"tenantId": self.tenant_id(), "product": product, "active": true});
        self.operator(title, SET_PRODUCT, request)
    }

    /// Turns an integration on.
    pub(super) fn integrate(&self, source: &str, destination: &str) -> Fix {
        let title = format!("Turn the integration {source} -> {destination} on");
        let request = json!({
            "tenantId": self.tenant_id(),
            "source": source,
            "destination": destination,
            "enabled": true,
            "reason": "Events are to flow again",
        });
        self.operator(title, SET_INTEGRATION, request)
    }

    /// Keeps events for longer, in whole seconds.
    pub(super) fn keep(&self, seconds: i64, bytes: Option<u64>) -> Fix {
        let mut tenant = json!({"tenantId": self.tenant_id(), "retention": format!("{seconds}s")});
        let mut mask = "retention".to_owned();
        if let Some(bytes) = bytes {
            tenant["retentionBytes"] = json!(bytes.to_string());
            mask.push_str(",retentionBytes");
        }
        let title = "Keep the next events for longer; this one does not come back".to_owned();
        self.operator(
            title,
            UPDATE_TENANT,
            json!({"tenant": tenant, "updateMask": mask}),
        )
    }

    /// Lets the catalogue send a type to a destination too.
    pub(super) fn route(&self, entry: &EventType, destination: &str) -> Fix {
        let title = format!("Let the catalogue send {} to {destination}", entry.name);
        let mut changed = entry.clone();
        changed.destinations.push(destination.to_owned());
        self.put_type(title, &changed, entry.etag())
    }

    fn put_type(&self, title: String, entry: &EventType, etag: String) -> Fix {
        if entry.json_schema.len() + entry.example.len() > REPEATED_BYTES_MAX {
            return Checklist::advice(FixActor::Operator, title);
        }
        let request = json!({"eventType": {
            "type": entry.name,
            "purpose": entry.purpose,
            "sources": entry.sources,
            "destinations": entry.destinations,
            "jsonSchema": &*entry.json_schema,
            "example": entry.example,
            "deprecated": entry.deprecated,
            "etag": etag,
        }});
        self.operator(title, PUT_TYPE, request)
    }

    /// Lets a subscription of a product take more than it does.
    pub(super) fn widen(&self, id: &str, title: String, filter: &EventFilter) -> Fix {
        let request = json!({
            "subscription": {"subscriptionId": id, "filter": {
                "types": filter.types,
                "products": filter.products,
                "attributes": filter.attributes,
            }},
            "updateMask": "filter",
        });
        self.checks
            .fix(FixActor::Product, title, UPDATE_SUBSCRIPTION, request)
    }

    /// Makes a subscription by which a product has a type that the catalogue does not, from an
    /// event on or from now on. An entry of the catalogue would do too, but shut out whatever other
    /// products publish and take of the type.
    pub(super) fn subscribe(&self, product: &str, kind: &str, from: Option<u64>) -> Fix {
        let title = format!("Let {product} subscribe to {kind}");
        let name: String = format!("{product}-{kind}")
            .chars()
            .take(NAME_CHARS_MAX)
            .collect();
        let mut request = json!({"subscription": {"name": name, "filter": {"types": [kind]}}});
        if let Some(seq) = from {
            request["start"] = json!({"afterSequence": seq.saturating_sub(1).to_string()});
        }
        self.checks
            .fix(FixActor::Product, title, CREATE_SUBSCRIPTION, request)
    }

    /// Makes a key by which a product takes its events.
    pub(super) fn key(&self, product: &str, scope: &str) -> Fix {
        let title = format!("Make a key by which {product} takes its events");
        let request = json!({"apiKey": {
            "name": format!("{product} events"),
            "product": product,
            "scopes": [scope],
        }});
        self.operator(title, CREATE_KEY, request)
    }

    /// Takes the next events of a subscription.
    pub(super) fn pull(&self, product: &str, subscription: &str) -> Fix {
        let title = format!("Let {product} consume the subscription {subscription}");
        let request = json!({"subscription": subscription, "maxEvents": 1});
        self.checks.fix(FixActor::Product, title, PULL, request)
    }

    /// Ends the pause of a subscription.
    pub(super) fn resume(&self, id: &str, name: &str) -> Fix {
        let title = format!("Resume the subscription {name}");
        self.operator(title, RESUME, json!({"subscriptionId": id}))
    }

    /// Skips everything up to a sequence.
    pub(super) fn skip_to(&self, id: &str, name: &str, seq: u64, skipped: u64) -> Fix {
        let title = format!("Skip what the subscription {name} has not settled up to {seq}");
        let request = json!({"subscriptionId": id, "to": {"afterSequence": seq.to_string()}});
        Fix {
            affects: i64::try_from(skipped).unwrap_or(i64::MAX),
            destructive: true,
            ..self.operator(title, SEEK, request)
        }
    }

    /// Delivers an event again to one subscription, or to all that it is routed to today.
    pub(super) fn redeliver(&self, event_id: &str, to: &str, subscription_id: &str) -> Fix {
        let title = format!("Deliver {event_id} to {to} again");
        let mut request = json!({"eventIds": [event_id]});
        if !subscription_id.is_empty() {
            request["subscriptionId"] = json!(subscription_id);
        }
        Fix {
            affects: 1,
            ..self.operator(title, REDELIVER, request)
        }
    }

    /// Asks about an event that there is.
    pub(super) fn explain(&self, near: &Near) -> Fix {
        let title = format!(
            "Ask about {}, {} of {}",
            near.event_id, near.event.r#type, near.product
        );
        let mut request = json!({"eventId": near.event_id});
        self.add_destination(&mut request);
        self.checks.fix(FixActor::Caller, title, EXPLAIN, request)
    }

    /// Asks about a type that there is.
    pub(super) fn explain_type(&self, never: &Never, kind: &str) -> Fix {
        let title = format!("Ask about {kind}");
        let mut search = json!({"type": kind});
        if !never.search.subject.is_empty() {
            search["subject"] = json!(never.search.subject);
        }
        if let Some(around) = &never.search.around {
            search["around"] = json!(around.to_string());
        }
        let mut request = json!({"search": search});
        self.add_destination(&mut request);
        self.checks.fix(FixActor::Caller, title, EXPLAIN, request)
    }

    fn add_destination(&self, request: &mut Json) {
        if let Some(destination) = &self.question.destination {
            request["destination"] = json!(destination);
        }
    }

    /// Publishes what was published under a wrong type again.
    pub(super) fn publish_as(&self, near: &Near, kind: &str) -> Fix {
        let (product, written) = (&near.product, &near.event.r#type);
        let title = format!("Publish what {product} published as {written} as {kind}");
        let id = format!("{}.{kind}", near.event.id);
        self.publish_stored(title, near, kind, &id)
    }

    fn publish_stored(&self, title: String, near: &Near, kind: &str, id: &str) -> Fix {
        let stored = &near.event;
        let data_bytes = match &stored.data {
            Some(Data::TextData(text)) => text.len(),
            Some(Data::BinaryData(bytes)) => bytes.len(),
            Some(Data::ProtoData(_)) => usize::MAX,
            None => 0,
        };
        if data_bytes > REPEATED_BYTES_MAX {
            return Checklist::advice(FixActor::Product, title);
        }
        let attributes = attributes(stored);
        let event = described(kind, id, &stored.source, attributes, stored.data.as_ref());
        self.checks.fix(
            FixActor::Product,
            title,
            PUBLISH,
            json!({"events": [event]}),
        )
    }

    /// Lets a product publish a type too.
    pub(super) fn allow(&self, entry: &EventType, product: &str) -> Fix {
        let title = format!("Let {product} publish {}", entry.name);
        let mut changed = entry.clone();
        changed.sources.push(product.to_owned());
        self.put_type(title, &changed, entry.etag())
    }

    /// Publishes an event that was stored before, with an id of its own.
    pub(super) fn publish_again(&self, first: &Near, time: Micros) -> Fix {
        let stored = &first.event;
        let title = format!("Publish {} again with an id of its own", first.event_id);
        let id = format!("{}@{time}", stored.id);
        self.publish_stored(title, first, &stored.r#type, &id)
    }

    /// Publishes what was expected; of an event that never was no more is known than the search.
    pub(super) fn publish(&self, never: &Never, product: &str) -> Fix {
        let (kind, subject) = (&never.search.r#type, &never.search.subject);
        let about = match subject.as_str() {
            "" => String::new(),
            subject => format!(" about {subject}"),
        };
        let title = format!("Let {product} publish {kind}{about}");
        if self.needs_data(kind) {
            return Checklist::advice(FixActor::Product, title);
        }
        let id = format!("{kind}/{subject}@{}", never.around);
        let source = format!("/{product}");
        let attributes = match subject.as_str() {
            "" => json!({}),
            subject => json!({"subject": {"ceString": subject}}),
        };
        let event = described(kind, &id, &source, attributes, None);
        self.checks.fix(
            FixActor::Product,
            title,
            PUBLISH,
            json!({"events": [event]}),
        )
    }

    /// Whether Publish refuses the type without the right data.
    fn needs_data(&self, kind: &str) -> bool {
        let entry = self.question.present.catalogue.find(kind);
        entry.is_some_and(|entry| !entry.json_schema.is_empty())
    }
}

fn described(kind: &str, id: &str, source: &str, attributes: Json, data: Option<&Data>) -> Json {
    let mut event = json!({
        "id": id,
        "source": source,
        "specVersion": "1.0",
        "type": kind,
        "attributes": attributes,
    });
    match data {
        Some(Data::TextData(text)) => event["textData"] = json!(text),
        Some(Data::BinaryData(bytes)) => event["binaryData"] = json!(STANDARD.encode(bytes)),
        _ => {}
    }
    event
}

/// The attributes of an event as the JSON of the contract has them.
fn attributes(event: &CloudEvent) -> Json {
    let value = |attr: &Attr| match attr {
        Attr::CeBoolean(value) => json!({"ceBoolean": value}),
        Attr::CeInteger(value) => json!({"ceInteger": value}),
        Attr::CeString(value) => json!({"ceString": value}),
        Attr::CeBytes(value) => json!({"ceBytes": STANDARD.encode(value)}),
        Attr::CeUri(value) => json!({"ceUri": value}),
        Attr::CeUriRef(value) => json!({"ceUriRef": value}),
        Attr::CeTimestamp(value) => json!({"ceTimestamp": value.to_string()}),
    };
    let named = event.attributes.iter();
    let named = named.filter_map(|(name, held)| Some((name.clone(), value(held.attr.as_ref()?))));
    Json::Object(named.collect())
}
