//! Keys that the hub makes by itself: the operator's, and the first one of a tenant.

use std::collections::BTreeMap;

use hub_core::auth::{ADMINISTRATOR, Answer, IssuedKey, KeyIssuer};
use hub_core::error::Result;
use hub_core::journal::{TenantRef, lock_head};
use hub_core::storage::Tx;

use crate::error;
use crate::keys::{Keys, NewKey};
use crate::scopes::OPERATORS;
use crate::store;

/// Who made the operator keys that nobody else made.
pub(crate) const HUB: &str = "hub";

impl Keys {
    /// At the first start: makes the operator's key and returns its secret, which nobody can show
    /// again. `None` if one was ever made, also if it was revoked since.
    pub async fn ensure_operator(&self) -> Result<Option<String>> {
        let log = self.system_log().await?;
        let mut tx = self.core.db.begin().await?;
        if store::lock_operators(&mut tx).await? {
            return Ok(None);
        }
        let now = self.core.clock.now();
        let made = self
            .insert(&mut tx, &TenantRef::system(), operator(), HUB, now)
            .await?;
        self.commit(tx, log, made.event).await?;
        Ok(Some(made.plaintext.expose().to_owned()))
    }
}

impl KeyIssuer for Keys {
    fn issue_administrator<'a>(
        &'a self,
        tx: &'a mut Tx,
        tenant: &'a TenantRef,
        created_by: &'a str,
    ) -> Answer<'a, IssuedKey> {
        Box::pin(async move {
            // As whoever revokes the operator's key does, which may have happened meanwhile.
            lock_head(tx, &TenantRef::system()).await?;
            let own = self.working(tx, created_by).await?;
            if own.is_some_and(|(_, own)| !own.caller.is_operator()) {
                return Err(error::escalation(OPERATORS));
            }
            let now = self.core.clock.now();
            let new = administrator("administrator");
            let made = self.insert(tx, tenant, new, created_by, now).await?;
            Ok(IssuedKey {
                key_id: made.key.key_id,
                plaintext: made.plaintext.expose().to_owned(),
                event: made.event,
            })
        })
    }
}

/// The key of no tenant that may do everything.
pub(crate) fn operator() -> NewKey {
    NewKey {
        all_tenants: true,
        ..administrator("operator")
    }
}

fn administrator(name: &str) -> NewKey {
    NewKey {
        name: name.to_owned(),
        scopes: vec![ADMINISTRATOR.to_owned()],
        product: String::new(),
        cidrs: Vec::new(),
        expire_time: None,
        labels: BTreeMap::new(),
        all_tenants: false,
    }
}
