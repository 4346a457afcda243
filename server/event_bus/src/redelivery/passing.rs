//! An event that another process is to deliver again, for it has the subscription at work.

use std::sync::Arc;

use axum::Router;
use hub_core::auth::Caller;
use hub_core::error::Result;
use hub_core::journal::TenantRef;
use hub_core::peers::moving;

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
    /// So much is unsettled before it that the subscription does not come to it now.
    OutOfReach,
    /// So much is redelivered and unsettled that nothing more is queued now.
    Full,
    /// Another process has the subscription.
    Elsewhere(Arc<str>),
}

/// What became of it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Queued {
    /// False if it is to be delivered anyway. True is on disk.
    #[prost(bool, tag = "1")]
    queued: bool,
    /// So much is unsettled before it that the subscription does not come to it now.
    #[prost(bool, tag = "2")]
    out_of_reach: bool,
    /// So much is redelivered and unsettled that nothing more is queued now.
    #[prost(bool, tag = "3")]
    full: bool,
}

impl Queued {
    pub(super) fn in_line() -> Queued {
        Queued {
            queued: true,
            ..Queued::default()
        }
    }

    pub(super) fn out_of_reach() -> Queued {
        Queued {
            out_of_reach: true,
            ..Queued::default()
        }
    }

    pub(super) fn full() -> Queued {
        Queued {
            full: true,
            ..Queued::default()
        }
    }

    /// Nothing was done: it is to be tried later.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Name of the outcome among the counters of the job; `None` if it is out of reach.
    pub(super) fn counter(&self) -> Option<&'static str> {
        match (self.out_of_reach, self.queued) {
            (true, _) => None,
            (false, true) => Some("queued"),
            (false, false) => Some("unchanged"),
        }
    }
}

impl Queueing {
    /// As it is told, once it is on disk; `None` if another process has it. Errors: `STORE_BUSY`.
    async fn stored(self) -> Result<Option<Queued>> {
        Ok(Some(match self {
            Queueing::Queued(group, generation) => {
                group.saved(generation).await?;
                Queued::in_line()
            }
            Queueing::Unchanged => Queued::default(),
            Queueing::OutOfReach => Queued::out_of_reach(),
            Queueing::Full => Queued::full(),
            Queueing::Elsewhere(_) => return Ok(None),
        }))
    }
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
        let works = |group: &Arc<Group>| !group.is_over();
        let group = match groups.reach(tenant, settings, forwarded, works).await? {
            Place::Here(group) => group,
            Place::Elsewhere(owner) => return Ok(Queueing::Elsewhere(owner)),
        };
        // What it has not come to yet would be dropped when it does, if it was not routed then.
        if !group.reach(self.seq).await? {
            return Ok(Queueing::OutOfReach);
        }
        if !group.has_room_to_redeliver() {
            return Ok(Queueing::Full);
        }
        match self.at(&group) {
            Some((true, generation)) => Ok(Queueing::Queued(group, generation)),
            Some((false, _)) => Ok(Queueing::Unchanged),
            None => Err(moving("moved")),
        }
    }

    /// False if it was not settled; `None` if the group is over.
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
) -> Result<Queued> {
    let (core, id) = (&groups.parts().core, again.subscription_id.clone());
    let answered = forward::unary::<_, Queued>(core, owner, caller, PATH, again).await;
    match answered {
        Ok(answer) => Ok(answer),
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
    /// Its route.
    pub(crate) fn router(self) -> Router {
        forward::serve(PATH, move |caller, again| {
            let service = self.clone();
            async move { Ok(service.queue(&caller, &again).await?) }
        })
    }

    async fn queue(&self, caller: &Caller, again: &Again) -> Result<Queued> {
        let (groups, tenant) = (&self.groups, caller.tenant()?);
        let settings = groups.resolve(tenant, None, &again.subscription_id).await?;
        let queueing = again.here(groups, tenant, &settings, true).await?;
        queueing.stored().await?.ok_or_else(|| moving("moved"))
    }
}
