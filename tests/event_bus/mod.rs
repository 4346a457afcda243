//! Publishing and reading events through the API.

mod consume;
mod consume_moved;
mod consume_processes;
mod consume_retention;
mod consume_shared;
pub(crate) mod consumer;
mod erase;
mod event_type_schemas;
mod event_types;
mod explain;
mod explain_delivery;
mod explain_fixes;
mod explain_processes;
mod explain_search;
mod filters;
mod frames;
mod interrupted;
mod log;
mod log_processes;
mod own_subscriptions;
mod owner;
mod positions;
mod processes;
mod publish;
mod publish_refusals;
mod publish_stream;
mod redeliver;
mod retention;
mod seen_elsewhere;
mod standings;
mod stream_ends;
mod subscribe;
mod subscriptions;
mod subscriptions_consumed;
mod subscriptions_far_behind;
mod subscriptions_processes;
mod subscriptions_routing;
mod subscriptions_seek;
mod subscriptions_status;
mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use hub_client::proto::hub::api_keys::v1::{
    ApiKey, RevokeApiKeyRequest, UpdateApiKeyRequest, WhoAmIRequest,
};
use hub_client::proto::hub::event_bus::v1::event_bus_client::EventBusClient;
use hub_client::{Attr, CloudEvent, CloudEventAttributeValue, Data, Error, EventRecord, Transport};
use hub_proto::hub::core::v1::Closing;
use hub_proto::hub::event_bus::v1::subscribe_response::Frame;
use hub_proto::hub::event_bus::v1::{
    EventFilter, PublishRequest, PublishResponse, StartAt, SubscribeRequest, SubscribeResponse,
    start_at,
};
use tonic::Streaming;

use crate::support::TestHub;

/// Deadline of a frame; on a manual clock nothing comes by itself.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest silence of a stream, unless a test says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// A product of the first tenant, which publishes and reads.
pub(crate) struct Product {
    pub(crate) bus: EventBusClient<Transport>,
    pub(crate) key: String,
}

impl Product {
    async fn new(hub: &TestHub, slug: &str) -> Product {
        Product::with(hub, slug, &["hub:events.publish", "hub:events.read"]).await
    }

    /// One that may read the events of all products.
    async fn auditor(hub: &TestHub) -> Product {
        Product::with(hub, "cmdb", &["hub:events.read", "hub:events.read_all"]).await
    }

    async fn with(hub: &TestHub, slug: &str, scopes: &[&str]) -> Product {
        let key = hub.key(slug, scopes).await;
        Product {
            bus: hub.client(&key).event_bus(),
            key,
        }
    }

    async fn send(&self, request: PublishRequest) -> Result<PublishResponse, Error> {
        let answer = self.bus.clone().publish(request).await;
        answer.map(tonic::Response::into_inner).map_err(Error::from)
    }

    /// Publishes a batch that is stored whole.
    async fn publish(&self, events: Vec<CloudEvent>) -> PublishResponse {
        self.send(batch(events)).await.unwrap()
    }

    /// Publishes tickets, each in a batch of its own.
    async fn publish_each(&self, ids: impl IntoIterator<Item = String>) {
        for id in ids {
            self.publish(vec![ticket(&id)]).await;
        }
    }

    async fn subscribe(&self, request: SubscribeRequest) -> Reader {
        self.try_subscribe(request).await.unwrap()
    }

    async fn try_subscribe(&self, request: SubscribeRequest) -> Result<Reader, Error> {
        let answer = self.bus.clone().subscribe(request).await;
        let frames = answer.map_err(Error::from)?.into_inner();
        Ok(Reader { frames })
    }

    /// All that the product sees, from a place to the end.
    async fn dump(&self, at: start_at::At) -> Vec<EventRecord> {
        let request = SubscribeRequest {
            stop_when_caught_up: true,
            ..from(at)
        };
        self.subscribe(request).await.rest().await.0
    }

    async fn dump_ids(&self, at: start_at::At) -> Vec<String> {
        ids(&self.dump(at).await)
    }
}

/// A Subscribe stream.
struct Reader {
    frames: Streaming<SubscribeResponse>,
}

impl Reader {
    /// The next frame, the error that ends the stream, or None at its end.
    async fn try_next(&mut self) -> Result<Option<Frame>, Error> {
        let frame = tokio::time::timeout(PATIENCE, self.frames.message()).await;
        let frame = frame.expect("a stream is never silent for so long");
        frame
            .map(|frame| frame.map(|frame| frame.frame.unwrap()))
            .map_err(Error::from)
    }

    async fn next(&mut self) -> Frame {
        self.try_next().await.unwrap().expect("one more frame")
    }

    /// The next frame that is no heartbeat.
    async fn next_news(&mut self) -> Frame {
        loop {
            let frame = self.next().await;
            if !matches!(frame, Frame::Progress(_)) {
                return frame;
            }
        }
    }

    /// So many events; what else comes before the last one is skipped.
    async fn events(&mut self, count: usize) -> Vec<EventRecord> {
        let mut events = Vec::new();
        while events.len() < count {
            match self.next().await {
                Frame::Events(batch) => events.extend(batch.events),
                Frame::Opened(_) | Frame::CaughtUp(_) | Frame::Progress(_) => {}
                other => panic!("{other:?} before {count} events"),
            }
        }
        assert_eq!(events.len(), count);
        events
    }

    /// Skips everything up to the end of the log.
    async fn caught_up(&mut self) -> u64 {
        loop {
            if let Frame::CaughtUp(caught_up) = self.next().await {
                return caught_up.sequence;
            }
        }
    }

    /// The events up to the end of the stream, and how it says that it ends.
    async fn rest(mut self) -> (Vec<EventRecord>, Closing) {
        let (mut events, mut closing) = (Vec::new(), None);
        while let Some(frame) = self.try_next().await.unwrap() {
            assert_eq!(closing, None, "a frame after the last one");
            match frame {
                Frame::Events(batch) => events.extend(batch.events),
                Frame::Closing(last) => closing = Some(last),
                Frame::Gap(gap) => panic!("nothing is missing, but {gap:?}"),
                _ => {}
            }
        }
        (events, closing.expect("a stream that ends says why"))
    }

    /// The error that ends the stream; frames before it are skipped.
    async fn error(mut self) -> Error {
        loop {
            match self.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without error"),
                Err(error) => return error,
            }
        }
    }
}

fn batch(events: Vec<CloudEvent>) -> PublishRequest {
    PublishRequest {
        events,
        ..PublishRequest::default()
    }
}

fn event(kind: &str, id: &str) -> CloudEvent {
    CloudEvent {
        id: id.to_owned(),
        source: "/test".to_owned(),
        spec_version: "1.0".to_owned(),
        r#type: kind.to_owned(),
        ..CloudEvent::default()
    }
}

/// The catalogue sends it from psa to portal and to hub.
fn ticket(id: &str) -> CloudEvent {
    event("ticket.created", id)
}

/// A ticket with so many bytes of text.
fn large_ticket(id: &str, bytes: usize) -> CloudEvent {
    CloudEvent {
        data: Some(Data::TextData("x".repeat(bytes))),
        ..ticket(id)
    }
}

fn attribute(attr: Attr) -> CloudEventAttributeValue {
    CloudEventAttributeValue { attr: Some(attr) }
}

fn text(value: &str) -> CloudEventAttributeValue {
    attribute(Attr::CeString(value.to_owned()))
}

fn with_attributes(
    event: CloudEvent,
    attributes: &[(&str, CloudEventAttributeValue)],
) -> CloudEvent {
    let attributes = attributes.iter().cloned();
    let attributes: BTreeMap<_, _> = attributes
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    CloudEvent {
        attributes,
        ..event
    }
}

fn from(at: start_at::At) -> SubscribeRequest {
    SubscribeRequest {
        start: Some(StartAt { at: Some(at) }),
        ..SubscribeRequest::default()
    }
}

fn earliest() -> start_at::At {
    start_at::At::Earliest(true)
}

fn of_types(types: &[&str]) -> EventFilter {
    let types = types.iter().map(|kind| (*kind).to_owned()).collect();
    EventFilter {
        types,
        ..EventFilter::default()
    }
}

fn ids(records: &[EventRecord]) -> Vec<String> {
    let events = records.iter().map(|record| record.event.as_ref().unwrap());
    events.map(|event| event.id.clone()).collect()
}

fn sequences(records: &[EventRecord]) -> Vec<u64> {
    records.iter().map(|record| record.sequence).collect()
}

fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{prefix}-{number}"))
        .collect()
}

/// What the hub tells of a key, by its plaintext.
async fn shown(hub: &TestHub, key: &str) -> ApiKey {
    let mut keys = hub.client(key).api_keys();
    let whoami = keys.who_am_i(WhoAmIRequest {}).await.unwrap();
    whoami.into_inner().api_key.unwrap()
}

/// Gives a key of the first tenant these scopes instead of its own.
async fn rescope(hub: &TestHub, key: &str, scopes: &[&str]) {
    let api_key = ApiKey {
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        ..shown(hub, key).await
    };
    let request = UpdateApiKeyRequest {
        api_key: Some(api_key),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["scopes".to_owned()],
        }),
    };
    let admin = hub.client(&hub.first_tenant().admin_key);
    admin.api_keys().update_api_key(request).await.unwrap();
}

/// Revokes a key of the first tenant, by its plaintext.
async fn revoke(hub: &TestHub, key: &str) {
    let key_id = shown(hub, key).await.key_id;
    let request = RevokeApiKeyRequest {
        key_id,
        ..RevokeApiKeyRequest::default()
    };
    let admin = hub.client(&hub.first_tenant().admin_key);
    admin.api_keys().revoke_api_key(request).await.unwrap();
}
