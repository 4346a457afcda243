//! What is asked about a request: everything that the decision depends on.

use std::net::IpAddr;

use http::header::HOST;
use http::request::Parts;
use hub_proto::credential::joined;
use hub_proto::hub::api_keys::v1::VerifyApiKeyRequest;

/// A request as the hub decides about it. Requests with the same question share decisions. It holds
/// a secret, so it is not shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) key: String,
    pub(super) product: String,
    pub(super) action: String,
    pub(super) host: String,
    pub(super) path: String,
    pub(super) client: Option<IpAddr>,
}

impl Question {
    /// The call that asks, and counts `cost` requests if they are allowed.
    pub(super) fn call(&self, cost: u32) -> VerifyApiKeyRequest {
        VerifyApiKeyRequest {
            key: self.key.clone(),
            product: self.product.clone(),
            action: self.action.clone(),
            host: self.host.clone(),
            path: self.path.clone(),
            client_ip: self.client.map(|ip| ip.to_string()).unwrap_or_default(),
            cost: Some(cost),
            dry_run: false,
        }
    }
}

/// The host that the request names. An URL with a host wins over the header (RFC 9112, 3.2.2);
/// several headers are no host, and so no host of a product.
pub(super) fn host(parts: &Parts) -> String {
    match parts.uri.authority() {
        Some(authority) => authority.as_str().to_owned(),
        None => joined(&parts.headers, HOST.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn host_of(request: http::request::Builder) -> String {
        host(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn the_host_is_that_of_the_url_else_of_the_only_header() {
        let with = |host| Request::get("/tickets").header("host", host);
        assert_eq!(host_of(with("psa.example.com")), "psa.example.com");
        let url = Request::get("http://psa.example.com:8080/a").header("host", "crm.example.com");
        assert_eq!(host_of(url), "psa.example.com:8080");
        let two = with("psa.example.com").header("host", "crm.example.com");
        assert_eq!(host_of(two), "psa.example.com,crm.example.com");
        assert_eq!(host_of(Request::get("/")), "");
    }
}
