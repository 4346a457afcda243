//! Which rights a key may give: none that it does not have.

use hub_core::auth::{ADMINISTRATOR, Caller, covers, is_scope};
use hub_core::error::Result;
use hub_core::products::Products;

use crate::error;

/// The rights of a key that is made, changed or ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rights<'a> {
    /// Its scopes.
    pub scopes: &'a [String],
    /// Product that it speaks for.
    pub product: Option<&'a str>,
    /// It belongs to no tenant.
    pub all_tenants: bool,
}

impl Rights<'_> {
    fn are_operators(&self) -> bool {
        let administrator = self.scopes.iter().any(|scope| scope == ADMINISTRATOR);
        self.all_tenants && self.product.is_none() && administrator
    }
}

/// `SCOPE_INVALID`, or `PRODUCT_NOT_FOUND` for a scope of a product that does not exist.
pub(crate) fn check_form(scopes: &[String], products: &Products) -> Result<()> {
    for scope in scopes {
        if !is_scope(scope) {
            return Err(error::scope_invalid(scope));
        }
        if let Some((product, _)) = scope.split_once(':') {
            products.require(product)?;
        }
    }
    Ok(())
}

/// `SCOPE_ESCALATION` unless the caller has all of these rights itself.
///
/// To speak for a product is a right as well: without it a key of PSA could make one that
/// publishes as Books.
pub(crate) fn check_within(caller: &Caller, rights: Rights<'_>) -> Result<()> {
    // An operator's key has `hub:*` as an administrator's has, but reaches every tenant.
    if rights.are_operators() && !caller.is_operator() {
        return Err(error::escalation(ADMINISTRATOR));
    }
    if caller.scopes.is_administrator() {
        return Ok(());
    }
    let held = caller.scopes.list();
    for scope in rights.scopes {
        if !held.iter().any(|held| covers(held, scope)) {
            return Err(error::escalation(scope));
        }
    }
    match rights.product {
        Some(product) if caller.product.as_deref() != Some(product) => {
            Err(error::escalation(&format!("{product}:*")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use hub_core::auth::Scopes;
    use hub_core::journal::TenantRef;

    use hub_core::products::{Product, ProductNo};

    use super::*;

    fn caller(scopes: &[&str], product: Option<&str>, all_tenants: bool) -> Caller {
        Caller {
            key_id: "key_1".into(),
            tenant: (!all_tenants).then(|| TenantRef::new(1, "tnt_1")),
            product: product.map(Into::into),
            scopes: Scopes::new(scopes.iter().map(|scope| (*scope).to_owned())),
            all_tenants,
            origin: hub_core::auth::Origin::default(),
        }
    }

    fn gives(caller: &Caller, scopes: &[&str], product: Option<&str>) -> bool {
        let scopes: Vec<String> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let all_tenants = caller.all_tenants;
        check_within(
            caller,
            Rights {
                scopes: &scopes,
                product,
                all_tenants,
            },
        )
        .is_ok()
    }

    #[test]
    fn a_key_gives_what_it_has_and_nothing_more() {
        let psa = caller(&["psa:tickets.*", "hub:keys.write"], Some("psa"), false);
        assert!(gives(
            &psa,
            &["psa:tickets.read", "hub:keys.write"],
            Some("psa")
        ));
        assert!(gives(&psa, &["psa:tickets.*"], None));
        assert!(gives(&psa, &[], None));
        for wider in [
            "psa:*",
            "psa:*.read",
            "hub:*",
            "hub:keys.read",
            "crm:tickets.read",
        ] {
            assert!(!gives(&psa, &[wider], None), "{wider}");
        }
        assert!(!gives(&psa, &[], Some("books")));
        assert!(!gives(
            &caller(&["hub:keys.write"], None, false),
            &[],
            Some("psa")
        ));
    }

    #[test]
    fn an_administrator_gives_scopes_of_any_product_and_nobody_else_does() {
        let administrator = caller(&["hub:*"], None, false);
        assert!(gives(
            &administrator,
            &["psa:*", "crm:deals.read", "hub:*"],
            Some("books")
        ));
        assert!(!gives(
            &caller(&["hub:keys.*"], None, false),
            &["psa:tickets.read"],
            None
        ));
    }

    #[test]
    fn only_an_operator_makes_or_ends_an_operators_key() {
        let operator = caller(&["hub:*"], None, true);
        assert!(gives(&operator, &["hub:*"], None));
        let backend = caller(&["hub:*"], Some("psa"), true);
        assert!(!gives(&backend, &["hub:*"], None));
        assert!(gives(&backend, &["hub:*"], Some("psa")));
    }

    #[test]
    fn a_scope_needs_its_form_and_a_product_that_exists() {
        let product = |(number, slug): (i64, &str)| Product {
            number: ProductNo::new(number).unwrap(),
            slug: slug.to_owned(),
            display_name: String::new(),
            base_urls: Vec::new(),
            rate_limited_status: 429,
            update_time: 0,
            version: 1,
        };
        let products = Products::new([(1, "psa"), (2, "hub")].map(product).to_vec());
        let check = |scope: &str| check_form(&[scope.to_owned()], &products);
        let reason = |scope: &str| check(scope).unwrap_err().reason();
        assert!(check("psa:tickets.read").is_ok() && check("hub:*").is_ok());
        for bad in ["psa", "psa:tick*", "*:read", "psa:a..b", "PSA:read", ""] {
            assert_eq!(reason(bad), "SCOPE_INVALID", "{bad}");
        }
        assert_eq!(reason("pas:tickets.read"), "PRODUCT_NOT_FOUND");
    }
}
