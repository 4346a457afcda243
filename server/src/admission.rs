//! Who may call what: no handler sees a request that was not admitted.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hub_core::auth::{self, Authenticator, Caller, Credential, Holder, Origin, Refusal};
use hub_core::error::{Error, Result};
use hub_core::internal::{self, Internal};
use hub_core::processes::Processes;
use hub_core::tenancy::Tenancy;
use hub_proto::policy::MethodPolicy;
use metrics::Counter;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::api_limit::{ApiLimit, Left};
use crate::call::Call;
use crate::known::Known;
use crate::methods::Method;
use crate::tls::Verified;
use crate::until_drained::UntilDrained;
use crate::{unexplained, unknown};

/// Services that anyone may ask.
const PUBLIC: [&str; 2] = [HEALTH, "/grpc.reflection."];
/// How the paths of the contract begin.
const PACKAGES: &str = "/hub.";
/// Probes have no certificate.
const HEALTH: &str = "/grpc.health.v1.";
/// How long a request that is refused anyhow waits to know whose key it has.
const LOOKED_UP_WITHIN: Duration = Duration::from_millis(200);

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
    /// Whose key works, and is refused all the same.
    refused: Option<Caller>,
}

/// Address of the other end of a connection; in the extensions of its requests.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The layer. The caller goes into the extensions of the request, and to what is known of the call.
pub async fn admit<F>(
    gate: &Gate,
    known: &Known,
    mut request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    let path = request.uri().path();
    let now = gate.processes.time();
    let forwarded = gate.internal.caller(request.headers(), path, now);
    // Another process has shown what is worth more than a certificate.
    let is_process = matches!(forwarded, Ok(Some(_)));
    let shown = is_process || request.extensions().get::<Verified>().is_some();
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
            Ok(Some(caller)) => gate.admit_process(caller, known, request, next).await,
            // Strangers do not learn that it is there.
            Ok(None) => refuse(unknown::error(path)),
            Err(error) => refuse(error),
        };
    }
    let method = Method::of(path);
    let Some((method, policy)) = method.and_then(|known| Some((known, known.policy?))) else {
        // Not of the contract: a service that finds out itself who is calling, or the router.
        known.left(gate.left_of_crowded(&request));
        return next(introduced(request)).await;
    };
    if policy.public {
        return next(request).await;
    }
    let credential = credential(request.uri(), request.headers(), request.extensions());
    let decided = gate.decide(policy, credential, forwarded).await;
    count(&decided.caller);
    known.left(decided.left);
    let mut caller = match decided.caller {
        Ok(caller) => caller,
        Err(error) => {
            let (call, who) = (Call::of(&request), (credential, decided.refused.as_ref()));
            let left = gate.note(policy, &call, who, &error);
            known.left(decided.left.or(left));
            return refuse(error);
        }
    };
    // What was passed on keeps the id and the address that it came with.
    if !caller.origin.forwarded {
        caller.origin = Arc::new(Origin {
            scope: policy.scope,
            ..origin(&request)
        });
    }
    known.admitted(caller.clone());
    // Strangers do not learn what is built.
    if method.is_built {
        request.extensions_mut().insert(caller);
        next(request).await
    } else {
        refuse(unexplained::not_implemented(policy.method, ""))
    }
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

/// What a request presents.
fn credential<'a>(uri: &'a Uri, headers: &'a HeaderMap, extensions: &Extensions) -> Credential<'a> {
    Credential {
        headers,
        query: uri.query().unwrap_or_default(),
        peer: extensions.get::<Peer>().map(|peer| peer.0.ip()),
    }
}

impl Gate {
    /// Another process calls for this caller.
    async fn admit_process<F>(
        &self,
        caller: Caller,
        known: &Known,
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
        known.admitted(caller);
        next(request).await
    }

    /// What is left of the limit of whoever sends a request that is refused before it comes to
    /// admission; none if nobody knows who that is. It is not counted.
    pub async fn left_of_refused(&self, parts: &Parts) -> Option<Left> {
        let (headers, extensions) = (&parts.headers, &parts.extensions);
        let credential = self.needed(&parts.uri, headers, extensions)?;
        if let Some(holder) = self.authenticator.remembered(credential) {
            return self.left_of_holder(holder, headers);
        }
        // A refusal does not wait long for the database.
        let asked = self.authenticator.authenticate(credential);
        let caller = tokio::time::timeout(LOOKED_UP_WITHIN, asked).await.ok()?;
        match caller {
            Ok(caller) => self.left_of(caller, headers),
            Err(_) => self.left_of_holder(self.authenticator.remembered(credential)?, headers),
        }
    }

    /// The same from memory.
    pub fn left_of_crowded(&self, request: &Request) -> Option<Left> {
        let (headers, extensions) = (request.headers(), request.extensions());
        let credential = self.needed(request.uri(), headers, extensions)?;
        let holder = self.authenticator.remembered(credential)?;
        self.left_of_holder(holder, headers)
    }

    /// What a request presents, if it is for an RPC that needs a key, or for none that there is.
    fn needed<'a>(
        &self,
        uri: &'a Uri,
        headers: &'a HeaderMap,
        extensions: &Extensions,
    ) -> Option<Credential<'a>> {
        let is_shown = !self.certificates || extensions.get::<Verified>().is_some();
        let needs = match Method::of(uri.path()).and_then(|method| method.policy) {
            Some(policy) => !policy.public,
            None => uri.path().starts_with(PACKAGES),
        };
        (is_shown && needs).then(|| credential(uri, headers, extensions))
    }

    /// The same of a key that may work no more: nothing is left to its holder then.
    fn left_of_holder(&self, holder: Holder, headers: &HeaderMap) -> Option<Left> {
        let left = self.left_of(holder.caller, headers)?;
        Some(if holder.works { left } else { left.nothing() })
    }

    /// What is left of the limit of the tenant of a call: of its key, or the one that it names.
    fn left_of(&self, mut caller: Caller, headers: &HeaderMap) -> Option<Left> {
        if caller.tenant.is_none() {
            let named = auth::named_tenant(headers).ok().flatten();
            caller.tenant = named.and_then(|named| self.tenancy.remembered(named));
        }
        self.limit.left(&caller)
    }

    /// A call was refused, which may have to be explained later. Returns what is left of the limit
    /// of whose key it is, if that is known.
    fn note(
        &self,
        policy: &MethodPolicy,
        call: &Call,
        (credential, caller): (Credential<'_>, Option<&Caller>),
        error: &Error,
    ) -> Option<Left> {
        let metadata = error.metadata().iter();
        let refusal = Refusal {
            call_id: &call.id,
            policy,
            reason: error.reason(),
            metadata: metadata
                .map(|(key, value)| (*key, value.as_str()))
                .collect(),
        };
        let holder = self.authenticator.refused(credential, caller, refusal)?;
        self.left_of_holder(holder, credential.headers)
    }

    async fn decide(
        &self,
        policy: &MethodPolicy,
        credential: Credential<'_>,
        forwarded: Result<Option<Caller>>,
    ) -> Decided {
        let headers = credential.headers;
        let is_forwarded = matches!(forwarded, Ok(Some(_)));
        let known = match forwarded {
            Err(error) => Err(error),
            Ok(_) if self.draining.is_cancelled() => Err(Error::draining()),
            Ok(Some(caller)) => Ok(caller),
            Ok(None) => self.authenticator.authenticate(credential).await,
        };
        let caller = match known {
            Ok(caller) => caller,
            Err(error) => {
                return Decided {
                    caller: Err(error),
                    left: None,
                    refused: None,
                };
            }
        };
        let admitted = auth::admit_caller(policy, caller.clone(), headers, &self.tenancy).await;
        // Only what passed everything else is counted.
        let (left, within) = match &admitted {
            Ok(caller) => self.limit.take(caller),
            Err(_) => (self.left_of(caller.clone(), headers), Ok(())),
        };
        let decided = admitted.and_then(|caller| within.map(|()| caller));
        Decided {
            // What was passed on is noted by the process that was called.
            refused: (decided.is_err() && !is_forwarded).then_some(caller),
            caller: decided,
            left,
        }
    }
}

fn refuse(error: Error) -> Response {
    Status::from(error).into_http::<Body>()
}
