//! TLS of the one port, and certificates of callers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::WhoAmIRequest;
use hub_proto::envoy::service::auth::v3::CheckRequest;
use hub_proto::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{Backend, Command, TestProcess, in_time};

/// An authority, and the files of a server that it made.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// A chain and its key, PEM.
struct Identity {
    chain: String,
    key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::with_prefix("hub-test-").unwrap();
        let authority = Authority { issuer, folder };
        std::fs::write(authority.file("ca.pem"), authority.pem()).unwrap();
        authority.renew();
        authority
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn issue(&self) -> Identity {
        let key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let params = CertificateParams::new(names).unwrap();
        Identity {
            chain: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// Gives the server another certificate.
    fn renew(&self) -> CertificateDer<'static> {
        let identity = self.issue();
        std::fs::write(self.file("cert.pem"), &identity.chain).unwrap();
        std::fs::write(self.file("key.pem"), &identity.key).unwrap();
        CertificateDer::from_pem_slice(identity.chain.as_bytes()).unwrap()
    }

    pub async fn serve(&self, flags: &[&str]) -> TestProcess {
        let (cert, key) = (self.file("cert.pem"), self.file("key.pem"));
        let given = [
            "--tls-cert-file",
            cert.to_str().unwrap(),
            "--tls-key-file",
            key.to_str().unwrap(),
        ];
        TestProcess::start(Command::Serve, Backend::Sqlite, &[&given, flags].concat()).await
    }

    /// A connection that offers these protocols, and shows no certificate.
    async fn connect(&self, addr: SocketAddr, protocols: &[&str]) -> TlsStream<TcpStream> {
        self.secure(TcpStream::connect(addr).await.unwrap(), protocols)
            .await
    }

    /// TLS over a connection, with these protocols and without a certificate.
    pub async fn secure(&self, stream: TcpStream, protocols: &[&str]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(self.pem().as_bytes()).unwrap();
        roots.add(authority).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let protocols = protocols.iter().map(|name| name.as_bytes().to_vec());
        config.alpn_protocols = protocols.collect();
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await.unwrap()
    }

    /// Status of a plain page.
    async fn page(&self, addr: SocketAddr, path: &str) -> u16 {
        self.get(addr, path).await.0
    }

    /// Text of a plain page.
    async fn text(&self, addr: SocketAddr, path: &str) -> String {
        self.get(addr, path).await.1
    }

    /// A plain page over HTTP/1.1.
    async fn get(&self, addr: SocketAddr, path: &str) -> (u16, String) {
        let stream = self.connect(addr, &["http/1.1"]).await;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = http::Request::get(path).header("host", "localhost");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// The certificate that a server shows now.
    async fn shown(&self, addr: SocketAddr) -> CertificateDer<'static> {
        let stream = self.connect(addr, &["h2"]).await;
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        chain[0].clone().into_owned()
    }
}

fn client(process: &TestProcess, authority: &Authority, own: Option<&Identity>) -> Hub {
    let key = process.ready["operatorKey"].as_str().unwrap();
    let builder = Hub::builder(process.ready["http"].as_str().unwrap())
        .api_key(key)
        .ca_certificate(authority.pem());
    let builder = match own {
        Some(own) => builder.client_certificate(own.chain.as_str(), own.key.as_str()),
        None => builder,
    };
    builder.connect_lazy().unwrap()
}

/// Code of the decision about a request that Envoy tells nothing of.
async fn check(hub: &Hub) -> Result<i32, tonic::Status> {
    let mut envoy = AuthorizationClient::new(hub.transport());
    let answer = envoy.check(CheckRequest::default()).await?;
    Ok(answer.into_inner().status.unwrap().code)
}

async fn who_am_i(hub: &Hub) -> Result<bool, hub_client::Error> {
    let answer = hub.api_keys().who_am_i(WhoAmIRequest::default()).await?;
    Ok(answer.into_inner().api_key.unwrap().all_tenants)
}

#[tokio::test]
async fn the_client_connects_with_the_authority_of_the_server_and_with_no_other() {
    let authority = Authority::new();
    let process = authority.serve(&[]).await;
    assert!(
        process.ready["http"]
            .as_str()
            .unwrap()
            .starts_with("https://127.0.0.1:")
    );
    assert!(who_am_i(&client(&process, &authority, None)).await.unwrap());
    let stranger = client(&process, &Authority::new(), None);
    assert_eq!(
        who_am_i(&stranger).await.unwrap_err().code(),
        tonic::Code::Unavailable
    );
    let plain = Hub::builder(format!("http://{}", process.addr()))
        .connect_lazy()
        .unwrap();
    assert!(who_am_i(&plain).await.is_err());
    // What ends badly holds nobody else up.
    assert!(who_am_i(&client(&process, &authority, None)).await.unwrap());
}

#[tokio::test]
async fn both_versions_of_http_are_offered() {
    let authority = Authority::new();
    let process = authority.serve(&[]).await;
    for (asked, answered) in [
        (&["h2", "http/1.1"][..], Some(&b"h2"[..])),
        (&["http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let stream = authority.connect(process.addr(), asked).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), answered);
    }
    assert_eq!(authority.page(process.addr(), "/livez").await, 200);
}

#[tokio::test]
async fn with_tls_other_machines_may_be_listened_to() {
    let authority = Authority::new();
    let path = |name: &str| authority.file(name).display().to_string();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let open = ["config", "check", "--listen", "0.0.0.0:7070"];
    let tls = ["--tls-cert-file", &cert, "--tls-key-file", &key];
    let told = TestProcess::run(authority.folder.path(), &open).await;
    assert!(told.log.contains("--insecure"), "{}", told.log);
    let told = TestProcess::run(authority.folder.path(), &[&open[..], &tls].concat()).await;
    assert!(told.status.success(), "{}", told.log);
}

#[tokio::test]
async fn rpcs_need_a_certificate_where_an_authority_is_given_and_probes_need_none() {
    let authority = Authority::new();
    let callers = Authority::new();
    let file = callers.file("ca.pem");
    let flags = ["--tls-client-ca-file", file.to_str().unwrap()];
    let process = authority.serve(&flags).await;

    let bare = client(&process, &authority, None);
    let refused = who_am_i(&bare).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    assert_eq!(refused.reason(), Some("KEY_MISSING"));
    assert!(
        refused.message().contains("client certificate"),
        "{refused}"
    );
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(authority.page(process.addr(), path).await, 200, "{path}");
    }
    let mut health = HealthClient::new(bare.transport());
    health.check(HealthCheckRequest::default()).await.unwrap();
    let mut reflection =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(
            bare.transport(),
        );
    let asked = reflection
        .server_reflection_info(tokio_stream::empty())
        .await;
    assert_eq!(asked.unwrap_err().code(), tonic::Code::Unauthenticated);
    // Proxies need no key, but they are no probes.
    let refused = check(&bare).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    assert_eq!(authority.page(process.addr(), "/authz").await, 403);

    let known = client(&process, &authority, Some(&callers.issue()));
    assert!(who_am_i(&known).await.unwrap());
    assert_eq!(check(&known).await.unwrap(), tonic::Code::Internal as i32);
    // One of another authority does not get through the handshake, also not to probes: no answer
    // of the hub has come.
    let unknown = client(&process, &authority, Some(&authority.issue()));
    assert_eq!(who_am_i(&unknown).await.unwrap_err().reason(), None);
    let mut health = HealthClient::new(unknown.transport());
    let refused = health.check(HealthCheckRequest::default()).await;
    assert_eq!(hub_client::Error::from(refused.unwrap_err()).reason(), None);
    in_time(async {
        let counted = |text: &str| {
            let lines = text.lines();
            let mut values =
                lines.filter_map(|line| line.strip_prefix("hub_tls_handshakes_failed_total "));
            values.any(|value| value != "0")
        };
        while !counted(&authority.text(process.addr(), "/metrics").await) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn new_certificates_are_used_after_sighup_and_broken_ones_are_not() {
    let authority = Authority::new();
    let process = authority.serve(&[]).await;
    let long_lived = client(&process, &authority, None);
    assert!(who_am_i(&long_lived).await.unwrap());
    let renewed = authority.renew();
    assert_ne!(authority.shown(process.addr()).await, renewed);
    process.signal("HUP");
    in_time(async {
        while authority.shown(process.addr()).await != renewed {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Connections from before go on.
    assert!(who_am_i(&long_lived).await.unwrap());

    let other = authority.issue();
    std::fs::write(authority.file("key.pem"), &other.key).unwrap();
    process.signal("HUP");
    in_time(async {
        while !process.log().contains("the old certificates stay in use") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(authority.shown(process.addr()).await, renewed);
    assert!(who_am_i(&client(&process, &authority, None)).await.unwrap());
}

#[tokio::test]
async fn certificates_that_cannot_be_used_stop_the_start() {
    let (authority, other) = (Authority::new(), Authority::new());
    let path = |authority: &Authority, name: &str| authority.file(name).display().to_string();
    let (cert, key) = (path(&authority, "cert.pem"), path(&authority, "key.pem"));
    let wrong = path(&other, "key.pem");
    for (flags, expected) in [
        (vec!["--tls-cert-file", &cert], "--tls-key-file is missing"),
        (vec!["--tls-key-file", &key], "--tls-cert-file is missing"),
        (
            vec!["--tls-client-ca-file", &cert],
            "--tls-cert-file is missing",
        ),
        (
            vec!["--tls-cert-file", &cert, "--tls-key-file", &wrong],
            "cannot be used together",
        ),
        (
            vec!["--tls-cert-file", &key, "--tls-key-file", &key],
            "has no certificate",
        ),
        (
            vec!["--tls-cert-file", &cert, "--tls-key-file", &cert],
            "has no private key",
        ),
        (
            vec!["--tls-cert-file", "nowhere.pem", "--tls-key-file", &key],
            "cannot read nowhere.pem",
        ),
    ] {
        let arguments = [&["serve", "--listen", "127.0.0.1:0"][..], &flags].concat();
        let (status, told) = TestProcess::refused(&arguments).await;
        assert_eq!(status.code(), Some(1), "{told}");
        assert!(told.contains(expected), "{expected}: {told}");
    }
}
