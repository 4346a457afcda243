//! What members hold, what they hold no more, and what is ready for them.

use std::collections::BTreeMap;

use super::{Leasing, MemberId};

/// Events whose sizes stand for those of all that are ready.
const SAMPLE: usize = 32;

impl Leasing {
    /// Leases that ended since this was last asked, by member: how many, and their bytes.
    pub fn take_ended(&mut self) -> BTreeMap<MemberId, (usize, u64)> {
        let mut ended: BTreeMap<MemberId, (usize, u64)> = BTreeMap::new();
        for (member, bytes) in self.members.take_ended() {
            let (events, all) = ended.entry(member).or_default();
            *events += 1;
            *all += u64::from(bytes);
        }
        ended
    }

    /// Events and bytes that a member has leased; none if it did not join.
    pub fn outstanding(&self, member: MemberId) -> (usize, u64) {
        (self.members.outstanding(member), self.members.bytes(member))
    }

    /// Events that may be leased now, and about how many bytes they have.
    pub fn ready(&self) -> (usize, u64) {
        let events = self.ready.len() + self.released.len();
        let sample = self.ready.iter().take(SAMPLE);
        let sizes = sample.filter_map(|seq| self.events.get(seq));
        let (count, bytes) = sizes.fold((0, 0), |(count, bytes), event| {
            (count + 1, bytes + u64::from(event.bytes))
        });
        let each = u64::checked_div(bytes, count).unwrap_or(0);
        (events, each * events as u64)
    }
}
