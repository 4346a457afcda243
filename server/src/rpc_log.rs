//! One span, one line and one count per RPC. Never payloads, never keys.
//!
//! What is logged while the call is at work carries the span: the call's id and its trace. The
//! line at its end has the same by itself.

use std::sync::Arc;

use hub_core::auth::Caller;
use hub_proto::policy::{self, MethodPolicy};
use tonic::Code;
use tracing::Span;

use crate::call::Call;
use crate::meters::Meters;
use crate::modules;

/// Service and method of a path that the contract does not have: one label, whatever is asked.
const UNKNOWN: (&str, &str) = ("unknown", "unknown");

/// Services beside the contract, by path.
const PUBLIC: [&str; 5] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// What is known of a call while it runs.
pub struct Record {
    call: Call,
    path: Arc<str>,
    meters: Arc<Meters>,
    /// Who called, once admitted.
    pub caller: Option<Caller>,
    finished: bool,
}

impl Record {
    /// A call to `path` has begun.
    pub fn begin(call: &Call, path: &str) -> Self {
        let known = policy::method_policy(path).map(|policy| policy.method);
        let labels = known
            .or_else(|| beside(path))
            .and_then(|method| method.split_once('/'))
            .unwrap_or(UNKNOWN);
        let meters = Meters::of(labels);
        meters.started.increment(1);
        meters.open.increment(1.0);
        let call = call.clone();
        Record {
            call,
            path: path.into(),
            meters,
            caller: None,
            finished: false,
        }
    }

    /// The method as the contract writes it, `hub.event_bus.v1.EventBus/Publish`.
    pub fn method(&self) -> &str {
        self.path.strip_prefix('/').unwrap_or(&self.path)
    }

    /// Who may call it; none if it is not of the contract.
    pub fn policy(&self) -> Option<&'static MethodPolicy> {
        policy::method_policy(&self.path)
    }

    /// The span of the call.
    pub fn span(&self) -> Span {
        let (method, trace) = (cut(self.method()), &self.call.trace);
        let span = tracing::info_span!(
            target: "rpc",
            "rpc",
            method,
            call = &*self.call.id,
            trace = %trace.trace_id,
            span = %trace.span_id,
            parent = tracing::field::Empty,
        );
        if let Some(parent) = trace.parent {
            span.record("parent", tracing::field::display(parent));
        }
        span
    }

    /// The call ended with this code and, if it is an error, this reason.
    pub fn finish(mut self, code: Code, reason: &str) {
        self.write(code, reason);
    }

    fn write(&mut self, code: Code, reason: &str) {
        self.finished = true;
        self.meters.open.decrement(1.0);
        let name = code_name(code);
        if let Some(handled) = self.meters.handled(code, name) {
            handled.increment(1);
        }
        let took = self.call.started.elapsed();
        self.meters.seconds.record(took.as_secs_f64());
        let caller = self.caller.as_ref();
        let key = caller.map_or("", |caller| &caller.key_id);
        let tenant = caller.and_then(|caller| caller.tenant.as_ref());
        let tenant = tenant.map_or("", |tenant| tenant.id());
        let (method, call, ms) = (cut(self.method()), &*self.call.id, took.as_secs_f64() * 1e3);
        let trace = tracing::field::display(self.call.trace.trace_id);
        if matches!(code, Code::Internal | Code::Unknown | Code::DataLoss) {
            tracing::error!(
                target: "rpc", method, code = name, reason, call, trace, key, tenant, ms
            );
        } else if matches!(code, Code::Ok | Code::Cancelled) && PUBLIC.contains(&&*self.path) {
            // Probes ask every few seconds.
            tracing::debug!(
                target: "rpc", method, code = name, reason, call, trace, key, tenant, ms
            );
        } else {
            tracing::info!(
                target: "rpc", method, code = name, reason, call, trace, key, tenant, ms
            );
        }
    }
}

/// The method of a path that is served beside the contract.
fn beside(path: &str) -> Option<&'static str> {
    let public = PUBLIC.iter().map(|known| &known[1..]);
    let mut known = public.chain(modules::BESIDE.iter().copied());
    let method = path.strip_prefix('/')?;
    known.find(|known| *known == method)
}

impl Drop for Record {
    /// The caller left before the end.
    fn drop(&mut self) {
        if !self.finished {
            self.write(Code::Cancelled, "");
        }
    }
}

/// A path of a stranger does not fill the log.
fn cut(method: &str) -> &str {
    &method[..method.floor_char_boundary(120)]
}

/// The code as gRPC metrics name it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
