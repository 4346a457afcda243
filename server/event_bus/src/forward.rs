//! Calls for a subscription that another process has at work: they are passed on to it, and its
//! answers come back as they are.
//!
//! A process that died is the owner until it counts as dead, and one that stops until it has let
//! go. Who calls meanwhile waits a little instead of being sent away.

mod serving;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, Stream};
use hub_core::auth::Caller;
use hub_core::error::Error;
use hub_core::module::Core;
use hub_core::peers::{Channel, moving};
use hub_core::processes::{LIVE_FOR, Peers};
use hub_proto::hub::event_bus::v1::{
    AcknowledgeRequest, AcknowledgeResponse, ConsumeRequest, PullRequest,
};
use hub_proto::wire::{ConsumeResponse, PullResponse};
use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

pub(crate) use serving::{serve, serve_streams};

use crate::branch;
use crate::groups::Groups;

const PULL: &str = "/hub.event_bus.v1.EventBus/Pull";
const ACKNOWLEDGE: &str = "/hub.event_bus.v1.EventBus/Acknowledge";
const CONSUME: &str = "/hub.event_bus.v1.EventBus/Consume";

/// How long a call waits for a subscription that moves: longer than a process that died counts as
/// alive.
const PATIENCE: Duration = LIVE_FOR.saturating_mul(4);
/// Pause before it is looked again who has it.
const PAUSE: Duration = Duration::from_millis(100);
/// Causes with which a process says that it has the subscription no more.
const MOVED: [&str; 5] = ["moved", "forwarded", "owner_gone", "owner_busy", "not_live"];

/// A call was not answered by the owner.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The owner is another one by now, or will be.
    Moving(&'static str),
    /// This is the answer.
    Answered(Status),
}

/// A call that looks for the owner of a subscription until it has found it.
pub(crate) struct Search {
    until: Instant,
}

impl Search {
    /// Begins now.
    pub(crate) fn begin() -> Search {
        Search {
            until: Instant::now() + PATIENCE,
        }
    }

    /// The owner that was found last did not answer: waits a little before it is looked again.
    /// Errors: what is to be answered.
    pub(crate) async fn again(
        &self,
        groups: &Groups,
        subscription_id: &str,
        failed: Failed,
    ) -> Result<(), Status> {
        let cause = match failed {
            Failed::Answered(status) => return Err(status),
            Failed::Moving(cause) => cause,
        };
        groups.whereabouts().forget(subscription_id);
        if Instant::now() >= self.until {
            return Err(moving(cause).into());
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

/// Pulls at the owner.
pub(crate) async fn pull(
    core: &Core,
    owner: &Arc<str>,
    caller: &Caller,
    request: PullRequest,
) -> Result<PullResponse, Failed> {
    unary(core, owner, caller, PULL, request).await
}

/// Settles leases at the owner.
pub(crate) async fn acknowledge(
    core: &Core,
    owner: &Arc<str>,
    caller: &Caller,
    request: AcknowledgeRequest,
) -> Result<AcknowledgeResponse, Failed> {
    unary(core, owner, caller, ACKNOWLEDGE, request).await
}

/// Opens a stream at the owner; the first frame says whether it is one.
pub(crate) async fn consume(
    core: &Core,
    owner: &str,
    caller: &Caller,
    frames: impl Stream<Item = ConsumeRequest> + Send + 'static,
) -> Result<Streaming<ConsumeResponse>, Failed> {
    let mut grpc = reach(core, owner, caller).await?;
    let codec = ProstCodec::<ConsumeRequest, ConsumeResponse>::default();
    let path = PathAndQuery::from_static(CONSUME);
    // Boxed: only then does the compiler see that it may move between threads.
    let opened = grpc.streaming(Request::new(frames), path, codec).boxed();
    let opened = opened.await;
    Ok(opened.map_err(|status| sort(status, owner))?.into_inner())
}

/// Whether another process lives.
pub(crate) struct Life {
    process_id: Arc<str>,
    peers: watch::Receiver<Peers>,
    /// One that has just started is not seen yet.
    seen: bool,
}

impl Life {
    /// That of a process which was just found.
    pub(crate) fn of(core: &Core, process_id: &Arc<str>) -> Life {
        Life {
            process_id: process_id.clone(),
            peers: core.processes.watch(),
            seen: false,
        }
    }

    /// Waits for its end; may be waited for again.
    pub(crate) async fn ends(&mut self) {
        loop {
            let is_seen = self
                .peers
                .borrow_and_update()
                .contains_key(&self.process_id);
            if self.seen && !is_seen {
                return;
            }
            self.seen |= is_seen;
            if self.peers.changed().await.is_err() {
                // This process ends.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Opens a branch to another process.
pub(crate) async fn open_branch(
    core: &Core,
    process_id: &Arc<str>,
    caller: &Caller,
    frames: impl Stream<Item = branch::Asked> + Send + 'static,
) -> Result<Streaming<branch::Said>, Failed> {
    let mut grpc = reach(core, process_id, caller).await?;
    let codec = ProstCodec::<branch::Asked, branch::Said>::default();
    let path = PathAndQuery::from_static(branch::PATH);
    let opened = grpc.streaming(Request::new(frames), path, codec).boxed();
    Ok(opened
        .await
        .map_err(|status| sort(status, process_id))?
        .into_inner())
}

/// Calls a method of another process.
pub(crate) async fn unary<Q, A>(
    core: &Core,
    owner: &Arc<str>,
    caller: &Caller,
    path: &'static str,
    request: Q,
) -> Result<A, Failed>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
{
    let mut life = Life::of(core, owner);
    let calling = async {
        let mut grpc = reach(core, owner, caller).await?;
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(path);
        let answered = grpc.unary(Request::new(request), path, codec).boxed().await;
        Ok(answered.map_err(|status| sort(status, owner))?.into_inner())
    };
    tokio::select! {
        answered = calling => answered,
        () = life.ends() => Err(Failed::Moving("owner_gone")),
    }
}

async fn reach(core: &Core, owner: &str, caller: &Caller) -> Result<Grpc<Channel>, Failed> {
    if caller.origin.forwarded {
        // Who passed it on looks again.
        return Err(Failed::Answered(moving("moved").into()));
    }
    let channel = core.peers.channel(owner, caller).await;
    let channel = channel.map_err(|error| Failed::Moving(cause(&error)))?;
    let mut grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    let ready = grpc.ready().boxed().await;
    match ready {
        Ok(()) => Ok(grpc),
        Err(error) => {
            tracing::debug!(owner, "the owner of a subscription is not reached: {error}");
            Err(Failed::Moving("owner_unreachable"))
        }
    }
}

fn cause(error: &Error) -> &'static str {
    let told = error.metadata().iter().find(|(key, _)| *key == "cause");
    let known = |told: &&(&'static str, String)| MOVED.iter().find(|known| **known == told.1);
    told.as_ref()
        .and_then(known)
        .copied()
        .unwrap_or("owner_unreachable")
}

/// What the status of another process says of it.
pub(crate) fn sort(status: Status, owner: &str) -> Failed {
    let Some(info) = status.get_details_error_info() else {
        // Made by the transport: a hub says more.
        tracing::debug!(
            owner,
            "the owner of a subscription did not answer: {status}"
        );
        return Failed::Moving("owner_unreachable");
    };
    let cause = info.metadata.get("cause").map_or("", String::as_str);
    match info.reason.as_str() {
        "STORE_BUSY" if MOVED.contains(&cause) => Failed::Moving("moved"),
        "SERVER_DRAINING" => Failed::Moving("owner_draining"),
        "KEY_NOT_RECOGNIZED" => {
            tracing::error!(
                owner,
                "another process does not know this one: is its --advertise its own address, and \
                 is the sealing key the same?"
            );
            Failed::Moving("owner_unreachable")
        }
        _ => Failed::Answered(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_answers_is_passed_on_unless_it_says_that_it_is_not_the_owner() {
        let sorted = |status: Status| match sort(status, "prc_1") {
            Failed::Moving(cause) => cause.to_owned(),
            Failed::Answered(status) => status.get_details_error_info().unwrap().reason,
        };
        assert_eq!(sorted(moving("moved").into()), "moved");
        assert_eq!(sorted(Error::draining().into()), "owner_draining");
        assert_eq!(sorted(Status::unavailable("gone")), "owner_unreachable");
        assert_eq!(sorted(Status::unknown("h2")), "owner_unreachable");
        let full = Error::store_busy("Full", "groups_full");
        assert_eq!(sorted(full.into()), "STORE_BUSY");
        assert_eq!(sorted(Error::field("a", "b").into()), "FIELD_INVALID");
    }
}
