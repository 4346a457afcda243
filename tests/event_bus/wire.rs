//! Bytes that no CloudEvents library of today writes, published and read as bytes.

use bytes::Bytes;
use http::uri::PathAndQuery;
use hub_client::{Error, Transport};
use hub_proto::hub::event_bus::v1::{PublishResponse, SubscribeRequest};
use hub_proto::wire::{EventBatch, PublishRequest, SubscribeResponse, subscribe_response::Frame};
use prost::Message;
use tonic::Request;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

use super::{Product, earliest, event, from, text, ticket, with_attributes};
use crate::support::TestHub;

const PUBLISH: &str = "/hub.event_bus.v1.EventBus/Publish";
const SUBSCRIBE: &str = "/hub.event_bus.v1.EventBus/Subscribe";

/// Publishes encoded events.
pub async fn publish(transport: Transport, events: Vec<Vec<u8>>) -> Result<PublishResponse, Error> {
    let events = events.into_iter().map(Bytes::from).collect();
    let request = PublishRequest {
        events,
        ..PublishRequest::default()
    };
    let mut grpc = Grpc::new(transport);
    grpc.ready().await.unwrap();
    let codec: ProstCodec<PublishRequest, PublishResponse> = ProstCodec::default();
    let path = PathAndQuery::from_static(PUBLISH);
    let answer = grpc.unary(Request::new(request), path, codec).await;
    answer.map(tonic::Response::into_inner).map_err(Error::from)
}

/// The encoded records of the first frame with events.
async fn read(transport: Transport, request: SubscribeRequest) -> EventBatch {
    let mut grpc = Grpc::new(transport);
    grpc.ready().await.unwrap();
    let codec: ProstCodec<SubscribeRequest, SubscribeResponse> = ProstCodec::default();
    let path = PathAndQuery::from_static(SUBSCRIBE);
    let answer = grpc
        .server_streaming(Request::new(request), path, codec)
        .await;
    let mut frames = answer.unwrap().into_inner();
    loop {
        let frame = frames
            .message()
            .await
            .unwrap()
            .expect("one more frame")
            .frame;
        if let Some(Frame::Events(batch)) = frame {
            return batch;
        }
    }
}

/// The attributes of a ticket, in this order on the wire.
fn ordered(attributes: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = ticket("a").encode_to_vec();
    for (name, value) in attributes {
        let event = with_attributes(Default::default(), &[(name, text(value))]);
        bytes.extend(event.encode_to_vec());
    }
    bytes
}

/// A varint field that CloudEvents does not have.
fn unknown_field(number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(number << 3, &mut bytes);
    bytes.push(42);
    bytes
}

both_databases! {
    async fn a_ticket_with_unknown_fields_comes_back_byte_for_byte(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        // Out of order, an attribute twice, and fields that only a newer library knows.
        let mut bytes = unknown_field(900);
        bytes.extend(ordered(&[("zeta", "1"), ("alpha", "2"), ("zeta", "3")]));
        bytes.extend(unknown_field(20));
        publish(hub.client(&psa.key).transport(), vec![bytes.clone()]).await.unwrap();
        let batch = read(hub.client(&portal.key).transport(), from(earliest())).await;
        let found = batch.records.windows(bytes.len()).filter(|part| *part == bytes);
        assert_eq!(found.count(), 1, "{:?} in {:?}", bytes, batch.records);
    }

    async fn attributes_in_another_order_are_the_same_event(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let transport = || hub.client(&psa.key).transport();
        let first = ordered(&[("alpha", "1"), ("beta", "2")]);
        publish(transport(), vec![first]).await.unwrap();
        for same in [
            &[("beta", "2"), ("alpha", "1")][..],
            &[("alpha", "0"), ("beta", "2"), ("alpha", "1")][..],
        ] {
            let again = publish(transport(), vec![ordered(same)]).await.unwrap();
            assert!(again.results[0].duplicate, "{same:?}");
        }
        let other = publish(transport(), vec![ordered(&[("beta", "2"), ("alpha", "3")])]).await;
        assert_eq!(other.unwrap_err().reason(), Some("EVENT_ID_REUSED"));
    }

    async fn bytes_that_are_no_event_are_refused(hub: TestHub) {
        let psa = Product::new(&hub, "psa").await;
        let mut not_utf8 = event("ticket.created", "").encode_to_vec();
        not_utf8.extend([0x0a, 2, 0xff, 0xfe]);
        for (bytes, attribute) in [
            (vec![0xff, 0xff, 0xff], "event"),
            (vec![0x0a, 200], "event"),
            (not_utf8, "id"),
            (Vec::new(), "id"),
        ] {
            let refused = publish(hub.client(&psa.key).transport(), vec![bytes]).await;
            let error = refused.unwrap_err();
            assert_eq!(error.reason(), Some("EVENT_INVALID"), "{error}");
            assert_eq!(error.metadata()["attribute"], attribute);
        }
    }
}
