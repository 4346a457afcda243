//! Whether the event was routed to one destination, and would be today.

use hub_core::error::Result;
use hub_core::explain::{Finding, holds};
use hub_core::tenancy::{self, InForce, Integration};
use hub_proto::hub::explain::v1::{CheckResult, Fix};

use super::arrival::{during, inactive, subscription_change};
use super::branch::Branch;
use super::codes::{
    DEST_PRINCIPAL_ALLOWED, DEST_SUBSCRIPTION, INTEGRATION_ENABLED, RETAINED, ROUTE_MATCHED,
};
use super::fixes::Fixes;
use super::nearby::nearest;
use super::subject::{Landed, Stored, Subject};
use super::{Question, delivery};
use crate::default_subscriptions;
use crate::filter::Filter;
use crate::log_entry::HUB;
use crate::routing::{self, Configuration, Destination, Event};
use crate::store::subscriptions::Stored as Row;

/// Scope by which a key takes events.
const TAKES: &str = "hub:events.read";
/// Scope by which a caller learns of keys.
const SEES_KEYS: &str = "hub:keys.read";

/// An event on its way to a destination.
pub(super) struct Way<'a> {
    pub(super) question: &'a Question<'a>,
    /// Slug; empty = none is named.
    pub(super) product: &'a str,
    /// CloudEvents type; empty if it is not known.
    pub(super) kind: &'a str,
    /// Slug of the publishing product, if it is known.
    pub(super) source: Option<&'a str>,
    pub(super) stored: Option<&'a Stored>,
}

/// The checks of one destination.
pub(super) async fn look(
    question: &Question<'_>,
    subject: &Subject,
    arrival: &Branch,
    product: &str,
) -> Result<Branch> {
    let (kind, source) = match subject {
        Subject::Stored(stored) => (stored.kind.as_str(), Some(stored.source.as_str())),
        Subject::Never(never) => (never.search.r#type.as_str(), never.source()),
        Subject::Removed { .. } => ("", None),
    };
    let way = Way {
        question,
        product,
        kind,
        source,
        stored: match subject {
            Subject::Stored(stored) => Some(stored),
            _ => None,
        },
    };
    let mut branch = arrival.branch(product);
    way.destination_subscription(&mut branch).await?;
    way.integration(&mut branch).await?;
    way.route(&mut branch);
    way.principal(&mut branch).await?;
    if let Some(cause) = branch.checks.primary_cause()
        && let Some(stored) = way.stored
    {
        let id = way.taking().filter(|_| !product.is_empty());
        let fixes = way.fixes(&branch);
        let replay = id.map(|id| fixes.redeliver(&stored.event_id, product, &id));
        branch.replay = replay;
        branch.sentence = format!("{product} never got {}: {}", stored.event_id, cause.detail);
    }
    delivery::look(&way, branch).await
}

impl Way<'_> {
    pub(super) fn present(&self) -> &Configuration {
        &self.question.present
    }

    /// The configuration by which it was decided; the present one if nothing was.
    fn then(&self) -> &Configuration {
        self.stored.map_or(self.present(), |stored| &stored.then)
    }

    /// Then, and now.
    fn both(&self, finding: Finding, holds_in: impl Fn(&Configuration) -> CheckResult) -> Finding {
        let (then, now) = (holds_in(self.then()), holds_in(self.present()));
        finding.then(then).now(now)
    }

    /// A check of a destination: its first evidence is which.
    pub(super) fn recorded(&self, code: &'static str, title: String) -> Finding {
        Finding::recorded(code, title).saw_text("destination", self.product)
    }

    pub(super) fn current(&self, code: &'static str, title: String) -> Finding {
        Finding::current(code, title).saw_text("destination", self.product)
    }

    fn fixes<'a>(&'a self, branch: &'a Branch) -> Fixes<'a> {
        Fixes::new(self.question, &branch.checks)
    }

    /// Slug of the publishing product for people.
    fn from(&self) -> &str {
        self.source.unwrap_or("its source")
    }

    pub(super) fn to(&self) -> &str {
        match self.product {
            "" => "a destination",
            product => product,
        }
    }

    async fn destination_subscription(&self, branch: &mut Branch) -> Result<()> {
        let product = self.product;
        let title = format!("The subscription to {} is active", self.to());
        let finding = self.recorded(DEST_SUBSCRIPTION, title).needs(&[RETAINED]);
        if product.is_empty() {
            branch.look(finding.then(CheckResult::Unknown), vec![]);
            return Ok(());
        }
        let finding = self.both(finding, |configuration| {
            holds(configuration.is_active(product))
        });
        let finding = match self.then().is_active(product) {
            true => finding,
            false => {
                let epoch = self.then().epoch;
                let change = subscription_change(self.question, product, epoch).await?;
                inactive(finding, product, change.as_ref())
            }
        };
        let fix = self.fixes(branch).activate(product);
        branch.look(finding, vec![fix]);
        Ok(())
    }

    async fn integration(&self, branch: &mut Branch) -> Result<()> {
        let title = format!("Integration {} -> {} is enabled", self.from(), self.to());
        let finding = self.recorded(INTEGRATION_ENABLED, title).needs(&[RETAINED]);
        let numbers = |configuration: &Configuration| {
            let source = configuration.products.number(self.source?)?;
            let destination = configuration.products.number(self.product)?;
            (source != destination).then_some((source, destination))
        };
        let Some((source, destination)) = numbers(self.present()) else {
            branch.look(finding.then(CheckResult::Unknown), vec![]);
            return Ok(());
        };
        let on = |configuration: &Configuration| {
            configuration
                .entitlements
                .integration_on(source, destination)
        };
        let finding = self.both(finding, |configuration| holds(on(configuration)));
        let finding = match on(self.then()) {
            true => finding,
            false => {
                let (db, tenant) = (&self.question.sources.core.db, self.question.log.tenant());
                let pair = (source, destination);
                let epoch = self.then().epoch;
                let change = tenancy::integration_in_force(db, tenant, pair, epoch).await?;
                off(finding, (self.from(), self.product), &change)
            }
        };
        let fix = self.fixes(branch).integrate(self.from(), self.product);
        branch.look(finding, vec![fix]);
        Ok(())
    }

    /// Whether the catalogue or a filter names the destination.
    fn route(&self, branch: &mut Branch) {
        let (kind, to) = (self.kind, self.to());
        let event = match kind {
            "" => "the event".to_owned(),
            kind => kind.to_owned(),
        };
        let title = format!("The catalogue or a filter of {to} names {event}");
        let finding = self.recorded(ROUTE_MATCHED, title).needs(&[RETAINED]);
        if kind.is_empty() {
            branch.look(finding.then(CheckResult::Unknown), vec![]);
            return;
        }
        let named_then = match self.stored {
            Some(stored) => {
                let mut landed = stored.landed.iter();
                landed.any(|landed| landed.named.product == self.product && landed.was_named())
                    || self.later().is_some()
            }
            None => self.named_by(self.present()).is_some(),
        };
        let named_now = self.named_by(self.present()).is_some();
        let finding = finding.then(holds(named_then)).now(holds(named_now));
        let (finding, fixes) = match named_then {
            true => (self.named(finding), vec![]),
            false => self.not_named(finding, branch),
        };
        branch.look(finding, fixes);
    }

    /// The subscription of the destination that an event like this would go to now, or once the fix
    /// was run; none if that is a new one, which begins with the event.
    fn taking(&self) -> Option<String> {
        let default = || default_subscriptions::id(self.question.log.tenant(), self.product);
        if let Some(mine) = self.named_by(self.present()) {
            let own = mine.subscription.map(|own| own.subscription_id.clone());
            return Some(own.unwrap_or_else(default));
        }
        match self.present().catalogue.find(self.kind) {
            Some(_) => Some(default()),
            None => Some(self.refusing_filter()?.widens()?.to_owned()),
        }
    }

    /// Where the destination would have a new event like this.
    fn named_by<'a>(&self, configuration: &'a Configuration) -> Option<Destination<'a>> {
        let event = Event {
            kind: self.kind,
            source: self.source.unwrap_or_default(),
        };
        let takes = |filter: &Filter| match self.stored {
            Some(stored) => filter.takes(event, &stored.bytes),
            None => filter.covers(event.kind, event.source),
        };
        let named = routing::destinations(configuration, event, None, takes);
        named
            .into_iter()
            .find(|named| named.product == self.product)
    }

    /// A subscription of the destination that takes such events, and that begins after this one.
    pub(super) fn later(&self) -> Option<&Row> {
        let stored = self.stored?;
        let event = Event {
            kind: self.kind,
            source: &stored.source,
        };
        let own = self
            .present()
            .subscriptions
            .iter()
            .filter(|own| own.product == self.product);
        let mut begins_later = own.filter(|own| {
            let newest = own.filter_at(None);
            own.filter_at(Some(stored.seq)).is_none()
                && newest.is_some_and(|filter| filter.takes(event, &stored.bytes))
        });
        routing::flows(self.present(), event, self.product, true)?;
        let found = begins_later.next()?;
        self.question.row(&found.subscription_id)
    }

    /// The destination has it; where a filter of its own does not take it, that is told too.
    fn named(&self, finding: Finding) -> Finding {
        let detail = format!("{} is named for {}.", self.to(), self.kind);
        match self.refusing_filter() {
            None => finding.detail(detail),
            Some(refusing) => {
                let detail = format!("{detail} {}", refusing.sentence());
                refusing.tell(finding).detail(detail)
            }
        }
    }

    /// Why the destination is not named, and by what it would be.
    fn not_named(&self, finding: Finding, branch: &Branch) -> (Finding, Vec<Fix>) {
        let (kind, product) = (self.kind, self.product);
        if self.source == Some(product) {
            let detail = format!("{product} published it: no product is sent its own events.");
            return (finding.detail(detail), vec![]);
        }
        let entry = self.present().catalogue.find(kind);
        if entry.is_none()
            && let Some(refusing) = self.refusing_filter()
        {
            let fix = refusing.fix(self, &self.fixes(branch));
            return (refusing.tell(finding), fix.into_iter().collect());
        }
        let mut detail = match entry {
            None => format!(
                "{kind} is not in the catalogue, and no filter of {} names it.",
                self.to()
            ),
            Some(entry) if entry.destinations.is_empty() => {
                format!("The catalogue sends {kind} nowhere.")
            }
            Some(entry) => {
                format!(
                    "The catalogue sends {kind} to {} only.",
                    entry.destinations.join(", ")
                )
            }
        };
        let known = self
            .present()
            .catalogue
            .after("")
            .map(|entry| entry.name.as_str());
        let finding = match nearest(kind, known).filter(|_| entry.is_none()) {
            None => finding,
            Some(meant) => {
                detail.push_str(&format!(" Did {} mean {meant}?", self.from()));
                finding.saw_text("nearest_type", meant)
            }
        };
        let finding = match entry {
            None => finding.detail(detail),
            Some(entry) => {
                let destinations = entry.destinations.join(" ");
                finding
                    .detail(detail)
                    .saw_text("destinations", destinations)
            }
        };
        let from = self.stored.map(|stored| stored.seq);
        let fix = match (product, entry) {
            ("", _) => None,
            (product, Some(entry)) => Some(self.fixes(branch).route(entry, product)),
            // It takes nothing by subscriptions.
            (HUB, None) => None,
            (product, None) => Some(self.fixes(branch).subscribe(product, kind, from)),
        };
        (finding, fix.into_iter().collect())
    }

    /// Whether the destination has a key that takes events. What is recorded of other keys, the
    /// caller may have to be allowed to see.
    async fn principal(&self, branch: &mut Branch) -> Result<()> {
        let product = self.product;
        let title = format!("A key of {} may take events now", self.to());
        let finding = self
            .current(DEST_PRINCIPAL_ALLOWED, title)
            .needs(&[ROUTE_MATCHED]);
        if product.is_empty() || product == HUB {
            let finding = finding.detail("The hub itself needs no key.");
            let result = match product {
                "" => CheckResult::Unknown,
                _ => CheckResult::Pass,
            };
            branch.look(finding.then(result), vec![]);
            return Ok(());
        }
        if !self.present().is_active(product) {
            let detail =
                format!("Keys of {product} are refused while its subscription is not active.");
            let fix = self.fixes(branch).activate(product);
            let finding = self.judged(finding, branch, CheckResult::Fail);
            branch.look(finding.detail(detail), vec![fix]);
            return Ok(());
        }
        let (authenticator, tenant) = (
            self.question.sources.authenticator,
            self.question.log.tenant(),
        );
        let (result, detail) = match authenticator.has_key(tenant, product, TAKES).await? {
            Some(true) => (
                CheckResult::Pass,
                format!("A key of {product} has {TAKES}."),
            ),
            Some(false) => {
                let result = match self.is_expected() {
                    true => CheckResult::Fail,
                    false => CheckResult::Unknown,
                };
                let detail = format!("No key of {product} that works has {TAKES}.");
                (result, detail)
            }
            None => (
                CheckResult::Unknown,
                "This hub does not know its keys.".to_owned(),
            ),
        };
        let finding = self.judged(finding, branch, result).visible_with(SEES_KEYS);
        let fix = self.fixes(branch).key(product, TAKES);
        branch.look(finding.detail(detail).saw_text("scope", TAKES), vec![fix]);
        Ok(())
    }

    /// Somebody says that something should have happened at the destination, or its subscriptions
    /// were used.
    fn is_expected(&self) -> bool {
        let mut rows = self.question.rows.iter();
        self.question.destination.is_some()
            || rows.any(|row| row.product == self.product && row.used_time.is_some())
    }

    /// A check of what is now. For an event that did not come so far it says nothing.
    fn judged(&self, finding: Finding, branch: &Branch, result: CheckResult) -> Finding {
        let landed = self.stored.map_or(&[][..], |stored| &stored.landed);
        let mut of_product = landed
            .iter()
            .filter(|landed| landed.named.product == self.product);
        if of_product.any(Landed::was_taken) {
            return finding.then(CheckResult::Pass).now(result);
        }
        match branch.checks.primary_cause() {
            Some(_) => finding.then(result),
            None => finding.both(result),
        }
    }
}

/// Since when and until when an integration was off, by whom and why.
fn off(
    finding: Finding,
    (source, destination): (&str, &str),
    change: &InForce<Integration>,
) -> Finding {
    let since = change.then.update_time;
    let until = change.after.as_ref().map(|after| after.update_time);
    let why = match change.then.reason.as_str() {
        "" => String::new(),
        reason => format!(" ({reason})"),
    };
    let detail = format!(
        "integration {source} -> {destination} was off {}{why}.",
        during(since, until)
    );
    let enabled_at = until.unwrap_or(0);
    finding
        .detail(detail)
        .saw_time("disabled_at", since)
        .saw_resource("disabled_by", change.then.updated_by.as_str())
        .saw_text("reason", change.then.reason.as_str())
        .saw_time("enabled_at", enabled_at)
}
