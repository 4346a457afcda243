//! Which decisions the changes of keys have made void, by epoch.

use std::collections::{HashMap, VecDeque};

use hub_proto::hub::api_keys::v1::{ApiKeyChanges, VerifyApiKeyResponse};

/// Says "all keys" in a change.
const ALL: &str = "*";
/// Keys and tenants whose last change is remembered; for the rest one epoch has to do.
const SUBJECTS_MAX: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Voids {
    /// The last change by id of the key, or of the tenant if it was one of all its keys. The empty
    /// id stands for any tenant: its change may concern a key that serves all tenants.
    changes: HashMap<String, u64>,
    order: VecDeque<(String, u64)>,
    /// The last change of all keys.
    all: u64,
    /// Decisions before it are used once: changes of their key may not be known here.
    floor: u64,
    /// The last epoch that was heard of.
    newest: u64,
}

impl Voids {
    /// Whether the decision does not know a change of its key.
    pub(super) fn is_stale(&self, told: &VerifyApiKeyResponse) -> bool {
        let last = |id: &String| self.changes.get(id).copied().unwrap_or(0);
        let own = match told.key_id.is_empty() {
            true => 0,
            false => last(&told.key_id).max(last(&told.tenant_id)),
        };
        told.epoch < self.all.max(own)
    }

    /// Whether the decision may be used again.
    pub(super) fn keeps(&self, told: &VerifyApiKeyResponse) -> bool {
        told.epoch >= self.floor && !self.is_stale(told)
    }

    pub(super) fn opened(&mut self, epoch: u64) {
        if epoch < self.newest {
            // The hub was put back to before: its epochs begin again.
            *self = Voids::default();
        }
        self.newest = epoch;
        self.floor = self.floor.max(epoch);
    }

    pub(super) fn changed(&mut self, changes: &ApiKeyChanges) {
        let epoch = changes.epoch;
        self.newest = self.newest.max(epoch);
        for key_id in &changes.key_ids {
            match (key_id.as_str(), changes.tenant_id.as_str()) {
                (ALL, "") => self.all = self.all.max(epoch),
                (ALL, tenant_id) => {
                    self.void(tenant_id, epoch);
                    self.void("", epoch);
                }
                (key_id, _) => self.void(key_id, epoch),
            }
        }
    }

    pub(super) fn missed(&mut self, epoch: u64) {
        self.newest = self.newest.max(epoch);
        self.all = self.all.max(epoch);
    }

    fn void(&mut self, id: &str, epoch: u64) {
        let known = self.changes.entry(id.to_owned()).or_default();
        if epoch <= *known {
            return;
        }
        *known = epoch;
        self.order.push_back((id.to_owned(), epoch));
        while self.order.len() > SUBJECTS_MAX {
            let Some((id, epoch)) = self.order.pop_front() else {
                return;
            };
            self.floor = self.floor.max(epoch);
            if self.changes.get(&id) == Some(&epoch) {
                self.changes.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(key_id: &str, tenant_id: &str, epoch: u64) -> VerifyApiKeyResponse {
        VerifyApiKeyResponse {
            key_id: key_id.into(),
            tenant_id: tenant_id.into(),
            epoch,
            ..Default::default()
        }
    }

    fn change(key_id: &str, tenant_id: &str, epoch: u64) -> ApiKeyChanges {
        ApiKeyChanges {
            key_ids: vec![key_id.into()],
            tenant_id: tenant_id.into(),
            epoch,
            ..Default::default()
        }
    }

    #[test]
    fn a_decision_is_void_if_a_change_of_its_key_is_newer() {
        let mut voids = Voids::default();
        voids.changed(&change("key_1", "tnt_1", 5));
        assert!(voids.is_stale(&told("key_1", "tnt_1", 4)));
        assert!(voids.keeps(&told("key_1", "tnt_1", 5)));
        assert!(voids.keeps(&told("key_2", "tnt_1", 4)));
        voids.changed(&change("key_1", "tnt_1", 3));
        assert!(voids.is_stale(&told("key_1", "tnt_1", 4)), "an old change");
    }

    #[test]
    fn a_change_of_all_keys_is_one_of_each() {
        let mut voids = Voids::default();
        voids.changed(&change("*", "tnt_1", 5));
        assert!(voids.is_stale(&told("key_1", "tnt_1", 4)));
        assert!(voids.is_stale(&told("key_2", "", 4)), "of all tenants");
        assert!(!voids.is_stale(&told("key_3", "tnt_2", 4)));
        assert!(!voids.is_stale(&told("", "", 4)), "nobody's");
        voids.changed(&change("*", "", 6));
        assert!(voids.is_stale(&told("key_3", "tnt_2", 5)));
        voids.missed(7);
        assert!(voids.is_stale(&told("key_3", "tnt_2", 6)));
    }

    #[test]
    fn what_is_forgotten_of_changes_is_not_taken_for_none() {
        let mut voids = Voids::default();
        for epoch in 1..=2 * SUBJECTS_MAX as u64 {
            voids.changed(&change(&format!("key_{epoch}"), "tnt_1", epoch));
        }
        assert_eq!(voids.changes.len(), SUBJECTS_MAX);
        assert!(!voids.keeps(&told("key_1", "tnt_1", 0)));
        assert!(!voids.keeps(&told("key_x", "tnt_1", 1)));
        let newest = 2 * SUBJECTS_MAX as u64;
        assert!(voids.keeps(&told("key_x", "tnt_1", newest)));
    }

    #[test]
    fn a_hub_that_was_put_back_begins_again() {
        let mut voids = Voids::default();
        voids.opened(10);
        voids.changed(&change("key_1", "tnt_1", 12));
        assert!(!voids.keeps(&told("key_2", "tnt_1", 9)));
        voids.opened(12);
        assert!(voids.is_stale(&told("key_1", "tnt_1", 11)), "still known");
        voids.opened(3);
        assert!(voids.keeps(&told("key_1", "tnt_1", 3)));
        assert!(!voids.keeps(&told("key_1", "tnt_1", 2)));
    }
}
