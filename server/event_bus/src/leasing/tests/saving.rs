//! What is stored, and what a new owner makes of it.

use super::*;

/// One event of each kind.
fn mixed() -> Subject {
    let events = [(1, 1), (2, 1), (3, 3), (4, 4), (5, 0), (900, 6)];
    let mut subject = Subject::with(rules(), &events);
    let leases = subject.lease(4);
    assert_eq!(seqs(&leases), [1, 3, 4, 5]);
    subject.nack(&leases[0], RETRY, "no");
    subject.ack(&leases[1]);
    subject.redeliver(3, 3, false);
    subject.machine.looked_through(1000);
    subject
}

#[test]
fn a_new_owner_goes_on_where_the_old_one_was_saved() {
    let mut subject = mixed();
    let mut owner = subject.taken_over();
    assert_eq!(owner.machine.position(), subject.machine.position());
    assert_eq!(owner.machine.window_left(), subject.machine.window_left());
    let due = START + MINUTE;
    assert_eq!(owner.phase(1), Some(Phase::RetryWait { due }));
    assert_eq!(owner.phase(2), Some(Phase::KeyBlocked { behind: 1 }));
    // What was leased is queued, at no cost.
    assert_eq!(owner.phase(4), Some(Phase::Queued));
    let leases = owner.lease(10);
    assert_eq!(seqs(&leases), [3, 4, 5, 900]);
    assert!(leases.iter().all(|lease| lease.attempt == 1));
    assert!(leases.iter().all(|lease| lease.id.epoch == 2));
    assert!(leases[0].redelivery);
    owner.ack(&leases[0]);
    assert_eq!(owner.changes().put[0].state, Settled::Delivered);
    owner.pass(MINUTE);
    let lease = owner.lease_one();
    assert_eq!((lease.id.seq, lease.attempt), (1, 2));
    assert_eq!(lease.previous_error.as_deref(), Some("no"));
}

#[test]
fn leases_of_the_old_owner_come_too_late() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let lease = subject.lease_one();
    let mut owner = subject.taken_over();
    assert_eq!(owner.ack(&lease), Outcome::LeaseExpired);
    let new = owner.lease_one();
    assert_eq!(new.id.number, lease.id.number);
    assert_eq!(owner.ack(&lease), Outcome::LeaseExpired);
    assert_eq!(owner.ack(&new), Outcome::Ok);
}

#[test]
fn leased_events_are_marked_for_readers() {
    let mut subject = mixed();
    let (_, saved) = subject.machine.save();
    let in_flight = saved.iter().filter(|saved| saved.in_flight);
    let in_flight: Vec<u64> = in_flight.map(|saved| saved.seq).collect();
    assert_eq!(in_flight, [4, 5]);
    let retry = &saved[0];
    assert_eq!((retry.due, retry.attempts), (START + MINUTE, 1));
}

#[test]
fn a_retry_that_was_at_work_is_queued_again() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let lease = subject.lease_one();
    subject.nack(&lease, RETRY, "no");
    subject.pass(MINUTE);
    subject.lease_one();
    let mut owner = subject.taken_over();
    assert_eq!(owner.phase(1), Some(Phase::Queued));
    assert_eq!(owner.machine.state_of(1).unwrap().attempts, 1);
    assert_eq!(owner.lease_one().attempt, 2);
}

#[test]
fn it_is_dirty_when_something_is_to_be_stored() {
    let mut subject = Subject::new(rules());
    assert!(!subject.machine.is_dirty());
    let changed = |what: &str, subject: &mut Subject| {
        assert!(subject.machine.is_dirty(), "{what}");
        subject.machine.save();
        subject.changes();
        assert!(!subject.machine.is_dirty(), "{what}");
    };
    subject.offer(&[(1, 1), (2, 2)]);
    changed("offered", &mut subject);
    subject.machine.looked_through(7);
    changed("looked at", &mut subject);
    let leases = subject.lease(10);
    changed("leased", &mut subject);
    subject.ack(&leases[0]);
    changed("acked", &mut subject);
    subject.nack(&leases[1], RETRY, "no");
    changed("to be retried", &mut subject);
    subject.redeliver(1, 1, true);
    changed("redelivered", &mut subject);
    subject.machine.expire_through(9, subject.now);
    changed("expired", &mut subject);
    subject.machine.looked_through(7);
    subject.machine.offer(3, None, 100);
    subject.pass(MINUTE);
    assert_eq!(subject.leased(), NONE);
    assert!(!subject.machine.is_dirty());
}

#[test]
fn of_an_event_only_the_last_change_is_stored() {
    let blocking = Rules {
        on_exhausted: Exhausted::BlockKey,
        ..rules()
    };
    let mut subject = Subject::with(blocking, &[(1, 1), (2, 2), (3, 3)]);
    for lease in subject.lease(10) {
        subject.nack(&lease, Nack::Fail, "no");
    }
    subject.redeliver(1, 1, true);
    subject.machine.expire_through(2, subject.now);
    let changes = subject.changes();
    assert_eq!(changes.removed, [] as [u64; 0]);
    assert_eq!(changes.freed, [] as [u64; 0]);
    let put = changes.put.iter();
    let put: Vec<_> = put.map(|put| (put.seq, put.state, put.held_key)).collect();
    let all = [
        (1, Settled::Expired, None),
        (2, Settled::Failed, None),
        (3, Settled::Failed, Some(Key(3))),
    ];
    assert_eq!(put, all);
}

#[test]
fn a_plain_event_takes_few_bytes() {
    let mut subject = Subject::new(rules());
    for seq in 1..=10_000 {
        subject
            .machine
            .offer(seq * 3, Some(Key(u64::MAX - seq)), 2000);
    }
    let (_, saved) = subject.machine.save();
    let packed = pack(&saved);
    assert!(packed.len() <= 10_000 * 12 + 16, "{}", packed.len());
    assert_eq!(unpack(&packed), Ok(saved));
}

#[test]
fn many_long_errors_do_not_make_the_stored_events_large() {
    let events: Vec<_> = (1..=1000).map(|seq| (seq, seq)).collect();
    let mut subject = Subject::with(rules(), &events);
    for lease in subject.lease(1000) {
        let error = format!("{} {}", lease.id.seq % 500, "x".repeat(1000));
        subject.nack(&lease, RETRY, &error);
    }
    let (_, mut saved) = subject.machine.save();
    let packed = pack(&saved);
    assert!(packed.len() < 100_000, "{}", packed.len());
    let unpacked = unpack(&packed).unwrap();
    // The first ones are kept, and those that are alike.
    assert_eq!(unpacked[0].error, saved[0].error);
    assert_eq!(unpacked[500].error, saved[500].error);
    assert_eq!(&*unpacked[499].error, "");
    for (saved, unpacked) in saved.iter_mut().zip(&unpacked) {
        saved.error = unpacked.error.clone();
    }
    assert_eq!(saved, unpacked);
}

#[test]
fn the_largest_numbers_are_packed_too() {
    let saved = Saved {
        seq: u64::MAX,
        key: Some(Key(u64::MAX)),
        bytes: u32::MAX,
        attempts: u32::MAX,
        losses: u8::MAX,
        due: Micros::MAX,
        in_flight: true,
        redelivery: true,
        derived_delivered: true,
        error: Arc::from("é"),
    };
    let saved = vec![saved];
    assert_eq!(unpack(&pack(&saved)), Ok(saved));
    assert_eq!(
        pack(&[]),
        [0; 0],
        "who has something to do is found by its length"
    );
    assert_eq!(unpack(&[]), Ok(Vec::new()));
}

#[test]
fn damaged_bytes_are_told() {
    let (_, saved) = mixed().machine.save();
    let packed = pack(&saved);
    for length in 1..packed.len() {
        assert!(unpack(&packed[..length]).is_err(), "{length}");
    }
    let with = |at: usize, byte: u8| {
        let mut damaged = packed.clone();
        damaged[at] = byte;
        unpack(&damaged).map_err(|error| error.to_string())
    };
    assert!(with(0, 2).unwrap_err().ends_with("unknown version"));
    assert!(with(3, 0xff).unwrap_err().ends_with("not UTF-8"));
    let mut longer = packed.clone();
    longer.push(0);
    assert!(unpack(&longer).is_err());
    // A count of more than there can be asks for no memory.
    let huge = [1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    assert!(unpack(&huge).is_err());
    // An event twice.
    let twice = [saved[0].clone(), saved[0].clone()];
    assert!(unpack(&pack(&twice)).is_err());
    // Whatever a byte becomes, it is an answer.
    for at in 0..packed.len() {
        for byte in 0..=u8::MAX {
            let _ = with(at, byte);
        }
    }
}
