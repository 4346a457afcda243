//! What routing keeps in memory of the subscriptions that products made.

use std::sync::Arc;

use futures_util::StreamExt;
use hub_core::journal::TenantRef;
use hub_core::storage::{Sql, Tx};
use hub_core::tenancy;
use hub_event_bus::event_types::Catalogues;
use hub_event_bus::routing::Configurations;
use hub_event_bus::subscriptions;
use hub_proto::hub::event_bus::v1::EventFilter;
use prost::Message;

use super::of_types;
use crate::support::TestHub;

/// Tenants in memory at once.
const TENANTS: usize = 1_000;
/// Of them, those that are loaded at once.
const AT_ONCE: usize = 16;
/// Bytes for all of them.
const BYTES_MAX: usize = 10_000_000;

const SUBSCRIPTION: Sql = Sql::same(
    "insert into subscriptions (subscription_id, tenant_no, product, name, is_default, create_time)
     values ($1, $2, 'crm', $1, 0, 1)",
);
const FILTER: Sql = Sql::same(
    "insert into subscription_filters (subscription_id, from_seq, tenant_no, filter)
     values ($1, $2, $3, $4)",
);

async fn add(tx: &mut Tx, tenant: &TenantRef, id: &str, filters: &[(i64, EventFilter)]) {
    let query = tx.query(SUBSCRIPTION).bind(id.to_owned());
    query.bind(tenant.number()).execute().await.unwrap();
    for (from_seq, filter) in filters {
        let query = tx.query(FILTER).bind(id.to_owned()).bind(*from_seq);
        let query = query.bind(tenant.number()).bind(filter.encode_to_vec());
        query.execute().await.unwrap();
    }
}

fn configurations(hub: &TestHub) -> Configurations {
    Configurations::new(&hub.core, Arc::new(Catalogues::new(&hub.core)))
}

both_databases! {
    async fn a_thousand_tenants_take_less_than_ten_megabytes(hub: TestHub) {
        let mut tx = hub.core.db.begin().await.unwrap();
        let mut tenants = Vec::with_capacity(TENANTS);
        for number in 0..TENANTS {
            tenants.push(tenancy::create(&mut tx, &format!("many {number}"), 0).await.unwrap());
        }
        let types: Vec<String> = (0..20).map(|n| format!("ticket.note.number{n}")).collect();
        let types: Vec<&str> = types.iter().map(String::as_str).collect();
        for tenant in tenants.iter().step_by(3) {
            let id = format!("sub_{}", tenant.number());
            add(&mut tx, tenant, &id, &[(1, of_types(&types)), (9, of_types(&["**"]))]).await;
        }
        tx.commit().await.unwrap();
        let configurations = configurations(&hub);
        let current = tenants.iter().map(|tenant| configurations.current(tenant));
        // Several at a time: each waits for the database more often than not.
        let current = futures_util::stream::iter(current).buffered(AT_ONCE);
        let lists = current.map(|present| present.unwrap().subscriptions.clone());
        let lists: Vec<_> = lists.collect().await;
        for (number, list) in lists.iter().enumerate() {
            assert_eq!(list.len(), usize::from(number % 3 == 0));
        }
        let none: Vec<_> = lists.iter().filter(|list| list.is_empty()).collect();
        assert!(none.iter().all(|list| Arc::ptr_eq(list, none[0])), "all share one");
        let counted = configurations.subscriptions_bytes();
        println!("{TENANTS} tenants: {counted} bytes of subscriptions");
        assert!(counted < BYTES_MAX && counted > TENANTS * 50, "{counted}");
    }

    async fn who_speaks_for_a_product_reaches_its_own_by_id_or_name(hub: TestHub) {
        let tenant = hub.core.tenancy.find(&hub.first_tenant().id).await.unwrap();
        let mut tx = hub.core.db.begin().await.unwrap();
        add(&mut tx, &tenant, "sub_1", &[(1, EventFilter::default())]).await;
        tx.commit().await.unwrap();
        let configurations = configurations(&hub);
        let resolve = async |product: Option<&str>, asked: &str| {
            let (core, configurations) = (&hub.core, &configurations);
            subscriptions::resolve(core, configurations, &tenant, product, asked).await
        };
        let own = resolve(Some("crm"), "sub_1").await.unwrap();
        assert_eq!((&*own.name, own.is_default, own.version), ("sub_1", false, 1));
        assert_eq!((own.lease, own.delays.len()), (30_000_000, 4));
        assert_eq!(resolve(None, "sub_1").await.unwrap(), own);
        // Its row may not be there yet.
        let portal = resolve(Some("portal"), "portal").await.unwrap();
        assert!(portal.is_default && portal.used_time.is_none());
        assert_eq!(resolve(Some("portal"), &portal.id).await.unwrap(), portal);
        for (product, asked) in [
            (Some("portal"), "sub_1"),
            (Some("crm"), &*portal.id),
            (Some("crm"), "portal"),
            (None, "portal"),
            (None, "sub_00000000000000000000000000"),
            (Some("nothing"), "nothing"),
        ] {
            let error = resolve(product, asked).await.unwrap_err();
            assert_eq!(error.reason(), "SUBSCRIPTION_NOT_FOUND", "{product:?} {asked}");
        }
        let stranger = hub.core.tenancy.find(&hub.tenant().await.id).await.unwrap();
        let theirs = subscriptions::resolve(&hub.core, &configurations, &stranger, None, "sub_1");
        assert_eq!(theirs.await.unwrap_err().reason(), "SUBSCRIPTION_NOT_FOUND");
    }
}
