//! The decision: where does an event go? A pure function of the event and of the tenant's
//! configuration at one routing epoch, used by whoever asks: publish, the readers, the log.
//!
//! A segment of the log says under which epoch it was committed, and what was in force at an epoch
//! never changes, so that everybody comes to the same answer, whenever they ask.

use std::sync::Arc;

use hub_core::error::Result;
use hub_core::journal::{Journal, TenantRef};
use hub_core::module::Core;
use hub_core::products::{Product, Products};
use hub_core::tenancy::{Blocked, Snapshot, Tenancy};
use hub_proto::hub::event_bus::v1::NotRoutedReason;

use crate::event_types::{Catalogue, Catalogues, EventType};
use crate::filter::Filter;
use crate::own_subscriptions::OwnSubscriptions;
use crate::refusals::Refusals;
use crate::schema::Schemas;

/// All that decides where events of a tenant go, at one epoch.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// The epoch.
    pub epoch: u64,
    /// The products; one that is there keeps its number for ever.
    pub products: Arc<Products>,
    /// Product subscriptions and integrations.
    pub entitlements: Arc<Snapshot>,
    /// Types of events, and which products they go to.
    pub catalogue: Arc<Catalogue>,
    /// Durable subscriptions beside the default ones: those that are there now, whatever the epoch.
    pub subscriptions: Arc<[Subscription]>,
}

impl Configuration {
    /// Whether the tenant's subscription to a product is active.
    pub fn is_active(&self, product: &str) -> bool {
        let number = self.products.number(product);
        number.is_some_and(|number| self.entitlements.is_active(number))
    }
}

/// A durable subscription that a product made itself.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Id, `sub_…`.
    pub subscription_id: String,
    /// Slug of the product that owns it.
    pub product: String,
    /// Which events it takes: each filter decides about events from its sequence on, until the
    /// next one. Ascending.
    pub filters: Vec<(u64, Filter)>,
}

impl Subscription {
    /// The filter that decides about the event at `seq`, or about the next one without it. None if
    /// the subscription does not have that event at all.
    pub fn filter_at(&self, seq: Option<u64>) -> Option<&Filter> {
        let filters = self.filters.iter().rev();
        let mut deciding = filters.filter(|(from, _)| seq.is_none_or(|seq| *from <= seq));
        deciding.next().map(|(_, filter)| filter)
    }

    /// Memory that it takes, about, in bytes.
    pub fn bytes(&self) -> usize {
        let filters = self.filters.iter();
        let filters: usize = filters.map(|(_, filter)| 8 + filter.bytes()).sum();
        size_of::<Self>() + self.subscription_id.len() + self.product.len() + filters
    }
}

/// What of an event decides where it goes.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// CloudEvents type.
    pub kind: &'a str,
    /// Slug of the product that published it.
    pub source: &'a str,
}

/// What becomes of an event for a destination that the catalogue or a filter names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It goes there.
    Flows,
    /// It was recorded, but does not go there.
    NotRouted(NotRoutedReason),
}

/// A destination of an event.
#[derive(Debug, Clone)]
pub struct Destination<'a> {
    /// Slug of the product.
    pub product: &'a str,
    /// The product's own subscription; none = its default one.
    pub subscription: Option<&'a Subscription>,
    /// Whether the event goes there.
    pub outcome: Outcome,
}

/// What becomes of an event for one product; `None` if nothing names the product.
///
/// `chosen` says that the reader's own filter names the type: types outside the catalogue go only
/// to readers that ask for them. A product is never routed its own events.
pub fn flows(
    configuration: &Configuration,
    event: Event<'_>,
    destination: &str,
    chosen: bool,
) -> Option<Outcome> {
    let named = match configuration.catalogue.find(event.kind) {
        Some(entry) => entry.goes_to(destination),
        None => chosen,
    };
    (named && event.source != destination).then(|| outcome(configuration, event, destination))
}

/// All destinations that the catalogue or a filter names, default ones first, by product.
///
/// `seq` is where the event is stored; without it, it is one that is about to be. `matches` says
/// whether the event matches the filter of a subscription. `*` in the catalogue names the products
/// that have a subscription to begin with: now, or at an earlier epoch.
pub fn destinations<'a>(
    configuration: &'a Configuration,
    event: Event<'_>,
    seq: Option<u64>,
    matches: impl Fn(&Filter) -> bool,
) -> Vec<Destination<'a>> {
    let default = configuration.products.iter().filter_map(|product| {
        Some(Destination {
            product: &product.slug,
            subscription: None,
            outcome: to_default(configuration, event, product)?,
        })
    });
    let own = configuration.subscriptions.iter().filter_map(|own| {
        Some(Destination {
            product: &own.product,
            subscription: Some(own),
            outcome: to_own(configuration, event, seq, own, &matches)?,
        })
    });
    default.chain(own).collect()
}

/// What becomes of an event for the default subscription of a product; `None` if the catalogue does
/// not name the product.
pub fn to_default(
    configuration: &Configuration,
    event: Event<'_>,
    product: &Product,
) -> Option<Outcome> {
    let entry = configuration.catalogue.find(event.kind)?;
    let named = names(configuration, entry, product) && product.slug != event.source;
    named.then(|| outcome(configuration, event, &product.slug))
}

/// What becomes of an event for a subscription that a product made; `None` if its filter or the
/// catalogue does not let it have the event. `seq` and `matches` as in [`destinations`].
pub fn to_own(
    configuration: &Configuration,
    event: Event<'_>,
    seq: Option<u64>,
    own: &Subscription,
    matches: impl Fn(&Filter) -> bool,
) -> Option<Outcome> {
    let filter = own.filter_at(seq)?;
    let outcome = flows(configuration, event, &own.product, true)?;
    matches(filter).then_some(outcome)
}

/// How many durable subscriptions an event goes to.
pub fn count(destinations: &[Destination<'_>]) -> u32 {
    let flowing = destinations
        .iter()
        .filter(|destination| destination.outcome == Outcome::Flows);
    u32::try_from(flowing.count()).unwrap_or(u32::MAX)
}

/// Whether the catalogue sends a type to a product's default subscription.
fn names(configuration: &Configuration, entry: &EventType, product: &Product) -> bool {
    if !entry.goes_to(&product.slug) {
        return false;
    }
    !entry.goes_to_all() || configuration.entitlements.was_active(product.number)
}

/// The first reason in this order: source, destination, integration.
fn outcome(configuration: &Configuration, event: Event<'_>, destination: &str) -> Outcome {
    let number = |slug| configuration.products.number(slug);
    let blocked = match (number(event.source), number(destination)) {
        (Some(source), Some(destination)) => {
            configuration.entitlements.flows(source, destination).err()
        }
        (None, _) => Some(Blocked::SourceInactive),
        (_, None) => Some(Blocked::DestinationInactive),
    };
    match blocked {
        None => Outcome::Flows,
        Some(Blocked::SourceInactive) => Outcome::NotRouted(NotRoutedReason::SourceInactive),
        Some(Blocked::DestinationInactive) => {
            Outcome::NotRouted(NotRoutedReason::DestinationInactive)
        }
        Some(Blocked::IntegrationOff) => Outcome::NotRouted(NotRoutedReason::IntegrationOff),
    }
}

/// Puts the configuration of a tenant together; cheap to clone.
#[derive(Clone)]
pub struct Configurations {
    sources: Arc<Sources>,
}

struct Sources {
    tenancy: Tenancy,
    journal: Arc<Journal>,
    catalogues: Arc<Catalogues>,
    subscriptions: OwnSubscriptions,
    refusals: Refusals,
}

impl Configurations {
    /// Over the tenants of a database.
    pub fn new(core: &Core, catalogues: Arc<Catalogues>) -> Self {
        let sources = Sources {
            tenancy: core.tenancy.clone(),
            journal: core.journal.clone(),
            catalogues,
            subscriptions: OwnSubscriptions::new(core),
            refusals: Refusals::new(core.clock.clone()),
        };
        Configurations {
            sources: Arc::new(sources),
        }
    }

    /// What was, or is, in force at an epoch, with the subscriptions that there are now.
    /// Errors: `STORE_BUSY`.
    pub async fn at(&self, tenant: &TenantRef, epoch: u64) -> Result<Arc<Configuration>> {
        let present = self.sources.journal.routing_epoch(tenant).await?;
        self.of(tenant, epoch, present).await
    }

    async fn of(&self, tenant: &TenantRef, epoch: u64, present: u64) -> Result<Arc<Configuration>> {
        Ok(Arc::new(Configuration {
            epoch,
            products: self.sources.tenancy.products().await?,
            entitlements: self.sources.tenancy.snapshot(tenant, epoch).await?,
            catalogue: self.sources.catalogues.at(tenant, epoch).await?,
            subscriptions: self.sources.subscriptions.at(tenant, present).await?,
        }))
    }

    /// Memory of the subscriptions that products made, about, in bytes.
    pub fn subscriptions_bytes(&self) -> usize {
        self.sources.subscriptions.bytes()
    }

    /// What publishing refused of late.
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.sources.refusals
    }

    /// Compiled schemas of the data of events.
    pub fn schemas(&self) -> &Schemas {
        self.sources.catalogues.schemas()
    }

    /// What is in force now, at most a second old. Errors: `STORE_BUSY`.
    pub async fn current(&self, tenant: &TenantRef) -> Result<Arc<Configuration>> {
        let present = self.sources.journal.routing_epoch(tenant).await?;
        self.of(tenant, present, present).await
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use hub_core::clock::Micros;
    use hub_core::products::{ProductNo, SLUGS};
    use hub_proto::hub::event_bus::v1::EventFilter;

    use super::*;

    const NEVER: Micros = 0;

    /// What a tenant has that changed nothing.
    pub(crate) fn suite() -> Configuration {
        let product = |(at, slug): (usize, &&str)| Product {
            number: ProductNo::new(at as i64 + 1).unwrap(),
            slug: (*slug).to_owned(),
            display_name: (*slug).to_owned(),
            base_urls: Vec::new(),
            rate_limited_status: 429,
            update_time: NEVER,
            version: 1,
        };
        let products = SLUGS.iter().enumerate().map(product).collect();
        Configuration {
            epoch: 0,
            products: Arc::new(Products::new(products)),
            entitlements: Snapshot::suite(),
            catalogue: Catalogue::built_in(),
            subscriptions: Arc::default(),
        }
    }

    fn without(products: &[&str], pairs: &[(&str, &str)]) -> Configuration {
        let mut changed = suite();
        let number = |slug: &&str| changed.products.number(slug).unwrap();
        let inactive: Vec<_> = products.iter().map(number).collect();
        let off: Vec<_> = pairs
            .iter()
            .map(|(source, destination)| (number(source), number(destination)))
            .collect();
        changed.entitlements = Snapshot::with_deviations(&inactive, &off);
        changed
    }

    fn event<'a>(kind: &'a str, source: &'a str) -> Event<'a> {
        Event { kind, source }
    }

    fn all<'a>(configuration: &'a Configuration, event: Event<'_>) -> Vec<(&'a str, Outcome)> {
        destinations(configuration, event, None, |_| true)
            .into_iter()
            .map(|destination| (destination.product, destination.outcome))
            .collect()
    }

    #[test]
    fn the_first_catalogue_routes_as_the_guide_says() {
        let suite = suite();
        for (kind, source, destination, expected) in [
            ("ticket.created", "psa", "portal", true),
            ("ticket.created", "psa", "hub", true),
            ("ticket.created", "psa", "crm", false),
            ("alert.triggered", "rmm", "psa", true),
            ("alert.triggered", "security", "oncall", true),
            ("company.updated", "crm", "books", true),
            ("company.updated", "crm", "crm", false),
            ("invoice.created", "books", "portal", true),
            ("unheard.of", "psa", "portal", false),
        ] {
            let outcome = flows(&suite, event(kind, source), destination, false);
            let expected = expected.then_some(Outcome::Flows);
            assert_eq!(outcome, expected, "{kind} {destination}");
        }
        let chosen = flows(&suite, event("unheard.of", "psa"), "portal", true);
        assert_eq!(chosen, Some(Outcome::Flows));
        assert_eq!(
            flows(&suite, event("ticket.created", "psa"), "crm", true),
            None
        );
        let count = |kind, source| all(&suite, event(kind, source)).len();
        assert_eq!(count("ticket.created", "psa"), 2);
        assert_eq!(count("company.updated", "crm"), 11);
        assert_eq!(count("unheard.of", "psa"), 0);
    }

    #[test]
    fn the_first_reason_is_told_source_before_destination_before_integration() {
        use NotRoutedReason::{DestinationInactive, IntegrationOff, SourceInactive};
        let ticket = event("ticket.created", "psa");
        let off = [("psa", "portal")];
        for (inactive, reason) in [
            (&["psa", "portal"][..], SourceInactive),
            (&["portal"][..], DestinationInactive),
            (&[][..], IntegrationOff),
        ] {
            let outcome = flows(&without(inactive, &off), ticket, "portal", false);
            assert_eq!(outcome, Some(Outcome::NotRouted(reason)));
        }
        let other_way = without(&[], &[("portal", "psa")]);
        assert_eq!(
            flows(&other_way, ticket, "portal", false),
            Some(Outcome::Flows)
        );
    }

    #[test]
    fn a_named_destination_is_told_though_it_does_not_flow_and_others_are_not() {
        let none = without(&["portal"], &[("psa", "crm")]);
        let inactive = Outcome::NotRouted(NotRoutedReason::DestinationInactive);
        assert_eq!(
            all(&none, event("ticket.created", "psa")),
            [("hub", Outcome::Flows), ("portal", inactive)]
        );
        let found = destinations(&none, event("ticket.created", "psa"), None, |_| true);
        assert_eq!(count(&found), 1);
    }

    #[test]
    fn every_product_means_those_that_the_tenant_ever_had() {
        let mut tenant = suite();
        let books = tenant.products.number("books").unwrap();
        tenant.entitlements = Snapshot::never_had(&[books]);
        let company = event("company.updated", "crm");
        let named: Vec<_> = all(&tenant, company).into_iter().map(|one| one.0).collect();
        assert_eq!(named.len(), 10);
        assert!(!named.contains(&"books"));
    }

    #[test]
    fn a_subscription_of_its_own_takes_what_its_filter_matches_if_the_catalogue_lets_it() {
        let mut tenant = without(&[], &[("psa", "voice")]);
        let own = |product: &str| Subscription {
            subscription_id: format!("sub_{product}"),
            product: product.to_owned(),
            filters: vec![(1, Filter::default())],
        };
        tenant.subscriptions = [own("crm"), own("voice"), own("psa")].into();
        let off = Outcome::NotRouted(NotRoutedReason::IntegrationOff);
        assert_eq!(
            all(&tenant, event("unheard.of", "psa")),
            [("crm", Outcome::Flows), ("voice", off)]
        );
        let none = destinations(&tenant, event("unheard.of", "psa"), None, |_| false);
        assert!(none.is_empty());
        let ticket = all(&tenant, event("ticket.created", "psa"));
        assert_eq!(
            ticket,
            [("hub", Outcome::Flows), ("portal", Outcome::Flows)]
        );
    }

    #[test]
    fn the_filter_of_its_sequence_decides_about_an_event() {
        let of_types = |types: &[&str]| {
            let types = types.iter().map(|kind| (*kind).to_owned()).collect();
            Filter::new(&EventFilter {
                types,
                ..EventFilter::default()
            })
            .unwrap()
        };
        let mut tenant = suite();
        tenant.subscriptions = [Subscription {
            subscription_id: "sub_1".to_owned(),
            product: "crm".to_owned(),
            filters: vec![(5, of_types(&["deal.won"])), (9, of_types(&["deal.lost"]))],
        }]
        .into();
        let takes = |kind: &str, seq: Option<u64>| {
            let event = event(kind, "psa");
            let matches = |filter: &Filter| filter.covers(event.kind, event.source);
            !destinations(&tenant, event, seq, matches).is_empty()
        };
        for (kind, seq, expected) in [
            ("deal.won", Some(4), false),
            ("deal.won", Some(5), true),
            ("deal.won", Some(8), true),
            ("deal.won", Some(9), false),
            ("deal.lost", Some(8), false),
            ("deal.lost", Some(u64::MAX), true),
            ("deal.lost", None, true),
            ("deal.won", None, false),
        ] {
            assert_eq!(takes(kind, seq), expected, "{kind} {seq:?}");
        }
    }
}
