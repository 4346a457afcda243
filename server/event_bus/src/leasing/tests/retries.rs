//! When a failed event is tried again, and when it is given up.

use super::*;

/// The waits until each further attempt, and the error that the last one left.
fn waits(jitter: f64) -> (Vec<Micros>, Changes) {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let mut waits = Vec::new();
    loop {
        let lease = subject.lease_one();
        assert_eq!(lease.attempt as usize, waits.len() + 1);
        let error = format!("error {}", lease.attempt);
        let id = lease.id;
        subject.machine.nack(id, RETRY, &error, subject.now, jitter);
        let Some(due) = subject.machine.next_due() else {
            return (waits, subject.changes());
        };
        waits.push(due - subject.now);
        subject.pass(due - subject.now - 1);
        assert_eq!(subject.leased(), NONE);
        assert!(!subject.machine.deliverable(subject.now));
        subject.pass(1);
    }
}

#[test]
fn retries_come_after_1_5_30_and_120_minutes_and_then_the_event_fails() {
    let (waits, changes) = waits(0.0);
    assert_eq!(waits, [MINUTE, 5 * MINUTE, 30 * MINUTE, 120 * MINUTE]);
    let failed = &changes.put[0];
    assert_eq!((failed.seq, failed.state), (1, Settled::Failed));
    assert_eq!((failed.attempts, &*failed.error), (5, "error 5"));
    assert_eq!(failed.held_key, None);
    assert_eq!(failed.at, START + 156 * MINUTE);
    assert!(!changes.paused);
}

#[test]
fn jitter_lengthens_a_delay_by_up_to_a_tenth() {
    assert_eq!(waits(1.0).0, [66, 330, 1980, 7920].map(|s| s * SECOND));
    assert_eq!(waits(0.5).0[0], 63 * SECOND);
    // Whatever the source gives.
    assert_eq!(waits(7.0).0[0], 66 * SECOND);
    assert_eq!(waits(-1.0).0[0], MINUTE);
    assert_eq!(waits(f64::NAN).0[0], MINUTE);
}

#[test]
fn retry_after_wins_over_the_delay_and_has_no_jitter() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    for (after, jitter) in [(3 * SECOND, 1.0), (24 * 60 * MINUTE, 1.0), (0, 0.5)] {
        let lease = subject.lease_one();
        let how = Nack::Retry { after: Some(after) };
        let id = lease.id;
        subject.machine.nack(id, how, "later", subject.now, jitter);
        let due = subject.now + after;
        assert_eq!(subject.phase(1), Some(Phase::RetryWait { due }));
        assert_eq!(subject.machine.next_due(), Some(due));
        subject.pass(after);
    }
    // But it is no further attempt.
    assert_eq!(subject.lease_one().attempt, 4);
}

#[test]
fn an_attempt_tells_the_error_of_the_one_before() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let lease = subject.lease_one();
    assert_eq!(lease.previous_error, None);
    subject.nack(&lease, RETRY, "the database is down");
    let state = subject.machine.state_of(1).unwrap();
    assert_eq!(state.error.as_deref(), Some("the database is down"));
    assert_eq!(state.attempts, 1);
    subject.pass(MINUTE);
    let lease = subject.lease_one();
    assert_eq!(
        lease.previous_error.as_deref(),
        Some("the database is down")
    );
    subject.nack(&lease, RETRY, "");
    subject.pass(5 * MINUTE);
    assert_eq!(subject.lease_one().previous_error, None);
}

#[test]
fn a_long_error_is_cut_between_characters() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let lease = subject.lease_one();
    subject.nack(&lease, RETRY, &"é".repeat(600).replacen('é', "e", 1));
    let error = subject.machine.state_of(1).unwrap().error.unwrap();
    assert_eq!(error.len(), ERROR_BYTES_MAX - 1);
}

#[test]
fn an_expired_lease_is_a_failed_attempt() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    subject.lease_one();
    assert_eq!(subject.machine.next_due(), Some(START + 30 * SECOND));
    subject.pass(30 * SECOND - 1);
    assert_eq!(subject.machine.counts().in_flight, 1);
    subject.pass(1);
    let due = subject.now + MINUTE;
    let state = subject.machine.state_of(1).unwrap();
    assert_eq!(state.phase, Phase::RetryWait { due });
    assert_eq!(state.error.as_deref(), Some("the lease expired"));
    assert_eq!(state.attempts, 1);
    let counts = subject.machine.counts();
    assert_eq!((counts.in_flight, counts.retrying), (0, 1));
}

#[test]
fn without_delays_the_first_failure_is_the_last() {
    let no_retries = Rules {
        delays: Vec::new(),
        ..rules()
    };
    let mut subject = Subject::with(no_retries, &[(1, 1), (2, 1)]);
    let lease = subject.lease_one();
    let how = Nack::Retry {
        after: Some(SECOND),
    };
    subject.nack(&lease, how, "no");
    assert_eq!(subject.changes().put[0].state, Settled::Failed);
    assert_eq!(subject.leased(), [2]);
}

#[test]
fn fail_gives_up_the_attempts_that_are_left() {
    let mut subject = Subject::with(rules(), &[(1, 1), (2, 1)]);
    let lease = subject.lease_one();
    assert_eq!(subject.nack(&lease, Nack::Fail, "broken"), Outcome::Ok);
    let changes = subject.changes();
    let failed = &changes.put[0];
    assert_eq!((failed.state, failed.attempts), (Settled::Failed, 1));
    assert_eq!(&*failed.error, "broken");
    assert_eq!(subject.machine.position().floor, 1);
    assert_eq!(subject.leased(), [2]);
}

#[test]
fn skip_says_why_and_is_no_failure() {
    let pausing = Rules {
        on_exhausted: Exhausted::Pause,
        ..rules()
    };
    let mut subject = Subject::with(pausing, &[(1, 1)]);
    let lease = subject.lease_one();
    subject.nack(&lease, Nack::Skip, "a test event");
    let changes = subject.changes();
    let skipped = &changes.put[0];
    assert_eq!((skipped.state, skipped.attempts), (Settled::Skipped, 1));
    assert_eq!(&*skipped.error, "a test event");
    assert!(!changes.paused);
}

#[test]
fn an_exhausted_event_can_pause_the_subscription() {
    let pausing = Rules {
        on_exhausted: Exhausted::Pause,
        ..rules()
    };
    let mut subject = Subject::with(pausing, &[(1, 1), (2, 1), (3, 2)]);
    let leases = subject.lease(10);
    subject.nack(&leases[0], Nack::Fail, "no");
    assert!(subject.machine.is_paused());
    assert_eq!(subject.leased(), NONE);
    assert!(!subject.machine.deliverable(subject.now));
    // What is leased may be settled.
    assert_eq!(subject.ack(&leases[1]), Outcome::Ok);
    let changes = subject.changes();
    assert!(changes.paused);
    assert_eq!(changes.put[0].state, Settled::Failed);
    assert!(!subject.changes().paused);
    subject.machine.set_paused(false);
    assert_eq!(subject.leased(), [2]);
}

#[test]
fn a_pause_that_nobody_knows_of_yet_is_not_taken_back() {
    let pausing = Rules {
        on_exhausted: Exhausted::Pause,
        ..rules()
    };
    let mut subject = Subject::with(pausing, &[(1, 1)]);
    let lease = subject.lease_one();
    subject.nack(&lease, Nack::Fail, "no");
    // As the row of the subscription still says.
    subject.machine.set_paused(false);
    assert!(subject.machine.is_paused());
    assert!(subject.changes().paused);
    assert!(subject.machine.is_paused());
    subject.machine.set_paused(false);
    assert!(!subject.machine.is_paused());
}

#[test]
fn new_delays_count_for_later_failures() {
    let mut subject = Subject::with(rules(), &[(1, 1)]);
    let lease = subject.lease_one();
    subject.nack(&lease, RETRY, "no");
    subject.machine.set_rules(Rules {
        delays: vec![SECOND],
        ordering: Ordering::None,
        ..rules()
    });
    // The first wait was decided already.
    subject.pass(SECOND);
    assert_eq!(subject.leased(), NONE);
    subject.pass(MINUTE);
    let lease = subject.lease_one();
    subject.nack(&lease, RETRY, "no");
    assert_eq!(subject.changes().put[0].attempts, 2);
    // The ordering is fixed.
    subject.offer(&[(2, 1), (3, 1)]);
    assert_eq!(subject.leased(), [2]);
}
