//! Decisions, and what is kept of them.

use std::time::Duration;

use hub_core::auth;
use hub_core::storage::Sql;

use super::*;
use crate::decision::Asked;
use crate::limits::{Attempt, Limit, Subject};
use crate::verify::Question;

/// May a key read tickets of PSA?
pub fn tickets(key: &Created) -> Question {
    Question {
        key: key.plaintext.expose().to_owned(),
        asked: Asked {
            product: "psa".into(),
            scope: "psa:tickets.read".into(),
            host: String::new(),
            path: String::new(),
            client: None,
        },
        cost: 1,
        dry_run: false,
    }
}

both_databases! {
    async fn what_never_fits_is_told_no_time_and_what_fits_later_is(hub: TestKeys) {
        let (key, all) = (hub.create(&["psa:*"]).await, caller(None, &["hub:*"]));
        let limit = hub.core.limits.tenant_requests_per_minute;
        let verify = async |cost| {
            let question = Question { cost, ..tickets(&key) };
            hub.keys.verify(&all, &question).await.unwrap()
        };
        let never = verify(limit + 1).await;
        let refusal = never.refusal.unwrap();
        assert_eq!((refusal.reason(), never.retry_after), ("RATE_LIMITED", None));
        assert!(refusal.message().contains("it never fits"), "{refusal}");
        assert!(verify(limit).await.refusal.is_none(), "what was denied is not counted");
        let later = verify(limit).await;
        assert!(later.refusal.is_some() && later.retry_after.is_some());
    }

    async fn known_keys_pass_for_five_seconds_after_the_database_went_away(hub: TestKeys) {
        let new = NewKey { scopes: texts(&["psa:*"]), product: "psa".into(), ..named("known") };
        let key = hub.keys.create(&hub.administrator(), new, None).await.unwrap();
        let (key, all) = (key.first().unwrap(), caller(None, &["hub:*"]));
        let call = async || {
            let caller = hub.authenticate(&key).await?;
            auth::check_subscription(&caller, &hub.core.tenancy).await?;
            hub.keys.verify(&all, &tickets(&key)).await
        };
        assert!(call().await.unwrap().refusal.is_none());
        hub.core.db.close().await;
        for _ in 0..2 {
            hub.core.clock.advance(Duration::from_secs(2));
            assert!(call().await.unwrap().refusal.is_none());
        }
        hub.core.clock.advance(Duration::from_secs(1));
        assert_eq!(call().await.err().unwrap().reason(), "STORE_BUSY");
    }

    async fn of_a_refusal_the_path_is_kept_without_its_query(hub: TestKeys) {
        let key = hub.create(&["crm:*"]).await;
        for (path, kept) in [("/t?key=secret", "/t"), ("/t#secret", "/t"), ("?secret", "")] {
            let mut question = tickets(&key);
            question.asked.path = path.to_owned();
            let verdict = hub.keys.verify(&hub.administrator(), &question).await.unwrap();
            assert_eq!(verdict.refusal.unwrap().reason(), "PRODUCT_MISMATCH");
            hub.keys.write_counts().await.unwrap();
            let denial = hub.keys.denials.find(&hub.core.db, &verdict.call_id).await.unwrap();
            assert_eq!(denial.unwrap().path, kept);
        }
    }
}

/// Only PostgreSQL can hang.
#[tokio::test]
async fn known_keys_pass_while_the_database_hangs() {
    let hub = TestKeys::open(true).await;
    let (key, all) = (hub.create(&["psa:*"]).await, caller(None, &["hub:*"]));
    let allowed = async || {
        let verdict = hub.keys.verify(&all, &tickets(&key)).await.unwrap();
        verdict.refusal.is_none()
    };
    assert!(allowed().await);
    let mut blocking = hub.core.db.begin().await.unwrap();
    let lock = Sql::same("lock table journal_heads in access exclusive mode");
    blocking.query(lock).execute().await.unwrap();
    hub.core.clock.advance(Duration::from_secs(2));
    assert!(allowed().await);
}

/// On SQLite there is nobody to ask.
#[tokio::test]
async fn while_the_database_is_away_all_that_wait_for_limits_are_told_at_once() {
    let hub = TestKeys::open(true).await;
    let mut waiting = Vec::new();
    for number in 0..200 {
        let limit = Limit {
            subject: Subject::Tenant(number),
            per_minute: 100,
            key_id: None,
        };
        match hub.keys.limiter.take(&[limit], 1, false, START) {
            Attempt::Asks(asks) => waiting.extend(asks),
            Attempt::Decided(taken) => panic!("{taken:?}"),
        }
    }
    hub.core.db.close().await;
    assert!(hub.keys.settle_next().await);
    assert!(
        !hub.keys.settle_next().await,
        "some wait for another transaction"
    );
    for mut told in waiting {
        assert!(told.changed().await.is_err(), "it only ends");
    }
}
