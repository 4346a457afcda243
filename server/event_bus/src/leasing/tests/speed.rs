//! The speed limit.

use super::super::rate::Rate;
use super::random::Random;
use super::*;

fn slow(max_per_second: u32) -> Rules {
    Rules {
        max_per_second,
        ..rules()
    }
}

#[test]
fn in_any_second_at_most_so_many_events_are_leased() {
    let events = [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0)];
    let mut subject = Subject::with(slow(2), &events);
    assert_eq!(subject.leased(), [1, 2]);
    assert!(!subject.machine.deliverable(subject.now));
    assert_eq!(subject.machine.next_due(), Some(START + SECOND));
    subject.pass(SECOND - 1);
    assert_eq!(subject.leased(), NONE);
    subject.pass(1);
    assert!(subject.machine.deliverable(subject.now));
    assert_eq!(subject.leased_in_one(), [3]);
    subject.pass(SECOND / 2);
    assert_eq!(subject.leased(), [4]);
    // The one of half a second ago counts still.
    subject.pass(SECOND / 2);
    assert_eq!(subject.leased(), [5]);
}

#[test]
fn retries_count_as_every_lease() {
    let mut subject = Subject::with(slow(1), &[(1, 1), (2, 2)]);
    let lease = subject.lease_one();
    let how = Nack::Retry { after: Some(0) };
    subject.nack(&lease, how, "no");
    assert_eq!(subject.leased(), NONE);
    subject.pass(SECOND);
    assert_eq!(subject.leased(), [1]);
}

#[test]
fn a_limit_that_is_lifted_is_none() {
    let mut subject = Subject::with(slow(1), &[(1, 1), (2, 2), (3, 3)]);
    assert_eq!(subject.leased(), [1]);
    subject.machine.set_rules(slow(0));
    assert!(subject.machine.deliverable(subject.now));
    assert_eq!(subject.leased(), [2, 3]);
}

#[test]
fn a_paused_subscription_does_not_wait_for_its_limit() {
    let mut subject = Subject::with(slow(1), &[(1, 1), (2, 2)]);
    let lease = subject.lease_one();
    subject.ack(&lease);
    assert_eq!(subject.machine.next_due(), Some(START + SECOND));
    subject.machine.set_paused(true);
    assert_eq!(subject.machine.next_due(), None);
}

#[test]
fn the_limit_is_never_exceeded_and_nearly_used() {
    const MAX: u32 = 500;
    let mut random = Random::new(1, 1);
    let mut rate = Rate::default();
    let (mut now, mut given) = (START, Vec::new());
    while now < START + 5 * SECOND {
        now += random.below(5_000) as Micros;
        let leases = rate.left(MAX, now).min(random.below(10));
        if leases > 0 {
            rate.count(leases, now);
        }
        given.extend(std::iter::repeat_n(now, leases));
    }
    for (at, first) in given.iter().enumerate() {
        let second = given[at..].iter().take_while(|at| **at < first + SECOND);
        assert!(second.count() <= MAX as usize);
    }
    // Without a limit it would have been about 1800 each second.
    assert!(given.len() >= 5 * 490, "{}", given.len());
}

#[test]
fn a_clock_that_was_set_back_does_not_stop_deliveries() {
    let mut rate = Rate::default();
    rate.count(5, START);
    assert_eq!(rate.left(5, START - 60 * MINUTE), 5);
    rate.count(2, START - 60 * MINUTE);
    assert_eq!(rate.left(5, START - 60 * MINUTE), 3);
    assert_eq!(rate.left(5, START - 60 * MINUTE + SECOND), 5);
}

impl Subject {
    /// Leases one event.
    fn leased_in_one(&mut self) -> Vec<u64> {
        seqs(&self.lease(1))
    }
}
