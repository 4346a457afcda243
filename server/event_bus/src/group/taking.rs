//! Leasing events to those who consume them.

use std::sync::Arc;

use bytes::Bytes;
use hub_core::clock::{Micros, timestamp};
use hub_core::error::{Error, Result};
use hub_core::journal::{Damaged, Segment};
use hub_proto::wire::LeasedEvent;

use super::{Group, PULLING};
use crate::lease_id;
use crate::leasing::{Lease, LeaseId, MemberId, Nack};
use crate::seat::Seat;

/// What somebody wants to lease.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want {
    pub(crate) member: MemberId,
    pub(crate) events: usize,
    pub(crate) bytes: u64,
    /// Length of the leases, if not the subscription's.
    pub(crate) length: Option<Micros>,
}

/// Events that were leased. Those that are not handed over, because the call ends before, return;
/// that costs no attempt.
#[derive(Debug)]
pub(crate) struct Taken {
    group: Arc<Group>,
    leases: Vec<LeaseId>,
    events: Vec<LeasedEvent>,
}

impl Taken {
    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Sequence of the newest one; 0 if there is none.
    pub(crate) fn newest(&self) -> u64 {
        self.leases.iter().map(|id| id.seq).max().unwrap_or(0)
    }

    /// To who consumes them; they stay leased.
    pub(crate) fn hand_over(mut self) -> Vec<LeasedEvent> {
        self.leases.clear();
        std::mem::take(&mut self.events)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.leases.is_empty() {
            self.group.give_up(&self.leases);
        }
    }
}

impl Group {
    /// Leases events to a member, as many as there are now; nothing is waited for.
    ///
    /// Errors: `STORE_BUSY`, with nothing leased.
    pub(crate) async fn take(self: &Arc<Self>, seat: &Seat, want: Want) -> Result<Taken> {
        let mut taken = Taken {
            group: self.clone(),
            leases: Vec::new(),
            events: Vec::new(),
        };
        let (leases, mut found) = self.lease(seat, want);
        taken.leases = leases.iter().map(|lease| lease.id).collect();
        let journal = &self.parts.core.journal;
        for (lease, found) in leases.iter().zip(&mut found) {
            if found.is_none() {
                *found = journal.segment_at(&self.log, lease.id.seq).await?;
            }
        }
        self.show(&mut taken, leases, found)?;
        Ok(taken)
    }

    /// Leases, and the segments of the events as far as they are in memory.
    fn lease(self: &Arc<Self>, seat: &Seat, want: Want) -> (Vec<Lease>, Vec<Option<Arc<Segment>>>) {
        // Before it is looked at: a process that is paused in between leases as of before.
        let now = self.now();
        self.end_with_its_term();
        let mut state = self.lock();
        if state.over {
            return Default::default();
        }
        if want.member == PULLING {
            state.leasing.join(PULLING);
            state.note_pull(&seat.name, now);
        }
        let (events, bytes) = (want.events, want.bytes);
        let leases = state
            .leasing
            .lease(want.member, now, events, bytes, want.length);
        if leases.is_empty() {
            return Default::default();
        }
        let taken = leases.iter().map(|lease| u64::from(lease.bytes)).sum();
        seat.charge(leases.len(), taken);
        state.held.see(self.log.view());
        let held = &state.held;
        let found = leases.iter().map(|lease| held.find(lease.id.seq)).collect();
        self.changed(&mut state);
        (leases, found)
    }

    /// The leases with their events; what the log has no more is settled as expired.
    fn show(
        self: &Arc<Self>,
        taken: &mut Taken,
        leases: Vec<Lease>,
        found: Vec<Option<Arc<Segment>>>,
    ) -> Result<()> {
        let mut gone = Vec::new();
        for (lease, segment) in leases.into_iter().zip(found) {
            match segment {
                Some(segment) => {
                    let record = record(&segment, lease.id.seq).map_err(Error::internal)?;
                    taken.events.push(self.shown(&lease, record));
                }
                None => gone.push(lease.id),
            }
        }
        if !gone.is_empty() {
            taken.leases.retain(|id| !gone.contains(id));
            let mut state = self.lock();
            let now = self.now();
            gone.into_iter().for_each(|id| state.leasing.gone(id, now));
            self.changed(&mut state);
        }
        Ok(())
    }

    fn shown(&self, lease: &Lease, record: Bytes) -> LeasedEvent {
        LeasedEvent {
            lease_id: lease_id::write(&self.tenant, lease.id),
            record,
            attempt: lease.attempt,
            lease_until: Some(timestamp(lease.until)),
            previous_error: lease.previous_error.as_deref().unwrap_or("").to_owned(),
            redelivery: lease.redelivery,
        }
    }

    /// Leases that could not be handed over return.
    fn give_up(self: &Arc<Self>, leases: &[LeaseId]) {
        let (now, jitter) = (self.now(), self.jitter());
        let mut state = self.lock();
        for id in leases {
            state.leasing.nack(*id, Nack::Release, "", now, jitter);
        }
        self.changed(&mut state);
    }
}

/// The encoded `EventRecord` of an event, as a slice of its segment.
fn record(segment: &Segment, seq: u64) -> std::result::Result<Bytes, Damaged> {
    let run = segment.run()?;
    let index = (seq - segment.first()) as usize;
    let end = run.entries.get(index).ok_or(Damaged)?.end as usize;
    let start = match index {
        0 => 0,
        index => run.entries[index - 1].end as usize,
    };
    let mut framed: &[u8] = &run.records[start..end];
    // Tag and length come before it: it is an entry of a batch there.
    framed = framed.get(1..).ok_or(Damaged)?;
    let length = prost::decode_length_delimiter(&mut framed).map_err(|_| Damaged)?;
    Ok(run.records.slice(end - length..end))
}
