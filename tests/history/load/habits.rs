//! What consumers do with what they lease: mostly ack it, and everything else that the contract
//! allows.

use std::time::Duration;

use hub_client::proto::hub::event_bus::v1::{
    AckBatch, AckOutcome, ExtendLease, LeasedEvent, Nack, NackAction,
};

use super::{Phase, seen};
use crate::history::records::{How, Leased, Micros, Outcome, Settling, now};
use crate::journal::random::Random;

/// Something to do with a lease at a time.
#[derive(Debug, Clone)]
pub struct Intent {
    pub at: Micros,
    pub settling: Settling,
}

/// What a consumer still has to do.
#[derive(Debug, Default)]
pub struct Intents(Vec<Intent>);

const MS: Micros = 1000;
/// How long a lease is extended.
const EXTENSION: Micros = 2_000_000;

impl Intents {
    /// Decides what becomes of a lease. `confirms`: everything is answered, so that acks may be
    /// repeated.
    pub fn decide(&mut self, leased: &Leased, phase: Phase, confirms: bool, random: &mut Random) {
        let now = now();
        let mut plan = |at: Micros, how: How| {
            let lease = leased.lease.clone();
            let settling = Settling { lease, how };
            self.0.push(Intent { at, settling });
        };
        let error = format!("{} of {}", leased.attempt, leased.event.id);
        if phase > Phase::Load {
            return plan(now, How::Ack);
        }
        match random.below(1000) {
            0..=29 => plan(now, How::Retry { after: None, error }),
            30..=59 => {
                let after = Some((50 + random.below(300) as Micros) * MS);
                plan(now, How::Retry { after, error });
            }
            60..=89 => plan(now, How::Release),
            90..=104 => plan(now, How::Fail { error }),
            105..=124 => plan(now, How::Skip),
            // Too late.
            125..=132 => plan(leased.until + 200 * MS, How::Ack),
            // Never.
            133..=136 => {}
            137..=160 => {
                plan(now, How::Extend { length: EXTENSION });
                plan(now + 500 * MS, How::Ack);
            }
            161..=166 => {
                plan(leased.until - 200 * MS, How::Extend { length: EXTENSION });
                plan(leased.until + 200 * MS, How::Ack);
            }
            167..=190 if confirms => {
                plan(now, How::Ack);
                plan(now + 100 * MS, How::Ack);
            }
            191..=300 => plan(now + random.below(300) as Micros * MS, How::Ack),
            _ => plan(now, How::Ack),
        }
    }

    /// What is due now, each lease once.
    pub fn due(&mut self, phase: Phase) -> Vec<Settling> {
        let now = now();
        self.0.sort_by_key(|intent| intent.at);
        let mut due: Vec<Settling> = Vec::new();
        self.0.retain(|intent| {
            let new = due.iter().all(|other| other.lease != intent.settling.lease);
            let is_due = new && (intent.at <= now || phase > Phase::Load);
            if is_due {
                due.push(intent.settling.clone());
            }
            !is_due
        });
        due
    }

    /// How long until the next one is due.
    pub fn wait(&self) -> Duration {
        let next = self.0.iter().map(|intent| intent.at).min();
        let wait = next.map_or(MS * 200, |at| (at - now()).clamp(0, MS * 200));
        Duration::from_micros(wait.unsigned_abs())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// What goes out; the answers come in this order.
pub fn batch(settlings: &[Settling]) -> AckBatch {
    let mut batch = AckBatch::default();
    for settling in settlings {
        let lease_id = settling.lease.clone();
        let nack = |action: NackAction, after: Option<Micros>, error: &str| Nack {
            lease_id: lease_id.clone(),
            action: action.into(),
            retry_after: after.map(duration),
            error: error.to_owned(),
        };
        match &settling.how {
            How::Ack => batch.ack.push(lease_id),
            How::Retry { after, error } => {
                batch.nack.push(nack(NackAction::Retry, *after, error));
            }
            How::Release => batch.nack.push(nack(NackAction::Release, None, "")),
            How::Fail { error } => batch.nack.push(nack(NackAction::Fail, None, error)),
            How::Skip => batch.nack.push(nack(NackAction::Skip, None, "")),
            How::Extend { length } => batch.extend.push(ExtendLease {
                lease_id,
                duration: Some(duration(*length)),
            }),
        }
    }
    batch
}

pub fn duration(length: Micros) -> prost_types::Duration {
    prost_types::Duration {
        seconds: length / 1_000_000,
        nanos: i32::try_from(length % 1_000_000).unwrap_or(0) * 1000,
    }
}

/// An event as it was leased, for so long.
pub fn leased(event: LeasedEvent, length: Micros) -> Leased {
    let until = event.lease_until.unwrap_or_default();
    Leased {
        lease: event.lease_id,
        event: seen(event.record.unwrap_or_default()),
        attempt: event.attempt,
        until: until.seconds * 1_000_000 + Micros::from(until.nanos) / 1000,
        length,
        previous_error: event.previous_error,
        redelivery: event.redelivery,
    }
}

pub fn outcome(outcome: AckOutcome) -> Outcome {
    match outcome {
        AckOutcome::Ok => Outcome::Ok,
        AckOutcome::LeaseExpired => Outcome::LeaseExpired,
        AckOutcome::AlreadySettled => Outcome::AlreadySettled,
        AckOutcome::Unknown | AckOutcome::Unspecified => Outcome::Unknown,
        AckOutcome::Retry => Outcome::Retry,
    }
}
