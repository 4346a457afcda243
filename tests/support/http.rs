//! HTTP/1.1 as curl speaks it, and gRPC by hand, to send what no client would send.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;
use tonic::Status;

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A header as text, empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The status of a gRPC answer, from its head or its trailers.
    pub fn grpc_status(&self) -> Status {
        let found = Status::from_header_map(&self.trailers);
        found
            .or_else(|| Status::from_header_map(&self.headers))
            .expect("a gRPC answer")
    }

    /// Reason in the first detail of an error.
    pub fn reason(&self) -> String {
        self.json()["details"][0]["debug"]["reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

/// One request on a connection of its own.
pub async fn request(
    addr: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    request = request.header(header::HOST, addr.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.into())).unwrap();
    read(sender.send_request(request).await.unwrap()).await
}

/// One gRPC request over HTTP/2 with this body, whatever it is.
pub async fn post_grpc(
    addr: SocketAddr,
    method: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut request = Request::post(format!("http://{addr}/{method}"));
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header(header::CONTENT_TYPE, "application/grpc");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .header(header::TE, "trailers")
        .body(Full::new(body.into()))
        .unwrap();
    read(sender.send_request(request).await.unwrap()).await
}

/// A message as gRPC frames it.
pub fn frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), message].concat().into()
}

async fn read(response: http::Response<hyper::body::Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let body = collected.to_bytes();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body,
        trailers,
    }
}

/// A JSON call, e.g. of `hub.api_keys.v1.ApiKeys/WhoAmI`.
pub async fn post_json(addr: SocketAddr, method: &str, key: &str, body: &str) -> Answer {
    let bearer = format!("Bearer {key}");
    let headers = [
        ("content-type", "application/json"),
        ("authorization", bearer.as_str()),
    ];
    request(
        addr,
        Method::POST,
        &format!("/{method}"),
        &headers,
        body.to_owned(),
    )
    .await
}
