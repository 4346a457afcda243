//! WatchApiKeys: which decisions must not be used again.

use std::time::Duration;

use hub_client::proto::hub::api_keys::v1::watch_api_keys_response::Frame;
use hub_client::proto::hub::api_keys::v1::{
    ApiKey, ApiKeyChanges, RotateApiKeyRequest, UpdateApiKeyRequest, WatchApiKeysRequest,
    WatchApiKeysResponse,
};
use hub_client::proto::hub::platform::v1::SetProductSubscriptionRequest;
use hub_client::{Error, Hub};
use hub_proto::hub::core::v1::ClosingReason;
use tonic::Streaming;

use super::verify::{self, backend, tickets, verify};
use super::{create, new_key, revoke};
use crate::durability::load;
use crate::durability::postgres::Server;
use crate::support::{Backend, Command, Database, TestHub, TestProcess};

/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// A stream is silent that says nothing for so long; a heartbeat comes each second.
const SILENCE: Duration = Duration::from_secs(5);
/// Heartbeats of a process that was cut off: it believes for 1.5 s that it lives.
const LAST_HEARTBEATS_MAX: usize = 3;

async fn watch(client: &Hub, cursor: &str) -> Streaming<WatchApiKeysResponse> {
    let request = WatchApiKeysRequest {
        cursor: cursor.to_owned(),
    };
    client
        .api_keys()
        .watch_api_keys(request)
        .await
        .unwrap()
        .into_inner()
}

async fn next(stream: &mut Streaming<WatchApiKeysResponse>) -> Frame {
    let frame = tokio::time::timeout(PATIENCE, stream.message()).await;
    frame
        .expect("a frame in time")
        .unwrap()
        .unwrap()
        .frame
        .unwrap()
}

/// The next change; heartbeats are passed over.
async fn change(stream: &mut Streaming<WatchApiKeysResponse>) -> ApiKeyChanges {
    loop {
        match next(stream).await {
            Frame::Changes(changes) => return changes,
            Frame::Progress(_) | Frame::CaughtUp(_) | Frame::Opened(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

both_databases! {
    async fn a_watcher_is_told_of_a_revocation_with_its_epoch(hub: TestHub) {
        let (verifier, admin) = (backend(&hub).await, hub.client(&hub.first_tenant().admin_key));
        let made = create(&admin, new_key("watched", &["psa:*"])).await.unwrap();
        let key_id = made.api_key.unwrap().key_id;
        let mut stream = watch(&verifier, "").await;
        let Frame::Opened(opened) = next(&mut stream).await else { panic!("not opened") };
        assert_eq!(opened.heartbeat_interval.unwrap().seconds, 1);
        assert!(matches!(next(&mut stream).await, Frame::CaughtUp(_)));
        let began = std::time::Instant::now();
        let revoked = revoke(&admin, &key_id, "leaked").await.unwrap();
        let told = change(&mut stream).await;
        assert_eq!(told.key_ids, [key_id.as_str()]);
        assert_eq!(told.epoch, revoked.epoch);
        assert_eq!(told.tenant_id, hub.first_tenant().id);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        loop {
            // Decisions know the revocation as soon as they say so.
            let decided = verify(&verifier, tickets(&made.plaintext)).await.unwrap();
            assert!(!decided.allowed);
            if decided.epoch >= told.epoch {
                break;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn a_watcher_is_told_of_rotations_changes_and_ended_subscriptions(hub: TestHub) {
        let (verifier, admin) = (backend(&hub).await, hub.client(&hub.first_tenant().admin_key));
        let made = create(&admin, new_key("watched", &["psa:*"])).await.unwrap();
        let key_id = made.api_key.unwrap().key_id;
        let mut stream = watch(&verifier, "").await;
        let request = RotateApiKeyRequest {
            key_id: key_id.clone(),
            ..RotateApiKeyRequest::default()
        };
        admin.api_keys().rotate_api_key(request).await.unwrap();
        assert_eq!(change(&mut stream).await.key_ids, [key_id.as_str()]);
        let request = SetProductSubscriptionRequest {
            product: "voice".to_owned(),
            active: false,
            ..SetProductSubscriptionRequest::default()
        };
        admin.platform().set_product_subscription(request).await.unwrap();
        let told = change(&mut stream).await;
        assert_eq!(told.key_ids, ["*"]);
        assert_eq!(told.tenant_id, hub.first_tenant().id);
    }

    async fn a_tenant_s_watcher_sees_its_tenant_only(hub: TestHub) {
        let other = hub.tenant().await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let watcher = hub.client(&hub.key("psa", &["hub:keys.verify"]).await);
        let mut stream = watch(&watcher, "").await;
        let theirs = hub.client(&other.admin_key);
        let foreign = create(&theirs, new_key("theirs", &[])).await.unwrap();
        revoke(&theirs, &foreign.api_key.unwrap().key_id, "").await.unwrap();
        let own = create(&admin, new_key("ours", &[])).await.unwrap().api_key.unwrap();
        revoke(&admin, &own.key_id, "").await.unwrap();
        let told = change(&mut stream).await;
        assert_eq!(told.key_ids, [own.key_id.as_str()], "new keys are no news, others nobody's");
    }

    async fn a_cursor_resumes_and_a_foreign_one_is_refused(hub: TestHub) {
        let (verifier, admin) = (backend(&hub).await, hub.client(&hub.first_tenant().admin_key));
        let mut stream = watch(&verifier, "").await;
        let Frame::Opened(opened) = next(&mut stream).await else { panic!("not opened") };
        drop(stream);
        let made = create(&admin, new_key("missed", &[])).await.unwrap().api_key.unwrap();
        revoke(&admin, &made.key_id, "").await.unwrap();
        let mut stream = watch(&verifier, &opened.cursor).await;
        let told = change(&mut stream).await;
        assert_eq!(told.key_ids, [made.key_id.as_str()]);
        let mut again = watch(&verifier, &told.cursor).await;
        assert!(matches!(next(&mut again).await, Frame::Opened(_)));
        assert!(matches!(next(&mut again).await, Frame::CaughtUp(_)));
        let watcher = hub.client(&hub.key("psa", &["hub:keys.verify"]).await);
        let request = WatchApiKeysRequest { cursor: told.cursor };
        let foreign = watcher.api_keys().watch_api_keys(request).await.unwrap_err();
        assert_eq!(hub_client::Error::from(foreign).reason(), Some("CURSOR_INVALID"));
    }

    async fn a_heartbeat_comes_each_second_until_the_key_ends(backend: Backend) {
        // The clock of this test runs fast.
        let hub = TestHub::options(backend)
            .limits(|limits| limits.stream_age_max = Duration::from_secs(1 << 30));
        let hub = hub.manual_clock().start().await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let made = create(&admin, new_key("watcher", &["hub:keys.verify"])).await.unwrap();
        let watcher = hub.client(&made.plaintext);
        let mut stream = watch(&watcher, "").await;
        assert!(matches!(next(&mut stream).await, Frame::Opened(_)));
        assert!(matches!(next(&mut stream).await, Frame::CaughtUp(_)));
        for _ in 0..3 {
            let ticking = async {
                loop {
                    hub.clock.advance(Duration::from_millis(500));
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                frame = next(&mut stream) => {
                    assert!(matches!(frame, Frame::Progress(_)), "{frame:?}");
                }
                () = ticking => {}
            }
        }
        revoke(&admin, &made.api_key.unwrap().key_id, "").await.unwrap();
        let error = ended(&hub, &mut stream).await;
        assert_eq!(error.reason(), Some("KEY_REVOKED"));
    }

    async fn a_key_that_may_not_verify_any_more_watches_no_more(backend: Backend) {
        let hub = TestHub::options(backend)
            .limits(|limits| limits.stream_age_max = Duration::from_secs(1 << 30));
        let hub = hub.manual_clock().start().await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let made = create(&admin, new_key("watcher", &["hub:keys.verify"])).await.unwrap();
        let mut stream = watch(&hub.client(&made.plaintext), "").await;
        assert!(matches!(next(&mut stream).await, Frame::Opened(_)));
        assert!(matches!(next(&mut stream).await, Frame::CaughtUp(_)));
        let key_id = made.api_key.unwrap().key_id;
        let api_key = ApiKey { key_id, ..new_key("watcher", &["hub:keys.read"]) };
        let request = UpdateApiKeyRequest {
            api_key: Some(api_key),
            ..UpdateApiKeyRequest::default()
        };
        admin.api_keys().update_api_key(request).await.unwrap();
        let error = ended(&hub, &mut stream).await;
        assert_eq!(error.reason(), Some("SCOPE_MISSING"));
        assert_eq!(error.metadata()["missingScope"], "hub:keys.verify");
    }

    async fn a_revocation_is_pushed_at_once_and_waits_for_no_heartbeat(backend: Backend) {
        // Time stands still: what waits for a moment never comes.
        let hub = TestHub::options(backend).manual_clock().start().await;
        let verifier = verify::backend(&hub).await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let made = create(&admin, new_key("leaked", &["psa:*"])).await.unwrap().api_key.unwrap();
        let mut stream = watch(&verifier, "").await;
        assert!(matches!(next(&mut stream).await, Frame::Opened(_)));
        assert!(matches!(next(&mut stream).await, Frame::CaughtUp(_)));
        let before = hub.clock.now();
        revoke(&admin, &made.key_id, "").await.unwrap();
        let Frame::Changes(told) = next(&mut stream).await else { panic!("a change comes first") };
        assert_eq!(told.key_ids, [made.key_id.as_str()]);
        assert_eq!(hub.clock.now(), before);
    }

    async fn a_stopping_server_closes_a_watch_that_goes_on_at_the_next_one(mut hub: TestHub) {
        let key = hub.key("psa", &["hub:keys.verify"]).await;
        let mut stream = watch(&hub.client(&key), "").await;
        assert!(matches!(next(&mut stream).await, Frame::Opened(_)));
        let closing = async {
            loop {
                match next(&mut stream).await {
                    Frame::Closing(closing) => return closing,
                    Frame::CaughtUp(_) | Frame::Progress(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        let (closing, ()) = tokio::join!(closing, hub.stop());
        assert_eq!(closing.reason(), ClosingReason::Draining);
        hub.restart().await;
        let admin = hub.client(&hub.first_tenant().admin_key);
        let made = create(&admin, new_key("leaked", &["psa:*"])).await.unwrap().api_key.unwrap();
        revoke(&admin, &made.key_id, "").await.unwrap();
        let mut stream = watch(&hub.client(&key), &closing.cursor).await;
        assert_eq!(change(&mut stream).await.key_ids, [made.key_id.as_str()]);
    }

    async fn a_watch_of_full_age_asks_to_reconnect(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let key = hub.key("psa", &["hub:keys.verify"]).await;
        let mut stream = watch(&hub.client(&key), "").await;
        let closing = async {
            loop {
                if let Frame::Closing(closing) = next(&mut stream).await {
                    return closing;
                }
            }
        };
        let ticking = async {
            loop {
                hub.clock.advance(hub.core.limits.stream_age_max / 10);
                tokio::task::yield_now().await;
            }
        };
        let closing = tokio::select! {
            closing = closing => closing,
            () = ticking => unreachable!(),
        };
        assert_eq!(closing.reason(), ClosingReason::MaxAge);
        let mut stream = watch(&hub.client(&key), &closing.cursor).await;
        assert!(matches!(next(&mut stream).await, Frame::Opened(_)));
    }
}

/// The error that ends a stream, while time passes.
async fn ended(hub: &TestHub, stream: &mut Streaming<WatchApiKeysResponse>) -> Error {
    let ended = async {
        loop {
            if let Err(status) = stream.message().await {
                return Error::from(status);
            }
        }
    };
    let ticking = async {
        loop {
            hub.clock.advance(Duration::from_millis(500));
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        error = ended => error,
        () = ticking => unreachable!(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_cut_off_from_its_database_sends_no_heartbeat() {
    let server = Server::start();
    let database = Database::at(server.url.clone());
    let process = TestProcess::start_on(Command::Serve, database, &[]).await;
    let operator_key = process.ready["operatorKey"].as_str().unwrap();
    let operator = load::client(process.addr(), operator_key);
    let verifier = ApiKey {
        all_tenants: true,
        ..new_key("backend", &["hub:keys.verify"])
    };
    let verifier = create(&operator, verifier).await.unwrap().plaintext;
    let verifier = load::client(process.addr(), &verifier);
    let mut stream = watch(&verifier, "").await;
    for _ in 0..4 {
        next(&mut stream).await;
    }
    server.kill();
    let mut last = 0;
    while let Ok(Ok(Some(_))) = tokio::time::timeout(SILENCE, stream.message()).await {
        last += 1;
    }
    assert!(last <= LAST_HEARTBEATS_MAX, "{last} heartbeats");
    server.start_again();
    let back = async {
        loop {
            let request = WatchApiKeysRequest::default();
            if let Ok(answer) = verifier.api_keys().watch_api_keys(request).await {
                let mut stream = answer.into_inner();
                while let Ok(Some(frame)) = stream.message().await {
                    if matches!(frame.frame, Some(Frame::Progress(_))) {
                        return;
                    }
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, back)
        .await
        .expect("it beats again");
}
