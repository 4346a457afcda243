//! What is told of a subscription.

use super::*;

#[test]
fn events_are_counted_by_what_they_wait_for() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 1), (3, 3), (4, 4)]);
    let leases = subject.lease(2);
    subject.nack(&leases[0], RETRY, "no");
    let counts = Counts {
        in_flight: 1,
        retrying: 1,
        unsettled: 4,
    };
    assert_eq!(subject.machine.counts(), counts);
    // A due retry that nobody takes is still one.
    subject.pass(MINUTE);
    assert_eq!(subject.machine.counts().retrying, 2);
    subject.lease(10);
    assert_eq!(subject.machine.counts().retrying, 1);
}

#[test]
fn a_blocked_key_names_its_failing_event_and_what_waits_behind_it() {
    let events = [(1, 1), (2, 2), (3, 1), (4, 2), (5, 1), (6, 6)];
    let mut subject = Subject::with(rules(), &events);
    for lease in subject.lease(10) {
        subject.nack(&lease, RETRY, "no");
    }
    let due = Some(START + MINUTE);
    let blocked = |key, seq, waiting| Blocked {
        key: Key(key),
        seq,
        attempts: 1,
        waiting,
        due,
    };
    // Behind 6 there is nothing.
    let both = [blocked(1, 1, 2), blocked(2, 2, 1)];
    assert_eq!(subject.machine.blocked_keys(20), both);
    assert_eq!(subject.machine.blocked_keys(1), both[..1]);
    assert_eq!(subject.machine.blocked_keys(0), []);
    // While it is tried again, it blocks too.
    subject.pass(MINUTE);
    subject.lease(1);
    assert_eq!(subject.machine.blocked_keys(20), both);
}

#[test]
fn a_held_key_is_blocked_without_a_next_attempt() {
    let blocking = Rules {
        on_exhausted: Exhausted::BlockKey,
        ..rules()
    };
    let mut subject = Subject::with(blocking, &[(1, 1)]);
    let lease = subject.lease_one();
    subject.nack(&lease, Nack::Fail, "no");
    let mut blocked = Blocked {
        key: Key(1),
        seq: 1,
        attempts: 0,
        waiting: 0,
        due: None,
    };
    assert_eq!(subject.machine.blocked_keys(20), [blocked.clone()]);
    subject.offer(&[(2, 1), (3, 1)]);
    blocked.waiting = 2;
    assert_eq!(subject.machine.blocked_keys(20), [blocked]);
}

#[test]
fn nothing_is_told_of_what_is_settled_or_was_not_looked_at() {
    let mut subject = Subject::with(rules(), &[(2, 1)]);
    let lease = subject.lease_one();
    subject.ack(&lease);
    for seq in 0..5 {
        assert_eq!(subject.machine.state_of(seq), None);
    }
    assert_eq!(subject.machine.oldest_unsettled(), None);
    assert_eq!(subject.machine.counts(), Counts::default());
}
