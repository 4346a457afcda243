//! Client of Hub: what a product imports to publish and receive events, and to call every RPC.
//!
//! - [`Hub`]: one connection with the key, the tenant and the deadlines of its calls. Its raw
//!   generated clients hide nothing; see [`Hub::event_bus`] and its neighbours.
//! - [`Publisher`]: publishes over one stream, many events at once, and sends again what was not
//!   acknowledged when the stream breaks. Hub stores an event once, however often it is sent.
//! - [`Subscriber`]: reads events as a stream that reconnects and goes on where it was.
//! - [`Consumer`]: works off a durable subscription, whose position, retries and failures the hub
//!   keeps: a handler gets each event and says what becomes of it.
//! - [`ApiKeyLayer`]: lets only requests with a valid key through, in a server of axum or tonic.
//! - [`Error`]: code, reason, metadata and advice of a refusal.
//!
//! ```no_run
//! use futures_util::StreamExt;
//! use hub_client::{CloudEvent, Delivery, Hub, SubscribeOptions};
//!
//! # async fn run() -> Result<(), hub_client::Error> {
//! let hub = Hub::builder("http://127.0.0.1:7070").api_key("tos_...").connect_lazy()?;
//!
//! let publisher = hub.publisher();
//! let event = CloudEvent {
//!     id: "1".into(),
//!     source: "/psa".into(),
//!     spec_version: "1.0".into(),
//!     r#type: "ticket.created".into(),
//!     ..Default::default()
//! };
//! publisher.publish(event).await?;
//!
//! let mut events = hub.subscribe(SubscribeOptions::default());
//! while let Some(delivery) = events.next().await {
//!     if let Delivery::Events(batch) = delivery? {
//!         // Process batch.events, then store batch.cursor.
//!     }
//! }
//!
//! let consumer = hub.consume("portal").concurrency(32).run(async |event| {
//!     // An error is a retry, by the subscription's policy. See `Answer` for more.
//!     store(event.record).await
//! });
//! // Until the program is to end:
//! consumer.shutdown().await?;
//! # Ok(())
//! # }
//! # async fn store(record: hub_client::EventRecord) -> Result<(), String> { Ok(()) }
//! ```
//!
//! Everything here needs a tokio runtime with time and I/O enabled.

mod api_keys;
mod backoff;
mod call;
mod consumer;
mod error;
#[cfg(test)]
mod fake_hub;
mod hub;
mod publisher;
mod silence;
mod subscriber;
#[cfg(feature = "tls")]
mod tls;

pub use api_keys::{ApiKeyBody, ApiKeyLayer, ApiKeyLayerState, ApiKeyService, Caller};
pub use call::{CallHeaders, Transport};
pub use consumer::{
    Answer, Consumer, ConsumerBuilder, ConsumerCounts, ConsumerNotice, ConsumerState, LeasedEvent,
};
pub use error::{Error, Result, Violation};
pub use hub::{Hub, HubBuilder};
/// The generated messages, clients and tables of the contract.
pub use hub_proto as proto;
pub use hub_proto::hub::core::v1::{CaughtUp, Gap, GapReason, Progress};
pub use hub_proto::hub::event_bus::v1::cloud_event::{
    CloudEventAttributeValue, Data, cloud_event_attribute_value::Attr,
};
pub use hub_proto::hub::event_bus::v1::{
    CloudEvent, EventBatch, EventFilter, EventRecord, PublishWarning, StartAt, SubscriptionState,
    start_at,
};
pub use publisher::{PendingReceipt, Publisher, PublisherOptions, PublisherState, Receipt};
pub use subscriber::{Delivery, SubscribeOptions, Subscriber, SubscriberState};
