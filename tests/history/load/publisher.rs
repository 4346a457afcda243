//! Publishers by Publish: batches, duplicates, ids used again, and retries until there is an
//! answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hub_client::Error;
use hub_client::proto::hub::event_bus::v1::{PublishRequest, PublishResult};
use tonic::Code;

use super::event::{alter, encode, make};
use super::{Identity, Phase, RETRY_PAUSE, Site};
use crate::history::records::{Event, Publication, Publishing, Stored};
use crate::history::tracks::{Publisher, Recorder};
use crate::journal::random::Random;

/// Events of which some are sent again.
const REMEMBERED_MAX: usize = 50;
const BATCH_MAX: usize = 8;
/// Between two batches, at most.
const PAUSE_MAX_MS: usize = 250;

/// What a publisher sends, one batch after the other.
pub struct Batches {
    product: String,
    name: String,
    number: u64,
    acked: VecDeque<Event>,
}

/// A batch to be sent until it is answered.
#[derive(Debug, Clone)]
pub struct Batch {
    pub number: u64,
    pub events: Vec<Event>,
    pub independent: bool,
    pub attempts: u32,
}

impl Batches {
    pub fn new(identity: &Identity) -> Batches {
        Batches {
            product: identity.product.clone(),
            name: identity.name.clone(),
            number: 0,
            acked: VecDeque::new(),
        }
    }

    /// New events, and sometimes one that is there already.
    pub fn next(&mut self, random: &mut Random, may_alter: bool) -> Batch {
        self.number += 1;
        let count = 1 + random.below(BATCH_MAX);
        let id = |at| format!("{}-{}-{at}", self.name, self.number);
        let mut events: Vec<Event> = (0..count)
            .map(|at| make(random, &self.product, id(at)))
            .collect();
        if random.percent(10) && !self.acked.is_empty() {
            let again = self.acked[random.below(self.acked.len())].clone();
            let altered = may_alter && random.percent(20);
            let again = if altered { alter(&again) } else { again };
            events.insert(random.below(count + 1), again);
        }
        Batch {
            number: self.number,
            events,
            independent: may_alter && random.percent(15),
            attempts: 0,
        }
    }

    /// Its events may be sent again from now on.
    pub fn acknowledged(&mut self, batch: &Batch) {
        let genuine = batch.events.iter().filter(|event| !event.altered);
        self.acked.extend(genuine.cloned());
        while self.acked.len() > REMEMBERED_MAX {
            self.acked.pop_front();
        }
    }

    /// Where the events of a publisher come from.
    pub fn source(&self) -> String {
        format!("/{}/{}", self.product, self.name)
    }
}

/// Notes that a batch goes out.
pub fn note_sent(
    recorder: &mut Recorder<Publishing, Publication>,
    batch: &mut Batch,
    process: usize,
) {
    batch.attempts += 1;
    let first = batch.attempts == 1;
    recorder.note(Publication::Sent {
        batch: batch.number,
        attempt: batch.attempts,
        atomic: !batch.independent,
        process,
        events: if first {
            batch.events.clone()
        } else {
            Vec::new()
        },
    });
}

pub fn stored(result: PublishResult) -> Stored {
    Stored {
        sequence: result.sequence,
        duplicate: result.duplicate,
        destinations: result.destinations,
    }
}

/// Publishes until the load is over; what is under way then is still sent until it is answered.
pub async fn publish(site: Arc<Site>, identity: Identity) -> Publisher {
    let product = identity.product.clone();
    let about = Publishing { product };
    let mut recorder = site.folder.record(&identity.name, identity.tenant, about);
    let mut random = site.random(&identity.name);
    let mut batches = Batches::new(&identity);
    let mut connection = site.connect(&mut random, &identity.key);
    while site.phase() == Phase::Load {
        let mut batch = batches.next(&mut random, true);
        let request = PublishRequest {
            events: batch
                .events
                .iter()
                .map(|event| encode(event, &batches.source()))
                .collect(),
            independent: batch.independent,
            ..PublishRequest::default()
        };
        while site.phase() < Phase::Over {
            note_sent(&mut recorder, &mut batch, connection.1);
            let answer = connection.0.event_bus().publish(request.clone()).await;
            match answer.map_err(Error::from) {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    acked(&mut recorder, &batch, answer.results.clone());
                    batches.acknowledged(&batch);
                    let fresh = answer
                        .results
                        .iter()
                        .all(|result| !result.duplicate && result.sequence > 0);
                    if let Some(last) = answer.results.last().filter(|_| fresh) {
                        site.set_acked(identity.tenant, answer.cursor, last.sequence);
                    }
                    break;
                }
                Err(error) if is_final(&error) => {
                    refused(&mut recorder, &batch, &error);
                    break;
                }
                Err(error) => {
                    unknown(&mut recorder, &batch, &error);
                    tokio::time::sleep(RETRY_PAUSE).await;
                    connection = site.connect(&mut random, &identity.key);
                }
            }
        }
        let pause = random.below(PAUSE_MAX_MS) as u64;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if random.percent(2) {
            connection = site.connect(&mut random, &identity.key);
        }
    }
    recorder.finish()
}

fn acked(
    recorder: &mut Recorder<Publishing, Publication>,
    batch: &Batch,
    results: Vec<PublishResult>,
) {
    recorder.note(Publication::Acked {
        batch: batch.number,
        results: results.into_iter().map(stored).collect(),
    });
}

fn refused(recorder: &mut Recorder<Publishing, Publication>, batch: &Batch, error: &Error) {
    recorder.note(Publication::Refused {
        batch: batch.number,
        reason: error.reason().unwrap_or_default().to_owned(),
    });
}

fn unknown(recorder: &mut Recorder<Publishing, Publication>, batch: &Batch, error: &Error) {
    recorder.note(Publication::Unknown {
        batch: batch.number,
        error: format!("{:?} {}", error.code(), error.reason().unwrap_or_default()),
    });
}

/// Whether sending the same again can only be answered the same.
fn is_final(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::InvalidArgument
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::Unimplemented
    )
}
