//! Spoiled streams.

use super::found;
use super::sample::{Sample, at, seen};
use crate::history::records::{Reading, Start, State};
use crate::history::tracks::At;

/// What is found when the frames of the subscriber are changed.
fn spoiled(change: impl FnOnce(&mut Vec<At<Reading>>)) -> String {
    let mut sample = Sample::new();
    change(sample.frames());
    let found = found(&sample.history(), "subscriptions");
    found.into_iter().next().expect("something is found")
}

#[test]
fn an_omission_is_found_at_the_next_event_and_at_progress() {
    let text = spoiled(|frames| frames[5].record = Reading::Events(vec![seen(3)]));
    assert!(
        text.contains("at 2.500 s 1 events are missing from 2 on, up to 2"),
        "{text}"
    );
    let text = spoiled(|frames| {
        frames.remove(10);
    });
    assert!(
        text.contains("1 events are missing from 7 on, up to 7"),
        "{text}"
    );
}

#[test]
fn a_repetition_and_a_step_back_are_found() {
    let text = spoiled(|frames| frames.insert(6, at(2.55, Reading::Events(vec![seen(2)]))));
    assert!(
        text.contains("2 came, but everything up to 3 had come"),
        "{text}"
    );
    let text = spoiled(|frames| frames.insert(6, at(2.55, Reading::Progress(1))));
    assert!(text.contains("progress falls back from 3 to 1"), "{text}");
}

#[test]
fn a_resumed_stream_that_omits_or_repeats_is_found() {
    let text = spoiled(|frames| {
        frames[9].record = Reading::Events(vec![seen(5), seen(6)]);
    });
    assert!(
        text.contains("opened at 2.700 s: at 3.500 s 1 events are missing from 4"),
        "{text}"
    );
    let text = spoiled(|frames| {
        frames[9].record = Reading::Events(vec![seen(3), seen(4), seen(5), seen(6)]);
    });
    assert!(
        text.contains("3 came, but everything up to 3 had come"),
        "{text}"
    );
}

#[test]
fn an_event_that_was_not_asked_for_is_found() {
    let mut sample = Sample::new();
    sample.subscriber.header.about.wanted.key_prefix = "odd".to_owned();
    let found = found(&sample.history(), "subscriptions");
    assert!(
        found[0].contains("2 came, which it did not ask for"),
        "{found:?}"
    );
}

#[test]
fn an_event_whose_route_was_off_is_found() {
    use crate::history::records::Happening::{Switched, Switching};
    let mut sample = Sample::new();
    sample.listed(7, "portal").state = State::NotRouted;
    let (source, destination) = ("psa".to_owned(), "portal".to_owned());
    let (tenant, enabled) = (0, false);
    let switching = Switching {
        tenant,
        source: source.clone(),
        destination: destination.clone(),
        enabled,
    };
    let switched = Switched {
        tenant,
        source,
        destination,
        enabled,
    };
    sample
        .world
        .records
        .extend([at(3.6, switching), at(3.7, switched)]);
    for record in &mut sample.publisher.records {
        if let crate::history::records::Publication::Acked { batch: 3, results } =
            &mut record.record
        {
            results[0].destinations = 1;
        }
    }
    let found = found(&sample.history(), "subscriptions");
    assert!(
        found[0].contains("7 came, which it did not ask for"),
        "{found:?}"
    );
}

#[test]
fn an_event_that_came_otherwise_than_it_is_stored_is_found() {
    let text = spoiled(|frames| {
        let mut other = seen(1);
        other.digest += 1;
        frames[3].record = Reading::Events(vec![other]);
    });
    assert!(
        text.contains("1 came otherwise than the log has it"),
        "{text}"
    );
}

#[test]
fn a_split_batch_is_found() {
    let text = spoiled(|frames| {
        frames[9].record = Reading::Events(vec![seen(4), seen(5)]);
        frames.insert(10, at(3.6, Reading::Events(vec![seen(6)])));
    });
    assert!(text.contains("a batch was split between 5 and 6"), "{text}");
}

#[test]
fn a_gap_where_nothing_was_removed_is_found() {
    let text = spoiled(|frames| {
        let (from, to, reason) = (4, 6, "Retention".to_owned());
        frames[9].record = Reading::Gap { from, to, reason };
    });
    assert!(
        text.contains("a gap from 4 to 6, but the log begins at 1"),
        "{text}"
    );
}

#[test]
fn a_gap_where_retention_passed_is_none() {
    let mut sample = Sample::new();
    for sequence in 1..=3 {
        sample.lose(sequence);
    }
    // The first one was seen before.
    let (from, to, reason) = (2, 3, "Retention".to_owned());
    sample.frames()[5].record = Reading::Gap { from, to, reason };
    assert_eq!(found(&sample.history(), "subscriptions"), [""; 0]);
}

#[test]
fn progress_behind_the_end_of_the_log_is_found() {
    let text = spoiled(|frames| frames[11].record = Reading::Progress(8));
    assert!(
        text.contains("progress to 8, but the log ends at 7"),
        "{text}"
    );
}

#[test]
fn a_reader_that_starts_now_sees_what_is_sent_later_and_nothing_older() {
    let now = |frames: &mut Vec<At<Reading>>| {
        frames.drain(..7);
        let Reading::Asked { start, .. } = &mut frames[0].record else {
            panic!("asked");
        };
        *start = Start::Now;
    };
    let mut sample = Sample::new();
    now(sample.frames());
    assert_eq!(found(&sample.history(), "subscriptions"), [""; 0]);
    let text = spoiled(|frames| {
        now(frames);
        frames[2].record = Reading::Events(vec![seen(3), seen(4), seen(5), seen(6)]);
    });
    assert!(
        text.contains("starts before 3, which was stored before it was opened"),
        "{text}"
    );
    let text = spoiled(|frames| {
        now(frames);
        frames.remove(2);
    });
    assert!(
        text.contains("6 is missing, which was sent after it was open"),
        "{text}"
    );
}

#[test]
fn a_stream_that_is_done_too_early_is_found() {
    let text = spoiled(|frames| {
        let Reading::Asked { max_events, .. } = &mut frames[7].record else {
            panic!("asked");
        };
        *max_events = 5;
        frames[12].record = Reading::Closing("Done".to_owned());
    });
    assert!(text.contains("it is done after 4 events, not 5"), "{text}");
}

#[test]
fn a_reader_that_never_saw_the_end_is_found() {
    let text = spoiled(|frames| frames.truncate(10));
    assert!(
        text.contains("it ended at 6, but the log ends at 7"),
        "{text}"
    );
}
