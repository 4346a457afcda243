//! What delivery needs to know of a subscription.

use hub_core::clock::Micros;
use hub_proto::hub::event_bus::v1::{ExhaustedAction, Ordering, RetryPolicy};

use super::{Pause, Stored};

/// Waits before each retry unless the subscription has its own, in microseconds: 1 min, 5 min,
/// 30 min, 2 h.
const DELAYS: [Micros; 4] = [60_000_000, 300_000_000, 1_800_000_000, 7_200_000_000];

/// What delivery needs to know of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Id, `sub_…`.
    pub id: String,
    /// Slug of the owning product.
    pub product: String,
    /// Name, unique within the product.
    pub name: String,
    /// It takes what the catalogue names its product for, not what a filter says.
    pub is_default: bool,
    /// Order of delivery; never unspecified.
    pub ordering: Ordering,
    /// Waits before each retry.
    pub delays: Vec<Micros>,
    /// What happens after the last attempt; never unspecified.
    pub on_exhausted: ExhaustedAction,
    /// Time to ack.
    pub lease: Micros,
    /// Limit of deliveries per second; 0 = none.
    pub max_per_second: u32,
    /// The last pause, unless it was resumed; [`Pause::holds`] says whether it is in force.
    pub pause: Option<Pause>,
    /// When a consumer first used it.
    pub used_time: Option<Micros>,
    /// Rises with every change of the settings and with every pause.
    pub version: u64,
}

impl Settings {
    /// The settings in a row, with the defaults in place of what it leaves open.
    pub fn of(stored: &Stored) -> Settings {
        let retry = effective(&stored.retry);
        Settings {
            id: stored.id.clone(),
            product: stored.product.clone(),
            name: stored.name.clone(),
            is_default: stored.is_default,
            ordering: stored.ordering,
            delays: retry.delays.iter().map(length).collect(),
            on_exhausted: retry.on_exhausted(),
            lease: stored.lease_duration,
            max_per_second: stored.max_per_second,
            pause: stored.pause.clone(),
            used_time: stored.used_time,
            version: stored.version,
        }
    }

    /// The pause that is in force.
    pub fn paused(&self, now: Micros) -> Option<&Pause> {
        self.pause.as_ref().filter(|pause| pause.holds(now))
    }
}

/// A policy with the defaults in place of what it leaves open.
fn effective(retry: &RetryPolicy) -> RetryPolicy {
    let delays = match retry.delays.is_empty() {
        true => DELAYS.iter().copied().map(duration).collect(),
        false => retry.delays.clone(),
    };
    let on_exhausted = match retry.on_exhausted() {
        ExhaustedAction::Unspecified => ExhaustedAction::Fail,
        chosen => chosen,
    };
    RetryPolicy {
        delays,
        on_exhausted: on_exhausted.into(),
    }
}

fn duration(length: Micros) -> prost_types::Duration {
    prost_types::Duration {
        seconds: length.div_euclid(1_000_000),
        nanos: i32::try_from(length.rem_euclid(1_000_000) * 1000).unwrap_or(0),
    }
}

/// In microseconds; what the contract allows fits.
fn length(duration: &prost_types::Duration) -> Micros {
    let seconds = duration.seconds.saturating_mul(1_000_000);
    seconds.saturating_add(i64::from(duration.nanos) / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_policy_leaves_open_is_the_default() {
        let open = effective(&RetryPolicy::default());
        let delays: Vec<Micros> = open.delays.iter().map(length).collect();
        assert_eq!(delays, DELAYS);
        assert_eq!(open.on_exhausted(), ExhaustedAction::Fail);
        let own = RetryPolicy {
            delays: vec![duration(1_500_000)],
            on_exhausted: ExhaustedAction::BlockKey.into(),
        };
        assert_eq!(effective(&own), own);
        assert_eq!(length(&own.delays[0]), 1_500_000);
    }

    #[test]
    fn a_pause_is_over_at_its_end_by_itself() {
        let pause = |until| Pause {
            since: 1,
            until,
            by: "key_1".to_owned(),
            reason: String::new(),
        };
        assert!(pause(None).holds(Micros::MAX));
        assert!(pause(Some(10)).holds(9));
        assert!(!pause(Some(10)).holds(10));
    }
}
