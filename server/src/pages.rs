//! The pages beside gRPC: liveness, readiness, metrics, and what each reason and check means.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::IntoResponse;
use hub_core::journal::TenantRef;
use hub_core::module::Core;
use metrics_exporter_prometheus::PrometheusHandle;

/// A check that takes longer has failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

const TEXT: &str = "text/plain; charset=utf-8";

/// Name and text of each page of a folder of `docs`, by name.
type Folder = &'static [(&'static str, &'static str)];

/// The pages of `docs/errors`.
static REASONS: Folder = include!(concat!(env!("OUT_DIR"), "/error_pages.rs"));
/// The pages of `docs/checks`.
static CHECKS: Folder = include!(concat!(env!("OUT_DIR"), "/check_pages.rs"));

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    /// What readiness asks.
    pub core: Core,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
}

/// The process runs.
pub async fn live() -> impl IntoResponse {
    "ok\n"
}

/// The server takes calls: the database and the journal answer, the other processes know that it
/// lives, all workers work, and it is not being stopped. With `?verbose` it tells of each worker.
pub async fn ready(State(pages): State<Pages>, uri: Uri) -> impl IntoResponse {
    let verbose = uri
        .query()
        .is_some_and(|query| query.starts_with("verbose"));
    let core = &pages.core;
    let database = passes(async { core.db.ping().await.is_ok() }).await;
    let journal = passes(async { core.journal.log(&TenantRef::system()).await.is_ok() }).await;
    let workers = core.workers().health();
    let mut checks = vec![
        ("database".to_owned(), database),
        ("journal".to_owned(), journal),
        ("beat".to_owned(), core.processes.is_live()),
        ("serving".to_owned(), !core.draining.is_cancelled()),
        ("workers".to_owned(), workers.iter().all(|worker| worker.up)),
    ];
    let told = workers.iter().filter(|worker| verbose || !worker.up);
    checks.extend(told.map(|worker| (format!("worker {}", worker.name), worker.up)));
    let passed = checks.iter().all(|(_, passed)| *passed);
    let status = if passed {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let line = |(name, passed): &(String, bool)| {
        format!("{name} {}\n", if *passed { "ok" } else { "failed" })
    };
    let lines: String = checks.iter().map(line).collect();
    (status, [(header::CONTENT_TYPE, TEXT)], lines)
}

async fn passes(check: impl Future<Output = bool>) -> bool {
    tokio::time::timeout(CHECK_TIMEOUT, check)
        .await
        .unwrap_or(false)
}

/// The metrics in the text format of Prometheus.
pub async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], pages.metrics.render())
}

/// What a reason means and what to do: where the Help link of an error leads.
pub async fn reason(Path(reason): Path<String>) -> impl IntoResponse {
    show(REASONS, "reason", &reason)
}

/// What a check of an explanation looks at, and what to do: where its `doc_url` leads.
pub async fn check(Path(code): Path<String>) -> impl IntoResponse {
    show(CHECKS, "check", &code)
}

/// A page of a folder, or the names of those that there are.
fn show(folder: Folder, noun: &str, name: &str) -> impl IntoResponse + use<> {
    let kind = [(header::CONTENT_TYPE, TEXT)];
    match page(folder, name) {
        Some(page) => (StatusCode::OK, kind, page.to_owned()),
        None => {
            let known: Vec<&str> = folder.iter().map(|(name, _)| *name).collect();
            let text = format!("No such {noun}. There are:\n{}\n", known.join("\n"));
            (StatusCode::NOT_FOUND, kind, text)
        }
    }
}

fn page(folder: Folder, name: &str) -> Option<&'static str> {
    // The pages link to each other as files.
    let name = name.strip_suffix(".md").unwrap_or(name);
    let at = folder
        .binary_search_by(|(known, _)| (*known).cmp(name))
        .ok()?;
    Some(folder[at].1)
}
