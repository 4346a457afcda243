//! How requests are to be verified.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderName};
use hub_proto::hub::api_keys::v1::api_keys_client::ApiKeysClient;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tower_layer::Layer;

use super::question::{self, Question};
use super::refusal::Refusal;
use super::service::ApiKeyService;
use super::verifier::Verifier;
use super::watch::{ApiKeyLayerState, Follower};
use crate::call::Transport;

/// Requests that one call counts ahead at most, unless the layer says otherwise.
const PORTION: u32 = 100;
/// What one call may count at most.
const PORTION_MAX: u32 = 1000;
/// Longest host and path that the hub reads, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// What a request says of itself.
type Of<T> = Arc<dyn Fn(&Parts) -> T + Send + Sync>;

/// Lets only requests with a valid key through, for servers of axum and tonic, or any other service
/// of HTTP. Made by [`Hub::api_key_layer`](crate::Hub::api_key_layer); cheap to clone.
///
/// ```no_run
/// # use hub_client::{ApiKeyLayer, Hub};
/// # fn run() -> Result<(), hub_client::Error> {
/// // The key needs the scope hub:keys.verify.
/// let hub = Hub::builder("http://127.0.0.1:7070").api_key("tos_...").connect_lazy()?;
/// let keys: ApiKeyLayer = hub.api_key_layer("psa");
/// let read = keys.clone().action("tickets.read");
/// let by_method = keys.action_of(|request| match request.uri.path() {
///     "/psa.v1.Tickets/Get" => "tickets.read".to_owned(),
///     _ => "tickets.write".to_owned(),
/// });
/// # Ok(())
/// # }
/// ```
///
/// axum: `router.route("/tickets", get(list).layer(read))`; tonic:
/// `Server::builder().layer(by_method).add_service(...)`. One layer for each request: a second one
/// finds no key any more.
///
/// # What a request gets
/// The key is its one `authorization: Bearer tos_...`. A second key, also one in `x-api-key`, and a
/// key in the URL are refused. A request that is allowed goes on with a [`Caller`](crate::Caller)
/// in its extensions, and without its key: `authorization`, `x-api-key` and the headers by which
/// proxies of the hub say who calls (`x-hub-key-id`, `x-hub-tenant-id`, `x-hub-scopes`) are
/// removed, whoever sent them. Others are answered here, by the same reasons as the hub's:
///
/// | | HTTP | gRPC |
/// |---|---|---|
/// | no key, a damaged or unknown one | 401 | `UNAUTHENTICATED` |
/// | a key that may not do this | 403 | `PERMISSION_DENIED` |
/// | a limit is used up | 429, or 403 if the product is set so | `RESOURCE_EXHAUSTED` |
/// | the hub can't decide now | 503 | `UNAVAILABLE` |
/// | the layer has no action, or the hub refuses its calls | 500 | `INTERNAL` |
///
/// HTTP gets `application/problem+json` (RFC 9457), a request whose content type is one of gRPC a
/// `google.rpc.Status` with `ErrorInfo`, `RetryInfo` and `QuotaFailure`. Every answer about a known
/// key, of the service or of the layer, has `X-RateLimit-Limit`, `-Remaining` and `-Reset`, and
/// `Retry-After` if it is too many; for gRPC they are in the metadata. If the hub can't decide, the
/// [`Error`](crate::Error) is in the extensions of the answer, for the service's own log.
///
/// # What is decided again and what is not
/// A decision is used again for the same key, action, host, path and client address for at most
/// 5 s, and only while `WatchApiKeys` had a frame in the last 5 s. A change of the key voids it
/// at once: a request that comes after the layer was told of a revocation is refused. That holds
/// also for answers that were on their way: each has an epoch, and one that is older than a change
/// is asked for again. While the watch is broken, every request is asked about. Unknown keys always
/// are.
///
/// Limits are exact: no request is let through that the hub has not counted before. So that not
/// every request needs a call, one call counts several ahead when many come, up to as many as came
/// within a second, a tenth of what is left, and [`portion_max`](ApiKeyLayer::portion_max). What is
/// not used within 5 s is lost to the limit; it is never let through later.
///
/// If the hub can't be asked, a key that was allowed the same thing in the last 5 s is let through
/// uncounted while the watch lives, with [`Caller::degraded`](crate::Caller::degraded); everybody
/// else is refused. A call that broke is sent again once and may then have counted twice.
#[derive(Clone)]
#[must_use = "a layer does nothing unless a service is behind it"]
pub struct ApiKeyLayer {
    shared: Arc<Shared>,
    rules: Arc<Rules>,
}

/// Ends the watch with the last layer and service.
struct Shared {
    product: String,
    verifier: Arc<Verifier>,
    state: watch::Receiver<ApiKeyLayerState>,
    following: AbortHandle,
}

#[derive(Clone)]
struct Rules {
    action: Option<Of<String>>,
    host: Of<String>,
    path: Of<String>,
    client: Of<Option<IpAddr>>,
    pages: Option<String>,
    portion_max: u32,
}

impl ApiKeyLayer {
    pub(crate) fn start(
        client: ApiKeysClient<Transport>,
        runtime: &Handle,
        product: String,
    ) -> Self {
        let verifier = Arc::new(Verifier::new(client.clone(), runtime.clone()));
        let (follower, state) = Follower::new(client, verifier.clone());
        let following = runtime.spawn(follower.run()).abort_handle();
        ApiKeyLayer {
            shared: Arc::new(Shared {
                product,
                verifier,
                state,
                following,
            }),
            rules: Arc::new(Rules {
                action: None,
                host: Arc::new(question::host),
                path: Arc::new(|_| "/".to_owned()),
                client: Arc::new(|_| None),
                pages: None,
                portion_max: PORTION,
            }),
        }
    }

    /// The action that every request needs, e.g. `tickets.read`. Without this or
    /// [`action_of`](ApiKeyLayer::action_of) every request is refused.
    pub fn action(self, action: impl Into<String>) -> Self {
        let action = action.into();
        self.action_of(move |_| action.clone())
    }

    /// The action that a request needs.
    pub fn action_of(self, action: impl Fn(&Parts) -> String + Send + Sync + 'static) -> Self {
        self.with(|rules| rules.action = Some(Arc::new(action)))
    }

    /// The host that the caller sent the request to, for products with base URLs; by default the
    /// one that the request names. Behind a proxy which names another one it is, e.g., in
    /// `x-forwarded-host`, if only that proxy can set it. An empty host is not checked.
    pub fn host_of(self, host: impl Fn(&Parts) -> String + Send + Sync + 'static) -> Self {
        self.with(|rules| rules.host = Arc::new(host))
    }

    /// The path of the product's base URL that this server answers at, e.g. `/psa` of
    /// `https://api.example.com/psa`; `/` by default. It is checked with the host.
    pub fn base_path(self, path: impl Into<String>) -> Self {
        let path = path.into();
        self.path_of(move |_| path.clone())
    }

    /// The path to check, e.g. the request's own if one server answers for several products.
    /// Requests with different paths share no decisions.
    pub fn path_of(self, path: impl Fn(&Parts) -> String + Send + Sync + 'static) -> Self {
        self.with(|rules| rules.path = Arc::new(path))
    }

    /// Where the client's address is; by default it is unknown, and keys with `allowed_cidrs` are
    /// refused. axum has it in the extension `ConnectInfo<SocketAddr>`, tonic in `TcpConnectInfo`.
    pub fn client_address_of(
        self,
        client: impl Fn(&Parts) -> Option<IpAddr> + Send + Sync + 'static,
    ) -> Self {
        self.with(|rules| rules.client = Arc::new(client))
    }

    /// The client's address is in this header, which a proxy that you trust sets, and nobody else
    /// can: the only value, e.g. of `x-real-ip`. A list of addresses is no address.
    pub fn client_address_header(self, name: HeaderName) -> Self {
        self.client_address_of(move |request| only_address(&request.headers, &name))
    }

    /// Where callers reach the hub, e.g. `https://hub.example.com`: refusals then link the page
    /// about their reason.
    pub fn pages(self, url: impl Into<String>) -> Self {
        let url = url.into().trim_end_matches('/').to_owned();
        self.with(|rules| rules.pages = Some(url))
    }

    /// How many requests one call counts ahead at most, 1 to 1000; 100 by default. With 1 nothing
    /// is lost to limits, and every request is asked about.
    pub fn portion_max(self, requests: u32) -> Self {
        self.with(|rules| rules.portion_max = requests.clamp(1, PORTION_MAX))
    }

    /// What the layer knows of changes of keys, now and from now on.
    pub fn state(&self) -> watch::Receiver<ApiKeyLayerState> {
        self.shared.state.clone()
    }

    /// Decisions that are kept to be used again, at most 10 000.
    pub fn decisions(&self) -> usize {
        self.shared.verifier.cache(|cache| cache.len())
    }

    fn with(mut self, change: impl FnOnce(&mut Rules)) -> Self {
        change(Arc::make_mut(&mut self.rules));
        self
    }

    /// What is to be asked about a request with this key.
    pub(super) fn question(&self, key: String, parts: &Parts) -> Result<Question, Box<Refusal>> {
        let rules = &self.rules;
        let host = (rules.host)(parts);
        let path = (rules.path)(parts);
        for (what, text) in [("host", &host), ("path", &path)] {
            if text.len() > TEXT_BYTES_MAX {
                return Err(Refusal::too_long(what));
            }
        }
        Ok(Question {
            key,
            product: self.shared.product.clone(),
            // Without one, the hub says that the question is wrong.
            action: rules
                .action
                .as_ref()
                .map_or_else(String::new, |of| of(parts)),
            host,
            path,
            client: (rules.client)(parts).map(|address| address.to_canonical()),
        })
    }

    pub(super) fn verifier(&self) -> &Arc<Verifier> {
        &self.shared.verifier
    }

    pub(super) fn most_ahead(&self) -> u32 {
        self.rules.portion_max
    }

    pub(super) fn pages_url(&self) -> Option<&str> {
        self.rules.pages.as_deref()
    }
}

fn only_address(headers: &HeaderMap, name: &HeaderName) -> Option<IpAddr> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    value.to_str().ok()?.trim().parse().ok()
}

impl<S> Layer<S> for ApiKeyLayer {
    type Service = ApiKeyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ApiKeyService::new(self.clone(), inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl fmt::Debug for ApiKeyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeyLayer")
            .field("product", &self.shared.product)
            .field("state", &*self.shared.state.borrow())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn an_address_of_a_header_is_the_only_one_in_it() {
        let name = HeaderName::from_static("x-real-ip");
        let address = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(&name, HeaderValue::from_static(value));
            }
            only_address(&headers, &name).map(|address| address.to_string())
        };
        assert_eq!(address(&["192.0.2.1"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(address(&[" 2001:db8::1 "]).as_deref(), Some("2001:db8::1"));
        for bad in [
            &[][..],
            &["192.0.2.1, 192.0.2.2"],
            &["192.0.2.1", "192.0.2.1"],
            &["192.0.2.1:80"],
            &["unknown"],
        ] {
            assert_eq!(address(bad), None, "{bad:?}");
        }
    }
}
