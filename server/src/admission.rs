//! Who may call what: no handler sees a request that was not admitted.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hub_core::auth::{self, Authenticator, Caller, Credential, Origin, Refusal};
use hub_core::error::{Error, Result};
use hub_core::internal::{self, Internal};
use hub_core::processes::Processes;
use hub_core::tenancy::Tenancy;
use hub_proto::policy::{MethodPolicy, method_policy};
use metrics::Counter;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::api_limit::{ApiLimit, Left};
use crate::call::Call;
use crate::modules;
use crate::tls::Verified;
use crate::until_drained::UntilDrained;
use crate::{unexplained, unknown};

/// Services that anyone may ask.
const PUBLIC: [&str; 2] = [HEALTH, "/grpc.reflection."];
/// Probes have no certificate.
const HEALTH: &str = "/grpc.health.v1.";

/// What decides.
#[derive(Clone)]
pub struct Gate {
    /// Knows the keys.
    pub authenticator: Arc<dyn Authenticator>,
    /// Knows the tenants.
    pub tenancy: Tenancy,
    /// Knows the calls that other processes pass on.
    pub internal: Internal,
    /// The process, and its time.
    pub processes: Arc<Processes>,
    /// Set once the server is being stopped.
    pub draining: CancellationToken,
    /// Callers need a certificate beside their key.
    pub certificates: bool,
    /// Counts the calls of each tenant.
    pub limit: ApiLimit,
}

/// What was decided about a call, and what is left of its limit if it is known who calls.
struct Decided {
    caller: Result<Caller>,
    left: Option<Left>,
}

/// Address of the other end of a connection; in the extensions of its requests.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The layer. The caller goes into the extensions of request and response.
pub async fn admit<F>(
    gate: &Gate,
    mut request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    let path = request.uri().path();
    let shown = request.extensions().get::<Verified>().is_some();
    let now = gate.processes.time();
    let forwarded = gate.internal.caller(request.headers(), path, now);
    // Another process has shown what is worth more than a certificate.
    let shown = shown || matches!(forwarded, Ok(Some(_)));
    if gate.certificates && !shown && !path.starts_with(HEALTH) {
        return refuse(unexplained::no_certificate());
    }
    if PUBLIC.iter().any(|public| path.starts_with(public)) {
        // These know nothing of draining, and a client may watch health for ever.
        let response = next(request).await;
        return response.map(|body| Body::new(UntilDrained::new(body, gate.draining.clone())));
    }
    if path.starts_with(internal::SERVICES) {
        return match forwarded {
            Ok(Some(caller)) => gate.admit_process(caller, request, next).await,
            // Strangers do not learn that it is there.
            Ok(None) => refuse(unknown::error(path)),
            Err(error) => refuse(error),
        };
    }
    let Some(policy) = method_policy(path) else {
        // Not of the contract: a service that finds out itself who is calling, or the router.
        return next(introduced(request)).await;
    };
    if policy.public {
        return next(request).await;
    }
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    let decided = gate
        .decide(policy, request.headers(), peer, forwarded)
        .await;
    count(&decided.caller);
    let mut caller = match decided.caller {
        Ok(caller) => caller,
        Err(error) => {
            let known = gate.note(policy, &request, peer, &error);
            let left = decided.left;
            let left = left.or_else(|| gate.limit.left(&known?));
            return limited(refuse(error), left);
        }
    };
    // What was passed on keeps the id and the address that it came with.
    if !caller.origin.forwarded {
        caller.origin = Arc::new(Origin {
            scope: policy.scope,
            ..origin(&request)
        });
    }
    // Strangers do not learn what is built.
    let mut response = if modules::is_built(policy.method) {
        request.extensions_mut().insert(caller.clone());
        next(request).await
    } else {
        refuse(unexplained::not_implemented(policy.method, ""))
    };
    response.extensions_mut().insert(caller);
    limited(response, decided.left)
}

/// Counts a decision about a caller.
fn count(decided: &Result<Caller>) {
    // To find a counter by its name and label takes longer than to admit a call.
    static ADMITTED: LazyLock<Counter> = LazyLock::new(|| verifications("OK"));
    match decided {
        Ok(_) => ADMITTED.increment(1),
        Err(error) => verifications(error.reason()).increment(1),
    }
}

fn verifications(outcome: &'static str) -> Counter {
    metrics::counter!("hub_key_verifications_total", "outcome" => outcome)
}

/// The layer of what domains serve as plain HTTP: it tells them from where a request comes. Who is
/// calling they find out themselves.
pub async fn introduce(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    if gate.certificates && request.extensions().get::<Verified>().is_none() {
        return StatusCode::FORBIDDEN.into_response();
    }
    next.run(introduced(request)).await
}

/// The request with its origin, for who decides about callers himself.
fn introduced(mut request: Request) -> Request {
    let origin = origin(&request);
    request.extensions_mut().insert(origin);
    request
}

/// Where a request comes from that no other process passed on.
fn origin(request: &Request) -> Origin {
    let peer = request.extensions().get::<Peer>();
    let call = Call::of(request);
    Origin {
        call_id: call.id,
        client_ip: peer.map(|peer| peer.0.ip()),
        forwarded: false,
        span: Some(call.trace.into()),
        scope: "",
    }
}

/// The answer with what is left of the limit, whether it is good or an error.
fn limited(mut response: Response, left: Option<Left>) -> Response {
    if let Some(left) = left {
        left.write(response.headers_mut());
    }
    response
}

impl Gate {
    /// Another process calls for this caller.
    async fn admit_process<F>(
        &self,
        caller: Caller,
        mut request: Request,
        next: impl FnOnce(Request) -> F,
    ) -> Response
    where
        F: Future<Output = Response>,
    {
        if self.draining.is_cancelled() {
            return refuse(Error::draining());
        }
        request.extensions_mut().insert(caller.clone());
        let mut response = next(request).await;
        response.extensions_mut().insert(caller);
        response
    }

    /// A call was refused, which may have to be explained later. Returns whose key it is, if that
    /// is known.
    fn note(
        &self,
        policy: &MethodPolicy,
        request: &Request,
        peer: Option<IpAddr>,
        error: &Error,
    ) -> Option<Caller> {
        let headers = request.headers();
        let refusal = Refusal {
            call_id: &Call::of(request).id,
            policy,
            reason: error.reason(),
            metadata: error
                .metadata()
                .iter()
                .map(|(key, value)| (*key, value.as_str()))
                .collect(),
        };
        self.authenticator
            .refused(Credential { headers, peer }, refusal)
    }

    async fn decide(
        &self,
        policy: &MethodPolicy,
        headers: &HeaderMap,
        peer: Option<IpAddr>,
        forwarded: Result<Option<Caller>>,
    ) -> Decided {
        let known = match forwarded {
            Err(error) => Err(error),
            Ok(_) if self.draining.is_cancelled() => Err(Error::draining()),
            Ok(Some(caller)) => Ok(caller),
            Ok(None) => {
                let credential = Credential { headers, peer };
                self.authenticator.authenticate(credential).await
            }
        };
        let caller = match known {
            Ok(caller) => caller,
            Err(error) => {
                return Decided {
                    caller: Err(error),
                    left: None,
                };
            }
        };
        let admitted = auth::admit_caller(policy, caller.clone(), headers, &self.tenancy).await;
        // Only what passed everything else is counted.
        let (left, within) = match &admitted {
            Ok(caller) => self.limit.take(caller),
            Err(_) => (self.limit.left(&caller), Ok(())),
        };
        Decided {
            caller: admitted.and_then(|caller| within.map(|()| caller)),
            left,
        }
    }
}

fn refuse(error: Error) -> Response {
    Status::from(error).into_http::<Body>()
}
