//! Who sees what of the event log: a product what it published and what flows to it, and of other
//! destinations only the state.

use std::sync::Arc;

use hub_core::auth::Caller;
use hub_proto::hub::event_bus::v1::{EventDelivery, EventDeliveryState};

/// Scopes that show all events of the tenant.
const ALL: [&str; 2] = ["hub:events.read_all", "hub:diagnostics.read"];

/// Who looks.
#[derive(Debug, Clone)]
pub(crate) struct Viewer {
    product: Option<Arc<str>>,
    sees_all: bool,
}

impl Viewer {
    /// By the key of a call.
    pub(crate) fn of(caller: &Caller) -> Viewer {
        Viewer {
            product: caller.product.clone(),
            sees_all: ALL.iter().any(|scope| caller.scopes.allow(scope)),
        }
    }

    /// The product that it speaks for.
    pub(crate) fn product(&self) -> Option<&str> {
        self.product.as_deref()
    }

    /// Whether it is this product.
    pub(crate) fn is(&self, product: &str) -> bool {
        self.product() == Some(product)
    }

    /// Whether it sees the things of all products.
    pub(crate) fn sees_all(&self) -> bool {
        self.sees_all
    }

    /// Whether the things of a product are its own to see.
    pub(crate) fn sees_product(&self, product: &str) -> bool {
        self.sees_all || self.is(product)
    }

    /// Whether it sees an event of `publisher` with these deliveries.
    pub(crate) fn sees(&self, publisher: &str, deliveries: &[EventDelivery]) -> bool {
        let flows = |delivery: &EventDelivery| {
            self.is(&delivery.product) && delivery.state() != EventDeliveryState::NotRouted
        };
        self.sees_product(publisher) || deliveries.iter().any(flows)
    }

    /// The delivery as it may be shown.
    pub(crate) fn show(&self, delivery: EventDelivery) -> EventDelivery {
        if self.sees_product(&delivery.product) {
            return delivery;
        }
        EventDelivery {
            event_id: delivery.event_id,
            subscription_id: delivery.subscription_id,
            product: delivery.product,
            state: delivery.state,
            ..EventDelivery::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hub_core::auth::Scopes;

    fn viewer(product: &str, scope: &str) -> Viewer {
        let scopes = Scopes::new([scope.to_owned()]);
        Viewer {
            product: Some(product).filter(|p| !p.is_empty()).map(Arc::from),
            sees_all: ALL.iter().any(|all| scopes.allow(all)),
        }
    }

    fn delivery(product: &str, state: EventDeliveryState) -> EventDelivery {
        EventDelivery {
            product: product.to_owned(),
            state: state.into(),
            last_error: "refused".to_owned(),
            ..EventDelivery::default()
        }
    }

    #[test]
    fn a_product_sees_what_it_published_and_what_flows_to_it() {
        use EventDeliveryState::{NotRouted, Queued};
        for (product, scope, sees) in [
            ("psa", "hub:events.read", true),
            ("portal", "hub:events.read", true),
            ("books", "hub:events.read", false),
            ("crm", "hub:events.read", false),
            ("crm", "hub:events.read_all", true),
            ("crm", "hub:diagnostics.read", true),
            ("", "hub:*", true),
            ("", "hub:events.read", false),
        ] {
            let deliveries = [delivery("portal", Queued), delivery("books", NotRouted)];
            let seen = viewer(product, scope).sees("psa", &deliveries);
            assert_eq!(seen, sees, "{product} {scope}");
        }
    }

    #[test]
    fn of_other_destinations_only_the_state_is_shown() {
        let shown = |viewer: Viewer| viewer.show(delivery("portal", EventDeliveryState::Failed));
        let other = shown(viewer("psa", "hub:events.read"));
        assert_eq!(
            (other.state(), &*other.last_error),
            (EventDeliveryState::Failed, "")
        );
        for viewer in [
            viewer("portal", "hub:events.read"),
            viewer("psa", "hub:diagnostics.read"),
        ] {
            assert_eq!(shown(viewer).last_error, "refused");
        }
    }
}
