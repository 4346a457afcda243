//! Subscribers: they lose their streams, resume by a cursor, sometimes an old one, and some are
//! slow.

use std::sync::Arc;
use std::time::Duration;

use hub_client::proto::hub::event_bus::v1::subscribe_response::Frame;
use hub_client::proto::hub::event_bus::v1::{
    EventFilter, StartAt, SubscribeRequest, SubscribeResponse, start_at,
};
use tokio::time::timeout;
use tonic::Streaming;

use super::event::seen;
use super::{CALL_TIMEOUT, Identity, Phase, RETRY_PAUSE, SILENCE, Site};
use crate::history::filter::Wanted;
use crate::history::records::{Reading, Start, Subscribing};
use crate::history::tracks::{Recorder, Subscriber};
use crate::journal::random::Random;

/// Frames of a stream before its reader leaves it, at most.
const FRAMES_MAX: usize = 400;
/// Cursors of which one may be taken again.
const CURSORS_MAX: usize = 20;

/// How a subscriber reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// From the beginning, on and on.
    Steady,
    /// Takes its time between frames.
    Slow,
    /// Starts anew each time: now, or at what was acknowledged last.
    Fresh,
}

/// A subscriber at work.
struct Reader {
    site: Arc<Site>,
    identity: Identity,
    about: Subscribing,
    habit: Habit,
    random: Random,
    recorder: Recorder<Subscribing, Reading>,
    /// Cursors with their positions, oldest first.
    cursors: Vec<(String, u64)>,
}

/// Reads until everything is read that there is.
pub async fn subscribe(
    site: Arc<Site>,
    identity: Identity,
    about: Subscribing,
    habit: Habit,
) -> Subscriber {
    let recorder = site
        .folder
        .record(&identity.name, identity.tenant, about.clone());
    let mut reader = Reader {
        random: site.random(&identity.name),
        site,
        identity,
        about,
        habit,
        recorder,
        cursors: Vec::new(),
    };
    while !reader.is_done() {
        let ended = reader.session().await;
        reader.recorder.note(ended);
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    reader.recorder.finish()
}

pub fn filter(wanted: &Wanted) -> Option<EventFilter> {
    let mut filter = EventFilter {
        types: wanted.types.clone(),
        products: wanted.products.clone(),
        ..EventFilter::default()
    };
    if !wanted.key_prefix.is_empty() {
        let prefix = format!("{}*", wanted.key_prefix);
        filter.attributes.insert("partitionkey".to_owned(), prefix);
    }
    (*wanted != Wanted::default()).then_some(filter)
}

impl Reader {
    fn is_done(&self) -> bool {
        let phase = self.site.phase();
        let read = self.cursors.last().map(|(_, position)| *position);
        let end = *self.site.ends[self.identity.tenant].borrow();
        let is_read = end.is_some() && (read >= end || self.habit == Habit::Fresh);
        phase == Phase::Over || is_read
    }

    /// One stream; how it ended.
    async fn session(&mut self) -> Reading {
        let (start, at) = self.start();
        let max_events = match self.random.below(10) {
            0 => 1 + self.random.below(100) as u32,
            _ => 0,
        };
        let (hub, process) = self.site.connect(&mut self.random, &self.identity.key);
        self.recorder.note(Reading::Asked {
            start,
            process,
            max_events,
        });
        let request = SubscribeRequest {
            filter: filter(&self.about.wanted),
            start: at.map(|at| StartAt { at: Some(at) }),
            max_events,
            all_products: self.about.all_products,
            ..SubscribeRequest::default()
        };
        let mut bus = hub.event_bus();
        match timeout(CALL_TIMEOUT, bus.subscribe(request)).await {
            Ok(Ok(frames)) => self.read(frames.into_inner()).await,
            Ok(Err(status)) => Reading::Broken(format!("{status:?}")),
            Err(_) => Reading::Broken("silent".to_owned()),
        }
    }

    fn start(&mut self) -> (Start, Option<start_at::At>) {
        let last = self.cursors.len().saturating_sub(1);
        let cursor = |(cursor, position): &(String, u64)| {
            let at = start_at::At::Cursor(cursor.clone());
            (Start::Cursor(*position), Some(at))
        };
        match self.habit {
            Habit::Fresh => match self.site.acked(self.identity.tenant) {
                Some((cursor, sequence)) if self.random.percent(50) => {
                    let at = start_at::At::Cursor(cursor);
                    (Start::Acked(sequence), Some(at))
                }
                _ => (Start::Now, None),
            },
            _ if self.cursors.is_empty() => (Start::Earliest, Some(start_at::At::Earliest(true))),
            // Its last one was not stored in time.
            _ if self.random.percent(20) => {
                self.cursors.truncate(1 + self.random.below(last + 1));
                cursor(&self.cursors[self.cursors.len() - 1])
            }
            _ => cursor(&self.cursors[last]),
        }
    }

    async fn read(&mut self, mut frames: Streaming<SubscribeResponse>) -> Reading {
        let calm = self.site.phase() > Phase::Load;
        let frames_max = if calm {
            usize::MAX
        } else {
            1 + self.random.below(FRAMES_MAX)
        };
        for _ in 0..frames_max {
            if self.is_done() {
                return Reading::Broken("left at the end".to_owned());
            }
            let frame = match timeout(SILENCE, frames.message()).await {
                Err(_) => return Reading::Broken("silent".to_owned()),
                Ok(Err(status)) => return Reading::Broken(format!("{status:?}")),
                Ok(Ok(None)) => return Reading::Broken("ended without closing".to_owned()),
                Ok(Ok(Some(response))) => response.frame,
            };
            if let Some(Frame::Closing(closing)) = &frame {
                return Reading::Closing(format!("{:?}", closing.reason()));
            }
            self.note(frame);
            if self.habit == Habit::Slow {
                let pause = self.random.below(200) as u64;
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        }
        Reading::Broken("left".to_owned())
    }

    fn note(&mut self, frame: Option<Frame>) {
        let (record, kept) = match frame {
            Some(Frame::Opened(opened)) => {
                let head = opened.head_sequence;
                (Reading::Opened { head }, None)
            }
            Some(Frame::Events(batch)) => {
                let events: Vec<_> = batch.events.into_iter().map(seen).collect();
                let last = events.last().map(|event| event.sequence);
                (
                    Reading::Events(events),
                    last.map(|last| (batch.cursor, last)),
                )
            }
            Some(Frame::Progress(one)) => (
                Reading::Progress(one.sequence),
                Some((one.cursor, one.sequence)),
            ),
            Some(Frame::CaughtUp(one)) => (
                Reading::CaughtUp(one.sequence),
                Some((one.cursor, one.sequence)),
            ),
            Some(Frame::Gap(gap)) => {
                let record = Reading::Gap {
                    from: gap.from_sequence,
                    to: gap.to_sequence,
                    reason: format!("{:?}", gap.reason()),
                };
                (record, Some((gap.cursor, gap.to_sequence)))
            }
            Some(Frame::Closing(_)) | None => return,
        };
        self.recorder.note(record);
        self.cursors.extend(kept);
        if self.cursors.len() > CURSORS_MAX {
            self.cursors.remove(0);
        }
    }
}
