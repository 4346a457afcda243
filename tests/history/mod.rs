//! The history checker: clients of all kinds write down what they did and were told while processes
//! are killed and stopped, databases restarted and connections cut, and at the end it is checked
//! that all of this, and the log, is the history of one hub that kept its word.
//!
//! `records.rs` and `tracks.rs` are what is written, `checks/mod.rs` what has to hold of it,
//! whoever wrote it; `run.rs` makes a run with `load/mod.rs`, `hubs.rs` and `proxy.rs`.
//!
//! - `HUB_HISTORY_SECONDS`: how long there are load and faults, in whole rounds of faults; one
//!   round, about 12 s, unless given.
//! - `HUB_HISTORY_FOLDER`: where the files of a run go; otherwise they are kept only if it failed.
//! - `HUB_HISTORY_CHECK`: a folder of an earlier run, which is checked again.
//! - `HUB_TEST_SEED`: the choices of an earlier run.

mod checks;
mod dump;
mod durables;
mod explaining;
mod filter;
mod hubs;
mod load;
pub mod proxy;
mod records;
mod run;
mod summary;
mod tracks;
mod world;

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::journal::random::Seed;
use crate::support::Backend;
use run::Plan;
use tracks::History;

/// Load of a run that is one test among others: one round of faults.
const LOAD: Duration = Duration::ZERO;
/// A run of so long asks for at least so many explanations.
const LONG: (Duration, usize) = (Duration::from_secs(60), 1000);

fn load() -> Duration {
    let given = env::var("HUB_HISTORY_SECONDS").ok();
    let seconds = given.map(|text| text.parse().expect("HUB_HISTORY_SECONDS is a number"));
    seconds.map_or(LOAD, Duration::from_secs)
}

/// Says what was seen; false if something must not be.
fn checked(history: &History) -> bool {
    let violations = checks::all(history);
    println!("{}", summary::summary(history, &violations));
    violations.is_empty()
}

async fn behaves(backend: Backend, processes: usize) {
    let seed = Seed::choose();
    let given = env::var_os("HUB_HISTORY_FOLDER").map(PathBuf::from);
    let scratch = tempfile::TempDir::with_prefix("hub-history-").unwrap();
    let root = given.clone().unwrap_or_else(|| scratch.path().to_owned());
    let plan = Plan {
        backend,
        processes,
        load: load(),
        seed: seed.0,
        folder: root.join(format!("{backend:?}").to_lowercase()),
    };
    println!("seed {}", plan.seed);
    let history = Box::pin(run::run(&plan)).await;
    assert!(
        history == History::load(&plan.folder),
        "the files say something else"
    );
    let (long, explanations) = LONG;
    let asked = history.explanations();
    assert!(
        plan.load < long || asked >= explanations,
        "{asked} explanations"
    );
    if !checked(&history) {
        let kept = if given.is_some() {
            root
        } else {
            scratch.keep()
        };
        panic!(
            "the hub did not keep its word; the histories are in {}",
            kept.display()
        );
    }
}

#[ignore = "a minute of load and faults on its own; tests/run --only history runs it"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_on_sqlite_keeps_its_word_under_faults() {
    Box::pin(behaves(Backend::Sqlite, 1)).await;
}

#[ignore = "a minute of load and faults on its own; tests/run --only history runs it"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_on_postgres_keep_their_word_under_faults() {
    Box::pin(behaves(Backend::Postgres, 3)).await;
}

#[test]
#[ignore = "checks the files of an earlier run, which HUB_HISTORY_CHECK names"]
fn an_earlier_run_is_checked_again() {
    let folder = env::var_os("HUB_HISTORY_CHECK").expect("HUB_HISTORY_CHECK names a folder");
    assert!(checked(&History::load(Path::new(&folder))));
}
