//! Events that were settled and are queued again.

use super::*;

/// Events 1 to 4: acked, failed, skipped, and not settled.
fn subject() -> Subject {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 2), (3, 3), (4, 4)]);
    let leases = subject.lease(3);
    subject.ack(&leases[0]);
    subject.nack(&leases[1], Nack::Fail, "no");
    subject.nack(&leases[2], Nack::Skip, "no");
    subject.changes();
    subject
}

#[test]
fn what_is_settled_is_queued_again_with_all_its_attempts() {
    let mut subject = subject();
    for seq in 1..=3 {
        assert!(subject.redeliver(seq, seq, true));
        assert_eq!(subject.phase(seq), Some(Phase::Queued));
    }
    assert_eq!(subject.changes().removed, [1, 2, 3]);
    let leases = subject.lease(10);
    assert_eq!(seqs(&leases), [1, 2, 3, 4]);
    assert!(leases.iter().all(|lease| lease.attempt == 1));
    let again: Vec<bool> = leases.iter().map(|lease| lease.redelivery).collect();
    assert_eq!(again, [true, true, true, false]);
}

#[test]
fn what_is_not_settled_is_not_redelivered() {
    let mut subject = subject();
    assert!(!subject.redeliver(4, 4, true));
    // Never looked at.
    assert!(!subject.machine.redeliver(5, None, 100, true));
    assert!(subject.redeliver(1, 1, true));
    assert!(!subject.redeliver(1, 1, true));
    let lease = subject.lease_one();
    assert!(!subject.redeliver(1, 1, true));
    assert_eq!(subject.ack(&lease), Outcome::Ok);
    assert_eq!(subject.changes().removed, [1]);
}

#[test]
fn redelivery_does_not_move_the_floor_back() {
    let mut subject = subject();
    assert_eq!(subject.machine.position().floor, 3);
    assert!(subject.redeliver(2, 2, true));
    assert_eq!(subject.machine.position().floor, 3);
    let lease = subject.lease(10).pop().unwrap();
    assert_eq!(lease.id.seq, 4);
    subject.ack(&lease);
    assert_eq!(subject.machine.position().floor, 4);
    let owner = subject.taken_over();
    assert_eq!(owner.machine.position().floor, 4);
    assert_eq!(owner.machine.oldest_unsettled(), Some(2));
}

#[test]
fn an_ack_needs_a_row_only_if_the_event_would_count_as_something_else() {
    let mut subject = subject();
    subject.redeliver(1, 1, true);
    subject.redeliver(2, 2, false);
    subject.changes();
    for lease in subject.lease(2) {
        subject.ack(&lease);
    }
    let changes = subject.changes();
    assert_eq!(changes.put.len(), 1);
    let put = &changes.put[0];
    assert_eq!((put.seq, put.state), (2, Settled::Delivered));
    assert_eq!(put.attempts, 1);
}

#[test]
fn a_redelivered_event_can_fail_again_before_anything_is_stored() {
    let mut subject = subject();
    subject.redeliver(2, 2, true);
    let lease = subject.lease_one();
    subject.nack(&lease, Nack::Fail, "again");
    let changes = subject.changes();
    assert_eq!(changes.removed, [] as [u64; 0]);
    assert_eq!(&*changes.put[0].error, "again");
}

#[test]
fn events_that_a_seek_replays_say_so() {
    let position = Position {
        floor: 10,
        cursor: 10,
        replay_until: 12,
    };
    let mut machine = Leasing::new(rules(), 1, position, &[], &[]);
    for seq in 10..=13 {
        machine.offer(seq, None, 100);
    }
    let leases = machine.lease(A, START, 10, 1000, None);
    assert_eq!(seqs(&leases), [11, 12, 13]);
    let again: Vec<bool> = leases.iter().map(|lease| lease.redelivery).collect();
    assert_eq!(again, [true, true, false]);
    // They take the room of any event.
    assert_eq!(machine.window_left(), 10_000 - 3);
    assert_eq!(machine.position().replay_until, 12);
}

#[test]
fn a_redelivered_event_waits_until_it_is_stored_that_it_is_unsettled() {
    let mut subject = subject();
    // Another one of its key, which waits for it.
    subject.offer(&[(5, 1)]);
    assert!(subject.machine.redeliver(1, Some(Key(1)), 100, true));
    let unstored = subject.machine.unstored();
    assert_eq!(unstored, [1]);
    assert_eq!(subject.phase(1), None);
    assert_eq!(subject.leased(), [4]);
    // Who asks once more has something to wait for.
    assert!(subject.machine.redeliver(1, Some(Key(1)), 100, true));
    assert_eq!(subject.machine.unstored(), [1]);
    // What is not stored yet is not among what a save before had.
    assert!(subject.machine.redeliver(2, Some(Key(2)), 100, true));
    subject.machine.stored(&unstored);
    assert_eq!(subject.phase(1), Some(Phase::Queued));
    let leases = subject.lease(10);
    assert_eq!(seqs(&leases), [1]);
    assert_eq!(subject.ack(&leases[0]), Outcome::Ok);
    assert_eq!(subject.leased(), [5]);
    // Who goes on with a save that has it need not wait.
    assert_eq!(subject.taken_over().leased(), [2, 4, 5]);
}

#[test]
fn an_event_that_comes_after_all_is_not_said_to_have_ended_before() {
    let mut subject = subject();
    subject.machine.know_ahead(vec![6, 7]);
    subject.offer(&[(5, 5), (6, 6)]);
    subject.machine.looked_through(8);
    assert_eq!(subject.changes().removed, [6]);
}
