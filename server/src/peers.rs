//! Connections to the other processes on the database, by which calls are passed on to the process
//! that owns their work.
//!
//! Invariants:
//! - A connection is to a process that lived when it was made; it goes when the process does.
//! - Each call carries the credential of its caller, made for this process and this method.
//! - Calls on one connection, and connections to one process, are bounded.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderValue, Request, Response, Uri};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use hub_core::auth::{Answer, Caller};
use hub_core::error::{Error, Result};
use hub_core::internal::{FORWARDED_HEADER, Internal, Target};
use hub_core::peers::{Channel, Peers, moving};
use hub_core::processes::{Peer, Processes};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::transport::{Channel as Connected, Endpoint};
use tower::Service;

use crate::telemetry::trace::TRACEPARENT;
use crate::tls;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A process that is dead or cut off is noticed within interval + timeout, 5 s, by every call that
/// it has at work.
const PING_INTERVAL: Duration = Duration::from_secs(3);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Calls at work on one connection: well below what a hub takes on one.
const CONNECTION_CALLS_MAX: usize = 500;
/// Connections to one process.
const CONNECTIONS_MAX: usize = 20;

/// The connections of this process.
pub struct Pool {
    processes: Arc<Processes>,
    internal: Internal,
    /// Certificates of the authorities of the others'; none = they are called without TLS only.
    authorities: Option<PathBuf>,
    open: Mutex<HashMap<Arc<str>, Vec<Connection>>>,
}

/// A connection, made when it is first used and again when it breaks.
struct Connection {
    channel: Connected,
    calls: Arc<AtomicUsize>,
}

impl Pool {
    /// Without a connection.
    pub fn new(
        processes: Arc<Processes>,
        internal: Internal,
        authorities: Option<PathBuf>,
    ) -> Self {
        Pool {
            processes,
            internal,
            authorities,
            open: Mutex::default(),
        }
    }

    async fn reach(&self, process_id: &str, caller: &Caller) -> Result<Channel> {
        if caller.origin.forwarded {
            return Err(moving("forwarded"));
        }
        if process_id == &**self.processes.id() {
            return Err(Error::internal(
                "a call was to be passed on to its own process",
            ));
        }
        let peer = self.processes.find(process_id).await?;
        let peer = peer.ok_or_else(|| moving("owner_gone"))?;
        let (channel, calls) = self.connection(process_id, &peer)?;
        Ok(Channel::new(Forwarding {
            channel,
            calls,
            internal: self.internal.clone(),
            processes: self.processes.clone(),
            process_id: process_id.into(),
            caller: caller.clone(),
        }))
    }

    /// One with room for a call.
    fn connection(&self, process_id: &str, peer: &Peer) -> Result<(Connected, Arc<AtomicUsize>)> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|id, _| **id == *process_id || self.processes.peer(id).is_some());
        let connections = open.entry(process_id.into()).or_default();
        let has_room = |connection: &&Connection| {
            connection.calls.load(Ordering::Acquire) < CONNECTION_CALLS_MAX
        };
        if let Some(found) = connections.iter().find(has_room) {
            return Ok((found.channel.clone(), found.calls.clone()));
        }
        if connections.len() >= CONNECTIONS_MAX {
            return Err(moving("owner_busy"));
        }
        let channel = self.connect(process_id, peer).map_err(Error::internal)?;
        let calls = Arc::<AtomicUsize>::default();
        connections.push(Connection {
            channel: channel.clone(),
            calls: calls.clone(),
        });
        Ok((channel, calls))
    }

    fn connect(&self, process_id: &str, peer: &Peer) -> Result<Connected, String> {
        let address = Address::parse(&peer.address)?;
        // What lies beneath the HTTP is the connector's.
        let endpoint = Endpoint::from_shared(format!("http://{}", address.authority))
            .map_err(|error| format!("{} is no address: {error}", peer.address))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        let authorities = self.authorities.clone();
        let process_id: Arc<str> = process_id.into();
        let told = Arc::new(AtomicBool::new(false));
        let connector = tower::service_fn(move |_: Uri| {
            let (address, authorities) = (address.clone(), authorities.clone());
            let (process_id, told) = (process_id.clone(), told.clone());
            async move {
                let connected = address.connect(authorities).await;
                match &connected {
                    Ok(_) => told.store(false, Ordering::Release),
                    // Once until it works again.
                    Err(error) if !told.swap(true, Ordering::AcqRel) => tracing::warn!(
                        process = &*process_id,
                        address = &*address.authority,
                        "cannot connect to another process of this hub: {error}"
                    ),
                    Err(_) => {}
                }
                connected.map(TokioIo::new).map_err(std::io::Error::other)
            }
        });
        Ok(endpoint.connect_with_connector_lazy(connector))
    }
}

impl Peers for Pool {
    fn channel<'a>(&'a self, process_id: &'a str, caller: &'a Caller) -> Answer<'a, Channel> {
        self.reach(process_id, caller).boxed()
    }
}

/// Where a process is reached.
#[derive(Clone)]
struct Address {
    authority: Arc<str>,
    host: Arc<str>,
    port: u16,
    secure: bool,
}

type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

impl Address {
    fn parse(address: &str) -> Result<Address, String> {
        let none = || format!("{address} is no address");
        let uri: Uri = address.parse().map_err(|_| none())?;
        let secure = uri.scheme_str() == Some("https");
        let authority = uri.authority().ok_or_else(none)?;
        let host = authority.host().trim_matches(['[', ']']);
        Ok(Address {
            authority: authority.as_str().into(),
            host: host.into(),
            port: authority
                .port_u16()
                .unwrap_or(if secure { 443 } else { 80 }),
            secure,
        })
    }

    async fn connect(&self, authorities: Option<PathBuf>) -> Result<Stream, String> {
        let stream = TcpStream::connect((&*self.host, self.port)).await;
        let stream = stream.map_err(|error| error.to_string())?;
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        if !self.secure {
            return Ok(Either::Left(stream));
        }
        let authorities = authorities.ok_or("there is no --tls-peer-ca-file to know it by")?;
        let config = tokio::task::spawn_blocking(move || tls::client(&authorities)).await;
        let config = config.map_err(|error| error.to_string())??;
        let name = ServerName::try_from(self.host.to_string());
        let name = name.map_err(|error| error.to_string())?;
        let connector = TlsConnector::from(Arc::new(config));
        let secured = connector.connect(name, stream).await;
        let secured = secured.map_err(|error| error.to_string())?;
        Ok(Either::Right(Box::new(secured)))
    }
}

/// Passes calls of one caller on.
#[derive(Clone)]
struct Forwarding {
    channel: Connected,
    calls: Arc<AtomicUsize>,
    internal: Internal,
    processes: Arc<Processes>,
    process_id: Arc<str>,
    caller: Caller,
}

impl Service<Request<Body>> for Forwarding {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = BoxFuture<'static, Result<Response<Body>, StdError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        self.channel.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let target = Target {
            process_id: &self.process_id,
            path: request.uri().path(),
        };
        let signed = self
            .internal
            .sign(&self.caller, target, self.processes.time());
        let signed = match signed {
            Ok(signed) => signed,
            Err(error) => return async { Err(Status::from(error).into()) }.boxed(),
        };
        request.headers_mut().remove(AUTHORIZATION);
        request.headers_mut().insert(FORWARDED_HEADER, signed);
        let span = self.caller.origin.span.map(|span| span.to_string());
        if let Some(span) = span.and_then(|text| HeaderValue::try_from(text).ok()) {
            request.headers_mut().insert(TRACEPARENT, span);
        }
        metrics::counter!("hub_calls_forwarded_total").increment(1);
        let at_work = AtWork::begin(&self.calls);
        let calling = self.channel.call(request);
        async move {
            let response = calling.await?;
            Ok(response.map(|inner| {
                Body::new(Forwarded {
                    inner,
                    _at_work: at_work,
                })
            }))
        }
        .boxed()
    }
}

/// Counts a call until its answer has ended.
struct AtWork(Arc<AtomicUsize>);

impl AtWork {
    fn begin(calls: &Arc<AtomicUsize>) -> Self {
        calls.fetch_add(1, Ordering::AcqRel);
        AtWork(calls.clone())
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The answer of the other process.
struct Forwarded {
    inner: Body,
    _at_work: AtWork,
}

impl http_body::Body for Forwarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_host_and_port() {
        for (address, host, port, secure) in [
            ("http://10.0.0.1:7070", "10.0.0.1", 7070, false),
            ("https://[::1]:7070", "::1", 7070, true),
            ("https://hub-1.internal", "hub-1.internal", 443, true),
        ] {
            let parsed = Address::parse(address).unwrap();
            assert_eq!((&*parsed.host, parsed.port), (host, port), "{address}");
            assert_eq!(parsed.secure, secure, "{address}");
        }
        assert!(Address::parse("/path").is_err());
    }
}
