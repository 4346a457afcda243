mod answers;
mod cache;
mod deciding;
mod watching;

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hub_proto::hub::api_keys::v1::{ErrorReason, RateLimitState, VerifyApiKeyResponse};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};

use super::*;
use crate::fake_hub::{FakeHub, VerifyCall, WatchCall};

/// Well-formed, see the tests of `credential.rs`.
const KEY: &str = "tos_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o51xqYGe";
const BEAT: Duration = Duration::from_secs(1);
/// What has not come by then does not come: time passes by itself while everybody waits.
const PATIENCE: Duration = Duration::from_secs(60);

/// A decision that allows a key, with a limit of 100 of which so many are left.
fn allowed(key_id: &str, epoch: u64, remaining: u32) -> VerifyApiKeyResponse {
    VerifyApiKeyResponse {
        allowed: true,
        http_status: 200,
        key_id: key_id.into(),
        tenant_id: "tnt_1".into(),
        key_product: "portal".into(),
        scopes: vec!["psa:tickets.*".into()],
        rate_limit: Some(RateLimitState {
            limit: 100,
            remaining,
            ..Default::default()
        }),
        headers: [
            ("X-RateLimit-Limit".to_owned(), "100".to_owned()),
            ("X-RateLimit-Remaining".to_owned(), remaining.to_string()),
            ("X-RateLimit-Reset".to_owned(), "1767225660".to_owned()),
        ]
        .into(),
        cache_for: Some(Duration::from_secs(5).try_into().unwrap()),
        epoch,
        call_id: "req_1".into(),
        ..Default::default()
    }
}

fn denied(reason: ErrorReason, http_status: u32, epoch: u64) -> VerifyApiKeyResponse {
    VerifyApiKeyResponse {
        allowed: false,
        reason: reason.into(),
        http_status,
        hint: "What to do.".into(),
        ..allowed("key_1", epoch, 50)
    }
}

/// Too many: so many fit.
fn limited(remaining: u32) -> VerifyApiKeyResponse {
    let mut told = allowed("key_1", 1, remaining);
    told.headers.insert("Retry-After".into(), "7".into());
    VerifyApiKeyResponse {
        cache_for: None,
        rate_limit: told.rate_limit.clone(),
        headers: told.headers.clone(),
        ..denied(ErrorReason::RateLimited, 429, 1)
    }
}

/// A service behind a layer, with a hub that the test plays.
struct Server {
    fake: FakeHub,
    layer: ApiKeyLayer,
}

/// An answer with its body.
struct Answered {
    head: http::response::Parts,
    body: Bytes,
}

impl Server {
    fn start() -> Self {
        let fake = FakeHub::start();
        let layer = fake.hub.api_key_layer("psa").action("tickets.read");
        Server { fake, layer }
    }

    /// With the watch open at this epoch.
    async fn watching(epoch: u64) -> (Self, WatchCall) {
        let mut server = Server::start();
        let watch = server.fake.watched().await;
        watch.open(epoch, BEAT).await;
        server.knows(epoch).await;
        (server, watch)
    }

    /// Waits until the layer's state is as it should be.
    async fn is(&self, expected: impl FnMut(&ApiKeyLayerState) -> bool) {
        let mut state = self.layer.state();
        let reached = timeout(PATIENCE, state.wait_for(expected)).await;
        reached.expect("the state is reached").unwrap();
    }

    /// The next call that asks the hub.
    async fn asked(&mut self) -> VerifyCall {
        let asked = timeout(PATIENCE, self.fake.asked()).await;
        asked.expect("the hub is asked")
    }

    /// Waits until the layer was told of all changes up to an epoch.
    async fn knows(&self, epoch: u64) {
        self.is(|state| match state {
            ApiKeyLayerState::Watching { epoch: known } => *known >= epoch,
            _ => false,
        })
        .await;
    }

    /// Waits until the layer noticed that the watch broke.
    async fn lost(&self) {
        self.is(|state| !matches!(state, ApiKeyLayerState::Watching { .. }))
            .await;
    }

    /// Sends a request in the background.
    fn send(&self, request: http::request::Builder) -> JoinHandle<Answered> {
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let service = self.layer.layer(service_fn(echo));
        tokio::spawn(async move {
            let response = service.oneshot(request).await.unwrap();
            let (head, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Answered { head, body }
        })
    }

    fn get(&self) -> JoinHandle<Answered> {
        self.send(get(KEY))
    }

    /// Sends a request that is answered without a call to the hub.
    async fn get_known(&mut self) -> Answered {
        let answered = self.get().await.unwrap();
        assert!(self.fake.is_not_asked());
        answered
    }

    /// Sends a request; the hub is asked with this cost, and tells.
    async fn get_told(&mut self, cost: u32, told: VerifyApiKeyResponse) -> Answered {
        let answered = self.get();
        self.tell(cost, told).await;
        answered.await.unwrap()
    }

    /// The hub is asked with this cost, and tells.
    async fn tell(&mut self, cost: u32, told: VerifyApiKeyResponse) {
        let call = self.asked().await;
        assert_eq!(call.request.cost, Some(cost));
        call.tell(told);
    }
}

impl Answered {
    fn status(&self) -> StatusCode {
        self.head.status
    }

    fn header(&self, name: &str) -> &str {
        let value = self.head.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

fn get(key: &str) -> http::request::Builder {
    Request::get("http://psa.example.com/tickets/1")
        .header("authorization", format!("Bearer {key}"))
}

/// Tells who calls, and which headers came through.
async fn echo(request: Request<Empty<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let caller = request.extensions().get::<Caller>().unwrap();
    let names = request.headers().keys().map(|name| name.as_str());
    let body = serde_json::json!({
        "keyId": caller.key_id,
        "tenantId": caller.tenant_id,
        "product": caller.product,
        "scopes": *caller.scopes,
        "callId": caller.call_id,
        "degraded": caller.degraded,
        "headers": names.collect::<Vec<_>>(),
    });
    let response = Response::builder().header("x-ratelimit-limit", "of the service");
    Ok(response.body(Full::from(body.to_string())).unwrap())
}
