//! A key is replaced by a successor with the same rights.
//!
//! The old key works until its grace ends, and never longer than before: a rotation neither revives
//! a key nor extends one. Both are of one family, so they share limits and usage.

use std::sync::Arc;
use std::time::Duration;

use hub_core::audit::{self, Changes};
use hub_core::auth::Caller;
use hub_core::clock::{Micros, micros, timestamp};
use hub_core::error::{Error, Result};
use hub_core::id;
use hub_core::journal::{Append, NewEvent, Outcome, TenantRef, lock_head};
use hub_core::replay::{Begun, Call, Done};
use hub_core::storage::Tx;

use crate::key::{Key, Revocation};
use crate::keys::{Keys, key_event, tenant_of};
use crate::scopes;
use crate::secret::Plaintext;
use crate::store;
use crate::update::check_active;

/// The RPC that rotates keys, as its policy names it.
pub(crate) const ROTATE: &str = "hub.api_keys.v1.ApiKeys/RotateApiKey";
/// How long the old key works unless the call says otherwise.
pub(crate) const GRACE: Duration = Duration::from_secs(24 * 3600);

/// A key and its successor.
#[derive(Debug)]
pub(crate) struct Rotated {
    pub key: Key,
    pub plaintext: Plaintext,
    pub previous: Key,
}

/// Writes the answer that a retry gets, without its secret.
pub(crate) type Message = fn(&Rotated, Micros) -> Vec<u8>;

/// A rotation that a caller asks for.
pub(crate) struct Rotation {
    pub key_id: String,
    pub grace: Duration,
    pub retry: Option<(Call, Message)>,
}

impl Keys {
    /// Makes a successor. Errors: `KEY_NOT_FOUND`, `KEY_STATE_INVALID`, `SCOPE_ESCALATION`,
    /// `REQUEST_ID_REUSED`.
    ///
    /// It runs to its end even if the caller is gone, as a revocation does.
    pub(crate) async fn rotate(
        self: &Arc<Self>,
        caller: &Caller,
        rotation: Rotation,
    ) -> Result<Done<Rotated>> {
        let (keys, caller) = (self.clone(), caller.clone());
        let task = tokio::spawn(async move { keys.rotate_now(&caller, rotation).await });
        task.await
            .map_err(|error| Error::internal(format!("a rotation panicked: {error}")))?
    }

    async fn rotate_now(&self, caller: &Caller, rotation: Rotation) -> Result<Done<Rotated>> {
        let (tenant, now) = (tenant_of(caller), self.core.clock.now());
        let check = |caller: &Caller, key: &Key| {
            scopes::check_within(caller, key.rights())?;
            scopes::check_all_tenants(caller, key)
        };
        check(caller, &self.get(caller, &rotation.key_id).await?)?;
        let log = self.system_log().await?;
        let mut tx = self.core.db.begin().await?;
        if let Some((call, _)) = &rotation.retry
            && let Begun::Again(answer) = call.begin(&mut tx, &self.core.sealer, now).await?
        {
            return Ok(Done::Again(answer));
        }
        // Rows carry the sequences of their events, so nobody may append in between.
        let head = lock_head(&mut tx, &TenantRef::system()).await?;
        // After the wait for the lock, in which the key may have ended.
        let now = self.core.clock.now();
        let old = store::find_in(&mut tx, &tenant, &rotation.key_id).await?;
        let old = old.ok_or_else(|| crate::error::not_found(&rotation.key_id))?;
        // Nobody changes it any more; someone may have, since it was looked at.
        let calling = self.calling(&mut tx, caller).await?;
        check(&calling.caller, &old)?;
        calling.check_reach(old.expire_time, &old.cidrs)?;
        check_active(&old, now)?;
        let successor = successor(&old, caller, now)?;
        let key_id = successor.0.key_id.clone();
        let ended = Ended {
            caller,
            old: &old,
            successor_id: &key_id,
            grace: rotation.grace,
            epoch: head + 1,
            now,
        };
        let (previous, event) = ended.store(&mut tx, &tenant).await?;
        let made = self
            .insert_key(&mut tx, &tenant, successor.0, successor.1)
            .await?;
        let rotated = Rotated {
            key: made.key,
            plaintext: made.plaintext,
            previous,
        };
        if let Some((call, message)) = &rotation.retry {
            let (message, secret) = (message(&rotated, now), rotated.plaintext.expose());
            let sealer = &self.core.sealer;
            call.finish(&mut tx, sealer, message, Some(secret)).await?;
        }
        record(&mut tx, caller, &old, &rotated, now).await?;
        let append = Append {
            log,
            events: vec![event, made.event],
            independent: false,
            row: None,
        };
        let appended = self.core.journal.commit(tx, vec![append]).await;
        // Whatever came of it: after a lost answer of the database the key may be rotated.
        self.cache.forget(&rotation.key_id);
        self.lookup.made();
        let appended = appended?;
        let first = appended.iter().flat_map(|one| &one.outcomes).next();
        match first {
            Some(Outcome::Stored { seq }) if *seq == head + 1 => Ok(Done::First(rotated)),
            other => Err(Error::internal(format!(
                "a rotation is at {other:?}, not at {head}"
            ))),
        }
    }
}

fn successor(old: &Key, caller: &Caller, now: Micros) -> Result<(Key, Plaintext)> {
    let plaintext = Plaintext::generate()?;
    let key = Key {
        key_id: id::new("key"),
        hint: plaintext.hint(),
        create_time: now,
        update_time: None,
        created_by: caller.key_id.to_string(),
        last_use_time: None,
        version: 1,
        ..old.clone()
    };
    Ok((key, plaintext))
}

/// What becomes of the old key.
struct Ended<'a> {
    caller: &'a Caller,
    old: &'a Key,
    successor_id: &'a str,
    grace: Duration,
    epoch: u64,
    now: Micros,
}

impl Ended<'_> {
    async fn store(&self, tx: &mut Tx, tenant: &TenantRef) -> Result<(Key, NewEvent)> {
        let (old, now) = (self.old, self.now);
        let by = &self.caller.key_id;
        let end = now.saturating_add(micros(self.grace));
        let expire_time = match self.grace.is_zero() {
            true => old.expire_time,
            false => Some(old.expire_time.map_or(end, |before| before.min(end))),
        };
        let key = store::rotate(tx, tenant, old, self.successor_id, expire_time, now).await?;
        let key = key.ok_or_else(|| Error::internal("a key changed under its lock"))?;
        if !self.grace.is_zero() {
            let event = key_event(&key, "key.rotated", by, now, "");
            return Ok((key, event));
        }
        let reason = format!("rotated to {}", self.successor_id);
        let revocation = Revocation {
            time: now,
            by: by.to_string(),
            reason: reason.clone(),
            epoch: self.epoch,
        };
        let key = store::revoke(tx, tenant, &old.key_id, &revocation).await?;
        let key = key.ok_or_else(|| Error::internal("a key changed under its lock"))?;
        let event = key_event(&key, "key.revoked", by, now, &reason);
        Ok((key, event))
    }
}

/// One entry for each of the two keys.
async fn record(
    tx: &mut Tx,
    caller: &Caller,
    old: &Key,
    rotated: &Rotated,
    now: Micros,
) -> Result<()> {
    let tenant = tenant_of(caller);
    let time = |key: &Key| key.expire_time.map(|at| timestamp(at).to_string());
    let state = |key: &Key| key.state(now).as_str_name();
    let previous = &rotated.previous;
    let changes = Changes::new()
        .field("state", state(old), state(previous))
        .field("successor_id", "", &rotated.key.key_id)
        .field(
            "expire_time",
            time(old).unwrap_or_default(),
            time(previous).unwrap_or_default(),
        );
    let of_both = [
        (&previous.key_id, changes),
        (&rotated.key.key_id, rotated.key.as_changes()),
    ];
    for (resource, changes) in of_both {
        let change = audit::Change {
            caller,
            action: ROTATE,
            resource,
            changes,
            time: now,
        };
        audit::record(tx, &tenant, change).await?;
    }
    Ok(())
}
