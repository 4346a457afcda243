//! What tenants may use is kept in memory: compact, shared, and loaded when it is needed.

use std::sync::Arc;

use hub_core::products::ProductNo;
use hub_core::tenancy::{self, Integration, Snapshot, Subscription};

use crate::support::TestHub;

/// Tenants in memory at once.
const TENANTS: usize = 1_000;
/// Bytes for all of them.
const BYTES_MAX: usize = 10_000_000;

fn product(number: i64) -> ProductNo {
    ProductNo::new(number).unwrap()
}

both_databases! {
    async fn every_past_epoch_can_be_read(hub: TestHub) {
        let core = &hub.core;
        let tenant = core.tenancy.find(&hub.first_tenant().id).await.unwrap();
        let mut tx = core.db.begin().await.unwrap();
        for (epoch, active) in [(3, false), (5, true), (8, false)] {
            let changed = Subscription { active, ..Subscription::unchanged(product(1)) };
            tenancy::put_subscription(&mut tx, &tenant, epoch, &changed).await.unwrap();
            let switched = Integration {
                enabled: active,
                ..Integration::unchanged(product(2), product(3))
            };
            tenancy::put_integration(&mut tx, &tenant, epoch, &switched).await.unwrap();
        }
        tx.commit().await.unwrap();
        for (epoch, active) in [
            (0, true), (2, true), (3, false), (4, false),
            (5, true), (7, true), (8, false), (9, false),
        ] {
            let snapshot = core.tenancy.snapshot(&tenant, epoch).await.unwrap();
            assert_eq!(snapshot.is_active(product(1)), active, "{epoch}");
            assert_eq!(snapshot.integration_on(product(2), product(3)), active, "{epoch}");
            assert!(snapshot.was_active(product(1)));
            assert_eq!(Arc::ptr_eq(&snapshot, &Snapshot::suite()), active, "{epoch}");
        }
    }

    async fn a_thousand_tenants_take_less_than_ten_megabytes(hub: TestHub) {
        let core = &hub.core;
        let mut tx = core.db.begin().await.unwrap();
        let mut tenants = Vec::with_capacity(TENANTS);
        for number in 0..TENANTS {
            tenants.push(tenancy::create(&mut tx, &format!("many {number}"), 0).await.unwrap());
        }
        // Half of them are as all are; the others turned twenty pairs off, each another twenty.
        for (number, tenant) in tenants.iter().enumerate().skip(TENANTS / 2) {
            for place in 0..20 {
                let pair = (number + 7 * place) % 132;
                let (source, rest) = (pair / 11 + 1, pair % 11 + 1);
                let destination = rest + usize::from(rest >= source);
                let off = Integration {
                    enabled: false,
                    ..Integration::unchanged(product(source as i64), product(destination as i64))
                };
                tenancy::put_integration(&mut tx, tenant, 0, &off).await.unwrap();
            }
        }
        tx.commit().await.unwrap();
        let mut shared = 0;
        for tenant in &tenants {
            let (_, snapshot) = core.tenancy.current(tenant).await.unwrap();
            shared += usize::from(Arc::ptr_eq(&snapshot, &Snapshot::suite()));
        }
        assert_eq!(shared, TENANTS / 2);
        let counted = core.tenancy.snapshot_bytes();
        println!("{TENANTS} tenants: {counted} bytes of snapshots");
        assert!(counted < BYTES_MAX && counted > TENANTS * 50, "{counted}");
    }
}
