//! Spoiled redelivery: `redelivered` and `fates` find it.

use super::sample::{Sample, handled};
use super::{all, expect, found};
use crate::history::records::{Consumption, How, Redelivery, State};

#[test]
fn a_promise_that_nobody_got_is_found() {
    let mut sample = Sample::redelivered();
    let kept = sample.consumption().len() - 3;
    sample.consumption().truncate(kept);
    let text = "redeliverer-0: job 1 said at 6.500 s that it queued 1, but of its events nobody \
                got [2]";
    assert_eq!(found(&sample.history(), "redelivered"), [text]);
}

#[test]
fn what_a_job_did_not_queue_is_no_promise() {
    let mut sample = Sample::redelivered();
    let kept = sample.consumption().len() - 3;
    sample.consumption().truncate(kept);
    if let Redelivery::Ended { queued, .. } = &mut sample.redeliverers[0].records[2].record {
        *queued = 0;
    }
    let found = all(&sample.history());
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn what_nobody_asked_for_is_found() {
    let mut sample = Sample::redelivered();
    sample.redeliverers.clear();
    expect(
        &sample.history(),
        "redelivered",
        "2 was leased again to consumer-0 at 6.300 s, and nobody had asked",
    );
}

#[test]
fn a_job_that_does_not_end_is_found() {
    let mut sample = Sample::redelivered();
    sample.redeliverers[0].records.pop();
    let found = found(&sample.history(), "redelivered");
    assert_eq!(found, ["redeliverer-0: job 1 did not end"]);
}

#[test]
fn a_job_that_fails_is_found() {
    let mut sample = Sample::redelivered();
    if let Redelivery::Ended { state, .. } = &mut sample.redeliverers[0].records[2].record {
        "JOB_STATE_FAILED".clone_into(state);
    }
    let found = found(&sample.history(), "redelivered");
    assert_eq!(found, ["redeliverer-0: job 1 ended as JOB_STATE_FAILED"]);
}

#[test]
fn a_redelivery_ends_as_its_consumer_says() {
    let mut sample = Sample::redelivered();
    // Settled after the job has ended, so that nothing may change it any more.
    let kept = sample.consumption().len() - 3;
    sample.consumption().truncate(kept);
    let mut again = handled(6.6, 2, 3, How::Skip);
    if let Consumption::Leased(leased) = &mut again[0].record {
        (leased[0].attempt, leased[0].redelivery) = (1, true);
        leased[0].previous_error = String::new();
    }
    sample.consumption().extend(again);
    assert_eq!(sample.listed(2, "portal").state, State::Delivered);
    expect(
        &sample.history(),
        "fates",
        "2 is Delivered, but Skip by consumer-0",
    );
}
