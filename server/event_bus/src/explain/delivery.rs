//! What became of the event in the subscriptions of one destination.

use hub_core::clock::{Micros, timestamp};
use hub_core::error::Result;
use hub_core::explain::{Checklist, Finding, Progress};
use hub_core::id;
use hub_proto::hub::event_bus::v1::EventDeliveryState as State;
use hub_proto::hub::explain::v1::{CheckResult, FixActor, Verdict};

use super::branch::Branch;
use super::codes::{
    ACKED, CONSUMER_OUTCOME, CURSOR_PASSED, DELIVERED, NOT_BLOCKED_BY_EARLIER, OF_DELIVERY, ROUTED,
    SUBSCRIBER_CONNECTED, SUBSCRIBER_EXISTS,
};
use super::fixes::Fixes;
use super::route::Way;
use super::subject::{Landed, Stored};
use super::{not_looked_at, outcome};
use crate::log_entry::HUB;
use crate::routing::Outcome;
use crate::standing::{Standing, Standings};
use crate::store::subscriptions::Stored as Row;
use crate::subscription_status::SILENT;

/// Within this an event reaches a consumer that is there, in microseconds: 30 s.
const PROPAGATION: Micros = 30_000_000;
/// Name of the only consumer of the hub itself.
const THE_HUB: &str = "the hub itself";

/// The event in one subscription.
pub(super) struct Delivered<'a> {
    way: &'a Way<'a>,
    pub(super) stored: &'a Stored,
    pub(super) landed: &'a Landed,
    /// The subscription; none if its row is not made yet.
    row: Option<&'a Row>,
}

/// The checks of each subscription of the destination that the event is for.
pub(super) async fn look(way: &Way<'_>, branch: Branch) -> Result<Branch> {
    let exists = format!("A subscription of {} has the event", way.to());
    let landed = way
        .stored
        .map_or_else(Vec::new, |stored| landed(way, stored));
    let (Some(stored), false) = (way.stored, landed.is_empty()) else {
        return Ok(nowhere(way, branch, exists));
    };
    let mut ways = Vec::with_capacity(landed.len());
    for landed in landed {
        let delivered = Delivered {
            way,
            stored,
            landed,
            row: way.question.row(&landed.named.subscription_id),
        };
        ways.push(delivered.look(&branch, &exists).await?);
    }
    Ok(branch.join(ways))
}

/// The event is in no subscription of the destination.
fn nowhere(way: &Way<'_>, mut branch: Branch, exists: String) -> Branch {
    let finding = way.recorded(SUBSCRIBER_EXISTS, exists).needs(ROUTED);
    match (way.stored, way.later()) {
        (Some(stored), Some(later)) => {
            let (id, name) = (later.id.as_str(), later.name.as_str());
            let made = timestamp(later.create_time);
            let detail = format!("{name} was made at {made} and begins after the event.");
            let finding = finding
                .both(CheckResult::Fail)
                .detail(detail.as_str())
                .saw_resource("subscription", id)
                .saw_time("create_time", later.create_time);
            let fixes = Fixes::new(way.question, &branch.checks);
            let fix = fixes.redeliver(&stored.event_id, name, id);
            if branch.look(finding, vec![fix]) {
                let (product, event_id) = (way.product, &stored.event_id);
                branch.sentence = format!("{product} never got {event_id}: {detail}");
            }
        }
        _ => {
            branch.look(finding.then(CheckResult::Unknown), vec![]);
        }
    }
    for (code, title) in OF_DELIVERY {
        branch.look(not_looked_at(code, title, &[SUBSCRIBER_EXISTS]), vec![]);
    }
    branch.conclude()
}

/// Where the event stands in the subscriptions of the destination. A default one that was never
/// used is left out beside one of the product's own.
fn landed<'a>(way: &Way<'_>, stored: &'a Stored) -> Vec<&'a Landed> {
    let of_product = |landed: &&Landed| {
        landed.named.product == way.product && !landed.named.subscription_id.is_empty()
    };
    let mut found: Vec<&Landed> = stored.landed.iter().filter(of_product).collect();
    let has_own = found.iter().any(|landed| !landed.named.is_default);
    let question = way.question;
    found.retain(|landed| {
        let is_used = || {
            let row = question.row(&landed.named.subscription_id);
            row.is_some_and(|row| row.used_time.is_some())
        };
        !(has_own && landed.named.is_default) || is_used()
    });
    found
}

impl Delivered<'_> {
    async fn look(&self, before: &Branch, exists: &str) -> Result<Branch> {
        let mut branch = before.subscription(self.name(), self.was_given());
        branch.progress = match self.standing().state {
            State::Delivered => Progress::Done,
            _ if self.standing().is_unsettled() && !self.is_dormant() => Progress::UnderWay,
            _ => Progress::Standing,
        };
        if branch.progress == Progress::UnderWay {
            branch.expect_by = Some(self.expect_by());
        }
        if !self.standing().is_unsettled() && self.standing().state != State::Delivered {
            let (event_id, id) = (&self.stored.event_id, self.id());
            branch.replay = Some(self.fixes(&branch).redeliver(event_id, self.name(), id));
        }
        self.exists(&mut branch, exists);
        self.connected(&mut branch);
        self.cursor_passed(&mut branch);
        self.not_blocked(&mut branch).await?;
        self.handed_out(&mut branch);
        self.acked(&mut branch);
        self.did(&mut branch);
        let followed = outcome::follow_up(self.way, &mut branch, self).await?;
        let mut branch = branch.conclude();
        branch.sentence = match (branch.verdict, branch.checks.primary_cause()) {
            (Verdict::Blocked | Verdict::FixedSince, Some(cause)) => self.failure(&cause.detail),
            _ => self.sentence(followed),
        };
        Ok(branch)
    }

    fn standing(&self) -> &Standing {
        &self.landed.standing
    }

    fn id(&self) -> &str {
        &self.landed.named.subscription_id
    }

    /// For people: the default subscription has the name of its product.
    fn name(&self) -> &str {
        self.row.map_or(self.way.product, |row| &row.name)
    }

    fn is_hub(&self) -> bool {
        self.landed.named.is_default && self.landed.named.product == HUB
    }

    /// The default subscription of a product that never consumed. Where nobody says that something
    /// should have happened there, that is no fault.
    fn is_dormant(&self) -> bool {
        self.is_unused() && self.way.question.destination.is_none()
    }

    fn is_unused(&self) -> bool {
        let used = self.row.is_some_and(|row| row.used_time.is_some());
        self.landed.named.is_default && !used && !self.is_hub()
    }

    /// A consumer has it, or is done with it.
    fn is_with_consumer(&self) -> bool {
        let waits = matches!(
            self.standing().state,
            State::Queued | State::KeyBlocked | State::RetryWait
        );
        self.landed.was_taken() && !waits
    }

    /// It was routed to the subscription, or given to it later by a call.
    fn was_given(&self) -> bool {
        self.standing().state != State::NotRouted
    }

    /// A check of what is now. For an event that is not for the subscription it says nothing.
    pub(super) fn judged(&self, finding: Finding, result: CheckResult) -> Finding {
        match self.was_given() {
            true => finding.both(result),
            false => finding.then(result),
        }
    }

    fn fixes<'a>(&'a self, branch: &'a Branch) -> Fixes<'a> {
        Fixes::new(self.way.question, &branch.checks)
    }

    fn exists(&self, branch: &mut Branch, title: &str) {
        let again = self.was_given() && self.landed.named.outcome != Outcome::Flows;
        let finding = self.way.recorded(SUBSCRIBER_EXISTS, title.to_owned());
        let needs: &[&'static str] = if again { &[] } else { ROUTED };
        let detail = match again {
            true => format!("{} got it later, by Redeliver.", self.name()),
            false => String::new(),
        };
        let finding = finding.then(CheckResult::Pass).needs(needs).detail(detail);
        let finding = finding
            .saw_resource("subscription", self.id())
            .saw_text("name", self.name())
            .saw_time("create_time", self.row.map_or(0, |row| row.create_time));
        branch.look(finding, vec![]);
    }

    /// Whether somebody takes events, and nobody has stopped that.
    fn connected(&self, branch: &mut Branch) {
        let name = self.name();
        let title = format!("A consumer takes from the subscription {name}");
        let finding = self
            .way
            .current(SUBSCRIBER_CONNECTED, title)
            .needs(&[SUBSCRIBER_EXISTS]);
        let now = self.way.question.now;
        let pause = self.row.and_then(|row| row.pause.as_ref());
        let live = self.landed.live.as_ref();
        let members = live.map_or(&[][..], |live| &live.members);
        let (result, finding, fix) = if self.is_hub() {
            let detail = "The hub settles what goes to it at once.";
            (CheckResult::Pass, finding.detail(detail), None)
        } else if let Some(pause) = pause.filter(|pause| pause.holds(now)) {
            let since = timestamp(pause.since);
            let detail = format!("{} paused it at {since}: {}", pause.by, pause.reason);
            let finding = finding
                .detail(detail.trim_end_matches([':', ' ']))
                .saw_time("paused_at", pause.since)
                .saw_time("paused_until", pause.until.unwrap_or(0))
                .saw_resource("paused_by", pause.by.as_str())
                .saw_text("reason", pause.reason.as_str());
            let fix = self.fixes(branch).resume(self.id(), name);
            (CheckResult::Fail, finding, Some(fix))
        } else if !members.is_empty() {
            let detail = format!("Connected: {}.", members.join(", "));
            let finding = finding.detail(detail);
            let finding = members.iter().fold(finding, |finding, member| {
                finding.saw_text("member", member.as_str())
            });
            (CheckResult::Pass, finding, None)
        } else if self.landed.is_silent {
            (CheckResult::Unknown, finding.detail(SILENT), None)
        } else {
            let detail = match self.is_unused() {
                true => format!(
                    "No consumer has ever used it. If {} reads with Subscribe, which leaves no \
                     trace, only its developers can tell more.",
                    self.way.product
                ),
                false => "No consumer is connected, and none has pulled within the last minute."
                    .to_owned(),
            };
            let used = self.row.and_then(|row| row.used_time).unwrap_or(0);
            let result = match self.is_dormant() {
                true => CheckResult::Unknown,
                false => CheckResult::Fail,
            };
            let fix = self.fixes(branch).pull(self.way.product, self.id());
            (
                result,
                finding.detail(detail).saw_time("first_used_at", used),
                Some(fix),
            )
        };
        let then = match self.is_with_consumer() {
            true => CheckResult::Pass,
            false if self.standing().is_unsettled() => result,
            // Whoever was there then did not decide it.
            false => CheckResult::Unknown,
        };
        let finding = self.judged(finding, result).then(then);
        branch.look(finding, fix.into_iter().collect());
    }

    fn cursor_passed(&self, branch: &mut Branch) {
        let title = format!("The subscription {} has reached the event", self.name());
        let finding = self
            .way
            .current(CURSOR_PASSED, title)
            .needs(&[SUBSCRIBER_EXISTS]);
        let live = self.landed.live.as_ref();
        let stored = self.landed.cursor.unwrap_or(0);
        let cursor = live.map_or(stored, |live| live.cursor);
        let reached = cursor >= self.stored.seq || self.is_hub() || self.landed.was_taken();
        let finding = finding.saw_number("sequence", self.stored.seq);
        if reached {
            branch.look(self.judged(finding, CheckResult::Pass), vec![]);
            return;
        }
        let ahead = self.stored.seq - cursor;
        let finding = finding
            .saw_number("cursor", cursor)
            .saw_number("events_ahead", ahead);
        let Some(live) = live.filter(|live| live.window_full) else {
            let detail = format!("It has looked at the log up to {cursor}, {ahead} events before.");
            let finding = self.judged(finding, CheckResult::Unknown);
            branch.look(finding.detail(detail), vec![]);
            return;
        };
        let oldest = live.oldest_unsettled.unwrap_or(cursor);
        let oldest_id = id::event(self.way.question.log.tenant().key(oldest));
        let detail = format!(
            "{} events are not settled, {oldest_id} since the longest: no more are looked at.",
            live.unsettled
        );
        let finding = finding.saw_number("unsettled", live.unsettled);
        let finding = finding.saw_resource("oldest_unsettled", oldest_id);
        let fix = self
            .fixes(branch)
            .skip_to(self.id(), self.name(), cursor, live.unsettled);
        let finding = self.judged(finding, CheckResult::Fail);
        branch.look(finding.detail(detail), vec![fix]);
    }

    /// An event that is worked on holds back those of its key only for a moment.
    async fn not_blocked(&self, branch: &mut Branch) -> Result<()> {
        let title = "No failing event of its key holds it back".to_owned();
        let finding = self
            .way
            .current(NOT_BLOCKED_BY_EARLIER, title)
            .needs(&[CURSOR_PASSED]);
        let Some(seq) = self.standing().behind else {
            branch.look(self.judged(finding, CheckResult::Pass), vec![]);
            return Ok(());
        };
        let question = self.way.question;
        let (core, tenant) = (question.sources.core, question.log.tenant());
        let at_work = question.sources.at_work;
        let named = std::slice::from_ref(&self.landed.named);
        let events = [(seq, named)];
        let only = Some(self.id());
        let standings = Standings::now(core, &question.asking, at_work, only, &events).await?;
        let before = standings.of(&self.landed.named, seq, self.stored.recorded);
        let event_id = id::event(tenant.key(seq));
        let finding = finding
            .saw_resource("blocked_by", event_id.as_str())
            .saw_text("state", before.state.as_str_name())
            .saw_number("attempts", u64::from(before.attempts))
            .saw_text("error", before.error.as_str());
        let (result, detail, fixes) = match before.state {
            State::Failed => {
                let detail = format!("{event_id} before it failed for good: {}", before.error);
                let fix = self
                    .fixes(branch)
                    .redeliver(&event_id, self.name(), self.id());
                (CheckResult::Fail, detail, vec![fix])
            }
            State::RetryWait => {
                let due = timestamp(before.due.unwrap_or(0));
                let detail = format!("{event_id} before it waits for its retry at {due}.");
                let wait = format!("Wait for the next attempt of {event_id} at {due}");
                (
                    CheckResult::Fail,
                    detail,
                    vec![Checklist::advice(FixActor::Wait, wait)],
                )
            }
            _ => (
                CheckResult::Pass,
                format!("{event_id} before it is worked on."),
                vec![],
            ),
        };
        branch.look(self.judged(finding, result).detail(detail), fixes);
        Ok(())
    }

    fn handed_out(&self, branch: &mut Branch) {
        let finding = self
            .way
            .recorded(DELIVERED, "It was handed to a consumer".to_owned());
        let finding = finding.needs(&[SUBSCRIBER_EXISTS]);
        let standing = self.standing();
        let attempts = u64::from(standing.attempts);
        let (result, detail) = match standing.state {
            State::Expired => (
                CheckResult::Fail,
                "Retention passed it before a consumer took it.".to_owned(),
            ),
            State::Skipped if attempts == 0 => {
                (CheckResult::Fail, format!("It was skipped{}.", self.at()))
            }
            _ if self.is_hub() => (CheckResult::Pass, format!("By {THE_HUB}.")),
            _ if self.landed.was_taken() => (CheckResult::Pass, format!("{attempts} times.")),
            _ => (CheckResult::Unknown, "Not yet.".to_owned()),
        };
        let finding = finding.saw_number("attempts", attempts);
        let finding = finding.saw_time("update_time", standing.time.unwrap_or(0));
        branch.look(self.judged(finding, result).detail(detail), vec![]);
    }

    /// The last change of state for people, if its time is known.
    fn at(&self) -> String {
        let time = self.standing().time;
        time.map_or_else(String::new, |time| format!(" at {}", timestamp(time)))
    }

    fn acked(&self, branch: &mut Branch) {
        let finding = self
            .way
            .recorded(ACKED, "The consumer settled it".to_owned());
        let finding = finding.needs(&[DELIVERED]);
        let standing = self.standing();
        let error = standing.error.as_str();
        let (result, detail) = match standing.state {
            State::Delivered => (CheckResult::Pass, "It was acknowledged.".to_owned()),
            State::Skipped => (CheckResult::Pass, "It was told to skip it.".to_owned()),
            State::Failed => {
                let at = self.at();
                let detail = format!("attempt {} failed for good{at}: {error}", standing.attempts);
                (CheckResult::Fail, detail)
            }
            State::RetryWait => {
                let due = timestamp(standing.due.unwrap_or(0));
                let attempt = standing.attempts;
                let detail = format!("Attempt {attempt} failed ({error}); the next is at {due}.");
                (CheckResult::Unknown, detail)
            }
            _ => (CheckResult::Unknown, "Not yet.".to_owned()),
        };
        let finding = finding
            .saw_number("attempts", u64::from(standing.attempts))
            .saw_text("error", error)
            .saw_time("next_attempt_time", standing.due.unwrap_or(0));
        branch.look(self.judged(finding, result).detail(detail), vec![]);
    }

    /// An ack says that it is done.
    fn did(&self, branch: &mut Branch) {
        let title = format!("{} says that it is done", self.way.product);
        let finding = Finding::reported(CONSUMER_OUTCOME, title).needs(&[ACKED]);
        let finding = finding.saw_text("destination", self.way.product);
        let standing = self.standing();
        let (result, detail) = match standing.state {
            State::Delivered => (CheckResult::Pass, "By its ack.".to_owned()),
            State::Skipped => {
                let reason = standing.error.as_str();
                (
                    CheckResult::Fail,
                    format!("it skipped it{}: {reason}", self.at()),
                )
            }
            _ => (
                CheckResult::Unknown,
                format!("Only {} knows.", self.way.product),
            ),
        };
        let finding = finding.saw_text("reason", standing.error.as_str());
        branch.look(self.judged(finding, result).detail(detail), vec![]);
    }

    /// What did not happen, in one sentence.
    fn failure(&self, cause: &str) -> String {
        let what = match self.landed.was_taken() {
            true => "did not process",
            false if self.standing().is_unsettled() => "has not got",
            false => "never got",
        };
        format!("{} {what} {}: {cause}", self.name(), self.stored.event_id)
    }

    /// How it stands, in one sentence.
    fn sentence(&self, followed: bool) -> String {
        let (name, event_id, standing) = (self.name(), &self.stored.event_id, self.standing());
        match standing.state {
            State::Delivered if self.is_hub() => format!("The hub itself settled {event_id}."),
            State::Delivered if followed => {
                format!("{name} acknowledged {event_id}, and an event followed from it.")
            }
            State::Delivered => format!("{name} acknowledged {event_id}."),
            State::InFlight => format!("{name} has {event_id} at work."),
            State::RetryWait => {
                let due = timestamp(standing.due.unwrap_or(0));
                format!(
                    "{name} did not take {event_id} ({}); next at {due}.",
                    standing.error
                )
            }
            _ if self.is_dormant() => {
                format!("{name} has never consumed: {event_id} waits in its subscription.")
            }
            _ => format!("{event_id} is on its way to {name}."),
        }
    }

    /// When something should have changed.
    fn expect_by(&self) -> Micros {
        let now = self.way.question.now;
        match self.standing().due {
            Some(due) => due,
            None => now.saturating_add(PROPAGATION),
        }
    }
}
