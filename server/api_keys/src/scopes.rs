//! Which rights a key may give: none that it does not have.

use hub_core::auth::{ADMINISTRATOR, Caller, covers, is_scope};
use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::products::Products;

use crate::addresses::Cidr;
use crate::error;
use crate::key::Key;

/// What an operator's key has beyond an administrator's.
pub(crate) const OPERATORS: &str = "the rights of an operator";

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
        return Err(error::escalation(OPERATORS));
    }
    if caller.scopes.is_administrator() {
        return Ok(());
    }
    let held = caller.scopes.list();
    let lacks = |scope: &&str| !held.iter().any(|held| covers(held, scope));
    let given = rights.scopes.iter().map(String::as_str);
    let missing: Vec<&str> = given.filter(lacks).collect();
    if !missing.is_empty() {
        return Err(error::scopes_escalation(&missing));
    }
    match rights.product {
        Some(product) if caller.product.as_deref() != Some(product) => {
            Err(error::product_escalation(product))
        }
        _ => Ok(()),
    }
}

/// `SCOPE_ESCALATION` if a key that serves all tenants would be made out of another, changed,
/// limited or revoked by one that is neither an operator's, nor that key itself, nor of the same
/// product.
pub(crate) fn check_all_tenants(caller: &Caller, key: &Key) -> Result<()> {
    let is_own = *key.key_id == *caller.key_id;
    let of_product = key.product.is_some() && key.product.as_deref() == caller.product.as_deref();
    match key.tenant.is_some() || caller.is_operator() || is_own || of_product {
        true => Ok(()),
        false => Err(error::escalation("keys of all tenants")),
    }
}

/// `SCOPE_ESCALATION` unless a key that ends then and is used from there reaches no further than
/// `own`; none = anywhere and for ever.
pub(crate) fn check_reach(
    own: Option<&Key>,
    expire_time: Option<Micros>,
    cidrs: &[String],
) -> Result<()> {
    let Some(own) = own else {
        return Ok(());
    };
    let outlives = |end: Micros| expire_time.is_none_or(|at| at > end);
    if own.expire_time.is_some_and(outlives) {
        return Err(error::escalation("a validity beyond its own expire_time"));
    }
    let held: Vec<Cidr> = own
        .cidrs
        .iter()
        .flat_map(|block| Cidr::parse(block))
        .collect();
    let is_within = |block: &String| {
        let block = Cidr::parse(block);
        block.is_ok_and(|block| held.iter().any(|held| held.covers(&block)))
    };
    if !own.cidrs.is_empty() && (cidrs.is_empty() || !cidrs.iter().all(is_within)) {
        return Err(error::escalation("addresses beyond its own allowed_cidrs"));
    }
    Ok(())
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
            origin: hub_core::auth::Origin::of_nothing(),
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
    fn a_key_reaches_no_further_than_the_one_that_made_it() {
        let own = Key {
            expire_time: Some(100),
            cidrs: vec!["10.0.0.0/8".into(), "::1/128".into()],
            ..crate::key::tests::key()
        };
        let within = |expire_time, cidrs: &[&str]| {
            let cidrs: Vec<String> = cidrs.iter().map(|block| (*block).to_owned()).collect();
            check_reach(Some(&own), expire_time, &cidrs).is_ok()
        };
        assert!(within(Some(100), &["10.0.0.0/8"]) && within(Some(1), &["10.1.0.0/16", "::1/128"]));
        assert!(!within(None, &["10.0.0.0/8"]) && !within(Some(101), &["10.0.0.0/8"]));
        for wider in [
            &[][..],
            &["10.0.0.0/7"],
            &["0.0.0.0/0"],
            &["10.0.0.0/8", "::/0"],
        ] {
            assert!(!within(Some(100), wider), "{wider:?}");
        }
        assert!(check_reach(Some(&crate::key::tests::key()), None, &[]).is_ok());
        assert!(check_reach(None, None, &[]).is_ok());
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
