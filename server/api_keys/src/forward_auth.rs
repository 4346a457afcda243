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
use hub_proto::credential::joined;

use crate::keys::Keys;
use crate::proxied::{Answer, FORWARDED_FOR, Proxied, Trusted};

const FORWARDED_HOST: &str = "x-forwarded-host";
const FORWARDED_URI: &str = "x-forwarded-uri";

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
        client: trusted.client(&joined(headers, FORWARDED_FOR), peer),
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
        // Several are no host, and so no host of a product.
        proxied.host = joined(headers, FORWARDED_HOST);
        proxied.path = joined(headers, FORWARDED_URI);
    }
    Ok(proxied)
}

fn write(answer: &Answer, public_url: &str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() =
        http::StatusCode::from_u16(answer.status).unwrap_or(http::StatusCode::FORBIDDEN);
    let headers = response.headers_mut();
    for (name, value) in answer.headers() {
        put(headers, &name, &value);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if answer.is_allowed() {
        for (name, value) in answer.identity() {
            put(headers, name, &value);
        }
    } else {
        *response.body_mut() = Body::from(answer.problem(public_url));
    }
    response
}

fn put(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
        headers.insert(name, value);
    }
}
