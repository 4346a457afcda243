//! What is to be told about leases, and what the hub answered. No I/O and no clock here.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use hub_proto::hub::event_bus::v1::{AckBatch, AckOutcome, AckResult, ExtendLease, Nack};
use tokio::time::Instant;

use super::Answer;
use crate::backoff::spread;

/// Most acks, nacks and extensions in one frame.
const BATCH_MAX: usize = 1000;
/// With confirmed acks: more answers that the hub has not confirmed hold back further ones.
const UNCONFIRMED_MAX: usize = 10_000;
/// Without confirmed acks: answers that are remembered after they were sent, in case the hub wants
/// them again.
const REMEMBERED_MAX: usize = 2000;
/// Wait before something is sent that the hub wants again, lengthened by up to a tenth.
const AGAIN_WAIT: Duration = Duration::from_millis(200);

/// What was said about a lease.
#[derive(Debug, Clone)]
enum Told {
    Ack,
    Nack(Nack),
}

/// What an answer of the hub means.
#[derive(Debug, PartialEq)]
pub(super) enum Meaning {
    /// Nothing more to do.
    Settled,
    /// The lease is over, and what was said about it did not count.
    Expired,
    /// It may have been an extension.
    NotTold,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Acks {
    /// The hub answers each of them after its commit.
    confirmed: bool,
    acks: Vec<String>,
    nacks: Vec<Nack>,
    extensions: Vec<ExtendLease>,
    /// Sent and not answered, by lease; only with confirmed acks.
    unconfirmed: HashMap<String, Told>,
    /// Sent lately, newest last; only without confirmed acks.
    sent: VecDeque<(String, Told)>,
    /// To be sent again, at the time of the alarm.
    again: Vec<(String, Told)>,
    again_at: Option<Instant>,
}

impl Acks {
    pub(super) fn new(confirmed: bool) -> Self {
        Acks {
            confirmed,
            acks: Vec::new(),
            nacks: Vec::new(),
            extensions: Vec::new(),
            unconfirmed: HashMap::new(),
            sent: VecDeque::new(),
            again: Vec::new(),
            again_at: None,
        }
    }

    /// An event was handled.
    pub(super) fn answer(&mut self, lease_id: String, answer: Answer) {
        let told = answer.into_nack(&lease_id).map_or(Told::Ack, Told::Nack);
        self.tell(lease_id, told);
    }

    pub(super) fn extend(&mut self, extension: ExtendLease) {
        self.extensions.push(extension);
    }

    fn tell(&mut self, lease_id: String, told: Told) {
        match told {
            Told::Ack => self.acks.push(lease_id),
            Told::Nack(nack) => self.nacks.push(nack),
        }
    }

    /// Whether nothing is to be told and everything that was is settled, as far as is known.
    pub(super) fn is_settled(&self) -> bool {
        self.acks.is_empty()
            && self.nacks.is_empty()
            && self.again.is_empty()
            && self.unconfirmed.is_empty()
    }

    /// Whether the hub took everything that was sent, for sure, if this stream ends now.
    pub(super) fn are_sure(&self) -> bool {
        self.confirmed || self.sent.is_empty()
    }

    /// Whether there is something to send.
    pub(super) fn has_batch(&self) -> bool {
        !self.extensions.is_empty()
            || (self.room() > 0 && !(self.acks.is_empty() && self.nacks.is_empty()))
    }

    /// Answers that may still be sent before the hub confirms some.
    fn room(&self) -> usize {
        UNCONFIRMED_MAX.saturating_sub(self.unconfirmed.len())
    }

    /// What to send next.
    pub(super) fn next_batch(&mut self) -> AckBatch {
        let extend = first(&mut self.extensions, BATCH_MAX);
        let mut room = self.room().min(BATCH_MAX - extend.len());
        let nack = first(&mut self.nacks, room);
        room -= nack.len();
        let ack = first(&mut self.acks, room);
        let nacks = nack.iter().cloned();
        let nacks = nacks.map(|nack| (nack.lease_id.clone(), Told::Nack(nack)));
        let acks = ack.iter().cloned().map(|lease_id| (lease_id, Told::Ack));
        match self.confirmed {
            true => self.unconfirmed.extend(nacks.chain(acks)),
            false => self.sent.extend(nacks.chain(acks)),
        }
        self.sent
            .drain(..self.sent.len().saturating_sub(REMEMBERED_MAX));
        AckBatch { ack, nack, extend }
    }

    /// The hub said what became of something that was sent.
    pub(super) fn heard(&mut self, result: &AckResult, now: Instant) -> Meaning {
        let told = self.unconfirmed.remove(&result.lease_id);
        match result.outcome() {
            AckOutcome::Ok | AckOutcome::AlreadySettled => Meaning::Settled,
            AckOutcome::LeaseExpired | AckOutcome::Unknown => Meaning::Expired,
            // A newer hub says something that this client does not know.
            AckOutcome::Unspecified => Meaning::Settled,
            AckOutcome::Retry => match told.or_else(|| self.recall(&result.lease_id)) {
                Some(told) => {
                    self.again.push((result.lease_id.clone(), told));
                    self.again_at.get_or_insert(now + spread(AGAIN_WAIT));
                    Meaning::Settled
                }
                None => Meaning::NotTold,
            },
        }
    }

    /// What was said about a lease. What is forgotten is not sent again: then the lease ends, and
    /// the event is delivered again.
    fn recall(&mut self, lease_id: &str) -> Option<Told> {
        let index = self.sent.iter().rposition(|(id, _)| id == lease_id)?;
        self.sent.remove(index).map(|(_, told)| told)
    }

    /// When something is to be sent again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.again_at
    }

    /// Makes what is due to be sent again ready.
    pub(super) fn send_again(&mut self) {
        self.again_at = None;
        for (lease_id, told) in std::mem::take(&mut self.again) {
            self.tell(lease_id, told);
        }
    }

    /// A new stream begins: what was not confirmed is sent again, extensions are not.
    pub(super) fn restart(&mut self) {
        self.extensions.clear();
        self.sent.clear();
        self.again.extend(self.unconfirmed.drain());
        self.send_again();
    }
}

/// Takes up to `max` from the front.
fn first<T>(items: &mut Vec<T>, max: usize) -> Vec<T> {
    match items.len() <= max {
        true => std::mem::take(items),
        false => items.drain(..max).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(lease_id: &str, outcome: AckOutcome) -> AckResult {
        AckResult {
            lease_id: lease_id.into(),
            outcome: outcome.into(),
        }
    }

    fn retry(acks: &mut Acks, lease_id: &str) -> Meaning {
        acks.heard(&result(lease_id, AckOutcome::Retry), Instant::now())
    }

    #[test]
    fn a_batch_has_at_most_a_thousand_in_all() {
        let mut acks = Acks::new(false);
        for number in 0..1500 {
            acks.answer(format!("a{number}"), Answer::Ack);
        }
        for number in 0..100 {
            acks.answer(format!("n{number}"), Answer::Release);
            acks.extend(ExtendLease::default());
        }
        let batch = acks.next_batch();
        let counts = (batch.extend.len(), batch.nack.len(), batch.ack.len());
        assert_eq!(counts, (100, 100, 800));
        assert_eq!(batch.ack[0], "a0");
        assert_eq!(acks.next_batch().ack[0], "a800");
        assert!(acks.is_settled() && !acks.has_batch());
    }

    #[test]
    fn what_the_hub_wants_again_is_sent_again_as_it_was() {
        for confirmed in [false, true] {
            let mut acks = Acks::new(confirmed);
            acks.answer("a".into(), Answer::Ack);
            acks.answer("n".into(), Answer::fail("broken"));
            let sent = acks.next_batch();
            assert_eq!(retry(&mut acks, "a"), Meaning::Settled);
            assert_eq!(retry(&mut acks, "n"), Meaning::Settled);
            assert!(!acks.has_batch() && !acks.is_settled());
            acks.send_again();
            assert_eq!(acks.next_batch(), sent);
        }
    }

    #[test]
    fn what_is_not_remembered_is_not_guessed() {
        let mut acks = Acks::new(false);
        for number in 0..=REMEMBERED_MAX {
            acks.answer(format!("n{number}"), Answer::Release);
        }
        while acks.has_batch() {
            acks.next_batch();
        }
        assert_eq!(retry(&mut acks, "n0"), Meaning::NotTold);
        assert_eq!(retry(&mut acks, "never told"), Meaning::NotTold);
        assert!(acks.is_settled());
    }

    #[test]
    fn what_is_not_confirmed_holds_back_more_and_is_sent_again_on_a_new_stream() {
        let mut acks = Acks::new(true);
        for number in 0..UNCONFIRMED_MAX + 5 {
            acks.answer(number.to_string(), Answer::Ack);
        }
        while acks.has_batch() {
            acks.next_batch();
        }
        assert_eq!(acks.acks.len(), 5);
        let ok = result("0", AckOutcome::Ok);
        assert_eq!(acks.heard(&ok, Instant::now()), Meaning::Settled);
        assert_eq!(acks.next_batch().ack.len(), 1);
        acks.restart();
        assert_eq!(acks.acks.len(), UNCONFIRMED_MAX + 4);
    }
}
