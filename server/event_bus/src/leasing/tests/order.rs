//! Which events wait for which.

use super::*;

fn total() -> Rules {
    Rules {
        ordering: Ordering::Total,
        ..rules()
    }
}

#[test]
fn of_a_key_one_event_is_leased_and_other_keys_go_on() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 1), (3, 2), (4, 1), (5, 0), (6, 0)]);
    let leases = subject.lease(10);
    assert_eq!(seqs(&leases), [1, 3, 5, 6]);
    assert_eq!(subject.phase(2), Some(Phase::KeyBlocked { behind: 1 }));
    assert!(!subject.machine.deliverable(subject.now));
    subject.ack(&leases[0]);
    assert!(subject.machine.deliverable(subject.now));
    assert_eq!(subject.leased(), [2]);
    assert_eq!(subject.leased(), NONE);
}

#[test]
fn a_retry_keeps_its_place_before_the_later_events_of_its_key() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 1), (3, 2)]);
    let leases = subject.lease(10);
    subject.nack(&leases[0], RETRY, "no");
    subject.ack(&leases[1]);
    subject.pass(59 * SECOND);
    assert_eq!(subject.leased(), NONE);
    subject.pass(SECOND);
    assert_eq!(subject.leased(), [1]);
}

#[test]
fn without_order_all_events_are_leased_at_once() {
    let unordered = Rules {
        ordering: Ordering::None,
        on_exhausted: Exhausted::BlockKey,
        ..rules()
    };
    let mut subject = Subject::with(unordered, &[(1, 1), (2, 1), (3, 0)]);
    let leases = subject.lease(10);
    assert_eq!(seqs(&leases), [1, 2, 3]);
    subject.nack(&leases[0], Nack::Fail, "no");
    // There is no key to hold.
    assert_eq!(subject.changes().put[0].held_key, None);
    subject.offer(&[(4, 1)]);
    assert_eq!(subject.leased(), [4]);
}

#[test]
fn in_total_order_events_come_one_after_the_other() {
    let mut subject = Subject::with(total(), &[(1, 1), (2, 2), (3, 0)]);
    for seq in 1..=3 {
        let leases = subject.lease(10);
        assert_eq!(seqs(&leases), [seq]);
        assert_eq!(subject.leased(), NONE);
        subject.ack(&leases[0]);
    }
    assert_eq!(subject.machine.position().floor, 3);
}

#[test]
fn in_total_order_only_the_member_that_is_here_longest_gets_events() {
    let mut subject = Subject::with(total(), &[(1, 0), (2, 0)]);
    subject.machine.join(B);
    subject.machine.join(A);
    assert_eq!(seqs(&subject.lease_by(B, 10)), NONE);
    let lease = subject.lease_one();
    // The standby takes over, and the event that was leased comes first.
    subject.machine.leave(A, subject.now, 0.0);
    assert_eq!(seqs(&subject.lease_by(A, 10)), NONE);
    assert_eq!(seqs(&subject.lease_by(B, 10)), [1]);
    assert_eq!(subject.ack(&lease), Outcome::LeaseExpired);
    subject.machine.join(A);
    assert_eq!(subject.leased(), NONE);
    subject.machine.leave(B, subject.now, 0.0);
    assert_eq!(subject.leased(), [1]);
}

#[test]
fn in_total_order_without_members_nothing_can_be_delivered() {
    let mut subject = Subject::with(total(), &[(1, 0)]);
    assert!(subject.machine.deliverable(subject.now));
    subject.machine.retire(A);
    assert!(!subject.machine.deliverable(subject.now));
    assert_eq!(subject.leased(), NONE);
}

#[test]
fn in_total_order_an_event_that_failed_for_good_can_hold_back_all() {
    let blocking = Rules {
        on_exhausted: Exhausted::BlockKey,
        ..total()
    };
    let mut subject = Subject::with(blocking, &[(1, 7), (2, 8)]);
    subject.exhaust(1);
    assert_eq!(subject.changes().put[0].held_key, Some(Key::ALL));
    assert_eq!(subject.phase(2), Some(Phase::KeyBlocked { behind: 1 }));
    let mut owner = subject.taken_over();
    assert_eq!(owner.leased(), NONE);
    assert!(owner.redeliver(1, 7, true));
    let lease = owner.lease_one();
    owner.ack(&lease);
    assert_eq!(owner.leased(), [2]);
}

#[test]
fn a_held_key_waits_until_its_failed_event_is_redelivered_and_settled() {
    let blocking = Rules {
        on_exhausted: Exhausted::BlockKey,
        ..rules()
    };
    let mut subject = Subject::with(blocking, &[(1, 1), (2, 1)]);
    subject.exhaust(1);
    // Later events of the key wait too, those of other keys do not.
    subject.offer(&[(3, 1), (4, 2)]);
    assert_eq!(subject.leased(), [4]);
    assert_eq!(subject.phase(3), Some(Phase::KeyBlocked { behind: 1 }));
    // It fails again, and holds its key again.
    assert!(subject.redeliver(1, 1, true));
    let lease = subject.lease_one();
    subject.nack(&lease, Nack::Fail, "still not");
    assert_eq!(subject.leased(), NONE);
    assert!(subject.redeliver(1, 1, true));
    let lease = subject.lease_one();
    assert_eq!((lease.id.seq, lease.attempt), (1, 1));
    assert_eq!(subject.leased(), NONE);
    subject.ack(&lease);
    assert_eq!(subject.leased(), [2]);
}

#[test]
fn a_held_key_goes_on_when_it_is_freed() {
    let blocking = Rules {
        on_exhausted: Exhausted::BlockKey,
        ..rules()
    };
    let mut subject = Subject::with(blocking, &[(1, 1), (2, 1)]);
    let lease = subject.lease_one();
    subject.nack(&lease, Nack::Fail, "no");
    subject.changes();
    assert!(!subject.machine.free(2));
    assert!(subject.machine.free(1));
    assert_eq!(subject.changes().freed, [1]);
    assert!(!subject.machine.free(1));
    assert_eq!(subject.leased(), [2]);
}

#[test]
fn a_skipped_event_does_not_hold_its_key() {
    let blocking = Rules {
        on_exhausted: Exhausted::BlockKey,
        ..rules()
    };
    let mut subject = Subject::with(blocking, &[(1, 1), (2, 1)]);
    let lease = subject.lease_one();
    subject.nack(&lease, Nack::Skip, "not for us");
    assert_eq!(subject.leased(), [2]);
}

#[test]
fn an_older_event_that_is_redelivered_comes_before_a_retry_of_its_key() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 1)]);
    let first = subject.lease_one();
    subject.ack(&first);
    let second = subject.lease_one();
    subject.nack(&second, RETRY, "no");
    assert!(subject.redeliver(1, 1, true));
    subject.pass(2 * MINUTE);
    let again = subject.lease_one();
    assert_eq!(again.id.seq, 1);
    assert_eq!(subject.leased(), NONE);
    subject.ack(&again);
    assert_eq!(subject.leased(), [2]);
}

#[test]
fn an_older_event_that_is_redelivered_waits_for_a_leased_one_of_its_key() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 1)]);
    let first = subject.lease_one();
    subject.ack(&first);
    let second = subject.lease_one();
    assert!(subject.redeliver(1, 1, true));
    assert_eq!(subject.leased(), NONE);
    subject.nack(&second, RETRY, "no");
    assert_eq!(subject.leased(), [1]);
}
