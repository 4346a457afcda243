//! `https`: whom to believe, and what to show.

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::error::{Error, Result};

/// Certificates of a connection, all PEM.
#[derive(Clone, Default)]
pub(crate) struct Tls {
    /// Authorities of the server's certificate; none = those of Mozilla.
    pub authorities: Option<Vec<u8>>,
    /// The chain that is shown, and its private key.
    pub own: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    pub(crate) fn secured(&self, endpoint: Endpoint) -> Result<Endpoint> {
        let tls = match &self.authorities {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_enabled_roots(),
        };
        let tls = match &self.own {
            Some((chain, key)) => tls.identity(Identity::from_pem(chain, key)),
            None => tls,
        };
        endpoint
            .tls_config(tls)
            .map_err(|error| Error::invalid(format!("TLS can't be set up: {error}.")))
    }
}
