use std::collections::BTreeMap;
use std::future::pending;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use hub_proto::hub::core::v1::Progress;
use hub_proto::hub::event_bus::v1::consume_response::Frame;
use hub_proto::hub::event_bus::v1::{
    self as proto, AckOutcome, AckResult, AckResults, Credit, LeasedEvents, NackAction,
};
use tokio::time::Instant;
use tonic::Status;

use super::*;
use crate::fake_hub::{ConsumeCall, FakeHub};

mod answers;
mod leases;
mod shutdown;
mod streams;

const HEARTBEAT: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

/// Event `sequence` of a tenant, under the lease `lease`.
fn leased_as(tenant_id: &str, sequence: u64, lease: impl ToString) -> proto::LeasedEvent {
    proto::LeasedEvent {
        lease_id: lease.to_string(),
        record: Some(EventRecord {
            sequence,
            tenant_id: tenant_id.into(),
            ..Default::default()
        }),
        attempt: 1,
        lease_until: Some((SystemTime::now() + 30 * SECOND).into()),
        ..Default::default()
    }
}

/// Event `sequence`, under a lease of the same number.
fn leased(sequence: u64) -> proto::LeasedEvent {
    leased_as("tnt_1", sequence, sequence)
}

fn events(events: impl IntoIterator<Item = proto::LeasedEvent>) -> Frame {
    Frame::Events(LeasedEvents {
        events: events.into_iter().collect(),
        cursor: String::new(),
    })
}

fn results(results: impl IntoIterator<Item = (&'static str, AckOutcome)>) -> Frame {
    let results = results.into_iter().map(|(lease_id, outcome)| AckResult {
        lease_id: lease_id.into(),
        outcome: outcome.into(),
    });
    Frame::AckResults(AckResults {
        results: results.collect(),
    })
}

fn broken() -> Status {
    Status::unavailable("broken")
}

/// Events at a handler, which answers what the test says.
struct Desk {
    handled: mpsc::UnboundedReceiver<(LeasedEvent, oneshot::Sender<Answer>)>,
}

impl Desk {
    /// Starts a consumer whose events come to the desk.
    fn open(builder: ConsumerBuilder) -> (Consumer, Self) {
        let (sender, handled) = mpsc::unbounded_channel();
        let handler = move |event| -> BoxFuture<'static, Answer> {
            let (reply, answer) = oneshot::channel();
            let came = sender.send((event, reply));
            Box::pin(async move {
                match (came, answer.await) {
                    (Ok(()), Ok(answer)) => answer,
                    _ => pending().await,
                }
            })
        };
        (builder.run(handler), Desk { handled })
    }

    async fn next(&mut self) -> (LeasedEvent, oneshot::Sender<Answer>) {
        self.handled.recv().await.unwrap()
    }

    /// The next event, which has to be this one.
    async fn expect(&mut self, sequence: u64) -> oneshot::Sender<Answer> {
        let (event, reply) = self.next().await;
        assert_eq!(event.record.sequence, sequence);
        reply
    }

    /// Whether nothing comes for a while.
    async fn is_quiet(&mut self) -> bool {
        let next = self.handled.recv();
        let next = tokio::time::timeout(Duration::from_millis(10), next).await;
        // Or never again.
        matches!(next, Err(_) | Ok(None))
    }
}

async fn opened(fake: &mut FakeHub) -> ConsumeCall {
    let (call, _) = fake.consumed().await;
    call.open(HEARTBEAT).await;
    call
}

/// Waits until a count is so.
async fn reaches(consumer: &Consumer, reached: impl FnMut(&ConsumerCounts) -> bool) {
    consumer.counts().wait_for(reached).await.unwrap();
}
