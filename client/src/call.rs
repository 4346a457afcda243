//! What every call carries: the key, the tenant, who is calling, and a deadline.

use std::time::Duration;

use hub_proto::policy::method_policy;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{GrpcMethod, Request, Status};

use crate::error::{Error, Result};

/// Version of this crate as the hub shows it, e.g. `rust/0.1.0`.
const CLIENT: &str = concat!("rust/", env!("CARGO_PKG_VERSION"));

/// The connection that all clients of a [`Hub`](crate::Hub) share; cheap to clone. Use it for
/// generated clients that this crate does not offer.
pub type Transport = InterceptedService<Channel, CallHeaders>;

/// Adds `authorization` (marked sensitive, so it is not logged), `x-hub-tenant` and
/// `x-hub-client` to every call, and the deadline to unary calls that have none.
#[derive(Debug, Clone)]
pub struct CallHeaders {
    authorization: Option<MetadataValue<Ascii>>,
    tenant: Option<MetadataValue<Ascii>>,
    deadline: Option<Duration>,
}

impl CallHeaders {
    /// Fails if the key or the tenant can't be sent in a header.
    pub(crate) fn new(
        key: Option<&str>,
        tenant: Option<&str>,
        deadline: Option<Duration>,
    ) -> Result<Self> {
        let authorization = key.map(|key| header("API key", &format!("Bearer {}", key.trim())));
        let mut authorization = authorization.transpose()?;
        if let Some(value) = &mut authorization {
            value.set_sensitive(true);
        }
        let tenant = tenant
            .map(|tenant| header("tenant", tenant.trim()))
            .transpose()?;
        Ok(CallHeaders {
            authorization,
            tenant,
            deadline,
        })
    }
}

/// The value is not in the error, because it may be a secret.
fn header(what: &str, value: &str) -> Result<MetadataValue<Ascii>> {
    value.parse().map_err(|_| {
        Error::invalid(format!(
            "The {what} has characters that no header can carry. Check it."
        ))
    })
}

impl Interceptor for CallHeaders {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let deadline = self.deadline.filter(|_| is_unary(&request));
        let metadata = request.metadata_mut();
        if let Some(value) = &self.authorization {
            metadata.insert("authorization", value.clone());
        }
        if let Some(value) = &self.tenant {
            metadata.insert("x-hub-tenant", value.clone());
        }
        metadata.insert("x-hub-client", MetadataValue::from_static(CLIENT));
        if let Some(deadline) = deadline.filter(|_| !metadata.contains_key("grpc-timeout")) {
            request.set_timeout(deadline);
        }
        Ok(request)
    }
}

/// A method that is not of the hub has no default deadline: it may be a stream.
fn is_unary(request: &Request<()>) -> bool {
    let Some(method) = request.extensions().get::<GrpcMethod<'static>>() else {
        return false;
    };
    method_policy(&format!("/{}/{}", method.service(), method.method()))
        .is_some_and(|policy| !policy.client_streaming && !policy.server_streaming)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &'static str) -> Request<()> {
        let mut request = Request::new(());
        request
            .extensions_mut()
            .insert(GrpcMethod::new("hub.event_bus.v1.EventBus", method));
        request
    }

    fn headers() -> CallHeaders {
        let deadline = Some(Duration::from_secs(10));
        CallHeaders::new(Some("tos_secret\n"), Some("tnt_1"), deadline).unwrap()
    }

    #[test]
    fn every_call_carries_the_key_the_tenant_and_the_version() {
        let request = headers().call(request("Publish")).unwrap();
        let metadata = request.metadata();
        assert_eq!(metadata.get("authorization").unwrap(), "Bearer tos_secret");
        assert!(metadata.get("authorization").unwrap().is_sensitive());
        assert_eq!(metadata.get("x-hub-tenant").unwrap(), "tnt_1");
        assert_eq!(metadata.get("x-hub-client").unwrap(), CLIENT);
        assert!(!format!("{:?}", headers()).contains("secret"));
    }

    #[test]
    fn unary_calls_get_a_deadline_and_streams_do_not() {
        let timeout = |method| {
            let request = headers().call(request(method)).unwrap();
            request
                .metadata()
                .get("grpc-timeout")
                .map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(timeout("Publish").as_deref(), Some("10000000u"));
        assert_eq!(timeout("Subscribe"), None);
        assert_eq!(timeout("PublishStream"), None);
    }

    #[test]
    fn a_deadline_of_the_caller_is_kept() {
        let mut own = request("Publish");
        own.set_timeout(Duration::from_secs(1));
        let request = headers().call(own).unwrap();
        assert_eq!(request.metadata().get("grpc-timeout").unwrap(), "1000000u");
    }

    #[test]
    fn a_key_that_no_header_can_carry_is_refused_without_showing_it() {
        let error = CallHeaders::new(Some("tos_\u{1}secret"), None, None).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert!(!error.to_string().contains("secret"));
    }
}
