//! What many keys have in common is in memory once: a tenant, a product, a list of scopes.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use hub_core::auth::{Caller, Scopes};
use hub_core::journal::TenantRef;

/// Tenants, products and lists of scopes that are looked for at once; past this, those of them are
/// forgotten here, and stay where they are used.
const EACH_MAX: usize = 100_000;

/// What is shared.
#[derive(Default)]
pub(crate) struct Interned(Mutex<Parts>);

#[derive(Default)]
struct Parts {
    tenants: HashMap<i64, TenantRef>,
    products: HashSet<Arc<str>>,
    scopes: HashSet<Scopes>,
}

impl Interned {
    /// The same caller, with what others have too.
    pub fn share(&self, caller: &mut Caller) {
        let parts = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = &mut caller.tenant {
            let known = parts.tenants.get(&tenant.number());
            // A log that was put back may have given the number to another one.
            match known.filter(|known| *known == tenant) {
                Some(known) => *tenant = known.clone(),
                None => {
                    if parts.tenants.len() >= EACH_MAX {
                        parts.tenants = HashMap::new();
                    }
                    parts.tenants.insert(tenant.number(), tenant.clone());
                }
            }
        }
        if let Some(product) = &mut caller.product {
            *product = one(&mut parts.products, product);
        }
        caller.scopes = one(&mut parts.scopes, &caller.scopes);
    }
}

/// The one that is known, or this one from now on.
fn one<T: Clone + Eq + std::hash::Hash>(known: &mut HashSet<T>, value: &T) -> T {
    if let Some(known) = known.get(value) {
        return known.clone();
    }
    if known.len() >= EACH_MAX {
        *known = HashSet::new();
    }
    known.insert(value.clone());
    value.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(tenant: Option<TenantRef>, product: &str, scopes: &[&str]) -> Caller {
        Caller {
            key_id: "key_1".into(),
            tenant,
            product: Some(product.into()),
            scopes: Scopes::new(scopes.iter().map(|scope| (*scope).to_owned())),
            all_tenants: false,
            origin: hub_core::auth::Origin::of_nothing(),
        }
    }

    /// Where the parts of a caller are.
    fn places(caller: &Caller) -> [*const u8; 3] {
        let tenant = caller.tenant.as_ref().unwrap();
        [
            tenant.id().as_ptr(),
            caller.product.as_ref().unwrap().as_ptr(),
            caller.scopes.list().as_ptr().cast(),
        ]
    }

    #[test]
    fn what_callers_have_in_common_is_in_memory_once() {
        let interned = Interned::default();
        let tenant = || Some(TenantRef::new(7, "tnt_a"));
        let mut callers = [
            caller(tenant(), "psa", &["psa:read"]),
            caller(tenant(), "psa", &["psa:read"]),
            caller(tenant(), "crm", &["psa:read", "crm:read"]),
        ];
        let before = format!("{callers:?}");
        for caller in &mut callers {
            interned.share(caller);
        }
        assert_eq!(format!("{callers:?}"), before, "nothing else is changed");
        let [first, second, third] = callers.each_ref().map(places);
        assert_eq!(first, second);
        assert!(first[0] == third[0] && first[1] != third[1] && first[2] != third[2]);
    }

    #[test]
    fn a_number_that_was_given_to_another_tenant_is_not_taken_for_the_first() {
        let interned = Interned::default();
        for id in ["tnt_a", "tnt_b", "tnt_b"] {
            let mut caller = caller(Some(TenantRef::new(7, id)), "psa", &[]);
            interned.share(&mut caller);
            assert_eq!(caller.tenant.unwrap().id(), id);
        }
    }

    #[test]
    fn no_more_is_looked_for_than_the_limit() {
        let interned = Interned::default();
        for number in 0..EACH_MAX as i64 + 10 {
            let tenant = TenantRef::new(number, &format!("tnt_{number}"));
            let scope = format!("psa:{number}");
            interned.share(&mut caller(Some(tenant), &format!("p{number}"), &[&scope]));
        }
        let parts = interned.0.lock().unwrap();
        assert_eq!(
            (
                parts.tenants.len(),
                parts.products.len(),
                parts.scopes.len()
            ),
            (10, 10, 10)
        );
    }
}
