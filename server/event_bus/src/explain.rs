//! ExplainEvent: why an event did, or did not, cause an action in a destination.
//!
//! The checks come in the order in which publishing, routing and delivery decide, so that the first
//! one that fails is the reason that the log gives. Those up to the subscription of the source are
//! of the event. Those after it are repeated for each destination that is asked for, and from the
//! subscriber on for each subscription of a destination; the first evidence of a repeated check is
//! its `destination`. Destinations that need somebody come first. Nothing is changed.

mod arrival;
mod branch;
mod codes;
mod delivery;
mod fixes;
mod nearby;
mod outcome;
mod refusing;
mod route;
mod subject;

use std::collections::BTreeSet;
use std::sync::Arc;

use hub_core::auth::{Authenticator, Caller};
use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::explain::{Checklist, Conclusion, Finding};
use hub_core::journal::Log;
use hub_core::module::Core;
use hub_proto::hub::event_bus::v1::ExplainEventRequest;
use hub_proto::hub::explain::v1::{CheckResult, Explanation, Verdict};

use crate::owners::Asking;
use crate::routing::{self, Configuration, Configurations};
use crate::standing::AtWork;
use crate::store::subscriptions::{self as store, Stored as Row};
use branch::Branch;
use subject::Subject;

/// Destinations that one answer tells of, by slug.
const DESTINATIONS_MAX: usize = 50;

/// What is asked.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) core: &'a Core,
    pub(crate) configurations: &'a Configurations,
    pub(crate) at_work: &'a dyn AtWork,
    pub(crate) authenticator: &'a dyn Authenticator,
}

/// A question under way.
struct Question<'a> {
    sources: Sources<'a>,
    caller: &'a Caller,
    asking: Asking<'a>,
    log: Arc<Log>,
    /// What is in force now.
    present: Arc<Configuration>,
    /// The rows of the tenant's subscriptions.
    rows: Vec<Row>,
    now: Micros,
    /// Slug of the product where nothing happened, if the caller names one.
    destination: Option<String>,
}

/// The answer. Errors: `EVENT_NOT_FOUND`, `PRODUCT_NOT_FOUND`, `FIELD_INVALID`, `FILTER_INVALID`.
pub(crate) async fn explain(
    sources: Sources<'_>,
    caller: &Caller,
    request: ExplainEventRequest,
) -> Result<Explanation> {
    let core = sources.core;
    let tenant = caller.tenant()?;
    let destination = Some(request.destination).filter(|slug| !slug.is_empty());
    if let Some(slug) = &destination {
        core.tenancy.products().await?.require(slug)?;
    }
    let log = core.journal.log(tenant).await?;
    core.journal.refresh(&log).await?;
    let question = Question {
        sources,
        caller,
        asking: Asking::of(caller),
        log,
        present: sources.configurations.current(tenant).await?,
        rows: store::list(&core.db, tenant).await?,
        now: core.clock.now(),
        destination,
    };
    let subject = Subject::find(&question, request.event).await?;
    let arrival = arrival::look(&question, &subject).await?;
    let mut branches = Vec::new();
    for product in question.products(&subject) {
        branches.push(route::look(&question, &subject, &arrival, &product).await?);
    }
    Ok(question.answer(&subject, arrival.join(branches)))
}

impl Question<'_> {
    /// The row of a subscription; none if it is not made yet.
    fn row(&self, subscription_id: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.id == subscription_id)
    }

    /// The destinations that are told of. There is always one: the empty name stands for a
    /// destination that nothing names.
    fn products(&self, subject: &Subject) -> Vec<String> {
        if let Some(named) = &self.destination {
            return vec![named.clone()];
        }
        let mut products: BTreeSet<String> = match subject {
            Subject::Stored(stored) => {
                let landed = stored.landed.iter();
                landed.map(|landed| landed.named.product.clone()).collect()
            }
            Subject::Removed { .. } => BTreeSet::new(),
            Subject::Never(never) => {
                let event = routing::Event {
                    kind: &never.search.r#type,
                    source: never.source().unwrap_or_default(),
                };
                let named = routing::destinations(&self.present, event, None, |filter| {
                    filter.covers(event.kind, event.source)
                });
                named.iter().map(|named| named.product.to_owned()).collect()
            }
        };
        if products.is_empty() {
            products.insert(String::new());
        }
        products.into_iter().take(DESTINATIONS_MAX).collect()
    }

    /// Without checks yet.
    fn checklist(&self) -> Checklist {
        Checklist::new(&self.sources.core.public_url, &self.caller.scopes)
    }

    fn answer(&self, subject: &Subject, mut all: Branch) -> Explanation {
        let as_of = match subject {
            Subject::Stored(stored) => stored.recorded,
            Subject::Removed { .. } => self.now,
            Subject::Never(never) => never.around,
        };
        let in_progress = all.verdict == Verdict::InProgress;
        let fixes = all.take_fixes();
        all.checks.answer(Conclusion {
            summary: all.sentence,
            verdict: all.verdict,
            fixes,
            as_of,
            expect_by: all.expect_by.filter(|_| in_progress),
            now: self.now,
        })
    }
}

/// A check of which nothing can be said: one that it needs has failed.
fn not_looked_at(code: &'static str, title: &str, needs: &[&'static str]) -> Finding {
    let finding = Finding::recorded(code, title).needs(needs);
    finding.then(CheckResult::Unknown)
}
