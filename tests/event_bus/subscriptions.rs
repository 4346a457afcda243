//! Durable subscriptions as resources: made, shown, changed, paused and deleted.

use hub_client::start_at::At;
use hub_proto::hub::event_bus::v1::{
    CreateSubscriptionRequest, EventFilter, ExhaustedAction, ListSubscriptionsRequest, Ordering,
    RetryPolicy, SubscribeRequest, Subscription, SubscriptionState,
};
use hub_proto::hub::platform::v1::ListAuditEntriesRequest;
use tonic::Code;

use super::owner::{Owner, named, paused, seeking, starting, state};
use super::{Product, earliest, from, of_types};
use crate::support::{Backend, TestHub};

fn duration(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn names(subscriptions: &[Subscription]) -> Vec<(&str, &str)> {
    let names = subscriptions.iter();
    names
        .map(|one| (one.product.as_str(), one.name.as_str()))
        .collect()
}

fn of_product(product: &str) -> ListSubscriptionsRequest {
    ListSubscriptionsRequest {
        product: product.to_owned(),
        ..ListSubscriptionsRequest::default()
    }
}

/// Types and subjects of the events that tell of subscriptions.
async fn told(hub: &TestHub) -> Vec<(String, String)> {
    let auditor = Product::auditor(hub).await;
    let request = SubscribeRequest {
        all_products: true,
        stop_when_caught_up: true,
        filter: Some(EventFilter {
            products: vec!["hub".to_owned()],
            ..of_types(&["subscription.*"])
        }),
        ..from(earliest())
    };
    let records = auditor.subscribe(request).await.rest().await.0;
    let events = records.into_iter().map(|record| record.event.unwrap());
    let told = events.map(|event| {
        let json = match event.data.unwrap() {
            hub_client::Data::TextData(json) => json,
            other => panic!("{other:?}"),
        };
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        (
            event.r#type,
            json["subscriptionId"].as_str().unwrap().to_owned(),
        )
    });
    told.collect()
}

both_databases! {
    async fn what_is_left_open_has_defaults_and_the_rest_is_as_asked(hub: TestHub) {
        let crm = Owner::new(&hub, "crm").await;
        let plain = crm.create(named("plain", EventFilter::default())).await;
        assert!(plain.subscription_id.starts_with("sub_"));
        assert_eq!((&*plain.product, &*plain.name), ("crm", "plain"));
        assert_eq!(plain.ordering(), Ordering::ByKey);
        let retry = plain.retry.clone().unwrap();
        let delays: Vec<i64> = retry.delays.iter().map(|delay| delay.seconds).collect();
        assert_eq!(delays, [60, 300, 1800, 7200]);
        assert_eq!(retry.on_exhausted(), ExhaustedAction::Fail);
        assert_eq!(plain.lease_duration, Some(duration(30)));
        assert!(plain.create_time.is_some() && !plain.etag.is_empty());
        let status = plain.status.clone().unwrap();
        assert_eq!(status.state(), SubscriptionState::Live, "{status:?}");
        assert_eq!((status.backlog, status.failed), (0, 0));
        assert_eq!(crm.get(&plain.subscription_id).await.unwrap(), plain);

        let asked = Subscription {
            name: "own".to_owned(),
            product: "portal".to_owned(),
            filter: Some(of_types(&["ticket.**", "deal.won"])),
            ordering: Ordering::Total.into(),
            retry: Some(RetryPolicy {
                delays: vec![duration(0), duration(86_400)],
                on_exhausted: ExhaustedAction::BlockKey.into(),
            }),
            lease_duration: Some(duration(3600)),
            max_per_second: 7,
            labels: [("team".to_owned(), "sales".to_owned())].into(),
            ..Subscription::default()
        };
        let own = crm.create(CreateSubscriptionRequest {
            subscription: Some(asked.clone()),
            ..CreateSubscriptionRequest::default()
        }).await;
        assert_eq!(own.product, "crm", "it comes from the key");
        let shown = Subscription {
            product: asked.product.clone(),
            subscription_id: String::new(),
            status: None,
            create_time: None,
            etag: String::new(),
            ..own.clone()
        };
        assert_eq!(shown, asked);
        assert_eq!(crm.get(&own.subscription_id).await.unwrap(), own);
    }

    async fn what_cannot_be_is_refused_and_nothing_is_made(hub: TestHub) {
        let crm = Owner::new(&hub, "crm").await;
        let with = |change: fn(&mut Subscription)| {
            let mut request = named("a", EventFilter::default());
            change(request.subscription.as_mut().unwrap());
            request
        };
        for (request, reason) in [
            (with(|one| one.name = "x".repeat(201)), "FIELD_INVALID"),
            (with(|one| one.name = "sub_1".to_owned()), "FIELD_INVALID"),
            (with(|one| one.name = String::new()), "FIELD_INVALID"),
            (with(|one| one.ordering = 9), "FIELD_INVALID"),
            (with(|one| one.retry.get_or_insert_default().on_exhausted = 9),
                "FIELD_INVALID"),
            (with(|one| one.lease_duration = Some(duration(3601))), "FIELD_INVALID"),
            (with(|one| one.filter = Some(of_types(&["a..b"]))), "FILTER_INVALID"),
            (starting("a", EventFilter::default(), At::AfterSequence(9)), "SEQUENCE_AHEAD"),
            (starting("a", EventFilter::default(), At::Cursor("x".to_owned())), "CURSOR_INVALID"),
            (named("crm", EventFilter::default()), "SUBSCRIPTION_EXISTS"),
        ] {
            let error = crm.try_create(request.clone()).await.unwrap_err();
            assert_eq!(error.reason(), Some(reason), "{request:?}");
        }
        let admin = Owner::admin(&hub);
        let error = admin.try_create(named("a", EventFilter::default())).await.unwrap_err();
        assert_eq!(error.reason(), Some("PRODUCT_REQUIRED"));
        let (found, _) = admin.list(of_product("crm")).await.unwrap();
        assert_eq!(names(&found), [("crm", "crm")]);
        let first = crm.create(named("a", EventFilter::default())).await;
        let error = crm.try_create(named("a", of_types(&["x"]))).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists);
        assert_eq!(error.reason(), Some("SUBSCRIPTION_EXISTS"));
        assert_eq!(error.metadata()["subscriptionId"], first.subscription_id);
        // Another product, and another tenant, have names of their own.
        Owner::new(&hub, "portal").await.create(named("a", EventFilter::default())).await;
    }

    async fn a_retry_gets_the_first_answer_and_makes_nothing(hub: TestHub) {
        let crm = Owner::new(&hub, "crm").await;
        let request = CreateSubscriptionRequest {
            request_id: uuid::Uuid::new_v4().to_string(),
            ..named("a", EventFilter::default())
        };
        let first = crm.create(request.clone()).await;
        assert_eq!(crm.create(request.clone()).await, first);
        let other = CreateSubscriptionRequest {
            request_id: request.request_id,
            ..named("b", EventFilter::default())
        };
        let error = crm.try_create(other).await.unwrap_err();
        assert_eq!(error.reason(), Some("REQUEST_ID_REUSED"));
        assert_eq!(crm.list(of_product("")).await.unwrap().0.len(), 2);
    }

    async fn a_product_sees_and_changes_its_own_and_who_sees_all_sees_all(hub: TestHub) {
        let (crm, portal) = (Owner::new(&hub, "crm").await, Owner::new(&hub, "portal").await);
        let id = crm.create(named("a", EventFilter::default())).await.subscription_id;
        let read = ["hub:subscriptions.read", "hub:subscriptions.write", "hub:diagnostics.read"];
        let diagnostics = Owner::with(&hub, "portal", &read).await;
        let admin = Owner::admin(&hub);
        let (all, _) = admin.list(of_product("")).await.unwrap();
        assert_eq!(all.len(), 13, "{:?}", names(&all));
        assert!(names(&all).is_sorted());
        assert_eq!(diagnostics.list(of_product("")).await.unwrap().0, all);
        let (own, _) = crm.list(of_product("")).await.unwrap();
        assert_eq!(names(&own), [("crm", "a"), ("crm", "crm")]);
        assert_eq!(names(&portal.list(of_product("")).await.unwrap().0), [("portal", "portal")]);
        assert_eq!(portal.list(of_product("crm")).await.unwrap().0, []);
        let error = portal.list(of_product("crmm")).await.unwrap_err();
        assert_eq!(error.reason(), Some("PRODUCT_NOT_FOUND"));
        assert!(diagnostics.get(&id).await.is_ok());
        let stranger = Owner { hub: hub.client(&hub.tenant().await.admin_key) };
        for other in [&portal, &diagnostics, &stranger] {
            for refused in [
                other.pause(paused(&id, "")).await.err(),
                other.resume(&id).await.err(),
                other.delete(&id, "").await.err(),
                other.seek(seeking(&id, earliest())).await.err(),
                other.update(Subscription {
                    subscription_id: id.clone(),
                    ..Subscription::default()
                }, &["labels"]).await.err(),
            ] {
                assert_eq!(refused.unwrap().reason(), Some("SUBSCRIPTION_NOT_FOUND"));
            }
        }
        for other in [&portal, &stranger] {
            let error = other.get(&id).await.unwrap_err();
            assert_eq!(error.reason(), Some("SUBSCRIPTION_NOT_FOUND"));
        }
        assert_eq!(state(&admin.pause(paused(&id, "")).await.unwrap()), SubscriptionState::Paused);
    }

    async fn pages_go_on_by_product_and_name_and_states_narrow_them(hub: TestHub) {
        let crm = Owner::new(&hub, "crm").await;
        for name in ["b", "A", "a\nb", "ä"] {
            // Not what tells of the others, which would be a backlog.
            crm.create(named(name, of_types(&["deal.*"]))).await;
        }
        let by = |page_size, states: &[SubscriptionState]| ListSubscriptionsRequest {
            page_size,
            states: states.iter().map(|state| i32::from(*state)).collect(),
            ..ListSubscriptionsRequest::default()
        };
        let expected = ["A", "a\nb", "b", "crm", "ä"];
        for size in [0, 1, 2] {
            let (found, pages) = crm.list(by(size, &[])).await.unwrap();
            let found: Vec<&str> = found.iter().map(|one| one.name.as_str()).collect();
            assert_eq!(found, expected);
            assert_eq!(pages, if size == 0 { 1 } else { 5_usize.div_ceil(size as usize) });
        }
        let (dormant, _) = crm.list(by(1, &[SubscriptionState::Dormant])).await.unwrap();
        assert_eq!(names(&dormant), [("crm", "crm")]);
        let (live, _) = crm.list(by(2, &[SubscriptionState::Live])).await.unwrap();
        assert_eq!(live.len(), 4);
        assert_eq!(crm.list(by(2, &[SubscriptionState::Paused])).await.unwrap().0, []);
        let first = crm.hub.event_bus().list_subscriptions(by(1, &[])).await.unwrap().into_inner();
        let other = ListSubscriptionsRequest {
            page_token: first.next_page_token,
            ..of_product("crm")
        };
        let error = crm.list(other).await.unwrap_err();
        assert_eq!(error.reason(), Some("PAGE_TOKEN_INVALID"));
    }

    async fn settings_change_by_mask_and_etag_and_the_rest_is_fixed(hub: TestHub) {
        let crm = Owner::new(&hub, "crm").await;
        let made = crm.create(named("a", of_types(&["deal.won"]))).await;
        let new = Subscription {
            max_per_second: 5,
            labels: [("team".to_owned(), "sales".to_owned())].into(),
            lease_duration: Some(duration(60)),
            ..made.clone()
        };
        let changed = crm.update(new.clone(), &["max_per_second", "labels"]).await.unwrap();
        assert_eq!((changed.max_per_second, changed.labels.len()), (5, 1));
        assert_eq!(changed.lease_duration, made.lease_duration, "the mask does not name it");
        assert_ne!(changed.etag, made.etag);
        let error = crm.update(new.clone(), &["lease_duration"]).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::Aborted, Some("ETAG_MISMATCH")));
        assert_eq!(error.metadata()["currentEtag"], changed.etag);
        let all = crm.update(Subscription { etag: String::new(), ..new.clone() }, &["*"]).await;
        let all = all.unwrap();
        assert_eq!(all.lease_duration, Some(duration(60)));
        let again = crm.update(Subscription { etag: all.etag.clone(), ..new }, &[]).await.unwrap();
        assert_eq!(again, all, "a repetition changes nothing");
        let reset = Subscription {
            subscription_id: made.subscription_id.clone(),
            ..Subscription::default()
        };
        let reset = crm.update(reset, &["lease_duration", "retry", "labels"]).await.unwrap();
        assert_eq!((reset.lease_duration, reset.labels.len()), (Some(duration(30)), 0));
        for (change, paths) in [
            (Subscription { name: "b".to_owned(), ..made.clone() }, &["labels"][..]),
            (Subscription { ordering: Ordering::None.into(), ..made.clone() }, &["*"][..]),
            (made.clone(), &["name"][..]),
            (made.clone(), &["ordering"][..]),
            (made.clone(), &["status"][..]),
        ] {
            let error = crm.update(Subscription { etag: String::new(), ..change }, paths).await;
            assert_eq!(error.unwrap_err().reason(), Some("FIELD_INVALID"), "{paths:?}");
        }
        let wrong = Subscription {
            filter: Some(of_types(&["**.x"])),
            etag: String::new(),
            ..made.clone()
        };
        let error = crm.update(wrong, &["filter"]).await.unwrap_err();
        assert_eq!(error.reason(), Some("FILTER_INVALID"));
    }

    async fn a_default_subscription_has_settings_and_neither_filter_nor_end(hub: TestHub) {
        let crm = Owner::new(&hub, "crm").await;
        let found = crm.list(of_product("crm")).await.unwrap().0.remove(0);
        assert_eq!((&*found.name, state(&found)), ("crm", SubscriptionState::Dormant));
        let changed = Subscription { max_per_second: 3, ..found.clone() };
        let changed = crm.update(changed, &["*"]).await.unwrap();
        assert_eq!(changed.max_per_second, 3);
        let filtered = Subscription { filter: Some(of_types(&["a"])), ..changed.clone() };
        let error = crm.update(filtered, &["filter"]).await.unwrap_err();
        assert_eq!(error.reason(), Some("FIELD_INVALID"));
        assert!(error.message().contains("your own"), "{error}");
        let error = crm.delete(&found.subscription_id, "").await.unwrap_err();
        assert_eq!(error.reason(), Some("FIELD_INVALID"));
        assert!(error.message().contains("pause it"), "{error}");
        let id = &found.subscription_id;
        assert_eq!(state(&crm.pause(paused(id, "")).await.unwrap()), SubscriptionState::Paused);
    }

    async fn a_deleted_one_is_gone_and_its_name_is_free(hub: TestHub) {
        let crm = Owner::new(&hub, "crm").await;
        let made = crm.create(named("a", EventFilter::default())).await;
        let error = crm.delete(&made.subscription_id, "99").await.unwrap_err();
        assert_eq!(error.reason(), Some("ETAG_MISMATCH"));
        crm.delete(&made.subscription_id, &made.etag).await.unwrap();
        for error in [
            crm.delete(&made.subscription_id, "").await.unwrap_err(),
            crm.get(&made.subscription_id).await.unwrap_err(),
        ] {
            assert_eq!(error.reason(), Some("SUBSCRIPTION_NOT_FOUND"));
        }
        let again = crm.create(named("a", EventFilter::default())).await;
        assert_ne!(again.subscription_id, made.subscription_id);
    }

    async fn every_change_is_audited_and_told_in_the_log(hub: TestHub) {
        let crm = Owner::new(&hub, "crm").await;
        let made = crm.create(named("a", of_types(&["deal.won"]))).await;
        let id = made.subscription_id.clone();
        let filter = Some(of_types(&["deal.lost"]));
        crm.update(Subscription { filter, ..made }, &["filter"]).await.unwrap();
        for _ in 0..2 {
            crm.pause(paused(&id, "a new release")).await.unwrap();
        }
        for _ in 0..2 {
            crm.resume(&id).await.unwrap();
        }
        crm.seek(seeking(&id, earliest())).await.unwrap();
        crm.delete(&id, "").await.unwrap();
        let kinds = ["created", "updated", "paused", "resumed", "sought", "deleted"];
        let expected: Vec<_> =
            kinds.iter().map(|kind| (format!("subscription.{kind}"), id.clone())).collect();
        assert_eq!(told(&hub).await, expected);
        let request = ListAuditEntriesRequest {
            resource: id,
            ..ListAuditEntriesRequest::default()
        };
        let admin = hub.client(&hub.first_tenant().admin_key);
        let listed = admin.platform().list_audit_entries(request).await.unwrap().into_inner();
        let actions: Vec<&str> = listed
            .entries
            .iter()
            .rev()
            .map(|entry| entry.action.rsplit('/').next().unwrap())
            .collect();
        assert_eq!(actions, [
            "CreateSubscription", "UpdateSubscription", "PauseSubscription",
            "ResumeSubscription", "SeekSubscription", "DeleteSubscription",
        ]);
        assert_eq!(listed.entries[4].changes["filter.types"], "deal.won -> deal.lost");
        assert_eq!(listed.entries[3].changes["reason"], " -> a new release");
    }

    async fn a_tenant_has_room_for_so_many(backend: Backend) {
        let options = TestHub::options(backend);
        let hub = options.limits(|limits| limits.subscriptions_max = 2).start().await;
        let crm = Owner::new(&hub, "crm").await;
        let first = crm.create(named("a", EventFilter::default())).await;
        Owner::new(&hub, "portal").await.create(named("b", EventFilter::default())).await;
        let error = crm.try_create(named("c", EventFilter::default())).await.unwrap_err();
        assert_eq!(error.reason(), Some("QUOTA_EXCEEDED"));
        assert_eq!(error.metadata()["limit"], "2");
        crm.delete(&first.subscription_id, "").await.unwrap();
        crm.create(named("c", EventFilter::default())).await;
    }

    async fn of_calls_at_once_one_gets_the_name_and_the_room(backend: Backend) {
        let options = TestHub::options(backend);
        let hub = options.limits(|limits| limits.subscriptions_max = 3).start().await;
        let crm = Owner::new(&hub, "crm").await;
        let made = |names: [&'static str; 8]| {
            let calls = names.map(|name| crm.try_create(named(name, EventFilter::default())));
            futures_util::future::join_all(calls)
        };
        let same = made(["a"; 8]).await;
        assert_eq!(same.iter().filter(|one| one.is_ok()).count(), 1);
        let reasons = same.iter().filter_map(|one| one.as_ref().err()?.reason());
        assert!(reasons.eq(["SUBSCRIPTION_EXISTS"; 7]));
        let others = made(["b", "c", "d", "e", "f", "g", "h", "i"]).await;
        assert_eq!(others.iter().filter(|one| one.is_ok()).count(), 2);
        let reasons = others.iter().filter_map(|one| one.as_ref().err()?.reason());
        assert!(reasons.eq(["QUOTA_EXCEEDED"; 6]));
    }
}
