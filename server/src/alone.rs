//! The server with whatever domains it is built with; `tests/run --only alone` builds it with each
//! of them alone, and with none.

use axum::Router;
use axum::body::Body;
use hub_client::Hub;
use hub_core::clock::Clock;
use hub_core::services::Services;
use hub_proto::policy::{MethodPolicy, method_policies};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

use crate::explain::Explainer;
use crate::listen::{Parts, Stack};
use crate::pages::Pages;
use crate::{Config, Running, modules, telemetry};

/// A server on a database of its own.
struct Alone {
    running: Running,
    config: Config,
    operator_key: String,
    _folder: TempDir,
}

impl Alone {
    async fn start() -> Alone {
        let folder = TempDir::with_prefix("hub-alone-").unwrap();
        let config = Config::new(format!("sqlite:{}", folder.path().join("hub.db").display()));
        let running = serve(&config).await;
        let operator_key = running.operator_key.clone().unwrap();
        Alone {
            running,
            config,
            operator_key,
            _folder: folder,
        }
    }

    async fn restart(&mut self) {
        self.running.drain().await;
        self.running = serve(&self.config).await;
        assert_eq!(self.running.operator_key, None, "the database is not new");
    }

    /// The client of a key, that names a tenant unless it is empty.
    fn client(&self, key: &str, tenant: &str) -> Hub {
        let builder = Hub::builder(format!("http://{}", self.running.addr)).api_key(key);
        let builder = if tenant.is_empty() {
            builder
        } else {
            builder.tenant(tenant)
        };
        builder.connect_lazy().unwrap()
    }

    /// A tenant, made without the domain that makes them.
    async fn tenant(&self) -> String {
        let core = &self.running.core;
        let mut tx = core.db.begin().await.unwrap();
        let now = core.clock.now();
        let tenant = hub_core::tenancy::create(&mut tx, "Alone", now)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        tenant.id().to_owned()
    }
}

async fn serve(config: &Config) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shutdown = CancellationToken::new();
    crate::start(config.clone(), listener, Clock::system(), shutdown)
        .await
        .unwrap()
}

/// The reason with which an RPC refuses an empty request; empty if it does not.
async fn reason(client: &Hub, policy: &MethodPolicy) -> String {
    let mut grpc = Grpc::new(client.transport());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static(policy.path);
    let codec = ProstCodec::<(), ()>::default();
    let answer = grpc.unary(Request::new(()), path, codec).await;
    let error = answer.err().map(hub_client::Error::from);
    error
        .and_then(|error| error.reason().map(str::to_owned))
        .unwrap_or_default()
}

#[tokio::test]
async fn the_rpcs_of_its_domains_are_there_and_those_of_others_are_not() {
    let alone = Alone::start().await;
    let tenant = alone.tenant().await;
    let (mut there, mut missing) = (0, 0);
    let unary = method_policies()
        .iter()
        .filter(|policy| !policy.public && !policy.product_required && !policy.server_streaming);
    for policy in unary {
        let named = if policy.operator_only { "" } else { &tenant };
        let client = alone.client(&alone.operator_key, named);
        let is_missing = reason(&client, policy).await == "NOT_IMPLEMENTED";
        assert_eq!(
            is_missing,
            !modules::is_built(policy.method),
            "{}",
            policy.method
        );
        let domain = policy.method.split('.').nth(1).unwrap();
        assert!(
            is_missing || modules::DOMAINS.contains(&domain),
            "{}",
            policy.method
        );
        (there, missing) = (
            there + usize::from(!is_missing),
            missing + usize::from(is_missing),
        );
    }
    assert_eq!(there > 0, !modules::DOMAINS.is_empty());
    assert!(missing > 0);
}

/// What a call is while it waits, and what is moved when it begins: more than the caches next to
/// the processor hold would slow down everything that it does.
#[tokio::test]
async fn a_call_takes_little_memory_while_it_is_answered() {
    let alone = Alone::start().await;
    let core = &alone.running.core;
    let authenticator = modules::keys(core).unwrap().authenticator;
    let stack = Stack::new(Parts {
        services: Services::default(),
        http: Router::new(),
        health: Services::default(),
        gate: crate::gate(&alone.config, core, authenticator),
        explainer: Explainer::new(&core.public_url),
        pages: Pages {
            core: core.clone(),
            metrics: telemetry::recorder().unwrap(),
        },
        limits: core.limits.clone(),
    });
    let call = stack.unwrap().call(axum::http::Request::new(Body::empty()));
    let size = size_of_val(&call);
    assert!(size <= 8 << 10, "{size} bytes");
}

#[tokio::test]
async fn it_starts_again_and_knows_its_key() {
    let mut alone = Alone::start().await;
    alone.restart().await;
    let refused = alone.client("tos_operator_0", "");
    let known = alone.client(&alone.operator_key, "");
    let policy = hub_proto::policy::method_policy("/hub.platform.v1.Platform/ListTenants");
    let policy = policy.unwrap();
    let is_refused = |reason: &str| reason.starts_with("KEY_");
    assert!(is_refused(&reason(&refused, policy).await));
    assert!(!is_refused(&reason(&known, policy).await));
    let none = Hub::builder(format!("http://{}", alone.running.addr))
        .connect_lazy()
        .unwrap();
    assert_eq!(reason(&none, policy).await, "KEY_MISSING");
}

#[cfg(feature = "platform")]
#[tokio::test]
async fn platform_makes_a_tenant_whose_administrator_keeps_to_it() {
    use hub_client::proto::hub::platform::v1::{
        CreateTenantRequest, GetTenantRequest, SetIntegrationRequest,
    };
    let alone = Alone::start().await;
    let operator = alone.client(&alone.operator_key, "");
    let mut made = Vec::new();
    for name in ["One", "Two"] {
        let request = CreateTenantRequest {
            name: name.to_owned(),
            ..Default::default()
        };
        made.push(
            operator
                .platform()
                .create_tenant(request)
                .await
                .unwrap()
                .into_inner(),
        );
    }
    let id = |at: usize| made[at].tenant.clone().unwrap().tenant_id;
    let admin = alone.client(&made[0].admin_key, "");
    let own = admin
        .platform()
        .get_tenant(GetTenantRequest::default())
        .await
        .unwrap();
    assert_eq!(own.into_inner().tenant.unwrap().tenant_id, id(0));
    let request = GetTenantRequest { tenant_id: id(1) };
    let foreign = admin.platform().get_tenant(request).await.unwrap_err();
    assert_eq!(foreign.code(), tonic::Code::NotFound);
    let request = SetIntegrationRequest {
        source: "psa".to_owned(),
        destination: "portal".to_owned(),
        ..Default::default()
    };
    let switched = admin
        .platform()
        .set_integration(request)
        .await
        .unwrap()
        .into_inner();
    assert!(!switched.integration.unwrap().enabled);
}

#[cfg(feature = "api_keys")]
#[tokio::test]
async fn api_keys_makes_a_key_that_works() {
    use hub_client::proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest, WhoAmIRequest};
    let alone = Alone::start().await;
    let tenant = alone.tenant().await;
    let api_key = ApiKey {
        name: "one".to_owned(),
        ..ApiKey::default()
    };
    let request = CreateApiKeyRequest {
        api_key: Some(api_key),
        ..Default::default()
    };
    let operator = alone.client(&alone.operator_key, &tenant);
    let made = operator
        .api_keys()
        .create_api_key(request)
        .await
        .unwrap()
        .into_inner();
    let made = alone.client(&made.plaintext, "");
    let me = made
        .api_keys()
        .who_am_i(WhoAmIRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(me.tenant_id, tenant);
    let refused = made
        .api_keys()
        .list_api_keys(Request::new(Default::default()))
        .await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::PermissionDenied);
}

/// Without the domain of keys the operator key speaks for the product that it names.
#[cfg(all(feature = "event_bus", not(feature = "api_keys")))]
#[tokio::test]
async fn event_bus_publishes_and_reads() {
    use hub_client::proto::hub::event_bus::v1::cloud_event::Data;
    use hub_client::proto::hub::event_bus::v1::subscribe_response::Frame;
    use hub_client::proto::hub::event_bus::v1::{
        CloudEvent, PublishRequest, StartAt, SubscribeRequest, start_at::At,
    };
    let alone = Alone::start().await;
    let tenant = alone.tenant().await;
    let client = alone.client(&alone.operator_key, &tenant);
    let event = CloudEvent {
        id: "1".to_owned(),
        source: "/psa".to_owned(),
        spec_version: "1.0".to_owned(),
        r#type: "ticket.created".to_owned(),
        data: Some(Data::TextData("{}".to_owned())),
        ..CloudEvent::default()
    };
    let mut request = Request::new(PublishRequest {
        events: vec![event],
        ..Default::default()
    });
    let header = hub_core::bootstrap::PRODUCT_HEADER;
    request
        .metadata_mut()
        .insert(header, "psa".parse().unwrap());
    let published = client
        .event_bus()
        .publish(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(published.results[0].sequence, 1);
    let mut request = Request::new(SubscribeRequest {
        start: Some(StartAt {
            at: Some(At::Earliest(true)),
        }),
        stop_when_caught_up: true,
        ..Default::default()
    });
    request
        .metadata_mut()
        .insert(header, "portal".parse().unwrap());
    let mut frames = client
        .event_bus()
        .subscribe(request)
        .await
        .unwrap()
        .into_inner();
    let mut received = Vec::new();
    while let Some(frame) = frames.message().await.unwrap() {
        if let Some(Frame::Events(batch)) = frame.frame {
            received.extend(batch.events);
        }
    }
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].product, "psa");
}

#[cfg(not(feature = "api_keys"))]
#[tokio::test]
async fn a_replaced_operator_key_has_ended() {
    let mut alone = Alone::start().await;
    alone.running.drain().await;
    let replaced = crate::offline::replace_operator_key(&alone.config, true)
        .await
        .unwrap();
    alone.running = serve(&alone.config).await;
    let policy = hub_proto::policy::method_policy("/hub.platform.v1.Platform/ListTenants");
    let policy = policy.unwrap();
    let old = alone.client(&alone.operator_key, "");
    assert_eq!(reason(&old, policy).await, "KEY_NOT_RECOGNIZED");
    let new = alone.client(&replaced.plaintext, "");
    assert_ne!(reason(&new, policy).await, "KEY_NOT_RECOGNIZED");
}
