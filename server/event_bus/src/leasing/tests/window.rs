//! How many events may be unsettled.

use super::*;

fn small() -> Rules {
    Rules {
        window_max: 3,
        ..rules()
    }
}

#[test]
fn a_full_window_takes_no_more_until_something_is_settled() {
    let mut subject = Subject::with(small(), &[(1, 1), (2, 1)]);
    assert_eq!(subject.machine.window_left(), 1);
    subject.offer(&[(3, 2)]);
    assert_eq!(subject.machine.window_left(), 0);
    let leases = subject.lease(10);
    // Leased is not settled, and neither is what waits for a retry.
    assert_eq!(subject.machine.window_left(), 0);
    subject.nack(&leases[0], RETRY, "no");
    assert_eq!(subject.machine.window_left(), 0);
    subject.ack(&leases[1]);
    assert_eq!(subject.machine.window_left(), 1);
    // The oldest event keeps the floor.
    assert_eq!(subject.machine.position().floor, 0);
    assert_eq!(subject.machine.oldest_unsettled(), Some(1));
}

#[test]
fn events_that_do_not_match_take_no_room() {
    let mut subject = Subject::with(small(), &[(1000, 1)]);
    subject.machine.looked_through(5000);
    assert_eq!(subject.machine.window_left(), 2);
    let position = subject.machine.position();
    assert_eq!((position.floor, position.cursor), (999, 5000));
}

#[test]
fn redelivered_events_have_room_of_their_own() {
    let mut subject = Subject::with(small(), &[(1, 1), (2, 2), (3, 3)]);
    for lease in subject.lease(10) {
        subject.ack(&lease);
    }
    subject.offer(&[(4, 4), (5, 5), (6, 6)]);
    assert_eq!(subject.machine.window_left(), 0);
    for seq in 1..=3 {
        assert!(subject.redeliver(seq, seq, true));
    }
    assert_eq!(subject.machine.redelivery_left(), 0);
    assert_eq!(subject.machine.window_left(), 0);
    let lease = subject.lease_one();
    subject.ack(&lease);
    assert_eq!(subject.machine.redelivery_left(), 1);
    assert_eq!(subject.machine.window_left(), 0);
    let owner = subject.taken_over();
    assert_eq!(owner.machine.redelivery_left(), 1);
    assert_eq!(owner.machine.window_left(), 0);
}

#[test]
fn held_keys_take_room_so_that_there_is_an_end_to_them() {
    let blocking = Rules {
        on_exhausted: Exhausted::BlockKey,
        ..small()
    };
    let mut subject = Subject::with(blocking, &[(1, 1), (2, 2), (3, 3)]);
    for lease in subject.lease(10) {
        subject.nack(&lease, Nack::Fail, "no");
    }
    assert_eq!(subject.machine.counts().unsettled, 0);
    assert_eq!(subject.machine.window_left(), 0);
    let owner = subject.taken_over();
    assert_eq!(owner.machine.window_left(), 0);
    // Redelivery is the way out, so it has room.
    assert!(subject.redeliver(1, 1, true));
    assert_eq!(subject.machine.window_left(), 1);
}

#[test]
fn a_smaller_window_lets_nothing_go() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 2), (3, 3), (4, 4)]);
    subject.machine.set_rules(small());
    assert_eq!(subject.machine.window_left(), 0);
    assert_eq!(subject.leased(), [1, 2, 3, 4]);
}
