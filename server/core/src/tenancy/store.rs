//! All statements about subscriptions to products and integrations, and their history.

use crate::clock::Micros;
use crate::error::{Error, Result};
use crate::journal::TenantRef;
use crate::products::ProductNo;
use crate::storage::{Db, Sql, Tx};

const SUBSCRIPTIONS_AT: Sql = Sql::same(
    "select product_no, min(routing_epoch), max(routing_epoch),
        max(case when active then routing_epoch else -1 end)
     from product_subscriptions where tenant_no = $1 and routing_epoch <= $2 group by product_no",
);
const INTEGRATIONS_AT: Sql = Sql::same(
    "select source_no, destination_no, max(routing_epoch),
        max(case when enabled then routing_epoch else -1 end)
     from integrations where tenant_no = $1 and routing_epoch <= $2
     group by source_no, destination_no",
);
const SUBSCRIPTIONS: Sql = Sql::same(
    "select product_no, active, update_time, updated_by from product_subscriptions s
     where tenant_no = $1 and routing_epoch = (
        select max(routing_epoch) from product_subscriptions l
        where l.tenant_no = $1 and l.product_no = s.product_no)",
);
const INTEGRATIONS: Sql = Sql::same(
    "select source_no, destination_no, enabled, reason, update_time, updated_by
     from integrations i
     where tenant_no = $1 and routing_epoch = (
        select max(routing_epoch) from integrations l
        where l.tenant_no = $1 and l.source_no = i.source_no
            and l.destination_no = i.destination_no)",
);
const SUBSCRIPTION: Sql = Sql::same(
    "select product_no, active, update_time, updated_by from product_subscriptions
     where tenant_no = $1 and product_no = $2 order by routing_epoch desc limit 1",
);
const INTEGRATION: Sql = Sql::same(
    "select source_no, destination_no, enabled, reason, update_time, updated_by
     from integrations where tenant_no = $1 and source_no = $2 and destination_no = $3
     order by routing_epoch desc limit 1",
);
const SUBSCRIPTION_IN_FORCE: Sql = Sql::same(
    "select product_no, active, update_time, updated_by from product_subscriptions
     where tenant_no = $1 and product_no = $2 and routing_epoch <= $3
     order by routing_epoch desc limit 1",
);
const SUBSCRIPTION_AFTER: Sql = Sql::same(
    "select product_no, active, update_time, updated_by from product_subscriptions
     where tenant_no = $1 and product_no = $2 and routing_epoch > $3
     order by routing_epoch limit 1",
);
const INTEGRATION_IN_FORCE: Sql = Sql::same(
    "select source_no, destination_no, enabled, reason, update_time, updated_by
     from integrations where tenant_no = $1 and source_no = $2 and destination_no = $3
        and routing_epoch <= $4
     order by routing_epoch desc limit 1",
);
const INTEGRATION_AFTER: Sql = Sql::same(
    "select source_no, destination_no, enabled, reason, update_time, updated_by
     from integrations where tenant_no = $1 and source_no = $2 and destination_no = $3
        and routing_epoch > $4
     order by routing_epoch limit 1",
);
const PUT_SUBSCRIPTION: Sql = Sql::same(
    "insert into product_subscriptions (tenant_no, product_no, routing_epoch, active, update_time,
        updated_by)
     values ($1, $2, $3, $4, $5, $6)",
);
const PUT_INTEGRATION: Sql = Sql::same(
    "insert into integrations (tenant_no, source_no, destination_no, routing_epoch, enabled, reason,
        update_time, updated_by)
     values ($1, $2, $3, $4, $5, $6, $7, $8)",
);

pub(super) const STATEMENTS: &[Sql] = &[
    SUBSCRIPTIONS_AT,
    INTEGRATIONS_AT,
    SUBSCRIPTIONS,
    INTEGRATIONS,
    SUBSCRIPTION,
    INTEGRATION,
    SUBSCRIPTION_IN_FORCE,
    SUBSCRIPTION_AFTER,
    INTEGRATION_IN_FORCE,
    INTEGRATION_AFTER,
    PUT_SUBSCRIPTION,
    PUT_INTEGRATION,
];

/// A tenant's subscription to a product, as it was last changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The product.
    pub product: ProductNo,
    /// Whether the tenant may use it.
    pub active: bool,
    /// Last change; 0 = never.
    pub update_time: Micros,
    /// Who changed it; empty = nobody.
    pub updated_by: String,
}

/// A switch between two products, as it was last changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Integration {
    /// The sending product.
    pub source: ProductNo,
    /// The receiving product.
    pub destination: ProductNo,
    /// The switch.
    pub enabled: bool,
    /// Why it was switched last.
    pub reason: String,
    /// Last change; 0 = never.
    pub update_time: Micros,
    /// Who changed it; empty = nobody.
    pub updated_by: String,
}

impl Subscription {
    /// What a tenant has that never changed it.
    pub fn unchanged(product: ProductNo) -> Self {
        Subscription {
            product,
            active: product.is_of_the_suite(),
            update_time: 0,
            updated_by: String::new(),
        }
    }
}

impl Integration {
    /// What a tenant has that never changed it.
    pub fn unchanged(source: ProductNo, destination: ProductNo) -> Self {
        Integration {
            source,
            destination,
            enabled: true,
            reason: String::new(),
            update_time: 0,
            updated_by: String::new(),
        }
    }
}

/// What became of a subscription up to an epoch.
#[derive(Debug)]
pub(super) struct SubscriptionSummary {
    pub product: ProductNo,
    pub active: bool,
    /// At any of its changes.
    pub was_active: bool,
    /// Its first change came with the tenant itself.
    pub at_the_start: bool,
}

/// What became of an integration up to an epoch.
#[derive(Debug)]
pub(super) struct IntegrationSummary {
    pub source: ProductNo,
    pub destination: ProductNo,
    pub on: bool,
}

type SubscriptionRow = (i64, bool, Micros, String);
type IntegrationRow = (i64, i64, bool, String, Micros, String);

fn number(stored: i64) -> Result<ProductNo> {
    ProductNo::new(stored).ok_or_else(|| Error::internal(format!("a product number {stored}")))
}

fn subscription(
    (product, active, update_time, updated_by): SubscriptionRow,
) -> Result<Subscription> {
    Ok(Subscription {
        product: number(product)?,
        active,
        update_time,
        updated_by,
    })
}

fn integration(row: IntegrationRow) -> Result<Integration> {
    let (source, destination, enabled, reason, update_time, updated_by) = row;
    Ok(Integration {
        source: number(source)?,
        destination: number(destination)?,
        enabled,
        reason,
        update_time,
        updated_by,
    })
}

/// The changed subscriptions and integrations of a tenant at an epoch.
pub(super) async fn at(
    db: &Db,
    tenant: &TenantRef,
    epoch: u64,
) -> Result<(Vec<SubscriptionSummary>, Vec<IntegrationSummary>)> {
    let rows: Vec<(i64, i64, i64, i64)> = db
        .query(SUBSCRIPTIONS_AT)
        .bind(tenant.number())
        .bind(epoch.cast_signed())
        .all()
        .await?;
    let subscriptions = rows.into_iter().map(|(product, first, last, active)| {
        Ok(SubscriptionSummary {
            product: number(product)?,
            active: active == last,
            was_active: active >= 0,
            at_the_start: first == 0,
        })
    });
    let subscriptions = subscriptions.collect::<Result<_>>()?;
    let rows: Vec<(i64, i64, i64, i64)> = db
        .query(INTEGRATIONS_AT)
        .bind(tenant.number())
        .bind(epoch.cast_signed())
        .all()
        .await?;
    let integrations = rows
        .into_iter()
        .map(|(source, destination, last, enabled)| {
            Ok(IntegrationSummary {
                source: number(source)?,
                destination: number(destination)?,
                on: enabled == last,
            })
        });
    Ok((subscriptions, integrations.collect::<Result<_>>()?))
}

/// All subscriptions that a tenant ever changed, as they are now.
pub async fn subscriptions(db: &Db, tenant: &TenantRef) -> Result<Vec<Subscription>> {
    let rows: Vec<SubscriptionRow> = db.query(SUBSCRIPTIONS).bind(tenant.number()).all().await?;
    rows.into_iter().map(subscription).collect()
}

/// All integrations that a tenant ever changed, as they are now.
pub async fn integrations(db: &Db, tenant: &TenantRef) -> Result<Vec<Integration>> {
    let rows: Vec<IntegrationRow> = db.query(INTEGRATIONS).bind(tenant.number()).all().await?;
    rows.into_iter().map(integration).collect()
}

/// A subscription as it is now; under the lock of the head it stays so.
pub async fn subscription_of(
    tx: &mut Tx,
    tenant: &TenantRef,
    product: ProductNo,
) -> Result<Subscription> {
    let row: Option<SubscriptionRow> = tx
        .query(SUBSCRIPTION)
        .bind(tenant.number())
        .bind(product.get())
        .optional()
        .await?;
    row.map_or_else(|| Ok(Subscription::unchanged(product)), subscription)
}

/// An integration as it is now; under the lock of the head it stays so.
pub async fn integration_of(
    tx: &mut Tx,
    tenant: &TenantRef,
    source: ProductNo,
    destination: ProductNo,
) -> Result<Integration> {
    let row: Option<IntegrationRow> = tx
        .query(INTEGRATION)
        .bind(tenant.number())
        .bind(source.get())
        .bind(destination.get())
        .optional()
        .await?;
    row.map_or_else(
        || Ok(Integration::unchanged(source, destination)),
        integration,
    )
}

/// What was set at an epoch, and what it was changed to first after that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce<T> {
    /// In force at the epoch.
    pub then: T,
    /// The next change.
    pub after: Option<T>,
}

/// A subscription as it was at an epoch.
pub async fn subscription_in_force(
    db: &Db,
    tenant: &TenantRef,
    product: ProductNo,
    epoch: u64,
) -> Result<InForce<Subscription>> {
    let read = async |statement: Sql| {
        let query = db.query(statement).bind(tenant.number());
        let query = query.bind(product.get()).bind(epoch.cast_signed());
        let row: Option<SubscriptionRow> = query.optional().await?;
        row.map(subscription).transpose()
    };
    let then = read(SUBSCRIPTION_IN_FORCE).await?;
    Ok(InForce {
        then: then.unwrap_or_else(|| Subscription::unchanged(product)),
        after: read(SUBSCRIPTION_AFTER).await?,
    })
}

/// An integration as it was at an epoch.
pub async fn integration_in_force(
    db: &Db,
    tenant: &TenantRef,
    (source, destination): (ProductNo, ProductNo),
    epoch: u64,
) -> Result<InForce<Integration>> {
    let read = async |statement: Sql| {
        let query = db.query(statement).bind(tenant.number());
        let query = query.bind(source.get()).bind(destination.get());
        let row: Option<IntegrationRow> = query.bind(epoch.cast_signed()).optional().await?;
        row.map(integration).transpose()
    };
    let then = read(INTEGRATION_IN_FORCE).await?;
    Ok(InForce {
        then: then.unwrap_or_else(|| Integration::unchanged(source, destination)),
        after: read(INTEGRATION_AFTER).await?,
    })
}

/// Stores a subscription from an epoch on, which [`crate::journal::bump`] gave.
pub async fn put_subscription(
    tx: &mut Tx,
    tenant: &TenantRef,
    epoch: u64,
    new: &Subscription,
) -> Result<()> {
    tx.query(PUT_SUBSCRIPTION)
        .bind(tenant.number())
        .bind(new.product.get())
        .bind(epoch.cast_signed())
        .bind(new.active)
        .bind(new.update_time)
        .bind(new.updated_by.clone())
        .execute()
        .await?;
    Ok(())
}

/// Stores an integration from an epoch on, which [`crate::journal::bump`] gave.
pub async fn put_integration(
    tx: &mut Tx,
    tenant: &TenantRef,
    epoch: u64,
    new: &Integration,
) -> Result<()> {
    tx.query(PUT_INTEGRATION)
        .bind(tenant.number())
        .bind(new.source.get())
        .bind(new.destination.get())
        .bind(epoch.cast_signed())
        .bind(new.enabled)
        .bind(new.reason.clone())
        .bind(new.update_time)
        .bind(new.updated_by.clone())
        .execute()
        .await?;
    Ok(())
}
