//! Tenants are made by operators, each with its first administrator key.

use std::collections::HashSet;
use std::sync::Arc;

use hub_core::audit::{self, Changes};
use hub_core::auth::{Caller, KeyIssuer};
use hub_core::clock::{Micros, timestamp};
use hub_core::error::{Error, Result};
use hub_core::journal::{TenantRef, lock_head};
use hub_core::module::Core;
use hub_core::page::{self, List};
use hub_core::products::{ProductNo, Products};
use hub_core::replay::{Begun, Done, Retry};
use hub_core::tenancy;

use crate::addressed;
use crate::changes::{self, Told};
use crate::error;
use crate::store::{self, Tenant};

/// The RPC that makes tenants, as its policy names it.
pub(crate) const CREATE: &str = "hub.platform.v1.Platform/CreateTenant";
/// The RPC that changes them.
const UPDATE: &str = "hub.platform.v1.Platform/UpdateTenant";

/// How long events are kept unless the tenant says otherwise, in microseconds: 30 days.
pub(crate) const RETENTION: Micros = 30 * 24 * 3600 * 1_000_000;
/// Longest and shortest time for which events may be kept: 1 h and 10 years.
const RETENTIONS: std::ops::RangeInclusive<Micros> = 3_600_000_000..=315_619_200_000_000;

/// Most characters of a tenant's name.
const NAME_CHARS_MAX: usize = 200;

/// The tenants of a database.
pub(crate) struct Tenants {
    core: Core,
    issuer: Arc<dyn KeyIssuer>,
}

/// A tenant that was just made.
pub(crate) struct Created {
    pub tenant: Tenant,
    pub admin_key: String,
}

/// New values of a tenant; those that are absent stay as they are.
#[derive(Debug, Default)]
pub(crate) struct NewValues {
    pub name: Option<String>,
    pub retention: Option<Micros>,
    pub retention_bytes: Option<u64>,
    /// Version that the caller read; empty = any.
    pub etag: String,
}

/// A page of tenants.
pub(crate) struct Page {
    pub tenants: Vec<Tenant>,
    pub next_page_token: String,
}

impl Tenants {
    pub fn new(core: &Core, issuer: Arc<dyn KeyIssuer>) -> Self {
        Tenants {
            core: core.clone(),
            issuer,
        }
    }

    /// Makes a tenant and its administrator key.
    ///
    /// Errors: `TENANT_EXISTS`, `PRODUCT_NOT_FOUND`, `REQUEST_ID_REUSED`.
    pub async fn create(
        &self,
        caller: &Caller,
        name: &str,
        products: &[String],
        retry: Option<Retry<'_, Created>>,
    ) -> Result<Done<Created>> {
        let chosen = choose(&*self.core.tenancy.products().await?, products)?;
        // Before the transaction: to look the log up may take a connection of its own.
        let log = self.core.journal.log(&TenantRef::system()).await?;
        let now = self.core.clock.now();
        let mut tx = self.core.db.begin().await?;
        if let Some(Retry { call, .. }) = &retry
            && let Begun::Again(answer) = call.begin(&mut tx, &self.core.sealer, now).await?
        {
            return Ok(Done::Again(answer));
        }
        let tenant = match tenancy::create(&mut tx, name, now).await {
            Ok(tenant) => tenant,
            Err(failure) if failure.is_unique_violation() => {
                drop(tx);
                return Err(self.name_taken(name).await);
            }
            Err(failure) => return Err(failure.into()),
        };
        tenancy::begin_with(&mut tx, &tenant, &chosen, &caller.key_id, now).await?;
        let issued = self
            .issuer
            .issue_administrator(&mut tx, &tenant, &caller.key_id)
            .await?;
        let made = Created {
            tenant: new_tenant(&tenant, name, now),
            admin_key: issued.plaintext,
        };
        if let Some(Retry { call, message }) = &retry {
            let (sealer, secret) = (&self.core.sealer, Some(made.admin_key.as_str()));
            call.finish(&mut tx, sealer, message(&made), secret).await?;
        }
        let change = audit::Change {
            caller,
            action: CREATE,
            resource: tenant.id(),
            changes: Changes::new()
                .field("name", "", name)
                .field("products", "", products.join(" "))
                .field("admin_key.key_id", "", &issued.key_id),
            time: now,
        };
        audit::record(&mut tx, &tenant, change).await?;
        let told = told(&log, "tenant.created", &made.tenant);
        let events = vec![told.event(caller, now), issued.event];
        changes::commit(&self.core, tx, log.clone(), events).await?;
        Ok(Done::First(made))
    }

    async fn name_taken(&self, name: &str) -> Error {
        match self.core.tenancy.by_name(name).await {
            Ok(Some(tenant)) => error::tenant_exists(name, tenant.id()),
            Ok(None) => Error::store_busy("Another tenant is being made", "tenant_race"),
            Err(error) => error,
        }
    }

    /// A tenant. Errors: `TENANT_REQUIRED`, `TENANT_NOT_FOUND`.
    pub async fn get(&self, caller: &Caller, tenant_id: &str) -> Result<Tenant> {
        let tenant = addressed::required(&self.core, caller, tenant_id).await?;
        let found = store::find(&self.core.db, tenant.id()).await?;
        found.ok_or_else(|| tenancy::not_found(tenant.id()))
    }

    /// Changes a tenant.
    ///
    /// Errors: `TENANT_REQUIRED`, `TENANT_NOT_FOUND`, `TENANT_EXISTS`, `ETAG_MISMATCH`,
    /// `FIELD_INVALID`.
    pub async fn update(&self, caller: &Caller, tenant_id: &str, new: NewValues) -> Result<Tenant> {
        let tenant = addressed::required(&self.core, caller, tenant_id).await?;
        check(&new)?;
        let log = self.core.journal.log(&TenantRef::system()).await?;
        let now = self.core.clock.now();
        let mut tx = self.core.db.begin().await?;
        lock_head(&mut tx, &TenantRef::system()).await?;
        let before = store::find_in(&mut tx, tenant.id()).await?;
        let before = before.ok_or_else(|| tenancy::not_found(tenant.id()))?;
        if !new.etag.is_empty() && new.etag != before.version.to_string() {
            return Err(Error::etag_mismatch(before.version));
        }
        let after = changed(&before, new);
        let changes = differences(&before, &after);
        if changes.is_empty() {
            return Ok(before);
        }
        match store::update(&mut tx, &after).await {
            Ok(()) => {}
            Err(failure) if failure.is_unique_violation() => {
                drop(tx);
                return Err(self.name_taken(&after.name).await);
            }
            Err(failure) => return Err(failure.into()),
        }
        let change = audit::Change {
            caller,
            action: UPDATE,
            resource: tenant.id(),
            changes,
            time: now,
        };
        audit::record(&mut tx, &tenant, change).await?;
        let event = told(&log, "tenant.updated", &after).event(caller, now);
        changes::commit(&self.core, tx, log.clone(), vec![event]).await?;
        Ok(after)
    }

    /// Tenants by id. Errors: `PAGE_TOKEN_INVALID`, `FIELD_INVALID`.
    pub async fn list(
        &self,
        page_size: i32,
        page_token: &str,
        encoded_len: impl Fn(&Tenant) -> usize,
    ) -> Result<Page> {
        let (now, size) = (self.core.clock.now(), page::size(page_size)?);
        let system = TenantRef::system();
        let list = List {
            name: "ListTenants",
            tenant: &system,
            filter: b"",
        };
        let after = self.core.cursors.read_page(list, now, page_token)?;
        let after = after.unwrap_or_default();
        let mut tenants = store::list(&self.core.db, &after, size + 1).await?;
        let bytes_max = self.core.limits.page_bytes_max;
        let more = page::cut(&mut tenants, size, bytes_max, encoded_len);
        let next_page_token = match tenants.last().filter(|_| more) {
            Some(last) => self.core.cursors.write_page(list, now, &last.tenant_id),
            None => String::new(),
        };
        Ok(Page {
            tenants,
            next_page_token,
        })
    }
}

/// Which products a new tenant has: those asked for, or all.
fn choose(products: &Products, asked: &[String]) -> Result<Vec<(ProductNo, bool)>> {
    for slug in asked {
        products.require(slug)?;
    }
    let asked: HashSet<&str> = asked.iter().map(String::as_str).collect();
    let chosen = products.iter().map(|product| {
        let active = asked.is_empty() || asked.contains(product.slug.as_str());
        (product.number, active)
    });
    Ok(chosen.collect())
}

fn new_tenant(tenant: &TenantRef, name: &str, now: Micros) -> Tenant {
    Tenant {
        tenant_id: tenant.id().to_owned(),
        name: name.to_owned(),
        create_time: now,
        retention: RETENTION,
        retention_bytes: 0,
        version: 1,
    }
}

fn check(new: &NewValues) -> Result<()> {
    let name_fits = |name: &String| (1..=NAME_CHARS_MAX).contains(&name.chars().count());
    if !new.name.as_ref().is_none_or(name_fits) {
        return Err(Error::field("tenant.name", "must have 1 to 200 characters"));
    }
    if !new.retention.is_none_or(|time| RETENTIONS.contains(&time)) {
        return Err(Error::field("tenant.retention", "must be 1 h to 10 years"));
    }
    if new
        .retention_bytes
        .is_some_and(|bytes| i64::try_from(bytes).is_err())
    {
        return Err(Error::field(
            "tenant.retention_bytes",
            "must fit in 63 bits",
        ));
    }
    Ok(())
}

fn changed(before: &Tenant, new: NewValues) -> Tenant {
    let retention_bytes = new.retention_bytes.map(u64::cast_signed);
    Tenant {
        tenant_id: before.tenant_id.clone(),
        name: new.name.unwrap_or_else(|| before.name.clone()),
        create_time: before.create_time,
        retention: new.retention.unwrap_or(before.retention),
        retention_bytes: retention_bytes.unwrap_or(before.retention_bytes),
        version: before.version + 1,
    }
}

fn differences(before: &Tenant, after: &Tenant) -> Changes {
    let seconds = |tenant: &Tenant| format!("{}s", tenant.retention as f64 / 1e6);
    Changes::new()
        .field("name", &before.name, &after.name)
        .field("retention", seconds(before), seconds(after))
        .field(
            "retention_bytes",
            before.retention_bytes,
            after.retention_bytes,
        )
}

/// What the system log tells of a tenant. The version makes each change an event of its own.
fn told<'a>(
    log: &'a Arc<hub_core::journal::Log>,
    kind: &'static str,
    tenant: &'a Tenant,
) -> Told<'a> {
    Told {
        log,
        kind,
        id: format!("{}.{}", tenant.tenant_id, tenant.version),
        subject: &tenant.tenant_id,
        tenant_id: &tenant.tenant_id,
        data: serde_json::json!({
            "tenantId": tenant.tenant_id,
            "name": tenant.name,
            "retentionSeconds": tenant.retention / 1_000_000,
            "retentionBytes": tenant.retention_bytes,
            "createTime": timestamp(tenant.create_time).to_string(),
        }),
    }
}
