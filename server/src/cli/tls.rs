//! Settings of TLS.

use std::path::PathBuf;

use crate::tls::Files;

/// Certificates.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// Certificate chain of the server, PEM, its own certificate first. It is read again when the
    /// file changes, and on SIGHUP.
    #[arg(long)]
    pub tls_cert_file: Option<PathBuf>,
    /// Private key of the certificate, PEM (PKCS#8, PKCS#1 or SEC1).
    #[arg(long)]
    pub tls_key_file: Option<PathBuf>,
    /// Certificates of the authorities, PEM, that callers need a certificate of; RPCs without one
    /// are refused. Health checks, `/livez`, `/readyz` and `/metrics` need none.
    #[arg(long)]
    pub tls_client_ca_file: Option<PathBuf>,
    /// Certificates of the authorities, PEM, by which this server knows the others on the same
    /// PostgreSQL, if they advertise `https://`; else those in the certificate chain of the server.
    /// The file is read for each connection.
    #[arg(long)]
    pub tls_peer_ca_file: Option<PathBuf>,
}

impl TlsArgs {
    /// The files; none without TLS.
    pub fn files(&self) -> Result<Option<Files>, (&'static str, String)> {
        let missing = |setting, flag, other| {
            Err((setting, format!("--{flag} is missing: --{other} is given")))
        };
        match (&self.tls_cert_file, &self.tls_key_file) {
            (Some(certificate), Some(key)) => Ok(Some(Files {
                certificate: certificate.clone(),
                key: key.clone(),
                client_authorities: self.tls_client_ca_file.clone(),
            })),
            (None, None) if self.tls_client_ca_file.is_some() => {
                missing("tls_client_ca_file", "tls-cert-file", "tls-client-ca-file")
            }
            (None, None) => Ok(None),
            (Some(_), None) => missing("tls_cert_file", "tls-key-file", "tls-cert-file"),
            (None, Some(_)) => missing("tls_key_file", "tls-cert-file", "tls-key-file"),
        }
    }
}
