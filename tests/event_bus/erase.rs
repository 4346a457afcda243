//! EraseEvents: what was erased is never readable again, and nothing else changes.

use hub_client::start_at::At;
use hub_client::{CloudEvent, Data, Error};
use hub_proto::hub::event_bus::v1::get_event_request::Event as Asked;
use hub_proto::hub::event_bus::v1::{EraseEventsRequest, ListEventsRequest};
use hub_proto::hub::platform::v1::ListAuditEntriesRequest;

use super::consumer::open;
use super::{Product, earliest, event, large_ticket, text, ticket, with_attributes};
use crate::support::{Backend, TestHub};

impl Product {
    async fn erase(&self, event_ids: &[&str]) -> Result<u32, Error> {
        let request = EraseEventsRequest {
            event_ids: event_ids.iter().map(|id| (*id).to_owned()).collect(),
            reason: "asked by the customer".to_owned(),
        };
        let answer = self.bus.clone().erase_events(request).await;
        answer
            .map(|answer| answer.into_inner().erased)
            .map_err(Error::from)
    }
}

const SCOPES: [&str; 3] = ["hub:events.publish", "hub:events.read", "hub:events.write"];

fn secret(id: &str) -> CloudEvent {
    with_attributes(large_ticket(id, 2000), &[("subject", text("secret"))])
}

both_databases! {
    async fn what_was_erased_is_gone_for_every_reader(hub: TestHub) {
        let psa = Product::with(&hub, "psa", &SCOPES).await;
        let portal = Product::new(&hub, "portal").await;
        let batch = psa.publish(vec![secret("a"), secret("b"), secret("c")]).await;
        let later = psa.publish(vec![secret("d")]).await;
        let (b, d) = (&*batch.results[1].event_id, &*later.results[0].event_id);
        // It is in memory, and read from there.
        assert_eq!(portal.dump(earliest()).await.len(), 4);
        assert_eq!(psa.erase(&[b, d, b]).await.unwrap(), 2);
        assert_eq!(psa.erase(&[b, d]).await.unwrap(), 0, "they were erased before");
        let read = portal.dump(earliest()).await;
        let expected = [secret("a"), ticket("b"), secret("c"), ticket("d")];
        for (record, expected) in read.iter().zip(&expected) {
            assert_eq!(record.event.as_ref(), Some(expected), "{}", record.sequence);
        }
        let listed = psa.list(ListEventsRequest::default()).await.unwrap().entries;
        for (entry, expected) in listed.iter().rev().zip(&expected) {
            assert_eq!(entry.record.as_ref().unwrap().event.as_ref(), Some(expected));
            assert_eq!(entry.deliveries.len(), 2, "deliveries stay");
        }
        let got = psa.get(Asked::EventId(b.to_owned())).await.unwrap();
        assert_eq!(got.record.unwrap().event, Some(ticket("b")));
        // Cursors of before go on where they were, and a retry is still told of the first one.
        let resumed = portal.dump_ids(At::Cursor(batch.cursor)).await;
        assert_eq!(resumed, ["d"]);
        let again = psa.publish(vec![secret("b")]).await;
        assert!(again.results[0].duplicate && again.results[0].event_id == b);
    }

    async fn what_was_read_ahead_is_not_delivered_after_it_was_erased(hub: TestHub) {
        let psa = Product::with(&hub, "psa", &SCOPES).await;
        let portal = Product::new(&hub, "portal").await;
        let mut consumer = portal.consume(open("portal", 1)).await;
        let batch = psa.publish(["a", "b", "c"].map(|id| large_ticket(id, 2000)).into()).await;
        let first = consumer.events(1).await;
        assert_eq!(psa.erase(&[&batch.results[1].event_id]).await.unwrap(), 1);
        consumer.ack(&first).await;
        let second = consumer.events(1).await;
        let record = second[0].record.as_ref().unwrap();
        assert_eq!(record.event.as_ref(), Some(&ticket("b")), "nothing else is left of it");
        consumer.ack(&second).await;
        let third = consumer.events(1).await;
        let record = third[0].record.as_ref().unwrap();
        assert_eq!(record.event.as_ref(), Some(&large_ticket("c", 2000)));
    }

    async fn it_stays_erased_after_a_restart(mut hub: TestHub) {
        let psa = Product::with(&hub, "psa", &SCOPES).await;
        let stored = psa.publish(vec![secret("a"), secret("b")]).await;
        psa.erase(&[&stored.results[0].event_id]).await.unwrap();
        hub.restart().await;
        let psa = Product { bus: hub.client(&psa.key).event_bus(), key: psa.key };
        let got = psa.get(Asked::Sequence(1)).await.unwrap();
        assert_eq!(got.record.unwrap().event, Some(ticket("a")));
        let kept = psa.get(Asked::Sequence(2)).await.unwrap();
        assert_eq!(kept.record.unwrap().event, Some(secret("b")));
        psa.publish(vec![ticket("c")]).await;
    }

    async fn erasing_is_all_or_nothing_and_only_of_ones_own(hub: TestHub) {
        let psa = Product::with(&hub, "psa", &SCOPES).await;
        let portal = Product::with(&hub, "portal", &SCOPES).await;
        let stored = psa.publish(vec![secret("a"), event("own.kind", "bare")]).await;
        let (a, bare) = (&*stored.results[0].event_id, &*stored.results[1].event_id);
        for ids in [&[a, "evt_zzzzzzzzzzzzz"][..], &[a, "evt_x"][..]] {
            assert_eq!(psa.erase(ids).await.unwrap_err().reason(), Some("EVENT_NOT_FOUND"));
        }
        let seen = portal.get(Asked::EventId(a.to_owned())).await.unwrap();
        assert_eq!(seen.record.unwrap().event, Some(secret("a")), "it flows to portal");
        assert_eq!(portal.erase(&[a]).await.unwrap_err().reason(), Some("EVENT_NOT_FOUND"));
        assert_eq!(psa.erase(&[bare]).await.unwrap(), 0, "there is nothing to erase");
        let kept = psa.get(Asked::EventId(a.to_owned())).await.unwrap();
        assert_eq!(kept.record.unwrap().event, Some(secret("a")));
        let stranger = hub.tenant().await;
        let stranger = Product {
            bus: hub.client(&stranger.admin_key).event_bus(),
            key: stranger.admin_key,
        };
        assert_eq!(stranger.erase(&[a]).await.unwrap_err().reason(), Some("EVENT_NOT_FOUND"));
        let admin = hub.first_tenant().admin_key.clone();
        let admin = Product { bus: hub.client(&admin).event_bus(), key: admin };
        assert_eq!(admin.erase(&[a]).await.unwrap(), 1);
    }

    async fn each_erasure_is_in_the_audit_log(hub: TestHub) {
        let psa = Product::with(&hub, "psa", &SCOPES).await;
        let stored = psa.publish(vec![secret("a"), secret("b")]).await;
        let id = &*stored.results[1].event_id;
        psa.erase(&[id]).await.unwrap();
        let admin = hub.client(&hub.first_tenant().admin_key);
        let request = ListAuditEntriesRequest {
            resource: id.to_owned(),
            ..ListAuditEntriesRequest::default()
        };
        let page = admin.platform().list_audit_entries(request).await.unwrap().into_inner();
        assert_eq!(page.entries.len(), 1);
        let entry = &page.entries[0];
        assert_eq!(entry.action, "hub.event_bus.v1.EventBus/EraseEvents");
        let told = format!("{:?}", entry.changes);
        assert!(told.contains("asked by the customer") && !told.contains("secret"), "{told}");
    }

    async fn many_events_are_erased_in_one_call(hub: TestHub) {
        let psa = Product::with(&hub, "psa", &SCOPES).await;
        let mut ids = Vec::new();
        for number in 0..30 {
            let stored = psa.publish(vec![secret(&number.to_string())]).await;
            ids.push(stored.results[0].event_id.clone());
        }
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        assert_eq!(psa.erase(&ids).await.unwrap(), 30);
        let read = psa.list(ListEventsRequest::default()).await.unwrap().entries;
        for entry in read {
            let event = entry.record.unwrap().event.unwrap();
            assert!(event.data.is_none() && event.attributes.is_empty());
        }
    }
}

/// On PostgreSQL its vacuum removes what was replaced, when it comes by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_erased_is_in_no_file_of_sqlite_after_a_stop() {
    const SECRET: &str = "planted-secret-51c0aa";
    let hub = TestHub::start(Backend::Sqlite).await;
    let psa = Product::with(&hub, "psa", &SCOPES).await;
    let secret = CloudEvent {
        data: Some(Data::TextData(SECRET.repeat(1000))),
        ..ticket("a")
    };
    let published = psa.publish(vec![secret, ticket("b")]).await;
    let database = hub
        .database_url()
        .strip_prefix("sqlite:")
        .unwrap()
        .to_owned();
    let folder = std::path::Path::new(&database).parent().unwrap();
    let found = || {
        let files = std::fs::read_dir(folder).unwrap();
        files.map(|file| file.unwrap().path()).any(|path| {
            let bytes = std::fs::read(path).unwrap_or_default();
            let mut windows = bytes.windows(SECRET.len());
            windows.any(|window| window == SECRET.as_bytes())
        })
    };
    assert!(found(), "it was stored");
    assert_eq!(
        psa.erase(&[&published.results[0].event_id]).await.unwrap(),
        1
    );
    hub.stop().await;
    assert!(!found());
}
