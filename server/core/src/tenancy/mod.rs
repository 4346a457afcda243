//! The tenants, and what each may use: the configuration by which events are routed.
//!
//! A tenant has a number, which is part of every event id and never used again, and a routing
//! epoch, the version of its configuration. Each change raises the epoch under the lock of the
//! tenant's log ([`bump`]), and each segment of the log carries the epoch under which it was
//! committed, so that a change takes effect at an exact sequence. What was in force at an epoch
//! never changes any more: a [`Snapshot`].

mod snapshot;
mod store;
mod versioned;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt;
use tonic::Code;

pub use snapshot::{Blocked, Snapshot};
pub use store::{
    InForce, Integration, Subscription, integration_in_force, integration_of, integrations,
    put_integration, put_subscription, subscription_in_force, subscription_of, subscriptions,
};
pub use versioned::Versioned;

use crate::clock::{Micros, timeout};
use crate::error::{Error, Result};
use crate::id;
pub use crate::journal::{Bumped, bump};
use crate::journal::{Journal, TenantRef};
use crate::products::{ProductNo, Products};
use crate::storage::{Db, Sql, Tx};

/// How long a look-up may take of what is known anyway: a database that hangs is away.
pub const LOOKED_UP_WITHIN: Duration = Duration::from_millis(500);

/// Tenants kept in memory; past this they are looked up again.
const CACHED_MAX: usize = 100_000;

/// Memory for snapshots of all tenants at all epochs in use.
const SNAPSHOT_BYTES_MAX: usize = 32 << 20;

/// Memory for lists of products; one is in use.
const PRODUCTS_BYTES_MAX: usize = 4 << 20;

/// What a product takes in memory, about.
const PRODUCT_BYTES: usize = 512;

const FIND: Sql = Sql::same("select tenant_no, tenant_id from tenants where tenant_id = $1");
const BY_NUMBER: Sql = Sql::same("select tenant_no, tenant_id from tenants where tenant_no = $1");
// The row of the system log is the lock under which numbers are given out.
const LOCK: Sql = Sql::each(
    "select head from journal_heads where tenant_no = 0",
    "select head from journal_heads where tenant_no = 0 for update",
);
const NEXT: Sql = Sql::same("select cast(coalesce(max(tenant_no), 0) + 1 as bigint) from tenants");
const INSERT: Sql = Sql::same(
    "insert into tenants (tenant_no, tenant_id, name, create_time) values ($1, $2, $3, $4)",
);
const INSERT_HEAD: Sql =
    Sql::same("insert into journal_heads (tenant_no, head, record_time) values ($1, 0, 0)");
const BY_NAME: Sql = Sql::same("select tenant_no, tenant_id from tenants where name = $1");

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[FIND, BY_NUMBER, LOCK, NEXT, INSERT, INSERT_HEAD, BY_NAME];

/// Statements about what tenants may use, for the same test.
pub const CONFIGURATION_STATEMENTS: &[Sql] = store::STATEMENTS;

/// The products, and what a tenant may use if one is named.
pub type Usable = (Arc<Products>, Option<Arc<Snapshot>>);

/// Looks tenants up, and what they may use; cheap to clone.
#[derive(Clone)]
pub struct Tenancy {
    db: Db,
    journal: Arc<Journal>,
    known: Arc<RwLock<HashMap<String, TenantRef>>>,
    snapshots: Arc<Versioned<Snapshot>>,
    products: Arc<Versioned<Products>>,
}

impl Tenancy {
    /// Over the tenants of a database and their logs.
    pub fn new(db: Db, journal: Arc<Journal>) -> Self {
        let snapshots = Versioned::new(SNAPSHOT_BYTES_MAX, Snapshot::memory);
        let weigh = |products: &Arc<Products>| products.count() * PRODUCT_BYTES;
        Tenancy {
            db,
            journal,
            known: Arc::default(),
            snapshots: Arc::new(snapshots),
            products: Arc::new(Versioned::new(PRODUCTS_BYTES_MAX, weigh)),
        }
    }

    /// What a tenant may use at an epoch. Errors: `STORE_BUSY`.
    pub async fn snapshot(&self, tenant: &TenantRef, epoch: u64) -> Result<Arc<Snapshot>> {
        let load = || async {
            let (subscriptions, integrations) = store::at(&self.db, tenant, epoch).await?;
            Ok(Snapshot::new(&subscriptions, &integrations))
        };
        self.snapshots.get(tenant, epoch, load).await
    }

    /// The present epoch of a tenant and what it may use, at most a second old: see
    /// [`Journal::routing_epoch`]. Errors: `STORE_BUSY`.
    pub async fn current(&self, tenant: &TenantRef) -> Result<(u64, Arc<Snapshot>)> {
        let epoch = self.journal.routing_epoch(tenant).await?;
        Ok((epoch, self.snapshot(tenant, epoch).await?))
    }

    /// The products, at most a second old; their version is the epoch of the system log. Errors:
    /// `STORE_BUSY`.
    pub async fn products(&self) -> Result<Arc<Products>> {
        let system = TenantRef::system();
        let epoch = self.journal.routing_epoch(&system).await?;
        let load = || async { Products::load(&self.db).await.map(Arc::new) };
        self.products.get(&system, epoch, load).await
    }

    /// The slugs of a tenant's active products, in the order in which people read them.
    pub async fn active_products(&self, tenant: &TenantRef) -> Result<Vec<String>> {
        let (products, (_, snapshot)) = (self.products().await?, self.current(tenant).await?);
        let active = products
            .iter()
            .filter(|product| snapshot.is_active(product.number));
        let mut active: Vec<_> = active.collect();
        active.sort_by_key(|product| product.number);
        Ok(active
            .into_iter()
            .map(|product| product.slug.clone())
            .collect())
    }

    /// The products, and what a tenant may use if one is named, at most a second old; while the
    /// database is away, at most `Limits::key_cache_ttl`. Errors: `STORE_BUSY`.
    pub async fn usable(&self, tenant: Option<&TenantRef>) -> Result<Usable> {
        let mut look = pin!(async {
            let products = self.products().await?;
            let snapshot = match tenant {
                Some(tenant) => Some(self.current(tenant).await?.1),
                None => None,
            };
            Ok((products, snapshot))
        });
        let looked = match look.as_mut().now_or_never() {
            // From memory: a timer would cost more than that.
            Some(done) => Ok(done),
            None => timeout(LOOKED_UP_WITHIN, look.as_mut()).await,
        };
        if let Ok(Ok(found)) = looked {
            return Ok(found);
        }
        match (self.usable_lately(tenant), looked) {
            (Some(known), _) => Ok(known),
            (None, Ok(failed)) => failed,
            // Who knows nothing waits on.
            (None, Err(_)) => look.await,
        }
    }

    fn usable_lately(&self, tenant: Option<&TenantRef>) -> Option<Usable> {
        let (journal, system) = (&self.journal, TenantRef::system());
        let epoch = journal.routing_epoch_lately(&system)?;
        let products = self.products.known(&system, epoch)?;
        let snapshot = match tenant {
            Some(tenant) => {
                let epoch = journal.routing_epoch_lately(tenant)?;
                Some(self.snapshots.known(tenant, epoch)?)
            }
            None => None,
        };
        Some((products, snapshot))
    }

    /// `SUBSCRIPTION_INACTIVE` unless the tenant's subscription to a product is active, as
    /// [`Tenancy::usable`] knows it.
    pub async fn require_active(&self, tenant: &TenantRef, slug: &str) -> Result<()> {
        let (products, snapshot) = self.usable(Some(tenant)).await?;
        let active = |snapshot: Arc<Snapshot>| {
            let number = products.number(slug);
            number.is_some_and(|number| snapshot.is_active(number))
        };
        match snapshot.is_some_and(active) {
            true => Ok(()),
            false => Err(inactive(slug).with("tenantId", tenant.id())),
        }
    }

    /// Memory of the snapshots, about, in bytes.
    pub fn snapshot_bytes(&self) -> usize {
        self.snapshots.bytes()
    }

    /// The tenant of this id, or `TENANT_NOT_FOUND`.
    pub async fn find(&self, tenant_id: &str) -> Result<TenantRef> {
        if let Some(known) = self.remembered(tenant_id) {
            return Ok(known);
        }
        let row: Option<(i64, String)> = self
            .db
            .query(FIND)
            .bind(tenant_id.to_owned())
            .optional()
            .await?;
        let (number, id) = row.ok_or_else(|| not_found(tenant_id))?;
        let tenant = TenantRef::new(number, &id);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() < CACHED_MAX {
            known.insert(id, tenant.clone());
        }
        Ok(tenant)
    }

    /// The tenant of this id, if it was looked for before.
    pub fn remembered(&self, tenant_id: &str) -> Option<TenantRef> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(tenant_id).cloned()
    }

    /// The tenant of this number, or `TENANT_NOT_FOUND`.
    pub async fn by_number(&self, number: i64) -> Result<TenantRef> {
        let row: Option<(i64, String)> = self.db.query(BY_NUMBER).bind(number).optional().await?;
        let (number, id) = row.ok_or_else(|| not_found(&number.to_string()))?;
        Ok(TenantRef::new(number, &id))
    }

    /// The tenant of this name, if there is one.
    pub async fn by_name(&self, name: &str) -> Result<Option<TenantRef>> {
        let row: Option<(i64, String)> = self
            .db
            .query(BY_NAME)
            .bind(name.to_owned())
            .optional()
            .await?;
        Ok(row.map(|(number, id)| TenantRef::new(number, &id)))
    }
}

/// Adds a tenant with an empty log. A name that is taken is a unique violation.
pub async fn create(
    tx: &mut Tx,
    name: &str,
    now: Micros,
) -> Result<TenantRef, crate::storage::Failure> {
    let _: (i64,) = tx.query(LOCK).one().await?;
    let (number,): (i64,) = tx.query(NEXT).one().await?;
    let tenant = TenantRef::new(number, &id::new("tnt"));
    tx.query(INSERT)
        .bind(number)
        .bind(tenant.id().to_owned())
        .bind(name.to_owned())
        .bind(now)
        .execute()
        .await?;
    tx.query(INSERT_HEAD).bind(number).execute().await?;
    Ok(tenant)
}

/// The subscriptions that a new tenant begins with, where they are not what every tenant has.
/// Errors: those of the database.
pub async fn begin_with(
    tx: &mut Tx,
    tenant: &TenantRef,
    products: &[(ProductNo, bool)],
    updated_by: &str,
    now: Micros,
) -> Result<()> {
    for (product, active) in products {
        if *active == product.is_of_the_suite() {
            continue;
        }
        let first = Subscription {
            product: *product,
            active: *active,
            update_time: now,
            updated_by: updated_by.to_owned(),
        };
        put_subscription(tx, tenant, 0, &first).await?;
    }
    Ok(())
}

/// `SUBSCRIPTION_INACTIVE`.
pub fn inactive(product: &str) -> Error {
    let message = format!(
        "The subscription of the tenant to {product} is not active. Activate it with \
         Platform.SetProductSubscription."
    );
    Error::new(
        Code::PermissionDenied,
        "hub.api_keys",
        "SUBSCRIPTION_INACTIVE",
        message,
    )
    .with("product", product)
}

/// `TENANT_NOT_FOUND`.
pub fn not_found(tenant_id: &str) -> Error {
    let message = format!("There is no tenant {tenant_id}. Use an id that CreateTenant returned.");
    Error::new(Code::NotFound, "hub.platform", "TENANT_NOT_FOUND", message)
        .with("tenantId", tenant_id)
}
