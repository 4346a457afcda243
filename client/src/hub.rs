//! A connection to the hub.

use std::fmt;
use std::time::Duration;

use hub_proto::hub::api_keys::v1::api_keys_client::ApiKeysClient;
use hub_proto::hub::entity_sync::v1::entity_sync_client::EntitySyncClient;
use hub_proto::hub::event_bus::v1::event_bus_client::EventBusClient;
use hub_proto::hub::platform::v1::platform_client::PlatformClient;
use hub_proto::hub::webhooks::v1::webhooks_client::WebhooksClient;
use tokio::runtime::Handle;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::api_keys::ApiKeyLayer;
use crate::call::{CallHeaders, Transport};
use crate::consumer::ConsumerBuilder;
use crate::error::{Error, Result};
use crate::publisher::{Publisher, PublisherOptions};
use crate::subscriber::{SubscribeOptions, Subscriber};

/// Largest message that the clients read. A frame of the hub never exceeds 5 MiB.
pub(crate) const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Deadline of unary calls unless the builder says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the TCP connection may take, beside the deadline of the call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection is probed this often, also while idle, so that a silent partition is noticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// A probe that is not answered for so long ends the connection.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// What a connection without life may take to be noticed.
const NOTICED_AFTER_MAX: Duration = Duration::from_secs(25);
const _: () = assert!(
    KEEP_ALIVE_INTERVAL.as_secs() + KEEP_ALIVE_TIMEOUT.as_secs() <= NOTICED_AFTER_MAX.as_secs()
);

/// One connection to a hub, made when first used and again when it breaks; cheap to clone.
///
/// All clients, publishers, subscribers and consumers of a `Hub` share the connection. For more
/// throughput than one connection gives, build several.
#[derive(Debug, Clone)]
pub struct Hub {
    transport: Transport,
    runtime: Handle,
}

/// How to connect; see [`Hub::builder`].
#[derive(Clone)]
pub struct HubBuilder {
    url: String,
    key: Option<String>,
    tenant: Option<String>,
    timeout: Duration,
    #[cfg(feature = "tls")]
    tls: crate::tls::Tls,
}

impl Hub {
    /// Starts with the URL, e.g. `http://127.0.0.1:7070`. Without a scheme it is `http`; `https`
    /// needs the feature `tls`.
    pub fn builder(url: impl Into<String>) -> HubBuilder {
        HubBuilder {
            url: url.into(),
            key: None,
            tenant: None,
            timeout: TIMEOUT,
            #[cfg(feature = "tls")]
            tls: crate::tls::Tls::default(),
        }
    }

    /// A publisher with default options: one stream, opened with the first event.
    pub fn publisher(&self) -> Publisher {
        self.publisher_with(PublisherOptions::default())
    }

    /// A publisher with these options.
    pub fn publisher_with(&self, options: PublisherOptions) -> Publisher {
        Publisher::start(self.transport.clone(), &self.runtime, options)
    }

    /// Reads events routed to the key's product. The stream opens when it is first polled.
    pub fn subscribe(&self, options: SubscribeOptions) -> Subscriber {
        Subscriber::new(self.event_bus(), options)
    }

    /// Works off a durable subscription: its id, `sub_...`, or its name, e.g. `portal`. A key that
    /// serves all tenants gives the name. Starts with [`run`](ConsumerBuilder::run).
    pub fn consume(&self, subscription: impl Into<String>) -> ConsumerBuilder {
        let runtime = self.runtime.clone();
        ConsumerBuilder::new(self.event_bus(), runtime, subscription.into())
    }

    /// A layer that verifies the keys of requests to `product`, for servers of axum and tonic. It
    /// follows the changes of keys from now on, until its last clone and the last service behind it
    /// are dropped. Make one, and clone it for all routes: they then share what is known. The key
    /// needs the scope `hub:keys.verify`.
    pub fn api_key_layer(&self, product: impl Into<String>) -> ApiKeyLayer {
        ApiKeyLayer::start(self.api_keys(), &self.runtime, product.into())
    }

    /// The connection with key, tenant and deadline, for generated clients of other services.
    pub fn transport(&self) -> Transport {
        self.transport.clone()
    }

    /// Client of every EventBus RPC.
    pub fn event_bus(&self) -> EventBusClient<Transport> {
        EventBusClient::new(self.transport()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Client of every Platform RPC.
    pub fn platform(&self) -> PlatformClient<Transport> {
        PlatformClient::new(self.transport()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Client of every ApiKeys RPC.
    pub fn api_keys(&self) -> ApiKeysClient<Transport> {
        ApiKeysClient::new(self.transport()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Client of every Webhooks RPC.
    pub fn webhooks(&self) -> WebhooksClient<Transport> {
        WebhooksClient::new(self.transport()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Client of every EntitySync RPC.
    pub fn entity_sync(&self) -> EntitySyncClient<Transport> {
        EntitySyncClient::new(self.transport()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

impl HubBuilder {
    /// The key, `tos_...`; white space around it is dropped. Without one every call that needs a
    /// key fails with `KEY_MISSING`.
    #[must_use]
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The tenant of all calls, `tnt_...`, for keys that belong to no tenant (`x-hub-tenant`).
    #[must_use]
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// Deadline of each unary call, 10 s by default; a deadline set on a request wins. The hub is
    /// told as well. Connecting may take 5 s more. Streams have no deadline.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Authorities of the server's certificate, PEM, in place of Mozilla's, e.g. of a company's
    /// own. For `https` URLs.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls.authorities = Some(pem.into());
        self
    }

    /// The certificate chain that this program shows, and its private key, both PEM; for hubs that
    /// ask for one. For `https` URLs.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn client_certificate(
        mut self,
        chain: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.tls.own = Some((chain.into(), key.into()));
        self
    }

    /// Connects with the first call.
    ///
    /// # Errors
    /// `InvalidArgument`: the URL, key or tenant can't be used. `FailedPrecondition`: there is no
    /// tokio runtime, or the URL is `https` and the feature `tls` is off.
    pub fn connect_lazy(self) -> Result<Hub> {
        self.connect_with(|endpoint| endpoint.connect_lazy())
    }

    /// As [`connect_lazy`](HubBuilder::connect_lazy), with a channel of the caller's making, e.g.
    /// over a pipe in tests, or balanced over several servers.
    ///
    /// # Errors
    /// As [`connect_lazy`](HubBuilder::connect_lazy).
    pub fn connect_with(self, connect: impl FnOnce(Endpoint) -> Channel) -> Result<Hub> {
        let runtime = Handle::try_current().map_err(|_| {
            let message = "There is no tokio runtime here. Connect within one.";
            Error::local(Code::FailedPrecondition, message)
        })?;
        let headers = CallHeaders::new(
            self.key.as_deref(),
            self.tenant.as_deref(),
            Some(self.timeout),
        )?;
        let transport = InterceptedService::new(connect(self.endpoint()?), headers);
        Ok(Hub { transport, runtime })
    }

    #[cfg(feature = "tls")]
    fn endpoint(&self) -> Result<Endpoint> {
        endpoint(&self.url, |endpoint| self.tls.secured(endpoint))
    }

    #[cfg(not(feature = "tls"))]
    fn endpoint(&self) -> Result<Endpoint> {
        endpoint(&self.url, |_| {
            let message = "The URL is https, and this program was built without it. Turn on the \
                           feature `tls` of hub-client.";
            Err(Error::local(Code::FailedPrecondition, message))
        })
    }
}

fn endpoint(url: &str, secured: impl FnOnce(Endpoint) -> Result<Endpoint>) -> Result<Endpoint> {
    let url = url.trim();
    let url = if url.contains("://") || url.starts_with("unix:") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let endpoint = Endpoint::from_shared(url.clone())
        .map_err(|_| Error::invalid(format!("{url:?} is not a URL. Give e.g. http://host:7070.")))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    match url.split_once("://") {
        Some(("https", _)) => secured(endpoint),
        Some(("http" | "unix", _)) | None => Ok(endpoint),
        Some((scheme, _)) => Err(Error::invalid(format!(
            "{scheme:?} is not a scheme of the hub. Use http or https."
        ))),
    }
}

impl fmt::Debug for HubBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubBuilder")
            .field("url", &self.url)
            .field("key", &self.key.as_ref().map(|_| "<redacted>"))
            .field("tenant", &self.tenant)
            .field("timeout", &self.timeout)
            .finish()
    }
}
