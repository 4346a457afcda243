//! Whether the event came, and whether it is still there: the checks before the ways part.

use hub_core::clock::{Micros, timestamp};
use hub_core::error::Result;
use hub_core::explain::{Checklist, Finding, holds};
use hub_core::tenancy::{self, InForce, Subscription};
use hub_proto::hub::explain::v1::{CheckResult, Fix, FixActor};

use super::branch::Branch;
use super::codes::{NOT_DEDUPED, RECEIVED, RETAINED, SOURCE_SUBSCRIPTION, VALID};
use super::fixes::Fixes;
use super::nearby::span;
use super::subject::{Never, Sent, Stored, Subject};
use super::{Question, not_looked_at};
use crate::refusals::Why;
use crate::standing::Standings;

const ACCEPTED: &str = "Publish accepted the event";
const FIRST: &str = "It was the first event of its source and id";
const KEPT: &str = "The log still has it";
const SOURCE_ACTIVE: &str = "The subscription to the source is active";
/// Times that the present retention is suggested to be lengthened by.
const LONGER: i64 = 2;
/// Longest retention, in seconds: 10 years.
const RETENTION_MAX: i64 = 315_360_000;

/// The checks of an event up to the subscription of its source.
pub(super) async fn look(question: &Question<'_>, subject: &Subject) -> Result<Branch> {
    let mut branch = Branch::new(question.checklist());
    match subject {
        Subject::Stored(stored) => stored_event(question, &mut branch, stored).await?,
        Subject::Removed { event_id, seq } => {
            removed(question, &mut branch, event_id, *seq).await?;
        }
        Subject::Never(never) => never_published(question, &mut branch, never),
    }
    Ok(branch)
}

async fn stored_event(question: &Question<'_>, branch: &mut Branch, stored: &Stored) -> Result<()> {
    let pass = |finding: Finding| finding.then(CheckResult::Pass);
    let published = format!(
        "{} published it at {}.",
        stored.source,
        timestamp(stored.recorded)
    );
    let title = format!("The hub has {}, {}", stored.event_id, stored.kind);
    let mut received = pass(Finding::recorded(RECEIVED, title))
        .detail(published)
        .saw_resource("event_id", &stored.event_id)
        .saw_number("sequence", stored.seq)
        .saw_time("record_time", stored.recorded)
        .saw_text("product", &stored.source)
        .saw_text("source", &stored.event.source)
        .saw_text("id", &stored.event.id)
        .saw_text("subject", stored.attribute("subject"));
    if let Some(matches) = stored.matches {
        received = received.saw_number("matches", matches as u64);
    }
    branch.look(received, vec![]);
    branch.look(
        pass(Finding::recorded(VALID, ACCEPTED)).needs(&[RECEIVED]),
        vec![],
    );
    branch.look(
        pass(Finding::recorded(NOT_DEDUPED, FIRST)).needs(&[VALID]),
        vec![],
    );
    let kept = Finding::current(RETAINED, KEPT).both(CheckResult::Pass);
    branch.look(kept.needs(&[NOT_DEDUPED]), vec![]);
    source_subscription(question, branch, stored).await
}

async fn source_subscription(
    question: &Question<'_>,
    branch: &mut Branch,
    stored: &Stored,
) -> Result<()> {
    let source = stored.source.as_str();
    let title = format!("The subscription to {source} is active");
    let (then, now) = (
        stored.then.is_active(source),
        question.present.is_active(source),
    );
    let finding = Finding::recorded(SOURCE_SUBSCRIPTION, title).needs(&[RETAINED]);
    let finding = finding.then(holds(then)).now(holds(now));
    let finding = match then {
        true => finding,
        false => {
            let change = subscription_change(question, source, stored.then.epoch).await?;
            inactive(finding, source, change.as_ref())
        }
    };
    let fix = Fixes::new(question, &branch.checks).activate(source);
    branch.look(finding, vec![fix]);
    Ok(())
}

/// By which change the subscription to a product was what it was.
pub(super) async fn subscription_change(
    question: &Question<'_>,
    product: &str,
    epoch: u64,
) -> Result<Option<InForce<Subscription>>> {
    let Some(number) = question.present.products.number(product) else {
        return Ok(None);
    };
    let (db, tenant) = (&question.sources.core.db, question.log.tenant());
    let change = tenancy::subscription_in_force(db, tenant, number, epoch).await?;
    Ok(Some(change))
}

/// Since when and until when a subscription was not active.
pub(super) fn inactive(
    finding: Finding,
    product: &str,
    change: Option<&InForce<Subscription>>,
) -> Finding {
    let since = change.map_or(0, |change| change.then.update_time);
    let after = change.and_then(|change| change.after.as_ref());
    let until = after.map(|after| after.update_time);
    let by = change.map_or("", |change| change.then.updated_by.as_str());
    finding
        .detail(format!(
            "The subscription to {product} was not active {}.",
            during(since, until)
        ))
        .saw_time("ended_at", since)
        .saw_resource("ended_by", by)
        .saw_time("active_again_at", until.unwrap_or(0))
}

/// A time for people; 0 = since the tenant is there.
pub(super) fn during(since: Micros, until: Option<Micros>) -> String {
    match (since, until) {
        (0, None) => "from the beginning on".to_owned(),
        (0, Some(until)) => format!("until {}", timestamp(until)),
        (since, None) => format!("since {}", timestamp(since)),
        (since, Some(until)) => format!("from {} to {}", timestamp(since), timestamp(until)),
    }
}

async fn removed(
    question: &Question<'_>,
    branch: &mut Branch,
    event_id: &str,
    seq: u64,
) -> Result<()> {
    let pass = |finding: Finding| finding.then(CheckResult::Pass);
    let (core, tenant) = (question.sources.core, question.log.tenant());
    let received = pass(Finding::recorded(
        RECEIVED,
        format!("The hub has had {event_id}"),
    ));
    let received = received
        .saw_resource("event_id", event_id)
        .saw_number("sequence", seq);
    branch.look(received, vec![]);
    branch.look(
        pass(Finding::recorded(VALID, ACCEPTED)).needs(&[RECEIVED]),
        vec![],
    );
    branch.look(
        pass(Finding::recorded(NOT_DEDUPED, FIRST)).needs(&[VALID]),
        vec![],
    );
    let earliest = core.journal.earliest(&question.log).await?;
    let earliest = earliest.map_or(question.log.head().seq + 1, |(seq, _)| seq);
    let (age_max, bytes_max) = core.journal.retention_of(tenant).await?;
    let detail = format!(
        "Retention has removed it: the log begins at {earliest}, it keeps {} of events.",
        span(age_max)
    );
    let mut retained = Finding::current(RETAINED, KEPT)
        .both(CheckResult::Fail)
        .needs(&[NOT_DEDUPED])
        .saw_number("earliest_sequence", earliest)
        .saw_span("retention", age_max);
    // Told for 90 days from when a subscription went on behind it.
    let at_work = question.sources.at_work;
    let standings = Standings::removed(core, &question.asking, at_work, seq).await?;
    for id in standings.expired_for(seq) {
        retained = retained.saw_resource("expired_for", id);
    }
    branch.sentence = format!("{event_id} is gone. {detail}");
    let fix = longer(question, branch, age_max, bytes_max);
    branch.look(retained.detail(detail), vec![fix]);
    branch.look(
        not_looked_at(SOURCE_SUBSCRIPTION, SOURCE_ACTIVE, &[RETAINED]),
        vec![],
    );
    Ok(())
}

fn longer(question: &Question<'_>, branch: &Branch, age_max: Micros, bytes_max: u64) -> Fix {
    let seconds = (age_max / 1_000_000)
        .saturating_mul(LONGER)
        .min(RETENTION_MAX);
    let bytes = (bytes_max > 0).then(|| bytes_max.saturating_mul(LONGER.unsigned_abs()));
    Fixes::new(question, &branch.checks).keep(seconds, bytes)
}

fn never_published(question: &Question<'_>, branch: &mut Branch, never: &Never) {
    match &never.sent {
        Some(sent) => not_stored(question, branch, never, sent),
        None => not_received(question, branch, never),
    }
    branch.look(not_looked_at(RETAINED, KEPT, &[NOT_DEDUPED]), vec![]);
    let Some(source) = never.source() else {
        let finding = not_looked_at(SOURCE_SUBSCRIPTION, SOURCE_ACTIVE, &[RETAINED]);
        branch.look(finding, vec![]);
        return;
    };
    let now = holds(question.present.is_active(source));
    let title = format!("The subscription to {source} is active");
    let active = Finding::current(SOURCE_SUBSCRIPTION, title).needs(&[RETAINED]);
    let fix = Fixes::new(question, &branch.checks).activate(source);
    branch.look(active.both(now), vec![fix]);
}

fn not_received(question: &Question<'_>, branch: &mut Branch, never: &Never) {
    let result = match never.more {
        true => CheckResult::Unknown,
        false => CheckResult::Fail,
    };
    let title = format!("The hub has an event {}", never.describe());
    let mut received = Finding::recorded(RECEIVED, title).both(result);
    received = received
        .detail(never.detail())
        .saw_text("type", &never.search.r#type);
    received = received.saw_text("subject", &never.search.subject);
    if never.silent > 0 {
        received = received.saw_number("silent_servers", never.silent as u64);
    }
    for (key, near) in never.near() {
        received = received
            .saw_resource(key, &near.event_id)
            .saw_text(&format!("{key}_type"), &near.event.r#type)
            .saw_time(&format!("{key}_time"), near.recorded);
    }
    if let Some(kind) = &never.nearby.kind {
        received = received.saw_text("nearest_type", kind);
    }
    branch.sentence = format!("There is no event {}. {}", never.describe(), never.detail());
    let fix = never_fix(question, &Fixes::new(question, &branch.checks), never);
    branch.look(received, vec![fix]);
    branch.look(not_looked_at(VALID, ACCEPTED, &[RECEIVED]), vec![]);
    branch.look(not_looked_at(NOT_DEDUPED, FIRST, &[VALID]), vec![]);
}

/// It came, but Publish refused it, or had its source and id before.
fn not_stored(question: &Question<'_>, branch: &mut Branch, never: &Never, sent: &Sent) {
    let (refusal, kind) = (&sent.refusal, &never.search.r#type);
    let (product, time) = (&refusal.product, timestamp(refusal.time));
    let title = format!("The hub was sent an event {}", never.describe());
    let received = Finding::recorded(RECEIVED, title).then(CheckResult::Pass);
    let received = received.detail(format!("{product} sent one at {time}."));
    let received = received
        .saw_text("product", product)
        .saw_time("sent_at", refusal.time);
    branch.look(received, vec![]);
    let fixes = Fixes::new(question, &branch.checks);
    let again = format!("Let {product} publish it again");
    let valid = Finding::recorded(VALID, ACCEPTED).needs(&[RECEIVED]);
    let first = Finding::recorded(NOT_DEDUPED, FIRST).needs(&[VALID]);
    let (finding, fix) = match (&refusal.why, &sent.first) {
        (Why::Refused { reason, message }, _) => {
            let detail = format!("Publish refused it: {message} [{reason}]");
            let entry = question.present.catalogue.find(kind);
            let entry = entry.filter(|_| reason == "EVENT_SOURCE_NOT_ALLOWED");
            let finding = valid.detail(detail).saw_text("reason", reason);
            let may = entry.is_some_and(|entry| entry.may_publish(product));
            let fix = match entry {
                Some(entry) => fixes.allow(entry, product),
                None => Checklist::advice(FixActor::Product, format!("{again}: {message}")),
            };
            (finding.then(CheckResult::Fail).now(holds(may)), fix)
        }
        (Why::Repeated { same, .. }, before) => {
            let before_id = before.as_ref().map_or("", |near| &near.event_id);
            let what = match same {
                true => "it is stored once",
                false => "its content is another one, so that it was refused [EVENT_ID_REUSED]",
            };
            let detail =
                format!("{product} sent it with the source and id of {before_id}: {what}.");
            let fix = match before.as_ref().filter(|_| *same) {
                Some(first) => fixes.publish_again(first, refusal.time),
                None => {
                    let own = format!("{again} with an id of its own");
                    Checklist::advice(FixActor::Product, own)
                }
            };
            let finding = first
                .clone()
                .detail(detail)
                .saw_resource("first", before_id);
            branch.look(valid.clone().then(CheckResult::Pass), vec![]);
            (finding.both(CheckResult::Fail), fix)
        }
    };
    branch.replay = Some(Checklist::advice(FixActor::Product, again));
    let refused = matches!(refusal.why, Why::Refused { .. });
    branch.look(finding, vec![fix]);
    if refused {
        branch.look(first.then(CheckResult::Unknown), vec![]);
    }
    let cause = branch
        .checks
        .primary_cause()
        .map_or("", |cause| &cause.detail);
    branch.sentence = format!("{product} sent {kind} at {time}, and it was not stored. {cause}");
}

/// What most probably leads on.
fn never_fix(question: &Question<'_>, fixes: &Fixes<'_>, never: &Never) -> Fix {
    let nearby = &never.nearby;
    if let Some(near) = &nearby.elsewhen {
        return fixes.explain(near);
    }
    if let (false, Some(kind)) = (nearby.is_known, &nearby.kind) {
        return fixes.explain_type(never, kind);
    }
    if let Some(near) = &nearby.misspelt {
        return fixes.publish_as(near, &never.search.r#type);
    }
    if let Some(near) = nearby.about.as_ref().filter(|near| never.is_alike(near)) {
        return fixes.explain(near);
    }
    match never.source() {
        Some(source) if !question.present.is_active(source) => fixes.activate(source),
        Some(source) => fixes.publish(never, source),
        None => {
            let title = format!(
                "Let the product that {} is of publish it",
                never.search.r#type
            );
            Checklist::advice(FixActor::Product, title)
        }
    }
}
