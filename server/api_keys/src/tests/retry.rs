//! A call with a request_id is done once.

use std::time::Duration;

use hub_core::replay::Call;
use hub_proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest};

use super::*;
use crate::keys::CREATE;
use crate::store::{self, Filter};

const UUID: &str = "6f1c2a52-93c5-4d6e-8a1b-0123456789ab";

fn call(caller: &Caller, name: &str, request_id: &str) -> Option<Call> {
    let api_key = Some(ApiKey {
        name: name.to_owned(),
        ..ApiKey::default()
    });
    let request = CreateApiKeyRequest {
        api_key,
        request_id: String::new(),
    };
    Call::new(caller, CREATE, request_id, &request)
}

async fn create(hub: &TestKeys, caller: &Caller, name: &str, id: &str) -> Result<Created> {
    hub.keys
        .create(caller, named(name), call(caller, name, id))
        .await
}

async fn count(hub: &TestKeys) -> usize {
    let all = Filter {
        active: true,
        ..Filter::default()
    };
    store::list(&hub.core.db, &hub.tenant, &all, None, START, 100)
        .await
        .unwrap()
        .len()
}

both_databases! {
    async fn a_retry_gets_the_same_key_and_for_ten_minutes_the_plaintext(hub: TestKeys) {
        let caller = hub.administrator();
        let first = create(&hub, &caller, "one", UUID).await.unwrap();
        let again = create(&hub, &caller, "one", &UUID.to_uppercase()).await.unwrap();
        assert_eq!(again.key, first.key);
        assert_eq!(again.plaintext, first.plaintext);
        assert!(again.plaintext.is_some());
        hub.core.clock.advance(Duration::from_secs(600));
        let late = create(&hub, &caller, "one", UUID).await.unwrap();
        assert_eq!(late.key, first.key);
        assert_eq!(late.plaintext, None);
        assert_eq!(count(&hub).await, 1);
    }

    async fn another_request_with_the_same_id_is_refused_with_the_time_of_the_first(hub: TestKeys) {
        let caller = hub.administrator();
        create(&hub, &caller, "one", UUID).await.unwrap();
        hub.core.clock.advance(Duration::from_secs(3600));
        let error = create(&hub, &caller, "two", UUID).await.unwrap_err();
        assert_eq!(error.reason(), "REQUEST_ID_REUSED");
        assert!(error.metadata().contains(&("firstUsedAt", "2026-01-01T00:00:00Z".to_owned())));
        assert_eq!(count(&hub).await, 1);
    }

    async fn an_id_belongs_to_its_caller_and_its_tenant(hub: TestKeys) {
        let caller = hub.administrator();
        let other = Caller { key_id: "key_other".into(), ..hub.administrator() };
        let first = create(&hub, &caller, "one", UUID).await.unwrap();
        let second = create(&hub, &other, "one", UUID).await.unwrap();
        assert_ne!(first.key.key_id, second.key.key_id);
        let elsewhere = add_tenant(&hub.core, "Beta").await;
        let moved = Caller { tenant: Some(elsewhere), ..caller };
        let error = create(&hub, &moved, "one", UUID).await.unwrap_err();
        assert_eq!(error.reason(), "REQUEST_ID_REUSED");
    }

    async fn after_a_day_the_id_is_free_again(hub: TestKeys) {
        let caller = hub.administrator();
        let first = create(&hub, &caller, "one", UUID).await.unwrap();
        hub.core.clock.advance(Duration::from_secs(24 * 3600));
        let second = create(&hub, &caller, "two", UUID).await.unwrap();
        assert_ne!(first.key.key_id, second.key.key_id);
        assert_eq!(create(&hub, &caller, "two", UUID).await.unwrap().key, second.key);
    }

    async fn an_error_is_not_remembered(hub: TestKeys) {
        let caller = hub.administrator();
        let past = NewKey { expire_time: Some(START), ..named("one") };
        let error = hub.keys.create(&caller, past, call(&caller, "one", UUID)).await.unwrap_err();
        assert_eq!(error.reason(), "FIELD_INVALID");
        create(&hub, &caller, "two", UUID).await.unwrap();
    }

    async fn of_many_retries_at_once_one_makes_the_key(hub: TestKeys) {
        let (keys, caller) = (hub.keys.clone(), hub.administrator());
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (keys, caller) = (keys.clone(), caller.clone());
                let call = call(&caller, "one", UUID);
                tokio::spawn(async move { keys.create(&caller, named("one"), call).await })
            })
            .collect();
        let mut made = Vec::new();
        for task in tasks {
            made.push(task.await.unwrap().unwrap());
        }
        assert!(made.iter().all(|one| one.key == made[0].key));
        assert!(made.iter().all(|one| one.plaintext == made[0].plaintext));
        assert_eq!(count(&hub).await, 1);
    }
}
