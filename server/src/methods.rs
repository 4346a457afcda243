//! What is known of each method, and what is counted of it, found once by its path: to find a
//! metric by its name and labels for every call costs as much as to log it.

use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock};

use hub_proto::policy::{MethodPolicy, method_policies};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use tonic::Code;

use crate::modules;

/// Codes of gRPC: 0 to 16.
const CODES: usize = 17;

/// Services beside the contract that anyone may ask; admission knows them by their first part.
const PUBLIC: [&str; 5] = [
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/List",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// A method.
pub struct Method {
    /// Service and method, `hub.event_bus.v1.EventBus/Publish`.
    pub name: &'static str,
    /// Who may call it; none if it is not of the contract.
    pub policy: Option<&'static MethodPolicy>,
    /// Whether it is built.
    pub is_built: bool,
    /// Probes ask it every few seconds.
    pub is_probed: bool,
    meters: OnceLock<Meters>,
}

/// What is counted of a method.
pub struct Meters {
    labels: (&'static str, &'static str),
    /// Calls that began.
    pub started: Counter,
    /// Calls at work now.
    pub open: Gauge,
    /// Seconds from the beginning of a call to its end.
    pub seconds: Histogram,
    /// Shown only once there is something to count.
    handled: [OnceLock<Counter>; CODES],
}

/// Whatever is asked that is not served: one label.
static UNKNOWN: Method = Method {
    name: "unknown/unknown",
    policy: None,
    is_built: false,
    is_probed: false,
    meters: OnceLock::new(),
};

impl Method {
    /// The method with this path; none if nothing serves it.
    pub fn of(path: &str) -> Option<&'static Method> {
        static METHODS: LazyLock<HashMap<&str, Method, ahash::RandomState>> =
            LazyLock::new(|| all().map(|method| (method.name, method)).collect());
        METHODS.get(path.strip_prefix('/')?)
    }

    /// Stands for all that nothing serves.
    pub fn unknown() -> &'static Method {
        &UNKNOWN
    }

    /// What is counted of it.
    pub fn meters(&self) -> &Meters {
        self.meters.get_or_init(|| Meters::new(self.name))
    }
}

fn all() -> impl Iterator<Item = Method> {
    let method = |name| Method {
        name,
        policy: None,
        is_built: true,
        is_probed: PUBLIC.contains(&name),
        meters: OnceLock::new(),
    };
    let beside = PUBLIC.iter().chain(modules::BESIDE);
    let contract = method_policies().iter().map(move |policy| Method {
        policy: Some(policy),
        is_built: modules::is_built(policy.method),
        ..method(policy.method)
    });
    contract.chain(beside.map(move |name| method(name)))
}

impl Meters {
    fn new(name: &'static str) -> Meters {
        let (service, method) = name.split_once('/').unwrap_or((name, ""));
        Meters {
            labels: (service, method),
            started: counter!(
                "grpc_server_started_total", "grpc_service" => service, "grpc_method" => method
            ),
            open: gauge!("hub_calls_open", "grpc_service" => service, "grpc_method" => method),
            seconds: histogram!(
                "grpc_server_handling_seconds", "grpc_service" => service, "grpc_method" => method
            ),
            handled: [const { OnceLock::new() }; CODES],
        }
    }

    /// Calls that ended with this code, which metrics call `name`.
    pub fn handled(&self, code: Code, name: &'static str) -> Option<&Counter> {
        let (service, method) = self.labels;
        let counter = self.handled.get(usize::try_from(i32::from(code)).ok()?)?;
        Some(counter.get_or_init(|| {
            counter!(
                "grpc_server_handled_total",
                "grpc_service" => service, "grpc_method" => method, "grpc_code" => name
            )
        }))
    }
}
