//! The rows of subscriptions.

use std::collections::{BTreeMap, HashSet};

use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Sql, Tx};
use hub_proto::hub::event_bus::v1::{EventFilter, Ordering, RetryPolicy};
use prost::Message;

/// Tenants that are looked at in one statement.
const BEHIND_MAX: i64 = 500;

/// Subscriptions with the columns of [`Row`].
macro_rules! text {
    ($which:literal) => {
        concat!(
            "select subscription_id, product, name, is_default, create_time, used_time, filter,
                ordering, retry, lease_duration, max_per_second, labels, version, paused_since,
                paused_until, paused_by, pause_reason
             from subscriptions ",
            $which
        )
    };
}

/// The same on both databases.
macro_rules! select {
    ($which:literal) => {
        Sql::same(text!($which))
    };
}

const BEHIND: Sql = Sql::same(
    "select t.tenant_no, t.tenant_id, h.routing_epoch
     from journal_heads h join tenants t on t.tenant_no = h.tenant_no
        left join subscription_epochs e on e.tenant_no = h.tenant_no
     where h.tenant_no > $1 and h.routing_epoch > coalesce(e.routing_epoch, -1)
     order by h.tenant_no limit $2",
);
const ADD_DEFAULT: Sql = Sql::same(
    "insert into subscriptions
        (subscription_id, tenant_no, product, name, is_default, create_time)
     values ($1, $2, $3, $3, 1, $4) on conflict do nothing",
);
const DONE: Sql = Sql::same(
    "insert into subscription_epochs (tenant_no, routing_epoch) values ($1, $2)
     on conflict (tenant_no) do update set routing_epoch = excluded.routing_epoch
     where subscription_epochs.routing_epoch < excluded.routing_epoch",
);
const LIST: Sql = select!("where tenant_no = $1 order by product, name");
const FIND: Sql = select!("where tenant_no = $1 and subscription_id = $2");
const FIND_NAMED: Sql = select!("where tenant_no = $1 and product = $2 and name = $3");
// The order of names must not depend on the language of the database.
const PAGE: Sql = Sql::each(
    text!(
        "where tenant_no = $1 and (product, name) > ($2, $3) and ($4 = '' or product = $4)
         order by product, name limit $5"
    ),
    text!(
        "where tenant_no = $1 and (product collate \"C\", name collate \"C\") > ($2, $3)
            and ($4 = '' or product = $4)
         order by product collate \"C\", name collate \"C\" limit $5"
    ),
);
const DEFAULTS: Sql =
    Sql::same("select product from subscriptions where tenant_no = $1 and is_default = 1");
const COUNT_OWN: Sql =
    Sql::same("select count(*) from subscriptions where tenant_no = $1 and is_default = 0");
const INSERT: Sql = Sql::same(
    "insert into subscriptions
        (subscription_id, tenant_no, product, name, is_default, create_time, filter, ordering,
         retry, lease_duration, max_per_second, labels, updated_by)
     values ($1, $2, $3, $4, 0, $5, $6, $7, $8, $9, $10, $11, $12)",
);
const UPDATE: Sql = Sql::same(
    "update subscriptions set filter = $3, retry = $4, lease_duration = $5, max_per_second = $6,
        labels = $7, version = version + 1, updated_by = $8
     where tenant_no = $1 and subscription_id = $2",
);
const PAUSE: Sql = Sql::same(
    "update subscriptions set paused_since = $3, paused_until = $4, paused_by = $5,
        pause_reason = $6, version = version + 1, updated_by = $7
     where tenant_no = $1 and subscription_id = $2",
);
const DELETE: Sql =
    Sql::same("delete from subscriptions where tenant_no = $1 and subscription_id = $2");

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[
    BEHIND,
    ADD_DEFAULT,
    DONE,
    LIST,
    FIND,
    FIND_NAMED,
    PAGE,
    DEFAULTS,
    COUNT_OWN,
    INSERT,
    UPDATE,
    PAUSE,
    DELETE,
];

/// A subscription as it is stored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stored {
    /// Id, `sub_…`.
    pub id: String,
    /// Slug of the owning product.
    pub product: String,
    /// Name, unique within the product.
    pub name: String,
    /// Made with the product's subscription, not by a call.
    pub is_default: bool,
    /// When it was made.
    pub create_time: Micros,
    /// When a consumer first used it; `None` = dormant.
    pub used_time: Option<Micros>,
    /// Which events it takes from now on; of no meaning for a default one.
    pub filter: EventFilter,
    /// Order of delivery.
    pub ordering: Ordering,
    /// When to try again, as it was asked for: empty = the default.
    pub retry: RetryPolicy,
    /// Time to ack.
    pub lease_duration: Micros,
    /// Limit of deliveries per second; 0 = none.
    pub max_per_second: u32,
    /// The owner's own marks.
    pub labels: BTreeMap<String, String>,
    /// Rises with every change of settings and with every pause.
    pub version: u64,
    /// The last pause, unless it was resumed. It may be over by itself: see [`Pause::holds`].
    pub pause: Option<Pause>,
}

/// Why nothing is delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// Since when.
    pub since: Micros,
    /// It is over then; none = when it is resumed.
    pub until: Option<Micros>,
    /// Key that paused it, or `hub`.
    pub by: String,
    /// Why.
    pub reason: String,
}

impl Pause {
    /// Whether it is in force: it ends by the clock, without a change of the row.
    pub fn holds(&self, now: Micros) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// Tenants after number `after` whose default subscriptions are not those of their present epoch,
/// with that epoch.
pub async fn behind(db: &Db, after: i64) -> Result<Vec<(TenantRef, u64)>> {
    let rows: Vec<(i64, String, i64)> = db.query(BEHIND).bind(after).bind(BEHIND_MAX).all().await?;
    let tenants = rows.into_iter();
    Ok(tenants
        .map(|(number, id, epoch)| (TenantRef::new(number, &id), epoch.unsigned_abs()))
        .collect())
}

/// Adds a default subscription unless it is there.
pub async fn add_default(
    tx: &mut Tx,
    tenant: &TenantRef,
    id: &str,
    product: &str,
    now: Micros,
) -> Result<()> {
    tx.query(ADD_DEFAULT)
        .bind(id.to_owned())
        .bind(tenant.number())
        .bind(product.to_owned())
        .bind(now)
        .execute()
        .await?;
    Ok(())
}

/// The default subscriptions of this epoch are there.
pub async fn done(tx: &mut Tx, tenant: &TenantRef, epoch: u64) -> Result<()> {
    tx.query(DONE)
        .bind(tenant.number())
        .bind(epoch as i64)
        .execute()
        .await?;
    Ok(())
}

hub_core::row! {
    struct Row {
        subscription_id: String,
        product: String,
        name: String,
        is_default: i64,
        create_time: i64,
        used_time: i64,
        filter: Vec<u8>,
        ordering: i64,
        retry: Vec<u8>,
        lease_duration: i64,
        max_per_second: i64,
        labels: String,
        version: i64,
        paused_since: i64,
        paused_until: i64,
        paused_by: String,
        pause_reason: String,
    }
}

impl Row {
    fn stored(self) -> Result<Stored> {
        let set = |time: Micros| (time > 0).then_some(time);
        let pause = set(self.paused_since).map(|since| Pause {
            since,
            until: set(self.paused_until),
            by: self.paused_by,
            reason: self.pause_reason,
        });
        let ordering = i32::try_from(self.ordering).map_err(Error::internal)?;
        Ok(Stored {
            id: self.subscription_id,
            product: self.product,
            name: self.name,
            is_default: self.is_default != 0,
            create_time: self.create_time,
            used_time: set(self.used_time),
            filter: EventFilter::decode(self.filter.as_slice()).map_err(Error::internal)?,
            ordering: Ordering::try_from(ordering).map_err(Error::internal)?,
            retry: RetryPolicy::decode(self.retry.as_slice()).map_err(Error::internal)?,
            lease_duration: self.lease_duration,
            max_per_second: u32::try_from(self.max_per_second).map_err(Error::internal)?,
            labels: serde_json::from_str(&self.labels).map_err(Error::internal)?,
            version: self.version.unsigned_abs(),
            pause,
        })
    }
}

/// All subscriptions of a tenant by product and name.
pub async fn list(db: &Db, tenant: &TenantRef) -> Result<Vec<Stored>> {
    let rows: Vec<Row> = db.query(LIST).bind(tenant.number()).all().await?;
    rows.into_iter().map(Row::stored).collect()
}

/// A subscription by its id.
pub async fn find(db: &Db, tenant: &TenantRef, id: &str) -> Result<Option<Stored>> {
    let query = db.query(FIND).bind(tenant.number()).bind(id.to_owned());
    let row: Option<Row> = query.optional().await?;
    row.map(Row::stored).transpose()
}

/// A subscription by the name that its product gave it.
pub async fn find_named(
    db: &Db,
    tenant: &TenantRef,
    product: &str,
    name: &str,
) -> Result<Option<Stored>> {
    let query = db.query(FIND_NAMED).bind(tenant.number());
    let query = query.bind(product.to_owned()).bind(name.to_owned());
    let row: Option<Row> = query.optional().await?;
    row.map(Row::stored).transpose()
}

/// As [`find`], within a transaction.
pub async fn find_in(tx: &mut Tx, tenant: &TenantRef, id: &str) -> Result<Option<Stored>> {
    let query = tx.query(FIND).bind(tenant.number()).bind(id.to_owned());
    let row: Option<Row> = query.optional().await?;
    row.map(Row::stored).transpose()
}

/// As [`find_named`], within a transaction.
pub async fn find_named_in(
    tx: &mut Tx,
    tenant: &TenantRef,
    product: &str,
    name: &str,
) -> Result<Option<Stored>> {
    let query = tx.query(FIND_NAMED).bind(tenant.number());
    let query = query.bind(product.to_owned()).bind(name.to_owned());
    let row: Option<Row> = query.optional().await?;
    row.map(Row::stored).transpose()
}

/// At most `count` subscriptions after a product and name, of one product if it is given.
pub async fn page(
    db: &Db,
    tenant: &TenantRef,
    (product, name): (&str, &str),
    of_product: &str,
    count: usize,
) -> Result<Vec<Stored>> {
    let query = db.query(PAGE).bind(tenant.number());
    let query = query.bind(product.to_owned()).bind(name.to_owned());
    let query = query.bind(of_product.to_owned());
    let rows: Vec<Row> = query
        .bind(i64::try_from(count).unwrap_or(i64::MAX))
        .all()
        .await?;
    rows.into_iter().map(Row::stored).collect()
}

/// The products of which a tenant's default subscriptions are there.
pub async fn defaults(db: &Db, tenant: &TenantRef) -> Result<HashSet<String>> {
    let rows: Vec<(String,)> = db.query(DEFAULTS).bind(tenant.number()).all().await?;
    Ok(rows.into_iter().map(|(product,)| product).collect())
}

/// How many subscriptions the products of a tenant made.
pub async fn count_own(tx: &mut Tx, tenant: &TenantRef) -> Result<u64> {
    let (count,): (i64,) = tx.query(COUNT_OWN).bind(tenant.number()).one().await?;
    Ok(count.unsigned_abs())
}

/// Adds a subscription that a product makes.
pub async fn insert(tx: &mut Tx, tenant: &TenantRef, new: &Stored, by: &str) -> Result<()> {
    tx.query(INSERT)
        .bind(new.id.clone())
        .bind(tenant.number())
        .bind(new.product.clone())
        .bind(new.name.clone())
        .bind(new.create_time)
        .bind(new.filter.encode_to_vec())
        .bind(i64::from(new.ordering as i32))
        .bind(new.retry.encode_to_vec())
        .bind(new.lease_duration)
        .bind(i64::from(new.max_per_second))
        .bind(labels(new)?)
        .bind(by.to_owned())
        .execute()
        .await?;
    Ok(())
}

/// Stores what a call may change of a subscription.
pub async fn update(tx: &mut Tx, tenant: &TenantRef, new: &Stored, by: &str) -> Result<()> {
    tx.query(UPDATE)
        .bind(tenant.number())
        .bind(new.id.clone())
        .bind(new.filter.encode_to_vec())
        .bind(new.retry.encode_to_vec())
        .bind(new.lease_duration)
        .bind(i64::from(new.max_per_second))
        .bind(labels(new)?)
        .bind(by.to_owned())
        .execute()
        .await?;
    Ok(())
}

/// Stores the pause of a subscription, or that there is none.
pub async fn set_pause(
    tx: &mut Tx,
    tenant: &TenantRef,
    id: &str,
    pause: Option<&Pause>,
    by: &str,
) -> Result<()> {
    tx.query(PAUSE)
        .bind(tenant.number())
        .bind(id.to_owned())
        .bind(pause.map_or(0, |pause| pause.since))
        .bind(pause.and_then(|pause| pause.until).unwrap_or(0))
        .bind(pause.map_or_else(String::new, |pause| pause.by.clone()))
        .bind(pause.map_or_else(String::new, |pause| pause.reason.clone()))
        .bind(by.to_owned())
        .execute()
        .await?;
    Ok(())
}

/// Deletes a subscription's row.
pub async fn delete(tx: &mut Tx, tenant: &TenantRef, id: &str) -> Result<()> {
    let query = tx.query(DELETE).bind(tenant.number()).bind(id.to_owned());
    query.execute().await?;
    Ok(())
}

fn labels(of: &Stored) -> Result<String> {
    serde_json::to_string(&of.labels).map_err(Error::internal)
}
