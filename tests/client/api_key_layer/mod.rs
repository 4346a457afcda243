//! A product's server behind the layer of the client crate, against the real hub.

mod calls;
mod limits;
mod requests;
mod revocations;

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{ConnectInfo, Extension};
use axum::routing::get;
use http::{HeaderMap, Method};
use hub_client::proto::hub::api_keys::v1::{
    ApiKey, SetRateLimitRequest, WhoAmIRequest, WhoAmIResponse,
};
use hub_client::proto::server::api_keys_server::{ApiKeys, ApiKeysServer};
use hub_client::{ApiKeyLayer, ApiKeyLayerState, Caller, Hub};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::api_keys::{create, new_key};
use crate::support::{Answer, TestHub, request};

/// Well-formed, and nobody's.
const UNKNOWN: &str = "tos_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o51xqYGe";

/// Where PSA is reached, from the start.
const HOST: &str = "api.theonepsa.com";

/// A server that ends when it is dropped.
struct Served {
    addr: SocketAddr,
    task: AbortHandle,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The key of a backend of PSA for all tenants.
async fn backend_key(hub: &TestHub) -> String {
    let operator = hub.client(&hub.operator_key);
    let mut key = new_key("psa backend", &["hub:keys.verify"]);
    (key.product, key.all_tenants) = ("psa".to_owned(), true);
    create(&operator, key).await.unwrap().plaintext
}

/// A layer that watches, of a server that is reached where PSA is.
async fn layer(hub: &TestHub) -> ApiKeyLayer {
    let layer = hub.client(&backend_key(hub).await).api_key_layer("psa");
    knows(&layer, 0).await;
    layer.host_of(|_| HOST.to_owned())
}

/// Waits until the layer was told of all changes up to an epoch.
async fn knows(layer: &ApiKeyLayer, epoch: u64) {
    let knows = |state: &ApiKeyLayerState| match state {
        ApiKeyLayerState::Watching { epoch: known } => *known >= epoch,
        _ => false,
    };
    layer.state().wait_for(knows).await.unwrap();
}

/// A key of the first tenant, with its id.
async fn key(hub: &TestHub, scopes: &[&str]) -> (String, String) {
    made(hub, new_key("caller", scopes)).await
}

async fn made(hub: &TestHub, key: ApiKey) -> (String, String) {
    let admin = hub.client(&hub.first_tenant().admin_key);
    let made = create(&admin, key).await.unwrap();
    (made.plaintext, made.api_key.unwrap().key_id)
}

/// Requests a minute with a key of the first tenant.
async fn set_limit(hub: &TestHub, key_id: &str, limit: u32) {
    let request = SetRateLimitRequest {
        key_id: key_id.to_owned(),
        requests_per_minute: limit,
    };
    let admin = hub.client(&hub.first_tenant().admin_key);
    admin.api_keys().set_rate_limit(request).await.unwrap();
}

/// A server of axum: who calls may be read with `tickets.read`, and changed with `tickets.write`.
async fn axum_server(layer: &ApiKeyLayer) -> Served {
    let client = |request: &http::request::Parts| {
        let connection = request.extensions.get::<ConnectInfo<SocketAddr>>();
        connection.map(|info| info.0.ip())
    };
    let layer = layer.clone().client_address_of(client);
    let read = get(who).layer(layer.clone().action("tickets.read"));
    let app = Router::new()
        .route("/tickets/{id}", read)
        .route("/write", get(who).layer(layer.action("tickets.write")));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let serving = async move { axum::serve(listener, app).await };
    let task = tokio::spawn(serving).abort_handle();
    Served { addr, task }
}

async fn who(Extension(caller): Extension<Caller>, headers: HeaderMap) -> String {
    let names: Vec<&str> = headers.keys().map(|name| name.as_str()).collect();
    serde_json::json!({
        "keyId": caller.key_id,
        "tenantId": caller.tenant_id,
        "product": caller.product,
        "scopes": *caller.scopes,
        "headers": names,
    })
    .to_string()
}

/// A service of tonic that says who calls.
struct Who;

#[tonic::async_trait]
impl ApiKeys for Who {
    async fn who_am_i(
        &self,
        request: Request<WhoAmIRequest>,
    ) -> Result<Response<WhoAmIResponse>, Status> {
        let caller = request.extensions().get::<Caller>();
        let caller = caller.ok_or_else(|| Status::internal("nobody"))?;
        if request.metadata().contains_key("authorization") {
            return Err(Status::internal("the key came through"));
        }
        let api_key = ApiKey {
            key_id: caller.key_id.clone(),
            scopes: caller.scopes.to_vec(),
            ..ApiKey::default()
        };
        Ok(Response::new(WhoAmIResponse {
            api_key: Some(api_key),
            tenant_id: caller.tenant_id.clone(),
            ..WhoAmIResponse::default()
        }))
    }
}

async fn tonic_server(layer: &ApiKeyLayer) -> Served {
    let layer = layer.clone().action_of(|request| {
        let (_, method) = request.uri.path().rsplit_once('/').unwrap_or_default();
        match method {
            "WhoAmI" => "tickets.read".to_owned(),
            _ => "tickets.write".to_owned(),
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = Server::builder()
        .layer(layer)
        .add_service(ApiKeysServer::new(Who))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let task = tokio::spawn(serving).abort_handle();
    Served { addr, task }
}

/// A client of the product's own API.
fn caller(server: &Served, key: &str) -> Hub {
    let url = format!("http://{}", server.addr);
    Hub::builder(url).api_key(key).connect_lazy().unwrap()
}

async fn ask(server: &Served, path: &str, key: &str) -> Answer {
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    request(server.addr, Method::GET, path, &headers, "").await
}

/// Status and reason of a refusal.
fn refused(answer: &Answer) -> (u16, String) {
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem: Value = answer.json();
    assert_eq!(problem["status"], answer.status.as_u16());
    let reason = problem["reason"].as_str().unwrap().to_owned();
    (answer.status.as_u16(), reason)
}
