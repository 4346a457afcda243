//! A key ends for good.

use std::sync::Arc;

use hub_core::audit::{self, Changes};
use hub_core::auth::Caller;
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::journal::{TenantRef, lock_head};

use crate::key::{Key, Revocation};
use crate::keys::{Keys, key_event, tenant_of};
use crate::scopes;
use crate::store;

/// The RPC that ends keys, as its policy names it.
const REVOKE: &str = "hub.api_keys.v1.ApiKeys/RevokeApiKey";

impl Keys {
    /// Revokes a key; the next call with it is refused. A key that was revoked before stays as it
    /// is. Errors: `KEY_NOT_FOUND`, `SCOPE_ESCALATION`.
    ///
    /// It runs to its end even if the caller is gone: between the commit and the moment at which
    /// the cache forgets the key nothing may stop it.
    pub async fn revoke(
        self: &Arc<Self>,
        caller: &Caller,
        key_id: &str,
        reason: &str,
    ) -> Result<Key> {
        let keys = self.clone();
        let (caller, key_id, reason) = (caller.clone(), key_id.to_owned(), reason.to_owned());
        let task = tokio::spawn(async move { keys.revoke_now(&caller, &key_id, &reason).await });
        task.await
            .map_err(|error| Error::internal(format!("a revocation panicked: {error}")))?
    }

    async fn revoke_now(&self, caller: &Caller, key_id: &str, reason: &str) -> Result<Key> {
        let tenant = tenant_of(caller);
        let key = self.get(caller, key_id).await?;
        scopes::check_within(caller, key.rights())?;
        if key.revocation.is_some() {
            // Another process may have done it.
            self.cache.forget(key_id);
            return Ok(key);
        }
        let log = self.system_log().await?;
        let mut tx = self.core.db.begin().await?;
        // The row carries the sequence of its event, so nobody may append in between.
        let epoch = lock_head(&mut tx, &TenantRef::system()).await? + 1;
        // Nobody changes it any more; someone may have, since it was looked at.
        let key = store::find_in(&mut tx, &tenant, key_id).await?;
        let key = key.ok_or_else(|| crate::error::not_found(key_id))?;
        let calling = self.calling(&mut tx, caller).await?;
        calling.check_within(key.rights())?;
        scopes::check_all_tenants(caller, &key)?;
        if key.revocation.is_some() {
            drop(tx);
            self.cache.forget(key_id);
            return Ok(key);
        }
        let time = self.core.clock.now();
        let by = caller.key_id.to_string();
        let revocation = Revocation {
            time,
            by,
            reason: reason.to_owned(),
            epoch,
        };
        let before = key;
        let key = store::revoke(&mut tx, &tenant, key_id, &revocation).await?;
        let key = key.ok_or_else(|| Error::internal("a key changed under its lock"))?;
        let change = audit::Change {
            caller,
            action: REVOKE,
            resource: key_id,
            changes: Changes::new()
                .field("state", state(&before, time), state(&key, time))
                .field("revocation.reason", "", reason),
            time,
        };
        audit::record(&mut tx, &tenant, change).await?;
        let event = key_event(&key, "key.revoked", &caller.key_id, time, reason);
        let committed = self.commit(tx, log, event).await;
        // Whatever came of it: after a lost answer of the database the key may be revoked.
        self.cache.forget(key_id);
        let seq = committed?;
        if seq != epoch {
            return Err(Error::internal(format!(
                "a revocation is at {seq}, not at {epoch}"
            )));
        }
        Ok(key)
    }
}

fn state(key: &Key, now: Micros) -> &'static str {
    key.state(now).as_str_name()
}
