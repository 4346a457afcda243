//! The calling key, as it is when its call changes a key.
//!
//! A call is admitted by what is in memory, and may wait for the lock of the system log after that.
//! Whoever revokes or narrows a key has that lock too. So a call that has it looks at its own key
//! again: what a key that was revoked meanwhile would make, nobody would know to revoke.

use hub_core::auth::Caller;
use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::storage::Tx;

use crate::key::{Key, Record};
use crate::keys::Keys;
use crate::scopes::{self, Rights};
use crate::store;

/// Who calls, with the rights of now.
#[derive(Debug)]
pub(crate) struct Calling {
    pub caller: Caller,
    /// None of the hub itself, which has no key.
    own: Option<Key>,
}

impl Keys {
    /// Who calls; `tx` has the lock of the system log. Errors: `KEY_REVOKED`, `KEY_EXPIRED`.
    pub(crate) async fn calling(&self, tx: &mut Tx, caller: &Caller) -> Result<Calling> {
        let mut caller = caller.clone();
        let own = self.working(tx, &caller.key_id).await?;
        if let Some((_, record)) = &own {
            caller.scopes = record.caller.scopes.clone();
        }
        let own = own.map(|(own, _)| own);
        Ok(Calling { caller, own })
    }

    /// The calling key, if it is one, which works. Errors: `KEY_REVOKED`, `KEY_EXPIRED`.
    pub(crate) async fn working(&self, tx: &mut Tx, key_id: &str) -> Result<Option<(Key, Record)>> {
        let Some(own) = store::by_id_in(tx, key_id).await? else {
            return Ok(None);
        };
        let record = Record::read(&own)?;
        record.check_works(self.core.clock.now())?;
        Ok(Some((own, record)))
    }
}

impl Calling {
    /// `SCOPE_ESCALATION` unless the caller has all of these rights itself.
    pub(crate) fn check_within(&self, rights: Rights<'_>) -> Result<()> {
        scopes::check_within(&self.caller, rights)
    }

    /// `SCOPE_ESCALATION` unless a key that ends then and is used from there reaches no further
    /// than the caller's own.
    pub(crate) fn check_reach(&self, expire_time: Option<Micros>, cidrs: &[String]) -> Result<()> {
        scopes::check_reach(self.own.as_ref(), expire_time, cidrs)
    }
}
