//! A subscriber that decodes no more than the clients of the peers do: the payload.
//!
//! Hub's own client decodes every field of every event, which is most of what ten subscribers in
//! one process do. This one shows what the server gives.

use bytes::Bytes;
use hub_client::Transport;
use hub_client::proto::hub::event_bus::v1::SubscribeRequest;
use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use crate::Result;
use crate::contender::OnEvent;

const PATH: &str = "/hub.event_bus.v1.EventBus/Subscribe";
/// Largest frame that is read.
const FRAME_BYTES_MAX: usize = 8 << 20;

/// `SubscribeResponse`, as far as it is read.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "2")]
    events: Option<Batch>,
    #[prost(bytes = "bytes", optional, tag = "4")]
    caught_up: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "5")]
    gap: Option<Bytes>,
}

/// `EventBatch`.
#[derive(Clone, PartialEq, Message)]
struct Batch {
    #[prost(message, repeated, tag = "1")]
    records: Vec<Record>,
}

/// `EventRecord`.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(message, optional, tag = "2")]
    event: Option<Event>,
}

/// `CloudEvent`.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(bytes = "bytes", tag = "6")]
    binary_data: Bytes,
}

/// A stream that has been opened.
pub(crate) struct Reader {
    stream: Streaming<Response>,
}

impl Reader {
    /// Opens a stream and waits until what comes next is live.
    pub(crate) async fn live(transport: Transport) -> Result<Self> {
        let mut client = Grpc::new(transport).max_decoding_message_size(FRAME_BYTES_MAX);
        client.ready().await?;
        let request = Request::new(SubscribeRequest::default());
        let codec = ProstCodec::<SubscribeRequest, Response>::default();
        let path = PathAndQuery::from_static(PATH);
        let stream = client.server_streaming(request, path, codec).await?;
        let mut reader = Reader {
            stream: stream.into_inner(),
        };
        while reader.next().await?.caught_up.is_none() {}
        Ok(reader)
    }

    async fn next(&mut self) -> Result<Response> {
        let response = self.stream.message().await?.ok_or("a stream ended")?;
        match response.gap {
            Some(_) => Err("events are missing".into()),
            None => Ok(response),
        }
    }

    pub(crate) async fn read(mut self, mut on_event: OnEvent) -> Result<()> {
        loop {
            let batch = self.next().await?.events.unwrap_or_default();
            for record in batch.records {
                on_event(&record.event.ok_or("a record has no event")?.binary_data);
            }
        }
    }
}
