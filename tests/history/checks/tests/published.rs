//! Spoiled logs: `published`, `batches`, `order` and `routes` find it.

use super::sample::{Sample, at, delivery, event, seen, stored};
use super::{expect, found};
use crate::history::records::{Happening, Line, Publication, Reading, State};

/// Changes what was acknowledged of a batch.
fn acked(sample: &mut Sample, wanted: u64, change: impl Fn(&mut crate::history::records::Stored)) {
    for record in &mut sample.publisher.records {
        if let Publication::Acked { batch, results } = &mut record.record
            && *batch == wanted
        {
            results.iter_mut().for_each(&change);
        }
    }
}

#[test]
fn an_acknowledged_event_that_is_lost_is_found() {
    let mut sample = Sample::new();
    sample.lose(7);
    sample.subscriber.records.truncate(10);
    let found = found(&sample.history(), "published");
    assert!(found[0].contains("e7 of publisher-0 batch 3"), "{found:?}");
    assert!(found[0].contains("but it is nowhere"), "{found:?}");
}

#[test]
fn an_event_at_another_place_than_acknowledged_is_found() {
    let mut sample = Sample::new();
    acked(&mut sample, 3, |one| one.sequence = 70);
    expect(&sample.history(), "published", "at 70, but it is at 7");
}

#[test]
fn a_hole_in_the_log_is_found() {
    let mut sample = Sample::new();
    sample.lose(3);
    expect(&sample.history(), "published", "4 follows 2");
}

#[test]
fn an_event_that_is_there_twice_is_found() {
    let mut sample = Sample::new();
    let again = seen(7).id;
    sample.logged(1).id = again;
    expect(&sample.history(), "published", "e7 is in the log twice");
}

#[test]
fn changed_data_and_changed_keys_are_found() {
    let mut sample = Sample::new();
    sample.logged(5).digest = 1;
    expect(
        &sample.history(),
        "published",
        "e5 at 5 is not as it was sent",
    );
    let mut sample = Sample::new();
    sample.logged(5).key.clear();
    expect(
        &sample.history(),
        "published",
        "e5 at 5 is not as it was sent",
    );
    let mut sample = Sample::new();
    sample.logged(5).product = "rmm".to_owned();
    expect(&sample.history(), "published", "is said to be of rmm");
}

#[test]
fn an_event_of_nobody_is_found() {
    let mut sample = Sample::new();
    sample.logged(7).id = "foreign".to_owned();
    expect(
        &sample.history(),
        "published",
        "foreign at 7 was sent by nobody",
    );
}

#[test]
fn record_times_that_decrease_are_found() {
    let mut sample = Sample::new();
    for line in &mut sample.dump.records {
        if let Line::Event { seen, record_time } = &mut line.record
            && seen.sequence == 7
        {
            *record_time = 0;
        }
    }
    let found = found(&sample.history(), "published");
    assert!(found[0].contains("record times decrease: e7"), "{found:?}");
}

#[test]
fn a_false_duplicate_and_a_missed_one_are_found() {
    let mut sample = Sample::new();
    acked(&mut sample, 0, |one| one.duplicate = true);
    let false_one = found(&sample.history(), "published");
    assert!(
        false_one[0].contains("as a duplicate, but it was sent once"),
        "{false_one:?}"
    );
    let mut sample = Sample::new();
    sample.publisher.records.extend([
        at(
            5.0,
            Publication::Sent {
                batch: 9,
                attempt: 1,
                atomic: true,
                process: 0,
                events: vec![event(1)],
            },
        ),
        at(
            5.1,
            Publication::Acked {
                batch: 9,
                results: vec![stored(1)],
            },
        ),
    ]);
    let missed = found(&sample.history(), "published");
    assert!(
        missed[0].contains("as new, but it was acknowledged"),
        "{missed:?}"
    );
}

#[test]
fn a_refused_batch_that_was_stored_is_found() {
    let mut sample = Sample::new();
    let last = sample.publisher.records.last_mut().unwrap();
    last.record = Publication::Refused {
        batch: 3,
        reason: "STORE_BUSY".to_owned(),
    };
    let found = found(&sample.history(), "published");
    assert!(
        found[0].contains("with \"STORE_BUSY\", without a reason"),
        "{found:?}"
    );
    assert!(
        found[1].contains("was refused at 4.500 s with STORE_BUSY"),
        "{found:?}"
    );
}

#[test]
fn an_id_that_was_used_again_with_other_data_must_be_refused() {
    let mut sample = Sample::new();
    let mut again = event(1);
    (again.digest, again.altered) = (5, true);
    sample.publisher.records.extend([
        at(
            5.0,
            Publication::Sent {
                batch: 9,
                attempt: 1,
                atomic: true,
                process: 0,
                events: vec![again],
            },
        ),
        at(
            5.1,
            Publication::Acked {
                batch: 9,
                results: vec![stored(1)],
            },
        ),
    ]);
    let found = found(&sample.history(), "published");
    assert!(
        found[0].contains("its id had been used with other data"),
        "{found:?}"
    );
}

#[test]
fn destinations_that_the_log_does_not_have_are_found() {
    let mut sample = Sample::new();
    acked(&mut sample, 0, |one| one.destinations = 3);
    let found = found(&sample.history(), "published");
    assert!(
        found[0].contains("with 3 destinations, the log has 2"),
        "{found:?}"
    );
}

#[test]
fn a_torn_batch_is_found() {
    let mut sample = Sample::new();
    // Nothing was acknowledged of it, so that it may be there or not, but whole.
    sample
        .publisher
        .records
        .retain(|record| !matches!(record.record, Publication::Acked { batch: 3 | 2, .. }));
    sample.lose(6);
    sample.lose(7);
    sample.subscriber.records.truncate(9);
    let read = Reading::Events(vec![seen(4), seen(5)]);
    sample.subscriber.records.push(at(3.5, read));
    let found = found(&sample.history(), "batches");
    assert!(
        found[0].contains("is stored in part: [4, 5], but not e6"),
        "{found:?}"
    );
}

#[test]
fn a_batch_with_something_in_between_or_in_another_order_is_found() {
    let mut sample = Sample::new();
    let (three, four) = (seen(3).id, seen(4).id);
    sample.logged(3).id = four;
    sample.logged(4).id = three;
    expect(
        &sample.history(),
        "batches",
        "batch 1, sent at 2.000 s, is not contiguous: [2, 4]",
    );
    let mut sample = Sample::new();
    let (four, five) = (seen(4).id, seen(5).id);
    sample.logged(4).id = five;
    sample.logged(5).id = four;
    expect(&sample.history(), "batches", "is not contiguous: [5, 4, 6]");
}

#[test]
fn an_event_before_one_that_was_acknowledged_earlier_is_found() {
    let mut sample = Sample::new();
    let (six, seven) = (seen(6).id, seen(7).id);
    sample.logged(6).id = seven;
    sample.logged(7).id = six;
    let history = sample.history();
    expect(
        &history,
        "order",
        "e6 was acknowledged at 3.500 s, before e7 was sent at 4.000 s",
    );
    expect(
        &history,
        "order",
        "publisher-0 sent e6 before e7, but they are at 7 and 6",
    );
}

#[test]
fn rows_that_are_missing_or_too_many_are_found() {
    let mut sample = Sample::new();
    sample.dump.records.retain(|line| {
        !matches!(&line.record, Line::Listed(row) if row.sequence == 5 && row.product == "portal")
    });
    expect(
        &sample.history(),
        "routes",
        "e5 at 5 has 0 rows for portal, not 1",
    );
    let mut sample = Sample::new();
    let again = delivery(5, super::sample::PORTAL, "portal");
    sample.dump.records.push(at(9.9, Line::Listed(again)));
    expect(
        &sample.history(),
        "routes",
        "e5 at 5 has 2 rows for portal, not 1",
    );
    let mut sample = Sample::new();
    sample
        .dump
        .records
        .push(at(9.9, Line::Listed(delivery(5, "sub_crm", "crm"))));
    expect(
        &sample.history(),
        "routes",
        "e5 at 5 has 1 rows for other products, not 0",
    );
}

#[test]
fn a_route_that_was_off_or_on_is_found() {
    let switch = |enabled| {
        let (source, destination) = ("psa".to_owned(), "portal".to_owned());
        (source, destination, enabled)
    };
    let switching = |(source, destination, enabled)| Happening::Switching {
        tenant: 0,
        source,
        destination,
        enabled,
    };
    let switched = |(source, destination, enabled)| Happening::Switched {
        tenant: 0,
        source,
        destination,
        enabled,
    };
    let mut sample = Sample::new();
    sample.listed(1, "portal").state = State::NotRouted;
    expect(
        &sample.history(),
        "routes",
        "is NotRouted, but the integration was on",
    );
    // Off from second 2.7 to second 3.7: the third batch does not flow.
    let mut sample = Sample::new();
    sample.world.records.extend([
        at(2.6, switching(switch(false))),
        at(2.7, switched(switch(false))),
        at(3.7, switching(switch(true))),
        at(3.8, switched(switch(true))),
    ]);
    expect(
        &sample.history(),
        "routes",
        "is Delivered, but the integration was off",
    );
}

#[test]
fn a_row_of_the_hub_itself_that_is_not_settled_is_found() {
    let mut sample = Sample::new();
    sample.listed(2, "hub").state = State::Queued;
    expect(&sample.history(), "routes", "e2 at 2 for hub is Queued");
}
