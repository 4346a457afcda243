//! Retention: the oldest events go by themselves, and every reader is told.

use std::time::Duration;

use hub_client::proto::hub::platform::v1::{Tenant, UpdateTenantRequest};
use hub_client::start_at::At;
use hub_core::limits::Limits;
use hub_proto::hub::core::v1::GapReason;
use hub_proto::hub::event_bus::v1::get_event_request::Event as Asked;
use hub_proto::hub::event_bus::v1::subscribe_response::Frame;
use hub_proto::hub::event_bus::v1::{ListEventsRequest, SubscribeRequest};
use prost_types::FieldMask;

use super::stream_ends::publish_large;
use super::{Product, earliest, from, large_ticket, numbered, ticket};
use crate::support::{Backend, TestHub};

const DAY: Duration = Duration::from_secs(24 * 3600);
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until retention has removed everything up to `seq`.
pub(super) async fn removed(hub: &TestHub, seq: u64) {
    let tenant = hub.core.tenancy.find(&hub.first_tenant().id).await.unwrap();
    let log = hub.core.journal.log(&tenant).await.unwrap();
    let gone = async {
        loop {
            let first = hub.core.journal.earliest(&log).await.unwrap();
            if first.is_none_or(|(first, _)| first > seq) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("the worker removes it");
}

both_databases! {
    async fn after_thirty_days_events_are_gone_and_readers_are_told(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let psa = Product::new(&hub, "psa").await;
        let portal = Product::new(&hub, "portal").await;
        psa.publish_each(numbered("old", 3)).await;
        let request = SubscribeRequest { max_events: 1, ..from(earliest()) };
        let cursor = portal.subscribe(request).await.rest().await.1.cursor;
        hub.clock.advance(DAY * 29);
        psa.publish_each(numbered("new", 2)).await;
        hub.core.journal.write_listing().await.unwrap();
        hub.clock.advance(DAY * 2);
        removed(&hub, 3).await;
        assert_eq!(portal.dump_ids(earliest()).await, ["new-0", "new-1"]);
        let mut reader = portal.subscribe(from(At::Cursor(cursor.clone()))).await;
        let gap = loop {
            match reader.next().await {
                Frame::Gap(gap) => break gap,
                Frame::Opened(_) | Frame::Progress(_) => {}
                other => panic!("{other:?} before the gap"),
            }
        };
        assert_eq!((gap.from_sequence, gap.to_sequence), (2, 3));
        let strict = SubscribeRequest { fail_on_gap: true, ..from(At::Cursor(cursor)) };
        let refused = portal.subscribe(strict).await.error().await;
        assert_eq!(refused.reason(), Some("CURSOR_EXPIRED"));
        let error = psa.get(Asked::Sequence(3)).await.unwrap_err();
        assert_eq!(error.reason(), Some("EVENT_NOT_FOUND"));
        assert_eq!(error.metadata()["earliestSequence"], "4");
        let listed = psa.list_all(ListEventsRequest::default()).await.0;
        assert_eq!(listed, ["new-1", "new-0"]);
    }

    async fn retention_that_passes_a_reader_that_is_behind_is_a_gap_of_what_it_did_not_get(
        backend: Backend,
    ) {
        let options = TestHub::options(backend).manual_clock();
        let patient = |limits: &mut Limits| {
            // What is under way stays small: the rest is read of the database.
            limits.page_bytes_max = 64 << 10;
            (limits.slow_reader_timeout, limits.stream_age_max) = (DAY * 365, DAY * 365);
        };
        let hub = options.limits(patient).start().await;
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        publish_large(&psa).await;
        let mut reader = portal.subscribe(from(earliest())).await;
        assert!(matches!(reader.next().await, Frame::Opened(_)));
        hub.clock.advance(DAY * 29);
        psa.publish_each(numbered("new", 2)).await;
        hub.core.journal.write_listing().await.unwrap();
        hub.clock.advance(DAY * 2);
        removed(&hub, 600).await;
        // Only now the reader reads on.
        let (mut seen, mut lost) = (Vec::new(), Vec::new());
        while seen.last() != Some(&602) {
            match reader.next().await {
                Frame::Events(batch) => seen.extend(batch.events.iter().map(|one| one.sequence)),
                Frame::Gap(gap) => {
                    assert_eq!(gap.reason(), GapReason::Retention);
                    lost.extend(gap.from_sequence..=gap.to_sequence);
                    // It comes where the events would have come.
                    assert_eq!(seen.last().copied().unwrap_or(0) + 1, gap.from_sequence);
                    seen.extend(gap.from_sequence..=gap.to_sequence);
                }
                Frame::Progress(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, (1..=602).collect::<Vec<_>>());
        assert!(!lost.is_empty(), "it was never behind");
        assert_eq!(lost.last(), Some(&600));
    }

    async fn a_tenant_that_keeps_less_loses_its_oldest_events(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let psa = Product::new(&hub, "psa").await;
        let portal = Product::new(&hub, "portal").await;
        // Each in a segment of its own, of which two are within the bound.
        for id in ["a", "b", "c", "d"] {
            psa.publish(vec![large_ticket(id, 100_000)]).await;
        }
        let request = UpdateTenantRequest {
            tenant: Some(Tenant { retention_bytes: 250_000, ..Tenant::default() }),
            update_mask: Some(FieldMask { paths: vec!["retention_bytes".to_owned()] }),
        };
        let admin = hub.client(&hub.first_tenant().admin_key);
        admin.platform().update_tenant(request).await.unwrap();
        hub.core.journal.write_listing().await.unwrap();
        hub.clock.advance(Duration::from_secs(61));
        removed(&hub, 2).await;
        assert_eq!(portal.dump_ids(earliest()).await, ["c", "d"]);
    }

    async fn an_identity_outlives_a_short_retention(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let psa = Product::new(&hub, "psa").await;
        psa.publish(vec![ticket("a")]).await;
        let keep = "update tenants set retention = 3600000000";
        let mut tx = hub.core.db.begin().await.unwrap();
        tx.query(hub_core::storage::Sql::same(keep)).execute().await.unwrap();
        tx.commit().await.unwrap();
        hub.clock.advance(DAY * 6);
        removed(&hub, 1).await;
        let again = psa.publish(vec![ticket("a")]).await;
        assert!(again.results[0].duplicate);
        assert_eq!(again.results[0].sequence, 1);
        let error = psa.get(Asked::Sequence(1)).await.unwrap_err();
        assert_eq!(error.reason(), Some("EVENT_NOT_FOUND"));
    }
}
