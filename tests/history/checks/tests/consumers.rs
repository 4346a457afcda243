//! Spoiled deliveries: `keys`, `leases` and `fates` find it.

use super::sample::{Sample, at, consumer_named, handled, leased};
use super::{all, expect, found};
use crate::history::records::{Consumption, Fault, Happening, How, Ordering, Outcome, State};
use crate::history::tracks::At;

/// A second consumer that gets something too.
fn with(records: impl IntoIterator<Item = At<Consumption>>) -> Sample {
    let mut sample = Sample::consumed();
    sample
        .consumers
        .push(consumer_named("consumer-1", records.into_iter().collect()));
    sample
}

/// The same lease of another owner.
fn of_owner(epoch: &str, mut records: [At<Consumption>; 3]) -> [At<Consumption>; 3] {
    records.iter_mut().for_each(|record| move_to(epoch, record));
    records
}

fn move_to(epoch: &str, record: &mut At<Consumption>) {
    let name = |lease: &mut String| {
        let mut parts: Vec<&str> = lease.split('-').collect();
        parts[2] = epoch;
        *lease = parts.join("-");
    };
    match &mut record.record {
        Consumption::Leased(leased) => leased.iter_mut().for_each(|one| name(&mut one.lease)),
        Consumption::Settling(all) => all.iter_mut().for_each(|one| name(&mut one.lease)),
        Consumption::Outcomes(all) => all.iter_mut().for_each(|one| name(&mut one.0)),
        _ => {}
    }
}

/// Takes what is told about the first lease of an event out, so that nobody knows.
fn unanswered(sample: &mut Sample, sequence: u64) {
    let name = super::sample::lease(sequence, 1);
    sample
        .consumption()
        .retain(|record| !matches!(&record.record, Consumption::Outcomes(all) if all[0].0 == name));
}

#[test]
fn an_event_before_its_turn_is_found() {
    // 4 is of the key of 2, which is nacked until 3.7.
    let mut sample = Sample::consumed();
    let early = sample.leased(4, 1);
    early.until -= 1_200_000;
    let found = found(&sample.history(), "keys");
    let text = "4 of key \"even\" was leased to consumer-0 at 2.700 s, but 2 before it was settled \
                at 3.750 s at the earliest";
    assert!(found[0].contains(text), "{found:?}");
}

#[test]
fn an_event_after_one_that_nobody_settled_is_found() {
    let mut sample = Sample::consumed();
    *sample.told(1, 1) = Outcome::LeaseExpired;
    expect(
        &sample.history(),
        "keys",
        "3 of key \"odd\" was leased to consumer-0 at 2.800 s, but 1 \
                                       before it was never settled",
    );
}

#[test]
fn a_key_may_go_on_with_an_ack_that_its_owner_took_with_it() {
    // 1 and 3 are acked, and their owner is lost before that is stored: the next one refuses both
    // acks, and leases both again.
    let mut sample = Sample::consumed();
    let moved = at(3.0, ()).at;
    let mut answers = Vec::new();
    for sequence in [1, 3] {
        let outcome = (super::sample::lease(sequence, 1), Outcome::LeaseExpired);
        unanswered(&mut sample, sequence);
        answers.push(at(3.05, Consumption::Outcomes(vec![outcome])));
    }
    let later = |record: &&mut At<Consumption>| record.at > moved;
    let records = sample.consumption();
    let later = records.iter_mut().filter(later);
    later.for_each(|record| move_to("2", record));
    let refused = records.partition_point(|record| record.at < moved);
    records.splice(refused..refused, answers);
    let again = [handled(3.1, 1, 1, How::Ack), handled(3.3, 3, 1, How::Ack)];
    let again = again.into_iter().flat_map(|one| of_owner("2", one));
    let again = consumer_named("consumer-1", again.collect());
    sample.consumers.push(again);
    let found = all(&sample.history());
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_key_does_not_go_on_with_an_ack_that_was_sent_when_its_owner_was_gone() {
    // All but the first lease is of a later owner, which refuses the ack of 1 at the end.
    let mut sample = Sample::consumed();
    unanswered(&mut sample, 1);
    let lease = super::sample::lease(1, 1);
    let records = sample.consumption();
    let is_ack = |record: &At<Consumption>| match &record.record {
        Consumption::Settling(all) => all[0].lease == lease,
        _ => false,
    };
    let ack = records.iter().position(is_ack).unwrap();
    let mut ack = records.remove(ack);
    let later = records
        .iter_mut()
        .filter(|record| record.at > at(2.0, ()).at);
    later.for_each(|record| move_to("2", record));
    ack.at = at(5.0, ()).at;
    let outcome = (lease.clone(), Outcome::LeaseExpired);
    records.extend([ack, at(5.1, Consumption::Outcomes(vec![outcome]))]);
    expect(
        &sample.history(),
        "keys",
        "3 of key \"odd\" was leased to consumer-0 at 2.800 s, but 1 before it was never settled",
    );
}

#[test]
fn without_order_nothing_has_to_wait_and_in_total_order_everything() {
    let mut sample = Sample::consumed();
    sample.leased(4, 1).until -= 1_200_000;
    sample.durable().ordering = Ordering::None;
    assert_eq!(found(&sample.history(), "keys"), [""; 0]);
    let mut sample = Sample::consumed();
    sample.durable().ordering = Ordering::Total;
    expect(
        &sample.history(),
        "keys",
        "3 of key \"\" was leased to consumer-0 at 2.800 s, but 2",
    );
}

#[test]
fn a_key_that_is_blocked_by_a_failure_stays_so() {
    let mut sample = Sample::consumed();
    sample.durable().block_key = true;
    expect(
        &sample.history(),
        "keys",
        "6 of key \"even\" was leased to consumer-0 at 4.300 s, but 4 \
                                       before it was never settled",
    );
}

#[test]
fn what_waits_for_a_blocked_key_at_the_end_was_settled_by_nobody() {
    let mut sample = Sample::consumed();
    sample.durable().block_key = true;
    sample.listed(6, "portal").state = State::KeyBlocked;
    let text = "6 is KeyBlocked at the end, after 1 leases";
    expect(&sample.history(), "fates", text);
    let mut sample = Sample::consumed();
    sample.durable().block_key = true;
    sample.listed(6, "portal").state = State::KeyBlocked;
    unanswered(&mut sample, 6);
    let found = all(&sample.history());
    assert!(found.iter().all(|one| one.check != "fates"), "{found:#?}");
}

#[test]
fn two_leases_of_a_key_at_a_time_are_found() {
    let sample = with([at(4.82, Consumption::Leased(vec![leased(4.82, 7, 2)]))]);
    let text = "7 was leased to consumer-1 at 4.820 s (1-7-1-2), while 7 was leased to consumer-0 \
                from 4.800 s to 4.850 s (1-7-1-1)";
    expect(&sample.history(), "keys", text);
}

#[test]
fn a_lease_of_a_new_owner_is_excused_by_a_lost_process_only() {
    let of_new_owner = of_owner("2", handled(4.82, 7, 2, How::Ack));
    let sample = with(of_new_owner.clone());
    expect(
        &sample.history(),
        "keys",
        "while 7 was leased to consumer-0",
    );
    let mut sample = with(of_new_owner);
    let last = sample.consumption().len() - 1;
    sample.consumption().truncate(last);
    sample.world.records.extend([
        at(4.81, Happening::Began(Fault::Kill(2))),
        at(4.9, Happening::Ended(Fault::Kill(2))),
    ]);
    sample.leased(7, 1).previous_error = "busy".to_owned();
    assert_eq!(found(&sample.history(), "keys"), [""; 0]);
}

#[test]
fn a_lease_of_something_else_than_is_stored_or_routed_is_found() {
    let mut sample = Sample::consumed();
    sample.leased(7, 1).event.digest = 1;
    expect(
        &sample.history(),
        "leases",
        "7 leased to consumer-0 at 4.800 s (1-7-1-1, attempt 1) is",
    );
    let mut sample = Sample::consumed();
    sample.listed(7, "portal").state = State::NotRouted;
    expect(&sample.history(), "leases", "attempt 1) was not routed");
}

#[test]
fn an_attempt_beyond_the_policy_is_found() {
    let mut sample = Sample::consumed();
    sample.leased(7, 1).attempt = 3;
    expect(
        &sample.history(),
        "leases",
        "attempt 3): there are 2 attempts",
    );
}

#[test]
fn a_retry_too_early_or_uncounted_or_with_another_error_is_found() {
    let mut sample = Sample::consumed();
    sample.leased(2, 2).until -= 500_000;
    let early = found(&sample.history(), "leases");
    assert!(
        early[0].contains("was nacked at 2.650 s for 1000000 us, but"),
        "{early:?}"
    );
    let mut sample = Sample::consumed();
    sample.leased(2, 2).attempt = 1;
    let uncounted = found(&sample.history(), "leases");
    assert!(
        uncounted[0].contains("was nacked, and did not count"),
        "{uncounted:?}"
    );
    let mut sample = Sample::consumed();
    sample.leased(2, 2).previous_error.clear();
    let other = found(&sample.history(), "leases");
    assert!(other[0].contains("tells the error \"\""), "{other:?}");
}

#[test]
fn an_ack_that_worked_though_it_was_late_or_of_another_is_found() {
    let mut sample = Sample::consumed();
    sample.leased(7, 1).length = 40_000;
    sample.leased(7, 1).until = at(4.84, ()).at;
    expect(
        &sample.history(),
        "leases",
        "Ack at 4.850 s was OK, but the lease ended at 4.840 s",
    );
    let sample = with([at(4.82, Consumption::Leased(vec![leased(4.82, 7, 2)]))]);
    expect(
        &sample.history(),
        "leases",
        "Ack at 4.850 s was OK, but consumer-1 had it since 4.820 s",
    );
}

#[test]
fn an_ack_in_time_that_was_refused_is_found() {
    let mut sample = Sample::consumed();
    *sample.told(5, 1) = Outcome::LeaseExpired;
    expect(
        &sample.history(),
        "leases",
        "Ack at 4.150 s was answered LeaseExpired at 4.200 s, but",
    );
}

#[test]
fn an_event_that_is_left_is_found() {
    for state in [
        State::Queued,
        State::InFlight,
        State::RetryWait,
        State::KeyBlocked,
    ] {
        let mut sample = Sample::consumed();
        sample.listed(7, "portal").state = state;
        unanswered(&mut sample, 7);
        let found = found(&sample.history(), "fates");
        assert!(
            found[0].contains(&format!("7 is {state:?} at the end, after 1 leases")),
            "{found:?}"
        );
    }
}

#[test]
fn a_state_that_nobody_brought_about_is_found() {
    for state in [
        State::Delivered,
        State::Skipped,
        State::Failed,
        State::Expired,
    ] {
        let mut sample = Sample::consumed();
        sample.listed(7, "portal").state = state;
        sample.consumption().truncate(2 + 7 * 3 + 1);
        let found = found(&sample.history(), "fates");
        let text = format!("7 is {state:?} after 1 attempts, and nobody did that: 1 leases");
        assert!(found[0].contains(&text), "{found:?}");
    }
}

#[test]
fn a_confirmed_outcome_that_the_log_does_not_have_is_found() {
    for (sequence, state) in [
        (7, State::Skipped),
        (6, State::Delivered),
        (4, State::Delivered),
    ] {
        let mut sample = Sample::consumed();
        sample.listed(sequence, "portal").state = state;
        let found = found(&sample.history(), "fates");
        let told = found.iter().any(|text| text.contains("was confirmed at"));
        assert!(told, "{sequence}: {found:?}");
    }
}

#[test]
fn an_unconfirmed_ack_may_go_either_way_but_not_be_lost() {
    let mut sample = Sample::consumed();
    unanswered(&mut sample, 7);
    assert_eq!(found(&sample.history(), "fates"), [""; 0]);
}

#[test]
fn a_failure_with_other_attempts_or_another_error_is_found() {
    let mut sample = Sample::consumed();
    sample.listed(4, "portal").attempts = 2;
    let attempts = found(&sample.history(), "fates");
    assert!(
        attempts[0].contains("4 is Failed after 2 attempts with \"broken\""),
        "{attempts:?}"
    );
    let mut sample = Sample::consumed();
    sample.listed(4, "portal").last_error.clear();
    let error = found(&sample.history(), "fates");
    assert!(
        error[0].contains("4 is Failed after 1 attempts with \"\""),
        "{error:?}"
    );
}

#[test]
fn an_event_that_is_leased_again_after_its_end_is_found() {
    let sample = with(handled(6.0, 7, 1, How::Ack));
    expect(
        &sample.history(),
        "fates",
        "7 is Delivered and was leased again to consumer-1 at 6.000 s",
    );
}

#[test]
fn what_get_event_tells_otherwise_than_list_events_is_found() {
    use crate::history::records::Line;
    let mut sample = Sample::consumed();
    let mut other = sample.listed(7, "portal").clone();
    other.state = State::Failed;
    sample.dump.records.push(at(9.9, Line::Got(other)));
    expect(&sample.history(), "fates", "GetEvent tells");
}

#[test]
fn a_gap_that_a_consumer_is_told_of_where_nothing_was_removed_is_found() {
    let (from, to, reason) = (1, 3, "Retention".to_owned());
    let sample = with([at(5.0, Consumption::Gap { from, to, reason })]);
    let found = found(&sample.history(), "leases");
    let text = "consumer-1: at 5.000 s a gap from 1 to 3, but the log begins at 1";
    assert_eq!(found, [text]);
}
