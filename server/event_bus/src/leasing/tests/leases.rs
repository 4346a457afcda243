//! What a member gets, and what its answers do.

use super::*;

#[test]
fn a_lease_tells_what_it_is() {
    let mut subject = Subject::with(rules(), &[(7, 1)]);
    let lease = subject.lease_one();
    let id = LeaseId {
        seq: 7,
        epoch: 1,
        number: 1,
    };
    let expected = Lease {
        id,
        attempt: 1,
        until: START + 30 * SECOND,
        previous_error: None,
        redelivery: false,
        bytes: 100,
    };
    assert_eq!(lease, expected);
    assert_eq!(
        subject.phase(7),
        Some(Phase::InFlight { until: lease.until })
    );
}

#[test]
fn a_lease_can_have_another_length() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let length = Some(60 * MINUTE);
    let leases = subject.machine.lease(A, START, 1, 100, length);
    assert_eq!(leases[0].until, START + 60 * MINUTE);
    subject.pass(60 * MINUTE - 1);
    assert_eq!(subject.ack(&leases[0]), Outcome::Ok);
}

#[test]
fn an_ack_counts_once() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let lease = subject.lease_one();
    assert_eq!(subject.ack(&lease), Outcome::Ok);
    assert_eq!(subject.ack(&lease), Outcome::AlreadySettled);
    assert_eq!(subject.nack(&lease, RETRY, "no"), Outcome::AlreadySettled);
    let extended = subject.machine.extend(lease.id, SECOND, subject.now);
    assert_eq!(extended, Outcome::AlreadySettled);
    assert_eq!(subject.phase(1), None);
    assert_eq!(subject.changes(), Changes::default());
}

#[test]
fn every_answer_that_settles_is_remembered() {
    for how in [Nack::Fail, Nack::Skip] {
        let mut subject = Subject::with(rules(), &[(1, 1)]);
        let lease = subject.lease_one();
        assert_eq!(subject.nack(&lease, how, "no"), Outcome::Ok);
        assert_eq!(subject.nack(&lease, how, "no"), Outcome::AlreadySettled);
    }
    for how in [RETRY, Nack::Release] {
        let mut subject = Subject::with(rules(), &[(1, 1)]);
        let lease = subject.lease_one();
        assert_eq!(subject.nack(&lease, how, "no"), Outcome::Ok);
        assert_eq!(subject.ack(&lease), Outcome::LeaseExpired);
    }
}

#[test]
fn a_late_ack_does_not_settle_the_next_lease() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let late = subject.lease_one();
    subject.pass(30 * SECOND);
    assert_eq!(subject.ack(&late), Outcome::LeaseExpired);
    subject.pass(MINUTE);
    let lease = subject.lease_one();
    assert_ne!(lease.id, late.id);
    assert_eq!(subject.ack(&late), Outcome::LeaseExpired);
    assert_eq!(subject.nack(&late, Nack::Fail, "no"), Outcome::LeaseExpired);
    assert_eq!(subject.machine.counts().in_flight, 1);
    assert_eq!(subject.ack(&lease), Outcome::Ok);
    assert_eq!(subject.ack(&late), Outcome::LeaseExpired);
}

#[test]
fn a_lease_ends_at_its_time_even_if_nobody_looked_at_the_clock() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let lease = subject.lease_one();
    subject.now = lease.until;
    assert_eq!(subject.ack(&lease), Outcome::LeaseExpired);
    let extended = subject.machine.extend(lease.id, MINUTE, subject.now);
    assert_eq!(extended, Outcome::LeaseExpired);
    subject.machine.gone(lease.id, subject.now);
    assert_eq!(subject.machine.counts().in_flight, 1);
}

#[test]
fn leases_of_other_owners_and_of_nobody_change_nothing() {
    let mut subject = Subject::with(rules(), &[(1, 1), (3, 3)]);
    let id = subject.lease_one().id;
    let now = subject.now;
    let epoch = LeaseId { epoch: 2, ..id };
    let number = LeaseId { number: 2, ..id };
    let other = LeaseId { seq: 3, ..id };
    let unmatched = LeaseId { seq: 2, ..id };
    for wrong in [epoch, number, other, unmatched] {
        let outcome = subject.machine.ack(wrong, now);
        assert_eq!(outcome, Outcome::LeaseExpired, "{wrong:?}");
    }
    let unknown = LeaseId { seq: 4, ..id };
    assert_eq!(subject.machine.ack(unknown, now), Outcome::Unknown);
    let nack = subject.machine.nack(unknown, RETRY, "", now, 0.0);
    assert_eq!(nack, Outcome::Unknown);
    let counts = subject.machine.counts();
    assert_eq!((counts.in_flight, counts.unsettled), (1, 2));
}

#[test]
fn settled_leases_are_forgotten_in_turn() {
    let few = Rules {
        settled_remembered_max: 3,
        ..rules()
    };
    let mut subject = Subject::with(few, &[(1, 1), (2, 2), (3, 3), (4, 4)]);
    let leases = subject.lease(10);
    for lease in &leases {
        assert_eq!(subject.ack(lease), Outcome::Ok);
    }
    assert_eq!(subject.ack(&leases[0]), Outcome::LeaseExpired);
    for lease in &leases[1..] {
        assert_eq!(subject.ack(lease), Outcome::AlreadySettled);
    }
    subject.machine.set_rules(Rules {
        settled_remembered_max: 0,
        ..rules()
    });
    assert_eq!(subject.ack(&leases[3]), Outcome::LeaseExpired);
}

#[test]
fn many_settled_leases_are_remembered_as_they_come() {
    let mut subject = Subject::new(rules());
    let mut leases = Vec::new();
    for seq in 1..=1500 {
        subject.offer(&[(seq, seq)]);
        leases.push(subject.lease_one());
        assert_eq!(subject.ack(&leases[seq as usize - 1]), Outcome::Ok);
        let oldest = leases.len().saturating_sub(1000);
        assert_eq!(subject.ack(&leases[oldest]), Outcome::AlreadySettled);
    }
    assert_eq!(subject.ack(&leases[499]), Outcome::LeaseExpired);
}

#[test]
fn an_extension_counts_from_now() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let lease = subject.lease_one();
    subject.pass(20 * SECOND);
    let extended = subject.machine.extend(lease.id, 20 * SECOND, subject.now);
    assert_eq!(extended, Outcome::Ok);
    assert_eq!(subject.machine.next_due(), Some(START + 40 * SECOND));
    subject.pass(20 * SECOND - 1);
    assert_eq!(subject.ack(&lease), Outcome::Ok);
}

#[test]
fn an_extension_can_end_a_lease() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let lease = subject.lease_one();
    subject.machine.extend(lease.id, 0, subject.now);
    subject.pass(0);
    assert_eq!(subject.machine.counts().retrying, 1);
}

#[test]
fn a_member_gets_as_many_events_and_bytes_as_it_asks_for() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 2), (3, 3), (4, 4)]);
    assert_eq!(seqs(&subject.machine.lease(A, START, 0, 1000, None)), NONE);
    assert_eq!(seqs(&subject.machine.lease(A, START, 1, 1000, None)), [1]);
    assert_eq!(seqs(&subject.machine.lease(A, START, 9, 299, None)), [2, 3]);
    assert_eq!(seqs(&subject.machine.lease(A, START, 9, 100, None)), [4]);
}

#[test]
fn an_event_that_is_too_large_goes_alone_to_an_idle_member() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 2)]);
    subject.machine.join(B);
    let small = subject.machine.lease(A, START, 1, 1000, None);
    // It has something outstanding, so it gets no more than fits.
    assert_eq!(seqs(&subject.machine.lease(A, START, 9, 99, None)), NONE);
    subject.ack(&small[0]);
    subject.offer(&[(3, 3)]);
    assert_eq!(seqs(&subject.machine.lease(A, START, 9, 99, None)), [2]);
    assert_eq!(seqs(&subject.machine.lease(A, START, 9, 99, None)), NONE);
    // Small events do not overtake it.
    subject.machine.offer(4, None, 10);
    assert_eq!(seqs(&subject.machine.lease(A, START, 9, 99, None)), NONE);
    assert_eq!(seqs(&subject.machine.lease(B, START, 9, 99, None)), [3]);
}

#[test]
fn a_member_that_did_not_join_gets_events_too() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let lease = subject.lease_by(B, 1).pop().unwrap();
    assert_eq!(subject.ack(&lease), Outcome::Ok);
}

#[test]
fn paused_nothing_is_leased_and_what_is_leased_may_be_settled() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 1)]);
    let lease = subject.lease_one();
    subject.machine.set_paused(true);
    assert_eq!(subject.ack(&lease), Outcome::Ok);
    assert!(!subject.machine.deliverable(subject.now));
    assert_eq!(subject.leased(), NONE);
    // Events go on to be looked at.
    subject.offer(&[(3, 3)]);
    assert_eq!(subject.machine.position().cursor, 3);
    subject.machine.set_paused(false);
    assert_eq!(subject.leased(), [2, 3]);
}

#[test]
fn a_leased_event_that_is_gone_from_the_log_is_expired() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 1)]);
    let lease = subject.lease_one();
    subject.machine.gone(lease.id, subject.now);
    let expired = &subject.changes().put[0];
    assert_eq!((expired.seq, expired.state), (1, Settled::Expired));
    assert_eq!(expired.attempts, 0);
    assert_eq!(subject.leased(), [2]);
    subject.machine.gone(lease.id, subject.now);
    assert_eq!(subject.changes(), Changes::default());
}
