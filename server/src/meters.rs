//! What is counted and measured of each method, found once: to find a metric by its name and labels
//! for every call costs as much as to log it.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use tonic::Code;

/// Service and method.
pub type Labels = (&'static str, &'static str);

/// Codes of gRPC: 0 to 16.
const CODES: usize = 17;

/// The metrics of a method.
pub struct Meters {
    labels: Labels,
    /// Calls that began.
    pub started: Counter,
    /// Calls at work now.
    pub open: Gauge,
    /// Seconds from the beginning of a call to its end.
    pub seconds: Histogram,
    /// Shown only once there is something to count.
    handled: [OnceLock<Counter>; CODES],
}

impl Meters {
    /// Those of a method. There are as many as there are methods, which are known beforehand.
    pub fn of(labels: Labels) -> Arc<Meters> {
        static METERS: LazyLock<Mutex<HashMap<Labels, Arc<Meters>>>> =
            LazyLock::new(Mutex::default);
        let mut meters = METERS.lock().unwrap_or_else(PoisonError::into_inner);
        let found = meters.entry(labels);
        found
            .or_insert_with(|| Arc::new(Meters::new(labels)))
            .clone()
    }

    fn new(labels: Labels) -> Meters {
        let (service, method) = labels;
        Meters {
            labels,
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
