//! `GET /authz?product=psa&action=tickets.read`: nginx (auth_request), Traefik and Caddy ask it
//! with the headers of the request that they are about to pass on.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use hub_core::auth::Origin;
use hub_core::error::{Error, Result};

use crate::keys::Keys;
use crate::proxied::{Answer, Proxied, Trusted};

const FORWARDED_HOST: &str = "x-forwarded-host";
const FORWARDED_URI: &str = "x-forwarded-uri";

/// Headers by which the product learns who calls. A proxy sets them from the answer, also those
/// that are empty, so that none comes from the caller.
pub(crate) const KEY_ID: &str = "x-hub-key-id";
pub(crate) const TENANT_ID: &str = "x-hub-tenant-id";
pub(crate) const SCOPES: &str = "x-hub-scopes";

#[derive(Clone)]
struct Desk {
    keys: Arc<Keys>,
    trusted: Trusted,
    public_url: Arc<str>,
}

/// The route.
pub(crate) fn router(keys: &Arc<Keys>, trusted: Trusted) -> Router {
    let public_url = keys.core.public_url.clone();
    let desk = Desk {
        keys: keys.clone(),
        trusted,
        public_url,
    };
    Router::new()
        .route("/authz", get(authorize))
        .with_state(desk)
}

async fn authorize(State(desk): State<Desk>, request: Request) -> Response {
    let origin: Option<&Origin> = request.extensions().get();
    let origin = origin.cloned().unwrap_or_default();
    let query = request.uri().query().unwrap_or_default();
    let proxied = proxied(query, request.headers(), origin.client_ip, &desk.trusted);
    let answer = desk.keys.decide(proxied.unwrap_or_default(), origin).await;
    write(&answer, &desk.public_url)
}

/// What the proxy asks; an error if it asks in another way than documented.
fn proxied(
    query: &str,
    headers: &HeaderMap,
    peer: Option<IpAddr>,
    trusted: &Trusted,
) -> Result<Proxied> {
    let mut proxied = Proxied {
        headers: headers.clone(),
        client: trusted.client(headers, peer),
        ..Proxied::default()
    };
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let place = match name {
            "product" => &mut proxied.product,
            "action" => &mut proxied.action,
            _ => return Err(Error::field("query", "may have product and action only")),
        };
        if !place.is_empty() {
            return Err(Error::field("query", "must have product and action once"));
        }
        value.clone_into(place);
    }
    if peer.is_some_and(|peer| trusted.contains(peer)) {
        proxied.host = joined(headers, FORWARDED_HOST);
        proxied.path = joined(headers, FORWARDED_URI);
    }
    Ok(proxied)
}

/// All values; several are no host, and so no host of a product.
fn joined(headers: &HeaderMap, name: &str) -> String {
    let values = headers.get_all(name).iter();
    let values: Vec<&str> = values.map(|value| value.to_str().unwrap_or("?")).collect();
    values.join(",")
}

fn write(answer: &Answer, public_url: &str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() =
        http::StatusCode::from_u16(answer.status).unwrap_or(http::StatusCode::FORBIDDEN);
    let headers = response.headers_mut();
    let told = &answer.told;
    for (name, value) in &told.headers {
        put(headers, &name.to_ascii_lowercase(), value);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if answer.reason.is_empty() {
        put(headers, KEY_ID, &told.key_id);
        put(headers, TENANT_ID, &told.tenant_id);
        put(headers, SCOPES, &told.scopes.join(" "));
        return response;
    }
    if answer.status == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    put(headers, "content-type", "application/problem+json");
    *response.body_mut() = Body::from(problem(answer, public_url));
    response
}

/// What the caller's developer is told, as RFC 9457 has it.
pub(crate) fn problem(answer: &Answer, public_url: &str) -> String {
    serde_json::json!({
        "type": format!("{public_url}/errors/{}", answer.reason),
        "title": answer.reason,
        "status": answer.status,
        "detail": answer.told.hint,
        "reason": answer.reason,
        "keyId": answer.told.key_id,
        "callId": answer.told.call_id,
    })
    .to_string()
}

fn put(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
        headers.insert(name, value);
    }
}
