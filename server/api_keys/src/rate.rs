//! Setting limits, and what was used of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use hub_core::audit::{self, Changes};
use hub_core::auth::{self, Caller};
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::hub_event::HubEvent;
use hub_core::journal::{NewEvent, TenantRef, lock_head};

use crate::change::{LIMITED, TENANT_LIMITED};
use crate::key::{Key, Record};
use crate::keys::{Keys, SOURCE, key_event, tenant_of};
use crate::limits::{Left, Limit, Subject};
use crate::scopes;
use crate::store;
use crate::store::usage::Span;
use crate::usage::{ALLOWED, DAY, HOUR, MINUTE};

/// The RPC that sets limits, as its policy names it.
const SET: &str = "hub.api_keys.v1.ApiKeys/SetRateLimit";

/// Most buckets of an answer.
const BUCKETS_MAX: i64 = 1000;

/// Requests of a span of time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub start: Micros,
    pub allowed: u64,
    /// By reason.
    pub denied: BTreeMap<String, u64>,
}

/// Which counts are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub since: Option<Micros>,
    pub until: Option<Micros>,
    /// 0 = an hour.
    pub interval: Micros,
}

impl Keys {
    /// What is left of the limits of the calling key; none if it has none.
    pub(crate) async fn own_limit(self: &Arc<Self>, caller: &Caller) -> Result<Option<Left>> {
        let key = self.own(caller).await?;
        Ok(self.left_of_key(&key, caller.tenant.as_ref()).await)
    }

    async fn left_of_key(self: &Arc<Self>, key: &Key, tenant: Option<&TenantRef>) -> Option<Left> {
        let record = Record::new(key).ok()?;
        self.left(&self.limits(&record, tenant).await).await
    }

    async fn left(self: &Arc<Self>, limits: &[Limit]) -> Option<Left> {
        self.take(limits, 0, true).await.left
    }

    /// What is left of the limit of a tenant.
    async fn left_of_tenant(self: &Arc<Self>, tenant: &TenantRef) -> Result<Option<Left>> {
        let per_minute = match store::limits::of_tenant(&self.core.db, tenant).await? {
            0 => self.core.limits.tenant_requests_per_minute,
            set => set,
        };
        Ok(self
            .left(&[Limit {
                subject: Subject::Tenant(tenant.number()),
                per_minute,
                key_id: None,
            }])
            .await)
    }

    /// Sets the limit of a key and of all that it was rotated from or to; 0 = none of its own.
    ///
    /// Errors: `KEY_NOT_FOUND`, `SCOPE_ESCALATION`.
    pub(crate) async fn limit_key(
        self: &Arc<Self>,
        caller: &Caller,
        key_id: &str,
        limit: u32,
    ) -> Result<Option<Left>> {
        let tenant = tenant_of(caller);
        let mut key = self.get(caller, key_id).await?;
        scopes::check_within(caller, key.rights())?;
        if key.requests_per_minute != limit {
            let log = self.system_log().await?;
            let mut tx = self.core.db.begin().await?;
            lock_head(&mut tx, &TenantRef::system()).await?;
            let now = self.core.clock.now();
            // Nobody changes it any more; someone may have, since it was looked at.
            let found = store::find_in(&mut tx, &tenant, key_id).await?;
            key = found.ok_or_else(|| crate::error::not_found(key_id))?;
            let calling = self.calling(&mut tx, caller).await?;
            calling.check_within(key.rights())?;
            scopes::check_all_tenants(caller, &key)?;
            // It limits them too.
            for one in store::working_of_family(&mut tx, &tenant, &key.family, now).await? {
                calling.check_within(one.rights())?;
            }
            store::limits::set_of_family(&mut tx, &tenant, &key.family, limit, now).await?;
            let changed = store::find_in(&mut tx, &tenant, key_id).await?;
            let changed = changed.ok_or_else(|| crate::error::not_found(key_id))?;
            let changes =
                Changes::new().field("requests_per_minute", key.requests_per_minute, limit);
            let change = audit::Change {
                caller,
                action: SET,
                resource: key_id,
                changes,
                time: now,
            };
            audit::record(&mut tx, &tenant, change).await?;
            let event = key_event(&changed, LIMITED, &caller.key_id, now, "");
            let committed = self.commit(tx, log, event).await;
            self.cache
                .forget_all(|record| *record.family == *key.family);
            committed?;
        }
        let changed = Key {
            requests_per_minute: limit,
            ..key
        };
        Ok(self.left_of_key(&changed, caller.tenant.as_ref()).await)
    }

    /// Sets the limit of the tenant that the call names; 0 = the default.
    ///
    /// Errors: `OPERATOR_ONLY`, `TENANT_REQUIRED`.
    pub(crate) async fn limit_tenant(
        self: &Arc<Self>,
        caller: &Caller,
        limit: u32,
    ) -> Result<Option<Left>> {
        check_operator(caller)?;
        let (tenant, now) = (caller.tenant()?.clone(), self.core.clock.now());
        let log = self.system_log().await?;
        let mut tx = self.core.db.begin().await?;
        let head = lock_head(&mut tx, &TenantRef::system()).await?;
        check_operator(&self.calling(&mut tx, caller).await?.caller)?;
        let before = store::limits::of_tenant_in(&mut tx, &tenant).await?;
        if before != limit {
            store::limits::set_of_tenant(&mut tx, &tenant, limit, now).await?;
            let change = audit::Change {
                caller,
                action: SET,
                resource: tenant.id(),
                changes: Changes::new().field("requests_per_minute", before, limit),
                time: now,
            };
            audit::record(&mut tx, &tenant, change).await?;
            let event = tenant_event(caller, &tenant, limit, head + 1, now);
            let committed = self.commit(tx, log, event).await;
            self.cache
                .forget_all(|record| record.caller.tenant.as_ref() == Some(&tenant));
            self.tenant_limits.forget();
            committed?;
        } else {
            // What is left may be asked of the database, which must not wait for this connection.
            drop(tx);
        }
        self.left_of_tenant(&tenant).await
    }

    /// How often a key, with those that share its usage, or all keys of a tenant were used. Without
    /// tenant it is a key that serves all tenants.
    ///
    /// Errors: `KEY_NOT_FOUND`, `TENANT_REQUIRED`, `FIELD_INVALID`.
    pub(crate) async fn usage_of(
        self: &Arc<Self>,
        caller: &Caller,
        key_id: &str,
        wanted: Wanted,
    ) -> Result<(Vec<Bucket>, Option<Left>)> {
        let span = span(wanted, self.core.clock.now())?;
        let (family, left) = match key_id {
            "" => (None, self.left_of_tenant(caller.tenant()?).await?),
            key_id => {
                let key = self.get(caller, key_id).await?;
                let left = self.left_of_key(&key, caller.tenant.as_ref()).await;
                (Some(key.family), left)
            }
        };
        let (db, tenant) = (&self.core.db, tenant_of(caller));
        let rows = store::usage::read(db, &tenant, family.as_deref(), &span).await?;
        Ok((buckets(rows), left))
    }
}

/// `OPERATOR_ONLY` unless the caller is one.
fn check_operator(caller: &Caller) -> Result<()> {
    match caller.is_operator() {
        true => Ok(()),
        false => Err(auth::operator_only(&format!("{SET} of a tenant"))),
    }
}

/// From the bucket in which `since` lies to the one in which `until` lies.
fn span(wanted: Wanted, now: Micros) -> Result<Span> {
    let length = match wanted.interval {
        0 => HOUR,
        known if [MINUTE, HOUR, DAY].contains(&known) => known,
        _ => return Err(Error::field("interval", "must be 60s, 3600s or 86400s")),
    };
    // A span that begins this very moment is one of them.
    let until = wanted.until.map_or(now + 1, |until| until.min(now + 1));
    // A day of minutes is more than an answer has: as many as it has then, up to the last one.
    let first = until.saturating_sub(BUCKETS_MAX * length) + length - 1;
    let since = wanted.since.unwrap_or_else(|| first.max(now - DAY));
    let since = since - since.rem_euclid(length);
    if until.saturating_sub(since) > BUCKETS_MAX * length {
        let problem = format!("and until must have at most {BUCKETS_MAX} intervals between them");
        return Err(Error::field("since", problem));
    }
    Ok(Span {
        length,
        since,
        until,
    })
}

fn buckets(rows: Vec<store::usage::Row>) -> Vec<Bucket> {
    let mut buckets: Vec<Bucket> = Vec::new();
    for (start, outcome, requests) in rows {
        if buckets.last().is_none_or(|last| last.start != start) {
            buckets.push(Bucket {
                start,
                ..Bucket::default()
            });
        }
        let Some(bucket) = buckets.last_mut() else {
            continue;
        };
        match outcome.as_str() {
            ALLOWED => bucket.allowed = requests.unsigned_abs(),
            _ => drop(bucket.denied.insert(outcome, requests.unsigned_abs())),
        }
    }
    buckets
}

/// Tells of the limit of a tenant. The sequence makes each change an event of its own.
fn tenant_event(
    caller: &Caller,
    tenant: &TenantRef,
    limit: u32,
    epoch: u64,
    time: Micros,
) -> NewEvent {
    HubEvent {
        log: &TenantRef::system(),
        source: SOURCE,
        kind: TENANT_LIMITED,
        id: format!("{}.limit.{epoch}", tenant.id()),
        subject: tenant.id(),
        tenant_id: tenant.id(),
        actor: &caller.key_id,
        time,
        json: serde_json::json!({ "tenantId": tenant.id(), "requestsPerMinute": limit })
            .to_string(),
    }
    .encode()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_buckets_are_shown_and_no_more() {
        let now = 5000 * HOUR;
        let wanted = |since| Wanted {
            since: Some(since),
            until: Some(now),
            interval: 0,
        };
        assert!(span(wanted(now - 1000 * HOUR), now).is_ok());
        assert!(span(wanted(now - 1000 * HOUR - 1), now).is_err());
        assert!(span(wanted(Micros::MIN / 2), now).is_err());
    }

    #[test]
    fn a_span_without_a_beginning_is_a_day_or_what_an_answer_has_of_it() {
        for now in [
            5000 * HOUR,
            5000 * HOUR + 1,
            5000 * HOUR - 1,
            5000 * HOUR + 17,
        ] {
            for (interval, buckets) in [(MINUTE, BUCKETS_MAX), (HOUR, 25), (DAY, 2)] {
                let wanted = Wanted {
                    interval,
                    ..Wanted::default()
                };
                let span = span(wanted, now).unwrap();
                let covered = span.until - span.since;
                assert!(covered <= BUCKETS_MAX * interval, "{interval} {now}");
                assert!(
                    (covered + interval - 1) / interval <= buckets,
                    "{interval} {now}"
                );
                assert!(covered > (buckets - 2) * interval, "{interval} {now}");
                assert_eq!((span.since.rem_euclid(interval), span.until), (0, now + 1));
            }
        }
        let long_ago = Wanted {
            until: Some(HOUR),
            interval: MINUTE,
            ..Wanted::default()
        };
        assert!(span(long_ago, 5000 * HOUR).is_ok());
    }
}
