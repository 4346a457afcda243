//! Who works off a subscription in this process.

use std::collections::BTreeMap;

use super::MemberId;

/// The members that joined.
#[derive(Debug, Default)]
pub(super) struct Members {
    joined: BTreeMap<MemberId, Member>,
    /// Counts joins.
    count: u64,
    /// The one that is here longest.
    first: Option<MemberId>,
}

#[derive(Debug)]
struct Member {
    /// Its place in the order of joining.
    place: u64,
    /// Its leases.
    outstanding: usize,
}

impl Members {
    pub(super) fn join(&mut self, member: MemberId) {
        let place = self.count;
        self.joined.entry(member).or_insert(Member {
            place,
            outstanding: 0,
        });
        self.count += 1;
        self.first.get_or_insert(member);
    }

    /// Costs O(members) if the first one leaves.
    pub(super) fn leave(&mut self, member: MemberId) {
        self.joined.remove(&member);
        if self.first == Some(member) {
            let first = self.joined.iter().min_by_key(|(_, member)| member.place);
            self.first = first.map(|(member, _)| *member);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.joined.len()
    }

    /// How many there are besides this one.
    pub(super) fn others(&self, member: MemberId) -> usize {
        self.joined.len() - usize::from(self.joined.contains_key(&member))
    }

    /// The one that joined before all others.
    pub(super) fn first(&self) -> Option<MemberId> {
        self.first
    }

    pub(super) fn leased(&mut self, member: MemberId, events: usize) {
        if let Some(member) = self.joined.get_mut(&member) {
            member.outstanding += events;
        }
    }

    pub(super) fn returned(&mut self, member: MemberId) {
        if let Some(member) = self.joined.get_mut(&member) {
            member.outstanding = member.outstanding.saturating_sub(1);
        }
    }

    /// How many leases a member has; 0 if it did not join.
    pub(super) fn outstanding(&self, member: MemberId) -> usize {
        let member = self.joined.get(&member);
        member.map_or(0, |member| member.outstanding)
    }
}
