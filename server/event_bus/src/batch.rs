//! Cuts what a reader may see out of the encoded segments. Nothing is encoded again.

use bytes::{Bytes, BytesMut};
use hub_core::error::{Error, Result};
use hub_core::journal::{Position, Run, Segment};
use hub_proto::hub::event_bus::v1::{EventBatch, EventRecord};
use prost::Message;
use std::sync::Arc;

use crate::filter::{Filter, Scope};
use crate::routing::Configuration;

/// Most events of a frame.
const FRAME_EVENTS_MAX: u32 = 1000;
/// A batch that was published whole is not split below this; with its framing a frame stays
/// under 5 MiB.
const FRAME_BYTES_MAX: usize = 9 << 19;
/// What a frame aims at until the reader has shown that it reads.
pub(crate) const FIRST_FRAME_BYTES: usize = 64 << 10;

/// Selects events for one reader.
pub(crate) struct Batcher {
    filter: Filter,
    scope: Scope,
    omit_data: bool,
}

/// What goes into one frame.
pub(crate) struct Taken {
    /// Encoded `repeated EventRecord events = 1`.
    pub(crate) records: Bytes,
    /// How many.
    pub(crate) count: u32,
    /// Everything that matches up to here is in this frame or an earlier one.
    pub(crate) position: Position,
}

/// A frame under construction: slices of runs, joined only if there are several.
#[derive(Default)]
struct Frame {
    parts: Vec<Bytes>,
    bytes: usize,
    count: u32,
}

/// The matching events of a published batch.
struct Group {
    /// Ranges of bytes, neighbours joined.
    ranges: Vec<(u32, u32)>,
    bytes: usize,
    count: u32,
    /// Index behind its last event.
    end: usize,
}

impl Batcher {
    pub(crate) fn new(filter: Filter, scope: Scope, omit_data: bool) -> Self {
        Batcher {
            filter,
            scope,
            omit_data,
        }
    }

    /// Takes events after `after` until the frame is full. Each segment comes with the
    /// configuration by which its events are routed; none = they are not. `remaining`
    /// cuts exactly, even within a batch.
    pub(crate) fn take(
        &self,
        segments: &[(Arc<Segment>, Option<Arc<Configuration>>)],
        after: Position,
        bytes_aim: usize,
        remaining: Option<u32>,
    ) -> Result<Taken> {
        let mut frame = Frame::default();
        let mut position = after;
        'segments: for (segment, configuration) in segments {
            let run = segment.run().map_err(Error::internal)?;
            let admitted: Vec<bool> = run
                .kinds
                .iter()
                .map(|kind| {
                    self.filter
                        .admits(kind, &self.scope, configuration.as_deref())
                })
                .collect();
            let skip = (position.seq + 1).saturating_sub(segment.first()) as usize;
            let mut next = skip;
            while next < run.entries.len() {
                let room = remaining.map_or(u32::MAX, |remaining| remaining - frame.count);
                let group = self.group(run, next, &admitted, room);
                let full = frame.count + group.count > FRAME_EVENTS_MAX
                    || frame.bytes + group.bytes > bytes_aim;
                if full && frame.count > 0 && group.count > 0 {
                    break 'segments;
                }
                next = group.end;
                frame.add(run, group);
                position.seq = segment.first() + next as u64 - 1;
                if remaining.is_some_and(|remaining| frame.count >= remaining) {
                    break;
                }
            }
            if remaining.is_some_and(|remaining| frame.count >= remaining) {
                break;
            }
        }
        if position.seq > after.seq {
            position.fingerprint = fingerprint_at(segments, position.seq);
        }
        self.finish(frame, position)
    }

    /// The events from `start` that were published together, cut at the hard limits.
    fn group(&self, run: &Run, start: usize, admitted: &[bool], room: u32) -> Group {
        let mut group = Group {
            ranges: Vec::new(),
            bytes: 0,
            count: 0,
            end: start,
        };
        for (index, entry) in run.entries.iter().enumerate().skip(start) {
            let begins_next = index > start && entry.starts_batch;
            if begins_next || group.bytes >= FRAME_BYTES_MAX || group.count >= room {
                break;
            }
            group.end = index + 1;
            if !admitted[usize::from(entry.kind)] {
                continue;
            }
            if self.filter.has_attributes() {
                let event = run
                    .records
                    .slice(entry.event_start as usize..entry.event_end as usize);
                if !self.filter.matches_attributes(event) {
                    continue;
                }
            }
            let from = if index == 0 {
                0
            } else {
                run.entries[index - 1].end
            };
            group.bytes += (entry.end - from) as usize;
            group.count += 1;
            match group.ranges.last_mut() {
                Some(last) if last.1 == from => last.1 = entry.end,
                _ => group.ranges.push((from, entry.end)),
            }
        }
        group
    }

    fn finish(&self, frame: Frame, position: Position) -> Result<Taken> {
        let count = frame.count;
        let records = frame.join();
        let records = if self.omit_data && count > 0 {
            without_data(records)?
        } else {
            records
        };
        Ok(Taken {
            records,
            count,
            position,
        })
    }
}

/// The fingerprint of the last event taken, whose segment may have been left half-way.
fn fingerprint_at(segments: &[(Arc<Segment>, Option<Arc<Configuration>>)], seq: u64) -> u64 {
    let at = segments.partition_point(|(segment, _)| segment.last() < seq);
    let found = segments.get(at);
    found
        .and_then(|(segment, _)| segment.fingerprint(seq))
        .unwrap_or_default()
}

impl Frame {
    fn add(&mut self, run: &Run, group: Group) {
        self.bytes += group.bytes;
        self.count += group.count;
        for (from, to) in group.ranges {
            let part = run.records.slice(from as usize..to as usize);
            // Neighbours within a run are one slice: the usual frame is not copied at all.
            match self.parts.last_mut() {
                Some(last) if continues(last, &part) => {
                    let start = to as usize - part.len() - last.len();
                    *last = run.records.slice(start..to as usize);
                }
                _ => self.parts.push(part),
            }
        }
    }

    fn join(mut self) -> Bytes {
        if self.parts.len() <= 1 {
            return self.parts.pop().unwrap_or_default();
        }
        let mut joined = BytesMut::with_capacity(self.bytes);
        self.parts
            .iter()
            .for_each(|part| joined.extend_from_slice(part));
        joined.freeze()
    }
}

/// Whether `part` begins in memory where `last` ends; both are slices of one run then.
fn continues(last: &Bytes, part: &Bytes) -> bool {
    last.as_ptr() as usize + last.len() == part.as_ptr() as usize
}

/// The same records without payload: the slow path of who asked for it.
fn without_data(records: Bytes) -> Result<Bytes> {
    let mut batch = EventBatch::decode(records).map_err(Error::internal)?;
    for EventRecord { event, .. } in &mut batch.events {
        if let Some(event) = event {
            event.data = None;
        }
    }
    Ok(batch.encode_to_vec().into())
}
