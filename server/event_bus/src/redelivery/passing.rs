//! An event that another process is to deliver again, for it has the subscription at work.

use std::sync::Arc;

use axum::Router;
use axum::routing::post;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hub_core::auth::{self, Caller};
use hub_core::error::Result;
use hub_core::journal::TenantRef;
use hub_core::peers::moving;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::forward::{self, Failed};
use crate::group::Group;
use crate::groups::{Groups, Place};
use crate::leasing::Key;
use crate::subscriptions::Settings;

/// Path of the call; of no contract, as that of a branch.
const PATH: &str = "/hub.internal.v1.Redelivery/Redeliver";

/// What is to be delivered again.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Again {
    #[prost(string, tag = "1")]
    pub(super) subscription_id: String,
    #[prost(uint64, tag = "2")]
    pub(super) seq: u64,
    /// The ordering key, if it has one.
    #[prost(uint64, optional, tag = "3")]
    pub(super) key: Option<u64>,
    #[prost(uint32, tag = "4")]
    pub(super) bytes: u32,
    /// By its position alone it counts as delivered.
    #[prost(bool, tag = "5")]
    pub(super) derived_delivered: bool,
}

/// Where it is queued.
pub(super) enum Queueing {
    /// Here, once this generation of the group is on disk.
    Queued(Arc<Group>, u64),
    /// It is to be delivered anyway.
    Unchanged,
    /// Another process has the subscription.
    Elsewhere(Arc<str>),
}

/// What became of it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Queued {
    /// False if it is to be delivered anyway. True is on disk.
    #[prost(bool, tag = "1")]
    queued: bool,
}

impl Again {
    /// Queues it where the subscription is at work in this process; else returns the process that
    /// has it. Errors: `STORE_BUSY`.
    pub(super) async fn here(
        &self,
        groups: &Arc<Groups>,
        tenant: &TenantRef,
        settings: &Settings,
        forwarded: bool,
    ) -> Result<Queueing> {
        let mut queued = None;
        let queues = |group: &Arc<Group>| {
            queued = self.at(group);
            queued.is_some()
        };
        let place = groups.reach(tenant, settings, forwarded, queues).await?;
        Ok(match (place, queued) {
            (Place::Here(group), Some((true, generation))) => Queueing::Queued(group, generation),
            (Place::Here(_), _) => Queueing::Unchanged,
            (Place::Elsewhere(owner), _) => Queueing::Elsewhere(owner),
        })
    }

    /// False if it is not settled; `None` if the group is over.
    fn at(&self, group: &Arc<Group>) -> Option<(bool, u64)> {
        group.redeliver(
            self.seq,
            self.key.map(Key),
            self.bytes,
            self.derived_delivered,
        )
    }
}

/// Queues it in the process that has the subscription. Errors: `STORE_BUSY`.
pub(super) async fn pass_on(
    groups: &Groups,
    owner: &Arc<str>,
    caller: &Caller,
    again: Again,
) -> Result<bool> {
    let (core, id) = (&groups.parts().core, again.subscription_id.clone());
    let answered = forward::unary::<_, Queued>(core, owner, caller, PATH, again).await;
    match answered {
        Ok(answer) => Ok(answer.queued),
        Err(failed) => {
            groups.whereabouts().forget(&id);
            let cause = match failed {
                Failed::Moving(cause) => cause,
                Failed::Answered(status) => {
                    tracing::debug!("another process did not deliver again: {status}");
                    "owner_busy"
                }
            };
            // The chunk is done again.
            Err(moving(cause))
        }
    }
}

/// Serves those calls.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) groups: Arc<Groups>,
}

impl Service {
    /// Its route. Only processes of this hub are admitted to it.
    pub(crate) fn router(self) -> Router {
        let serve = move |request: axum::extract::Request| {
            let service = self.clone();
            async move {
                let codec = ProstCodec::<Queued, Again>::default();
                let answered = Grpc::new(codec).unary(service, request).await;
                answered.map(axum::body::Body::new)
            }
        };
        Router::new().route(PATH, post(serve))
    }

    async fn queue(&self, caller: &Caller, again: &Again) -> Result<bool> {
        let (groups, tenant) = (&self.groups, caller.tenant()?);
        let settings = groups.resolve(tenant, None, &again.subscription_id).await?;
        match again.here(groups, tenant, &settings, true).await? {
            Queueing::Queued(group, generation) => {
                group.saved(generation).await?;
                Ok(true)
            }
            Queueing::Unchanged => Ok(false),
            Queueing::Elsewhere(_) => Err(moving("moved")),
        }
    }
}

impl UnaryService<Again> for Service {
    type Response = Queued;
    type Future = BoxFuture<'static, Result<Response<Queued>, Status>>;

    fn call(&mut self, request: Request<Again>) -> Self::Future {
        let service = self.clone();
        async move {
            let caller = auth::caller(&request)?;
            let queued = service.queue(&caller, request.get_ref()).await?;
            Ok(Response::new(Queued { queued }))
        }
        .boxed()
    }
}
