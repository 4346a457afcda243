//! Events between the caller and the hub: what waits, what is sent, and what became of it.
//! No I/O and no clock here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hub_proto::hub::event_bus::v1::{PublishAck, PublishRejected, PublishResult, PublishWindow};
use hub_proto::wire::PublishStreamRequest;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tonic::Code;

use super::frame::{EncodedFrame, FRAME_HEAD_BYTES, split_events};
use super::results::{Attribution, attribute, receipt};
use super::{PublisherOptions, Receipt};
use crate::backoff::Backoff;
use crate::error::{Error, Result};

/// Window of a new stream until the hub says otherwise.
const WINDOW_FRAMES: usize = 64;
const WINDOW_BYTES: usize = 4 << 20;
/// More unacknowledged frames than this, and only full ones are sent: those that are on the way
/// keep the hub busy, and larger frames cost both sides less.
const SMALL_FRAMES_MAX: usize = 16;
/// A frame whose answer does not say which events were refused is sent again so many times.
const UNCLEAR_MAX: u32 = 3;

/// What callers put into the queue.
#[derive(Debug)]
pub(super) enum Item {
    Event(Entry),
    Flush(oneshot::Sender<Result<()>>),
}

/// An event with its place in the caller's program.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) event: Bytes,
    pub(super) cost: usize,
    pub(super) reply: oneshot::Sender<Result<Receipt>>,
    pub(super) accepted: Instant,
}

/// Events that are sent together.
#[derive(Debug)]
struct Frame {
    /// Rises with the order of the events; not the number on the wire.
    id: u64,
    events: Bytes,
    callers: Vec<Caller>,
    unclear: u32,
}

/// Who waits for an event.
#[derive(Debug)]
struct Caller {
    cost: usize,
    reply: oneshot::Sender<Result<Receipt>>,
    accepted: Instant,
}

#[derive(Debug)]
struct Sent {
    number: u64,
    /// Taken when the frame was rejected.
    frame: Option<Frame>,
}

#[derive(Debug)]
struct Flush {
    /// Waits for the frames below this id.
    before: u64,
    reply: oneshot::Sender<Result<()>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Outbox {
    options: PublisherOptions,
    room: Arc<Semaphore>,
    waiting: VecDeque<Frame>,
    sent: VecDeque<Sent>,
    sent_bytes: usize,
    window_frames: usize,
    window_bytes: usize,
    next_number: u64,
    next_id: u64,
    flushes: Vec<Flush>,
    /// First error that nobody waited for.
    unclaimed: Option<Error>,
    /// Nothing is sent before: the hub could not take some events.
    hold: Option<Instant>,
    hold_backoff: Backoff,
}

impl Outbox {
    pub(super) fn new(options: PublisherOptions, room: Arc<Semaphore>) -> Self {
        let mut outbox = Outbox {
            options,
            room,
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            sent_bytes: 0,
            window_frames: 0,
            window_bytes: 0,
            next_number: 1,
            next_id: 0,
            flushes: Vec::new(),
            unclaimed: None,
            hold: None,
            hold_backoff: Backoff::default(),
        };
        outbox.restart();
        outbox
    }

    /// Whether every event is settled.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.sent.is_empty()
    }

    /// Whether more events could be sent now, if `queued` of them wait.
    pub(super) fn wants_events(&self, queued: usize) -> bool {
        self.waiting.is_empty()
            && self.hold.is_none()
            && (self.sent.len() < SMALL_FRAMES_MAX || queued >= self.options.frame_events_max)
            && self.sent.len() < self.window_frames
            && (self.sent.is_empty() || self.sent_bytes < self.window_bytes)
    }

    /// Nothing is sent before this time.
    pub(super) fn hold(&self) -> Option<Instant> {
        self.hold
    }

    /// The time of [`hold`](Outbox::hold) has come.
    pub(super) fn release(&mut self) {
        self.hold = None;
    }

    /// Puts events together into frames.
    pub(super) fn accept(&mut self, items: impl Iterator<Item = Item>) {
        let mut run: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for item in items {
            match item {
                Item::Event(entry) => {
                    let full = run.len() == self.options.frame_events_max
                        || bytes + entry.event.len() > self.options.frame_bytes_max;
                    if full && !run.is_empty() {
                        self.push_frame(std::mem::take(&mut run), bytes);
                        bytes = 0;
                    }
                    bytes += entry.event.len();
                    run.push(entry);
                }
                Item::Flush(reply) => {
                    self.push_frame(std::mem::take(&mut run), bytes);
                    bytes = 0;
                    self.flushes.push(Flush {
                        before: self.next_id,
                        reply,
                    });
                }
            }
        }
        self.push_frame(run, bytes);
        self.answer_flushes();
    }

    fn push_frame(&mut self, mut run: Vec<Entry>, bytes: usize) {
        let events = match run.as_mut_slice() {
            [] => return,
            [only] => std::mem::take(&mut only.event),
            entries => {
                let mut events = BytesMut::with_capacity(bytes);
                entries
                    .iter()
                    .for_each(|entry| events.extend_from_slice(&entry.event));
                events.freeze()
            }
        };
        let callers = run.into_iter().map(
            |Entry {
                 cost,
                 reply,
                 accepted,
                 ..
             }| Caller {
                cost,
                reply,
                accepted,
            },
        );
        let frame = Frame {
            id: self.next_id,
            events,
            callers: callers.collect(),
            unclear: 0,
        };
        self.next_id += 1;
        self.waiting.push_back(frame);
    }

    /// The next frame to send, if there is one and the window has room for it.
    pub(super) fn next_frame(&mut self) -> Option<EncodedFrame> {
        let bytes = self.waiting.front()?.wire_bytes();
        let fits = self.sent.len() < self.window_frames
            && self.sent_bytes.saturating_add(bytes) <= self.window_bytes;
        if self.hold.is_some() || !(fits || self.sent.is_empty()) {
            return None;
        }
        let frame = self.waiting.pop_front()?;
        let number = self.next_number;
        self.next_number += 1;
        self.sent_bytes += bytes;
        let head = PublishStreamRequest {
            frame: number,
            events: Vec::new(),
            continue_on_error: true,
            tenant_id: self.options.tenant.clone(),
            independent: true,
            brief_results: !self.options.full_results,
        };
        let events = frame.events.clone();
        self.sent.push_back(Sent {
            number,
            frame: Some(frame),
        });
        Some(EncodedFrame { head, events })
    }

    /// A new stream begins: what is not acknowledged is sent again, before everything else.
    pub(super) fn restart(&mut self) {
        let again: Vec<_> = self.sent.drain(..).filter_map(|sent| sent.frame).collect();
        self.resend(again);
        self.sent_bytes = 0;
        self.next_number = 1;
        self.window_frames = WINDOW_FRAMES.min(self.options.window_frames);
        self.window_bytes = WINDOW_BYTES.min(self.options.window_bytes);
    }

    /// The hub says how much may be unacknowledged.
    pub(super) fn set_window(&mut self, window: PublishWindow) {
        let frames = (window.max_unacked_frames as usize).max(1);
        self.window_frames = frames.min(self.options.window_frames);
        self.window_bytes = (window.max_unacked_bytes as usize).min(self.options.window_bytes);
    }

    /// Frames were committed.
    pub(super) fn ack(&mut self, ack: PublishAck, now: Instant) {
        let mut frames = Vec::new();
        while self
            .sent
            .front()
            .is_some_and(|sent| sent.number <= ack.acked_through)
        {
            frames.extend(self.sent.pop_front().and_then(|sent| sent.frame));
        }
        self.sent_bytes -= frames.iter().map(Frame::wire_bytes).sum::<usize>();
        let events = frames.iter().map(|frame| frame.callers.len()).sum();
        match attribute(ack.results, frames.len(), events) {
            Attribution::Stored => {
                self.hold_backoff.reset();
                let callers = frames.into_iter().flat_map(|frame| frame.callers);
                self.answer(callers.map(|caller| (caller, Ok(Receipt::default()))));
            }
            Attribution::Each(results) => self.settle(frames, results, now),
            Attribution::Unclear => self.ask_again(frames),
        }
        self.answer_flushes();
    }

    fn settle(&mut self, frames: Vec<Frame>, results: Vec<PublishResult>, now: Instant) {
        let mut results = results.into_iter();
        let mut answers = Vec::new();
        let mut again = Vec::new();
        for frame in frames {
            let mut entries = Vec::new();
            for (index, caller) in frame.callers.into_iter().enumerate() {
                let result = results.next().unwrap_or_default();
                let Some(problem) = result.error else {
                    answers.push((caller, Ok(receipt(result))));
                    continue;
                };
                let error = Error::from_problem(problem);
                if error.is_retryable() && !self.is_late(&caller, now) {
                    entries.push((index, caller));
                } else {
                    answers.push((caller, Err(error)));
                }
            }
            if !entries.is_empty() {
                again.push(part(frame.id, &frame.events, entries));
            }
        }
        self.answer(answers.into_iter());
        if again.is_empty() {
            self.hold_backoff.reset();
        } else {
            self.hold_for(now);
            self.resend(again);
        }
    }

    /// Sends frames again whose answer did not say which events were refused.
    fn ask_again(&mut self, frames: Vec<Frame>) {
        let mut again = Vec::new();
        for mut frame in frames {
            frame.unclear += 1;
            if frame.unclear <= UNCLEAR_MAX {
                again.push(frame);
                continue;
            }
            let message = "The hub refused some events and did not say which. Publish the event \
                           again.";
            let error = Error::local(Code::Unknown, message);
            self.answer(
                frame
                    .callers
                    .into_iter()
                    .map(|caller| (caller, Err(error.clone()))),
            );
        }
        self.resend(again);
    }

    /// The hub stored nothing of a frame, or does not know.
    pub(super) fn rejected(&mut self, rejected: PublishRejected, now: Instant) {
        let sent = self
            .sent
            .iter_mut()
            .find(|sent| sent.number == rejected.frame);
        let Some(frame) = sent.and_then(|sent| sent.frame.take()) else {
            return;
        };
        self.sent_bytes -= frame.wire_bytes();
        while self.sent.front().is_some_and(|sent| sent.frame.is_none()) {
            self.sent.pop_front();
        }
        let error = Error::from_problem(rejected.problem.unwrap_or_default());
        let late = frame.callers.iter().any(|caller| self.is_late(caller, now));
        if error.is_retryable() && !late {
            self.hold_for(now);
            self.resend(vec![frame]);
        } else {
            self.answer(
                frame
                    .callers
                    .into_iter()
                    .map(|caller| (caller, Err(error.clone()))),
            );
        }
        self.answer_flushes();
    }

    /// Everything that is not settled fails.
    pub(super) fn fail_all(&mut self, error: &Error) {
        self.restart();
        let frames = std::mem::take(&mut self.waiting);
        let callers = frames.into_iter().flat_map(|frame| frame.callers);
        self.answer(callers.map(|caller| (caller, Err(error.clone()))));
        self.answer_flushes();
    }

    /// What was tried for longer than the delivery timeout fails; nothing may be sent just now.
    pub(super) fn fail_late(&mut self, error: &Error, now: Instant) {
        self.restart();
        for frame in std::mem::take(&mut self.waiting) {
            if frame.callers.iter().any(|caller| self.is_late(caller, now)) {
                self.answer(
                    frame
                        .callers
                        .into_iter()
                        .map(|caller| (caller, Err(error.clone()))),
                );
            } else {
                self.waiting.push_back(frame);
            }
        }
        self.answer_flushes();
    }

    fn is_late(&self, caller: &Caller, now: Instant) -> bool {
        now.duration_since(caller.accepted) >= self.options.delivery_timeout
    }

    fn hold_for(&mut self, now: Instant) {
        let wait: Duration = self.hold_backoff.next(None);
        self.hold = Some(now + wait);
    }

    /// Puts frames back where they belong in the order of the events.
    fn resend(&mut self, frames: Vec<Frame>) {
        self.waiting.extend(frames);
        self.waiting.make_contiguous().sort_by_key(|frame| frame.id);
    }

    fn answer(&mut self, answers: impl Iterator<Item = (Caller, Result<Receipt>)>) {
        let mut room = 0;
        for (caller, answer) in answers {
            room += caller.cost;
            if let Err(Err(error)) = caller.reply.send(answer) {
                self.unclaimed.get_or_insert(error);
            }
        }
        self.room.add_permits(room);
    }

    fn answer_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let sent = self.sent.iter().filter_map(|sent| sent.frame.as_ref());
        let oldest = sent
            .chain(&self.waiting)
            .map(|frame| frame.id)
            .min()
            .unwrap_or(u64::MAX);
        for flush in self.flushes.extract_if(.., |flush| flush.before <= oldest) {
            let answer = self.unclaimed.take().map_or(Ok(()), Err);
            if let Err(Err(error)) = flush.reply.send(answer) {
                self.unclaimed = Some(error);
            }
        }
    }
}

impl Frame {
    fn wire_bytes(&self) -> usize {
        self.events.len() + FRAME_HEAD_BYTES
    }
}

/// Some events of a frame.
fn part(id: u64, events: &Bytes, callers: Vec<(usize, Caller)>) -> Frame {
    let entries = split_events(events);
    let mut run = BytesMut::new();
    let mut kept = Vec::with_capacity(callers.len());
    for (index, caller) in callers {
        run.extend_from_slice(entries.get(index).map_or(&[], |entry| &entry[..]));
        kept.push(caller);
    }
    Frame {
        id,
        events: run.freeze(),
        callers: kept,
        unclear: 0,
    }
}
