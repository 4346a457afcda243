//! Calls that one process passes on to another.

use std::sync::Arc;
use std::time::Duration;

use hub_client::proto::hub::api_keys::v1::api_keys_client::ApiKeysClient;
use hub_client::proto::hub::api_keys::v1::{ListApiKeysRequest, WhoAmIRequest};
use hub_client::proto::hub::event_bus::v1::SubscribeRequest;
use hub_client::proto::hub::event_bus::v1::event_bus_client::EventBusClient;
use hub_client::proto::hub::platform::v1::SetProductSubscriptionRequest;
use hub_core::auth::{Caller, Origin, Scopes, Span};
use hub_core::clock::Clock;
use hub_core::internal::{FORWARDED_HEADER, Internal, Target, VALID};
use hub_core::peers::Channel;
use hub_server::tls::Files;
use hub_server::{Config, Running};
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::live::{another, seen};
use crate::server::tls::Authority;
use crate::support::{Backend, Command, Database, TestHub, TestProcess, config, frame, post_grpc};

const WHO_AM_I: &str = "/hub.api_keys.v1.ApiKeys/WhoAmI";
/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A caller as the first process would have admitted it.
async fn caller(hub: &TestHub, scopes: &[&str]) -> Caller {
    let key = hub.key("psa", scopes).await;
    let asked = hub
        .client(&key)
        .api_keys()
        .who_am_i(WhoAmIRequest::default())
        .await;
    let asked = asked.unwrap().into_inner();
    Caller {
        key_id: asked.api_key.unwrap().key_id.into(),
        tenant: Some(hub.core.tenancy.find(&asked.tenant_id).await.unwrap()),
        product: Some("psa".into()),
        scopes: Scopes::new(scopes.iter().map(|scope| (*scope).to_owned())),
        all_tenants: false,
        origin: Origin::of_nothing(),
    }
}

/// Another server on the database of the first, with a configuration of its own.
async fn configured(hub: &TestHub, change: impl FnOnce(&mut Config)) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(hub.database_url());
    change(&mut config);
    let shutdown = CancellationToken::new();
    let started = hub_server::start(config, listener, Clock::system(), shutdown).await;
    started.unwrap()
}

async fn channel(hub: &TestHub, to: &Running, caller: &Caller) -> Channel {
    let reached = hub.core.peers.channel(to.core.processes.id(), caller).await;
    reached.unwrap()
}

/// The id of the key that the other process takes for the caller's.
async fn who_am_i(channel: Channel) -> Result<String, Status> {
    let mut keys = ApiKeysClient::new(channel);
    let answer = keys.who_am_i(WhoAmIRequest::default()).await?;
    Ok(answer.into_inner().api_key.unwrap().key_id)
}

fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_default()
}

both_databases! {
    async fn what_no_process_of_this_hub_passed_on_is_refused(hub: TestHub) {
        let caller = caller(&hub, &["hub:events.read"]).await;
        let (core, key) = (&hub.core, hub.operator_key.clone());
        let (own, now) = (core.processes.id().clone(), core.processes.time());
        let sign = |internal: &Internal, process_id: &str, path: &str, time| {
            let signed = internal.sign(&caller, Target { process_id, path }, time).unwrap();
            signed.to_str().unwrap().to_owned()
        };
        let good = sign(&core.internal, &own, WHO_AM_I, now);
        let body = frame(&WhoAmIRequest::default().encode_to_vec());
        let call = async |headers: &[(&str, &str)]| {
            let method = WHO_AM_I.trim_start_matches('/');
            post_grpc(hub.addr, method, headers, body.clone()).await.grpc_status()
        };
        assert_eq!(call(&[(FORWARDED_HEADER, &good)]).await.code(), Code::Ok);
        let other = if good.ends_with('A') { "B" } else { "A" };
        let stranger = Internal::new([9; 32], "prc_1");
        let operator = format!("Bearer {key}");
        let with_key = ("authorization", operator.as_str());
        for (what, value) in [
            ("nothing", String::new()),
            ("a key", key.clone()),
            ("cut", good[..good.len() - 8].to_owned()),
            ("changed", format!("{}{other}", &good[..good.len() - 1])),
            ("forged", sign(&stranger, &own, WHO_AM_I, now)),
            ("expired", sign(&core.internal, &own, WHO_AM_I, now - VALID - 1_000_000)),
            ("of the future", sign(&core.internal, &own, WHO_AM_I, now + VALID)),
            ("for another process", sign(&core.internal, "prc_other", WHO_AM_I, now)),
            ("for another method", sign(&core.internal, &own, "/hub.x.v1.X/Y", now)),
        ] {
            let header = (FORWARDED_HEADER, value.as_str());
            // A key that is good does not help one that is not.
            let twice = [header, (FORWARDED_HEADER, good.as_str())];
            for headers in [&[header][..], &[header, with_key], &twice] {
                let refused = call(headers).await;
                assert_eq!(refused.code(), Code::Unauthenticated, "{what}");
                assert_eq!(reason(&refused), "KEY_NOT_RECOGNIZED", "{what}");
                let metadata = refused.get_details_error_info().unwrap().metadata;
                assert_eq!(metadata.keys().collect::<Vec<_>>(), ["callId"], "{what}");
            }
        }
        assert_eq!(call(&[with_key]).await.code(), Code::Ok);
        // What processes have of their own is for them only, and there for nobody else.
        let own = "hub.internal.v1.Branches/Serve";
        let stranger = post_grpc(hub.addr, own, &[with_key], body.clone()).await.grpc_status();
        assert_eq!(reason(&stranger), "NOT_IMPLEMENTED");
        let replayed = [(FORWARDED_HEADER, good.as_str())];
        let replayed = post_grpc(hub.addr, own, &replayed, body.clone()).await.grpc_status();
        assert_eq!(reason(&replayed), "KEY_NOT_RECOGNIZED");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_answered_by_the_process_that_it_is_passed_on_to() {
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let caller = caller(&hub, &["hub:events.read"]).await;
    let answered = who_am_i(channel(&hub, &second, &caller).await).await;
    assert_eq!(answered.unwrap(), *caller.key_id);
    // Scopes and the product's subscription are looked at again.
    let mut keys = ApiKeysClient::new(channel(&hub, &second, &caller).await);
    let refused = keys
        .list_api_keys(ListApiKeysRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "SCOPE_MISSING");
    let switch = SetProductSubscriptionRequest {
        product: "psa".into(),
        active: false,
        ..SetProductSubscriptionRequest::default()
    };
    let admin = hub.client(&hub.first_tenant().admin_key);
    admin
        .platform()
        .set_product_subscription(switch)
        .await
        .unwrap();
    let refused = async {
        loop {
            if let Err(refused) = who_am_i(channel(&hub, &second, &caller).await).await {
                return refused;
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, refused)
        .await
        .expect("within a second");
    assert_eq!(reason(&refused), "SUBSCRIPTION_INACTIVE");
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_passed_on_once_and_to_a_live_process_only() {
    let hub = TestHub::start(Backend::Postgres).await;
    let second = another(&hub).await;
    let caller = caller(&hub, &["hub:events.read"]).await;
    let mut passed_on = caller.clone();
    Arc::make_mut(&mut passed_on.origin).forwarded = true;
    let id = second.core.processes.id().clone();
    let refused = async |id: &str, caller: &Caller| {
        let refused = hub
            .core
            .peers
            .channel(id, caller)
            .await
            .map(drop)
            .unwrap_err();
        let (_, cause) = refused.metadata().first().cloned().unwrap_or_default();
        format!("{} {cause}", refused.reason())
    };
    assert_eq!(refused(&id, &passed_on).await, "STORE_BUSY forwarded");
    assert_eq!(
        refused("prc_unknown", &caller).await,
        "STORE_BUSY owner_gone"
    );
    second.drain().await;
    seen(&hub, |peers| peers.is_empty()).await;
    assert_eq!(refused(&id, &caller).await, "STORE_BUSY owner_gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_call_each_other_by_tls_and_need_no_certificate_of_callers() {
    let authority = Authority::new();
    let file = authority.file("ca.pem");
    let hub = TestHub::options(Backend::Postgres);
    let hub = hub
        .config(move |config| config.peer_authorities = Some(file))
        .start()
        .await;
    let secured = configured(&hub, |config| {
        config.tls = Some(Files {
            certificate: authority.file("cert.pem"),
            key: authority.file("key.pem"),
            client_authorities: Some(authority.file("ca.pem")),
        });
    })
    .await;
    let caller = caller(&hub, &[]).await;
    let answered = who_am_i(channel(&hub, &secured, &caller).await).await;
    assert_eq!(answered.unwrap(), *caller.key_id);
    // Nobody else is spared.
    let client = hub_client::Hub::builder(format!("https://{}", secured.addr))
        .api_key(&hub.operator_key)
        .ca_certificate(authority.pem());
    let refused = client.connect_lazy().unwrap().api_keys();
    let refused = { refused }
        .who_am_i(WhoAmIRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "KEY_MISSING");
    // Who does not know the authority does not call.
    let stranger = TestHub::start(Backend::Postgres).await;
    assert!(
        stranger
            .core
            .peers
            .channel(secured.core.processes.id(), &caller)
            .await
            .is_err()
    );
    let third = configured(&hub, |_| {}).await;
    let peers = &third.core.peers;
    let untrusting = peers
        .channel(secured.core.processes.id(), &caller)
        .await
        .unwrap();
    assert_ne!(who_am_i(untrusting).await.unwrap_err().code(), Code::Ok);
    third.drain().await;
    secured.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_streams_than_one_connection_takes_go_to_one_process() {
    const STREAMS: usize = 600;
    let hub = TestHub::start(Backend::Postgres).await;
    let second = configured(&hub, |config| config.limits.connection_streams_max = 500).await;
    let caller = caller(&hub, &["hub:events.read"]).await;
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        let mut bus = EventBusClient::new(channel(&hub, &second, &caller).await);
        let opening = bus.subscribe(SubscribeRequest::default());
        let opened = tokio::time::timeout(PATIENCE, opening).await;
        streams.push(
            opened
                .unwrap_or_else(|_| panic!("stream {number} waits"))
                .unwrap(),
        );
    }
    drop(streams);
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_process_ends_what_was_passed_on_to_it() {
    let hub = TestHub::start(Backend::Postgres).await;
    let same = Database::at(hub.database_url().to_owned());
    let other = TestProcess::start_on(Command::Serve, same, &[]).await;
    let caller = caller(&hub, &["hub:events.read"]).await;
    let peers = seen(&hub, |peers| peers.len() == 1).await;
    let id = peers.keys().next().unwrap();
    let channel = hub.core.peers.channel(id, &caller).await.unwrap();
    let mut bus = EventBusClient::new(channel.clone());
    let opened = bus.subscribe(SubscribeRequest::default()).await;
    let mut stream = opened.unwrap().into_inner();
    while stream.message().await.unwrap().unwrap().frame.is_none() {}
    // It does not end, and does not answer any more: nobody resets the connection.
    other.signal("STOP");
    let ended = async { while let Ok(Some(_)) = stream.message().await {} };
    tokio::time::timeout(PATIENCE, ended)
        .await
        .expect("it is noticed");
    other.signal("CONT");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_passed_on_belongs_to_the_trace_of_its_call() {
    let hub = TestHub::start(Backend::Postgres).await;
    let same = Database::at(hub.database_url().to_owned());
    let other = TestProcess::start_on(Command::Serve, same, &[]).await;
    let trace_id = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
    let span = Span {
        trace_id,
        span_id: 7,
    };
    let caller = Caller {
        origin: Arc::new(Origin {
            span: Some(span),
            ..Origin::default()
        }),
        ..caller(&hub, &["hub:events.read"]).await
    };
    let peers = seen(&hub, |peers| peers.len() == 1).await;
    let id = peers.keys().next().unwrap();
    let channel = hub.core.peers.channel(id, &caller).await.unwrap();
    who_am_i(channel).await.unwrap();
    let told = async {
        while !other.log().contains(&format!("{trace_id:032x}")) {
            tokio::task::yield_now().await;
        }
    };
    let told = tokio::time::timeout(PATIENCE, told).await;
    told.expect("the other process logs it as a part of the trace");
}
