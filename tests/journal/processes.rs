//! Several processes append to the same logs (PostgreSQL): an identity is stored once, whoever
//! stored it, however long ago, and whatever became of the connections.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hub_core::clock::Clock;
use hub_core::journal::{Journal, Log, Outcome, TenantRef};
use hub_core::limits::Limits;
use tokio::task::JoinSet;

use super::checked_log::CheckedLog;
use super::random::{Random, Seed};
use super::store::{Store, batch, event, execute, identity_of};
use crate::support::{Backend, Database};

const PROCESSES: usize = 3;
const TENANTS: usize = 2;
const WRITERS_PER_PROCESS: usize = 3;
const STEPS: usize = 60;
/// Segments of a log that is read in several pages.
const LONG: u64 = 520;
/// All processes draw from the same names, so that most are sent several times.
const NAMES: usize = 400;
const CUT: &str = "select pg_terminate_backend(pid) from pg_stat_activity
where application_name = 'hub' and datname = current_database() and pid <> pg_backend_pid()";

/// So few in memory that almost everything older is in the index.
fn limits() -> Limits {
    Limits {
        identities_recent_max: 40,
        group_tenants_max: 2,
        segment_bytes_max: 300,
        ..Limits::default()
    }
}

/// What a writer was told: name and sequence.
type Told = (String, u64);

struct Writer {
    process: Arc<Store>,
    tenants: Vec<TenantRef>,
    random: Random,
}

impl Writer {
    async fn run(mut self) -> Vec<(usize, Told)> {
        let mut told = Vec::new();
        for _ in 0..STEPS {
            let tenant = self.random.below(TENANTS);
            let Ok(log) = self.process.journal.log(&self.tenants[tenant]).await else {
                continue;
            };
            let count = 1 + self.random.below(4);
            let first = self.random.below(NAMES);
            // An identity is of one tenant, as its product and source are.
            let name = |n| format!("{tenant} {n}");
            let names: Vec<String> = (first..first + count).map(name).collect();
            let Some(outcomes) = self.append(&log, &names).await else {
                continue;
            };
            for (name, outcome) in names.into_iter().zip(outcomes) {
                let seq = match outcome {
                    Outcome::Stored { seq } => seq,
                    Outcome::Duplicate(position) => position.seq,
                    other => panic!("{name}: {other:?}"),
                };
                told.push((tenant, (name, seq)));
            }
        }
        told
    }

    /// `None` if it was refused, as when a connection was cut: the outcome is unknown then.
    async fn append(&mut self, log: &Arc<Log>, names: &[String]) -> Option<Vec<Outcome>> {
        let events = names.iter().map(|name| event(name)).collect();
        let journal: &Arc<Journal> = &self.process.journal;
        let appended = match self.random.percent(25) {
            true => {
                let tx = self.process.db.begin().await.ok()?;
                let appended = journal.commit(tx, vec![batch(log, events)]).await;
                appended.ok()?.pop()?
            }
            false => journal.append(batch(log, events)).await.ok()?,
        };
        Some(appended.outcomes)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_is_stored_once_whichever_process_stored_it_first() {
    let seed = Seed::choose();
    let database = Database::new(Backend::Postgres).await;
    let mut tenants = Vec::new();
    let mut told: HashMap<(usize, String), u64> = HashMap::new();
    // In the second round the processes know nothing but what the database has.
    for round in 0..2 {
        let mut processes = Vec::new();
        for _ in 0..PROCESSES {
            processes.push(Arc::new(
                Store::open(&database, limits(), Clock::system()).await,
            ));
        }
        while tenants.len() < TENANTS {
            tenants.push(processes[0].tenant(&format!("t{}", tenants.len())).await);
        }
        let mut writers = JoinSet::new();
        for number in 0..PROCESSES * WRITERS_PER_PROCESS {
            let writer = Writer {
                process: processes[number % PROCESSES].clone(),
                tenants: tenants.clone(),
                random: Random::new(seed.0, (round * 100 + number) as u64),
            };
            writers.spawn(writer.run());
        }
        let mut answers = 0;
        while let Some(done) = writers.join_next().await {
            for (tenant, (name, seq)) in done.unwrap() {
                let first = *told.entry((tenant, name.clone())).or_insert(seq);
                assert_eq!(first, seq, "{name} was told at two places");
                answers += 1;
            }
            // Whoever still writes loses all of its connections.
            execute(&database, CUT).await;
        }
        assert!(answers > STEPS, "most were answered: {answers}");
        for process in processes {
            Arc::into_inner(process).unwrap().close().await;
        }
    }
    let reader = Store::open(&database, limits(), Clock::system()).await;
    for (number, tenant) in tenants.iter().enumerate() {
        // Unique, dense, in order.
        let log = CheckedLog::read(&reader.db, tenant).await;
        for ((_, name), seq) in told.iter().filter(|((tenant, _), _)| *tenant == number) {
            assert_eq!(log.at(*seq).name, *name);
            let opened = reader.journal.log(tenant).await.unwrap();
            let found = reader.journal.find_identity(&opened, identity_of(name));
            assert_eq!(found.await.unwrap(), Some(*seq), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_starts_later_knows_what_was_published_before() {
    let database = Database::new(Backend::Postgres).await;
    let first = Store::open(&database, limits(), Clock::system()).await;
    let tenant = first.tenant("t").await;
    let log = first.journal.log(&tenant).await.unwrap();
    for n in 0..LONG {
        first.append(&log, vec![event(&format!("e{n}"))]).await;
    }
    let second = Arc::new(Store::open(&database, limits(), Clock::system()).await);
    let log = second.journal.log(&tenant).await.unwrap();
    // All at once: the first one reads the log, the others wait for it.
    let mut again = JoinSet::new();
    for n in (0..LONG).step_by(5) {
        let (second, log) = (second.clone(), log.clone());
        again.spawn(async move {
            let appended = second.append(&log, vec![event(&format!("e{n}"))]).await;
            (n, appended.outcomes)
        });
    }
    while let Some(done) = again.join_next().await {
        let (n, outcomes) = done.unwrap();
        let [Outcome::Duplicate(position)] = outcomes[..] else {
            panic!("e{n}: {outcomes:?}");
        };
        assert_eq!(position.seq, n + 1);
    }
    let new = second.append(&log, vec![event("new")]).await;
    assert_eq!(new.outcomes, [Outcome::Stored { seq: LONG + 1 }]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_process_appends_is_told_to_who_just_began_to_listen() {
    let database = Database::new(Backend::Postgres).await;
    // Nothing but the look at all heads tells it.
    let limits = || Limits {
        notify_interval: Duration::ZERO,
        ..limits()
    };
    let writer = Store::open(&database, limits(), Clock::system()).await;
    let tenant = writer.tenant("t").await;
    let listener = Store::open(&database, limits(), Clock::system()).await;
    let log = writer.journal.log(&tenant).await.unwrap();
    writer.append(&log, vec![event("before")]).await;
    let growth = listener.journal.growth().await.unwrap();
    writer.append(&log, vec![event("after")]).await;
    let told = tokio::time::timeout(Duration::from_secs(20), growth.next()).await;
    assert_eq!(told.expect("it is told"), [tenant.number()].into());
}
