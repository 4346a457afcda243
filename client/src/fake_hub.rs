//! A hub for unit tests: the test itself plays the server, call by call, over a pipe.

mod keys;

use std::sync::Arc;
use std::time::Duration;

use hub_proto::hub::core::v1::{Closing, ClosingReason, Opened};
use hub_proto::hub::event_bus::v1::consume_response::Frame as ConsumeFrame;
use hub_proto::hub::event_bus::v1::publish_stream_response::Frame as PublishFrame;
use hub_proto::hub::event_bus::v1::{
    AckBatch, ConsumeOpen, ConsumeRequest, ConsumeResponse, Credit, PublishStreamResponse,
    SubscribeRequest, consume_request,
};
use hub_proto::server::api_keys_server::ApiKeysServer;
use hub_proto::server::event_bus_server::{EventBus, EventBusServer};
use hub_proto::wire;
use hub_proto::wire::subscribe_response::Frame;
use hub_proto::wire::{PublishStreamRequest, SubscribeResponse};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::io::DuplexStream;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::codegen::BoxStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tower::service_fn;

pub(crate) use self::keys::{VerifyCall, WatchCall};
use crate::Hub;

type Pipes = mpsc::UnboundedSender<std::io::Result<DuplexStream>>;

/// Calls as they come in.
pub(crate) struct FakeHub {
    pub(crate) hub: Hub,
    subscribes: mpsc::UnboundedReceiver<SubscribeCall>,
    publishes: mpsc::UnboundedReceiver<PublishCall>,
    consumes: mpsc::UnboundedReceiver<ConsumeCall>,
    verifies: mpsc::UnboundedReceiver<VerifyCall>,
    watches: mpsc::UnboundedReceiver<WatchCall>,
    pipes: Arc<Mutex<Pipes>>,
}

/// A Subscribe stream; it ends with status OK when this is dropped.
pub(crate) struct SubscribeCall {
    pub(crate) request: SubscribeRequest,
    responses: mpsc::Sender<Result<SubscribeResponse, Status>>,
}

/// A PublishStream stream; it ends with status OK when this is dropped.
pub(crate) struct PublishCall {
    frames: Streaming<PublishStreamRequest>,
    responses: mpsc::Sender<Result<PublishStreamResponse, Status>>,
}

/// A Consume stream; it ends with status OK when this is dropped.
pub(crate) struct ConsumeCall {
    frames: Streaming<ConsumeRequest>,
    responses: mpsc::Sender<Result<wire::ConsumeResponse, Status>>,
}

struct Bus {
    subscribes: mpsc::UnboundedSender<SubscribeCall>,
    publishes: mpsc::UnboundedSender<PublishCall>,
    consumes: mpsc::UnboundedSender<ConsumeCall>,
}

#[tonic::async_trait]
impl EventBus for Bus {
    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<BoxStream<SubscribeResponse>>, Status> {
        let (responses, stream) = mpsc::channel(16);
        let call = SubscribeCall {
            request: request.into_inner(),
            responses,
        };
        self.subscribes
            .send(call)
            .map_err(|_| Status::unavailable("the test ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishStreamRequest>>,
    ) -> Result<Response<BoxStream<PublishStreamResponse>>, Status> {
        let (responses, stream) = mpsc::channel(16);
        let call = PublishCall {
            frames: request.into_inner(),
            responses,
        };
        self.publishes
            .send(call)
            .map_err(|_| Status::unavailable("the test ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn consume(
        &self,
        request: Request<Streaming<ConsumeRequest>>,
    ) -> Result<Response<BoxStream<wire::ConsumeResponse>>, Status> {
        let (responses, stream) = mpsc::channel(16);
        let call = ConsumeCall {
            frames: request.into_inner(),
            responses,
        };
        self.consumes
            .send(call)
            .map_err(|_| Status::unavailable("the test ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// A server behind a pipe of its own; it serves until its pipes are dropped.
fn serve(bus: Bus, keys: keys::Keys) -> Pipes {
    let (pipes, incoming) = mpsc::unbounded_channel();
    let incoming = UnboundedReceiverStream::new(incoming);
    tokio::spawn(
        Server::builder()
            .add_service(EventBusServer::new(bus))
            .add_service(ApiKeysServer::new(keys))
            .serve_with_incoming(incoming),
    );
    pipes
}

impl FakeHub {
    pub(crate) fn start() -> Self {
        let (subscribe_sender, subscribes) = mpsc::unbounded_channel();
        let (publish_sender, publishes) = mpsc::unbounded_channel();
        let (consume_sender, consumes) = mpsc::unbounded_channel();
        let bus = Bus {
            subscribes: subscribe_sender,
            publishes: publish_sender,
            consumes: consume_sender,
        };
        let (verify_sender, verifies) = mpsc::unbounded_channel();
        let (watch_sender, watches) = mpsc::unbounded_channel();
        let keys = keys::Keys {
            verifies: verify_sender,
            watches: watch_sender,
        };
        let pipes = Arc::new(Mutex::new(serve(bus, keys)));
        let connected = pipes.clone();
        let connect = service_fn(move |_| {
            let pipes = connected.clone();
            async move {
                let (ours, theirs) = tokio::io::duplex(1 << 20);
                pipes
                    .lock()
                    .await
                    .send(Ok(theirs))
                    .map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(ours))
            }
        });
        let hub = Hub::builder("http://fake")
            .api_key("tos_key")
            .connect_with(|endpoint| endpoint.connect_with_connector_lazy(connect))
            .unwrap();
        FakeHub {
            hub,
            subscribes,
            publishes,
            consumes,
            verifies,
            watches,
            pipes,
        }
    }

    /// From now on nobody answers at the address.
    pub(crate) async fn vanish(&mut self) {
        *self.pipes.lock().await = mpsc::unbounded_channel().0;
    }

    /// The next Subscribe call.
    pub(crate) async fn subscribed(&mut self) -> SubscribeCall {
        self.subscribes.recv().await.unwrap()
    }

    /// The next PublishStream call.
    pub(crate) async fn published(&mut self) -> PublishCall {
        self.publishes.recv().await.unwrap()
    }

    /// The next Consume call, and what opens it.
    pub(crate) async fn consumed(&mut self) -> (ConsumeCall, ConsumeOpen) {
        let mut call = self.consumes.recv().await.unwrap();
        match call.frame().await {
            Some(consume_request::Frame::Open(open)) => (call, open),
            frame => panic!("{frame:?} opens no stream"),
        }
    }

    /// The next VerifyApiKey call.
    pub(crate) async fn asked(&mut self) -> VerifyCall {
        self.verifies.recv().await.unwrap()
    }

    /// Whether no VerifyApiKey call waits.
    pub(crate) fn is_not_asked(&mut self) -> bool {
        self.verifies.try_recv().is_err()
    }

    /// The next WatchApiKeys call.
    pub(crate) async fn watched(&mut self) -> WatchCall {
        self.watches.recv().await.unwrap()
    }

    /// Whether no PublishStream call waits.
    pub(crate) fn has_no_publisher(&mut self) -> bool {
        self.publishes.try_recv().is_err()
    }
}

impl SubscribeCall {
    pub(crate) async fn send(&self, frame: Frame) {
        self.responses
            .send(Ok(SubscribeResponse { frame: Some(frame) }))
            .await
            .unwrap();
    }

    pub(crate) async fn open(&self, cursor: &str, head_sequence: u64, heartbeat: Duration) {
        self.send(Frame::Opened(opened(cursor, head_sequence, heartbeat)))
            .await;
    }

    pub(crate) async fn fail(self, status: Status) {
        self.responses.send(Err(status)).await.unwrap();
    }
}

impl PublishCall {
    pub(crate) async fn send(&self, frame: PublishFrame) {
        self.responses
            .send(Ok(PublishStreamResponse { frame: Some(frame) }))
            .await
            .unwrap();
    }

    pub(crate) async fn open(&self, heartbeat: Duration) {
        self.send(PublishFrame::Opened(opened("", 0, heartbeat)))
            .await;
    }

    pub(crate) async fn fail(self, status: Status) {
        self.responses.send(Err(status)).await.unwrap();
    }

    /// The next frame, or `None` when the client ended its half.
    pub(crate) async fn frame(&mut self) -> Option<PublishStreamRequest> {
        self.frames.message().await.unwrap()
    }

    /// Whether no frame comes for a while.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(10), self.frames.message())
            .await
            .is_err()
    }
}

impl ConsumeCall {
    pub(crate) async fn send(&self, frame: ConsumeFrame) {
        self.send_of("", frame).await;
    }

    /// A frame about one of all tenants.
    pub(crate) async fn send_of(&self, tenant_id: &str, frame: ConsumeFrame) {
        let response = ConsumeResponse {
            frame: Some(frame),
            tenant_id: tenant_id.into(),
        };
        // The same bytes on the wire.
        let response = wire::ConsumeResponse::decode(&response.encode_to_vec()[..]);
        self.responses.send(Ok(response.unwrap())).await.unwrap();
    }

    pub(crate) async fn open(&self, heartbeat: Duration) {
        self.send(ConsumeFrame::Opened(opened("", 0, heartbeat)))
            .await;
    }

    pub(crate) async fn fail(self, status: Status) {
        self.responses.send(Err(status)).await.unwrap();
    }

    /// The next frame, or `None` when the client ended its half.
    pub(crate) async fn frame(&mut self) -> Option<consume_request::Frame> {
        let request = self.frames.message().await.unwrap();
        request.map(|request| request.frame.unwrap())
    }

    /// The next frame, which has to be acks.
    pub(crate) async fn acks(&mut self) -> AckBatch {
        match self.frame().await {
            Some(consume_request::Frame::Acks(acks)) => acks,
            frame => panic!("{frame:?} are no acks"),
        }
    }

    /// The next frame, which has to be credit.
    pub(crate) async fn credit(&mut self) -> Credit {
        match self.frame().await {
            Some(consume_request::Frame::Credit(credit)) => credit,
            frame => panic!("{frame:?} is no credit"),
        }
    }

    /// Whether no frame comes for a while.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(10), self.frames.message())
            .await
            .is_err()
    }
}

fn opened(cursor: &str, head_sequence: u64, heartbeat: Duration) -> Opened {
    Opened {
        session_id: "session".into(),
        cursor: cursor.into(),
        head_sequence,
        heartbeat_interval: Some(heartbeat.try_into().unwrap()),
    }
}

pub(crate) fn closing(reason: ClosingReason, after: Option<Duration>, cursor: &str) -> Closing {
    Closing {
        reason: reason.into(),
        reconnect_after: after.map(|after| after.try_into().unwrap()),
        cursor: cursor.into(),
    }
}
