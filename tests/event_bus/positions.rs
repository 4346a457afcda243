//! Positions that cannot be resumed: each is told, none is skipped.

use hub_client::{Error, start_at::At};
use hub_core::journal::TenantRef;
use hub_core::storage::Sql;
use hub_proto::hub::core::v1::GapReason;
use hub_proto::hub::event_bus::v1::SubscribeRequest;
use hub_proto::hub::event_bus::v1::subscribe_response::Frame;

use super::{Product, earliest, from, ids, numbered, of_types, sequences, ticket};
use crate::support::TestHub;

const DELETE_BEFORE: Sql =
    Sql::same("delete from journal_segments where tenant_no = $1 and key < $2");
const DELETE_FROM: Sql =
    Sql::same("delete from journal_segments where tenant_no = $1 and key >= $2");
const SET_HEAD: Sql = Sql::same("update journal_heads set head = $2 where tenant_no = $1");

async fn tenant(hub: &TestHub) -> TenantRef {
    hub.core.tenancy.find(&hub.first_tenant().id).await.unwrap()
}

/// What retention does: the events before a sequence are gone.
pub(super) async fn remove_before(hub: &mut TestHub, seq: u64) {
    let tenant = tenant(hub).await;
    let mut tx = hub.core.db.begin().await.unwrap();
    let delete = tx
        .query(DELETE_BEFORE)
        .bind(tenant.number())
        .bind(tenant.key(seq));
    assert!(delete.execute().await.unwrap() > 0);
    tx.commit().await.unwrap();
    hub.restart().await;
}

/// What a backup does that ends before a sequence.
async fn rewind(hub: &mut TestHub, seq: u64) {
    let tenant = tenant(hub).await;
    let (number, key) = (tenant.number(), tenant.key(seq));
    let mut tx = hub.core.db.begin().await.unwrap();
    tx.query(DELETE_FROM)
        .bind(number)
        .bind(key)
        .execute()
        .await
        .unwrap();
    tx.query(SET_HEAD)
        .bind(number)
        .bind(seq as i64 - 1)
        .execute()
        .await
        .unwrap();
    tx.commit().await.unwrap();
    hub.restart().await;
}

/// The same product at the server's new address.
fn again(hub: &TestHub, product: &Product) -> Product {
    Product {
        bus: hub.client(&product.key).event_bus(),
        key: product.key.clone(),
    }
}

async fn refused(product: &Product, request: SubscribeRequest) -> Error {
    match product.try_subscribe(request).await {
        Ok(reader) => reader.error().await,
        Err(error) => error,
    }
}

/// The cursor after so many events.
async fn cursor_after(product: &Product, count: u32) -> String {
    let request = SubscribeRequest {
        max_events: count,
        ..from(earliest())
    };
    product.subscribe(request).await.rest().await.1.cursor
}

both_databases! {
    async fn removed_events_are_told_as_a_gap_and_reading_goes_on(mut hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish_each(numbered("n", 10)).await;
        let cursor = cursor_after(&portal, 2).await;
        remove_before(&mut hub, 6).await;
        let (psa, portal) = (again(&hub, &psa), again(&hub, &portal));
        let starts = [At::AfterSequence(0), At::Cursor(cursor), At::AfterSequence(4)];
        for (at, first) in starts.into_iter().zip([1, 3, 5]) {
            let mut reader = portal.subscribe(from(at)).await;
            assert!(matches!(reader.next().await, Frame::Opened(_)));
            let Frame::Gap(gap) = reader.next_news().await else { panic!("a gap from {first}") };
            assert_eq!((gap.from_sequence, gap.to_sequence), (first, 5));
            assert_eq!(gap.reason(), GapReason::Retention);
            assert_eq!(sequences(&reader.events(5).await), [6, 7, 8, 9, 10]);
            let resumed = portal.dump(At::Cursor(gap.cursor)).await;
            assert_eq!(sequences(&resumed), [6, 7, 8, 9, 10]);
        }
        assert_eq!(sequences(&portal.dump(earliest()).await), [6, 7, 8, 9, 10]);
        assert_eq!(sequences(&portal.dump(At::AfterSequence(5)).await), [6, 7, 8, 9, 10]);
        let next = psa.publish(vec![ticket("next")]).await;
        assert_eq!(next.results[0].sequence, 11);
    }

    async fn with_fail_on_gap_the_cursor_is_expired(mut hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish_each(numbered("n", 10)).await;
        let cursor = cursor_after(&portal, 2).await;
        remove_before(&mut hub, 6).await;
        let portal = again(&hub, &portal);
        let request = SubscribeRequest { fail_on_gap: true, ..from(At::Cursor(cursor)) };
        let error = refused(&portal, request).await;
        assert_eq!(error.code(), tonic::Code::OutOfRange);
        assert_eq!(error.reason(), Some("CURSOR_EXPIRED"));
        let told = ["missedFrom", "missedTo"].map(|name| &*error.metadata()[name]);
        assert_eq!(told, ["3", "5"]);
        let earliest = error.metadata()["earliestCursor"].clone();
        let request = SubscribeRequest {
            fail_on_gap: true,
            stop_when_caught_up: true,
            ..from(At::Cursor(earliest))
        };
        let events = portal.subscribe(request).await.rest().await.0;
        assert_eq!(sequences(&events), [6, 7, 8, 9, 10]);
    }

    async fn a_log_whose_events_are_all_removed_goes_on(mut hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish_each(numbered("n", 4)).await;
        let cursor = cursor_after(&portal, 2).await;
        remove_before(&mut hub, 5).await;
        let (psa, portal) = (again(&hub, &psa), again(&hub, &portal));
        let mut reader = portal.subscribe(from(At::Cursor(cursor))).await;
        assert!(matches!(reader.next().await, Frame::Opened(_)));
        let Frame::Gap(gap) = reader.next_news().await else { panic!("a gap") };
        assert_eq!((gap.from_sequence, gap.to_sequence), (3, 4));
        assert_eq!(reader.caught_up().await, 4);
        psa.publish(vec![ticket("next")]).await;
        assert_eq!(sequences(&reader.events(1).await), [5]);
        assert_eq!(portal.dump_ids(earliest()).await, ["next"]);
    }

    async fn a_cursor_belongs_to_its_filter(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish_each(numbered("n", 3)).await;
        let cursor = cursor_after(&portal, 1).await;
        let with = |types: &[&str]| SubscribeRequest {
            filter: Some(of_types(types)),
            ..from(At::Cursor(cursor.clone()))
        };
        let error = refused(&portal, with(&["ticket.*"])).await;
        assert_eq!(error.code(), tonic::Code::FailedPrecondition);
        assert_eq!(error.reason(), Some("CURSOR_FILTER_MISMATCH"));
        assert_eq!(portal.dump_ids(At::Cursor(cursor.clone())).await, ["n-1", "n-2"]);
        let crm = Product::new(&hub, "crm").await;
        let error = refused(&crm, from(At::Cursor(cursor.clone()))).await;
        assert_eq!(error.reason(), Some("CURSOR_FILTER_MISMATCH"), "another product's");
    }

    async fn a_cursor_of_another_tenant_or_of_nobody_is_invalid(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish_each(numbered("n", 3)).await;
        let cursor = cursor_after(&portal, 1).await;
        let other = hub.tenant().await;
        let admin = hub.client(&other.admin_key);
        let key = other.key(&admin, "portal", &["hub:events.read"]).await;
        let elsewhere = Product { bus: hub.client(&key).event_bus(), key };
        let error = refused(&elsewhere, from(At::Cursor(cursor.clone()))).await;
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert_eq!(error.reason(), Some("CURSOR_INVALID"));
        for text in ["", "x", "AAAA", &cursor[1..], &format!("{cursor}A")] {
            let error = refused(&portal, from(At::Cursor(text.to_owned()))).await;
            assert_eq!(error.reason(), Some("CURSOR_INVALID"), "{text:?}");
        }
    }

    async fn a_sequence_that_does_not_exist_yet_is_told_with_the_head(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish_each(numbered("n", 3)).await;
        for seq in [4, u64::MAX >> 1] {
            let error = refused(&portal, from(At::AfterSequence(seq))).await;
            assert_eq!(error.code(), tonic::Code::OutOfRange);
            assert_eq!(error.reason(), Some("SEQUENCE_AHEAD"));
            assert_eq!(error.metadata()["headSequence"], "3");
            assert_eq!(error.metadata()["sequence"], seq.to_string());
        }
        assert_eq!(portal.dump_ids(At::AfterSequence(3)).await, [""; 0]);
    }

    async fn a_restored_log_refuses_cursors_of_what_it_lost(mut hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish_each(numbered("n", 6)).await;
        let (kept, lost) = (cursor_after(&portal, 3).await, cursor_after(&portal, 5).await);
        rewind(&mut hub, 5).await;
        let (psa, portal) = (again(&hub, &psa), again(&hub, &portal));
        // The log is shorter than the cursor.
        let error = refused(&portal, from(At::Cursor(lost.clone()))).await;
        assert_eq!(error.code(), tonic::Code::DataLoss);
        assert_eq!(error.reason(), Some("LOG_REWOUND"));
        assert!(error.metadata().contains_key("restoredAt"));
        // It grows beyond the cursor with other events.
        psa.publish_each(numbered("other", 4)).await;
        let error = refused(&portal, from(At::Cursor(lost))).await;
        assert_eq!(error.reason(), Some("LOG_REWOUND"));
        let left = portal.dump_ids(At::Cursor(kept)).await;
        assert_eq!(left, ["n-3", "other-0", "other-1", "other-2", "other-3"]);
    }

    async fn a_restored_log_takes_the_lost_events_again(mut hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        psa.publish_each(numbered("n", 6)).await;
        let lost = cursor_after(&portal, 5).await;
        rewind(&mut hub, 5).await;
        let (psa, portal) = (again(&hub, &psa), again(&hub, &portal));
        // A publisher that sends again what it had sent: the log is as it was.
        for (number, id) in numbered("n", 6).iter().enumerate() {
            let result = &psa.publish(vec![ticket(id)]).await.results[0];
            assert_eq!((result.sequence, result.duplicate), (number as u64 + 1, number < 4));
        }
        assert_eq!(ids(&portal.dump(At::Cursor(lost)).await), ["n-5"]);
    }
}
