//! What went wrong in other systems must not go wrong here. Each test names where it was seen.

use super::*;

/// Pulsar: what was acked behind an unacked event was delivered again after a restart, beyond a
/// number of such ranges that the stored cursor could hold.
#[test]
fn all_acks_behind_a_hole_survive_a_new_owner() {
    let mut subject = Subject::new(rules());
    for seq in 1..=10_000 {
        subject.offer(&[(seq, seq)]);
    }
    assert_eq!(subject.machine.window_left(), 0);
    // Every second one is acked: as many ranges as there can be.
    let leases = subject.lease(10_000);
    for lease in leases.iter().filter(|lease| lease.id.seq % 2 == 0) {
        assert_eq!(subject.ack(lease), Outcome::Ok);
    }
    // A position is told to be full, it never lets go of anything.
    assert_eq!(subject.machine.window_left(), 5_000);
    let mut owner = subject.taken_over();
    assert_eq!(owner.machine.position(), subject.machine.position());
    let again = owner.leased();
    assert_eq!(again.len(), 5_000);
    assert!(again.iter().all(|seq| seq % 2 == 1));
}

/// Pulsar: consumers of a subscription by key stood still after others joined.
#[test]
fn members_that_come_and_go_leave_no_key_behind() {
    let mut subject = Subject::new(rules());
    let members: Vec<MemberId> = (10..15).map(MemberId).collect();
    let mut seq = 0;
    for round in 0..200 {
        let member = members[round % members.len()];
        subject.machine.join(member);
        for _ in 0..5 {
            seq += 1;
            subject.offer(&[(seq, 1 + seq % 7)]);
        }
        let leases = subject.lease_by(member, 3);
        for lease in &leases[..leases.len() / 2] {
            assert_eq!(subject.ack(lease), Outcome::Ok);
        }
        let leaving = members[(round + 3) % members.len()];
        subject.machine.leave(leaving, subject.now, 0.0);
    }
    // Whoever is left gets all the others.
    for member in members {
        subject.machine.leave(member, subject.now, 0.0);
    }
    while subject.machine.counts().unsettled > 0 {
        let leases = subject.lease(100);
        for lease in &leases {
            assert_eq!(subject.ack(lease), Outcome::Ok);
        }
        if leases.is_empty() {
            let due = subject.machine.next_due().expect("a retry");
            subject.pass(due - subject.now);
        }
    }
    assert_eq!(subject.machine.position().floor, seq);
    assert!(subject.machine.keys.lines().next().is_none());
}

/// Pulsar: a key that waited for its old consumer to drain waited for ever, once the new one that
/// it was withheld from had left, or the old one.
#[test]
fn a_key_that_drains_flows_on_whoever_of_its_members_leaves() {
    let (old, new) = (MemberId(10), MemberId(11));
    for leaving in [old, new] {
        let mut subject = Subject::new(rules());
        subject.machine.join(old);
        subject.offer(&[(1, 7), (2, 7)]);
        let first = subject.lease_by(old, 10);
        assert_eq!(seqs(&first), [1]);
        subject.machine.join(new);
        assert_eq!(seqs(&subject.lease_by(new, 10)), NONE, "it drains");
        subject.machine.leave(leaving, subject.now, 0.0);
        let staying = if leaving == old { new } else { old };
        // What its member held comes first, if that one has left.
        let first = match leaving == old {
            true => subject.lease_by(staying, 10),
            false => first,
        };
        assert_eq!(seqs(&first), [1]);
        assert_eq!(subject.ack(&first[0]), Outcome::Ok);
        assert_eq!(seqs(&subject.lease_by(staying, 10)), [2]);
    }
}

/// Pulsar: the count of unacked events went wrong, and a consumer stayed blocked by it.
#[test]
fn whatever_ends_a_lease_gives_back_its_credit() {
    let mut subject = Subject::with(rules(), &[(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0)]);
    let leases = subject.lease(6);
    subject.ack(&leases[0]);
    subject.nack(&leases[1], RETRY, "no");
    subject.nack(&leases[2], Nack::Release, "");
    subject.nack(&leases[3], Nack::Fail, "no");
    subject.nack(&leases[4], Nack::Skip, "no");
    subject.machine.gone(leases[5].id, subject.now);
    assert_eq!(subject.machine.counts().in_flight, 0);
    // An idle member gets an event of any size.
    let lease = subject.machine.lease(A, subject.now, 1, 0, None);
    assert_eq!(seqs(&lease), [3]);
}

/// KurrentDB: a parked event was parked twice, and replayed as often.
#[test]
fn an_event_fails_once_and_is_redelivered_once() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let lease = subject.lease_one();
    assert_eq!(subject.nack(&lease, Nack::Fail, "no"), Outcome::Ok);
    let second = subject.nack(&lease, Nack::Fail, "no");
    assert_eq!(second, Outcome::AlreadySettled);
    assert_eq!(subject.changes().put.len(), 1);
    assert!(subject.redeliver(1, 1, true));
    assert!(!subject.redeliver(1, 1, true));
    assert_eq!(subject.leased(), [1]);
    assert_eq!(subject.leased(), NONE);
}

/// KurrentDB: a replay of parked events made the stored position wrong.
#[test]
fn a_redelivery_that_is_not_settled_survives_with_the_position() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 2), (3, 3)]);
    for lease in subject.lease(10) {
        subject.nack(&lease, Nack::Fail, "no");
    }
    subject.redeliver(2, 2, true);
    let mut owner = subject.taken_over();
    let position = owner.machine.position();
    assert_eq!((position.floor, position.cursor), (3, 3));
    assert_eq!(owner.leased(), [2]);
}

/// KurrentDB: a persistent subscription stood still in silence, with events waiting.
#[test]
fn what_waits_for_time_names_the_time() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 1)]);
    for _ in 0..4 {
        assert!(subject.machine.deliverable(subject.now));
        subject.lease_one();
        assert!(!subject.machine.deliverable(subject.now));
        // The consumer never answers: first the lease ends, then the retry is due.
        for _ in 0..2 {
            let due = subject.machine.next_due().expect("a time");
            assert!(due > subject.now);
            subject.pass(due - subject.now);
        }
    }
}

/// KurrentDB: a filter that matches nothing stored no position, and began again from far back.
#[test]
fn a_filter_that_matches_nothing_moves_on() {
    let mut subject = Subject::new(rules());
    subject.machine.looked_through(45_000_000);
    assert!(subject.machine.is_dirty());
    let (position, saved) = subject.machine.save();
    assert_eq!((position.floor, position.cursor), (45_000_000, 45_000_000));
    assert_eq!(saved, []);
}

/// Google Pub/Sub: leases began in buffers of the client, ended there, and all was sent again.
#[test]
fn a_lease_begins_when_somebody_takes_the_event() {
    let events: Vec<_> = (1..=1000).map(|seq| (seq, 0)).collect();
    let mut subject = Subject::with(rules(), &events);
    for first in (1..=1000).step_by(100) {
        let leases = subject.lease(100);
        assert_eq!(leases[0].id.seq, first);
        assert!(leases.iter().all(|lease| lease.attempt == 1));
        assert!(
            leases
                .iter()
                .all(|lease| lease.until == subject.now + 30 * SECOND)
        );
        subject.pass(29 * SECOND);
        for lease in &leases {
            assert_eq!(subject.ack(lease), Outcome::Ok);
        }
    }
    assert_eq!(subject.machine.position().floor, 1000);
}

/// PgQue: events behind a failing one of their key used up their attempts while they waited.
#[test]
fn events_behind_a_failing_one_lose_no_attempt() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 1), (3, 1)]);
    subject.exhaust(1);
    let lease = subject.lease_one();
    assert_eq!((lease.id.seq, lease.attempt), (2, 1));
    assert_eq!(subject.machine.state_of(3).unwrap().attempts, 0);
}

/// Iggy: a consumer jumped to the newest event, over all that it had not seen.
#[test]
fn the_floor_waits_for_the_oldest_event_whatever_is_newer() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 2)]);
    let leases = subject.lease(2);
    subject.offer(&[(45_000_000, 3)]);
    let newest = subject.lease_one();
    subject.ack(&newest);
    subject.ack(&leases[1]);
    let mut owner = subject.taken_over();
    assert_eq!(owner.machine.position().floor, 0);
    assert_eq!(owner.leased(), [1]);
}

/// Iggy: a batch of nothing but duplicates ended the process, and broke the offsets.
#[test]
fn events_that_were_offered_before_change_nothing() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 2), (4, 1)]);
    let lease = subject.lease_one();
    subject.ack(&lease);
    let before = subject.taken_over();
    subject.offer(&[(1, 1), (2, 2), (3, 3), (4, 1)]);
    subject.machine.looked_through(2);
    assert_eq!(subject.machine.position(), before.machine.position());
    assert!(!subject.machine.is_dirty());
    assert_eq!(subject.leased(), [2, 4]);
}

/// Iggy: offsets were committed before their messages were processed.
#[test]
fn what_was_leased_and_not_acked_is_leased_again_by_a_new_owner() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 2)]);
    let leases = subject.lease(2);
    let mut before = subject.taken_over();
    subject.ack(&leases[0]);
    // The ack was not stored when the owner was lost.
    assert_eq!(before.leased(), [1, 2]);
    assert_eq!(subject.taken_over().leased(), [2]);
}

/// Inngest: order was not kept even with one consumer at a time.
#[test]
fn total_order_is_kept_by_failures_losses_and_new_owners() {
    let total = Rules {
        ordering: Ordering::Total,
        ..rules()
    };
    let events: Vec<_> = (1..=20).map(|seq| (seq, seq)).collect();
    let mut subject = Subject::with(total, &events);
    let mut settled = Vec::new();
    while settled.len() < 20 {
        let lease = subject.lease_one();
        match lease.attempt {
            1 if lease.id.seq.is_multiple_of(3) => {
                subject.machine.leave(A, subject.now, 0.0);
                subject = subject.taken_over();
                let again = subject.lease_one();
                assert_eq!(again.id.seq, lease.id.seq);
                subject.nack(&again, RETRY, "no");
                assert_eq!(subject.leased(), NONE);
            }
            1 | 2 => {
                subject.nack(&lease, RETRY, "no");
                assert_eq!(subject.leased(), NONE);
            }
            _ => {
                assert_eq!(subject.ack(&lease), Outcome::Ok);
                settled.push(lease.id.seq);
            }
        }
        subject.pass(5 * MINUTE);
    }
    assert!(settled.is_sorted(), "{settled:?}");
}

/// Google Pub/Sub: a key stopped, and nobody could be told which.
#[test]
fn keys_that_stand_still_are_told_by_name() {
    let blocking = Rules {
        on_exhausted: Exhausted::BlockKey,
        ..rules()
    };
    let mut subject = Subject::with(blocking, &[(1, 77), (2, 77), (3, 78)]);
    subject.exhaust_all();
    let blocked = subject.machine.blocked_keys(20);
    let keys: Vec<u64> = blocked.iter().map(|blocked| blocked.key.0).collect();
    assert_eq!(keys, [77, 78]);
}

impl Subject {
    /// Lets all that can be leased fail for good.
    fn exhaust_all(&mut self) {
        for lease in self.lease(usize::MAX) {
            self.nack(&lease, Nack::Fail, "no");
        }
    }
}
