//! What the processes on one database know together of the requests of a subject, and which
//! portion of its limit each of them may let through without asking the others.
//!
//! It is a pure state machine: `settlement.rs` reads and writes it under a lock in the database.
//!
//! Invariants:
//! - What all processes counted in the last minute, and what they still may, is never more than the
//!   limit. So no minute has more requests than the limit, wherever they arrive.
//! - A portion is good for [`GOOD_FOR`]. Its process tells then what it made of it; of one that
//!   does not within [`TOLD_WITHIN`], all of it counts as used, for it may have been killed.
//! - The more is used up, the smaller the portions, down to one request: what one process does not
//!   need does not keep the others from the rest.

use hub_core::clock::Micros;
use hub_core::window::Window;

/// How long a portion is good.
pub(crate) const GOOD_FOR: Micros = 2_000_000;
/// How long after the end of a portion its process may take to tell: a round of looking for such
/// portions and a transaction. Until then it is neither used nor free.
const TOLD_WITHIN: Micros = 1_500_000;
/// Who gets nothing because others still may, asks again after this.
const ASKED_AGAIN: Micros = 250_000;

/// What a process counted, and what it may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Standing {
    process_id: String,
    counted: Window,
    portion: u64,
    ends: Micros,
}

/// Those of all processes that counted something lately.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Standings(Vec<Standing>);

/// What a process says of itself, and what it wants.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ask {
    /// What it counted in the last minute.
    pub counted: Window,
    /// What it has left of its portion.
    pub left: u64,
    /// Requests per minute.
    pub limit: u32,
    /// The least and the most that one request of those that wait costs; 0 = none waits.
    pub least: u32,
    pub most: u32,
}

/// What it is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    /// What the others counted.
    pub others: Window,
    /// What is added to its portion.
    pub granted: u64,
    /// The end of its portion, with what was left of it.
    pub ends: Micros,
    /// A request of this cost does not fit before that time.
    pub refused: Option<(u32, Micros)>,
}

impl Standings {
    /// Settles with one of `processes` that live.
    pub fn settle(
        &mut self,
        process_id: &str,
        ask: &Ask,
        processes: usize,
        now: Micros,
    ) -> Settled {
        self.0.retain(|standing| standing.process_id != process_id);
        self.0.iter_mut().for_each(|standing| standing.pass(now));
        self.0.retain(|standing| standing.counts());
        let others = self.0.iter().flat_map(|other| other.counted.slots());
        let others = Window::of_slots(others);
        let reserved: u64 = self.0.iter().map(|other| other.portion).sum();
        let mut own = Standing {
            process_id: process_id.to_owned(),
            counted: ask.counted.clone(),
            portion: ask.left,
            ends: now + GOOD_FOR,
        };
        own.counted.advance(now);
        let used = own.counted.used() + others.used() + reserved + ask.left;
        let room = u64::from(ask.limit).saturating_sub(used);
        let granted = granted(ask, room, processes);
        own.portion += granted;
        let refused = refused(ask, room).map(|cost| {
            let all = own.counted.slots().chain(others.slots());
            let at = Window::of_slots(all).fits_at(cost, ask.limit, now);
            let at = if reserved > 0 { now } else { at };
            (cost, at.max(now + ASKED_AGAIN))
        });
        let ends = own.ends;
        if own.counts() {
            self.0.push(own);
        }
        Settled {
            others,
            granted,
            ends,
            refused,
        }
    }

    /// Reads what [`Standings::write`] wrote.
    pub fn read(text: &str) -> Result<Self, serde_json::Error> {
        type Stored = (String, Vec<(i64, u32)>, u64, Micros);
        let stored: Vec<Stored> = serde_json::from_str(text)?;
        let standings = stored
            .into_iter()
            .map(|(process_id, slots, portion, ends)| Standing {
                process_id,
                counted: Window::of_slots(slots),
                portion,
                ends,
            });
        Ok(Standings(standings.collect()))
    }

    /// As it is stored: a list of process, slots, portion and its end.
    pub fn write(&self) -> String {
        let stored = self.0.iter().map(|standing| {
            let slots: Vec<(i64, u32)> = standing.counted.slots().collect();
            serde_json::json!([standing.process_id, slots, standing.portion, standing.ends])
        });
        serde_json::Value::from_iter(stored).to_string()
    }
}

impl Standing {
    /// A portion that nobody told of in time counts as used; what was counted a minute ago goes.
    fn pass(&mut self, now: Micros) {
        if self.ends + TOLD_WITHIN <= now && self.portion > 0 {
            let all = u32::try_from(self.portion).unwrap_or(u32::MAX);
            let slot = (Window::slot(self.ends), all);
            self.counted = Window::of_slots(self.counted.slots().chain([slot]));
            self.portion = 0;
        }
        self.counted.advance(now);
    }

    fn counts(&self) -> bool {
        self.portion > 0 || self.counted.used() > 0
    }
}

/// An equal share of the room with one share more than there are processes, so that one that comes
/// finds something; more, if a request that waits needs it and it fits.
fn granted(ask: &Ask, room: u64, processes: usize) -> u64 {
    if ask.most == 0 {
        return 0;
    }
    let share = room / (processes as u64 + 1);
    let mut needed = [ask.most, ask.least].into_iter();
    match needed.find(|cost| needs(*cost, ask) <= room) {
        Some(cost) => share.max(needs(cost, ask)),
        None => share,
    }
}

/// The cheapest of the requests that wait that does not fit.
fn refused(ask: &Ask, room: u64) -> Option<u32> {
    let mut costs = [ask.least, ask.most].into_iter();
    costs.find(|cost| *cost > 0 && needs(*cost, ask) > room)
}

fn needs(cost: u32, ask: &Ask) -> u64 {
    u64::from(cost).saturating_sub(ask.left)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Micros = 1_000_000;

    fn ask(counted: &[(i64, u32)], left: u64, limit: u32, cost: u32) -> Ask {
        Ask {
            counted: Window::of_slots(counted.iter().copied()),
            left,
            limit,
            least: cost,
            most: cost,
        }
    }

    #[test]
    fn portions_get_smaller_as_the_limit_is_used_up_and_never_exceed_it() {
        let (mut standings, mut all) = (Standings::default(), 0);
        let mut left = [0, 0, 0];
        for turn in 0..1000 {
            let process = turn % 3;
            let asked = ask(&[], left[process], 100, left[process] as u32 + 1);
            let settled = standings.settle(&format!("prc_{process}"), &asked, 3, 0);
            left[process] += settled.granted;
            all += settled.granted;
            assert!(all <= 100);
        }
        assert_eq!(all, 100, "to the last one");
        let told = standings.settle("prc_0", &ask(&[], left[0], 100, 100), 3, 0);
        assert_eq!(told.granted, 0);
        assert_eq!(told.refused, Some((100, ASKED_AGAIN)), "others still may");
    }

    #[test]
    fn a_portion_that_nobody_tells_of_counts_as_used_and_one_that_is_given_back_does_not() {
        let mut standings = Standings::default();
        let granted = standings.settle("killed", &ask(&[], 0, 9, 1), 2, 0).granted;
        assert_eq!(granted, 3);
        let granted = standings.settle("idle", &ask(&[], 0, 9, 1), 2, 0).granted;
        assert_eq!(granted, 2);
        standings.settle("idle", &ask(&[], 0, 9, 0), 2, SECOND);
        let told = standings.settle("busy", &ask(&[], 0, 9, 6), 2, SECOND);
        assert_eq!((told.granted, told.others.used()), (6, 0));
        let told = standings.settle("busy", &ask(&[(2, 6)], 0, 9, 4), 2, 3 * SECOND);
        let again = 3 * SECOND + ASKED_AGAIN;
        assert_eq!(
            told.refused,
            Some((4, again)),
            "it may still tell of its portion"
        );
        let now = GOOD_FOR + TOLD_WITHIN;
        let told = standings.settle("busy", &ask(&[(2, 6)], 0, 9, 4), 2, now);
        assert_eq!(told.others.used(), 3, "its portion ended without a word");
        let (cost, at) = told.refused.unwrap();
        assert_eq!((cost, told.granted), (4, 0));
        assert_eq!(
            at,
            61 * SECOND + 500_000,
            "when the first of them are a minute old"
        );
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let mut standings = Standings::default();
        standings.settle("prc_1", &ask(&[(1, 2), (3, 4)], 5, 100, 1), 1, 2 * SECOND);
        standings.settle("prc_2", &ask(&[(2, 7)], 0, 100, 0), 1, 2 * SECOND);
        assert_eq!(Standings::read(&standings.write()).unwrap(), standings);
        assert!(Standings::read("{}").is_err());
    }
}
