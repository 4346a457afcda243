//! Clients that ask for events again which are over: by jobs, which outlive what happens to the
//! processes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use hub_client::Error;
use hub_client::proto::hub::core::v1::{Job, JobState};
use hub_client::proto::hub::event_bus::v1::{
    EventDeliveryState, EventLogFilter, ListEventsRequest, RedeliverRequest,
};
use hub_client::proto::hub::platform::v1::GetJobRequest;
use tonic::Code;

use super::{Identity, Phase, RETRY_PAUSE, Site};
use crate::history::records::{Durable, Redelivering, Redelivery, State};
use crate::history::tracks::{Recorder, Redeliverer};
use crate::journal::random::Random;

/// Between two jobs, at most.
const PAUSE_MS_MAX: usize = 2500;
/// Of the newest events, some are chosen.
const PAGE_SIZE: i32 = 100;
/// Events of a job.
const EVENTS_MAX: usize = 20;
/// Events that a job does in a second, 0 = as many as it can: a slow one has many chunks, and
/// outlives what happens to a process between them.
const SPEEDS: [u32; 3] = [0, 3, 9];
/// What can be asked for again, and how the history calls it.
const STATES: [(EventDeliveryState, State); 4] = [
    (EventDeliveryState::Delivered, State::Delivered),
    (EventDeliveryState::Failed, State::Failed),
    (EventDeliveryState::Skipped, State::Skipped),
    (EventDeliveryState::NotRouted, State::NotRouted),
];

struct Asker {
    site: Arc<Site>,
    identity: Identity,
    durable: Durable,
    random: Random,
    recorder: Recorder<Redelivering, Redelivery>,
    /// Sequences; each is asked for once.
    asked: HashSet<u64>,
    job: u64,
}

/// Asks until the load is over, and waits until the last job has ended.
pub async fn redeliver(site: Arc<Site>, identity: Identity, durable: Durable) -> Redeliverer {
    let about = Redelivering {
        subscription_id: durable.subscription_id.clone(),
    };
    let recorder = site.folder.record(&identity.name, identity.tenant, about);
    let mut asker = Asker {
        random: site.random(&identity.name),
        site,
        identity,
        durable,
        recorder,
        asked: HashSet::new(),
        job: 0,
    };
    while asker.site.phase() == Phase::Load {
        let chosen = asker.choose().await;
        if !chosen.is_empty() {
            asker.work(chosen).await;
        }
        let pause = asker.random.below(PAUSE_MS_MAX) as u64;
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    asker.recorder.finish()
}

impl Asker {
    /// Ids of some events that are over and were not asked for yet, with their sequences.
    async fn choose(&mut self) -> BTreeMap<String, u64> {
        let (hub, _) = self.site.connect(&mut self.random, &self.identity.key);
        let (state, called) = STATES[self.random.below(STATES.len())];
        let filter = EventLogFilter {
            subscription_id: self.durable.subscription_id.clone(),
            states: vec![state.into()],
            ..EventLogFilter::default()
        };
        let request = ListEventsRequest {
            filter: Some(filter),
            omit_data: true,
            page_size: PAGE_SIZE,
            ..ListEventsRequest::default()
        };
        let Ok(page) = hub.event_bus().list_events(request).await else {
            return BTreeMap::new();
        };
        let entries = page.into_inner().entries.into_iter();
        let records = entries.filter_map(|entry| entry.record);
        let mut new: Vec<_> = records
            .filter(|record| !self.asked.contains(&record.sequence))
            .collect();
        let mut chosen = BTreeMap::new();
        while chosen.len() < EVENTS_MAX && !new.is_empty() {
            let record = new.swap_remove(self.random.below(new.len()));
            chosen.insert(record.event_id, record.sequence);
        }
        let events: Vec<_> = chosen.values().map(|one| (*one, called)).collect();
        if !events.is_empty() {
            self.job += 1;
            self.asked.extend(chosen.values());
            let job = self.job;
            self.recorder.note(Redelivery::Asked { job, events });
        }
        chosen
    }

    /// Asks for them until there is an answer, and waits until the job has ended.
    async fn work(&mut self, chosen: BTreeMap<String, u64>) {
        let number = self.job;
        let Some(job_id) = self.start(&chosen).await else {
            return;
        };
        while self.site.phase() < Phase::Over {
            tokio::time::sleep(RETRY_PAUSE).await;
            let Some(job) = self.look(&job_id).await else {
                continue;
            };
            let is_over = matches!(
                job.state(),
                JobState::Succeeded | JobState::Failed | JobState::Cancelled
            );
            if is_over {
                let queued = job.counters.get("queued").copied().unwrap_or(0);
                self.recorder.note(Redelivery::Ended {
                    job: number,
                    state: job.state().as_str_name().to_owned(),
                    queued: queued.unsigned_abs(),
                });
                return;
            }
        }
    }

    /// The id of the job; each attempt may come to another process.
    async fn start(&mut self, chosen: &BTreeMap<String, u64>) -> Option<String> {
        let job = self.job;
        let request = RedeliverRequest {
            event_ids: chosen.keys().cloned().collect(),
            subscription_id: self.durable.subscription_id.clone(),
            request_id: uuid::Uuid::new_v4().to_string(),
            max_per_second: SPEEDS[self.random.below(SPEEDS.len())],
            ..RedeliverRequest::default()
        };
        while self.site.phase() < Phase::Over {
            let (hub, _) = self.site.connect(&mut self.random, &self.identity.key);
            let answer = hub.event_bus().redeliver(request.clone()).await;
            match answer.map_err(Error::from) {
                Ok(answer) => {
                    self.recorder.note(Redelivery::Accepted { job });
                    return answer.into_inner().job.map(|job| job.job_id);
                }
                // Retention was faster.
                Err(error) if error.code() == Code::NotFound => {
                    let error = error.to_string();
                    self.recorder.note(Redelivery::Refused { job, error });
                    return None;
                }
                Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
        None
    }

    async fn look(&mut self, job_id: &str) -> Option<Job> {
        let (hub, _) = self.site.connect(&mut self.random, &self.identity.key);
        let job_id = job_id.to_owned();
        let answer = hub.platform().get_job(GetJobRequest { job_id }).await;
        answer.ok()?.into_inner().job
    }
}
