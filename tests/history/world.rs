//! The tenants of a run, their keys, and the clients that work with them.

use std::sync::Arc;
use std::time::Duration;

use hub_client::Hub;
use hub_client::proto::hub::platform::v1::SetIntegrationRequest;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::durables;
use super::filter::{ALERT, TICKET, Wanted};
use super::load::{
    Habit, Identity, Phase, RETRY_PAUSE, Site, consume, publish, publish_stream, pull, redeliver,
    subscribe,
};
use super::records::{Durable, Happening, Subscribing, now};
use super::tracks::{At, Consumer, Publisher, Redeliverer, Subscriber};
use crate::support::Tenant;

const PUBLISH: &[&str] = &["hub:events.publish"];
const CONSUME: &[&str] = &[
    "hub:events.read",
    "hub:subscriptions.read",
    "hub:subscriptions.write",
];
const AUDIT: &[&str] = &[
    "hub:events.read",
    "hub:events.read_all",
    "hub:subscriptions.read",
    "hub:diagnostics.read",
];

/// The integration that is switched off and on.
const SOURCE: &str = "psa";
const DESTINATION: &str = "portal";

/// A tenant of the run, with its keys.
pub struct Party {
    pub number: usize,
    pub tenant_id: String,
    pub admin_key: String,
    psa: String,
    rmm: String,
    portal: String,
    oncall: String,
    /// Of the product cmdb; it sees everything.
    pub auditor: String,
}

impl Party {
    /// Makes one.
    pub async fn create(number: usize, operator: &Hub, connect: impl Fn(&str) -> Hub) -> Party {
        let tenant = Tenant::create(operator).await;
        let admin = connect(&tenant.admin_key);
        let key = async |product: &str, scopes: &[&str]| tenant.key(&admin, product, scopes).await;
        Party {
            number,
            psa: key("psa", PUBLISH).await,
            rmm: key("rmm", PUBLISH).await,
            portal: key("portal", CONSUME).await,
            oncall: key("oncall", CONSUME).await,
            auditor: key("cmdb", AUDIT).await,
            admin_key: tenant.admin_key,
            tenant_id: tenant.id,
        }
    }

    fn identity(&self, role: &str, product: &str, key: &str, number: usize) -> Identity {
        Identity {
            name: format!("{role}-{}-{product}-{number}", self.number),
            tenant: self.number,
            product: product.to_owned(),
            key: key.to_owned(),
        }
    }

    /// Two publishers by calls, and two by streams.
    pub fn start_publishers(&self, site: &Arc<Site>, all: &mut JoinSet<Publisher>) {
        for (product, key) in [("psa", &self.psa), ("rmm", &self.rmm)] {
            let identity = self.identity("publisher", product, key, 1);
            all.spawn(Box::pin(publish(site.clone(), identity)));
            let identity = self.identity("publisher", product, key, 2);
            all.spawn(Box::pin(publish_stream(site.clone(), identity)));
        }
    }

    /// Readers of everything, of what is routed, and of what filters match.
    pub fn start_subscribers(&self, site: &Arc<Site>, all: &mut JoinSet<Subscriber>) {
        let keyed = Wanted {
            key_prefix: "key-1".to_owned(),
            ..Wanted::types(&["load.*", TICKET])
        };
        let of_rmm = Wanted {
            products: vec!["rmm".to_owned()],
            ..Wanted::default()
        };
        let (everything, ticks) = (Wanted::default(), Wanted::types(&["load.**"]));
        let alerts = Wanted::types(&[ALERT, "load.tick.deep"]);
        let readers = [
            ("cmdb", true, everything.clone(), Habit::Steady),
            ("cmdb", true, everything.clone(), Habit::Slow),
            ("cmdb", true, of_rmm, Habit::Steady),
            ("cmdb", true, ticks.clone(), Habit::Fresh),
            ("portal", false, everything, Habit::Steady),
            ("portal", false, keyed, Habit::Steady),
            ("portal", false, ticks, Habit::Slow),
            ("oncall", false, alerts, Habit::Steady),
        ];
        for (number, (product, all_products, wanted, habit)) in readers.into_iter().enumerate() {
            let key = match product {
                "portal" => &self.portal,
                "oncall" => &self.oncall,
                _ => &self.auditor,
            };
            let identity = self.identity("subscriber", product, key, number);
            let about = Subscribing {
                product: product.to_owned(),
                all_products,
                wanted,
            };
            all.spawn(Box::pin(subscribe(site.clone(), identity, about, habit)));
        }
    }

    /// Makes the durable subscriptions.
    pub async fn subscribe(&self, connect: impl Fn(&str) -> Hub) -> Vec<Durable> {
        let (portal, oncall) = (connect(&self.portal), connect(&self.oncall));
        let mut all = Vec::new();
        for durable in durables::own() {
            all.push(durables::create(&portal, durable).await);
        }
        all.push(durables::default(&portal, "portal").await);
        all.push(durables::default(&oncall, "oncall").await);
        all
    }

    /// Two consumers for each subscription that is consumed: both by Consume, or one by Pull.
    pub fn start_consumers(
        &self,
        site: &Arc<Site>,
        durables: &[Durable],
        all: &mut JoinSet<Consumer>,
    ) {
        for durable in durables.iter().filter(|durable| durable.consumed) {
            let key = match durable.product.as_str() {
                "oncall" => &self.oncall,
                _ => &self.portal,
            };
            let pulled = matches!(
                durable.name.as_str(),
                "portal" | "portal-none" | "portal-total"
            );
            for number in 1..=2 {
                let identity = self.identity("consumer", &durable.name, key, number);
                let (site, durable) = (site.clone(), durable.clone());
                if pulled && number == 2 {
                    all.spawn(Box::pin(pull(site, identity, durable)));
                } else {
                    all.spawn(Box::pin(consume(site, identity, durable)));
                }
            }
        }
    }

    /// One for each subscription of which events are asked for again.
    pub fn start_redeliverers(
        &self,
        site: &Arc<Site>,
        durables: &[Durable],
        all: &mut JoinSet<Redeliverer>,
    ) {
        for durable in durables.iter().filter(|durable| durable.redelivered) {
            let identity = self.identity("redeliverer", &durable.name, &self.admin_key, 1);
            all.spawn(Box::pin(redeliver(site.clone(), identity, durable.clone())));
        }
    }
}

/// Switches the integration off and on again, over and over, until the load is over.
pub async fn switch(
    site: Arc<Site>,
    tenant: usize,
    admin_key: String,
    happenings: mpsc::UnboundedSender<At<Happening>>,
) {
    let tell = |record| {
        let at = now();
        // The run may be over.
        let _ = happenings.send(At { at, record });
    };
    let mut random = site.random(&format!("switch-{tenant}"));
    let mut enabled = true;
    while site.phase() == Phase::Load || !enabled {
        enabled = !enabled;
        let (source, destination) = (SOURCE.to_owned(), DESTINATION.to_owned());
        tell(Happening::Switching {
            tenant,
            source: source.clone(),
            destination: destination.clone(),
            enabled,
        });
        let request = SetIntegrationRequest {
            source: source.clone(),
            destination: destination.clone(),
            enabled,
            ..SetIntegrationRequest::default()
        };
        while site.phase() < Phase::Over {
            let (hub, _) = site.connect(&mut random, &admin_key);
            if hub
                .platform()
                .set_integration(request.clone())
                .await
                .is_ok()
            {
                tell(Happening::Switched {
                    tenant,
                    source,
                    destination,
                    enabled,
                });
                break;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        let pause = if enabled {
            1000 + random.below(3000)
        } else {
            300 + random.below(900)
        };
        tokio::time::sleep(Duration::from_millis(pause as u64)).await;
    }
}
