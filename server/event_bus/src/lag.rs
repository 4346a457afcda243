//! How far durable subscriptions at work are behind, for the metrics: by product, of whichever is
//! behind most. Which one that is, and those that nobody consumes, ListSubscriptions tells.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hub_core::clock::Micros;
use hub_core::error::Result;

use crate::groups::Groups;

/// Pause between two looks.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);
/// Subscriptions whose oldest event is looked up in one look: those with the most events left.
const LOOKED_UP_MAX: usize = 100;

/// Events, and the age of the oldest of them in microseconds.
type Most = (u64, Micros);

/// The products of which it was told: one that has none at work any more is behind no more.
#[derive(Default)]
pub(crate) struct Lag {
    told: Mutex<BTreeSet<Arc<str>>>,
}

impl Lag {
    /// Measures, and tells. Errors: `STORE_BUSY`.
    pub(crate) async fn measure(&self, groups: &Groups) -> Result<()> {
        let now = groups.parts().core.clock.now();
        let open = groups.open_now().into_iter();
        let mut open: Vec<_> = open.map(|group| (group.behind(), group)).collect();
        open.sort_by_key(|((events, _), _)| Reverse(*events));
        let mut found: BTreeMap<Arc<str>, Most> = BTreeMap::new();
        for (at, ((events, oldest), group)) in open.into_iter().enumerate() {
            let most = found.entry(group.product.clone()).or_default();
            most.0 = most.0.max(events);
            if events > 0 && at < LOOKED_UP_MAX {
                let recorded = group.recorded(oldest).await?;
                most.1 = most.1.max(recorded.map_or(0, |time| now - time));
            }
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for product in std::mem::take(&mut *told) {
            found.entry(product).or_default();
        }
        for (product, (events, age)) in &found {
            let dest = product.to_string();
            metrics::gauge!("hub_subscription_lag_events", "dest" => dest.clone())
                .set(*events as f64);
            metrics::gauge!("hub_subscription_lag_seconds", "dest" => dest).set(*age as f64 / 1e6);
        }
        *told = found.into_keys().collect();
        Ok(())
    }
}
