//! A product's backend: one Consume stream for the subscriptions of all tenants, which acks
//! everything.

use std::time::Duration;

use futures_util::stream;
use hub_client::Hub;
use hub_client::proto::hub::event_bus::v1::consume_request::Frame as Asked;
use hub_client::proto::hub::event_bus::v1::consume_response::Frame;
use hub_client::proto::hub::event_bus::v1::{
    AckBatch, ConsumeOpen, ConsumeRequest, ConsumeResponse, Credit, EventRecord,
};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::Streaming;

use crate::{PATIENCE, Result};

/// As much as the hub allows.
const CREDIT: Credit = Credit {
    events: 10_000,
    bytes: 64 << 20,
};
/// Acks of a frame.
const ACKS_MAX: usize = 1000;
/// Acks are sent together so often.
const ACK_INTERVAL: Duration = Duration::from_millis(10);
/// Frames of acks that wait for the hub.
const FRAMES_MAX: usize = 100;

/// An open stream.
pub struct Backend {
    frames: mpsc::Sender<ConsumeRequest>,
    answers: Streaming<ConsumeResponse>,
}

impl Backend {
    /// Opens a stream for the subscription of this name of every tenant.
    ///
    /// # Errors
    /// Hub refuses it.
    pub async fn open(hub: &Hub, subscription: &str) -> Result<Self> {
        let (frames, sent) = mpsc::channel(FRAMES_MAX);
        let open = ConsumeOpen {
            subscription: subscription.to_owned(),
            credit: Some(CREDIT),
            ..ConsumeOpen::default()
        };
        send(&frames, Asked::Open(open)).await?;
        let sent = stream::unfold(sent, async |mut sent| Some((sent.recv().await?, sent)));
        let opening = async {
            let mut answers = hub.event_bus().consume(sent).await?.into_inner();
            match answers.message().await?.and_then(|answer| answer.frame) {
                Some(Frame::Opened(_)) => Ok(answers),
                other => Err(crate::Error::from(format!("not opened: {other:?}"))),
            }
        };
        let answers = timeout(PATIENCE, opening).await??;
        Ok(Backend { frames, answers })
    }

    /// Acks everything that comes, after `on_event` has seen it; ends with an error only.
    ///
    /// # Errors
    /// The stream ended, or did not bring everything once.
    pub async fn work(mut self, mut on_event: impl FnMut(&EventRecord)) -> Result<()> {
        let mut pause = interval(ACK_INTERVAL);
        pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut acks = Vec::new();
        loop {
            let answer = tokio::select! {
                answer = self.answers.message() => answer?,
                _ = pause.tick(), if !acks.is_empty() => {
                    self.ack(&mut acks).await?;
                    continue;
                }
            };
            match answer.ok_or("a stream ended")?.frame {
                Some(Frame::Events(leased)) => {
                    for event in leased.events {
                        on_event(event.record.as_ref().ok_or("an event has no record")?);
                        acks.push(event.lease_id);
                    }
                    if acks.len() >= ACKS_MAX {
                        self.ack(&mut acks).await?;
                    }
                }
                Some(Frame::Gap(gap)) => return Err(format!("events are missing: {gap:?}").into()),
                Some(Frame::Closing(closing)) => return Err(format!("{closing:?}").into()),
                Some(Frame::AckResults(results)) => {
                    return Err(format!("acks were not taken: {results:?}").into());
                }
                _ => {}
            }
        }
    }

    async fn ack(&self, acks: &mut Vec<String>) -> Result<()> {
        while !acks.is_empty() {
            let rest = acks.split_off(acks.len().min(ACKS_MAX));
            let ack = std::mem::replace(acks, rest);
            let batch = AckBatch {
                ack,
                ..AckBatch::default()
            };
            send(&self.frames, Asked::Acks(batch)).await?;
        }
        Ok(())
    }
}

async fn send(frames: &mpsc::Sender<ConsumeRequest>, frame: Asked) -> Result<()> {
    let frame = ConsumeRequest { frame: Some(frame) };
    let sent = frames.send(frame).await;
    sent.map_err(|_| "a stream ended".into())
}
