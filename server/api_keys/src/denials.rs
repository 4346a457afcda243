//! Calls and decisions that were refused to keys that are known, so that ExplainAccess can tell of
//! them by the id of the call.
//!
//! They are kept for 7 days. Only the first few of a minute are kept of each key, so that a client
//! that goes on calling costs nothing, and only the newest of each tenant.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hub_core::auth::Caller;
use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::journal::TenantRef;
use hub_core::storage::Db;

use crate::store::denials as store;

/// How long they are kept.
pub(crate) const KEPT: Micros = 7 * 24 * 3600 * 1_000_000;
/// Kept of a key in a minute, for each tenant that it names.
const OF_KEY_MAX: u32 = 10;
/// Kept of all keys in a minute, at each process.
const OF_MINUTE_MAX: usize = 1_000;
/// Those that wait to be written.
const PENDING_MAX: usize = 5_000;
/// Longest text of the rights that a key lacks.
const LACKING_BYTES_MAX: usize = 1024;
/// Longest text of each of what was asked.
const TEXT_BYTES_MAX: usize = 256;
const MINUTE: Micros = 60_000_000;

/// A call that was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Denial {
    pub call_id: String,
    pub tenant_no: i64,
    pub key_id: String,
    pub time: Micros,
    pub reason: String,
    pub product: String,
    pub action: String,
    pub host: String,
    pub path: String,
    pub client_ip: String,
    /// Requests that it counted as.
    pub cost: u32,
    /// Id of the tenant that the call named, if its key serves all tenants; else empty.
    pub named_tenant: String,
    /// What the refusal named: the rights that the key lacks, or what only operators may do.
    pub lacking: String,
}

#[derive(Default)]
struct Pending {
    denials: Vec<Denial>,
    minute: Micros,
    /// By key and tenant.
    of_keys: HashMap<(Arc<str>, String), u32>,
    in_minute: usize,
}

/// The newest denials of this process.
#[derive(Default)]
pub(crate) struct Denials {
    pending: Mutex<Pending>,
}

impl Denials {
    /// Keeps a denial of whose key it is, if there are not too many.
    pub fn note(&self, whose: &Caller, mut denial: Denial) {
        let minute = denial.time - denial.time.rem_euclid(MINUTE);
        let mut pending = self.pending();
        if pending.minute != minute {
            pending.minute = minute;
            pending.in_minute = 0;
            pending.of_keys.clear();
        }
        // One of all tenants may have named one.
        let tenant = whose.tenant.as_ref().filter(|_| !whose.all_tenants);
        if tenant.is_some() {
            // It can name its own only.
            denial.named_tenant.clear();
        }
        cut(&mut denial.named_tenant, TEXT_BYTES_MAX);
        let holder = (whose.key_id.clone(), denial.named_tenant.clone());
        let of_key = pending.of_keys.get(&holder).copied().unwrap_or(0);
        let full = pending.in_minute >= OF_MINUTE_MAX || pending.denials.len() >= PENDING_MAX;
        if full || of_key >= OF_KEY_MAX {
            return;
        }
        pending.of_keys.insert(holder, of_key + 1);
        pending.in_minute += 1;
        denial.key_id = whose.key_id.to_string();
        denial.tenant_no = tenant.map_or(0, TenantRef::number);
        let texts = [
            &mut denial.product,
            &mut denial.action,
            &mut denial.host,
            &mut denial.path,
        ];
        texts.into_iter().for_each(|text| cut(text, TEXT_BYTES_MAX));
        cut(&mut denial.lacking, LACKING_BYTES_MAX);
        pending.denials.push(denial);
    }

    /// Writes what waits; what could not be written waits for the next batch.
    pub async fn write(&self, db: &Db) -> Result<()> {
        // They stay until they are in the table, for whoever asks meanwhile.
        let denials = self.pending().denials.clone();
        if denials.is_empty() {
            return Ok(());
        }
        store::insert(db, &denials).await?;
        let written: HashSet<&str> = denials.iter().map(|one| &*one.call_id).collect();
        let is_left = |one: &Denial| !written.contains(&*one.call_id);
        self.pending().denials.retain(is_left);
        Ok(())
    }

    /// The denial of this call, of whichever tenant.
    pub async fn find(&self, db: &Db, call_id: &str) -> Result<Option<Denial>> {
        let pending = {
            let pending = self.pending();
            let found = pending.denials.iter().find(|one| one.call_id == call_id);
            found.cloned()
        };
        match pending {
            Some(denial) => Ok(Some(denial)),
            None => store::find(db, call_id).await,
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cut(text: &mut String, bytes_max: usize) {
    text.truncate(text.floor_char_boundary(bytes_max));
}

#[cfg(test)]
mod tests {
    use hub_core::auth::{Origin, Scopes};

    use super::*;

    fn caller(key_id: &str) -> Caller {
        Caller {
            key_id: key_id.into(),
            tenant: Some(TenantRef::new(7, "tn_1")),
            product: None,
            scopes: Scopes::default(),
            all_tenants: false,
            origin: Origin::of_nothing(),
        }
    }

    fn denied(number: u32, time: Micros) -> Denial {
        Denial {
            call_id: format!("call_{number}"),
            time,
            ..Denial::default()
        }
    }

    fn kept(denials: &Denials) -> usize {
        denials.pending().denials.len()
    }

    #[test]
    fn of_a_key_the_first_few_of_each_minute_are_kept() {
        let denials = Denials::default();
        for number in 0..OF_KEY_MAX * 3 {
            denials.note(&caller("key_1"), denied(number, 5 * MINUTE));
        }
        assert_eq!(kept(&denials), OF_KEY_MAX as usize);
        denials.note(&caller("key_2"), denied(100, 6 * MINUTE - 1));
        assert_eq!(kept(&denials), OF_KEY_MAX as usize + 1);
        denials.note(&caller("key_1"), denied(101, 6 * MINUTE));
        assert_eq!(kept(&denials), OF_KEY_MAX as usize + 2);
    }

    #[test]
    fn of_many_keys_so_many_are_kept_of_a_minute_and_so_many_wait() {
        let denials = Denials::default();
        let mut number = 0;
        for minute in 0..10 {
            for _ in 0..OF_MINUTE_MAX + 10 {
                number += 1;
                let key = caller(&format!("key_{number}"));
                denials.note(&key, denied(number, minute * MINUTE));
            }
            let expected = (minute as usize + 1) * OF_MINUTE_MAX;
            assert_eq!(kept(&denials), expected.min(PENDING_MAX));
        }
        // What is counted of keys is forgotten with the minute.
        assert!(denials.pending().of_keys.len() <= OF_MINUTE_MAX);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let denials = Denials::default();
        let long = Denial {
            path: "é".repeat(TEXT_BYTES_MAX),
            lacking: format!("x{}", "é".repeat(LACKING_BYTES_MAX)),
            ..denied(1, 0)
        };
        denials.note(&caller("key_1"), long);
        let pending = denials.pending();
        assert_eq!(pending.denials[0].path.len(), TEXT_BYTES_MAX);
        assert_eq!(pending.denials[0].lacking.len(), LACKING_BYTES_MAX - 1);
    }
}
