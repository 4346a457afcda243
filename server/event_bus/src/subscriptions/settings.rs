//! The settings of a subscription: what delivery needs to know, and what a call may change.

use std::collections::BTreeMap;

use hub_core::audit::Changes;
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::storage::Tx;
use hub_proto::hub::event_bus::v1::{
    EventFilter, ExhaustedAction, Ordering, RetryPolicy, Subscription,
};
use prost::Message;

use super::{Pause, Stored};
use crate::error;
use crate::leasing::{self, Exhausted, Rules};
use crate::store::subscription_filters;

/// Time to ack unless the subscription has its own, in microseconds: 30 s.
const LEASE: Micros = 30_000_000;
/// Filters of one subscription that events are left of.
const FILTERS_MAX: u64 = 100;
/// Bytes of all filters of a tenant: every event is compared with them.
const FILTERS_BYTES_MAX: u64 = 1 << 20;

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

    /// As the state machine of delivery takes them, with the limits of the hub.
    pub fn rules(&self, window_max: usize, settled_remembered_max: usize) -> Rules {
        Rules {
            ordering: match self.ordering {
                Ordering::Total => leasing::Ordering::Total,
                Ordering::None => leasing::Ordering::None,
                Ordering::ByKey | Ordering::Unspecified => leasing::Ordering::ByKey,
            },
            delays: self.delays.clone(),
            on_exhausted: match self.on_exhausted {
                ExhaustedAction::BlockKey => Exhausted::BlockKey,
                ExhaustedAction::Pause => Exhausted::Pause,
                ExhaustedAction::Fail | ExhaustedAction::Unspecified => Exhausted::Fail,
            },
            lease: self.lease,
            max_per_second: self.max_per_second,
            window_max,
            settled_remembered_max,
        }
    }

    /// The pause that is in force.
    pub fn paused(&self, now: Micros) -> Option<&Pause> {
        self.pause.as_ref().filter(|pause| pause.holds(now))
    }
}

/// A policy with the defaults in place of what it leaves open.
pub(super) fn effective(retry: &RetryPolicy) -> RetryPolicy {
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

pub(super) fn duration(length: Micros) -> prost_types::Duration {
    prost_types::Duration {
        seconds: length.div_euclid(1_000_000),
        nanos: i32::try_from(length.rem_euclid(1_000_000) * 1000).unwrap_or(0),
    }
}

/// In microseconds; what the contract allows fits.
pub(super) fn length(duration: &prost_types::Duration) -> Micros {
    let seconds = duration.seconds.saturating_mul(1_000_000);
    seconds.saturating_add(i64::from(duration.nanos) / 1000)
}

/// New values of what a call may change; those that are absent stay as they are.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pub(super) filter: Option<EventFilter>,
    pub(super) retry: Option<RetryPolicy>,
    /// Not set = the default.
    pub(super) lease_duration: Option<Option<prost_types::Duration>>,
    pub(super) max_per_second: Option<u32>,
    pub(super) labels: Option<BTreeMap<String, String>>,
}

impl Changed {
    /// Everything as the message has it.
    pub(super) fn all(wanted: Subscription) -> Changed {
        Changed {
            filter: Some(wanted.filter.unwrap_or_default()),
            retry: Some(wanted.retry.unwrap_or_default()),
            lease_duration: Some(wanted.lease_duration),
            max_per_second: Some(wanted.max_per_second),
            labels: Some(wanted.labels),
        }
    }

    /// Puts them in place. Errors: `FIELD_INVALID`.
    pub(super) fn apply(&self, stored: &mut Stored) -> Result<()> {
        if let Some(filter) = &self.filter {
            stored.filter = filter.clone();
        }
        if let Some(retry) = &self.retry {
            if ExhaustedAction::try_from(retry.on_exhausted).is_err() {
                let problem = "is not an action of this version";
                return Err(Error::field("subscription.retry.on_exhausted", problem));
            }
            stored.retry = retry.clone();
        }
        if let Some(lease) = &self.lease_duration {
            let lease = lease.as_ref().map_or(0, length);
            stored.lease_duration = if lease > 0 { lease } else { LEASE };
        }
        if let Some(max_per_second) = self.max_per_second {
            stored.max_per_second = max_per_second;
        }
        if let Some(labels) = &self.labels {
            stored.labels = labels.clone();
        }
        Ok(())
    }
}

/// Whether the tenant may have one more filter. Errors: `QUOTA_EXCEEDED`.
pub(super) async fn check_filters(
    tx: &mut Tx,
    tenant: &TenantRef,
    id: &str,
    filter: &EventFilter,
) -> Result<()> {
    if subscription_filters::count(tx, id).await? >= FILTERS_MAX {
        return Err(error::subscriptions_full(
            "filters of a subscription",
            FILTERS_MAX,
        ));
    }
    let bytes = subscription_filters::size(tx, tenant).await? + filter.encoded_len() as u64;
    if bytes > FILTERS_BYTES_MAX {
        return Err(error::subscriptions_full(
            "bytes of filters",
            FILTERS_BYTES_MAX,
        ));
    }
    Ok(())
}

/// What differs, for the audit log.
pub(super) fn differences(before: &Stored, after: &Stored) -> Changes {
    let (old, new) = (effective(&before.retry), effective(&after.retry));
    let seconds = |length: Micros| format!("{}s", length as f64 / 1e6);
    let delays = |retry: &RetryPolicy| {
        let delays = retry.delays.iter().map(|delay| seconds(length(delay)));
        delays.collect::<Vec<_>>().join(" ")
    };
    let pairs = |map: &BTreeMap<String, String>| {
        let pairs = map.iter().map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join(" ")
    };
    let (filter, to) = (&before.filter, &after.filter);
    Changes::new()
        .field("filter.types", filter.types.join(" "), to.types.join(" "))
        .field(
            "filter.products",
            filter.products.join(" "),
            to.products.join(" "),
        )
        .field(
            "filter.attributes",
            pairs(&filter.attributes),
            pairs(&to.attributes),
        )
        .field("retry.delays", delays(&old), delays(&new))
        .field(
            "retry.on_exhausted",
            old.on_exhausted().as_str_name(),
            new.on_exhausted().as_str_name(),
        )
        .field(
            "lease_duration",
            seconds(before.lease_duration),
            seconds(after.lease_duration),
        )
        .field(
            "max_per_second",
            before.max_per_second,
            after.max_per_second,
        )
        .field("labels", pairs(&before.labels), pairs(&after.labels))
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
