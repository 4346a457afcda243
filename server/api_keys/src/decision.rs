//! THE decision about one request to a product: a pure function over what is known of the key, the
//! products and the request. It knows no database, no clock and no transport.
//!
//! The steps come in the order of the contract; the first one that fails is the reason. Format and
//! checksum, and whether the key is known, come before; the rate limits come after, because only
//! what passes all of these is counted.

use std::net::IpAddr;

use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::products::{Product, Products};
use hub_core::tenancy;

use crate::base_url;
use crate::error;
use crate::key::{End, Record};

/// What is checked of a key that is known, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It was not revoked.
    Revoked,
    /// It has not expired.
    Expired,
    /// It may be used from the client's address.
    Address,
    /// The tenant's subscription to the product is active.
    Subscription,
    /// One of its scopes is for the product.
    Product,
    /// The host is one of the product's.
    BaseUrl,
    /// One of its scopes covers the action.
    Scope,
}

/// All steps, in the order in which they are decided.
pub(crate) const ORDER: [Step; 7] = [
    Step::Revoked,
    Step::Expired,
    Step::Address,
    Step::Subscription,
    Step::Product,
    Step::BaseUrl,
    Step::Scope,
];

/// The request to decide about.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Slug of the product.
    pub product: String,
    /// The scope that the action needs, `<product>:<action>`.
    pub scope: String,
    /// Host that received the request; empty = not told.
    pub host: String,
    /// Its path.
    pub path: String,
    /// Address of the client, if it is told.
    pub client: Option<IpAddr>,
}

/// What the decision is made from: all of one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Snapshot<'a> {
    /// The key.
    pub record: &'a Record,
    /// The product that is asked.
    pub product: &'a Product,
    /// All products.
    pub products: &'a Products,
    /// The tenant's subscription to the product is active, or there is no tenant.
    pub is_active: bool,
    /// The time.
    pub now: Micros,
}

/// Whether the key may do what is asked, its limits aside; else the reason.
pub(crate) fn decide(snapshot: Snapshot<'_>, asked: &Asked) -> Result<()> {
    let mut steps = ORDER.iter();
    steps.try_for_each(|step| check(*step, snapshot, asked))
}

/// One step of the decision.
pub(crate) fn check(step: Step, snapshot: Snapshot<'_>, asked: &Asked) -> Result<()> {
    let record = snapshot.record;
    match step {
        Step::Revoked => match record.end {
            Some(End::Revoked(_)) => record.check_works(snapshot.now),
            _ => Ok(()),
        },
        Step::Expired => match record.end {
            Some(End::Revoked(_)) => Ok(()),
            _ => record.check_works(snapshot.now),
        },
        Step::Address => record.check_address(asked.client),
        Step::Subscription => match snapshot.is_active {
            true => Ok(()),
            false => Err(tenancy::inactive(&asked.product)),
        },
        Step::Product => check_product(record, asked),
        Step::BaseUrl => check_base_url(snapshot, asked),
        Step::Scope => record.caller.require(&asked.scope),
    }
}

fn check_product(record: &Record, asked: &Asked) -> Result<()> {
    let mut products: Vec<&str> = Vec::new();
    for scope in record.caller.scopes.list() {
        let product = scope.split(':').next().unwrap_or_default();
        if product == asked.product {
            return Ok(());
        }
        if !products.contains(&product) {
            products.push(product);
        }
    }
    let key_id = &record.caller.key_id;
    Err(error::product_mismatch(key_id, &products, &asked.product))
}

fn check_base_url(snapshot: Snapshot<'_>, asked: &Asked) -> Result<()> {
    let base_urls = &snapshot.product.base_urls;
    let (host, path) = (&asked.host, &asked.path);
    let covered = |product: &Product| {
        let mut base_urls = product.base_urls.iter();
        base_urls.any(|base_url| base_url::covers(base_url, host, path))
    };
    if host.is_empty() || base_urls.is_empty() || covered(snapshot.product) {
        return Ok(());
    }
    let other = snapshot.products.iter().find(|product| covered(product));
    let other = other.map(|product| product.slug.as_str());
    Err(error::base_url_mismatch(
        &asked.product,
        host,
        base_urls,
        other,
    ))
}

#[cfg(test)]
mod tests {
    use hub_core::products::ProductNo;

    use super::*;
    use crate::key::tests::{key, revoked_at};
    use crate::key::{Key, Record};

    fn product(number: i64, slug: &str, base_urls: &[&str]) -> Product {
        Product {
            number: ProductNo::new(number).unwrap(),
            slug: slug.to_owned(),
            display_name: String::new(),
            base_urls: base_urls.iter().map(|url| (*url).to_owned()).collect(),
            rate_limited_status: 429,
            update_time: 0,
            version: 1,
        }
    }

    fn asked() -> Asked {
        Asked {
            product: "psa".into(),
            scope: "psa:tickets.read".into(),
            host: "crm.example.com".into(),
            path: "/".into(),
            client: None,
        }
    }

    /// A key for which every step fails, with the changes that mend the steps one after the other.
    #[test]
    fn the_reason_is_the_first_step_that_fails_in_the_order_of_the_contract() {
        let products = Products::new(vec![
            product(1, "psa", &["https://psa.example.com"]),
            product(2, "crm", &["https://crm.example.com"]),
        ]);
        let mut bad = Key {
            cidrs: vec!["10.0.0.0/8".into()],
            scopes: vec!["crm:deals.read".into()],
            expire_time: Some(50),
            revocation: revoked_at(12),
            ..key()
        };
        let (mut asked, mut is_active) = (asked(), false);
        let mut reasons = Vec::new();
        loop {
            let record = Record::new(&bad).unwrap();
            let snapshot = Snapshot {
                record: &record,
                product: products.find("psa").unwrap(),
                products: &products,
                is_active,
                now: 100,
            };
            let Err(error) = decide(snapshot, &asked) else {
                break;
            };
            reasons.push(error.reason());
            match error.reason() {
                "KEY_REVOKED" => bad.revocation = None,
                "KEY_EXPIRED" => bad.expire_time = None,
                "IP_NOT_ALLOWED" => asked.client = Some("10.1.2.3".parse().unwrap()),
                "SUBSCRIPTION_INACTIVE" => is_active = true,
                "PRODUCT_MISMATCH" => bad.scopes.push("psa:notes.read".into()),
                "BASE_URL_MISMATCH" => asked.host = "psa.example.com".into(),
                "SCOPE_MISSING" => bad.scopes.push("psa:tickets.*".into()),
                other => panic!("{other}"),
            }
        }
        assert_eq!(
            reasons,
            [
                "KEY_REVOKED",
                "KEY_EXPIRED",
                "IP_NOT_ALLOWED",
                "SUBSCRIPTION_INACTIVE",
                "PRODUCT_MISMATCH",
                "BASE_URL_MISMATCH",
                "SCOPE_MISSING",
            ]
        );
    }

    #[test]
    fn a_wrong_product_and_a_wrong_host_name_the_right_one() {
        let products = Products::new(vec![
            product(1, "psa", &["https://psa.example.com/api"]),
            product(2, "crm", &["https://crm.example.com"]),
        ]);
        let told = |scopes: &[&str], host: &str| {
            let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
            let record = Record::new(&Key { scopes, ..key() }).unwrap();
            let snapshot = Snapshot {
                record: &record,
                product: products.find("psa").unwrap(),
                products: &products,
                is_active: true,
                now: 0,
            };
            let asked = Asked {
                host: host.into(),
                ..asked()
            };
            decide(snapshot, &asked).unwrap_err()
        };
        let other = told(&["crm:*", "books:*", "crm:deals.read"], "");
        assert!(other.message().contains("is for crm, books"), "{other}");
        assert!(
            other
                .metadata()
                .contains(&("keyProducts", "crm books".into()))
        );
        assert!(other.metadata().contains(&("product", "psa".into())));
        let host = told(&["psa:*"], "crm.example.com");
        assert!(host.message().contains("belongs to crm"), "{host}");
        let expected = ("expectedBaseUrl", "https://psa.example.com/api".into());
        assert!(host.metadata().contains(&expected));
    }

    #[test]
    fn without_a_host_or_without_base_urls_the_host_is_not_checked() {
        let products = Products::new(vec![product(1, "psa", &[])]);
        let record = Record::new(&Key {
            scopes: vec!["psa:*".into()],
            ..key()
        });
        let record = record.unwrap();
        let snapshot = Snapshot {
            record: &record,
            product: products.find("psa").unwrap(),
            products: &products,
            is_active: true,
            now: 0,
        };
        assert!(decide(snapshot, &asked()).is_ok());
    }
}
