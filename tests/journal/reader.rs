//! A reader that begins somewhere and goes on to the end, now fast, now slow.

use std::sync::Arc;

use hub_core::journal::{Journal, Log, Page, Segment};
use hub_proto::hub::event_bus::v1::EventBatch;
use prost::Message;
use tokio_util::sync::CancellationToken;

use super::checked_log::CheckedLog;
use super::random::Random;

/// What a reader saw.
#[derive(Debug)]
pub struct Reading {
    tenant: usize,
    /// Sequence before the first event.
    after: u64,
    names: Vec<String>,
    /// The head when the last writer was done.
    head: u64,
}

impl Reading {
    /// Checks that it saw every event from its start exactly once, in order.
    pub fn check(&self, logs: &[CheckedLog]) {
        let events = &logs[self.tenant].events;
        let expected = events[self.after as usize..self.head as usize].iter();
        let expected: Vec<&str> = expected.map(|event| event.name.as_str()).collect();
        assert_eq!(self.names, expected, "a reader of tenant {}", self.tenant);
    }
}

/// Reads until `written` is cancelled and the end is reached.
pub async fn read(
    journal: Arc<Journal>,
    log: Arc<Log>,
    tenant: usize,
    mut random: Random,
    written: CancellationToken,
) -> Reading {
    let mut head = log.watch();
    let after = match random.below(3) {
        0 => 0,
        1 => log.head().seq,
        _ => random.below(log.head().seq as usize + 1) as u64,
    };
    let mut at = after;
    let mut names = Vec::new();
    loop {
        match journal.read_after(&log, at).await.unwrap() {
            Page::Segments(segments) => {
                for segment in segments {
                    take(&segment, &mut at, &mut names);
                }
            }
            Page::AtEnd if written.is_cancelled() => {
                let head = log.head().seq;
                assert_eq!(at, head, "the end is the head");
                return Reading {
                    tenant,
                    after,
                    names,
                    head,
                };
            }
            Page::AtEnd => {
                tokio::select! {
                    changed = head.wait_for(|head| head.seq > at) => drop(changed.unwrap()),
                    () = written.cancelled() => {}
                }
            }
            Page::Gap { from, to } => panic!("nothing was removed, but {from}..={to} are missing"),
        }
        // Who falls behind has to find its way from the database to the tail.
        for _ in 0..random.below(4) * random.below(100) {
            tokio::task::yield_now().await;
        }
    }
}

fn take(segment: &Segment, at: &mut u64, names: &mut Vec<String>) {
    assert!(segment.first() <= *at + 1, "{} is missing", *at + 1);
    let batch = EventBatch::decode(segment.run().unwrap().records.clone()).unwrap();
    for record in batch.events {
        if record.sequence > *at {
            assert_eq!(record.sequence, *at + 1, "a hole");
            *at = record.sequence;
            names.push(record.event.unwrap().id);
        }
    }
    assert_eq!(segment.last(), *at);
}

/// Names of the events after a sequence, up to the end.
pub async fn names(journal: &Journal, log: &Log, after: u64) -> Vec<String> {
    let (mut at, mut names) = (after, Vec::new());
    while let Page::Segments(segments) = journal.read_after(log, at).await.unwrap() {
        for segment in segments {
            take(&segment, &mut at, &mut names);
        }
    }
    names
}
