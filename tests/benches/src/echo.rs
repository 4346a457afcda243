//! A bare server with the messages and headers of VerifyApiKey: what a call costs that decides
//! nothing.

use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use hub_client::proto::hub::api_keys::v1::{
    RateLimitState, VerifyApiKeyRequest, VerifyApiKeyResponse,
};
use hub_client::proto::server::api_keys_server::{ApiKeys, ApiKeysServer};
use prost_types::{Duration, Timestamp};
use tokio::net::TcpListener;
use tonic::metadata::MetadataMap;
use tonic::transport::Server as Transport;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::Result;
use crate::server::Server;

/// File in which the echo says where it is.
const READY: &str = "ready";

/// A process of this program that serves the echo; killed when it is dropped.
#[derive(Debug)]
pub struct Echo {
    server: Server,
    url: String,
}

impl Echo {
    /// Starts this program with `--echo` in a directory that exists.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(dir: &Path, threads: NonZeroUsize) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let threads = threads.to_string();
        command.args(["--echo", "--threads", &threads]);
        command.current_dir(dir);
        let mut server = Server::start("echo", &mut command, &dir.join("log"))?;
        let file = dir.join(READY);
        let url = server
            .until(async || std::fs::read_to_string(&file).ok())
            .await?;
        Ok(Echo { server, url })
    }

    /// Its process.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Where it is reached.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// Answers as the hub does to a key that may.
#[derive(Default)]
struct Answers {
    /// So that headers that are new in each answer of the hub are new in each of these.
    answered: AtomicU32,
}

impl Answers {
    /// The headers of every answer of the hub, of the same size.
    fn headers(&self) -> MetadataMap {
        let number = self.answered.fetch_add(1, Ordering::Relaxed);
        let headers = [
            ("x-request-id", format!("req_01m8erhyybe6bt1d{number:014}")),
            ("x-ratelimit-limit", "100000000".to_owned()),
            (
                "x-ratelimit-remaining",
                99_999_999u32.saturating_sub(number).to_string(),
            ),
            ("x-ratelimit-reset", "1795788475".to_owned()),
        ];
        let mut map = MetadataMap::new();
        for (name, value) in headers {
            if let Ok(value) = value.parse() {
                map.insert(name, value);
            }
        }
        map
    }
}

#[tonic::async_trait]
impl ApiKeys for Answers {
    async fn verify_api_key(
        &self,
        _: Request<VerifyApiKeyRequest>,
    ) -> std::result::Result<Response<VerifyApiKeyResponse>, Status> {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let told = VerifyApiKeyResponse {
            allowed: true,
            http_status: 200,
            key_id: "key_01m8erhyybe6bt1dyhrtq25nhs".to_owned(),
            tenant_id: "tnt_01m8erhyybe6bt1dyhrtq25nhs".to_owned(),
            key_product: "psa".to_owned(),
            scopes: vec!["psa:*".to_owned()],
            rate_limit: Some(RateLimitState {
                limit: 1_000_000_000,
                remaining: 999_999_000,
                reset_time: Some(Timestamp {
                    seconds: 1_795_788_475,
                    nanos: 123_000_000,
                }),
                ..RateLimitState::default()
            }),
            headers: [
                header("X-RateLimit-Limit", "1000000000"),
                header("X-RateLimit-Remaining", "999999000"),
                header("X-RateLimit-Reset", "1795788475"),
            ]
            .into(),
            cache_for: Some(Duration {
                seconds: 5,
                nanos: 0,
            }),
            epoch: 200_000,
            call_id: "req_01m8erhyybe6bt1dyhrtq25nhs".to_owned(),
            ..VerifyApiKeyResponse::default()
        };
        let mut answer = Response::new(told);
        *answer.metadata_mut() = self.headers();
        Ok(answer)
    }
}

/// Serves it, and says where.
///
/// # Errors
/// It cannot listen.
pub async fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    std::fs::write("starting", url)?;
    std::fs::rename("starting", READY)?;
    // Without delay of small packets, as the hub.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Transport::builder().add_service(ApiKeysServer::new(Answers::default()));
    Ok(server.serve_with_incoming(incoming).await?)
}
