//! Who works off a subscription in this process.

use std::collections::BTreeMap;

use super::MemberId;

/// The members that joined, and others that have leases.
#[derive(Debug, Default)]
pub(super) struct Members {
    known: BTreeMap<MemberId, Member>,
    /// How many are here.
    joined: usize,
    /// Counts joins.
    places: u64,
    /// The one that is here longest.
    first: Option<MemberId>,
    /// Leases that ended, with the sizes of their events, until they are asked for.
    ended: Vec<(MemberId, u32)>,
}

#[derive(Debug, Default)]
struct Member {
    /// Its place in the order of joining, if it is here.
    place: Option<u64>,
    /// Its leases.
    outstanding: usize,
    /// Sizes of their events.
    bytes: u64,
}

impl Members {
    pub(super) fn join(&mut self, member: MemberId) {
        let known = self.known.entry(member).or_default();
        if known.place.is_none() {
            self.places += 1;
            known.place = Some(self.places);
            self.joined += 1;
        }
        self.first.get_or_insert(member);
    }

    /// Costs O(members) if the first one leaves.
    pub(super) fn leave(&mut self, member: MemberId) {
        let known = self.known.get_mut(&member);
        let Some(known) = known.filter(|known| known.place.is_some()) else {
            return;
        };
        known.place = None;
        self.joined -= 1;
        self.forget(member);
        if self.first == Some(member) {
            let here = self.known.iter().filter(|(_, known)| known.place.is_some());
            let first = here.min_by_key(|(_, known)| known.place);
            self.first = first.map(|(member, _)| *member);
        }
    }

    /// How many are here.
    pub(super) fn joined(&self) -> usize {
        self.joined
    }

    /// How many are here besides this one.
    pub(super) fn others(&self, member: MemberId) -> usize {
        let known = self.known.get(&member);
        let here = known.is_some_and(|known| known.place.is_some());
        self.joined - usize::from(here)
    }

    /// The one that joined before all others.
    pub(super) fn first(&self) -> Option<MemberId> {
        self.first
    }

    pub(super) fn leased(&mut self, member: MemberId, events: usize, bytes: u64) {
        let known = self.known.entry(member).or_default();
        known.outstanding += events;
        known.bytes += bytes;
    }

    pub(super) fn returned(&mut self, member: MemberId, bytes: u32) {
        self.ended.push((member, bytes));
        if let Some(known) = self.known.get_mut(&member) {
            known.outstanding = known.outstanding.saturating_sub(1);
            known.bytes = known.bytes.saturating_sub(u64::from(bytes));
            if known.outstanding == 0 {
                self.forget(member);
            }
        }
    }

    /// Leases that ended since this was last asked.
    pub(super) fn take_ended(&mut self) -> Vec<(MemberId, u32)> {
        std::mem::take(&mut self.ended)
    }

    /// Sizes of the events that a member has leased.
    pub(super) fn bytes(&self, member: MemberId) -> u64 {
        self.known.get(&member).map_or(0, |known| known.bytes)
    }

    /// How many leases a member has.
    pub(super) fn outstanding(&self, member: MemberId) -> usize {
        let known = self.known.get(&member);
        known.map_or(0, |known| known.outstanding)
    }

    /// Of a member that left nothing remains when its last lease ended.
    fn forget(&mut self, member: MemberId) {
        let known = self.known.get(&member);
        if known.is_some_and(|known| known.place.is_none() && known.outstanding == 0) {
            self.known.remove(&member);
        }
    }
}
