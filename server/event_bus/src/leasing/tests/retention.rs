//! Events that pass retention before they are settled.

use super::*;

#[test]
fn what_retention_passes_is_expired() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 1), (3, 3), (9, 1)]);
    let lease = subject.lease(3).remove(1);
    assert_eq!(lease.id.seq, 3);
    subject.nack(&lease, RETRY, "no");
    subject.machine.release_all(subject.now);
    subject.machine.expire_through(5, subject.now);
    let changes = subject.changes();
    let put = changes.put.iter();
    let put: Vec<_> = put.map(|put| (put.seq, put.state, put.attempts)).collect();
    let expired = Settled::Expired;
    assert_eq!(put, [(1, expired, 0), (2, expired, 0), (3, expired, 1)]);
    assert_eq!(&*changes.put[2].error, "no");
    assert_eq!(changes.ranges, []);
    let position = subject.machine.position();
    assert_eq!((position.floor, position.cursor), (8, 9));
    assert_eq!(subject.leased(), [9]);
}

#[test]
fn what_was_never_looked_at_is_a_range() {
    let mut subject = Subject::with(rules(), &[(5, 1)]);
    subject.machine.expire_through(8, subject.now);
    subject.machine.expire_through(8, subject.now);
    subject.machine.expire_through(12, subject.now);
    let changes = subject.changes();
    assert_eq!(changes.put.len(), 1);
    assert_eq!(changes.ranges, [(6, 12, Settled::Expired)]);
    let position = subject.machine.position();
    assert_eq!((position.floor, position.cursor), (12, 12));
    subject.offer(&[(12, 1), (13, 1)]);
    assert_eq!(subject.leased(), [13]);
}

#[test]
fn a_leased_event_that_retention_passes_may_be_acked() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
    let leases = subject.lease(5);
    subject.machine.expire_through(5, subject.now);
    assert_eq!(subject.changes(), Changes::default());
    assert_eq!(subject.ack(&leases[0]), Outcome::Ok);
    assert_eq!(subject.changes(), Changes::default());
    // But it is not delivered again.
    subject.nack(&leases[1], RETRY, "no");
    subject.nack(&leases[2], Nack::Release, "");
    subject.nack(&leases[3], Nack::Fail, "no");
    subject.machine.leave(A, subject.now, 0.0);
    let put = subject.changes().put.into_iter();
    let put: Vec<_> = put.map(|put| (put.seq, put.state, put.attempts)).collect();
    let (expired, failed) = (Settled::Expired, Settled::Failed);
    let all = [
        (2, expired, 1),
        (3, expired, 0),
        (4, failed, 1),
        (5, expired, 0),
    ];
    assert_eq!(put, all);
    assert_eq!(subject.machine.position().floor, 5);
}

#[test]
fn what_retention_passed_is_not_redelivered_and_holds_no_key() {
    let blocking = Rules {
        on_exhausted: Exhausted::BlockKey,
        ..rules()
    };
    let mut subject = Subject::with(blocking, &[(1, 1), (2, 1), (3, 3), (4, 3)]);
    let leases = subject.lease(10);
    subject.nack(&leases[0], Nack::Fail, "no");
    subject.changes();
    subject.machine.expire_through(1, subject.now);
    assert_eq!(subject.changes().freed, [1]);
    assert!(!subject.redeliver(1, 1, true));
    assert_eq!(subject.leased(), [2]);
    // Also if it fails only now.
    subject.machine.expire_through(3, subject.now);
    subject.nack(&leases[1], Nack::Fail, "no");
    assert_eq!(subject.changes().put[0].held_key, None);
    assert_eq!(subject.leased(), [4]);
}

#[test]
fn what_expires_while_it_is_leased_is_told_once_its_lease_has_ended() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 2), (3, 3)]);
    let leases = subject.lease(3);
    subject.machine.expire_through(2, subject.now);
    assert_eq!(subject.machine.take_lost(), None);
    subject.nack(&leases[0], Nack::Release, "");
    subject.nack(&leases[1], RETRY, "no");
    subject.nack(&leases[2], Nack::Release, "");
    assert_eq!(subject.machine.take_lost(), Some((1, 2)));
    assert_eq!(subject.machine.take_lost(), None);
}
