//! Switches for what flows from one product to another; on unless a tenant turned one off.

use std::collections::HashMap;

use hub_core::audit::{self, Changes};
use hub_core::auth::Caller;
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::module::Core;
use hub_core::page::{self, List};
use hub_core::products::{ProductNo, Products};
use hub_core::storage::Tx;
use hub_core::tenancy::{self, Integration};

use crate::addressed;
use crate::changes::{self, Told};

/// The RPC that switches them, as its policy names it.
const SET: &str = "hub.platform.v1.Platform/SetIntegration";

/// Most characters of a reason.
const REASON_CHARS_MAX: usize = 500;

/// The integrations of a database.
pub(crate) struct Integrations {
    core: Core,
}

/// A switch, and whether data flows now.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub source: String,
    pub destination: String,
    pub integration: Integration,
    pub effective: bool,
}

/// Which switches a list shows; empty = any.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    pub source: String,
    pub destination: String,
}

/// A page of integrations.
pub(crate) struct Page {
    pub integrations: Vec<Shown>,
    pub next_page_token: String,
}

/// A switch about to be set.
pub(crate) struct NewSwitch<'a> {
    pub source: &'a str,
    pub destination: &'a str,
    pub enabled: bool,
    pub reason: &'a str,
}

impl Integrations {
    pub fn new(core: &Core) -> Self {
        Integrations { core: core.clone() }
    }

    /// The switches between all products, by source, then destination.
    ///
    /// Errors: `TENANT_REQUIRED`, `TENANT_NOT_FOUND`, `PAGE_TOKEN_INVALID`, `FIELD_INVALID`.
    pub async fn list(
        &self,
        caller: &Caller,
        tenant_id: &str,
        filter: Filter,
        page_size: i32,
        page_token: &str,
        encoded_len: impl Fn(&Shown) -> usize,
    ) -> Result<Page> {
        let (now, size) = (self.core.clock.now(), page::size(page_size)?);
        let tenant = addressed::required(&self.core, caller, tenant_id).await?;
        let bound = format!("{}\n{}", filter.source, filter.destination);
        let list = List {
            name: "ListIntegrations",
            tenant: &tenant,
            filter: bound.as_bytes(),
        };
        let after = self.core.cursors.read_page(list, now, page_token)?;
        let after = after.as_deref().and_then(|pair| pair.split_once('\n'));
        let mut integrations = self.all(&tenant, &filter, after, size + 1).await?;
        let bytes_max = self.core.limits.page_bytes_max;
        let more = page::cut(&mut integrations, size, bytes_max, encoded_len);
        let next_page_token = match integrations.last().filter(|_| more) {
            Some(last) => {
                let after = format!("{}\n{}", last.source, last.destination);
                self.core.cursors.write_page(list, now, &after)
            }
            None => String::new(),
        };
        Ok(Page {
            integrations,
            next_page_token,
        })
    }

    /// At most `count` switches after a pair of slugs.
    async fn all(
        &self,
        tenant: &TenantRef,
        filter: &Filter,
        after: Option<(&str, &str)>,
        count: usize,
    ) -> Result<Vec<Shown>> {
        let db = &self.core.db;
        let products = Products::load(db).await?;
        let stored = tenancy::integrations(db, tenant).await?.into_iter();
        let stored: HashMap<_, _> = stored
            .map(|integration| ((integration.source, integration.destination), integration))
            .collect();
        let changed = tenancy::subscriptions(db, tenant).await?.into_iter();
        let changed: HashMap<_, _> = changed.map(|one| (one.product, one.active)).collect();
        let active = |product: ProductNo| {
            let changed = changed.get(&product).copied();
            changed.unwrap_or(product.is_of_the_suite())
        };
        let wanted = |wanted: &str, slug: &str| wanted.is_empty() || wanted == slug;
        let pairs = products.iter().flat_map(|source| {
            let destinations = products.iter();
            destinations.map(move |destination| (source, destination))
        });
        let pairs = pairs.filter(|(source, destination)| {
            source.slug != destination.slug
                && wanted(&filter.source, &source.slug)
                && wanted(&filter.destination, &destination.slug)
                && after.is_none_or(|after| (&*source.slug, &*destination.slug) > after)
        });
        let shown = pairs.take(count).map(|(source, destination)| {
            let (from, to) = (source.number, destination.number);
            let integration = stored.get(&(from, to)).cloned();
            let integration = integration.unwrap_or_else(|| Integration::unchanged(from, to));
            Shown {
                source: source.slug.clone(),
                destination: destination.slug.clone(),
                effective: integration.enabled && active(from) && active(to),
                integration,
            }
        });
        Ok(shown.collect())
    }

    /// Turns one integration on or off, from the next event of the tenant's log on. Repeating
    /// changes nothing.
    ///
    /// Errors: `TENANT_REQUIRED`, `TENANT_NOT_FOUND`, `PRODUCT_NOT_FOUND`, `FIELD_INVALID`.
    pub async fn set(&self, caller: &Caller, tenant_id: &str, new: NewSwitch<'_>) -> Result<Shown> {
        let tenant = addressed::required(&self.core, caller, tenant_id).await?;
        let products = self.core.tenancy.products().await?;
        let source = products.require(new.source)?.number;
        let destination = products.require(new.destination)?.number;
        check(&new)?;
        let log = self.core.journal.log(&tenant).await?;
        let now = self.core.clock.now();
        let mut tx = self.core.db.begin().await?;
        let bumped = tenancy::bump(&mut tx, &tenant).await?;
        let before = tenancy::integration_of(&mut tx, &tenant, source, destination).await?;
        let after = Integration {
            source,
            destination,
            enabled: new.enabled,
            reason: new.reason.to_owned(),
            update_time: now,
            updated_by: caller.key_id.to_string(),
        };
        let active = both_active(&mut tx, &tenant, source, destination).await?;
        if before.enabled == after.enabled {
            return Ok(shown(&new, before, active));
        }
        tenancy::put_integration(&mut tx, &tenant, bumped.epoch, &after).await?;
        let resource = format!("{}/{}", new.source, new.destination);
        let change = audit::Change {
            caller,
            action: SET,
            resource: &resource,
            changes: Changes::new()
                .field("enabled", before.enabled, after.enabled)
                .field("reason", &before.reason, &after.reason),
            time: now,
        };
        audit::record(&mut tx, &tenant, change).await?;
        let told = Told {
            log: &log,
            kind: "integration.updated",
            id: format!("integration.{resource}.{}", bumped.epoch),
            subject: &resource,
            tenant_id: tenant.id(),
            data: serde_json::json!({
                "source": new.source,
                "destination": new.destination,
                "enabled": new.enabled,
                "reason": new.reason,
                "routingEpoch": bumped.epoch,
            }),
        };
        let event = told.event(caller, now);
        changes::commit(&self.core, tx, log.clone(), vec![event]).await?;
        Ok(shown(&new, after, active))
    }
}

fn check(new: &NewSwitch<'_>) -> Result<()> {
    if new.source == new.destination {
        let problem = "must not be the source: a product is never sent its own events";
        return Err(Error::field("destination", problem));
    }
    if new.reason.chars().count() > REASON_CHARS_MAX {
        return Err(Error::field("reason", "must have at most 500 characters"));
    }
    Ok(())
}

async fn both_active(
    tx: &mut Tx,
    tenant: &TenantRef,
    source: ProductNo,
    destination: ProductNo,
) -> Result<bool> {
    let source = tenancy::subscription_of(tx, tenant, source).await?;
    let destination = tenancy::subscription_of(tx, tenant, destination).await?;
    Ok(source.active && destination.active)
}

fn shown(new: &NewSwitch<'_>, integration: Integration, active: bool) -> Shown {
    Shown {
        source: new.source.to_owned(),
        destination: new.destination.to_owned(),
        effective: integration.enabled && active,
        integration,
    }
}
