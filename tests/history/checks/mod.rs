//! What has to hold of every history. Each check is a pure function of what the clients wrote and
//! of the log at the end; a violation names the events and the times that contradict each other.

mod batches;
mod explained;
mod fates;
mod index;
mod keys;
mod leases;
mod order;
mod progress;
mod published;
mod redelivered;
mod routes;
mod stories;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::fmt;

use super::tracks::History;
pub use index::Tenant;

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which check found it.
    pub check: &'static str,
    pub tenant: usize,
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] tenant {}: {}", self.check, self.tenant, self.text)
    }
}

/// What a check finds in a tenant's part of a history.
type Check = fn(&Tenant<'_>) -> Vec<String>;

/// All checks, by name.
pub const CHECKS: &[(&str, Check)] = &[
    ("published", published::check),
    ("batches", batches::check),
    ("order", order::check),
    ("routes", routes::check),
    ("subscriptions", subscriptions::check),
    ("keys", keys::check),
    ("leases", leases::check),
    ("fates", fates::check),
    ("progress", progress::check),
    ("redelivered", redelivered::check),
    ("explained", explained::check),
    ("panics", panics),
];

/// No process panicked; told once, with the first tenant.
fn panics(tenant: &Tenant<'_>) -> Vec<String> {
    let told = tenant.panics.iter().filter(|_| tenant.number == 0);
    told.map(|text| (*text).to_owned()).collect()
}

/// Holds a history against all checks.
pub fn all(history: &History) -> Vec<Violation> {
    let tenants = 0..history.dumps.len();
    let tenants: Vec<_> = tenants
        .map(|number| Tenant::index(history, number))
        .collect();
    let mut found = Vec::new();
    for tenant in &tenants {
        for (name, check) in CHECKS {
            let texts = check(tenant).into_iter();
            found.extend(texts.map(|text| Violation {
                check: name,
                tenant: tenant.number,
                text,
            }));
        }
    }
    found
}
