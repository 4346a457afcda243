//! Every metric there is: what `/metrics` shows and `docs/metrics.md` lists.

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};

/// How a metric counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts by size.
    Histogram,
}

/// A metric. Its unit is the end of its name; labels have few values and never are ids.
#[derive(Debug)]
pub struct Metric {
    /// Name.
    pub name: &'static str,
    /// How it counts.
    pub kind: Kind,
    /// Names of its labels, sorted.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind,
        labels,
        help,
    }
}

const METHOD: &[&str] = &["grpc_method", "grpc_service"];

/// All of them, sorted by name.
pub const METRICS: &[Metric] = &[
    metric(
        "grpc_server_handled_total",
        Kind::Counter,
        &["grpc_code", "grpc_method", "grpc_service"],
        "Calls that have ended, by status code.",
    ),
    metric(
        "grpc_server_handling_seconds",
        Kind::Histogram,
        METHOD,
        "How long calls took; a stream counts when it ends.",
    ),
    metric(
        "grpc_server_started_total",
        Kind::Counter,
        METHOD,
        "Calls that have begun.",
    ),
    metric(
        "hub_build_info",
        Kind::Gauge,
        &["version"],
        "Always 1; which version runs.",
    ),
    metric(
        "hub_calls_forwarded_total",
        Kind::Counter,
        &[],
        "Calls passed on to the process that owns their work.",
    ),
    metric(
        "hub_calls_open",
        Kind::Gauge,
        METHOD,
        "Calls and streams at work now.",
    ),
    metric(
        "hub_connections_open",
        Kind::Gauge,
        &[],
        "Connections of callers now.",
    ),
    metric(
        "hub_connections_refused_total",
        Kind::Counter,
        &[],
        "Connections closed at once because connections-max were in use.",
    ),
    metric(
        "hub_event_bus_checkpoint_seconds",
        Kind::Histogram,
        &[],
        "How long it took to store where durable subscriptions are.",
    ),
    metric(
        "hub_event_bus_checkpoints_total",
        Kind::Counter,
        &[],
        "Times that it was stored where durable subscriptions are, each for all that changed.",
    ),
    metric(
        "hub_event_bus_groups_open",
        Kind::Gauge,
        &[],
        "Durable subscriptions at work in this process.",
    ),
    metric(
        "hub_event_decisions_total",
        Kind::Counter,
        &["dest", "outcome", "reason"],
        "Decisions where published events go, by product: flows, or not_routed and why.",
    ),
    metric(
        "hub_events_published_total",
        Kind::Counter,
        &["source", "type"],
        "Events that were new, by product and type; types that are not the hub's own are `other`.",
    ),
    metric(
        "hub_journal_commit_failures_total",
        Kind::Counter,
        &[],
        "Commits of the journal that failed.",
    ),
    metric(
        "hub_journal_commit_seconds",
        Kind::Histogram,
        &[],
        "How long a commit of the journal took, with its sync.",
    ),
    metric(
        "hub_journal_events_total",
        Kind::Counter,
        &[],
        "Events that callers published and this process stored; retries do not count.",
    ),
    metric(
        "hub_journal_hints_received_total",
        Kind::Counter,
        &[],
        "Logs that another process told have grown (PostgreSQL).",
    ),
    metric(
        "hub_journal_hints_sent_total",
        Kind::Counter,
        &[],
        "Hints to the other processes, each for all logs that had grown (PostgreSQL).",
    ),
    metric(
        "hub_journal_listed_events_total",
        Kind::Counter,
        &[],
        "Events written to the index of lists.",
    ),
    metric(
        "hub_journal_removed_events_total",
        Kind::Counter,
        &[],
        "Events that retention removed.",
    ),
    metric(
        "hub_journal_tail_bytes",
        Kind::Gauge,
        &[],
        "Newest events in memory, of all tenants.",
    ),
    metric(
        "hub_journal_tail_holes_total",
        Kind::Counter,
        &[],
        "Times that newest events had to be read from the database, for another process wrote \
         before them.",
    ),
    metric(
        "hub_key_decisions_total",
        Kind::Counter,
        &["outcome"],
        "Decisions of VerifyApiKey: OK, or the reason of the refusal.",
    ),
    metric(
        "hub_key_lookups_total",
        Kind::Counter,
        &["from"],
        "Look-ups of keys that are not in memory: queries for up to 32, and answers without one.",
    ),
    metric(
        "hub_key_usage_dropped_total",
        Kind::Counter,
        &[],
        "Requests that were not counted for GetApiKeyUsage, because too much waits to be written.",
    ),
    metric(
        "hub_key_verifications_total",
        Kind::Counter,
        &["outcome"],
        "Calls by the outcome of their admission: OK, or the reason of the refusal.",
    ),
    metric(
        "hub_processes_live",
        Kind::Gauge,
        &[],
        "Hub processes on the database that live, as this one sees it; itself included.",
    ),
    metric(
        "hub_rate_settlements_failed_total",
        Kind::Counter,
        &[],
        "Times that the processes could not agree on what is left of rate limits, so that each let \
         through what it knew of.",
    ),
    metric(
        "hub_rate_windows",
        Kind::Gauge,
        &[],
        "Keys and tenants with requests in the last minute, for which a limit is counted.",
    ),
    metric(
        "hub_slow_readers_total",
        Kind::Counter,
        &["outcome"],
        "Answers of which the client took nothing for slow-reader-timeout.",
    ),
    metric(
        "hub_subscription_lag_events",
        Kind::Gauge,
        &["dest"],
        "Events that the subscription at work of a product which has most has not settled.",
    ),
    metric(
        "hub_subscription_lag_seconds",
        Kind::Gauge,
        &["dest"],
        "Age of the oldest event that a subscription at work of a product has not settled.",
    ),
    metric(
        "hub_tls_handshakes_failed_total",
        Kind::Counter,
        &[],
        "Connections on which TLS was not agreed.",
    ),
    metric(
        "hub_worker_restarts_total",
        Kind::Counter,
        &["cause", "worker"],
        "Failures of work in the background, each with a restart: ended, error or panic.",
    ),
    metric(
        "hub_worker_up",
        Kind::Gauge,
        &["worker"],
        "1 while a worker works; 0 from its failure until its next good round.",
    ),
];

/// Tells the recorder of all of them, and shows those without labels from the start: a rate over
/// a counter that is not there yet would miss its first rise.
pub fn describe() {
    for metric in METRICS {
        let plain = metric.labels.is_empty();
        match metric.kind {
            Kind::Counter => {
                describe_counter!(metric.name, metric.help);
                if plain {
                    counter!(metric.name).increment(0);
                }
            }
            Kind::Gauge => {
                describe_gauge!(metric.name, metric.help);
                if plain {
                    gauge!(metric.name).increment(0.0);
                }
            }
            Kind::Histogram => describe_histogram!(metric.name, metric.help),
        }
    }
    for outcome in ["closed", "reset"] {
        counter!("hub_slow_readers_total", "outcome" => outcome).increment(0);
    }
    for dest in hub_core::products::SLUGS {
        gauge!("hub_subscription_lag_events", "dest" => dest).set(0.0);
        gauge!("hub_subscription_lag_seconds", "dest" => dest).set(0.0);
    }
    counter!("hub_key_decisions_total", "outcome" => "OK").increment(0);
    for from in ["database", "unknown"] {
        counter!("hub_key_lookups_total", "from" => from).increment(0);
    }
    gauge!("hub_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_sorted_and_tell_units_and_no_ids() {
        assert!(METRICS.is_sorted_by(|a, b| a.name < b.name));
        for metric in METRICS {
            let name = metric.name;
            assert!(metric.labels.is_sorted_by(|a, b| a < b), "{name}");
            assert!(
                !metric.labels.iter().any(|label| label.ends_with("id")),
                "{name}"
            );
            assert_eq!(
                name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{name}"
            );
            // What is measured again and again is no distribution.
            let timed = name.ends_with("_seconds") && metric.kind != Kind::Gauge;
            assert_eq!(timed, metric.kind == Kind::Histogram, "{name}");
            assert!(metric.help.ends_with('.'), "{name}");
        }
    }
}
