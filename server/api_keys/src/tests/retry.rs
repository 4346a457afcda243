//! A call with a request_id is done once.

use std::time::Duration;

use hub_core::replay::{self, Call, Done, Retry};
use hub_core::storage::Sql;
use hub_proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest};

use super::*;
use crate::key::Key;
use crate::keys::CREATE;
use crate::store::{self, Filter};

const UUID: &str = "6f1c2a52-93c5-4d6e-8a1b-0123456789ab";

/// What a caller is answered: of which key, with which secret.
type Told = (String, Option<String>);

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

async fn create_at(keys: &Keys, caller: &Caller, name: &str, id: &str) -> Result<Told> {
    let message = |key: &Key| key.key_id.clone().into_bytes();
    let message = &message;
    let retry = call(caller, name, id).map(|call| Retry { call, message });
    Ok(match keys.create(caller, named(name), retry).await? {
        Done::First(made) => (made.key.key_id, Some(made.plaintext.expose().to_owned())),
        Done::Again(before) => (String::from_utf8(before.message).unwrap(), before.secret),
    })
}

async fn create(hub: &TestKeys, caller: &Caller, name: &str, id: &str) -> Result<Told> {
    create_at(&hub.keys, caller, name, id).await
}

/// What is stored of secrets.
async fn stored_secrets(hub: &TestKeys) -> Vec<Vec<u8>> {
    let all = Sql::same("select secret from replays where secret is not null");
    let rows: Vec<(Vec<u8>,)> = hub.core.db.query(all).all().await.unwrap();
    rows.into_iter().map(|(secret,)| secret).collect()
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
    async fn a_retry_gets_the_same_answer_and_for_ten_minutes_the_plaintext(hub: TestKeys) {
        let caller = hub.administrator();
        let first = create(&hub, &caller, "one", UUID).await.unwrap();
        assert!(first.1.is_some());
        assert_eq!(create(&hub, &caller, "one", &UUID.to_uppercase()).await.unwrap(), first);
        hub.core.clock.advance(Duration::from_micros(599_999_999));
        assert_eq!(create(&hub, &caller, "one", UUID).await.unwrap(), first);
        hub.core.clock.advance(Duration::from_micros(1));
        // No worker runs here: what is still stored is not answered.
        assert_eq!(stored_secrets(&hub).await.len(), 1);
        let late = create(&hub, &caller, "one", UUID).await.unwrap();
        assert_eq!(late, (first.0, None));
        assert_eq!(count(&hub).await, 1);
    }

    async fn another_process_gives_the_same_answer_with_the_plaintext(hub: TestKeys) {
        let caller = hub.administrator();
        let first = create(&hub, &caller, "one", UUID).await.unwrap();
        let there = create_at(&hub.other_process(), &caller, "one", UUID).await.unwrap();
        assert_eq!(there, first);
    }

    async fn the_plaintext_is_stored_sealed(hub: TestKeys) {
        let caller = hub.administrator();
        let (_, plaintext) = create(&hub, &caller, "one", UUID).await.unwrap();
        let stored = stored_secrets(&hub).await;
        let secret = &plaintext.unwrap()[4..];
        assert!(!stored[0].windows(secret.len()).any(|part| part == secret.as_bytes()));
        let again = create(&hub, &caller, "two", &UUID.replace('6', "7")).await.unwrap();
        assert_ne!(stored_secrets(&hub).await[0], stored_secrets(&hub).await[1]);
        assert!(again.1.is_some());
    }

    async fn the_worker_deletes_secrets_after_ten_minutes_and_answers_after_a_day(hub: TestKeys) {
        let caller = hub.administrator();
        create(&hub, &caller, "one", UUID).await.unwrap();
        replay::work(hub.core.workers(), &hub.core.db, &hub.core.clock);
        let left = Sql::same("select count(*), count(secret) from replays");
        for (after, expected) in [(600, (1, 0)), (24 * 3600, (0, 0))] {
            hub.core.clock.advance(Duration::from_secs(after));
            loop {
                let now: (i64, i64) = hub.core.db.query(left).one().await.unwrap();
                if now == expected {
                    break;
                }
                // The worker may have begun its pause only after the time was moved.
                hub.core.clock.advance(Duration::from_secs(1));
                tokio::task::yield_now().await;
            }
        }
        hub.core.workers().stop().await;
    }

    async fn a_secret_opens_in_its_own_answer_only(hub: TestKeys) {
        let caller = hub.administrator();
        create(&hub, &caller, "one", UUID).await.unwrap();
        let moved = Sql::same("update replays set request_id = $1");
        let other = UUID.replace('6', "7");
        let mut tx = hub.core.db.begin().await.unwrap();
        tx.query(moved).bind(other.clone()).execute().await.unwrap();
        tx.commit().await.unwrap();
        let error = create(&hub, &caller, "one", &other).await.unwrap_err();
        assert_eq!(error.reason(), "INTERNAL");
    }

    async fn an_answer_stays_as_it_was_whatever_becomes_of_its_effect(hub: TestKeys) {
        let caller = hub.administrator();
        let first = create(&hub, &caller, "one", UUID).await.unwrap();
        hub.keys.revoke(&caller, &first.0, "").await.unwrap();
        assert_eq!(create(&hub, &caller, "one", UUID).await.unwrap(), first);
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
        assert_ne!(first.0, second.0);
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
        assert_ne!(first.0, second.0);
        assert_eq!(create(&hub, &caller, "two", UUID).await.unwrap(), second);
    }

    async fn a_retry_is_answered_also_when_the_key_has_expired(hub: TestKeys) {
        let caller = hub.administrator();
        let message = |key: &Key| key.key_id.clone().into_bytes();
        let message = &message;
        let create = async || {
            let new = NewKey { expire_time: Some(START + 60_000_000), ..named("one") };
            let retry = call(&caller, "one", UUID).map(|call| Retry { call, message });
            hub.keys.create(&caller, new, retry).await
        };
        let first = create().await.unwrap().first().unwrap();
        hub.core.clock.advance(Duration::from_secs(60));
        let Done::Again(answer) = create().await.unwrap() else { panic!("done twice") };
        assert_eq!(answer.message, first.key.key_id.as_bytes());
    }

    async fn an_error_is_not_remembered(hub: TestKeys) {
        let caller = hub.administrator();
        let past = NewKey { expire_time: Some(START), ..named("one") };
        let message = |_: &Key| Vec::new();
        let message = &message;
        let retry = call(&caller, "one", UUID).map(|call| Retry { call, message });
        let error = hub.keys.create(&caller, past, retry).await.unwrap_err();
        assert_eq!(error.reason(), "FIELD_INVALID");
        create(&hub, &caller, "two", UUID).await.unwrap();
    }

    async fn of_many_retries_at_once_one_makes_the_key(hub: TestKeys) {
        let (keys, caller) = (hub.keys.clone(), hub.administrator());
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (keys, caller) = (keys.clone(), caller.clone());
                tokio::spawn(async move { create_at(&keys, &caller, "one", UUID).await })
            })
            .collect();
        let mut made = Vec::new();
        for task in tasks {
            made.push(task.await.unwrap().unwrap());
        }
        assert!(made.iter().all(|one| *one == made[0] && one.1.is_some()));
        assert_eq!(count(&hub).await, 1);
    }
}
