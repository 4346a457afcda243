//! ApiKeys of the fake hub.

use std::time::Duration;

use hub_proto::hub::api_keys::v1::watch_api_keys_response::Frame;
use hub_proto::hub::api_keys::v1::{
    ApiKeyChanges, VerifyApiKeyRequest, VerifyApiKeyResponse, WatchApiKeysRequest,
    WatchApiKeysResponse,
};
use hub_proto::server::api_keys_server::ApiKeys;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::opened;

/// A VerifyApiKey call that waits for its answer.
pub(crate) struct VerifyCall {
    pub(crate) request: VerifyApiKeyRequest,
    answer: oneshot::Sender<Result<VerifyApiKeyResponse, Status>>,
}

/// A WatchApiKeys stream; it ends with status OK when this is dropped.
pub(crate) struct WatchCall {
    responses: mpsc::Sender<Result<WatchApiKeysResponse, Status>>,
}

pub(super) struct Keys {
    pub(super) verifies: mpsc::UnboundedSender<VerifyCall>,
    pub(super) watches: mpsc::UnboundedSender<WatchCall>,
}

#[tonic::async_trait]
impl ApiKeys for Keys {
    async fn verify_api_key(
        &self,
        request: Request<VerifyApiKeyRequest>,
    ) -> Result<Response<VerifyApiKeyResponse>, Status> {
        let (answer, told) = oneshot::channel();
        let call = VerifyCall {
            request: request.into_inner(),
            answer,
        };
        let ended = || Status::unavailable("the test ended");
        self.verifies.send(call).map_err(|_| ended())?;
        Ok(Response::new(told.await.map_err(|_| ended())??))
    }

    async fn watch_api_keys(
        &self,
        _request: Request<WatchApiKeysRequest>,
    ) -> Result<Response<BoxStream<WatchApiKeysResponse>>, Status> {
        let (responses, stream) = mpsc::channel(16);
        self.watches
            .send(WatchCall { responses })
            .map_err(|_| Status::unavailable("the test ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

impl VerifyCall {
    pub(crate) fn tell(self, told: VerifyApiKeyResponse) {
        // Whoever asked may have gone.
        let _ = self.answer.send(Ok(told));
    }

    pub(crate) fn fail(self, status: Status) {
        let _ = self.answer.send(Err(status));
    }
}

impl WatchCall {
    pub(crate) async fn send(&self, frame: Frame) {
        let frame = Some(frame);
        let response = WatchApiKeysResponse { frame };
        self.responses.send(Ok(response)).await.unwrap();
    }

    pub(crate) async fn open(&self, epoch: u64, heartbeat: Duration) {
        self.send(Frame::Opened(opened("", epoch, heartbeat))).await;
    }

    pub(crate) async fn change(&self, key_id: &str, epoch: u64) {
        let changes = ApiKeyChanges {
            key_ids: vec![key_id.into()],
            epoch,
            tenant_id: "tnt_1".into(),
            ..Default::default()
        };
        self.send(Frame::Changes(changes)).await;
    }

    pub(crate) async fn fail(self, status: Status) {
        self.responses.send(Err(status)).await.unwrap();
    }

    /// Ends when the client has ended the stream.
    pub(crate) async fn closed(&self) {
        self.responses.closed().await;
    }
}
