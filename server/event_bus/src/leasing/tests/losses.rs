//! What a lost connection, a release and a drain cost.

use super::*;

#[test]
fn a_lost_connection_costs_no_attempt() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 1)]);
    let lost = subject.lease_one();
    subject.machine.leave(A, subject.now, 0.0);
    assert_eq!(subject.phase(1), Some(Phase::Queued));
    assert_eq!(subject.ack(&lost), Outcome::LeaseExpired);
    let lease = seqs(&subject.lease_by(B, 10));
    assert_eq!(lease, [1]);
    assert_eq!(subject.machine.state_of(1).unwrap().attempts, 1);
}

#[test]
fn an_event_that_was_held_at_three_losses_is_suspected_to_be_the_cause() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 2)]);
    for loss in 1..=3 {
        subject.machine.join(A);
        let lease = subject.lease_one();
        assert_eq!((lease.id.seq, lease.attempt), (1, 1));
        subject.machine.leave(A, subject.now, 0.0);
        let waits = subject.machine.counts().retrying;
        assert_eq!(waits, usize::from(loss == 3), "after {loss} losses");
    }
    // The others go on, and each further loss costs an attempt.
    assert_eq!(subject.leased(), [2]);
    subject.pass(MINUTE);
    let lease = subject.lease_one();
    assert_eq!((lease.id.seq, lease.attempt), (1, 2));
    assert!(lease.previous_error.unwrap().contains("connection"));
    subject.machine.leave(A, subject.now, 0.0);
    let due = subject.now + 5 * MINUTE;
    assert_eq!(subject.phase(1), Some(Phase::RetryWait { due }));
}

#[test]
fn losses_are_remembered_by_a_new_owner() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    for _ in 0..2 {
        subject.machine.join(A);
        subject.lease_one();
        subject.machine.leave(A, subject.now, 0.0);
    }
    let mut owner = subject.taken_over();
    owner.lease_one();
    owner.machine.leave(A, owner.now, 1.0);
    let due = owner.now + 66 * SECOND;
    assert_eq!(owner.phase(1), Some(Phase::RetryWait { due }));
}

#[test]
fn only_the_leases_of_the_lost_member_return() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 2), (3, 3)]);
    subject.machine.join(B);
    let mine = subject.lease_one();
    let other = subject.lease_by(B, 1).pop().unwrap();
    subject.machine.leave(A, subject.now, 0.0);
    assert_eq!(subject.ack(&other), Outcome::Ok);
    assert_eq!(seqs(&subject.lease_by(B, 10)), [1, 3]);
    assert_eq!(subject.ack(&mine), Outcome::LeaseExpired);
}

#[test]
fn the_leases_of_a_member_that_only_retires_go_on() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 2)]);
    let lease = subject.lease_one();
    subject.machine.retire(A);
    assert_eq!(subject.ack(&lease), Outcome::Ok);
    let lease = subject.lease_one();
    subject.pass(30 * SECOND);
    assert_eq!(subject.ack(&lease), Outcome::LeaseExpired);
}

#[test]
fn a_released_event_goes_to_another_member_at_once() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 1), (3, 2)]);
    subject.machine.join(B);
    let lease = subject.lease_one();
    assert_eq!(subject.nack(&lease, Nack::Release, "not now"), Outcome::Ok);
    assert_eq!(subject.phase(1), Some(Phase::Queued));
    assert!(subject.machine.deliverable(subject.now));
    // Its own events are not what the member waits for.
    assert_eq!(subject.leased(), [3]);
    let lease = subject.lease_by(B, 10).pop().unwrap();
    assert_eq!((lease.id.seq, lease.attempt), (1, 1));
    assert_eq!(lease.previous_error, None);
}

#[test]
fn a_released_event_comes_back_if_nobody_else_takes_it() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let lease = subject.lease_one();
    subject.nack(&lease, Nack::Release, "");
    // There is nobody else.
    let lease = subject.lease_one();
    subject.machine.join(B);
    subject.nack(&lease, Nack::Release, "");
    assert_eq!(subject.leased(), NONE);
    assert_eq!(subject.machine.next_due(), Some(START + SECOND));
    subject.pass(SECOND);
    let lease = subject.lease_one();
    assert_eq!(lease.attempt, 1);
    subject.nack(&lease, Nack::Release, "");
    assert_eq!(subject.leased(), NONE);
    subject.machine.leave(B, subject.now, 0.0);
    assert_eq!(subject.leased(), [1]);
}

#[test]
fn a_drain_returns_all_leases_without_cost() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 2)]);
    let leases = subject.lease(10);
    for _ in 0..5 {
        subject.machine.release_all(subject.now);
        assert_eq!(subject.machine.counts().in_flight, 0);
        assert_eq!(subject.leased(), [1, 2]);
    }
    assert_eq!(subject.machine.state_of(1).unwrap().attempts, 1);
    assert_eq!(subject.ack(&leases[0]), Outcome::LeaseExpired);
}
