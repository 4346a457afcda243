//! Proto to domain and back, nothing else.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use hub_core::auth::{self, Authenticator};
use hub_core::module::Core;
use hub_proto::hub::event_bus::v1::{PublishResponse, PublishStreamResponse, SubscribeRequest};
use hub_proto::server::event_bus_server::EventBus;
use hub_proto::wire::{PublishRequest, PublishStreamRequest, SubscribeResponse};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::publish::{self, Publisher};
use crate::publish_stream::PublishSession;
use crate::subscribe::Reader;

/// The service.
pub(crate) struct Service {
    pub(crate) core: Core,
    pub(crate) authenticator: Arc<dyn Authenticator>,
}

#[tonic::async_trait]
impl EventBus for Service {
    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        let caller = auth::caller(&request)?;
        let product = caller.product()?.clone();
        let log = self.core.journal.log(caller.tenant()?).await?;
        let publisher = Publisher { product, log };
        let response = publish::publish(&self.core, &publisher, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishStreamRequest>>,
    ) -> Result<Response<BoxStream<PublishStreamResponse>>, Status> {
        let caller = auth::caller(&request)?;
        let (core, authenticator) = (self.core.clone(), self.authenticator.clone());
        let mut session = PublishSession::new(core, authenticator, caller, request.into_inner())?;
        session.open().await?;
        let frames = stream::unfold(session, |mut session| async move {
            session.next().await.map(|frame| (frame, session))
        });
        Ok(Response::new(frames.boxed()))
    }

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<BoxStream<SubscribeResponse>>, Status> {
        let caller = auth::caller(&request)?;
        let (core, authenticator) = (self.core.clone(), self.authenticator.clone());
        let reader = Reader::open(core, authenticator, caller, request.into_inner()).await?;
        let frames = stream::unfold(Some(reader), |reader| async move {
            let mut reader = reader?;
            match reader.next().await {
                Ok(None) => None,
                Ok(Some(frame)) => {
                    Some((Ok(SubscribeResponse { frame: Some(frame) }), Some(reader)))
                }
                Err(error) => Some((Err(Status::from(error)), None)),
            }
        });
        Ok(Response::new(frames.boxed()))
    }
}
