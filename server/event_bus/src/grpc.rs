//! Proto to domain and back, nothing else.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use hub_core::auth::{self, Authenticator};
use hub_core::module::Core;
use hub_core::replay::Call;
use hub_proto::hub::event_bus::v1::{
    AcknowledgeRequest, AcknowledgeResponse, ConsumeRequest, CreateSubscriptionRequest,
    CreateSubscriptionResponse, DeleteSubscriptionRequest, DeleteSubscriptionResponse,
    EraseEventsRequest, EraseEventsResponse, EventType, ExplainEventRequest, ExplainEventResponse,
    GetEventRequest, GetEventResponse, GetSubscriptionRequest, GetSubscriptionResponse,
    ListEventTypesRequest, ListEventTypesResponse, ListEventsRequest, ListEventsResponse,
    ListSubscriptionsRequest, ListSubscriptionsResponse, PauseSubscriptionRequest,
    PauseSubscriptionResponse, PublishResponse, PublishStreamResponse, PullRequest,
    PutEventTypeRequest, PutEventTypeResponse, RedeliverRequest, RedeliverResponse,
    ResumeSubscriptionRequest, ResumeSubscriptionResponse, SeekSubscriptionRequest,
    SeekSubscriptionResponse, SubscribeRequest, UpdateSubscriptionRequest,
    UpdateSubscriptionResponse,
};
use hub_proto::server::event_bus_server::EventBus;
use hub_proto::wire::{
    ConsumeResponse, PublishRequest, PublishStreamRequest, PullResponse, SubscribeResponse,
};
use prost::Message;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::consume::Session;
use crate::event_types::{self, Catalogues};
use crate::explain::{self, Sources};
use crate::groups::Groups;
use crate::owners::Asking;
use crate::publish::{self, Publisher};
use crate::publish_stream::PublishSession;
use crate::redelivery::Redelivery;
use crate::routing::Configurations;
use crate::seek::SEEK;
use crate::subscribe::Reader;
use crate::subscriptions::{CREATE, Subscriptions};
use crate::{erase, log, log_list, pull};

/// The service.
pub(crate) struct Service {
    pub(crate) core: Core,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) configurations: Configurations,
    pub(crate) catalogues: Arc<Catalogues>,
    pub(crate) groups: Arc<Groups>,
    pub(crate) redelivery: Redelivery,
    pub(crate) subscriptions: Subscriptions,
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
        let publisher = Publisher {
            product,
            log,
            configurations: self.configurations.clone(),
        };
        let response = publish::publish(&self.core, &publisher, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishStreamRequest>>,
    ) -> Result<Response<BoxStream<PublishStreamResponse>>, Status> {
        let caller = auth::caller(&request)?;
        let (core, authenticator) = (self.core.clone(), self.authenticator.clone());
        let configurations = self.configurations.clone();
        let frames = request.into_inner();
        let mut session = PublishSession::new(core, authenticator, configurations, caller, frames)?;
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
        let (configurations, request) = (self.configurations.clone(), request.into_inner());
        let reader = Reader::open(core, authenticator, configurations, caller, request).await?;
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

    async fn consume(
        &self,
        request: Request<Streaming<ConsumeRequest>>,
    ) -> Result<Response<BoxStream<ConsumeResponse>>, Status> {
        let caller = auth::caller(&request)?;
        let (core, authenticator) = (self.core.clone(), self.authenticator.clone());
        let (groups, frames) = (self.groups.clone(), request.into_inner());
        let session = Session::new(core, authenticator, groups, caller, frames)?;
        let frames = stream::unfold(Some(session), |session| async move {
            let mut session = session?;
            match session.next().await {
                Ok(None) => None,
                Ok(Some(frame)) => Some((Ok(frame), Some(session))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(frames.boxed()))
    }

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<PullResponse>, Status> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let pulled = pull::pull(&self.core, &self.groups, &caller, request).await?;
        Ok(Response::new(pulled))
    }

    async fn acknowledge(
        &self,
        request: Request<AcknowledgeRequest>,
    ) -> Result<Response<AcknowledgeResponse>, Status> {
        let caller = auth::caller(&request)?;
        let results = pull::acknowledge(&self.groups, &caller, request.into_inner()).await?;
        Ok(Response::new(AcknowledgeResponse { results }))
    }

    async fn get_event(
        &self,
        request: Request<GetEventRequest>,
    ) -> Result<Response<GetEventResponse>, Status> {
        let caller = auth::caller(&request)?;
        let (asked, owners) = (request.into_inner().event, Asking::of(&caller));
        let (core, configurations) = (&self.core, &self.configurations);
        let entry = log::get(core, configurations, &*self.groups, &owners, asked).await?;
        Ok(Response::new(GetEventResponse { entry: Some(entry) }))
    }

    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let caller = auth::caller(&request)?;
        let (request, at_work) = (request.into_inner(), &*self.groups);
        let (core, configurations) = (&self.core, &self.configurations);
        let page = log_list::list(core, configurations, at_work, &caller, request).await?;
        Ok(Response::new(page))
    }

    async fn redeliver(
        &self,
        request: Request<RedeliverRequest>,
    ) -> Result<Response<RedeliverResponse>, Status> {
        let caller = auth::caller(&request)?;
        let started = self.redelivery.start(&caller, request.into_inner()).await?;
        Ok(Response::new(started))
    }

    async fn erase_events(
        &self,
        request: Request<EraseEventsRequest>,
    ) -> Result<Response<EraseEventsResponse>, Status> {
        let caller = auth::caller(&request)?;
        let EraseEventsRequest { event_ids, reason } = request.into_inner();
        let erased = erase::erase(&self.core, &caller, &event_ids, &reason).await?;
        Ok(Response::new(EraseEventsResponse { erased }))
    }

    async fn explain_event(
        &self,
        request: Request<ExplainEventRequest>,
    ) -> Result<Response<ExplainEventResponse>, Status> {
        let caller = auth::caller(&request)?;
        let sources = Sources {
            core: &self.core,
            configurations: &self.configurations,
            at_work: &*self.groups,
            authenticator: &*self.authenticator,
        };
        let explanation = explain::explain(sources, &caller, request.into_inner()).await?;
        Ok(Response::new(ExplainEventResponse {
            explanation: Some(explanation),
        }))
    }

    async fn list_event_types(
        &self,
        request: Request<ListEventTypesRequest>,
    ) -> Result<Response<ListEventTypesResponse>, Status> {
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let page = (request.page_size, request.page_token.as_str());
        let filter = event_types::Filter {
            source: request.source,
            destination: request.destination,
        };
        let size_of = |entry: &event_types::EventType| show_event_type(entry).encoded_len();
        let (core, catalogues) = (&self.core, &self.catalogues);
        let page = event_types::list(core, catalogues, &caller, &filter, page, size_of).await?;
        Ok(Response::new(ListEventTypesResponse {
            event_types: page
                .entries
                .iter()
                .map(|entry| show_event_type(entry))
                .collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn put_event_type(
        &self,
        request: Request<PutEventTypeRequest>,
    ) -> Result<Response<PutEventTypeResponse>, Status> {
        let caller = auth::caller(&request)?;
        let asked = request.into_inner().event_type.unwrap_or_default();
        let entry = event_types::EventType {
            name: asked.r#type,
            purpose: asked.purpose,
            sources: asked.sources,
            destinations: asked.destinations,
            json_schema: asked.json_schema.into(),
            example: asked.example,
            deprecated: asked.deprecated,
            ..event_types::EventType::default()
        };
        let (core, catalogues) = (&self.core, &self.catalogues);
        let entry = event_types::put(core, catalogues, &caller, entry, &asked.etag).await?;
        Ok(Response::new(PutEventTypeResponse {
            event_type: Some(show_event_type(&entry)),
        }))
    }

    async fn create_subscription(
        &self,
        request: Request<CreateSubscriptionRequest>,
    ) -> Result<Response<CreateSubscriptionResponse>, Status> {
        let caller = auth::caller(&request)?;
        let mut request = request.into_inner();
        let request_id = std::mem::take(&mut request.request_id);
        let retry = Call::new(&caller, CREATE, &request_id, &request);
        let CreateSubscriptionRequest {
            subscription,
            start,
            ..
        } = request;
        let wanted = subscription.unwrap_or_default();
        let made = self.subscriptions.create(&caller, wanted, start, retry);
        Ok(Response::new(made.await?))
    }

    async fn get_subscription(
        &self,
        request: Request<GetSubscriptionRequest>,
    ) -> Result<Response<GetSubscriptionResponse>, Status> {
        let caller = auth::caller(&request)?;
        let id = request.into_inner().subscription_id;
        let subscription = Some(self.subscriptions.get(&caller, &id).await?);
        Ok(Response::new(GetSubscriptionResponse { subscription }))
    }

    async fn list_subscriptions(
        &self,
        request: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let caller = auth::caller(&request)?;
        let page = self.subscriptions.list(&caller, request.into_inner());
        Ok(Response::new(page.await?))
    }

    async fn update_subscription(
        &self,
        request: Request<UpdateSubscriptionRequest>,
    ) -> Result<Response<UpdateSubscriptionResponse>, Status> {
        let caller = auth::caller(&request)?;
        let updated = self.subscriptions.update(&caller, request.into_inner());
        let subscription = Some(updated.await?);
        Ok(Response::new(UpdateSubscriptionResponse { subscription }))
    }

    async fn delete_subscription(
        &self,
        request: Request<DeleteSubscriptionRequest>,
    ) -> Result<Response<DeleteSubscriptionResponse>, Status> {
        let caller = auth::caller(&request)?;
        let DeleteSubscriptionRequest {
            subscription_id,
            etag,
        } = request.into_inner();
        let deleted = self.subscriptions.delete(&caller, &subscription_id, &etag);
        deleted.await?;
        Ok(Response::new(DeleteSubscriptionResponse {}))
    }

    async fn pause_subscription(
        &self,
        request: Request<PauseSubscriptionRequest>,
    ) -> Result<Response<PauseSubscriptionResponse>, Status> {
        let caller = auth::caller(&request)?;
        let paused = self.subscriptions.pause(&caller, request.into_inner());
        let subscription = Some(paused.await?);
        Ok(Response::new(PauseSubscriptionResponse { subscription }))
    }

    async fn resume_subscription(
        &self,
        request: Request<ResumeSubscriptionRequest>,
    ) -> Result<Response<ResumeSubscriptionResponse>, Status> {
        let caller = auth::caller(&request)?;
        let id = request.into_inner().subscription_id;
        let subscription = Some(self.subscriptions.resume(&caller, &id).await?);
        Ok(Response::new(ResumeSubscriptionResponse { subscription }))
    }

    async fn seek_subscription(
        &self,
        request: Request<SeekSubscriptionRequest>,
    ) -> Result<Response<SeekSubscriptionResponse>, Status> {
        let caller = auth::caller(&request)?;
        let mut request = request.into_inner();
        let request_id = std::mem::take(&mut request.request_id);
        let retry = Call::new(&caller, SEEK, &request_id, &request);
        let sought = self.subscriptions.seek(&caller, request, retry);
        Ok(Response::new(sought.await?))
    }
}

fn show_event_type(entry: &event_types::EventType) -> EventType {
    EventType {
        r#type: entry.name.clone(),
        purpose: entry.purpose.clone(),
        sources: entry.sources.clone(),
        destinations: entry.destinations.clone(),
        json_schema: entry.json_schema.to_string(),
        example: entry.example.clone(),
        built_in: entry.built_in,
        deprecated: entry.deprecated,
        etag: entry.etag(),
    }
}
