//! Publishers by PublishStream: frames ahead of their acknowledgements, and resent on a new stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hub_client::Error;
use hub_client::proto::hub::event_bus::v1::publish_stream_response::Frame;
use hub_client::proto::hub::event_bus::v1::{
    PublishAck, PublishStreamRequest, PublishStreamResponse,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::event::encode;
use super::publisher::{Batch, Batches, note_sent, stored};
use super::{CALL_TIMEOUT, Identity, Phase, RETRY_PAUSE, SILENCE, Site};
use crate::history::records::{Publication, Publishing};
use crate::history::tracks::{Publisher, Recorder};
use crate::journal::random::Random;

/// Frames ahead of the last acknowledgement.
const UNACKED_MAX: usize = 12;
/// Between two frames, at most.
const PAUSE_MAX_MS: usize = 200;

struct Session<'a> {
    site: &'a Site,
    recorder: &'a mut Recorder<Publishing, Publication>,
    batches: &'a mut Batches,
    random: &'a mut Random,
    /// Not acknowledged, in the order in which they are sent.
    pending: &'a mut VecDeque<Batch>,
    process: usize,
    frames: mpsc::Sender<PublishStreamRequest>,
    /// Frames that were sent on this stream.
    sent: u64,
    acked: u64,
}

/// Publishes until the load is over and everything is acknowledged.
pub async fn publish_stream(site: Arc<Site>, identity: Identity) -> Publisher {
    let product = identity.product.clone();
    let about = Publishing { product };
    let mut recorder = site.folder.record(&identity.name, identity.tenant, about);
    let mut random = site.random(&identity.name);
    let mut batches = Batches::new(&identity);
    let mut pending = VecDeque::new();
    loop {
        let phase = site.phase();
        if phase == Phase::Over || (phase == Phase::Calm && pending.is_empty()) {
            return recorder.finish();
        }
        let (hub, process) = site.connect(&mut random, &identity.key);
        let (frames, sent) = mpsc::channel(UNACKED_MAX);
        let session = Session {
            site: &site,
            recorder: &mut recorder,
            batches: &mut batches,
            random: &mut random,
            pending: &mut pending,
            process,
            frames,
            sent: 0,
            acked: 0,
        };
        let mut bus = hub.event_bus();
        let opening = bus.publish_stream(ReceiverStream::new(sent));
        let ended = match timeout(CALL_TIMEOUT, opening).await {
            Ok(Ok(answers)) => session.run(answers.into_inner()).await,
            Ok(Err(error)) => format!("{:?}", Error::from(error).code()),
            Err(_) => "silent".to_owned(),
        };
        for batch in pending.iter().filter(|batch| batch.attempts > 0) {
            let error = ended.clone();
            recorder.note(Publication::Unknown {
                batch: batch.number,
                error,
            });
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

impl Session<'_> {
    /// Works until the stream ends, or is ended; says why.
    async fn run(mut self, mut answers: Streaming<PublishStreamResponse>) -> String {
        let frames_max = 20 + self.random.below(300) as u64;
        let mut pause = self.pause();
        loop {
            let unsent = usize::try_from(self.sent - self.acked).unwrap_or(usize::MAX);
            let is_load = self.site.phase() == Phase::Load;
            if unsent == 0 && self.pending.is_empty() && (!is_load || self.sent >= frames_max) {
                return "ended by the client".to_owned();
            }
            let more = unsent < self.pending.len() || (is_load && self.sent < frames_max);
            tokio::select! {
                answer = timeout(SILENCE, answers.message()) => {
                    let frame = match answer {
                        Err(_) => return "silent".to_owned(),
                        Ok(Err(status)) => return format!("{:?}", status.code()),
                        Ok(Ok(None)) => return "ended by the hub".to_owned(),
                        Ok(Ok(Some(answer))) => answer.frame,
                    };
                    match frame {
                        Some(Frame::Ack(ack)) => self.acked(ack),
                        Some(Frame::Closing(closing)) => {
                            return format!("{:?}", closing.reason());
                        }
                        _ => {}
                    }
                }
                () = tokio::time::sleep(pause), if more && unsent < UNACKED_MAX => {
                    if self.send(unsent).await.is_err() {
                        return "closed".to_owned();
                    }
                    pause = self.pause();
                }
            }
        }
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.below(PAUSE_MAX_MS) as u64)
    }

    /// Sends the next frame: one that another stream did not get acknowledged, or a new one.
    async fn send(
        &mut self,
        at: usize,
    ) -> Result<(), mpsc::error::SendError<PublishStreamRequest>> {
        if at == self.pending.len() {
            let batch = self.batches.next(self.random, false);
            self.pending.push_back(batch);
        }
        let source = self.batches.source();
        let batch = &mut self.pending[at];
        note_sent(self.recorder, batch, self.process);
        self.sent += 1;
        let request = PublishStreamRequest {
            frame: self.sent,
            events: batch
                .events
                .iter()
                .map(|event| encode(event, &source))
                .collect(),
            ..PublishStreamRequest::default()
        };
        self.frames.send(request).await
    }

    fn acked(&mut self, ack: PublishAck) {
        let mut results = ack.results.into_iter().map(stored);
        while self.acked < ack.acked_through {
            let Some(batch) = self.pending.pop_front() else {
                return;
            };
            self.acked += 1;
            self.recorder.note(Publication::Acked {
                batch: batch.number,
                results: results.by_ref().take(batch.events.len()).collect(),
            });
            self.batches.acknowledged(&batch);
        }
    }
}
