use EventDeliveryState::{
    Delivered, Expired, Failed, InFlight, KeyBlocked, NotRouted, Queued, RetryWait, Skipped,
};

use futures_util::future::{self, BoxFuture};

use super::*;
use crate::owners::Altered;

const RECORDED: Micros = 100;
const LATER: Micros = 200;

/// A group that has one event.
struct Group(u64, Phase);

impl AtWork for Group {
    fn state_of(&self, subscription_id: &str, seq: u64) -> Option<UnsettledState> {
        let state = UnsettledState {
            phase: self.1,
            attempts: 2,
            error: Some("refused".into()),
            redelivery: false,
        };
        (subscription_id == "sub_1" && seq == self.0).then_some(state)
    }
}

impl Owners for Group {
    fn close<'a>(&'a self, _: &'a TenantRef, _: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(future::ready(Ok(())))
    }

    fn changed<'a>(&'a self, _: &'a TenantRef, _: &'a str, _: Altered) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    fn live<'a>(
        &'a self,
        _: &'a Asking<'a>,
        _: &'a [&'a str],
        _: Wanted<'a>,
    ) -> BoxFuture<'a, Result<HashMap<String, owners::Known>>> {
        Box::pin(future::ready(Ok(HashMap::new())))
    }
}

/// Nobody is at work on an event that there is.
const NOBODY: Group = Group(0, Phase::Queued);

fn saved(seq: u64, key: u64) -> Saved {
    Saved {
        seq,
        key: (key > 0).then_some(Key(key)),
        bytes: 1,
        attempts: 0,
        losses: 0,
        due: 0,
        in_flight: false,
        redelivery: false,
        derived_delivered: true,
        error: "".into(),
    }
}

fn position(cursor: u64, unsettled: &[Saved]) -> Row {
    Row::Position {
        product: "portal".to_owned(),
        is_default: true,
        cursor,
        unsettled: leasing::pack(unsettled),
    }
}

fn exception(seq: u64, state: EventDeliveryState, error: &str) -> Row {
    Row::Exception {
        seq,
        state: state as i64,
        attempts: 5,
        error: error.to_owned(),
        time: LATER,
    }
}

fn range(from: u64, to: u64, state: EventDeliveryState) -> Row {
    Row::Range {
        from,
        to,
        state: state as i64,
        time: LATER,
    }
}

/// A position, and all that can be stored beside it.
fn of_each_kind() -> Vec<Row> {
    vec![
        position(4, &[saved(3, 0)]),
        exception(1, Failed, "no"),
        range(7, 8, Skipped),
        range(9, 9, Expired),
    ]
}

fn standings(at_work: &dyn AtWork, rows: Vec<Row>) -> Standings<'_> {
    let mut known = Known::default();
    for row in rows {
        known.add(row).unwrap();
    }
    let mut standings = Standings {
        at_work,
        subscriptions: [("sub_1".to_owned(), known)].into(),
        told: HashMap::new(),
        heard: HashMap::new(),
    };
    standings.tell(&(1..=10).collect::<Vec<_>>());
    standings
}

fn named(product: &str, outcome: Outcome) -> Named {
    Named {
        subscription_id: "sub_1".to_owned(),
        product: product.to_owned(),
        is_default: true,
        outcome,
    }
}

fn states(
    standings: &Standings<'_>,
    seqs: std::ops::RangeInclusive<u64>,
) -> Vec<EventDeliveryState> {
    let portal = named("portal", Outcome::Flows);
    let states = seqs.map(|seq| standings.of(&portal, seq, RECORDED).state);
    states.collect()
}

#[test]
fn what_was_passed_is_delivered_and_what_is_ahead_is_queued() {
    let rows = of_each_kind();
    let standings = standings(&NOBODY, rows);
    let expected = [
        Failed, Delivered, Queued, Delivered, Queued, Queued, Skipped, Skipped, Expired, Queued,
    ];
    assert_eq!(states(&standings, 1..=10), expected);
    let portal = named("portal", Outcome::Flows);
    let failed = standings.of(&portal, 1, RECORDED);
    assert_eq!(
        (failed.attempts, &*failed.error, failed.time),
        (5, "no", Some(LATER))
    );
    let delivered = standings.of(&portal, 2, RECORDED);
    assert_eq!((delivered.attempts, delivered.time), (1, None));
    assert_eq!(
        standings.of(&portal, 3, RECORDED).time,
        Some(RECORDED),
        "untouched"
    );
    assert_eq!(standings.of(&portal, 10, RECORDED).time, Some(RECORDED));
    let stranger = Named {
        subscription_id: "sub_2".to_owned(),
        ..portal
    };
    assert_eq!(standings.of(&stranger, 1, RECORDED).state, Queued);
}

#[test]
fn what_no_subscription_came_to_is_expired_once_it_is_removed() {
    let rows = of_each_kind();
    let seqs = [1, 2, 3, 5, 7, 9];
    let told = |standings: &Standings<'_>| seqs.map(|seq| !standings.expired_for(seq).is_empty());
    let nobody = standings(&NOBODY, rows.clone());
    assert_eq!(told(&nobody), [false, false, true, true, false, true]);
    // Who has it may settle it yet.
    let leased = Group(3, Phase::InFlight { until: 5 });
    assert!(standings(&leased, rows.clone()).expired_for(3).is_empty());
    let mut heard = standings(&NOBODY, rows);
    let delivered = Said::Settled {
        state: Delivered,
        attempts: 1,
        error: String::new(),
        time: None,
    };
    // The position that is stored is older than what its owner says.
    let said = [(5, delivered), (3, Said::Passed)].into();
    heard.heard = [("sub_1".to_owned(), said)].into();
    assert_eq!(told(&heard), [false, false, false, false, false, true]);
}

#[test]
fn an_unsettled_event_waits_for_its_ack_its_retry_or_its_key() {
    let leased = Saved {
        in_flight: true,
        attempts: 1,
        ..saved(2, 7)
    };
    let retried = Saved {
        due: 900,
        attempts: 2,
        error: "refused".into(),
        ..saved(3, 8)
    };
    let rest = [
        saved(4, 7),
        saved(5, 8),
        saved(6, 9),
        saved(7, 0),
        saved(8, 10),
    ];
    let unsettled = [vec![leased, retried], rest.to_vec()].concat();
    let mut standings = standings(&NOBODY, vec![position(8, &unsettled)]);
    let known = standings.subscriptions.get_mut("sub_1").unwrap();
    assert!(known.may_be_held(&[4]) && !known.may_be_held(&[1, 2, 3, 7]));
    known.held = [(Key(10), 1), (Key(9), 20)].into();
    let expected = [
        InFlight, RetryWait, KeyBlocked, KeyBlocked, Queued, Queued, KeyBlocked,
    ];
    assert_eq!(states(&standings, 2..=8), expected);
    let portal = named("portal", Outcome::Flows);
    let of = |seq| standings.of(&portal, seq, RECORDED);
    assert_eq!((of(2).attempts, of(2).time), (2, None));
    assert_eq!(
        (of(3).attempts, of(3).due, &*of(3).error),
        (2, Some(900), "refused")
    );
    assert_eq!(
        [of(4).behind, of(5).behind, of(8).behind],
        [Some(2), Some(3), Some(1)]
    );
}

#[test]
fn a_group_at_work_knows_better_than_what_is_stored() {
    let group = Group(2, Phase::RetryWait { due: 900 });
    let rows = vec![position(3, &[saved(2, 0)]), exception(2, Failed, "no")];
    let standings = standings(&group, rows);
    let portal = named("portal", Outcome::Flows);
    let standing = standings.of(&portal, 2, RECORDED);
    assert_eq!((standing.state, standing.due), (RetryWait, Some(900)));
    assert_eq!((standing.attempts, &*standing.error), (2, "refused"));
    assert_eq!(standings.of(&portal, 3, RECORDED).state, Delivered);
}

#[test]
fn what_an_owner_says_is_joined_with_what_was_stored_after_it() {
    let rows = vec![
        position(1, &[saved(1, 0)]),
        exception(3, Failed, "refused"),
        range(5, 5, Skipped),
    ];
    let mut standings = standings(&NOBODY, rows);
    let settled = Said::Settled {
        state: Failed,
        attempts: 4,
        error: "no".to_owned(),
        time: Some(LATER),
    };
    let mut said: HashMap<u64, Said> = [1, 2, 3, 5, 6].map(|seq| (seq, Said::Passed)).into();
    said.insert(4, settled);
    let live = Box::default();
    let known = owners::Known::Told { live, said };
    standings.hear([("sub_1".to_owned(), known)].into());
    let portal = named("portal", Outcome::Flows);
    let of = |seq| standings.of(&portal, seq, RECORDED);
    // What is stored of an event that is settled since is old; how it was settled is not.
    let states = [1, 2, 3, 4, 5, 6, 7].map(|seq| of(seq).state);
    let expected = [
        Delivered, Delivered, Failed, Failed, Skipped, Delivered, Queued,
    ];
    assert_eq!(states, expected);
    assert_eq!(
        (of(4).attempts, &*of(4).error, of(4).time),
        (4, "no", Some(LATER))
    );
    let off = Outcome::NotRouted(NotRoutedReason::IntegrationOff);
    assert_eq!(
        standings.of(&named("portal", off), 2, RECORDED).state,
        NotRouted
    );
}

#[test]
fn an_event_that_was_not_routed_stays_so_until_it_is_delivered_again() {
    let rows = || vec![position(3, &[saved(2, 0)]), exception(3, Delivered, "")];
    let standings = standings(&NOBODY, rows());
    let reason = NotRoutedReason::IntegrationOff;
    let off = named("portal", Outcome::NotRouted(reason));
    let of = |seq| standings.of(&off, seq, RECORDED);
    assert_eq!((of(1).state, of(1).reason), (NotRouted, reason));
    assert_eq!((of(2).state, of(3).state), (Queued, Delivered));
    assert_eq!(of(2).reason, NotRoutedReason::Unspecified);
    assert!(of(2).is_unsettled() && !of(1).is_unsettled());
}

#[test]
fn an_event_that_nothing_named_the_subscription_for_is_told_once_it_was_given_to_it() {
    let rows = vec![
        position(5, &[saved(2, 0)]),
        exception(3, Delivered, ""),
        range(4, 4, Skipped),
    ];
    let standings = standings(&NOBODY, rows);
    let portal = named("portal", Outcome::Flows);
    for (seq, state) in [
        (1, None),
        (2, Some(Queued)),
        (3, Some(Delivered)),
        (4, None),
    ] {
        let given = standings.given(seq, &[]);
        let found = given
            .first()
            .map(|given| standings.of(given, seq, RECORDED).state);
        assert_eq!(found, state, "{seq}");
        assert!(
            standings
                .given(seq, std::slice::from_ref(&portal))
                .is_empty()
        );
    }
    let off = named(
        "portal",
        Outcome::NotRouted(NotRoutedReason::IntegrationOff),
    );
    let derives = |named: &Named| [1, 4, 6].map(|seq| standings.derives_delivered(named, seq));
    assert_eq!(derives(&portal), [true, false, false]);
    assert_eq!(derives(&off), [false; 3]);
}

#[test]
fn the_hubs_own_default_subscription_is_settled_at_once() {
    let none = standings(&NOBODY, Vec::new());
    assert_eq!(
        none.of(&named("hub", Outcome::Flows), 9, RECORDED).state,
        Delivered
    );
    let off = Outcome::NotRouted(NotRoutedReason::SourceInactive);
    assert_eq!(none.of(&named("hub", off), 9, RECORDED).state, NotRouted);
    let own = Named {
        is_default: false,
        ..named("hub", Outcome::Flows)
    };
    assert_eq!(none.of(&own, 9, RECORDED).state, Queued);
}
