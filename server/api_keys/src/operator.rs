//! A new operator key in place of a lost one, without any key: whoever may open the database may.

use std::sync::Arc;

use hub_core::audit::{self, Changes};
use hub_core::auth::{ADMINISTRATOR, Caller, Origin, Scopes};
use hub_core::error::{Error, Result};
use hub_core::journal::{Append, NewEvent, Outcome, TenantRef, lock_head};
use hub_core::storage::Tx;

use crate::issue::{HUB, operator};
use crate::key::Revocation;
use crate::keys::{Keys, key_event};
use crate::store;

/// What the audit log says was called.
const ACTION: &str = "hub operator-key --new";

/// An operator key that was made in place of others.
pub struct Replaced {
    /// Its id.
    pub key_id: String,
    /// Its secret, which nobody can show again.
    pub plaintext: String,
    /// Ids of the keys that were revoked.
    pub revoked: Vec<String>,
}

impl Keys {
    /// Makes an operator key. With `revoke`, the operator keys that the hub itself made before are
    /// revoked in the same commit; those that people made with them stay.
    pub async fn replace_operator(&self, revoke: bool) -> Result<Replaced> {
        let caller = Caller {
            key_id: Arc::from(HUB),
            tenant: None,
            product: None,
            scopes: Scopes::new([ADMINISTRATOR.to_owned()]),
            all_tenants: true,
            origin: Origin::of_nothing(),
        };
        let (system, now) = (TenantRef::system(), self.core.clock.now());
        let log = self.system_log().await?;
        let mut tx = self.core.db.begin().await?;
        store::lock_operators(&mut tx).await?;
        // Rows carry the sequences of their events, so nobody may append in between.
        let head = lock_head(&mut tx, &system).await?;
        let old = match revoke {
            true => store::operators_by(&mut tx, HUB).await?,
            false => Vec::new(),
        };
        let made = self.insert(&mut tx, &system, operator(), HUB, now).await?;
        let key_id = made.key.key_id.clone();
        let change = audit::Change {
            caller: &caller,
            action: ACTION,
            resource: &key_id,
            changes: made.key.as_changes(),
            time: now,
        };
        audit::record(&mut tx, &system, change).await?;
        let mut events = vec![made.event];
        for (old, epoch) in old.iter().zip(head + 2..) {
            let event = self.replace_one(&mut tx, &caller, old, epoch, &key_id);
            events.push(event.await?);
        }
        let count = events.len();
        let append = Append {
            log,
            events,
            independent: false,
            row: None,
        };
        let appended = self.core.journal.commit(tx, vec![append]).await;
        // Whatever came of it: after a lost answer of the database they may be revoked.
        old.iter().for_each(|key_id| self.cache.forget(key_id));
        let appended = appended?;
        let outcomes = appended.iter().flat_map(|one| &one.outcomes);
        let seqs = outcomes.map(|outcome| match outcome {
            Outcome::Stored { seq } => *seq,
            _ => 0,
        });
        if !seqs.eq((head + 1..).take(count)) {
            return Err(Error::internal(
                "the events of keys are not where they belong",
            ));
        }
        Ok(Replaced {
            key_id,
            plaintext: made.plaintext.expose().to_owned(),
            revoked: old,
        })
    }

    async fn replace_one(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        key_id: &str,
        epoch: u64,
        successor: &str,
    ) -> Result<NewEvent> {
        let (system, time) = (TenantRef::system(), self.core.clock.now());
        let reason = format!("replaced by {successor}");
        let revocation = Revocation {
            time,
            by: HUB.to_owned(),
            reason: reason.clone(),
            epoch,
        };
        let key = store::revoke(tx, &system, key_id, &revocation).await?;
        let key = key.ok_or_else(|| Error::internal("an operator key ended meanwhile"))?;
        let change = audit::Change {
            caller,
            action: ACTION,
            resource: key_id,
            changes: Changes::new().field("revocation.reason", "", &reason),
            time,
        };
        audit::record(tx, &system, change).await?;
        Ok(key_event(&key, "key.revoked", HUB, time, &reason))
    }
}
