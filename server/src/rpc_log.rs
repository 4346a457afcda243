//! One line and one count per RPC. Never payloads, never keys.

use std::sync::Arc;
use std::time::Instant;

use hub_core::auth::Caller;
use tonic::Code;

use crate::call::Call;
use crate::methods::{Meters, Method};
use crate::telemetry::at_work::AtWork;

/// What is known of a call while it runs.
pub struct Record {
    at_work: Arc<AtWork>,
    started: Instant,
    /// None if nothing serves it.
    method: Option<&'static Method>,
    /// Who called, once admitted.
    pub caller: Option<Caller>,
    finished: bool,
}

impl Record {
    /// A call to `path` has begun.
    pub fn begin(call: &Call, path: &str) -> Self {
        let method = Method::of(path);
        let named = |known: &Method| known.name.into();
        let unknown = || {
            cut(path.strip_prefix('/').unwrap_or(path))
                .to_owned()
                .into()
        };
        let at_work = AtWork {
            method: method.map_or_else(unknown, named),
            call: call.id.clone(),
            trace: call.trace,
        };
        let record = Record {
            at_work: Arc::new(at_work),
            started: call.started,
            method,
            caller: None,
            finished: false,
        };
        record.meters().started.increment(1);
        record.meters().open.increment(1.0);
        record
    }

    /// The method; none if nothing serves it.
    pub fn method(&self) -> Option<&'static Method> {
        self.method
    }

    /// The method as the contract writes it, `hub.event_bus.v1.EventBus/Publish`.
    pub fn method_name(&self) -> &str {
        &self.at_work.method
    }

    /// Names the call in what is logged while it is at work.
    pub fn at_work(&self) -> Arc<AtWork> {
        self.at_work.clone()
    }

    fn meters(&self) -> &'static Meters {
        self.method.unwrap_or_else(Method::unknown).meters()
    }

    /// The call ended with this code and, if it is an error, this reason.
    pub fn finish(mut self, code: Code, reason: &str) {
        self.write(code, reason);
    }

    fn write(&mut self, code: Code, reason: &str) {
        self.finished = true;
        let (meters, name) = (self.meters(), code_name(code));
        meters.open.decrement(1.0);
        if let Some(handled) = meters.handled(code, name) {
            handled.increment(1);
        }
        let took = self.started.elapsed();
        meters.seconds.record(took.as_secs_f64());
        let caller = self.caller.as_ref();
        let key = caller.map_or("", |caller| &caller.key_id);
        let tenant = caller.and_then(|caller| caller.tenant.as_ref());
        let tenant = tenant.map_or("", |tenant| tenant.id());
        let (method, call) = (self.method_name(), &*self.at_work.call);
        let ms = took.as_secs_f64() * 1e3;
        let trace = tracing::field::display(self.at_work.trace.trace_id);
        let is_probe = self.method.is_some_and(|method| method.is_probed);
        if matches!(code, Code::Internal | Code::Unknown | Code::DataLoss) {
            tracing::error!(
                target: "rpc", method, code = name, reason, call, trace, key, tenant, ms
            );
        } else if matches!(code, Code::Ok | Code::Cancelled) && is_probe {
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
