//! A consumer's place: what it may still be given, and the bell by which subscriptions call it.
//!
//! One stream can serve the subscription of its name of many tenants. Each that has something to
//! deliver rings the bell once and waits in line; the stream serves the line in turn, so that a
//! busy tenant does not delay the others.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::group::Group;
use crate::leasing::MemberId;

/// Bytes that may be outstanding, unless the consumer says otherwise.
const BYTES: i64 = 4 << 20;
/// Events that may be outstanding, unless the consumer says otherwise.
const EVENTS: i64 = 100;

/// The place of one stream, or of one pull.
#[derive(Debug)]
pub(crate) struct Seat {
    /// Its number, unique in this process.
    pub(crate) member: MemberId,
    /// Its name, for people.
    pub(crate) name: String,
    /// It serves the subscriptions of its name of all tenants.
    pub(crate) all_tenants: bool,
    line: Mutex<Line>,
    called: Notify,
    events: AtomicI64,
    bytes: AtomicI64,
}

/// Who waits to be served.
#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Arc<Group>>,
    /// Ids of those.
    numbers: HashSet<u64>,
    /// Something to be told of one of them: gaps, states.
    news: VecDeque<(Arc<Group>, News)>,
}

/// What a subscription tells its consumers beside events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// Positions were lost to retention before they were delivered.
    Gap { from: u64, to: u64 },
    /// It was paused, resumed, its product ended or began.
    State,
    /// Everything is settled up to the end of the log, or is not any more.
    CaughtUp(bool),
    /// It is not at work here any more.
    Closed,
}

/// News that wait for one consumer; with more than that, states go, and each subscription at work
/// has one gap and one or two of the rest.
const NEWS_MAX: usize = 1000;

/// Adds a gap to one of the same subscription that is still to be told, of all that are waiting
/// with the numbers of their subscriptions: so no gap is ever dropped. Retention has passed all
/// that is between the two.
fn widen<'a>(
    mut waiting: impl Iterator<Item = (u64, &'a mut News)>,
    number: u64,
    told: &News,
) -> bool {
    let News::Gap { from, to } = told else {
        return false;
    };
    let gap = waiting.find_map(|(of, news)| match news {
        News::Gap { from, to } if of == number => Some((from, to)),
        _ => None,
    });
    let Some((first, last)) = gap else {
        return false;
    };
    (*first, *last) = ((*first).min(*from), (*last).max(*to));
    true
}

impl Seat {
    /// A new one, with the default credit.
    pub(crate) fn new(name: &str, all_tenants: bool) -> Arc<Seat> {
        // 0 and 1 are for those that are no streams.
        static NEXT: AtomicU64 = AtomicU64::new(16);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = match name {
            "" => format!("consumer-{number}"),
            name => name.to_owned(),
        };
        Arc::new(Seat {
            member: MemberId(number),
            name,
            all_tenants,
            line: Mutex::default(),
            called: Notify::new(),
            events: AtomicI64::new(EVENTS),
            bytes: AtomicI64::new(BYTES),
        })
    }

    /// Replaces the credit `before` by another one; what is outstanding stays counted. 0 bytes
    /// means the default.
    pub(crate) fn set_credit(&self, before: (i64, i64), events: u32, bytes: u64) -> (i64, i64) {
        let bytes = match bytes {
            0 => BYTES,
            bytes => i64::try_from(bytes).unwrap_or(i64::MAX / 2),
        };
        let credit = (i64::from(events), bytes);
        self.events.fetch_add(credit.0 - before.0, Ordering::AcqRel);
        self.bytes.fetch_add(credit.1 - before.1, Ordering::AcqRel);
        self.called.notify_one();
        credit
    }

    /// The credit of a new seat.
    pub(crate) fn default_credit() -> (i64, i64) {
        (EVENTS, BYTES)
    }

    /// Events and bytes that it may be given now; none if one of them is used up.
    pub(crate) fn credit_left(&self) -> Option<(usize, u64)> {
        let events = self.events.load(Ordering::Acquire);
        let bytes = self.bytes.load(Ordering::Acquire);
        match (usize::try_from(events), u64::try_from(bytes)) {
            (Ok(events), Ok(bytes)) if events > 0 && bytes > 0 => Some((events, bytes)),
            _ => None,
        }
    }

    /// Events and bytes that are outstanding of this credit.
    pub(crate) fn outstanding(&self, credit: (i64, i64)) -> (u64, u64) {
        let events = credit.0 - self.events.load(Ordering::Acquire);
        let bytes = credit.1 - self.bytes.load(Ordering::Acquire);
        (events.max(0).unsigned_abs(), bytes.max(0).unsigned_abs())
    }

    /// Whether nothing is outstanding of this credit.
    pub(crate) fn holds_nothing(&self, credit: (i64, i64)) -> bool {
        self.events.load(Ordering::Acquire) == credit.0
    }

    /// Events were handed over.
    pub(crate) fn charge(&self, events: usize, bytes: u64) {
        self.events.fetch_sub(events as i64, Ordering::AcqRel);
        self.bytes.fetch_sub(bytes as i64, Ordering::AcqRel);
    }

    /// Leases ended.
    pub(crate) fn give_back(&self, events: usize, bytes: u64) {
        self.events.fetch_add(events as i64, Ordering::AcqRel);
        self.bytes.fetch_add(bytes as i64, Ordering::AcqRel);
        self.called.notify_one();
    }

    /// A subscription has something to deliver; it waits in line once.
    pub(crate) fn ring(&self, group: &Arc<Group>) {
        let mut line = self.lock();
        if line.numbers.insert(group.number) {
            line.waiting.push_back(group.clone());
            drop(line);
            self.called.notify_one();
        }
    }

    /// A subscription has something to say.
    pub(crate) fn tell(&self, group: &Arc<Group>, news: News) {
        let mut line = self.lock();
        if line.news.len() >= NEWS_MAX {
            line.news.retain(|(_, news)| *news != News::State);
        }
        if line.news.len() >= NEWS_MAX && matches!(news, News::CaughtUp(_) | News::Closed) {
            // What it said last counts, and is never dropped: one or two for each that is at work.
            let number = group.number;
            let same = |of: &Arc<Group>| of.number == number;
            line.news
                .retain(|(of, news)| !(same(of) && matches!(news, News::CaughtUp(_))));
        }
        if line.news.len() >= NEWS_MAX {
            let waiting = line.news.iter_mut().rev();
            let waiting = waiting.map(|(of, news)| (of.number, news));
            if widen(waiting, group.number, &news) {
                return;
            }
        }
        line.news.push_back((group.clone(), news));
        drop(line);
        self.called.notify_one();
    }

    /// Something has changed that its stream should look at.
    pub(crate) fn stir(&self) {
        self.called.notify_one();
    }

    /// The next in line.
    pub(crate) fn next(&self) -> Option<Arc<Group>> {
        let mut line = self.lock();
        let group = line.waiting.pop_front()?;
        line.numbers.remove(&group.number);
        Some(group)
    }

    /// How many are in line.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Waits until something has changed.
    pub(crate) async fn stirred(&self) {
        self.called.notified().await;
    }

    /// The next thing to be said.
    pub(crate) fn news(&self) -> Option<(Arc<Group>, News)> {
        self.lock().news.pop_front()
    }

    /// Waits until there is news, or somebody in line while there is credit. Who serves all tenants
    /// is woken by any change: there may be credit for those who wait in other processes.
    pub(crate) async fn called(&self) {
        loop {
            {
                let line = self.lock();
                let served = !line.waiting.is_empty() && self.credit_left().is_some();
                if served || !line.news.is_empty() {
                    return;
                }
            }
            self.called.notified().await;
            if self.all_tenants {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_added_to_the_one_of_its_subscription_that_is_still_to_be_told() {
        let gap = |from, to| News::Gap { from, to };
        let mut waiting = [(1, gap(1, 3)), (2, gap(5, 5)), (1, News::State)];
        let mut add = |number, news: News| {
            let waiting = waiting.iter_mut();
            widen(waiting.map(|(of, news)| (*of, news)), number, &news)
        };
        assert!(add(1, gap(7, 9)));
        assert!(add(2, gap(4, 4)));
        assert!(!add(3, gap(1, 1)), "it has none yet");
        assert!(!add(1, News::CaughtUp(true)));
        assert_eq!(waiting, [(1, gap(1, 9)), (2, gap(4, 5)), (1, News::State)]);
    }
}
