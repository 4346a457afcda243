//! What a tenant may use at one routing epoch: immutable, compact, shared.

use std::sync::{Arc, LazyLock};

use super::store::{IntegrationSummary, SubscriptionSummary};
use crate::products::{ProductNo, ProductSet};

/// Why nothing flows from one product to another; the first of these that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocked {
    /// The source's subscription is not active.
    SourceInactive,
    /// The destination's subscription is not active.
    DestinationInactive,
    /// The integration is off.
    IntegrationOff,
}

/// The subscriptions and integrations of a tenant at one epoch.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    active: ProductSet,
    was_active: ProductSet,
    /// Source and destination of each integration that is off, sorted.
    off: Box<[(ProductNo, ProductNo)]>,
}

/// Nearly every tenant has this one.
static DEFAULT: LazyLock<Arc<Snapshot>> = LazyLock::new(|| {
    Arc::new(Snapshot {
        active: ProductSet::of_the_suite(),
        was_active: ProductSet::of_the_suite(),
        off: Box::default(),
    })
});

impl Snapshot {
    /// All products of the suite active, all integrations on: one in memory for all tenants.
    pub fn suite() -> Arc<Snapshot> {
        DEFAULT.clone()
    }

    pub(super) fn new(
        subscriptions: &[SubscriptionSummary],
        integrations: &[IntegrationSummary],
    ) -> Arc<Snapshot> {
        let (mut active, mut was_active) = (DEFAULT.active, DEFAULT.was_active);
        for change in subscriptions {
            active.set(change.product, change.active);
            let from_the_start = change.product.is_of_the_suite() && !change.at_the_start;
            was_active.set(change.product, change.was_active || from_the_start);
        }
        let off = integrations.iter().filter(|integration| !integration.on);
        let mut off: Vec<_> = off
            .map(|integration| (integration.source, integration.destination))
            .collect();
        off.sort_unstable();
        let snapshot = Snapshot {
            active,
            was_active,
            off: off.into(),
        };
        if snapshot == **DEFAULT {
            return DEFAULT.clone();
        }
        Arc::new(snapshot)
    }

    /// The suite's products but for some that were ended, and integrations that are off.
    pub fn with_deviations(ended: &[ProductNo], off: &[(ProductNo, ProductNo)]) -> Arc<Snapshot> {
        let ended = ended.iter().map(|product| SubscriptionSummary {
            product: *product,
            active: false,
            was_active: false,
            at_the_start: false,
        });
        let off = off.iter().map(|(source, destination)| IntegrationSummary {
            source: *source,
            destination: *destination,
            on: false,
        });
        Snapshot::new(&ended.collect::<Vec<_>>(), &off.collect::<Vec<_>>())
    }

    /// The suite's products but for some that the tenant did not begin with.
    pub fn never_had(products: &[ProductNo]) -> Arc<Snapshot> {
        let products = products.iter().map(|product| SubscriptionSummary {
            product: *product,
            active: false,
            was_active: false,
            at_the_start: true,
        });
        Snapshot::new(&products.collect::<Vec<_>>(), &[])
    }

    /// Whether the subscription to a product is active.
    pub fn is_active(&self, product: ProductNo) -> bool {
        self.active.contains(product)
    }

    /// Whether the subscription to a product is active, or was at an earlier epoch.
    pub fn was_active(&self, product: ProductNo) -> bool {
        self.was_active.contains(product)
    }

    /// Whether the switch from one product to another is on; it says nothing of subscriptions.
    pub fn integration_on(&self, source: ProductNo, destination: ProductNo) -> bool {
        self.off.binary_search(&(source, destination)).is_err()
    }

    /// Whether data flows from one product to another.
    pub fn flows(&self, source: ProductNo, destination: ProductNo) -> Result<(), Blocked> {
        if !self.is_active(source) {
            return Err(Blocked::SourceInactive);
        }
        if !self.is_active(destination) {
            return Err(Blocked::DestinationInactive);
        }
        if !self.integration_on(source, destination) {
            return Err(Blocked::IntegrationOff);
        }
        Ok(())
    }

    /// Memory that one tenant's snapshot takes, in bytes: nothing if it is the shared one.
    pub(super) fn memory(self: &Arc<Self>) -> usize {
        if Arc::ptr_eq(self, &DEFAULT) {
            return 0;
        }
        let counts = 2 * size_of::<usize>();
        size_of::<Snapshot>() + counts + size_of_val(&*self.off)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(number: i64) -> ProductNo {
        ProductNo::new(number).unwrap()
    }

    fn change(number: i64, active: bool, at_the_start: bool) -> SubscriptionSummary {
        SubscriptionSummary {
            product: product(number),
            active,
            was_active: active,
            at_the_start,
        }
    }

    fn integration(source: i64, destination: i64, on: bool) -> IntegrationSummary {
        IntegrationSummary {
            source: product(source),
            destination: product(destination),
            on,
        }
    }

    #[test]
    fn without_deviations_it_is_the_one_that_all_share() {
        let plain = Snapshot::new(&[], &[]);
        let back = Snapshot::new(&[change(3, true, false)], &[integration(1, 6, true)]);
        assert!(Arc::ptr_eq(&plain, &Snapshot::suite()) && Arc::ptr_eq(&back, &plain));
        assert_eq!(plain.flows(product(1), product(6)), Ok(()));
        assert_eq!(plain.memory(), 0);
        assert!(!plain.is_active(product(13)) && !plain.was_active(product(13)));
    }

    #[test]
    fn data_flows_between_active_products_whose_integration_is_on() {
        let changes = [change(2, false, false), change(13, true, false)];
        let snapshot = Snapshot::new(&changes, &[integration(1, 6, false)]);
        let flows = |source, destination| snapshot.flows(product(source), product(destination));
        assert_eq!(flows(1, 3), Ok(()));
        assert_eq!(flows(1, 13), Ok(()));
        assert_eq!(flows(6, 1), Ok(()), "each direction has its own switch");
        assert_eq!(flows(1, 6), Err(Blocked::IntegrationOff));
        assert_eq!(flows(1, 2), Err(Blocked::DestinationInactive));
        assert_eq!(flows(2, 14), Err(Blocked::SourceInactive));
        assert!(snapshot.memory() > 0);
    }

    #[test]
    fn what_was_active_once_is_remembered() {
        let changes = [
            change(2, false, false),
            change(3, false, true),
            change(13, true, false),
        ];
        let snapshot = Snapshot::new(&changes, &[]);
        assert!(
            snapshot.was_active(product(2)),
            "it was before its first change"
        );
        assert!(!snapshot.was_active(product(3)), "the tenant never had it");
        assert!(snapshot.was_active(product(13)));
    }
}
