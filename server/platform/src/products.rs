//! The products of the suite: operators name them, tenants subscribe to them.

use std::collections::HashMap;

use hub_core::audit::{self, Changes};
use hub_core::auth::Caller;
use hub_core::error::{Error, Result};
use hub_core::journal::{TenantRef, lock_head};
use hub_core::module::Core;
use hub_core::page::{self, List};
use hub_core::products::{self, Product, ProductNo, Products, RATE_LIMITED_STATUS};
use hub_core::tenancy::{self, Subscription};

use crate::addressed;
use crate::changes::{self, Told};
use crate::error;

/// The RPC that changes products, as its policy names it.
const UPDATE: &str = "hub.platform.v1.Platform/UpdateProduct";
/// The RPC that changes subscriptions to them.
const SET_SUBSCRIPTION: &str = "hub.platform.v1.Platform/SetProductSubscription";

/// Most base URLs of a product.
const BASE_URLS_MAX: usize = 64;
/// Longest of them, in bytes.
const BASE_URL_BYTES_MAX: usize = 1024;
/// Most characters of a display name.
const NAME_CHARS_MAX: usize = 200;

/// The products of a database.
pub(crate) struct Catalog {
    core: Core,
}

/// A product, and the subscription of the tenant that was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub product: Product,
    pub subscription: Option<Subscription>,
}

/// New values of a product; those that are absent stay as they are.
#[derive(Debug, Default)]
pub(crate) struct NewValues {
    pub display_name: Option<String>,
    pub base_urls: Option<Vec<String>>,
    pub rate_limited_status: Option<u32>,
    /// Version that the caller read; empty = any.
    pub etag: String,
    /// Make the product if its slug is new.
    pub allow_missing: bool,
}

/// A page of products.
pub(crate) struct Page {
    pub products: Vec<Shown>,
    pub next_page_token: String,
}

impl Catalog {
    pub fn new(core: &Core) -> Self {
        Catalog { core: core.clone() }
    }

    /// The products by slug, with a tenant's subscriptions if there is a tenant.
    ///
    /// Errors: `TENANT_NOT_FOUND`, `PAGE_TOKEN_INVALID`, `FIELD_INVALID`.
    pub async fn list(
        &self,
        caller: &Caller,
        tenant_id: &str,
        page_size: i32,
        page_token: &str,
        encoded_len: impl Fn(&Shown) -> usize,
    ) -> Result<Page> {
        let (now, size) = (self.core.clock.now(), page::size(page_size)?);
        let tenant = addressed::tenant(&self.core, caller, tenant_id).await?;
        let system = TenantRef::system();
        let list = List {
            name: "ListProducts",
            tenant: tenant.as_ref().unwrap_or(&system),
            filter: b"",
        };
        let after = self.core.cursors.read_page(list, now, page_token)?;
        let subscriptions = match &tenant {
            Some(tenant) => Some(self.subscriptions(tenant).await?),
            None => None,
        };
        // As stored: what this server believes may be some hundred milliseconds old.
        let products = Products::load(&self.core.db).await?;
        let after = after.as_deref().unwrap_or_default();
        let following = products
            .iter()
            .filter(|product| product.slug.as_str() > after);
        let shown = following.map(|product| Shown {
            product: product.clone(),
            subscription: subscriptions.as_ref().map(|all| of(all, product.number)),
        });
        let mut products: Vec<Shown> = shown.collect();
        let bytes_max = self.core.limits.page_bytes_max;
        let more = page::cut(&mut products, size, bytes_max, encoded_len);
        let next_page_token = match products.last().filter(|_| more) {
            Some(last) => self.core.cursors.write_page(list, now, &last.product.slug),
            None => String::new(),
        };
        Ok(Page {
            products,
            next_page_token,
        })
    }

    async fn subscriptions(&self, tenant: &TenantRef) -> Result<HashMap<ProductNo, Subscription>> {
        let stored = tenancy::subscriptions(&self.core.db, tenant).await?;
        let by_product = stored.into_iter().map(|one| (one.product, one));
        Ok(by_product.collect())
    }

    /// Changes a product for all tenants, or makes it.
    ///
    /// Errors: `PRODUCT_NOT_FOUND`, `ETAG_MISMATCH`, `FIELD_INVALID`, `QUOTA_EXCEEDED`.
    pub async fn update(&self, caller: &Caller, slug: &str, new: NewValues) -> Result<Product> {
        check(slug, &new)?;
        let system = TenantRef::system();
        let log = self.core.journal.log(&system).await?;
        let now = self.core.clock.now();
        let mut tx = self.core.db.begin().await?;
        // The version of the list of products is the epoch of the hub's own log.
        let bumped = tenancy::bump(&mut tx, &system).await?;
        let products = Products::load_in(&mut tx).await?;
        let before = match products.find(slug) {
            Some(product) => product.clone(),
            None if new.allow_missing => missing(&products, slug)?,
            None => return Err(products.not_found(slug)),
        };
        if !new.etag.is_empty() && new.etag != before.version.to_string() {
            return Err(Error::etag_mismatch(before.version));
        }
        let is_new = before.version == 0;
        let mut after = changed(&before, new);
        let changes = differences(&before, &after, is_new);
        if changes.is_empty() {
            return Ok(before);
        }
        after.update_time = now;
        products::put(&mut tx, &after).await?;
        let change = audit::Change {
            caller,
            action: UPDATE,
            resource: slug,
            changes,
            time: now,
        };
        audit::record(&mut tx, &system, change).await?;
        let told = Told {
            log: &log,
            kind: if is_new {
                "product.created"
            } else {
                "product.updated"
            },
            id: format!("product.{slug}.{}", after.version),
            subject: slug,
            tenant_id: "",
            data: serde_json::json!({
                "product": slug,
                "displayName": after.display_name,
                "baseUrls": after.base_urls,
                "routingEpoch": bumped.epoch,
            }),
        };
        let event = told.event(caller, now);
        changes::commit(&self.core, tx, log.clone(), vec![event]).await?;
        Ok(after)
    }

    /// Activates or ends a tenant's subscription to a product. Repeating changes nothing.
    ///
    /// Errors: `TENANT_REQUIRED`, `TENANT_NOT_FOUND`, `PRODUCT_NOT_FOUND`.
    pub async fn set_subscription(
        &self,
        caller: &Caller,
        tenant_id: &str,
        slug: &str,
        active: bool,
    ) -> Result<Shown> {
        let tenant = addressed::required(&self.core, caller, tenant_id).await?;
        let product = self.core.tenancy.products().await?.require(slug)?.clone();
        let log = self.core.journal.log(&tenant).await?;
        let system = self.core.journal.log(&TenantRef::system()).await?;
        let now = self.core.clock.now();
        let mut tx = self.core.db.begin().await?;
        let bumped = tenancy::bump(&mut tx, &tenant).await?;
        let before = tenancy::subscription_of(&mut tx, &tenant, product.number).await?;
        if before.active == active {
            return Ok(shown(product, before));
        }
        let after = Subscription {
            product: product.number,
            active,
            update_time: now,
            updated_by: caller.key_id.to_string(),
        };
        // Before the audit log, as whoever changes a key does.
        lock_head(&mut tx, system.tenant()).await?;
        tenancy::put_subscription(&mut tx, &tenant, bumped.epoch, &after).await?;
        let change = audit::Change {
            caller,
            action: SET_SUBSCRIPTION,
            resource: slug,
            changes: Changes::new().field("active", before.active, active),
            time: now,
        };
        audit::record(&mut tx, &tenant, change).await?;
        // In the hub's own log too: whoever caches decisions about keys follows that one.
        let told = [&log, &system].map(|log| {
            let told = Told {
                log,
                kind: "product_subscription.updated",
                id: format!(
                    "product_subscription.{}.{slug}.{}",
                    tenant.id(),
                    bumped.epoch
                ),
                subject: slug,
                tenant_id: tenant.id(),
                data: serde_json::json!({
                    "product": slug,
                    "active": active,
                    "routingEpoch": bumped.epoch,
                }),
            };
            (log.clone(), told.event(caller, now))
        });
        changes::commit_all(&self.core, tx, told.into()).await?;
        Ok(shown(product, after))
    }
}

fn shown(product: Product, subscription: Subscription) -> Shown {
    Shown {
        product,
        subscription: Some(subscription),
    }
}

fn of(subscriptions: &HashMap<ProductNo, Subscription>, product: ProductNo) -> Subscription {
    let stored = subscriptions.get(&product).cloned();
    stored.unwrap_or_else(|| Subscription::unchanged(product))
}

/// What a product is before it is made: its first change makes it version 1.
fn missing(products: &Products, slug: &str) -> Result<Product> {
    let number = products.next_number();
    Ok(Product {
        number: number.ok_or_else(error::too_many_products)?,
        slug: slug.to_owned(),
        display_name: slug.to_owned(),
        base_urls: Vec::new(),
        rate_limited_status: RATE_LIMITED_STATUS,
        update_time: 0,
        version: 0,
    })
}

fn check(slug: &str, new: &NewValues) -> Result<()> {
    if new.allow_missing && !products::is_slug(slug) {
        let problem = "must be a lower-case letter, then letters, digits or -, at most 63 in all";
        return Err(Error::field("product.product", problem));
    }
    let name_fits = |name: &String| (1..=NAME_CHARS_MAX).contains(&name.chars().count());
    if !new.display_name.as_ref().is_none_or(name_fits) {
        let problem = "must have 1 to 200 characters";
        return Err(Error::field("product.display_name", problem));
    }
    let urls = new.base_urls.as_deref().unwrap_or_default();
    if urls.len() > BASE_URLS_MAX {
        return Err(Error::field("product.base_urls", "must be at most 64"));
    }
    for (at, url) in urls.iter().enumerate() {
        if !is_base_url(url) {
            let problem = "must be an address such as https://api.example.com";
            return Err(Error::field(format!("product.base_urls[{at}]"), problem));
        }
    }
    if !new
        .rate_limited_status
        .is_none_or(|status| matches!(status, 0 | 403 | 429))
    {
        let problem = "must be 429 or 403";
        return Err(Error::field("product.rate_limited_status", problem));
    }
    Ok(())
}

/// Scheme and host; whatever else could carry a secret is not part of it.
fn is_base_url(text: &str) -> bool {
    let Ok(url) = text.parse::<http::Uri>() else {
        return false;
    };
    let scheme = matches!(url.scheme_str(), Some("https" | "http"));
    let host = url.host().is_some_and(|host| !host.is_empty());
    let plain = !text.contains(['@', '#', '?']);
    text.len() <= BASE_URL_BYTES_MAX && scheme && host && plain
}

fn changed(before: &Product, new: NewValues) -> Product {
    let status = new.rate_limited_status.map(|status| match status {
        0 => RATE_LIMITED_STATUS,
        status => status,
    });
    Product {
        number: before.number,
        slug: before.slug.clone(),
        display_name: new
            .display_name
            .unwrap_or_else(|| before.display_name.clone()),
        base_urls: new.base_urls.unwrap_or_else(|| before.base_urls.clone()),
        rate_limited_status: status.unwrap_or(before.rate_limited_status),
        update_time: before.update_time,
        version: before.version + 1,
    }
}

fn differences(before: &Product, after: &Product, is_new: bool) -> Changes {
    let (slug, name) = match is_new {
        true => ("", ""),
        false => (before.slug.as_str(), before.display_name.as_str()),
    };
    Changes::new()
        .field("product", slug, &after.slug)
        .field("display_name", name, &after.display_name)
        .field(
            "base_urls",
            before.base_urls.join(" "),
            after.base_urls.join(" "),
        )
        .field(
            "rate_limited_status",
            before.rate_limited_status,
            after.rate_limited_status,
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_scheme_and_host() {
        for good in [
            "https://api.theonepsa.com",
            "http://10.0.0.1:8080",
            "https://a.b/v1",
        ] {
            assert!(is_base_url(good), "{good}");
        }
        let long = format!("https://{}", "a".repeat(2000));
        for bad in [
            "",
            "api",
            "ftp://a",
            "https://",
            "https://u:p@a",
            "https://a/?k=1",
            &long,
        ] {
            assert!(!is_base_url(bad), "{bad:.40}");
        }
    }
}
