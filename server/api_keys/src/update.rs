//! A key is changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use hub_core::audit::{self, Changes};
use hub_core::auth::Caller;
use hub_core::clock::{Micros, timestamp};
use hub_core::error::{Error, Result};
use hub_core::journal::{TenantRef, lock_head};
use hub_proto::hub::api_keys::v1::ApiKeyState;

use crate::error;
use crate::key::Key;
use crate::keys::{Keys, check_cidrs, check_expire_time, distinct, key_event, tenant_of};
use crate::lookup::{ATTEMPTS_MAX, busy};
use crate::scopes;
use crate::store;

/// The RPC that changes keys, as its policy names it.
const UPDATE: &str = "hub.api_keys.v1.ApiKeys/UpdateApiKey";

/// New values; what is none stays.
#[derive(Debug, Clone, Default)]
pub(crate) struct NewValues {
    pub name: Option<String>,
    pub scopes: Option<Vec<String>>,
    pub cidrs: Option<Vec<String>>,
    /// None inside = it never ends.
    pub expire_time: Option<Option<Micros>>,
    pub labels: Option<BTreeMap<String, String>>,
    /// Not to be changed here: what a call without a mask says of it must be so.
    pub requests_per_minute: u32,
    /// Version that the key must have; empty = any.
    pub etag: String,
}

impl Keys {
    /// Changes a key. Errors: `KEY_NOT_FOUND`, `KEY_STATE_INVALID`, `SCOPE_INVALID`,
    /// `SCOPE_ESCALATION`, `PRODUCT_NOT_FOUND`, `ETAG_MISMATCH` only if it names an etag,
    /// `FIELD_INVALID`, `STORE_BUSY` if others change it all the time.
    ///
    /// It runs to its end even if the caller is gone, as a revocation does.
    pub(crate) async fn update(
        self: &Arc<Self>,
        caller: &Caller,
        key_id: &str,
        new: NewValues,
    ) -> Result<Key> {
        let keys = self.clone();
        let (caller, key_id) = (caller.clone(), key_id.to_owned());
        let task = tokio::spawn(async move {
            for _ in 0..ATTEMPTS_MAX {
                let updated = keys.try_update(&caller, &key_id, new.clone()).await?;
                if let Some(updated) = updated {
                    return Ok(updated);
                }
            }
            Err(busy("keys_change"))
        });
        task.await
            .map_err(|error| Error::internal(format!("a change of a key panicked: {error}")))?
    }

    /// None if the key was changed meanwhile, and whoever asks did not say as what he read it.
    async fn try_update(
        &self,
        caller: &Caller,
        key_id: &str,
        new: NewValues,
    ) -> Result<Option<Key>> {
        let is_any = new.etag.is_empty();
        let (tenant, now) = (tenant_of(caller), self.core.clock.now());
        let before = self.get(caller, key_id).await?;
        let after = self.changed(caller, &before, new, now).await?;
        // A repetition is answered as the first time, whatever became of the key since.
        if after == before {
            return Ok(Some(before));
        }
        let changes = differences(&before, &after);
        let log = self.system_log().await?;
        let mut tx = self.core.db.begin().await?;
        lock_head(&mut tx, &TenantRef::system()).await?;
        let calling = self.calling(&mut tx, caller).await?;
        calling.check_within(before.rights())?;
        calling.check_within(after.rights())?;
        scopes::check_all_tenants(&calling.caller, &before)?;
        calling.check_reach(after.expire_time, &after.cidrs)?;
        // After the wait for the lock, in which the key may have ended.
        let now = self.core.clock.now();
        check_active(&before, now)?;
        let after = Key {
            update_time: Some(now),
            ..after
        };
        let Some(after) = store::update(&mut tx, &tenant, &after).await? else {
            drop(tx);
            if is_any {
                return Ok(None);
            }
            let current = self.get(caller, key_id).await?;
            return Err(Error::etag_mismatch(current.version));
        };
        let change = audit::Change {
            caller,
            action: UPDATE,
            resource: key_id,
            changes,
            time: now,
        };
        audit::record(&mut tx, &tenant, change).await?;
        let event = key_event(&after, "key.updated", &caller.key_id, now, "");
        let committed = self.commit(tx, log, event).await;
        // Whatever came of it: after a lost answer of the database the key may be changed.
        self.cache.forget(key_id);
        committed?;
        Ok(Some(after))
    }

    /// What the key is to be, if the caller may make it that.
    async fn changed(
        &self,
        caller: &Caller,
        before: &Key,
        new: NewValues,
        now: Micros,
    ) -> Result<Key> {
        scopes::check_within(caller, before.rights())?;
        scopes::check_all_tenants(caller, before)?;
        if !new.etag.is_empty() && new.etag != before.version.to_string() {
            return Err(Error::etag_mismatch(before.version));
        }
        if ![0, before.requests_per_minute].contains(&new.requests_per_minute) {
            let problem = "is set by SetRateLimit; leave it out here";
            return Err(Error::field("api_key.requests_per_minute", problem));
        }
        let products = self.core.tenancy.products().await?;
        if let Some(scopes) = &new.scopes {
            scopes::check_form(scopes, &products)?;
        }
        if let Some(cidrs) = &new.cidrs {
            check_cidrs(cidrs)?;
        }
        if let Some(expire_time) = new.expire_time {
            check_expire_time(expire_time, now)?;
        }
        let after = Key {
            name: new.name.unwrap_or_else(|| before.name.clone()),
            scopes: new.scopes.map_or_else(|| before.scopes.clone(), distinct),
            cidrs: new.cidrs.map_or_else(|| before.cidrs.clone(), distinct),
            expire_time: new.expire_time.unwrap_or(before.expire_time),
            labels: new.labels.unwrap_or_else(|| before.labels.clone()),
            ..before.clone()
        };
        scopes::check_within(caller, after.rights())?;
        Ok(after)
    }
}

/// `KEY_STATE_INVALID` unless the key is active.
pub(crate) fn check_active(key: &Key, now: Micros) -> Result<()> {
    match key.state(now) {
        ApiKeyState::Active => Ok(()),
        other => {
            let name = other.as_str_name();
            let name = name.trim_start_matches("API_KEY_STATE_");
            Err(error::state_invalid(&key.key_id, name))
        }
    }
}

fn differences(before: &Key, after: &Key) -> Changes {
    let time = |key: &Key| key.expire_time.map(|at| timestamp(at).to_string());
    let changes = Changes::new()
        .field("name", &before.name, &after.name)
        .field("scopes", before.scopes.join(" "), after.scopes.join(" "))
        .field(
            "allowed_cidrs",
            before.cidrs.join(" "),
            after.cidrs.join(" "),
        )
        .field(
            "expire_time",
            time(before).unwrap_or_default(),
            time(after).unwrap_or_default(),
        );
    let names = before.labels.keys().chain(after.labels.keys());
    names.fold(changes, |changes, name| {
        let value = |key: &Key| match key.labels.get(name).map(String::as_str) {
            // Not the same as no label.
            Some("") => "\"\"".to_owned(),
            value => value.unwrap_or_default().to_owned(),
        };
        changes.field(&format!("labels.{name}"), value(before), value(after))
    })
}
