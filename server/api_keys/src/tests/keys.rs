//! Making, showing and ending keys.

use hub_core::journal::Page;
use hub_core::storage::Sql;
use hub_proto::hub::event_bus::v1::{CloudEvent, EventRecord};
use prost::Message;
use sqlx::{Connection, Executor, SqlStr};

use super::*;
use crate::store::{self, Filter, STATEMENTS};

const ALL: Filter = Filter {
    product: String::new(),
    active: true,
    rotating: true,
    expired: true,
    revoked: true,
};

async fn listed(hub: &TestKeys, filter: Filter) -> Vec<String> {
    let now = hub.core.clock.now();
    let keys = store::list(&hub.core.db, &hub.tenant, &filter, None, now, 100)
        .await
        .unwrap();
    for key in &keys {
        assert!(states(&filter).contains(&key.state(now)), "{key:?}");
    }
    keys.into_iter().map(|key| key.name).collect()
}

fn states(filter: &Filter) -> Vec<hub_proto::hub::api_keys::v1::ApiKeyState> {
    use hub_proto::hub::api_keys::v1::ApiKeyState::{Active, Expired, Revoked, Rotating};
    let pairs = [
        (filter.active, Active),
        (filter.rotating, Rotating),
        (filter.expired, Expired),
        (filter.revoked, Revoked),
    ];
    pairs
        .into_iter()
        .filter(|(wanted, _)| *wanted)
        .map(|(_, state)| state)
        .collect()
}

/// The events of the system log, as published.
async fn told(hub: &TestKeys) -> Vec<CloudEvent> {
    let log = hub.core.journal.log(&TenantRef::system()).await.unwrap();
    let Page::Segments(segments) = hub.core.journal.read_after(&log, 0).await.unwrap() else {
        return Vec::new();
    };
    let mut events = Vec::new();
    for segment in segments {
        #[derive(prost::Message)]
        struct Records {
            #[prost(message, repeated, tag = "1")]
            events: Vec<EventRecord>,
        }
        let records = Records::decode(segment.run().unwrap().records.clone()).unwrap();
        events.extend(records.events.into_iter().filter_map(|record| record.event));
    }
    events
}

both_databases! {
    async fn every_statement_is_understood(hub: TestKeys) {
        let more = crate::MORE_STATEMENTS.iter().copied().flatten();
        for sql in STATEMENTS.iter().chain(more).chain(hub_core::replay::STATEMENTS) {
            prepare(&hub, *sql).await;
        }
    }

    async fn only_the_hash_of_a_key_is_stored(hub: TestKeys) {
        let created = hub.create(&["psa:*"]).await;
        let secret = created.plaintext.expose();
        let (key, hash) = store::by_id(&hub.core.db, &created.key.key_id).await.unwrap().unwrap();
        assert_eq!(key, created.key);
        assert_eq!(hash, created.plaintext.hash());
        let middle = &secret[8..36];
        for event in told(&hub).await {
            assert!(!format!("{event:?}").contains(middle));
        }
        assert!(!format!("{created:?}").contains(middle), "Debug shows the secret");
    }

    async fn what_was_stored_comes_back_whole(hub: TestKeys) {
        let new = NewKey {
            scopes: texts(&["psa:tickets.read", "psa:tickets.read", "hub:*"]),
            product: "psa".to_owned(),
            cidrs: texts(&["10.0.0.0/8", "2001:db8::/32"]),
            expire_time: Some(START + 1),
            labels: [("team".to_owned(), "ü \"quoted\"".to_owned())].into(),
            ..named("O'Neil; drop table api_keys")
        };
        let created = hub.keys.create(&hub.administrator(), new, None).await.unwrap();
        let created = created.first().unwrap();
        assert_eq!(created.key.scopes, ["psa:tickets.read", "hub:*"], "each once");
        let read = hub.keys.get(&hub.administrator(), &created.key.key_id).await.unwrap();
        assert_eq!(read, created.key);
    }

    async fn keys_are_listed_newest_first_by_state_and_product(hub: TestKeys) {
        let caller = hub.administrator();
        let soon = Some(START + 10_000_000);
        for (name, scopes, expire_time) in [
            ("psa", &["psa:tickets.read", "hub:keys.read"][..], None),
            ("crm", &["crm:*"][..], None),
            ("expiring", &["psa:*"][..], soon),
            ("revoked", &["psa:*"][..], None),
            ("expired, then revoked", &[][..], soon),
            ("revoked before it would have expired", &[][..], soon),
        ] {
            let new = NewKey { scopes: texts(scopes), expire_time, ..named(name) };
            let key = hub.keys.create(&caller, new, None).await.unwrap().first().unwrap().key;
            if name.starts_with("revoked") {
                hub.keys.revoke(&caller, &key.key_id, "").await.unwrap();
            }
        }
        let active = Filter { active: true, ..Filter::default() };
        let expired = Filter { expired: true, ..Filter::default() };
        let revoked = Filter { revoked: true, ..Filter::default() };
        let names = ["expired, then revoked", "expiring", "crm", "psa"];
        assert_eq!(listed(&hub, active.clone()).await, names);
        assert!(listed(&hub, expired.clone()).await.is_empty());
        hub.core.clock.advance(std::time::Duration::from_secs(10));
        let late = store::list(&hub.core.db, &hub.tenant, &expired, None, hub.core.clock.now(), 9)
            .await
            .unwrap();
        let late = late.iter().find(|key| key.name == "expired, then revoked").unwrap();
        hub.keys.revoke(&caller, &late.key_id, "").await.unwrap();
        assert_eq!(listed(&hub, active.clone()).await, ["crm", "psa"]);
        assert_eq!(listed(&hub, expired).await, ["expired, then revoked", "expiring"]);
        let names = ["revoked before it would have expired", "revoked"];
        assert_eq!(listed(&hub, revoked).await, names);
        let rotating = Filter { rotating: true, ..Filter::default() };
        assert!(listed(&hub, rotating).await.is_empty());
        assert_eq!(listed(&hub, ALL).await.len(), 6);
        let psa = Filter { product: "psa".into(), ..ALL };
        assert_eq!(listed(&hub, psa).await, ["revoked", "expiring", "psa"]);
        for nothing in ["sa", "tickets", "%", "_", "books", "\""] {
            assert!(listed(&hub, Filter { product: nothing.into(), ..ALL }).await.is_empty());
        }
    }

    async fn pages_show_every_key_once_and_tokens_are_bound(hub: TestKeys) {
        let caller = hub.administrator();
        for number in 0..7 {
            let new = named(&number.to_string());
            hub.keys.create(&caller, new, None).await.unwrap().first().unwrap();
        }
        let (mut names, mut token, mut sizes) = (Vec::new(), String::new(), Vec::new());
        loop {
            let page = hub.keys.list(&caller, ALL, 3, &token, |_| 1).await.unwrap();
            sizes.push(page.keys.len());
            names.extend(page.keys.into_iter().map(|key| key.name));
            if page.next_page_token.is_empty() {
                break;
            }
            token = page.next_page_token;
        }
        assert_eq!(names, ["6", "5", "4", "3", "2", "1", "0"]);
        assert_eq!(sizes, [3, 3, 1]);
        let beta = caller_of(&add_tenant(&hub.core, "Beta").await);
        let psa = Filter { product: "psa".into(), ..ALL };
        for refused in [
            hub.keys.list(&beta, ALL, 3, &token, |_| 1).await,
            hub.keys.list(&caller, psa, 3, &token, |_| 1).await,
            hub.keys.list(&caller, ALL, 3, &token[..10], |_| 1).await,
        ] {
            assert_eq!(refused.unwrap_err().reason(), "PAGE_TOKEN_INVALID");
        }
        let full = hub.keys.list(&caller, ALL, 7, "", |_| 1).await.unwrap();
        assert!(full.next_page_token.is_empty(), "exactly full, and nothing follows");
        let large = hub.core.limits.page_bytes_max / 2;
        let cut = hub.keys.list(&caller, ALL, 0, "", |_| large).await.unwrap();
        assert_eq!((cut.keys.len(), cut.next_page_token.is_empty()), (2, false));
    }

    async fn keys_of_other_tenants_are_not_there(hub: TestKeys) {
        let created = hub.create(&[]).await;
        let beta = caller_of(&add_tenant(&hub.core, "Beta").await);
        let operator = caller(None, &["hub:*"]);
        for stranger in [&beta, &operator] {
            let (keys, key_id) = (&hub.keys, &created.key.key_id);
            assert_eq!(keys.get(stranger, key_id).await.unwrap_err().reason(), "KEY_NOT_FOUND");
            let revoke = keys.revoke(stranger, key_id, "").await;
            assert_eq!(revoke.unwrap_err().reason(), "KEY_NOT_FOUND");
            assert!(keys.list(stranger, ALL, 0, "", |_| 1).await.unwrap().keys.is_empty());
        }
        hub.authenticate(&created).await.unwrap();
    }

    async fn only_an_operator_makes_keys_for_all_tenants(hub: TestKeys) {
        let all = || NewKey { all_tenants: true, product: "psa".into(), ..named("backend") };
        let refused = hub.keys.create(&hub.administrator(), all(), None).await.unwrap_err();
        assert_eq!(refused.reason(), "OPERATOR_ONLY");
        let operator = caller(None, &["hub:*"]);
        let created = hub.keys.create(&operator, all(), None).await.unwrap().first().unwrap();
        let backend = hub.authenticate(&created).await.unwrap();
        assert!(backend.all_tenants && backend.tenant.is_none() && !backend.is_operator());
        let refused = hub.keys.create(&operator, named("no tenant"), None).await.unwrap_err();
        assert_eq!(refused.reason(), "TENANT_REQUIRED");
        let named_tenant = Caller { tenant: Some(hub.tenant.clone()), ..operator };
        let refused = hub.keys.create(&named_tenant, all(), None).await.unwrap_err();
        assert_eq!(refused.reason(), "FIELD_INVALID");
        let created = hub.keys.create(&named_tenant, named("of a tenant"), None).await.unwrap();
        let created = created.first().unwrap();
        assert_eq!(created.key.tenant, Some(hub.tenant.clone()));
    }

    async fn nobody_ends_a_key_with_more_rights_than_its_own(hub: TestKeys) {
        let target = hub.create(&["psa:*"]).await.key.key_id;
        let narrow = caller(Some(&hub.tenant), &["hub:keys.write", "psa:tickets.read"]);
        let error = hub.keys.revoke(&narrow, &target, "").await.unwrap_err();
        assert_eq!(error.reason(), "SCOPE_ESCALATION");
        assert!(error.metadata().contains(&("scope", "psa:*".to_owned())));
        let wide = caller(Some(&hub.tenant), &["hub:keys.write", "psa:*"]);
        let revoked = hub.keys.revoke(&wide, &target, "over").await.unwrap();
        let again = hub.keys.revoke(&hub.administrator(), &target, "other").await.unwrap();
        assert_eq!(again, revoked, "repeating is harmless");
        assert_eq!(revoked.revocation.unwrap().reason, "over");
    }

    async fn fields_that_make_no_sense_are_refused_by_name(hub: TestKeys) {
        let past = NewKey { expire_time: Some(START), ..named("past") };
        let far = NewKey { expire_time: Some(i64::MAX), ..named("far") };
        let cidrs = texts(&["10.0.0.0/8", "10.0.0.1"]);
        let block = NewKey { cidrs, ..named("block") };
        for (new, field) in [
            (past, "api_key.expire_time"),
            (far, "api_key.expire_time"),
            (block, "api_key.allowed_cidrs[1]"),
        ] {
            let error = hub.keys.create(&hub.administrator(), new, None).await.unwrap_err();
            assert_eq!(error.metadata(), [("fields", field.to_owned())]);
        }
        let new = NewKey { product: "pas".into(), ..named("typing error") };
        let error = hub.keys.create(&hub.administrator(), new, None).await.unwrap_err();
        assert_eq!(error.reason(), "PRODUCT_NOT_FOUND");
        assert!(error.metadata().contains(&("didYouMean", "psa".to_owned())));
    }

    async fn the_system_log_tells_of_every_key_that_was_made_or_ended(hub: TestKeys) {
        let key = hub.create(&["psa:*"]).await.key;
        let revoked = hub.keys.revoke(&hub.administrator(), &key.key_id, "leaked").await.unwrap();
        let events = told(&hub).await;
        let kinds: Vec<&str> = events.iter().map(|event| event.r#type.as_str()).collect();
        assert_eq!(kinds, ["key.created", "key.revoked"]);
        assert_eq!(revoked.revocation.unwrap().epoch, 2, "the sequence of its event");
        let stored = store::find(&hub.core.db, &hub.tenant, &key.key_id).await.unwrap().unwrap();
        assert_eq!(stored.revocation.unwrap().epoch, 2);
        for event in &events {
            let told = format!("{:?}", event.attributes);
            assert!(told.contains(&key.key_id) && told.contains(hub.tenant.id()), "{told}");
        }
    }

    async fn the_first_start_makes_one_operator_key_and_shows_it_once(hub: TestKeys) {
        let (one, two) = (hub.keys.clone(), hub.other_process());
        let (one, two) = tokio::join!(one.ensure_operator(), two.ensure_operator());
        let shown: Vec<String> = [one.unwrap(), two.unwrap()].into_iter().flatten().collect();
        assert_eq!(shown.len(), 1, "of two processes that start at once, one makes it");
        let operator = authenticate(&hub.keys, &shown[0]).await.unwrap();
        assert!(operator.is_operator());
        assert_eq!(hub.keys.ensure_operator().await.unwrap(), None);
        hub.keys.revoke(&operator, &operator.key_id.clone(), "").await.unwrap();
        assert_eq!(hub.keys.ensure_operator().await.unwrap(), None, "also once it was revoked");
    }

    async fn an_unknown_key_is_recognised_as_soon_as_this_process_hears_of_a_new_one(
        hub: TestKeys
    ) {
        let (plaintext, created) = (crate::Plaintext::generate().unwrap(), hub.create(&[]).await);
        let unknown = authenticate(&hub.keys, plaintext.expose()).await.unwrap_err();
        assert_eq!(unknown.reason(), "KEY_NOT_RECOGNIZED");
        assert!(unknown.metadata().is_empty(), "nothing more is told");
        let mut tx = hub.core.db.begin().await.unwrap();
        let key = crate::Key { key_id: "key_new".into(), ..created.key };
        store::insert(&mut tx, &hub.tenant, &key, &plaintext.hash()).await.unwrap();
        tx.commit().await.unwrap();
        // What the log of the hub tells each process when a key is made, wherever that is.
        hub.keys.lookup.made();
        authenticate(&hub.keys, plaintext.expose()).await.unwrap();
    }
}

fn caller_of(tenant: &TenantRef) -> Caller {
    caller(Some(tenant), &["hub:*"])
}

async fn prepare(hub: &TestKeys, sql: Sql) {
    if hub.core.db.is_postgres() {
        let mut connection = sqlx::PgConnection::connect(&hub.url).await.unwrap();
        connection
            .prepare(SqlStr::from_static(sql.text(true)))
            .await
            .unwrap();
    } else {
        let mut connection = sqlx::SqliteConnection::connect(&hub.url).await.unwrap();
        connection
            .prepare(SqlStr::from_static(sql.text(false)))
            .await
            .unwrap();
    }
}
