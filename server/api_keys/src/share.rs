//! What this process knows of the requests of one subject.

use hub_core::clock::Micros;
use hub_core::window::Window;
use tokio::sync::watch;

use crate::portions::{Ask, Settled};

/// For so long what the others counted is told without asking them again.
const FRESH: Micros = 1_000_000;
/// After the database did not answer, it is not asked for so long.
const FAILED_FOR: Micros = 1_000_000;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// Requests that were let through here.
    own: Window,
    /// Those of the other processes, as they were last told.
    others: Window,
    /// Requests that may be let through here without asking, until a time.
    portion: u64,
    ends: Micros,
    settled_at: Option<Micros>,
    failed_at: Option<Micros>,
    refused: Option<Refused>,
    /// The others are being asked.
    flight: Option<Flight>,
}

/// Requests of a cost do not fit below a limit from one time to another.
#[derive(Debug, Clone, Copy)]
struct Refused {
    limit: u32,
    cost: u32,
    since: Micros,
    until: Micros,
}

#[derive(Debug)]
struct Flight {
    /// Dropped at the end of the flight, which wakes up all that wait for it.
    told: watch::Sender<()>,
    limit: u32,
    least: u32,
    most: u32,
}

/// Whether a request fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    Yes,
    /// Not before this time.
    No(Micros),
    /// The other processes have to be asked.
    Unknown,
    /// As far as this process knows; the others cannot be asked.
    Perhaps,
}

impl Share {
    /// Whether requests fit that are about to be counted, or are only asked about.
    pub fn fits(&mut self, limit: u32, cost: u32, counts: bool, now: Micros) -> Fit {
        if let Fit::No(at) = self.fits_here(limit, cost, now) {
            return Fit::No(at);
        }
        let failed = self.failed_at.map(|at| now - at);
        if failed.is_some_and(|since| (0..FAILED_FOR).contains(&since)) {
            return Fit::Perhaps;
        }
        if !counts {
            let told = self.settled_at.map(|at| now - at);
            let is_fresh = told.is_some_and(|since| (0..FRESH).contains(&since));
            return if is_fresh { Fit::Yes } else { Fit::Unknown };
        }
        if now < self.ends && self.portion >= u64::from(cost) {
            return Fit::Yes;
        }
        match self.refused {
            Some(refused) if refused.is_about(limit, cost, now) => Fit::No(refused.until),
            _ => Fit::Unknown,
        }
    }

    /// The same by what is known here, where there are no others.
    pub fn fits_here(&mut self, limit: u32, cost: u32, now: Micros) -> Fit {
        self.advance(now);
        if cost == 0 || self.used() + u64::from(cost) <= u64::from(limit) {
            return Fit::Yes;
        }
        let all = self.own.slots().chain(self.others.slots());
        Fit::No(Window::of_slots(all).fits_at(cost, limit, now))
    }

    /// Counts requests that fit.
    pub fn count(&mut self, cost: u32, now: Micros) {
        self.own.add(cost, now);
        self.portion = self.portion.saturating_sub(u64::from(cost));
    }

    /// Requests of the last minute.
    pub fn used(&self) -> u64 {
        self.own.used() + self.others.used()
    }

    /// When all of them are a minute old.
    pub fn reset_at(&self, now: Micros) -> Micros {
        self.own.reset_at(now).max(self.others.reset_at(now))
    }

    /// Drops what is older than a minute.
    pub fn advance(&mut self, now: Micros) {
        self.own.advance(now);
        self.others.advance(now);
    }

    /// Whether there is something to remember.
    pub fn counts(&self) -> bool {
        self.used() > 0 || self.portion > 0 || self.flight.is_some()
    }

    /// A portion whose time is over, and which is not told of yet.
    pub fn is_over(&self, now: Micros) -> bool {
        self.portion > 0 && self.ends <= now && self.flight.is_none()
    }

    /// Ends the portion before its time.
    pub fn give_up(&mut self, now: Micros) {
        self.ends = self.ends.min(now);
    }

    /// Wants the others to be asked; true if nobody did before.
    pub fn ask(&mut self, limit: u32, cost: u32) -> (watch::Receiver<()>, bool) {
        if let Some(flight) = &mut self.flight {
            flight.limit = flight.limit.max(limit);
            flight.most = flight.most.max(cost);
            if cost > 0 && (flight.least == 0 || cost < flight.least) {
                flight.least = cost;
            }
            return (flight.told.subscribe(), false);
        }
        let (told, answer) = watch::channel(());
        self.flight = Some(Flight {
            told,
            limit,
            least: cost,
            most: cost,
        });
        (answer, true)
    }

    /// What the others are told and asked now.
    pub fn begin(&mut self, now: Micros) -> Ask {
        self.advance(now);
        if self.ends <= now {
            self.portion = 0;
        }
        let flight = self.flight.as_ref();
        Ask {
            counted: self.own.clone(),
            left: self.portion,
            limit: flight.map_or(0, |flight| flight.limit),
            least: flight.map_or(0, |flight| flight.least),
            most: flight.map_or(0, |flight| flight.most),
        }
    }

    /// What came of it; nothing, if the database did not answer.
    pub fn land(&mut self, ask: &Ask, settled: Option<Settled>, now: Micros) {
        self.flight = None;
        let Some(settled) = settled else {
            self.failed_at = Some(now);
            return;
        };
        self.failed_at = None;
        self.settled_at = Some(now);
        self.others = settled.others;
        self.portion += settled.granted;
        self.ends = settled.ends;
        self.refused = settled.refused.map(|(cost, until)| Refused {
            limit: ask.limit,
            cost,
            since: now,
            until,
        });
    }
}

impl Refused {
    fn is_about(&self, limit: u32, cost: u32, now: Micros) -> bool {
        self.limit == limit && self.cost <= cost && (self.since..self.until).contains(&now)
    }
}
