//! What one caller may take of the server.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use hub_client::proto::hub::api_keys::v1::WhoAmIRequest;
use hub_client::proto::hub::platform::v1::CreateTenantRequest;
use hub_core::storage::Sql;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use crate::support::{Backend, TestHub, request};

/// Whether a new connection is served; it stays open as long as it is kept.
async fn connect(hub: &TestHub) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(hub.addr).await.unwrap();
    let asked = stream
        .write_all(b"GET /livez HTTP/1.1\r\nhost: hub\r\n\r\n")
        .await;
    let mut first = [0; 12];
    match asked.and(stream.read_exact(&mut first).await) {
        Ok(_) => {
            assert_eq!(&first, b"HTTP/1.1 200");
            Some(stream)
        }
        Err(error) => {
            let closed = [
                ErrorKind::UnexpectedEof,
                ErrorKind::ConnectionReset,
                ErrorKind::BrokenPipe,
            ];
            assert!(closed.contains(&error.kind()), "{error}");
            None
        }
    }
}

both_databases! {
    async fn headers_that_are_too_large_are_refused(hub: TestHub) {
        let large = "x".repeat(40_000);
        let headers = [("x-large", large.as_str())];
        let answer = request(hub.addr, Method::GET, "/livez", &headers, "").await;
        assert_eq!(answer.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }

    async fn a_connection_too_many_is_closed_at_once(backend: Backend) {
        let hub = TestHub::options(backend).config(|config| config.connections_max = 5);
        let hub = hub.start().await;
        let mut open = Vec::new();
        for _ in 0..10 {
            open.push(connect(&hub).await);
        }
        let served = open.iter().flatten().count();
        assert!((1..=5).contains(&served), "{served}");
        assert!(open.last().unwrap().is_none());
        drop(open);
        // The places are free again as soon as the server has noticed.
        while connect(&hub).await.is_none() {
            tokio::task::yield_now().await;
        }
    }

    async fn a_call_too_many_on_a_connection_is_refused_and_the_others_go_on(backend: Backend) {
        let hub = TestHub::options(backend);
        let hub = hub.limits(|limits| limits.connection_requests_max = 1).start().await;
        let client = hub.client(&hub.operator_key);
        let lock = Sql::each(
            "select head from journal_heads where tenant_no = 0",
            "select head from journal_heads where tenant_no = 0 for update",
        );
        let mut blocking = hub.core.db.begin().await.unwrap();
        let _: (i64,) = blocking.query(lock).one().await.unwrap();
        let mut platform = client.platform();
        let slow = tokio::spawn(async move {
            loop {
                let request = CreateTenantRequest { name: "Slow".into(), ..Default::default() };
                match platform.create_tenant(request).await {
                    // The other caller had the place.
                    Err(status) if status.code() == Code::ResourceExhausted => {}
                    done => return done,
                }
            }
        });
        // The first call is at work once the second one finds no place.
        let refused = loop {
            match client.api_keys().who_am_i(WhoAmIRequest {}).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(status) => {
                    let left = status.metadata().get("x-ratelimit-remaining");
                    assert!(left.is_some(), "{status:?}");
                    break hub_client::Error::from(status);
                }
            }
        };
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(refused.reason(), Some("QUOTA_EXCEEDED"));
        assert!(refused.retry_after().is_some());
        drop(blocking);
        assert!(slow.await.unwrap().is_ok());
    }
}

/// What a client says first in HTTP/2: the preface and empty settings.
const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

// The transport alone closes it, whatever the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_answers_no_more_is_noticed_within_25_seconds() {
    let hub = TestHub::start(Backend::Sqlite).await;
    let mut silent = TcpStream::connect(hub.addr).await.unwrap();
    silent.write_all(BEGIN).await.unwrap();
    let begun = Instant::now();
    let mut said = Vec::new();
    // It reads, but never answers a ping.
    let ended = tokio::time::timeout(Duration::from_secs(27), silent.read_to_end(&mut said)).await;
    assert!(ended.is_ok(), "the connection is still open");
    assert!(
        begun.elapsed() > Duration::from_secs(15),
        "it was closed before it was asked"
    );
}
