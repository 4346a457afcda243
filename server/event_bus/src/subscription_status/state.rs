//! The most important fact about a subscription, as a state and a sentence.

use hub_core::clock::{Micros, timestamp};
use hub_proto::hub::event_bus::v1::{BlockedKey, SubscriptionState};

use super::Rest;
use crate::owners::Live;
use crate::subscriptions::Stored;

/// The part of the retention within which the removal of unsettled events is a risk.
pub(crate) const RISK_PART: Micros = 5;

/// What is said of one whose owner does not answer. It has consumers, or will be let go.
pub(crate) const SILENT: &str = "It is at work at another server of the hub, which did not answer: \
                                 its consumers are not known now.";

/// All that decides.
pub(super) struct Facts<'a> {
    pub(super) now: Micros,
    pub(super) stored: &'a Stored,
    /// The tenant's subscription to the product is active.
    pub(super) entitled: bool,
    /// A default one that no consumer has ever used.
    pub(super) dormant: bool,
    /// When retention reaches the oldest unsettled event.
    pub(super) deadline: Option<Micros>,
    /// How long events are kept.
    pub(super) retention: Micros,
    pub(super) live: &'a Live,
    pub(super) backlog: u64,
    /// Events of the backlog that wait for nothing but a consumer.
    pub(super) free: u64,
    /// Of both, those of which it is not known whether they are there.
    pub(super) guessed: u64,
    /// What is left beside the backlog.
    pub(super) rest: Rest,
    /// The key that is held back the longest.
    pub(super) blocking: Option<&'a BlockedKey>,
}

impl Facts<'_> {
    /// The first that holds: what stops delivery by decision, then what loses events, then what
    /// holds them back, then how far it is.
    pub(super) fn state(&self) -> (SubscriptionState, String) {
        use SubscriptionState as State;
        let pause = self.stored.pause.as_ref();
        if !self.entitled {
            let product = &self.stored.product;
            let reason = format!("The tenant's subscription to {product} is not active.");
            return (State::NotEntitled, reason);
        }
        if pause.is_some_and(|pause| pause.holds(self.now)) {
            return (State::Paused, self.paused());
        }
        if self.dormant {
            return (State::Dormant, "No consumer has used it yet.".to_owned());
        }
        if let Some(deadline) = self.deadline.filter(|deadline| self.is_risk(*deadline)) {
            let at = timestamp(deadline);
            let reason = match (self.rest, self.live.oldest_unsettled) {
                (Rest::Unknown(seq), None) => {
                    format!("{} Those pass retention from {at} on.", unknown(seq))
                }
                _ => format!("The oldest unsettled event passes retention at {at}."),
            };
            return (State::RetentionRisk, reason);
        }
        if self.live.window_full {
            return (State::WindowFull, self.window_full());
        }
        if self.live.failing {
            let reason = match self.live.last_error.as_str() {
                "" => "Every attempt of the last minute failed.".to_owned(),
                error => {
                    format!("Every attempt of the last minute failed, the last one by: {error}")
                }
            };
            return (State::Failing, reason);
        }
        if self.live.is_silent {
            let (state, before) = match self.backlog {
                0 => (State::Live, String::new()),
                backlog => (State::CatchingUp, self.waits(backlog) + " "),
            };
            return (state, before + SILENT);
        }
        if self.backlog > 0 && self.live.members.is_empty() {
            let reason = match self.waiting(self.backlog) {
                Ok(waiting) => format!("{waiting} and no consumer is connected."),
                Err(unknown) => format!("{unknown} No consumer is connected."),
            };
            return (State::NoConsumer, reason);
        }
        if self.free > 0 {
            return (State::CatchingUp, self.waits(self.free));
        }
        (State::Live, String::new())
    }

    fn waits(&self, count: u64) -> String {
        self.waiting(count)
            .map_or_else(|unknown| unknown, |waiting| waiting + ".")
    }

    /// That so many events wait, without a full stop; or that it is not known whether any do.
    fn waiting(&self, count: u64) -> Result<String, String> {
        let count = count.saturating_sub(self.guessed);
        let at_least = match self.rest {
            Rest::Unknown(seq) if count == 0 => return Err(unknown(seq)),
            Rest::Nothing => "",
            Rest::More | Rest::Unknown(_) => "At least ",
        };
        Ok(match count {
            1 => format!("{at_least}1 event waits"),
            count => format!("{at_least}{count} events wait"),
        })
    }

    fn is_risk(&self, deadline: Micros) -> bool {
        deadline.saturating_sub(self.now) < self.retention / RISK_PART
    }

    fn paused(&self) -> String {
        let Some(pause) = &self.stored.pause else {
            return String::new();
        };
        let until = match pause.until {
            Some(until) => format!(" until {}", timestamp(until)),
            None => String::new(),
        };
        let reason = match pause.reason.as_str() {
            "" => ".".to_owned(),
            reason => format!(": {reason}"),
        };
        let since = timestamp(pause.since);
        format!("Paused by {} since {since}{until}{reason}", pause.by)
    }

    fn window_full(&self) -> String {
        let unsettled = self.live.unsettled;
        match self.blocking {
            Some(key) => format!(
                "{unsettled} events are unsettled behind {}, which failed {} times; settle or \
                 skip it.",
                key.event_id, key.attempts
            ),
            None => format!("{unsettled} events are unsettled; settle or skip some."),
        }
    }
}

/// That nobody has looked yet.
fn unknown(seq: u64) -> String {
    format!("Whether there are matching events from sequence {seq} on is known once they are read.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscriptions::Pause;

    const DAY: Micros = 24 * 3600 * 1_000_000;
    const NOW: Micros = 100 * DAY;

    fn stored() -> Stored {
        Stored {
            id: "sub_1".to_owned(),
            product: "portal".to_owned(),
            name: "worker".to_owned(),
            pause: Some(Pause {
                since: NOW - DAY,
                until: Some(NOW + DAY),
                by: "key_1".to_owned(),
                reason: "a new release".to_owned(),
            }),
            ..Stored::default()
        }
    }

    fn troubled() -> Live {
        Live {
            unsettled: 12,
            window_full: true,
            failing: true,
            last_error: "refused".to_owned(),
            ..Live::default()
        }
    }

    #[test]
    fn the_first_fact_that_holds_is_told() {
        use SubscriptionState as State;
        let (mut stored, mut live) = (stored(), troubled());
        let (mut entitled, mut dormant, mut left) = (false, true, 5 * DAY);
        let mut told = Vec::new();
        for step in 0..9 {
            match step {
                1 => entitled = true,
                2 => {
                    stored.pause = stored.pause.map(|pause| Pause {
                        until: Some(NOW),
                        ..pause
                    })
                }
                3 => dormant = false,
                4 => left = 6 * DAY,
                5 => live.window_full = false,
                6 => live.failing = false,
                7 => live.members.push("one".to_owned()),
                _ => {}
            }
            let facts = Facts {
                now: NOW,
                stored: &stored,
                entitled,
                dormant,
                deadline: Some(NOW + left),
                retention: 30 * DAY,
                live: &live,
                backlog: 3,
                free: if step < 8 { 1 } else { 0 },
                guessed: 0,
                rest: Rest::Nothing,
                blocking: None,
            };
            told.push(facts.state());
        }
        let states: Vec<State> = told.iter().map(|(state, _)| *state).collect();
        assert_eq!(
            states,
            [
                State::NotEntitled,
                State::Paused,
                State::Dormant,
                State::RetentionRisk,
                State::WindowFull,
                State::Failing,
                State::NoConsumer,
                State::CatchingUp,
                State::Live,
            ]
        );
        assert!(told[0].1.contains("portal"), "{}", told[0].1);
        assert!(
            told[1]
                .1
                .starts_with("Paused by key_1 since 1970-04-10T00:00:00Z until ")
        );
        assert!(told[1].1.ends_with(": a new release"));
        assert!(told[5].1.ends_with("by: refused"));
        assert_eq!(told[6].1, "3 events wait and no consumer is connected.");
        assert_eq!(told[7].1, "1 event waits.");
        assert_eq!(told[8].1, "");
    }

    #[test]
    fn of_an_owner_that_does_not_answer_it_is_not_said_that_it_has_no_consumer() {
        let live = Live {
            is_silent: true,
            ..Live::default()
        };
        let of_backlog = |backlog| {
            let facts = Facts {
                now: NOW,
                stored: &Stored::default(),
                entitled: true,
                dormant: false,
                deadline: None,
                retention: DAY,
                live: &live,
                backlog,
                free: backlog,
                guessed: 0,
                rest: Rest::Nothing,
                blocking: None,
            };
            facts.state()
        };
        let (state, reason) = of_backlog(2);
        assert_eq!(state, SubscriptionState::CatchingUp);
        assert_eq!(reason, format!("2 events wait. {SILENT}"));
        assert_eq!(of_backlog(0), (SubscriptionState::Live, SILENT.to_owned()));
    }

    #[test]
    fn where_not_all_was_looked_at_nobody_is_told_that_nothing_is_left() {
        let told = |live: &Live, guessed: u64, rest: Rest, deadline: Option<Micros>| {
            let backlog = live.unsettled + guessed;
            let facts = Facts {
                now: NOW,
                stored: &Stored::default(),
                entitled: true,
                dormant: false,
                deadline,
                retention: DAY,
                live,
                backlog,
                free: backlog - u64::from(live.in_flight),
                guessed,
                rest,
                blocking: None,
            };
            facts.state()
        };
        let nobody = Live::default();
        let (state, reason) = told(&nobody, 1, Rest::Unknown(7), None);
        assert_eq!(state, SubscriptionState::NoConsumer);
        assert_eq!(reason, unknown(7) + " No consumer is connected.");
        let busy = Live {
            unsettled: 2,
            in_flight: 2,
            members: vec!["one".to_owned()],
            ..Live::default()
        };
        let (state, reason) = told(&busy, 1, Rest::Unknown(7), None);
        assert_eq!((state, reason), (SubscriptionState::CatchingUp, unknown(7)));
        let waiting = Live {
            in_flight: 0,
            ..busy.clone()
        };
        for rest in [Rest::Unknown(7), Rest::More] {
            let guessed = u64::from(rest != Rest::More);
            let (state, reason) = told(&waiting, guessed, rest, None);
            assert_eq!(state, SubscriptionState::CatchingUp);
            assert_eq!(reason, "At least 2 events wait.");
        }
        let (state, reason) = told(&nobody, 1, Rest::Unknown(7), Some(NOW));
        assert_eq!(state, SubscriptionState::RetentionRisk);
        assert!(reason.starts_with(&unknown(7)), "{reason}");
        assert_eq!(
            told(&busy, 0, Rest::Nothing, None).0,
            SubscriptionState::Live
        );
    }

    #[test]
    fn what_fills_the_window_is_named() {
        let blocking = BlockedKey {
            event_id: "evt_1".to_owned(),
            attempts: 4,
            ..BlockedKey::default()
        };
        let facts = Facts {
            now: NOW,
            stored: &Stored::default(),
            entitled: true,
            dormant: false,
            deadline: None,
            retention: DAY,
            live: &troubled(),
            backlog: 12,
            free: 0,
            guessed: 0,
            rest: Rest::Nothing,
            blocking: Some(&blocking),
        };
        let (state, reason) = facts.state();
        assert_eq!(state, SubscriptionState::WindowFull);
        assert!(
            reason.contains("12 events") && reason.contains("evt_1"),
            "{reason}"
        );
    }
}
