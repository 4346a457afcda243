//! A stream whose subscription another process has at work: frames pass through as they are.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use hub_core::auth::Caller;
use hub_core::journal::TenantRef;
use hub_core::module::Core;
use hub_proto::hub::core::v1::ClosingReason;
use hub_proto::hub::event_bus::v1::consume_request::Frame as Asked;
use hub_proto::hub::event_bus::v1::{ConsumeOpen, ConsumeRequest};
use hub_proto::wire::ConsumeResponse;
use hub_proto::wire::consume_response::Frame;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{DRAINED_PAUSE, Session};
use crate::forward::{self, Failed, Life, Search};
use crate::group::Group;
use crate::groups::Place;
use crate::seat::Seat;

/// Frames of the client that wait for the owner.
const FRAMES_MAX: usize = 16;

impl Session {
    /// Waits for a frame of the owner, while those of the client pass.
    pub(super) async fn pass_on(&mut self) -> Result<(), Status> {
        let Some(relay) = &mut self.relay else {
            return Ok(());
        };
        tokio::select! {
            frame = relay.next(&mut self.inbound) => match frame? {
                Some(frame) => {
                    self.over = matches!(frame.frame, Some(Frame::Closing(_)));
                    self.ready.push_back(frame);
                }
                None => self.close(ClosingReason::Moved, Duration::ZERO),
            },
            () = self.core.draining.cancelled() => {
                self.close(ClosingReason::Draining, DRAINED_PAUSE);
            }
            () = self.core.clock.sleep_until(self.ends_at) => {
                self.close(ClosingReason::MaxAge, Duration::ZERO);
            }
        }
        Ok(())
    }

    /// The group of the subscription, where the stream has a place then; none if another process
    /// has it: the stream passes through then.
    pub(super) async fn reach(
        &mut self,
        tenant: &TenantRef,
        open: &ConsumeOpen,
        seat: &Arc<Seat>,
    ) -> Result<Option<Arc<Group>>, Status> {
        let (groups, forwarded) = (self.groups.clone(), self.caller.origin.forwarded);
        let found = groups.resolve(tenant, Some(&*self.product), &open.subscription);
        let (settings, search) = (found.await?, Search::begin());
        loop {
            let joins = |group: &Arc<Group>| group.join(seat);
            let owner = match groups.reach(tenant, &settings, forwarded, joins).await? {
                Place::Here(group) => return Ok(Some(group)),
                Place::Elsewhere(owner) => owner,
            };
            match Relay::open(&self.core, owner, &self.caller, open.clone()).await {
                Ok(relay) => {
                    self.relay = Some(relay);
                    return Ok(None);
                }
                Err(failed) => search.again(&groups, &settings.id, failed).await?,
            }
        }
    }
}

/// The stream to the owner; the owner sees that it ended when this is dropped.
pub(crate) struct Relay {
    owner: Arc<str>,
    life: Life,
    /// None once the client sends nothing more.
    up: Option<mpsc::Sender<ConsumeRequest>>,
    down: Streaming<ConsumeResponse>,
    first: Option<ConsumeResponse>,
}

impl Relay {
    /// Opens it, and waits for the first frame of the owner.
    pub(crate) async fn open(
        core: &Core,
        owner: Arc<str>,
        caller: &Caller,
        open: ConsumeOpen,
    ) -> Result<Relay, Failed> {
        let (up, frames) = mpsc::channel(FRAMES_MAX);
        let open = ConsumeRequest {
            frame: Some(Asked::Open(open)),
        };
        up.try_send(open).map_err(|_| Failed::Moving("moved"))?;
        let frames = stream::unfold(frames, |mut frames| async move {
            let frame = frames.recv().await?;
            Some((frame, frames))
        });
        let mut life = Life::of(core, &owner);
        let opening = async {
            let mut down = forward::consume(core, &owner, caller, frames).await?;
            let first = down.message().await;
            let first = first.map_err(|status| forward::sort(status, &owner))?;
            Ok::<_, Failed>((down, first.ok_or(Failed::Moving("moved"))?))
        };
        let (down, first) = tokio::select! {
            opened = opening => opened?,
            () = life.ends() => return Err(Failed::Moving("owner_gone")),
        };
        Ok(Relay {
            owner,
            life,
            up: Some(up),
            down,
            first: Some(first),
        })
    }

    /// The next frame of the owner, while frames of the client pass; none if that process has the
    /// subscription no more. Nothing is lost if this is dropped.
    pub(crate) async fn next(
        &mut self,
        inbound: &mut Streaming<ConsumeRequest>,
    ) -> Result<Option<ConsumeResponse>, Status> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        loop {
            let up = self.up.as_ref();
            let asked = async {
                let Some(up) = up else {
                    return std::future::pending().await;
                };
                // The client waits while the owner takes nothing.
                let room = up.reserve().await;
                (room, inbound.message().await)
            };
            let ended = tokio::select! {
                frame = self.down.message() => return match frame {
                    Ok(frame) => Ok(frame),
                    Err(status) => match forward::sort(status, &self.owner) {
                        Failed::Moving(_) => Ok(None),
                        Failed::Answered(status) => Err(status),
                    },
                },
                (room, frame) = asked => match (room, frame?) {
                    (Ok(room), Some(frame)) => {
                        room.send(frame);
                        false
                    }
                    _ => true,
                },
                () = self.life.ends() => return Ok(None),
            };
            if ended {
                self.up = None;
            }
        }
    }
}
