//! The filters of subscriptions: which one decides about which events.

use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Sql};
use hub_proto::hub::event_bus::v1::EventFilter;
use prost::Message;

const LIST: Sql = Sql::same(
    "select s.subscription_id, s.product, f.from_seq, f.filter
     from subscription_filters f join subscriptions s on s.subscription_id = f.subscription_id
     where f.tenant_no = $1 order by s.product, s.name, f.from_seq",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[LIST];

/// A filter of a subscription.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Id, `sub_…`.
    pub subscription_id: String,
    /// Slug of the product that owns the subscription.
    pub product: String,
    /// The first event that it decides about.
    pub from_seq: u64,
    /// Which events.
    pub filter: EventFilter,
}

/// All filters of a tenant, by product, name and sequence.
pub async fn list(db: &Db, tenant: &TenantRef) -> Result<Vec<Row>> {
    let rows: Vec<(String, String, i64, Vec<u8>)> =
        db.query(LIST).bind(tenant.number()).all().await?;
    let row = |(subscription_id, product, from_seq, filter): (_, _, i64, Vec<u8>)| {
        Ok(Row {
            subscription_id,
            product,
            from_seq: from_seq.unsigned_abs(),
            filter: EventFilter::decode(filter.as_slice()).map_err(Error::internal)?,
        })
    };
    rows.into_iter().map(row).collect()
}
