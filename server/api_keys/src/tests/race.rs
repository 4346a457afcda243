//! A revoked key is refused by the next call, whatever was looked up before.

use hub_core::auth::{Authenticator, KeyIssuer};
use hub_core::clock::micros;
use hub_core::journal::{Log, lock_head};
use hub_core::storage::Sql;

use super::*;
use crate::Key;
use crate::key::Revocation;
use crate::lookup::WAITING_MAX;
use crate::rotate::{GRACE, Rotation};
use crate::store;
use crate::update::NewValues;

/// What takes longer has failed.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// After it no look-up finds a key: what still works is in memory.
const NO_KEYS: Sql = Sql::same("delete from api_keys");

async fn execute(hub: &TestKeys, statements: &[Sql]) {
    let mut tx = hub.core.db.begin().await.unwrap();
    for sql in statements {
        tx.query(*sql).execute().await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// Calls that change a key of a tenant, or make one.
async fn changes(
    keys: &Arc<Keys>,
    act: &str,
    caller: &Caller,
    (tenant, key_id): (&TenantRef, &str),
) -> Result<()> {
    let rotation = Rotation {
        key_id: key_id.to_owned(),
        grace: GRACE,
        retry: None,
    };
    let named_late = NewValues {
        name: Some("late".to_owned()),
        ..NewValues::default()
    };
    let new = NewKey {
        scopes: texts(&["psa:tickets.read"]),
        ..named("mine")
    };
    match act {
        "create" => keys.create(caller, new, None).await.map(drop),
        "rotate" => keys.rotate(caller, rotation).await.map(drop),
        "update" => keys.update(caller, key_id, named_late).await.map(drop),
        "revoke" => keys.revoke(caller, key_id, "").await.map(drop),
        "limit" => keys.limit_key(caller, key_id, 7).await.map(drop),
        _ => {
            let mut tx = keys.core.db.begin().await?;
            let issued = keys.issue_administrator(&mut tx, tenant, &caller.key_id);
            issued.await.map(drop)
        }
    }
}

/// A process that has a key in memory and the system log read to its end.
struct Follower {
    keys: Arc<Keys>,
    created: Created,
    log: Arc<Log>,
    at: u64,
}

impl Follower {
    async fn of(keys: Arc<Keys>, created: Created) -> Self {
        let log = keys.system_log().await.unwrap();
        let at = crate::follow::catch_up(&keys, &log, 0).await.unwrap();
        let follower = Follower {
            keys,
            created,
            log,
            at,
        };
        follower.authenticate().await.unwrap();
        follower
    }

    async fn authenticate(&self) -> Result<Caller> {
        authenticate(&self.keys, self.created.plaintext.expose()).await
    }

    /// Asks for the end of the log, and returns how many events there are more.
    async fn renew(&self) -> u64 {
        let renewed = crate::follow::renew(&self.keys, &self.log, self.at).await;
        renewed.unwrap() - self.at
    }
}

both_databases! {
    async fn a_cached_key_is_refused_by_the_call_after_its_revocation(hub: TestKeys) {
        let created = hub.create(&["psa:*"]).await;
        hub.authenticate(&created).await.unwrap();
        hub.authenticate(&created).await.unwrap();
        hub.keys.revoke(&hub.administrator(), &created.key.key_id, "leaked").await.unwrap();
        let error = hub.authenticate(&created).await.unwrap_err();
        assert_eq!(error.reason(), "KEY_REVOKED");
        assert!(error.metadata().contains(&("keyId", created.key.key_id.clone())));
        assert!(error.metadata().contains(&("revokedAt", "2026-01-01T00:00:00Z".to_owned())));
    }

    async fn a_look_up_that_began_before_a_revocation_is_not_believed_after_it(hub: TestKeys) {
        let created = hub.create(&[]).await;
        let hash = created.plaintext.hash();
        let fill = hub.keys.cache.begin(START);
        let (key, stored) = store::by_hashes(&hub.core.db, &[hash]).await.unwrap().remove(0);
        assert!(key.revocation.is_none(), "read while it still worked");
        hub.keys.revoke(&hub.administrator(), &key.key_id, "").await.unwrap();
        let known = hub.keys.cache.read(fill, stored, &key).unwrap();
        hub.keys.cache.finish(fill, &known);
        assert_eq!(hub.authenticate(&created).await.unwrap_err().reason(), "KEY_REVOKED");
    }

    async fn a_call_that_joins_a_look_up_begun_before_a_revocation_is_refused(hub: TestKeys) {
        let created = hub.create(&[]).await;
        let hash = created.plaintext.hash();
        let revoke = async {
            let caller = hub.administrator();
            hub.keys.revoke(&caller, &created.key.key_id, "").await.unwrap();
        };
        // The query found the key as it was; whoever waits for it is told what it is now.
        let found = hub.keys.lookup.find_while(&hash, revoke).await.unwrap().unwrap();
        assert_eq!(found.check_works(START).unwrap_err().reason(), "KEY_REVOKED");
        assert_eq!(hub.authenticate(&created).await.unwrap_err().reason(), "KEY_REVOKED");
    }

    async fn a_flood_of_unknown_keys_takes_no_memory_and_leaves_known_keys_alone(hub: TestKeys) {
        let created = hub.create(&[]).await;
        hub.authenticate(&created).await.unwrap();
        for round in 0..80u32 {
            // The known key is looked up again in the midst of 2 500 others.
            hub.core.clock.advance(hub.core.limits.key_cache_ttl);
            let mut calls = Vec::new();
            for number in 0..2_500u32 {
                let (lookup, mut hash) = (hub.keys.lookup.clone(), [7; 32]);
                hash[..4].copy_from_slice(&(round * 10_000 + number).to_be_bytes());
                calls.push(tokio::spawn(async move { lookup.find(&hash).await }));
            }
            hub.authenticate(&created).await.unwrap();
            for call in calls {
                assert!(call.await.unwrap().unwrap().is_none());
            }
            assert!(hub.keys.lookup.remembered() <= 10_000);
        }
    }

    async fn a_known_key_finds_a_place_in_a_full_queue_and_an_unknown_one_does_not(hub: TestKeys) {
        let created = hub.create(&[]).await;
        hub.authenticate(&created).await.unwrap();
        hub.core.clock.advance(hub.core.limits.key_cache_ttl);
        let unknown = |number: usize| {
            let mut hash = [7; 32];
            hash[..8].copy_from_slice(&number.to_be_bytes());
            hub.keys.lookup.wait(&hash)
        };
        let waiting: Vec<_> = (0..WAITING_MAX).map(|number| unknown(number).unwrap()).collect();
        assert_eq!(unknown(WAITING_MAX).unwrap_err().reason(), "STORE_BUSY");
        let known = hub.keys.lookup.wait(&created.plaintext.hash()).unwrap();
        assert!(known.borrow().is_none(), "it waits");
        let told: Vec<bool> = waiting.iter().map(|one| one.borrow().is_some()).collect();
        assert!(told.ends_with(&[false, true]), "the last one made room");
        let busy = waiting.last().unwrap().borrow().clone().unwrap().unwrap_err();
        assert_eq!(busy.reason(), "STORE_BUSY");
    }

    async fn a_key_that_was_made_a_moment_ago_elsewhere_works(hub: TestKeys) {
        let unknown = crate::Plaintext::generate().unwrap();
        let other = hub.other_process();
        for _ in 0..3 {
            let error = authenticate(&other, unknown.expose()).await.unwrap_err();
            assert_eq!(error.reason(), "KEY_NOT_RECOGNIZED");
        }
        let created = hub.create(&[]).await;
        authenticate(&other, created.plaintext.expose()).await.unwrap();
    }

    async fn what_another_process_changed_is_forgotten_by_following_its_log(hub: TestKeys) {
        let created = hub.create(&[]).await;
        let (other, key) = (hub.other_process(), created.plaintext.expose());
        let log = other.system_log().await.unwrap();
        let at = crate::follow::catch_up(&other, &log, 0).await.unwrap();
        authenticate(&other, key).await.unwrap();
        hub.keys.revoke(&hub.administrator(), &created.key.key_id, "").await.unwrap();
        authenticate(&other, key).await.unwrap();
        let caught_up = crate::follow::catch_up(&other, &log, at).await.unwrap();
        assert_eq!(caught_up, at + 1);
        assert_eq!(*other.epoch.borrow(), at + 1);
        assert_eq!(authenticate(&other, key).await.unwrap_err().reason(), "KEY_REVOKED");
    }

    async fn a_key_is_believed_as_long_as_the_end_of_the_log_is_asked_for(hub: TestKeys) {
        let follower = Follower::of(hub.other_process(), hub.create(&[]).await).await;
        execute(&hub, &[NO_KEYS]).await;
        for _ in 0..3 {
            hub.core.clock.advance(hub.core.limits.key_cache_ttl / 2);
            assert_eq!(follower.renew().await, 0);
            follower.authenticate().await.unwrap();
        }
        hub.core.clock.advance(hub.core.limits.key_cache_ttl);
        let refused = follower.authenticate().await.unwrap_err();
        assert_eq!(refused.reason(), "KEY_NOT_RECOGNIZED");
    }

    async fn a_key_grows_old_while_the_database_does_not_tell_the_end_of_the_log(hub: TestKeys) {
        let follower = Follower::of(hub.other_process(), hub.create(&[]).await).await;
        execute(&hub, &[NO_KEYS, Sql::same("alter table journal_heads rename to away")]).await;
        hub.core.clock.advance(hub.core.limits.key_cache_ttl / 2);
        assert_eq!(follower.renew().await, 0);
        follower.authenticate().await.unwrap();
        hub.core.clock.advance(hub.core.limits.key_cache_ttl / 2);
        let refused = follower.authenticate().await.unwrap_err();
        assert_eq!(refused.reason(), "KEY_NOT_RECOGNIZED");
    }

    async fn a_key_is_not_believed_after_the_database_was_put_back(hub: TestKeys) {
        let follower = Follower::of(hub.other_process(), hub.create(&[]).await).await;
        let back = Sql::same("update journal_heads set head = head - 1 where tenant_no = 0");
        execute(&hub, &[NO_KEYS, back]).await;
        follower.renew().await;
        let refused = follower.authenticate().await.unwrap_err();
        assert_eq!(refused.reason(), "KEY_NOT_RECOGNIZED");
    }

    async fn a_key_that_another_process_revoked_is_not_believed_for_longer(hub: TestKeys) {
        let follower = Follower::of(hub.other_process(), hub.create(&[]).await).await;
        hub.keys.revoke(&hub.administrator(), &follower.created.key.key_id, "").await.unwrap();
        assert_eq!(follower.renew().await, 1);
        assert_eq!(follower.authenticate().await.unwrap_err().reason(), "KEY_REVOKED");
    }

    async fn a_stream_that_asks_again_is_told_of_revocation_and_expiry(hub: TestKeys) {
        let end = START + 60_000_000;
        let new = NewKey { expire_time: Some(end), ..named("a minute") };
        let created = hub.keys.create(&hub.administrator(), new, None).await.unwrap();
        let created = created.first().unwrap();
        let caller = hub.authenticate(&created).await.unwrap();
        hub.keys.recheck(&caller).await.unwrap();
        hub.core.clock.advance(std::time::Duration::from_secs(60));
        let expired = hub.keys.recheck(&caller).await.unwrap_err();
        assert_eq!(expired.reason(), "KEY_EXPIRED");
        assert!(expired.metadata().contains(&("expiredAt", "2026-01-01T00:01:00Z".to_owned())));

        let created = hub.create(&[]).await;
        let caller = hub.authenticate(&created).await.unwrap();
        hub.keys.recheck(&caller).await.unwrap();
        hub.keys.revoke(&hub.administrator(), &created.key.key_id, "").await.unwrap();
        assert_eq!(hub.keys.recheck(&caller).await.unwrap_err().reason(), "KEY_REVOKED");
    }

    async fn another_process_refuses_a_revoked_key_once_its_cache_is_old(hub: TestKeys) {
        let created = hub.create(&[]).await;
        let (other, key) = (hub.other_process(), created.plaintext.expose());
        authenticate(&other, key).await.unwrap();
        hub.keys.revoke(&hub.administrator(), &created.key.key_id, "").await.unwrap();
        authenticate(&other, key).await.unwrap();
        hub.core.clock.advance(hub.core.limits.key_cache_ttl);
        assert_eq!(authenticate(&other, key).await.unwrap_err().reason(), "KEY_REVOKED");
        assert_eq!(micros(hub.core.limits.key_cache_ttl), 5_000_000, "as the contract promises");
    }

    async fn of_many_who_revoke_at_once_all_get_the_same_answer_and_one_event(hub: TestKeys) {
        let created = hub.create(&[]).await;
        let system = hub.core.journal.log(&TenantRef::system()).await.unwrap();
        let before = system.head().seq;
        let (keys, caller) = (hub.keys.clone(), hub.administrator());
        let tasks: Vec<_> = (0..8)
            .map(|number| {
                let (keys, caller) = (keys.clone(), caller.clone());
                let key_id = created.key.key_id.clone();
                tokio::spawn(async move {
                    keys.revoke(&caller, &key_id, &format!("reason {number}")).await
                })
            })
            .collect();
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap().unwrap().revocation.unwrap());
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        assert_eq!(answers[0].epoch, before + 1);
        assert_eq!(system.head().seq, before + 1);
    }

    async fn a_key_whose_rights_grow_meanwhile_is_not_rotated_revoked_or_limited_by_fewer(
        hub: TestKeys
    ) {
        for act in ["rotate", "revoke", "limit"] {
            let key = hub.create(&["psa:tickets.read"]).await.key;
            let mut tx = hub.core.db.begin().await.unwrap();
            lock_head(&mut tx, &TenantRef::system()).await.unwrap();
            let (keys, key_id) = (hub.keys.clone(), key.key_id.clone());
            let narrow = caller(Some(&hub.tenant), &["hub:keys.write", "psa:tickets.read"]);
            let task = tokio::spawn(async move {
                let rotation = Rotation { key_id: key_id.clone(), grace: GRACE, retry: None };
                match act {
                    "rotate" => keys.rotate(&narrow, rotation).await.map(drop),
                    "revoke" => keys.revoke(&narrow, &key_id, "").await.map(drop),
                    _ => keys.limit_key(&narrow, &key_id, 7).await.map(drop),
                }
            });
            // Meanwhile it looks at the key as it was, and then waits for the lock.
            for _ in 0..50 {
                hub.keys.get(&hub.administrator(), &key.key_id).await.unwrap();
            }
            let wider = Key { scopes: texts(&["psa:*"]), ..key };
            store::update(&mut tx, &hub.tenant, &wider).await.unwrap().unwrap();
            tx.commit().await.unwrap();
            let refused = task.await.unwrap().unwrap_err();
            assert_eq!(refused.reason(), "SCOPE_ESCALATION", "{act}");
            let key = hub.keys.get(&hub.administrator(), &wider.key_id).await.unwrap();
            assert_eq!(key.version, 2, "{act}");
        }
    }

    async fn a_key_that_ends_while_its_change_waits_is_not_changed(hub: TestKeys) {
        for act in ["rotate", "update"] {
            let expire_time = Some(hub.core.clock.now() + 60_000_000);
            let new = NewKey { expire_time, ..named("a minute") };
            let key = hub.keys.create(&hub.administrator(), new, None).await.unwrap();
            let key_id = key.first().unwrap().key.key_id;
            let mut tx = hub.core.db.begin().await.unwrap();
            lock_head(&mut tx, &TenantRef::system()).await.unwrap();
            let (keys, administrator) = (hub.keys.clone(), hub.administrator());
            let target = key_id.clone();
            let task = tokio::spawn(async move {
                let rotation = Rotation { key_id: target.clone(), grace: GRACE, retry: None };
                let new = NewValues { name: Some("late".to_owned()), ..NewValues::default() };
                match act {
                    "rotate" => keys.rotate(&administrator, rotation).await.map(drop),
                    _ => keys.update(&administrator, &target, new).await.map(drop),
                }
            });
            // Meanwhile it looks at the key as it is, and then waits for the lock.
            for _ in 0..50 {
                hub.keys.get(&hub.administrator(), &key_id).await.unwrap();
            }
            hub.core.clock.advance(std::time::Duration::from_secs(60));
            drop(tx);
            assert_eq!(task.await.unwrap().unwrap_err().reason(), "KEY_STATE_INVALID", "{act}");
        }
    }

    async fn a_key_that_ends_or_is_narrowed_while_its_call_waits_changes_none(hub: TestKeys) {
        for (act, narrowed) in ["create", "rotate", "update", "revoke", "limit", "issue"]
            .into_iter()
            .flat_map(|act| [(act, false), (act, true)])
        {
            let (own, holder) = match act {
                // Which only an operator has.
                "issue" => {
                    let new = NewKey { all_tenants: true, scopes: texts(&["hub:*"]), ..named("o") };
                    let made = hub.keys.create(&caller(None, &["hub:*"]), new, None).await;
                    (made.unwrap().first().unwrap(), TenantRef::system())
                }
                _ => (hub.create(&["hub:*"]).await, hub.tenant.clone()),
            };
            let caller = hub.authenticate(&own).await.unwrap();
            let target = hub.create(&["psa:tickets.read"]).await.key;
            let mut tx = hub.core.db.begin().await.unwrap();
            lock_head(&mut tx, &TenantRef::system()).await.unwrap();
            let (keys, key_id, tenant) =
                (hub.keys.clone(), target.key_id.clone(), hub.tenant.clone());
            let task = tokio::spawn(async move {
                let called = changes(&keys, act, &caller, (&tenant, &key_id));
                called.await
            });
            // Meanwhile it is admitted, and then waits for the lock.
            for _ in 0..50 {
                hub.keys.get(&hub.administrator(), &target.key_id).await.unwrap();
            }
            let expected = match narrowed {
                true => {
                    let fewer = Key { scopes: texts(&["hub:keys.write"]), ..own.key };
                    store::update(&mut tx, &holder, &fewer).await.unwrap().unwrap();
                    "SCOPE_ESCALATION"
                }
                false => {
                    let revocation = Revocation {
                        time: hub.core.clock.now(),
                        by: "key_caller".to_owned(),
                        reason: "stolen".to_owned(),
                        epoch: 1,
                    };
                    let key_id = &own.key.key_id;
                    let ended = store::revoke(&mut tx, &holder, key_id, &revocation);
                    ended.await.unwrap().unwrap();
                    "KEY_REVOKED"
                }
            };
            tx.commit().await.unwrap();
            let refused = task.await.unwrap().unwrap_err();
            assert_eq!(refused.reason(), expected, "{act}");
            let kept = hub.keys.get(&hub.administrator(), &target.key_id).await.unwrap();
            assert_eq!(kept, target, "{act}");
        }
    }

    async fn a_limit_that_is_set_again_as_it_is_holds_nothing_while_it_asks(hub: TestKeys) {
        let mut operator = caller(None, &["hub:*"]);
        operator.tenant = Some(hub.tenant.clone());
        hub.keys.limit_tenant(&operator, 5).await.unwrap();
        // More than there are connections.
        let again = (0..8).map(|_| hub.keys.limit_tenant(&operator, 5));
        let all = futures_util::future::join_all(again);
        let all = tokio::time::timeout(std::time::Duration::from_secs(3), all).await;
        for answer in all.expect("none waits for a connection that another one holds") {
            answer.unwrap();
        }
    }

    async fn a_revocation_goes_on_when_its_caller_is_gone(hub: TestKeys) {
        let created = hub.create(&[]).await;
        hub.authenticate(&created).await.unwrap();
        let (administrator, key_id) = (hub.administrator(), created.key.key_id.clone());
        let mut call = Box::pin(hub.keys.revoke(&administrator, &key_id, ""));
        // Polled once, then dropped, as a call is whose client hangs up.
        let polled = std::future::poll_fn(|context| {
            std::task::Poll::Ready(call.as_mut().poll(context).is_pending())
        });
        assert!(polled.await);
        drop(call);
        let log = hub.core.journal.log(&TenantRef::system()).await.unwrap();
        let revoked = log.head().seq + 1;
        let mut heads = log.watch();
        let told = heads.wait_for(|head| head.seq >= revoked);
        drop(tokio::time::timeout(PATIENCE, told).await.expect("told in time").unwrap());
        // The event is shown just before the cache forgets the key, by the same task.
        let refused = async {
            loop {
                match hub.authenticate(&created).await {
                    Ok(_) => tokio::task::yield_now().await,
                    Err(error) => return error,
                }
            }
        };
        let error = tokio::time::timeout(PATIENCE, refused).await.expect("refused in time");
        assert_eq!(error.reason(), "KEY_REVOKED");
    }
}

#[tokio::test]
async fn a_process_that_hears_nothing_asks_what_another_one_revoked() {
    let hub = TestKeys::open(true).await;
    // With a journal of its own, and nothing that listens for it.
    let other = keys(&core(&hub.url, hub.core.clock.clone()).await);
    let follower = Follower::of(other, hub.create(&[]).await).await;
    let key_id = &follower.created.key.key_id;
    let revoked = hub.keys.revoke(&hub.administrator(), key_id, "").await;
    revoked.unwrap();
    assert_eq!(follower.renew().await, 1);
    let refused = follower.authenticate().await.unwrap_err();
    assert_eq!(refused.reason(), "KEY_REVOKED");
}
