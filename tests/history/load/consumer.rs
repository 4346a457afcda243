//! Consumers by Consume: several for each subscription, which lose their streams and come back.

use std::sync::Arc;
use std::time::Duration;

use hub_client::proto::hub::event_bus::v1::consume_request::Frame as Ask;
use hub_client::proto::hub::event_bus::v1::consume_response::Frame;
use hub_client::proto::hub::event_bus::v1::{ConsumeOpen, ConsumeRequest, ConsumeResponse, Credit};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::habits::{Intents, batch, leased, outcome};
use super::{CALL_TIMEOUT, Identity, Phase, RETRY_PAUSE, SILENCE, Site};
use crate::history::records::{Consuming, Consumption, Durable};
use crate::history::tracks::{Consumer, Recorder};
use crate::journal::random::Random;

/// Acks on their way.
const QUEUE: usize = 64;
/// How long a stream is used, at most, while there is load.
const STREAM_MS_MAX: usize = 8000;

struct Worker {
    site: Arc<Site>,
    identity: Identity,
    durable: Durable,
    random: Random,
    recorder: Recorder<Consuming, Consumption>,
    intents: Intents,
}

/// Works until the run is over.
pub async fn consume(site: Arc<Site>, identity: Identity, durable: Durable) -> Consumer {
    let about = Consuming {
        subscription_id: durable.subscription_id.clone(),
        member: identity.name.clone(),
        pulls: false,
    };
    let recorder = site.folder.record(&identity.name, identity.tenant, about);
    let mut worker = Worker {
        random: site.random(&identity.name),
        site,
        identity,
        durable,
        recorder,
        intents: Intents::default(),
    };
    while worker.site.phase() < Phase::Over {
        worker.session().await;
        worker.intents.clear();
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    worker.recorder.finish()
}

impl Worker {
    async fn session(&mut self) {
        let (hub, process) = self.site.connect(&mut self.random, &self.identity.key);
        let confirms = self.random.percent(60);
        self.recorder.note(Consumption::Asked { process, confirms });
        let (asks, sent) = mpsc::channel(QUEUE);
        let open = Ask::Open(ConsumeOpen {
            subscription: self.name(),
            member: self.identity.name.clone(),
            credit: Some(Credit {
                events: 1 + self.random.below(40) as u32,
                bytes: 0,
            }),
            confirm_acks: confirms,
        });
        let open = ConsumeRequest { frame: Some(open) };
        asks.send(open).await.expect("it is empty");
        let mut bus = hub.event_bus();
        let answer = timeout(CALL_TIMEOUT, bus.consume(ReceiverStream::new(sent))).await;
        let mut stream = None;
        let ended = match answer {
            Ok(Ok(frames)) => {
                let frames = stream.insert(frames.into_inner());
                self.work(frames, &asks, confirms).await
            }
            Ok(Err(status)) => Consumption::Broken(format!("{status:?}")),
            Err(_) => Consumption::Broken("silent".to_owned()),
        };
        // Before the hub can hear of it, and lease what this consumer had to others.
        self.recorder.note(ended);
        drop((stream, asks));
    }

    /// Its id, or its name.
    fn name(&mut self) -> String {
        match self.random.percent(50) {
            true => self.durable.subscription_id.clone(),
            false => self.durable.name.clone(),
        }
    }

    async fn work(
        &mut self,
        frames: &mut Streaming<ConsumeResponse>,
        asks: &mpsc::Sender<ConsumeRequest>,
        confirms: bool,
    ) -> Consumption {
        let ends = 500 + self.random.below(STREAM_MS_MAX);
        let ends = Instant::now() + Duration::from_millis(ends as u64);
        let mut heard = Instant::now();
        loop {
            let phase = self.site.phase();
            let left = phase == Phase::Over || (phase == Phase::Load && Instant::now() > ends);
            if left {
                return Consumption::Broken("left".to_owned());
            }
            let wait = self.intents.wait();
            tokio::select! {
                frame = frames.message() => {
                    heard = Instant::now();
                    let frame = match frame {
                        Err(status) => return Consumption::Broken(format!("{status:?}")),
                        Ok(None) => return Consumption::Broken("ended without closing".to_owned()),
                        Ok(Some(response)) => response.frame,
                    };
                    if let Some(Frame::Closing(closing)) = &frame {
                        return Consumption::Closing(format!("{:?}", closing.reason()));
                    }
                    self.take(frame, confirms);
                }
                () = tokio::time::sleep(wait) => {
                    if heard.elapsed() > SILENCE {
                        return Consumption::Broken("silent".to_owned());
                    }
                }
            }
            let due = self.intents.due(phase);
            if !due.is_empty() {
                let frame = Some(Ask::Acks(batch(&due)));
                self.recorder.note(Consumption::Settling(due));
                let sending = asks.send(ConsumeRequest { frame });
                if !matches!(timeout(CALL_TIMEOUT, sending).await, Ok(Ok(()))) {
                    return Consumption::Broken("closed".to_owned());
                }
            }
            if phase == Phase::Load && self.random.below(2000) == 0 {
                // It does nothing at all for a while.
                let pause = self.random.below(3000) as u64;
                tokio::time::sleep(Duration::from_millis(pause)).await;
                heard = Instant::now();
            }
        }
    }

    fn take(&mut self, frame: Option<Frame>, confirms: bool) {
        let record = match frame {
            Some(Frame::Opened(_)) => Consumption::Opened,
            Some(Frame::Events(events)) => {
                let length = self.durable.lease;
                let events = events.events.into_iter();
                let events: Vec<_> = events.map(|event| leased(event, length)).collect();
                for event in &events {
                    let phase = self.site.phase();
                    self.intents
                        .decide(event, phase, confirms, &mut self.random);
                }
                Consumption::Leased(events)
            }
            Some(Frame::AckResults(results)) => {
                let results = results.results.into_iter();
                let told = results.map(|one| (one.lease_id.clone(), outcome(one.outcome())));
                Consumption::Outcomes(told.collect())
            }
            Some(Frame::Gap(gap)) => Consumption::Gap {
                from: gap.from_sequence,
                to: gap.to_sequence,
                reason: format!("{:?}", gap.reason()),
            },
            Some(Frame::State(state)) => {
                use hub_client::proto::hub::event_bus::v1::SubscriptionState;
                let state = SubscriptionState::try_from(state).unwrap_or_default();
                Consumption::State(state.as_str_name().to_owned())
            }
            Some(Frame::Progress(progress)) => Consumption::Progress(progress.sequence),
            Some(Frame::CaughtUp(caught_up)) => Consumption::CaughtUp(caught_up.sequence),
            Some(Frame::Closing(_)) | None => return,
        };
        self.recorder.note(record);
    }
}
