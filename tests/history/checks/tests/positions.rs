//! Spoiled positions of consumers: `progress` finds it.

use super::sample::{Sample, at};
use super::{all, found};
use crate::history::records::Consumption;

/// A consumer that is told something at a time.
fn told(seconds: f64, record: Consumption) -> Sample {
    let mut sample = Sample::consumed();
    let all = sample.consumption();
    let place = all.partition_point(|before| before.at <= at(seconds, ()).at);
    all.insert(place, at(seconds, record));
    sample
}

/// The same by a stream that begins at a time.
fn begun(seconds: f64, record: Consumption) -> Sample {
    let mut sample = told(seconds + 0.1, record);
    let asked = Consumption::Asked {
        process: 0,
        confirms: true,
    };
    let all = sample.consumption();
    let place = all.partition_point(|before| before.at <= at(seconds, ()).at);
    all.insert(place, at(seconds, asked));
    sample
}

#[test]
fn what_is_true_passes() {
    // 1 is acked at 1.65, 2 and 3 not yet.
    for sample in [
        told(2.7, Consumption::Progress(1)),
        told(5.0, Consumption::CaughtUp(7)),
        begun(5.0, Consumption::CaughtUp(7)),
    ] {
        let found = all(&sample.history());
        assert!(found.is_empty(), "{found:#?}");
    }
}

#[test]
fn progress_beyond_what_is_settled_is_found() {
    // 2 is retried until 3.75.
    let sample = told(3.6, Consumption::Progress(3));
    let text = "portal: consumer-0 was told progress to 3 at 3.600 s, but 2 was not settled";
    assert_eq!(found(&sample.history(), "progress"), [text]);
}

#[test]
fn caught_up_with_something_left_is_found() {
    let sample = told(4.2, Consumption::CaughtUp(6));
    let text = "portal: consumer-0 was told caught up to 6 at 4.200 s, but 6 was not settled";
    assert_eq!(found(&sample.history(), "progress"), [text]);
}

#[test]
fn caught_up_before_what_was_there_is_found() {
    let sample = begun(5.0, Consumption::CaughtUp(3));
    let text = "portal: consumer-0 was told caught up to 3 at 5.100 s, but 7 was there before it \
                came at 5.000 s";
    assert_eq!(found(&sample.history(), "progress"), [text]);
}
