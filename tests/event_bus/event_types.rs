//! The catalogue: the hub's entries with the tenant's own over them.

use std::time::{Duration, Instant};

use hub_client::proto::hub::event_bus::v1::{
    EventType, ListEventTypesRequest, ListEventTypesResponse, PutEventTypeRequest,
};
use hub_client::proto::hub::platform::v1::ListAuditEntriesRequest;
use hub_client::start_at::At;
use hub_client::{Data, Error, Hub};
use hub_proto::hub::event_bus::v1::{EventFilter, PublishRequest, SubscribeRequest};
use hub_proto::hub::event_bus::v1::{PublishWarning, subscribe_response::Frame};
use tonic::Code;

use super::{Product, batch, earliest, event, from, ids, of_types, ticket};
use crate::support::{Backend, Command, Tenant, TestHub, TestProcess};

const SCOPES: [&str; 2] = ["hub:event_types.read", "hub:event_types.write"];

/// What takes longer has failed. That it is a second at most is shown where epochs are believed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Someone who manages a catalogue.
pub(super) struct Manager {
    pub(super) hub: Hub,
}

impl Manager {
    pub(super) async fn new(hub: &TestHub) -> Manager {
        let key = hub.key("", &SCOPES).await;
        Manager {
            hub: hub.client(&key),
        }
    }

    pub(super) async fn put(&self, entry: EventType) -> Result<EventType, Error> {
        let request = PutEventTypeRequest {
            event_type: Some(entry),
        };
        let answer = self.hub.event_bus().put_event_type(request).await?;
        Ok(answer.into_inner().event_type.unwrap())
    }

    async fn list(&self, request: ListEventTypesRequest) -> Result<ListEventTypesResponse, Error> {
        let answer = self.hub.event_bus().list_event_types(request).await?;
        Ok(answer.into_inner())
    }

    async fn names(&self, source: &str, destination: &str) -> Vec<String> {
        let request = ListEventTypesRequest {
            source: source.to_owned(),
            destination: destination.to_owned(),
            ..ListEventTypesRequest::default()
        };
        let listed = self.list(request).await.unwrap();
        assert_eq!(listed.next_page_token, "");
        listed
            .event_types
            .into_iter()
            .map(|entry| entry.r#type)
            .collect()
    }

    async fn find(&self, name: &str) -> Option<EventType> {
        let listed = self.list(ListEventTypesRequest::default()).await.unwrap();
        listed
            .event_types
            .into_iter()
            .find(|entry| entry.r#type == name)
    }
}

/// An entry that any product may publish.
pub(super) fn entry(name: &str, destinations: &[&str]) -> EventType {
    EventType {
        r#type: name.to_owned(),
        purpose: "A test of the catalogue".to_owned(),
        sources: vec!["*".to_owned()],
        destinations: destinations.iter().map(|slug| (*slug).to_owned()).collect(),
        ..EventType::default()
    }
}

async fn warnings(product: &Product, kind: &str, id: &str) -> Vec<i32> {
    let published = product.publish(vec![event(kind, id)]).await;
    published.results[0].warnings.clone()
}

both_databases! {
    async fn the_catalogue_of_the_hub_is_there_from_the_start(hub: TestHub) {
        let manager = Manager::new(&hub).await;
        let all = ["alert.triggered", "company.updated", "invoice.created", "ticket.created"];
        assert_eq!(manager.names("", "").await, all);
        assert_eq!(manager.names("psa", "").await, ["company.updated", "ticket.created"]);
        assert_eq!(manager.names("", "portal").await, all[1..]);
        assert_eq!(manager.names("books", "hub").await, ["company.updated", "invoice.created"]);
        let ticket = manager.find("ticket.created").await.unwrap();
        assert!(ticket.built_in && !ticket.deprecated && !ticket.etag.is_empty());
        assert_eq!((ticket.sources, ticket.destinations), (
            vec!["psa".to_owned()],
            vec!["portal".to_owned(), "hub".to_owned()],
        ));
        let example: serde_json::Value = serde_json::from_str(&ticket.example).unwrap();
        assert!(example.is_object());
        let asked = ListEventTypesRequest {
            source: "psaa".to_owned(),
            ..ListEventTypesRequest::default()
        };
        let error = manager.list(asked).await.unwrap_err();
        assert_eq!(error.reason(), Some("PRODUCT_NOT_FOUND"));
    }

    async fn pages_are_continued_with_the_same_filter_only(hub: TestHub) {
        let manager = Manager::new(&hub).await;
        let mut request = ListEventTypesRequest {
            source: "psa".to_owned(),
            page_size: 1,
            ..ListEventTypesRequest::default()
        };
        let first = manager.list(request.clone()).await.unwrap();
        assert_eq!(first.event_types[0].r#type, "company.updated");
        request.page_token = first.next_page_token;
        let other = ListEventTypesRequest {
            source: "rmm".to_owned(),
            ..request.clone()
        };
        let error = manager.list(other).await.unwrap_err();
        assert_eq!(error.reason(), Some("PAGE_TOKEN_INVALID"));
        let second = manager.list(request).await.unwrap();
        assert_eq!(second.event_types[0].r#type, "ticket.created");
        assert_eq!(second.next_page_token, "");
    }

    async fn an_own_entry_applies_to_events_recorded_from_then_on(hub: TestHub) {
        let manager = Manager::new(&hub).await;
        let psa = Product::new(&hub, "psa").await;
        let (portal, crm) = (Product::new(&hub, "portal").await, Product::new(&hub, "crm").await);
        psa.publish(vec![ticket("before")]).await;
        let put = manager.put(entry("ticket.created", &["crm"])).await.unwrap();
        assert!(!put.built_in);
        psa.publish(vec![ticket("after")]).await;
        for _ in 0..2 {
            assert_eq!(portal.dump_ids(earliest()).await, ["before"]);
            assert_eq!(crm.dump_ids(earliest()).await, ["after"]);
            // And back: what was decided stays.
            manager.put(entry("ticket.created", &["hub"])).await.unwrap();
        }
        assert_eq!(manager.find("ticket.created").await.unwrap().destinations, ["hub"]);
        let stranger = hub.tenant().await;
        let theirs = Manager { hub: hub.client(&stranger.admin_key) };
        assert!(theirs.find("ticket.created").await.unwrap().built_in);
    }

    async fn a_type_of_the_tenants_own_is_known_and_routed(hub: TestHub) {
        let manager = Manager::new(&hub).await;
        let (psa, crm) = (Product::new(&hub, "psa").await, Product::new(&hub, "crm").await);
        let unknown = PublishWarning::TypeUnknown as i32;
        assert!(warnings(&psa, "deal.won", "1").await.contains(&unknown));
        let mut deal = entry("deal.won", &["crm", "books"]);
        deal.sources = vec!["psa".to_owned()];
        let put = manager.put(deal.clone()).await.unwrap();
        assert_eq!(warnings(&psa, "deal.won", "2").await, [0; 0]);
        assert_eq!(crm.dump_ids(earliest()).await, ["2"]);
        let error = crm.send(batch(vec![event("deal.won", "3")])).await.unwrap_err();
        assert_eq!(error.reason(), Some("EVENT_SOURCE_NOT_ALLOWED"));
        assert_eq!(error.metadata()["sources"], "psa");
        deal.deprecated = true;
        assert_ne!(manager.put(deal).await.unwrap().etag, put.etag);
        let deprecated = PublishWarning::TypeDeprecated as i32;
        assert_eq!(warnings(&psa, "deal.won", "4").await, [deprecated]);
    }

    async fn an_old_etag_is_refused_and_a_repetition_changes_nothing(hub: TestHub) {
        let manager = Manager::new(&hub).await;
        let of_the_hub = manager.find("ticket.created").await.unwrap();
        let mut mine = entry("ticket.created", &["crm"]);
        mine.etag.clone_from(&of_the_hub.etag);
        let first = manager.put(mine.clone()).await.unwrap();
        // The answer may have been lost: the same again is no conflict.
        assert_eq!(manager.put(mine.clone()).await.unwrap(), first);
        mine.destinations = vec!["books".to_owned()];
        let error = manager.put(mine.clone()).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::Aborted, Some("ETAG_MISMATCH")));
        assert_eq!(error.metadata()["currentEtag"], first.etag);
        assert_eq!(manager.find("ticket.created").await.unwrap(), first);
        mine.etag = first.etag;
        assert_ne!(manager.put(mine).await.unwrap().etag, of_the_hub.etag);
    }

    async fn a_change_is_audited_and_told_in_the_log(hub: TestHub) {
        let manager = Manager::new(&hub).await;
        manager.put(entry("deal.won", &["crm"])).await.unwrap();
        manager.put(entry("deal.won", &["books"])).await.unwrap();
        let admin = hub.client(&hub.first_tenant().admin_key);
        let request = ListAuditEntriesRequest {
            resource: "deal.won".to_owned(),
            ..ListAuditEntriesRequest::default()
        };
        let listed = admin.platform().list_audit_entries(request).await.unwrap().into_inner();
        let changes: Vec<_> = listed.entries.iter().map(|one| &one.changes).collect();
        assert_eq!(changes.len(), 2, "{listed:?}");
        assert_eq!(changes[0]["destinations"], "crm -> books");
        assert!(changes[1]["purpose"].ends_with(" -> A test of the catalogue"));
        assert_eq!(listed.entries[0].action, "hub.event_bus.v1.EventBus/PutEventType");
        let auditor = Product::auditor(&hub).await;
        let request = SubscribeRequest {
            all_products: true,
            stop_when_caught_up: true,
            filter: Some(EventFilter {
                products: vec!["hub".to_owned()],
                ..of_types(&["event_type.updated"])
            }),
            ..from(earliest())
        };
        let told = auditor.subscribe(request).await.rest().await.0;
        assert_eq!(told.len(), 2);
        let Some(Data::TextData(data)) = told[1].event.clone().unwrap().data else {
            panic!("{:?}", told[1]);
        };
        let data: serde_json::Value = serde_json::from_str(&data).unwrap();
        assert_eq!(data["type"], "deal.won");
        assert_eq!(data["destinations"][0], "books");
    }

    async fn an_entry_that_makes_no_sense_is_refused(hub: TestHub) {
        let manager = Manager::new(&hub).await;
        for (name, reason) in [
            ("", "FIELD_INVALID"),
            ("ticket.*", "FIELD_INVALID"),
            ("ticket..created", "FIELD_INVALID"),
            (&"a".repeat(256), "FIELD_INVALID"),
        ] {
            let error = manager.put(entry(name, &[])).await.unwrap_err();
            assert_eq!(error.reason(), Some(reason), "{name}");
        }
        let error = manager.put(entry("deal.won", &["crmm"])).await.unwrap_err();
        assert_eq!(error.reason(), Some("PRODUCT_NOT_FOUND"));
        let large = EventType { json_schema: " ".repeat(65_537), ..entry("deal.won", &[]) };
        let error = manager.put(large).await.unwrap_err();
        assert_eq!(error.reason(), Some("FIELD_INVALID"));
        assert_eq!(manager.find("deal.won").await, None);
        // Nobody named: any product may publish it.
        let anybody = EventType { sources: Vec::new(), ..entry("deal.won", &[]) };
        assert_eq!(manager.put(anybody).await.unwrap().sources, ["*"]);
    }

    async fn a_key_needs_the_scope_and_a_tenant(hub: TestHub) {
        let reader = Manager { hub: hub.client(&hub.key("", &["hub:event_types.read"]).await) };
        assert!(reader.find("ticket.created").await.is_some());
        let error = reader.put(entry("deal.won", &[])).await.unwrap_err();
        assert_eq!(error.reason(), Some("SCOPE_MISSING"));
        let operator = Manager { hub: hub.client(&hub.operator_key) };
        let error = operator.put(entry("deal.won", &[])).await.unwrap_err();
        assert_eq!(error.reason(), Some("TENANT_REQUIRED"));
    }

    async fn a_catalogue_outlives_a_restart(mut hub: TestHub) {
        let put = Manager::new(&hub).await.put(entry("deal.won", &["crm"])).await.unwrap();
        hub.restart().await;
        assert_eq!(Manager::new(&hub).await.find("deal.won").await, Some(put));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_takes_effect_at_another_server_within_a_second() {
    let first = TestProcess::start(Command::Serve, Backend::Postgres, &[]).await;
    let second = super::processes::second(&first).await;
    let at = |address: std::net::SocketAddr, key: &str| {
        let hub = Hub::builder(format!("http://{address}")).api_key(key);
        hub.connect_lazy().unwrap()
    };
    let operator = at(first.addr(), first.ready["operatorKey"].as_str().unwrap());
    let tenant = Tenant::create(&operator).await;
    let here = Manager {
        hub: at(first.addr(), &tenant.admin_key),
    };
    let there = Manager {
        hub: at(second.addr, &tenant.admin_key),
    };
    let psa = tenant.key(&here.hub, "psa", &["hub:events.publish"]).await;
    let crm = tenant.key(&here.hub, "crm", &["hub:events.read"]).await;
    let psa = Product {
        bus: at(second.addr, &psa).event_bus(),
        key: psa,
    };
    let crm = Product {
        bus: at(first.addr(), &crm).event_bus(),
        key: crm,
    };
    psa.publish(vec![ticket("before")]).await;
    assert!(there.find("ticket.created").await.unwrap().built_in);
    let put = here.put(entry("ticket.created", &["crm"])).await.unwrap();
    // Where it goes is decided when it is recorded, wherever that is.
    psa.publish(vec![ticket("after")]).await;
    let mut reader = crm.subscribe(from(earliest())).await;
    assert_eq!(ids(&reader.events(1).await), ["after"]);
    assert!(matches!(reader.next_news().await, Frame::CaughtUp(_)));
    let since = Instant::now();
    while there.find("ticket.created").await.unwrap() != put {
        assert!(since.elapsed() < PATIENCE);
    }
    assert_eq!(crm.dump_ids(At::AfterSequence(0)).await, ["after"]);
    let request = PublishRequest {
        validate_only: true,
        ..batch(vec![ticket("x")])
    };
    assert_eq!(psa.send(request).await.unwrap().results[0].destinations, 1);
    second.drain().await;
}
