//! TLS of the one port: certificates, read again when they change.
//!
//! Callers may be asked for a certificate too. The handshake lets those without one pass, so that
//! probes work; who may call RPCs is decided in `admission.rs`, by [`Verified`].

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How often the files are compared with what was loaded: tools that renew them send no signal.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Where the certificates are, all PEM.
#[derive(Debug, Clone)]
pub struct Files {
    /// The server's chain, its own certificate first.
    pub certificate: PathBuf,
    /// The private key of it.
    pub key: PathBuf,
    /// Authorities of callers' certificates; none = callers are not asked for one.
    pub client_authorities: Option<PathBuf>,
}

/// The caller of a request showed a certificate of a known authority; in the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Verified;

/// The certificates in use.
pub struct Tls {
    files: Files,
    current: RwLock<Loaded>,
}

#[derive(Clone)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// What was in the files.
    content: Content,
}

#[derive(Clone, PartialEq, Eq)]
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_authorities: Option<Vec<u8>>,
}

impl Tls {
    /// Loads the files.
    pub fn load(files: Files) -> Result<Tls, String> {
        let content = Content::read(&files)?;
        let config = Arc::new(content.config(&files)?);
        Ok(Tls {
            files,
            current: RwLock::new(Loaded { config, content }),
        })
    }

    /// What makes the handshake of a new connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(current.config.clone())
    }

    /// Loads the files again; true if they had changed. On an error all stays as it was.
    pub fn reload(&self) -> Result<bool, String> {
        let content = Content::read(&self.files)?;
        let is_same = {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            current.content == content
        };
        if is_same {
            return Ok(false);
        }
        let config = Arc::new(content.config(&self.files)?);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Loaded { config, content };
        Ok(true)
    }

    /// Reloads on SIGHUP and when a file has changed, until `stopped`. Connections that are open
    /// stay as they are.
    pub async fn watch(self: Arc<Self>, stopped: CancellationToken) {
        let mut hangup = signal(SignalKind::hangup())
            .inspect_err(|error| tracing::warn!("cannot take SIGHUP: {error}"))
            .ok();
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        // A file that stays wrong is told once.
        let mut told = String::new();
        loop {
            let asked = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            let signalled = tokio::select! {
                () = stopped.cancelled() => return,
                _ = asked => true,
                _ = looks.tick() => false,
            };
            let this = self.clone();
            let reloaded = tokio::task::spawn_blocking(move || this.reload()).await;
            match reloaded {
                Ok(Ok(true)) => tracing::info!("new certificates are in use"),
                Ok(Ok(false)) if signalled => tracing::info!("the certificates are the same"),
                Ok(Ok(false)) => {}
                Ok(Err(error)) if error == told && !signalled => continue,
                Ok(Err(error)) => {
                    tracing::error!("the old certificates stay in use: {error}");
                    told = error;
                    continue;
                }
                Err(_) => return,
            }
            told.clear();
        }
    }
}

impl Content {
    fn read(files: &Files) -> Result<Content, String> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        Ok(Content {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            client_authorities: files.client_authorities.as_deref().map(read).transpose()?,
        })
    }

    fn config(&self, files: &Files) -> Result<ServerConfig, String> {
        let chain = certificates(&self.certificate, &files.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| format!("{} has no private key: {error}", files.key.display()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("cannot set up TLS: {error}"))?;
        let builder = match (&self.client_authorities, &files.client_authorities) {
            (Some(pem), Some(path)) => {
                let failed = |error: &dyn std::fmt::Display| {
                    format!("{} cannot be used: {error}", path.display())
                };
                let mut roots = RootCertStore::empty();
                for authority in certificates(pem, path)? {
                    roots.add(authority).map_err(|error| failed(&error))?;
                }
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| failed(&error))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            let (certificate, key) = (files.certificate.display(), files.key.display());
            format!("{certificate} and {key} cannot be used together: {error}")
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// The certificates of a file, as authorities.
pub fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let shown = path.display();
    let pem = std::fs::read(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let mut roots = RootCertStore::empty();
    for authority in certificates(&pem, path)? {
        let added = roots.add(authority);
        added.map_err(|error| format!("{shown} cannot be used: {error}"))?;
    }
    Ok(roots)
}

/// How this process knows another one that it calls.
pub fn client(authorities: &Path) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot set up TLS: {error}"))?
        .with_root_certificates(self::authorities(authorities)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|error| format!("{} is not PEM: {error}", path.display()))?;
    if read.is_empty() {
        return Err(format!("{} has no certificate", path.display()));
    }
    Ok(read)
}
