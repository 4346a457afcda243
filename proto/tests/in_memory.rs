//! Client and server of the crate against each other, without a network.
// A test may panic: that is how it fails.
#![allow(clippy::unwrap_used, clippy::panic)]

use bytes::BytesMut;
use hub_proto::hub::event_bus::v1 as bus;
use hub_proto::hub::event_bus::v1::event_bus_client::EventBusClient;
use hub_proto::server::event_bus_server::{EventBus, EventBusServer};
use hub_proto::wire::{self, subscribe_response::Frame};
use prost::Message;
use tonic::codegen::BoxStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::StatusExt;

/// A bus that keeps nothing.
struct Bus;

#[tonic::async_trait]
impl EventBus for Bus {
    async fn publish(
        &self,
        request: Request<wire::PublishRequest>,
    ) -> Result<Response<bus::PublishResponse>, Status> {
        let mut results = Vec::new();
        for event in request.into_inner().events {
            let view = wire::CloudEventView::decode(event).unwrap();
            let event_id = String::from_utf8(view.id.to_vec()).unwrap();
            results.push(bus::PublishResult {
                event_id,
                ..Default::default()
            });
        }
        Ok(Response::new(bus::PublishResponse {
            results,
            cursor: "end".to_owned(),
        }))
    }

    async fn subscribe(
        &self,
        _: Request<bus::SubscribeRequest>,
    ) -> Result<Response<BoxStream<wire::SubscribeResponse>>, Status> {
        let record = bus::EventRecord {
            sequence: 7,
            ..Default::default()
        };
        let mut run = BytesMut::new();
        wire::append_record(&mut run, &record.encode_to_vec());
        wire::append_record(&mut run, &record.encode_to_vec());
        let batch = wire::EventBatch {
            records: run.freeze(),
            cursor: "c".to_owned(),
        };
        let frame = wire::SubscribeResponse {
            frame: Some(Frame::Events(batch)),
        };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(frame)]))))
    }

    async fn consume(
        &self,
        request: Request<Streaming<bus::ConsumeRequest>>,
    ) -> Result<Response<BoxStream<wire::ConsumeResponse>>, Status> {
        let mut frames = request.into_inner();
        while frames.message().await?.is_some() {}
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }
}

fn client() -> EventBusClient<EventBusServer<Bus>> {
    EventBusClient::new(EventBusServer::new(Bus))
}

fn event(id: &str) -> bus::CloudEvent {
    bus::CloudEvent {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn invalid_fields(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(info.reason, "FIELD_INVALID");
    info.metadata.get("fields").cloned().unwrap_or_default()
}

#[tokio::test]
async fn published_events_reach_the_handler_encoded() {
    let request = bus::PublishRequest {
        events: vec![event("1"), event("2")],
        ..Default::default()
    };
    let response = client().publish(request).await.unwrap().into_inner();
    let ids: Vec<_> = response
        .results
        .iter()
        .map(|result| result.event_id.as_str())
        .collect();
    assert_eq!(ids, ["1", "2"]);
}

#[tokio::test]
async fn encoded_batches_reach_the_client_decoded() {
    let mut frames = client()
        .subscribe(bus::SubscribeRequest::default())
        .await
        .unwrap()
        .into_inner();
    let frame = frames.message().await.unwrap().unwrap().frame.unwrap();
    let bus::subscribe_response::Frame::Events(batch) = frame else {
        panic!("{frame:?}")
    };
    assert_eq!(batch.events.len(), 2);
    assert_eq!((batch.events[1].sequence, batch.cursor.as_str()), (7, "c"));
}

#[tokio::test]
async fn an_invalid_request_does_not_reach_the_handler() {
    let status = client()
        .publish(bus::PublishRequest::default())
        .await
        .unwrap_err();
    assert_eq!(invalid_fields(&status), "events");
    assert_eq!(
        status.message(),
        "Request is invalid: events: must be set. Fix the listed fields. [FIELD_INVALID]"
    );
}

#[tokio::test]
async fn an_invalid_frame_ends_its_stream() {
    let credit = bus::Credit {
        events: 10_001,
        bytes: u64::MAX,
    };
    let frame = Some(bus::consume_request::Frame::Credit(credit));
    let frames = tokio_stream::iter([bus::ConsumeRequest { frame }]);
    let status = client().consume(frames).await.unwrap_err();
    assert_eq!(invalid_fields(&status), "credit.events,credit.bytes");
}

#[tokio::test]
async fn an_rpc_without_handler_is_unimplemented() {
    let status = client()
        .list_events(bus::ListEventsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}
