//! Which subscriptions other processes have at work, as far as this one knows: so that a call for
//! one of them does not ask the database each time.
//!
//! What is known may be old. Who is asked then takes the subscription itself if it is free, or says
//! that it has moved; then it is forgotten here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hub_core::processes::Processes;

/// Subscriptions that are known; beyond that all are forgotten.
const KNOWN_MAX: usize = 10_000;

/// Ids of owners by subscription.
#[derive(Debug, Default)]
pub(crate) struct Whereabouts {
    owners: Mutex<HashMap<Arc<str>, Arc<str>>>,
}

impl Whereabouts {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<str>>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The owner of a subscription, if it lives.
    pub(crate) fn find(&self, id: &str, processes: &Processes) -> Option<Arc<str>> {
        let mut owners = self.lock();
        let owner = owners.get(id).cloned()?;
        if processes.peer(&owner).is_none() {
            owners.remove(id);
            return None;
        }
        Some(owner)
    }

    /// A subscription is at work there.
    pub(crate) fn note(&self, id: &str, owner: &str) {
        let mut owners = self.lock();
        if owners.len() >= KNOWN_MAX {
            owners.clear();
        }
        owners.insert(id.into(), owner.into());
    }

    /// What a process had may be at work elsewhere by now.
    pub(crate) fn forget_owner(&self, process_id: &str) {
        self.lock().retain(|_, owner| **owner != *process_id);
    }

    /// A subscription may be at work elsewhere by now.
    pub(crate) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }
}
