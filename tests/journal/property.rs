//! Any mix of appends, retries, transactions and readers keeps the journal's invariants.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hub_core::clock::Clock;
use hub_core::journal::{Append, Log, NewEvent, Outcome, TenantRef};
use hub_core::limits::Limits;
use hub_core::storage::Sql;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::history::{Answered, Change, History, Submitted};
use super::random::{Random, Seed};
use super::reader;
use super::store::{self, Store, batch, event_with};
use crate::support::{Backend, Database};

const TENANTS: usize = 3;
const WRITERS: usize = 6;
const READERS: usize = 6;
const ROUNDS: usize = 3;
const STEPS: usize = 40;
/// Marks an event that the database refuses.
const POISON: &str = "poison";
const START: i64 = 1_767_225_600_000_000;
const MARK: Sql = Sql::same("insert into marks (name) values ($1)");

/// Everything is small, so that every limit is reached.
fn limits() -> Limits {
    Limits {
        identities_recent_max: 60,
        tail_bytes_max: 16 << 10,
        page_bytes_max: 2 << 10,
        group_tenant_bytes_max: 2 << 10,
        group_tenants_max: 2,
        segment_bytes_max: 300,
        append_tenant_bytes_max: 8 << 10,
        append_bytes_max: 16 << 10,
        ..Limits::default()
    }
}

/// What the writers of a round share.
struct Shared {
    store: Store,
    logs: Vec<Arc<Log>>,
    clock: Clock,
    names: Arc<Names>,
}

/// Names given to events, which begin with their tenant; any of them may be sent again.
#[derive(Default)]
struct Names {
    used: Mutex<Vec<Submitted>>,
    next: AtomicUsize,
}

struct Writer {
    shared: Arc<Shared>,
    random: Random,
    history: History,
}

both_databases! {
    async fn any_mix_of_writers_and_readers_keeps_the_log_dense_ordered_and_whole(
        backend: Backend,
    ) {
        let seed = Seed::choose();
        let database = Database::new(backend).await;
        let names = Arc::new(Names::default());
        let tenants = prepare(&database).await;
        let mut history = History::default();
        let mut readings = Vec::new();
        for round in 0..ROUNDS {
            // A machine may start with a clock that is behind.
            let clock = Clock::manual(START - 1_000_000 * round as i64);
            let store = Store::open(&database, limits(), clock.clone()).await;
            history.check(&store.db, &tenants).await;
            let mut logs = Vec::new();
            for tenant in &tenants {
                logs.push(store.journal.log(tenant).await.unwrap());
            }
            let shared = Arc::new(Shared { store, logs, clock, names: names.clone() });
            let maker = round * (WRITERS + READERS);
            readings.extend(run(&shared, &seed, maker, &mut history).await);
            let shared = Arc::into_inner(shared).expect("everybody is done");
            shared.store.close().await;
        }
        let store = Store::open(&database, limits(), Clock::manual(START)).await;
        let logs = history.check(&store.db, &tenants).await;
        history.expect_variety();
        for reading in readings {
            reading.check(&logs);
        }
        assert!(logs.iter().all(|log| !log.events.is_empty()));
        store.close().await;
    }
}

/// Makes the tenants, a table of a domain, and what refuses marked events.
async fn prepare(database: &Database) -> Vec<TenantRef> {
    let store = Store::open(database, limits(), Clock::manual(START)).await;
    let mut tenants = Vec::new();
    for number in 0..TENANTS {
        tenants.push(store.tenant(&format!("tenant {number}")).await);
    }
    store.close().await;
    store::execute(database, "create table marks (name text primary key)").await;
    refuse(database).await;
    tenants
}

/// From now on the database refuses what is [`poisoned`].
pub async fn refuse(database: &Database) {
    let trigger = match database.backend() {
        Backend::Sqlite => format!(
            "create trigger refuse before insert on journal_segments
             when instr(new.data, cast('/{POISON}' as blob)) > 0
             begin select raise(abort, 'refused by a trigger'); end"
        ),
        Backend::Postgres => format!(
            "create function refuse() returns trigger language plpgsql as $$
             begin
                 if position('/{POISON}'::bytea in new.data) > 0 then
                     raise exception 'refused by a trigger';
                 end if;
                 return new;
             end $$;
             create trigger refuse before insert on journal_segments
             for each row execute function refuse()"
        ),
    };
    store::execute(database, &trigger).await;
}

/// Lets writers and readers work until the writers are done and the readers have seen it all.
async fn run(
    shared: &Arc<Shared>,
    seed: &Seed,
    maker: usize,
    history: &mut History,
) -> Vec<reader::Reading> {
    let written = CancellationToken::new();
    let mut readers = JoinSet::new();
    for number in 0..READERS {
        let random = Random::new(seed.0, (maker + WRITERS + number) as u64);
        let tenant = number % TENANTS;
        let (journal, log) = (shared.store.journal.clone(), shared.logs[tenant].clone());
        readers.spawn(reader::read(journal, log, tenant, random, written.clone()));
    }
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        let writer = Writer {
            shared: shared.clone(),
            random: Random::new(seed.0, (maker + number) as u64),
            history: History::default(),
        };
        writers.spawn(writer.run());
    }
    while let Some(done) = writers.join_next().await {
        history.merge(done.unwrap());
    }
    written.cancel();
    let readings = tokio::time::timeout(Duration::from_secs(60), readers.join_all());
    readings
        .await
        .expect("every reader comes to the end of its log")
}

impl Writer {
    async fn run(mut self) -> History {
        for _ in 0..STEPS {
            let tenant = self.random.below(TENANTS);
            match self.random.below(100) {
                0..40 => self.append(tenant).await,
                40..55 => self.append_many(tenant).await,
                55..65 => self.append_refused(tenant).await,
                65..72 => self.append_cancelled(tenant).await,
                72..82 => self.change(tenant, false).await,
                82..87 => self.change(tenant, true).await,
                87..92 => self.change_dropped().await,
                92..97 => self.change_cancelled(tenant).await,
                _ => self
                    .shared
                    .clock
                    .advance(Duration::from_millis(self.random.next() % 50)),
            }
        }
        self.history
    }

    fn fresh_name(&mut self) -> String {
        let number = self.shared.names.next.fetch_add(1, Ordering::Relaxed);
        format!("event {number}")
    }

    /// New events, retries, and other contents under a used name.
    fn choose(&mut self, tenant: usize) -> Vec<Submitted> {
        let mut events: Vec<Submitted> = Vec::new();
        for _ in 0..=self.random.below(6) {
            let used = self.used(tenant);
            let submitted = match self.random.below(100) {
                0..20 if used.is_some() => used.unwrap(),
                20..25 if used.is_some() => other_content(used.unwrap()),
                25..35 if !events.is_empty() => {
                    let earlier = self.random.below(events.len());
                    events[earlier].clone()
                }
                _ => Submitted {
                    name: format!("{tenant} {}", self.fresh_name()),
                    content: 1,
                },
            };
            events.push(submitted);
        }
        let mut used = self.shared.names.used.lock().unwrap();
        used.extend(events.iter().filter(|event| event.content == 1).cloned());
        events
    }

    /// A name that this tenant used at some time; the database may have it or not.
    fn used(&mut self, tenant: usize) -> Option<Submitted> {
        let used = self.shared.names.used.lock().unwrap();
        let prefix = format!("{tenant} ");
        let start = self.random.below(used.len());
        let found = used[start.min(used.len())..]
            .iter()
            .find(|event| event.name.starts_with(&prefix));
        found.cloned()
    }

    fn submission(&mut self, tenant: usize) -> (Append, Vec<Submitted>) {
        let events = self.choose(tenant);
        let append = Append {
            independent: self.random.percent(40),
            ..batch(&self.shared.logs[tenant], encode(&events, "psa"))
        };
        (append, events)
    }

    async fn append(&mut self, tenant: usize) {
        let (append, events) = self.submission(tenant);
        let independent = append.independent;
        let appended = self.shared.store.journal.append(append).await.unwrap();
        self.answered(tenant, independent, events, appended);
    }

    fn answered(
        &mut self,
        tenant: usize,
        independent: bool,
        events: Vec<Submitted>,
        appended: hub_core::journal::Appended,
    ) {
        self.history.answered.push(Answered {
            tenant,
            independent,
            events: events.into_iter().map(hashed).collect(),
            appended,
        });
    }

    /// Appends that wait together are stored in the order of their submission.
    async fn append_many(&mut self, tenant: usize) {
        let mut waiting = Vec::new();
        for _ in 0..=self.random.below(6) {
            let (append, events) = self.submission(tenant);
            let independent = append.independent;
            let pending = self.shared.store.journal.submit(append).await.unwrap();
            waiting.push((pending, independent, events));
        }
        let mut last = 0;
        for (pending, independent, events) in waiting {
            let appended = pending.wait().await.unwrap();
            for outcome in &appended.outcomes {
                if let Outcome::Stored { seq } = outcome {
                    assert!(*seq > last, "submitted later, stored before {last}");
                    last = *seq;
                }
            }
            self.answered(tenant, independent, events, appended);
        }
    }

    /// The database refuses one event; those that share its commit must not notice.
    async fn append_refused(&mut self, tenant: usize) {
        let neighbour = self.submission(tenant);
        let name = format!("{tenant} {}", self.fresh_name());
        let refused = batch(&self.shared.logs[tenant], vec![poisoned(&name)]);
        let journal = &self.shared.store.journal;
        let independent = neighbour.0.independent;
        let before = journal.submit(neighbour.0).await.unwrap();
        let refused = journal.submit(refused).await.unwrap();
        let appended = before.wait().await.expect("the neighbour is stored");
        let error = refused.wait().await.expect_err("the database refuses it");
        assert_eq!(error.reason(), "INTERNAL");
        self.answered(tenant, independent, neighbour.1, appended);
        self.history.refused.push((tenant, name));
    }

    async fn append_cancelled(&mut self, tenant: usize) {
        let names: Vec<String> = (0..=self.random.below(3))
            .map(|_| format!("{tenant} {}", self.fresh_name()))
            .collect();
        let events = names
            .iter()
            .map(|name| event_with(name, 1, "psa"))
            .collect();
        let append = batch(&self.shared.logs[tenant], events);
        let yields = self.random.below(20);
        cancel_after(yields, self.shared.store.journal.append(append)).await;
        self.history.unknown.push((tenant, names));
    }

    /// A domain's own row and its events, in one or two logs.
    fn new_change(&mut self, tenant: usize, poison: bool) -> (Change, Vec<Append>) {
        let mut change = Change {
            mark: self.fresh_name(),
            events: Vec::new(),
            committed: None,
        };
        let mut appends = Vec::new();
        for tenant in [tenant, self.random.below(TENANTS)] {
            let name = format!("{tenant} {}", self.fresh_name());
            let event = event_with(&name, 1, "psa");
            appends.push(batch(&self.shared.logs[tenant], vec![event]));
            change.events.push((tenant, name));
        }
        if poison {
            let name = format!("{tenant} {}", self.fresh_name());
            let events = vec![poisoned(&name)];
            appends.push(batch(&self.shared.logs[tenant], events));
            change.events.push((tenant, name));
        }
        (change, appends)
    }

    async fn change(&mut self, tenant: usize, poison: bool) {
        let (mut change, appends) = self.new_change(tenant, poison);
        let store = &self.shared.store;
        let mut tx = store.db.begin().await.unwrap();
        tx.query(MARK)
            .bind(change.mark.clone())
            .execute()
            .await
            .unwrap();
        let done = store.journal.commit(tx, appends).await;
        change.committed = Some(!poison);
        assert_eq!(done.is_ok(), !poison, "{done:?}");
        for (appended, (tenant, name)) in done.into_iter().flatten().zip(&change.events) {
            let event = Submitted {
                name: name.clone(),
                content: 1,
            };
            self.answered(*tenant, false, vec![event], appended);
        }
        self.history.changes.push(change);
    }

    async fn change_dropped(&mut self) {
        let change = Change {
            mark: self.fresh_name(),
            events: Vec::new(),
            committed: Some(false),
        };
        let mut tx = self.shared.store.db.begin().await.unwrap();
        tx.query(MARK)
            .bind(change.mark.clone())
            .execute()
            .await
            .unwrap();
        drop(tx);
        self.history.changes.push(change);
    }

    async fn change_cancelled(&mut self, tenant: usize) {
        let (change, appends) = self.new_change(tenant, false);
        let (shared, mark) = (self.shared.clone(), change.mark.clone());
        let yields = self.random.below(60);
        cancel_after(yields, async move {
            let mut tx = shared.store.db.begin().await.unwrap();
            tx.query(MARK).bind(mark).execute().await.unwrap();
            shared.store.journal.commit(tx, appends).await.unwrap();
        })
        .await;
        self.history.changes.push(change);
    }
}

/// Polls `work` together with so many turns of the scheduler, then drops it where it is.
async fn cancel_after(turns: usize, work: impl Future) {
    tokio::select! {
        _ = work => {}
        () = async {
            for _ in 0..turns {
                tokio::time::sleep(Duration::from_micros(50)).await;
            }
        } => {}
    }
}

fn other_content(event: Submitted) -> Submitted {
    Submitted {
        content: 2,
        ..event
    }
}

fn encode(events: &[Submitted], text: &str) -> Vec<NewEvent> {
    let encode = |event: &Submitted| event_with(&event.name, event.content as u64, text);
    events.iter().map(encode).collect()
}

/// An event that is refused.
pub fn poisoned(name: &str) -> NewEvent {
    event_with(name, 1, POISON)
}

/// The content as the journal has it.
fn hashed(event: Submitted) -> Submitted {
    let content = event_with(&event.name, event.content as u64, "psa").content;
    Submitted { content, ..event }
}
