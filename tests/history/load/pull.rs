//! Consumers by Pull and Acknowledge, each call perhaps by another process.

use std::sync::Arc;
use std::time::Duration;

use hub_client::proto::hub::event_bus::v1::{AcknowledgeRequest, PullRequest};

use super::habits::{Intents, batch, duration, leased, outcome};
use super::{Identity, Phase, RETRY_PAUSE, Site};
use crate::history::records::{Consuming, Consumption, Durable, Micros, Settling};
use crate::history::tracks::{Consumer, Recorder};
use crate::journal::random::Random;

/// How long a pull waits for an event.
const WAIT: Micros = 200_000;
/// Leases of a consumer that pulls.
const HELD_MAX: usize = 50;
/// Calls of one Acknowledge before it is given up.
const ATTEMPTS_MAX: usize = 6;

struct Puller {
    site: Arc<Site>,
    identity: Identity,
    durable: Durable,
    random: Random,
    recorder: Recorder<Consuming, Consumption>,
    intents: Intents,
}

/// Works until the run is over.
pub async fn pull(site: Arc<Site>, identity: Identity, durable: Durable) -> Consumer {
    let about = Consuming {
        subscription_id: durable.subscription_id.clone(),
        member: identity.name.clone(),
        pulls: true,
    };
    let recorder = site.folder.record(&identity.name, identity.tenant, about);
    let mut puller = Puller {
        random: site.random(&identity.name),
        site,
        identity,
        durable,
        recorder,
        intents: Intents::default(),
    };
    while puller.site.phase() < Phase::Over {
        if puller.intents.len() < HELD_MAX {
            puller.lease().await;
        } else {
            tokio::time::sleep(puller.intents.wait()).await;
        }
        let due = puller.intents.due(puller.site.phase());
        if !due.is_empty() {
            puller.acknowledge(due).await;
        }
    }
    puller.recorder.finish()
}

impl Puller {
    async fn lease(&mut self) {
        let (hub, process) = self.site.connect(&mut self.random, &self.identity.key);
        let own = self
            .random
            .percent(30)
            .then_some(self.durable.lease + 500_000);
        let request = PullRequest {
            subscription: self.durable.name.clone(),
            max_events: 1 + self.random.below(20) as u32,
            wait: Some(duration(WAIT)),
            lease_duration: own.map(duration),
            member: self.identity.name.clone(),
        };
        let confirms = true;
        self.recorder.note(Consumption::Asked { process, confirms });
        match hub.event_bus().pull(request).await {
            Ok(answer) => {
                let length = own.unwrap_or(self.durable.lease);
                let events = answer.into_inner().events.into_iter();
                let events: Vec<_> = events.map(|event| leased(event, length)).collect();
                for event in &events {
                    let phase = self.site.phase();
                    self.intents
                        .decide(event, phase, confirms, &mut self.random);
                }
                self.recorder.note(Consumption::Leased(events));
            }
            Err(status) => {
                self.recorder
                    .note(Consumption::Broken(format!("{status:?}")));
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    /// Again and again, if nobody knows what became of it; by another connection each time.
    async fn acknowledge(&mut self, due: Vec<Settling>) {
        for _ in 0..ATTEMPTS_MAX {
            let (hub, process) = self.site.connect(&mut self.random, &self.identity.key);
            let confirms = true;
            self.recorder.note(Consumption::Asked { process, confirms });
            self.recorder.note(Consumption::Settling(due.clone()));
            let request = AcknowledgeRequest {
                subscription: self.durable.subscription_id.clone(),
                acks: Some(batch(&due)),
            };
            match hub.event_bus().acknowledge(request).await {
                Ok(answer) => {
                    let results = answer.into_inner().results.into_iter();
                    let told = results.map(|one| (one.lease_id.clone(), outcome(one.outcome())));
                    self.recorder.note(Consumption::Outcomes(told.collect()));
                    return;
                }
                Err(status) => {
                    self.recorder
                        .note(Consumption::Broken(format!("{status:?}")));
                    let pause = 30 + self.random.below(200) as u64;
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            }
        }
    }
}
