//! Logs and metrics of the process, and the traces that its calls belong to.

pub mod at_work;
mod json_lines;
pub mod metrics;
mod people_lines;
mod standard_error;
pub mod trace;

use std::convert::Infallible;
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::time::Duration;

use hub_core::worker::Workers;
use json_lines::JsonLines;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use people_lines::PeopleLines;
use standard_error::StandardError;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Pretty,
    /// One JSON object per line.
    Json,
}

/// What is logged unless `--log-filter` says otherwise.
pub const LOG_FILTER: &str = "info,sqlx=warn";

/// How often the recorder works off what was measured.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// From 100 µs to 30 s.
const SECONDS: [f64; 12] = [
    0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0,
];

/// Refuses what is not a filter.
pub fn check_filter(filter: &str) -> Result<String, String> {
    targets(filter).map(|_| filter.to_owned())
}

/// Levels, and levels of targets, with commas between. More than the library, which takes what is
/// empty for a level of errors only.
fn targets(filter: &str) -> Result<Targets, String> {
    let pieces = filter.split(',').map(str::trim);
    let pieces: Vec<&str> = pieces.filter(|piece| !piece.is_empty()).collect();
    for piece in &pieces {
        let is_half = piece.starts_with('=') || piece.ends_with('=');
        if is_half || piece.contains(|c: char| c == '[' || c.is_whitespace()) {
            return Err(format!(
                "not a filter: {piece:?} is neither a level nor target=level"
            ));
        }
    }
    let filter = pieces.join(",");
    filter
        .parse()
        .map_err(|error| format!("not a filter: {error}"))
}

/// Log lines leave for as long as it lives, and when it is dropped.
#[must_use]
pub struct Logging(StandardError);

impl Logging {
    /// Writes what waits: the process ends.
    pub fn flush(&self) {
        self.0.flush();
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Sends log lines to standard error; standard output is for what a command answers.
pub fn log(format: LogFormat, filter: &str) -> Result<Logging, String> {
    // By target and level only: a filter that knows spans looks at each one that there is.
    let filter = targets(filter).map_err(|error| format!("--log-filter is {error}"))?;
    let terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::registry().with(filter);
    let output = StandardError::open().map_err(|error| format!("cannot log: {error}"))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(output.clone());
    let pretty = match format {
        LogFormat::Json => false,
        LogFormat::Pretty => true,
        LogFormat::Auto => terminal,
    };
    let set = match pretty {
        true => {
            let lines = lines.with_ansi(terminal);
            log.with(lines.event_format(PeopleLines::default()))
                .try_init()
        }
        false => log.with(lines.event_format(JsonLines)).try_init(),
    };
    let set = set.map_err(|error| format!("cannot log: {error}"));
    set.map(|()| Logging(output))
}

/// Logs panics instead of printing them; the task or call that panicked ends, the server goes on.
pub fn log_panics() {
    std::panic::set_hook(Box::new(log_panic));
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let at = panic
        .location()
        .map(ToString::to_string)
        .unwrap_or_default();
    let message = panic.payload_as_str().unwrap_or("no message");
    tracing::error!(at, "panicked: {message}");
}

/// The recorder of the process; the servers of one process share it.
pub fn recorder() -> Result<PrometheusHandle, String> {
    static HANDLE: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let matcher = Matcher::Suffix("_seconds".to_owned());
            let failed = |error| format!("cannot record metrics: {error}");
            let recorder = PrometheusBuilder::new()
                .set_buckets_for_metric(matcher, &SECONDS)
                .map_err(failed)?
                .install_recorder()
                .map_err(failed)?;
            metrics::describe();
            Ok(recorder)
        })
        .clone()
}

/// Keeps the recorder small until the workers stop.
pub fn upkeep(handle: PrometheusHandle, workers: &Workers) {
    workers.every("metrics-upkeep", UPKEEP_INTERVAL, move || {
        let handle = handle.clone();
        async move {
            handle.run_upkeep();
            Ok::<(), Infallible>(())
        }
    });
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use axum::body::{Body, to_bytes};
    use axum::extract::Request;
    use axum::response::Response;
    use hub_proto::hub::api_keys::v1::VerifyApiKeyRequest;
    use prost::Message;

    use super::*;
    use crate::call;

    const KEY: &str = "tos_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o51xqYGe";

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Panics as carelessly as can be, with all that it has of the request.
    async fn careless(request: Request) -> Response {
        let (head, body) = request.into_parts();
        let body = to_bytes(body, 1000).await.unwrap();
        let asked = VerifyApiKeyRequest::decode(body).unwrap();
        panic!("{head:?} {asked:?}");
    }

    #[tokio::test]
    async fn a_panic_that_shows_the_request_shows_no_key() {
        let written = Written::default();
        let shared = written.clone();
        let lines = tracing_subscriber::fmt().with_writer(move || shared.clone());
        let _logging = tracing::subscriber::set_default(lines.finish());
        let (own, before) = (std::thread::current().id(), std::panic::take_hook());
        // Tests beside this one panic too.
        std::panic::set_hook(Box::new(move |panic| {
            match std::thread::current().id() == own {
                true => log_panic(panic),
                false => before(panic),
            }
        }));
        let asked = VerifyApiKeyRequest {
            key: KEY.into(),
            ..VerifyApiKeyRequest::default()
        };
        let request = Request::post("/hub.api_keys.v1.ApiKeys/VerifyApiKey")
            .header("authorization", format!("Bearer {KEY}"))
            .header("authorization", KEY);
        let request = request.body(Body::from(asked.encode_to_vec())).unwrap();
        let panicking = tokio::spawn(call::identify(request, careless));
        assert!(panicking.await.unwrap_err().is_panic());
        let said = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(said.contains("panicked: Parts"), "{said}");
        assert!(
            said.contains("VerifyApiKeyRequest") && said.contains("<redacted>"),
            "{said}"
        );
        assert!(!said.contains(&KEY[8..34]), "{said}");
    }
}
