//! Rate limits: how many requests a key, and all keys of a tenant together, may make in a minute.
//!
//! Invariants:
//! - Of the limits of a request all are counted or none; a denial counts nothing.
//! - What is told of a limit is told of the one with the least left.
//! - Only keys that are known have a window, so nobody fills the memory with keys that he made up.
//! - On SQLite this process counts alone. On PostgreSQL several may, so each lets through what it
//!   has a portion for (`portions.rs`), and asks the others when that is used up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ahash::HashMap;
use hub_core::clock::Micros;
use hub_core::window;
use tokio::sync::watch;

use crate::key::Record;
use crate::portions::{Ask, Settled};
use crate::share::{Fit, Share};

/// Subjects in memory; past this, a key or tenant that has none is let through uncounted.
const WINDOWS_MAX: usize = 200_000;

/// Whose requests are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    /// Those of a key and of all that it was rotated from.
    Family(Arc<str>),
    /// Those of all keys of a tenant, by its number.
    Tenant(i64),
}

impl Subject {
    /// Its name in the database.
    pub fn name(&self) -> String {
        match self {
            Subject::Family(first) => format!("key:{first}"),
            Subject::Tenant(number) => format!("tenant:{number}"),
        }
    }
}

/// A limit that holds for a request.
#[derive(Debug, Clone)]
pub(crate) struct Limit {
    pub subject: Subject,
    pub per_minute: u32,
    /// Id of the key if it is the key's own.
    pub key_id: Option<Arc<str>>,
}

/// A limit and what is left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Left {
    pub limit: u32,
    pub remaining: u32,
    /// When the full limit is available again.
    pub reset_at: Micros,
    pub key_id: Option<Arc<str>>,
}

/// Why a request was denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It fits again after so long.
    For(Duration),
    /// It counts as more than this limit ever lets through in a minute.
    Never(Left),
}

/// What became of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The limit with the least left; none if there is no limit.
    pub left: Option<Left>,
    /// It was denied.
    pub denied: Option<Denied>,
    /// It was let through without being counted.
    pub degraded: bool,
}

/// What was decided, or who waits for what.
pub(crate) enum Attempt {
    Decided(Taken),
    /// To be tried again when all of these have ended.
    Asks(Vec<watch::Receiver<()>>),
}

/// What this process knows of all subjects.
pub(crate) struct Limiter {
    state: Mutex<State>,
    /// Other processes may count too.
    shared: bool,
}

#[derive(Default)]
struct State {
    shares: HashMap<Subject, Share>,
    /// Of these the other processes are to be asked.
    waiting: VecDeque<Subject>,
}

impl Limiter {
    /// With `shared`, other processes are asked before requests are let through.
    pub fn new(shared: bool) -> Self {
        Limiter {
            state: Mutex::default(),
            shared,
        }
    }

    /// Counts `cost` requests against all limits, or denies them; with `dry_run` it only tells.
    pub fn take(&self, limits: &[Limit], cost: u32, dry_run: bool, now: Micros) -> Attempt {
        let mut state = self.state();
        let counts = !dry_run && cost > 0;
        let fits: Vec<Fit> = limits
            .iter()
            .map(|limit| match self.shared {
                true => state.fits(limit, cost, counts, now),
                false => state.fits_here(limit, cost, now),
            })
            .collect();
        let is_denied = fits.iter().any(|fit| matches!(fit, Fit::No(_)));
        if !is_denied && fits.contains(&Fit::Unknown) {
            let cost = if counts { cost } else { 0 };
            let unknown = limits.iter().zip(&fits);
            let unknown = unknown.filter(|(_, fit)| **fit == Fit::Unknown);
            let asks = unknown.map(|(limit, _)| state.ask(limit, cost));
            return Attempt::Asks(asks.collect());
        }
        Attempt::Decided(state.decide(limits, &fits, (cost, counts), now))
    }

    /// The same by what is known here.
    pub fn take_here(&self, limits: &[Limit], cost: u32, dry_run: bool, now: Micros) -> Taken {
        let mut state = self.state();
        let fits = limits.iter().map(|limit| state.fits_here(limit, cost, now));
        let fits: Vec<Fit> = fits.collect();
        let taken = state.decide(limits, &fits, (cost, !dry_run), now);
        Taken {
            degraded: self.shared,
            ..taken
        }
    }

    /// Forgets subjects without requests.
    pub fn sweep(&self, now: Micros) {
        let mut state = self.state();
        state.sweep(now);
        metrics::gauge!("hub_rate_windows").set(state.shares.len() as f64);
    }

    /// The others are to be told of portions whose time is over; at the end, of all.
    pub fn give_back(&self, at_the_end: bool, now: Micros) {
        let state = &mut *self.state();
        for (subject, share) in &mut state.shares {
            if at_the_end {
                share.give_up(now);
            }
            if share.is_over(now) && share.ask(0, 0).1 {
                state.waiting.push_back(subject.clone());
            }
        }
    }

    /// The subjects that are asked about next, with what the others are told.
    pub fn begin(&self, subjects_max: usize, now: Micros) -> Vec<(Subject, Ask)> {
        let state = &mut *self.state();
        let count = state.waiting.len().min(subjects_max);
        let next = state.waiting.drain(..count);
        let shares = &mut state.shares;
        let asks = next.filter_map(|subject| {
            let ask = shares.get_mut(&subject)?.begin(now);
            Some((subject, ask))
        });
        asks.collect()
    }

    /// What the others answered; nothing, if they could not be asked.
    pub fn land(&self, subject: &Subject, ask: &Ask, settled: Option<Settled>, now: Micros) {
        if let Some(share) = self.state().shares.get_mut(subject) {
            share.land(ask, settled, now);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fits(&mut self, limit: &Limit, cost: u32, counts: bool, now: Micros) -> Fit {
        if cost > limit.per_minute {
            return self.fits_here(limit, cost, now);
        }
        let is_full = self.shares.len() >= WINDOWS_MAX;
        match self.shares.get_mut(&limit.subject) {
            Some(share) => share.fits(limit.per_minute, cost, counts, now),
            None if is_full => Fit::Perhaps,
            None => Fit::Unknown,
        }
    }

    fn fits_here(&mut self, limit: &Limit, cost: u32, now: Micros) -> Fit {
        match self.shares.get_mut(&limit.subject) {
            Some(share) => share.fits_here(limit.per_minute, cost, now),
            None if cost > limit.per_minute => Fit::No(now + window::LENGTH),
            None => Fit::Yes,
        }
    }

    fn ask(&mut self, limit: &Limit, cost: u32) -> watch::Receiver<()> {
        let share = self.shares.entry(limit.subject.clone()).or_default();
        let (answer, is_first) = share.ask(limit.per_minute, cost);
        if is_first {
            self.waiting.push_back(limit.subject.clone());
        }
        answer
    }

    /// Counts what counts against all limits, unless one of them has no room.
    fn decide(
        &mut self,
        limits: &[Limit],
        fits: &[Fit],
        (asked, counts): (u32, bool),
        now: Micros,
    ) -> Taken {
        let cost = if counts { asked } else { 0 };
        let full = fits.iter().filter_map(|fit| match fit {
            Fit::No(at) => Some(*at),
            _ => None,
        });
        let full = full.max();
        let mut degraded = fits.contains(&Fit::Perhaps);
        if full.is_none() && cost > 0 {
            for limit in limits {
                degraded |= !self.count(&limit.subject, cost, now);
            }
        }
        let lefts = limits.iter().zip(fits).map(|(limit, fit)| {
            let mut left = left(&self.shares, limit, now);
            if matches!(fit, Fit::No(_)) && cost > 0 {
                // Others may let through what is left here.
                left.remaining = left.remaining.min(cost - 1);
            }
            left
        });
        let denied = full.map(|at| {
            let never = lefts.clone().filter(|left| asked > left.limit);
            let wait = Duration::from_micros((at - now).max(1).unsigned_abs());
            let never = never.min_by_key(|left| left.limit);
            never.map_or(Denied::For(wait), Denied::Never)
        });
        Taken {
            left: lefts.min_by_key(|left| left.remaining),
            degraded: degraded && denied.is_none(),
            denied,
        }
    }

    /// False if there is no room for another subject.
    fn count(&mut self, of: &Subject, cost: u32, now: Micros) -> bool {
        let is_full = self.shares.len() >= WINDOWS_MAX;
        let share = match self.shares.get_mut(of) {
            None if is_full => return false,
            None => self.shares.entry(of.clone()).or_default(),
            Some(share) => share,
        };
        share.count(cost, now);
        true
    }

    fn sweep(&mut self, now: Micros) {
        self.shares.retain(|_, share| {
            share.advance(now);
            share.counts()
        });
    }
}

fn left(shares: &HashMap<Subject, Share>, limit: &Limit, now: Micros) -> Left {
    let share = shares.get(&limit.subject);
    let used = share.map_or(0, Share::used);
    let remaining = u64::from(limit.per_minute).saturating_sub(used);
    Left {
        limit: limit.per_minute,
        remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
        reset_at: share.map_or(now, |share| share.reset_at(now)),
        key_id: limit.key_id.clone(),
    }
}

/// The limits of a request with this key for this tenant: the key's own if it has one, then the
/// tenant's. A key that serves all tenants has a tenant's limit only where a tenant is named.
pub(crate) fn of(record: &Record, tenant_no: Option<i64>, tenant_limit: u32) -> Vec<Limit> {
    let mut limits = Vec::with_capacity(2);
    if record.limits.own > 0 {
        limits.push(Limit {
            subject: Subject::Family(record.family.clone()),
            per_minute: record.limits.own,
            key_id: Some(record.caller.key_id.clone()),
        });
    }
    if let Some(number) = tenant_no {
        limits.push(Limit {
            subject: Subject::Tenant(number),
            per_minute: tenant_limit,
            key_id: None,
        });
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::portions::Standings;

    const SECOND: Micros = 1_000_000;

    fn limits(own: u32, tenant: u32) -> Vec<Limit> {
        let own = Limit {
            subject: Subject::Family("key_1".into()),
            per_minute: own,
            key_id: Some("key_1".into()),
        };
        let tenant = Limit {
            subject: Subject::Tenant(1),
            per_minute: tenant,
            key_id: None,
        };
        vec![own, tenant]
    }

    fn remaining(taken: &Taken) -> (u32, bool) {
        let left = taken.left.as_ref().unwrap();
        (left.remaining, left.key_id.is_some())
    }

    #[test]
    fn the_limit_with_the_least_left_is_told() {
        let limiter = Limiter::new(false);
        let told = |own| remaining(&limiter.take_here(&limits(own, 100), 1, false, 0));
        assert_eq!(told(5), (4, true));
        assert_eq!(told(500), (98, false));
    }

    #[test]
    fn both_limits_are_counted_or_none() {
        let limiter = Limiter::new(false);
        for _ in 0..2 {
            assert_eq!(limiter.take_here(&limits(2, 10), 1, false, 0).denied, None);
        }
        for _ in 0..50 {
            let denied = limiter.take_here(&limits(2, 10), 1, false, SECOND);
            assert!(denied.denied.is_some());
            assert_eq!(remaining(&denied), (0, true));
        }
        let tenant = limiter.take_here(&limits(2, 10)[1..], 0, false, SECOND);
        assert_eq!(remaining(&tenant), (8, false), "denials count nothing");
    }

    #[test]
    fn a_cost_fits_whole_or_not_at_all_and_a_dry_run_counts_nothing() {
        let limiter = Limiter::new(false);
        let only = &limits(0, 10)[1..];
        assert_eq!(remaining(&limiter.take_here(only, 7, true, 0)), (10, false));
        assert_eq!(remaining(&limiter.take_here(only, 7, false, 0)), (3, false));
        let denied = limiter.take_here(only, 4, false, SECOND);
        assert_eq!(remaining(&denied), (3, false));
        let wait = Duration::from_millis(59_500);
        assert_eq!(denied.denied, Some(Denied::For(wait)));
        assert_eq!(
            remaining(&limiter.take_here(only, 3, false, SECOND)),
            (0, false)
        );
        assert_eq!(limiter.take_here(only, 0, false, SECOND).denied, None);
    }

    #[test]
    fn what_counts_as_more_than_a_limit_never_fits_and_the_smallest_limit_is_told() {
        for (shared, dry_run) in [(false, false), (false, true), (true, false), (true, true)] {
            let limiter = Limiter::new(shared);
            let Attempt::Decided(taken) = limiter.take(&limits(5, 10), 11, dry_run, 0) else {
                panic!("asks the others");
            };
            let Some(Denied::Never(limit)) = taken.denied else {
                panic!("{taken:?}");
            };
            assert_eq!((limit.limit, limit.key_id.as_deref()), (5, Some("key_1")));
            let tenant = limiter.take_here(&limits(20, 10), 11, dry_run, 0).denied;
            assert!(matches!(
                tenant,
                Some(Denied::Never(Left { limit: 10, .. }))
            ));
        }
    }

    #[test]
    fn windows_that_are_empty_take_no_memory() {
        let limiter = Limiter::new(false);
        limiter.take_here(&limits(5, 5), 1, false, 0);
        assert_eq!(limiter.state().shares.len(), 2);
        limiter.sweep(59 * SECOND);
        assert_eq!(limiter.state().shares.len(), 2);
        limiter.sweep(61 * SECOND);
        assert_eq!(limiter.state().shares.len(), 0);
    }

    /// Asks the others, in a process that is told what they know.
    fn settle(process: &Limiter, name: &str, standings: &mut Standings, now: Micros) {
        for (subject, ask) in process.begin(8, now) {
            let settled = standings.settle(name, &ask, 3, now);
            process.land(&subject, &ask, Some(settled), now);
        }
    }

    /// Takes one request, asking the others as often as it must.
    fn take(process: &Limiter, name: &str, standings: &mut Standings, now: Micros) -> bool {
        let only = &limits(0, 100)[1..];
        loop {
            match process.take(only, 1, false, now) {
                Attempt::Decided(taken) => return taken.denied.is_none(),
                Attempt::Asks(_) => settle(process, name, standings, now),
            }
        }
    }

    #[test]
    fn what_a_process_does_not_need_of_its_portion_another_uses_in_the_same_minute() {
        let (idle, busy) = (Limiter::new(true), Limiter::new(true));
        let mut standings = Standings::default();
        let mut allowed = u32::from(take(&idle, "idle", &mut standings, 0));
        // A burst comes after the portion has ended, and before its process has told.
        for turn in 0..20 {
            let now = 2_050_000 + turn * 100_000;
            for _ in 0..20 {
                allowed += u32::from(take(&busy, "busy", &mut standings, now));
            }
            if turn % 5 == 4 {
                idle.give_back(false, now);
                settle(&idle, "idle", &mut standings, now);
            }
        }
        assert_eq!(allowed, 100);
    }

    #[test]
    fn three_processes_let_through_the_limit_of_each_minute_and_no_more() {
        let names = ["one", "two", "three"];
        let processes = names.map(|_| Limiter::new(true));
        let (mut standings, mut allowed) = (Standings::default(), Vec::new());
        let mut now = 0;
        for turn in 0..20_000usize {
            now += 20_000 + (turn as Micros * 7919) % 30_000;
            let at = turn * turn % 7 % 3;
            let (process, name) = (&processes[at], names[at]);
            if turn % 15 == 0 {
                process.give_back(false, now);
                settle(process, name, &mut standings, now);
            }
            if take(process, name, &mut standings, now) {
                allowed.push(now);
            }
        }
        for (first, later) in allowed.iter().zip(&allowed[100..]) {
            assert!(later - first >= window::LENGTH, "{first} {later}");
        }
        let minutes = now / (window::LENGTH + 500_000);
        assert!(
            allowed.len() as i64 >= 90 * minutes,
            "{} {minutes}",
            allowed.len()
        );
    }

    #[test]
    fn of_many_threads_no_more_are_let_through_than_allowed() {
        let limiter = Limiter::new(false);
        let only = &limits(0, 1000)[1..];
        let allowed: usize = std::thread::scope(|scope| {
            let run = || {
                let taken = (0..500).map(|_| limiter.take_here(only, 1, false, 0));
                taken.filter(|taken| taken.denied.is_none()).count()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(allowed, 1000);
    }
}
