//! A consumer of a durable subscription, for tests.

use std::time::Duration;

use hub_client::{CloudEvent, Error};
use hub_proto::hub::event_bus::v1::consume_request::Frame as Asked;
use hub_proto::hub::event_bus::v1::consume_response::Frame;
use hub_proto::hub::event_bus::v1::{
    AckBatch, AckResult, AcknowledgeRequest, ConsumeOpen, ConsumeRequest, ConsumeResponse, Credit,
    ExtendLease, LeasedEvent, Nack, NackAction, PullRequest, PullResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{PATIENCE, Product, text, ticket, with_attributes};

/// How long nothing must come where nothing may; what comes too late is found by the next step.
const QUIET: Duration = Duration::from_millis(300);

/// An open Consume stream.
pub struct Consumer {
    frames: mpsc::Sender<ConsumeRequest>,
    answers: Streaming<ConsumeResponse>,
}

/// An event of a subject, which is its ordering key.
pub fn of_key(id: &str, subject: &str) -> CloudEvent {
    with_attributes(ticket(id), &[("subject", text(subject))])
}

/// The default subscription of a product, with credit for so many events.
pub fn open(subscription: &str, events: u32) -> ConsumeOpen {
    ConsumeOpen {
        subscription: subscription.to_owned(),
        member: "test".to_owned(),
        credit: Some(Credit { events, bytes: 0 }),
        confirm_acks: false,
    }
}

/// Ids of leased events.
pub fn ids_of(events: &[LeasedEvent]) -> Vec<String> {
    let event = |leased: &LeasedEvent| leased.record.clone().unwrap().event.unwrap().id;
    events.iter().map(event).collect()
}

/// A lease that never was.
pub fn junk() -> LeasedEvent {
    LeasedEvent {
        lease_id: "no lease".to_owned(),
        ..LeasedEvent::default()
    }
}

/// A nack of a lease.
pub fn nack(lease: &LeasedEvent, action: NackAction, error: &str) -> Nack {
    Nack {
        lease_id: lease.lease_id.clone(),
        action: action.into(),
        retry_after: None,
        error: error.to_owned(),
    }
}

impl Product {
    pub async fn consume(&self, open: ConsumeOpen) -> Consumer {
        let mut consumer = self.try_consume(open).await;
        let opened = consumer.next().await;
        assert!(matches!(opened, Frame::Opened(_)), "{opened:?}");
        consumer
    }

    /// A stream that may be refused.
    pub async fn try_consume(&self, open: ConsumeOpen) -> Consumer {
        let (frames, sent) = mpsc::channel(1000);
        let first = ConsumeRequest {
            frame: Some(Asked::Open(open)),
        };
        frames.send(first).await.unwrap();
        let answer = self.bus.clone().consume(ReceiverStream::new(sent)).await;
        Consumer {
            frames,
            answers: answer.unwrap().into_inner(),
        }
    }

    pub async fn pull(&self, request: PullRequest) -> PullResponse {
        let answer = self.bus.clone().pull(request).await;
        answer.unwrap().into_inner()
    }

    pub async fn acknowledge(&self, subscription: &str, acks: AckBatch) -> Vec<AckResult> {
        let request = AcknowledgeRequest {
            subscription: subscription.to_owned(),
            acks: Some(acks),
        };
        let answer = self.bus.clone().acknowledge(request).await;
        answer.unwrap().into_inner().results
    }
}

impl Consumer {
    async fn send(&self, frame: Asked) {
        let frame = ConsumeRequest { frame: Some(frame) };
        self.frames.send(frame).await.unwrap();
    }

    pub async fn acks(&self, acks: AckBatch) {
        self.send(Asked::Acks(acks)).await;
    }

    pub async fn ack(&self, events: &[LeasedEvent]) {
        let ack = events
            .iter()
            .map(|leased| leased.lease_id.clone())
            .collect();
        self.acks(AckBatch {
            ack,
            ..AckBatch::default()
        })
        .await;
    }

    pub async fn nack(&self, lease: &LeasedEvent, action: NackAction, error: &str) {
        self.acks(AckBatch {
            nack: vec![nack(lease, action, error)],
            ..AckBatch::default()
        })
        .await;
    }

    pub async fn extend(&self, lease: &LeasedEvent, seconds: i64) {
        let extend = ExtendLease {
            lease_id: lease.lease_id.clone(),
            duration: Some(prost_types::Duration { seconds, nanos: 0 }),
        };
        self.acks(AckBatch {
            extend: vec![extend],
            ..AckBatch::default()
        })
        .await;
    }

    /// Sends the first frame a second time.
    pub async fn open_again(&self) {
        self.send(Asked::Open(open("portal", 1))).await;
    }

    /// Ends the client's half of the stream.
    pub fn end_half(&mut self) {
        self.frames = mpsc::channel(1).0;
    }

    pub async fn credit(&self, events: u32) {
        self.credit_in_bytes(events, 0).await;
    }

    pub async fn credit_in_bytes(&self, events: u32, bytes: u64) {
        self.send(Asked::Credit(Credit { events, bytes })).await;
    }

    pub async fn try_next_whole(&mut self) -> Result<Option<ConsumeResponse>, Error> {
        let frame = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        let frame = frame.expect("a stream is never silent for so long");
        frame.map_err(Error::from)
    }

    pub async fn next(&mut self) -> Frame {
        let frame = self.try_next_whole().await.unwrap();
        frame.expect("one more frame").frame.unwrap()
    }

    /// So many events; what else comes in between is skipped, but for a gap.
    pub async fn events(&mut self, count: usize) -> Vec<LeasedEvent> {
        let mut events = Vec::new();
        while events.len() < count {
            match self.next().await {
                Frame::Events(leased) => events.extend(leased.events),
                Frame::Gap(gap) => panic!("{gap:?} before {count} events"),
                Frame::Closing(closing) => panic!("{closing:?} before {count} events"),
                _ => {}
            }
        }
        assert_eq!(events.len(), count, "{:?}", ids_of(&events));
        events
    }

    /// The next frame that `wanted` knows; others are skipped.
    pub async fn frame<T>(&mut self, wanted: impl Fn(&Frame) -> Option<T>) -> T {
        loop {
            let frame = self.next().await;
            if let Some(found) = wanted(&frame) {
                return found;
            }
        }
    }

    /// The next answers to acks.
    pub async fn results(&mut self) -> Vec<AckResult> {
        self.frame(|frame| match frame {
            Frame::AckResults(results) => Some(results.results.clone()),
            _ => None,
        })
        .await
    }

    /// No event comes, though other frames may.
    pub async fn nothing(&mut self) {
        let quiet = async {
            loop {
                if let Frame::Events(leased) = self.next().await {
                    return leased.events;
                }
            }
        };
        if let Ok(events) = tokio::time::timeout(QUIET, quiet).await {
            panic!("nothing was to come, but {:?}", ids_of(&events));
        }
    }

    /// The error that ends the stream.
    pub async fn error(mut self) -> Error {
        loop {
            match self.try_next_whole().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without error"),
                Err(error) => return error,
            }
        }
    }
}
