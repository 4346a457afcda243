//! What the database writes for 100,000 delivered events: Hub's positions and exceptions, beside a
//! table with a row for each delivery.
//!
//! `cargo run --release -p hub-benches --bin delivered_bytes`; `--help` for the rest. Linux only:
//! for SQLite it counts what the kernel was given to store, by process.

use std::fs;
use std::time::Duration;

use clap::Parser;
use hub_benches::hub::HubServer;
use hub_benches::options::{Contender, Name, Options};
use hub_benches::report::{self, Table};
use hub_benches::stats::{Series, number};
use hub_benches::{PATIENCE, Result, until_interrupted};
use hub_core::error::Error as HubError;
use hub_core::storage::{self, Db, Failure, Sql};
use tokio::time::{sleep, timeout};

/// What the figures are of.
const DELIVERED: f64 = 100_000.0;
/// How many times less is expected of Hub.
const GOAL: f64 = 20.0;
/// Events in flight while publishing, and handled at once while consuming.
const WINDOW: usize = 1024;
/// Length of a piece of publishing.
const PIECE: Duration = Duration::from_millis(200);
/// Deliveries in a transaction of the other table: as many as Hub has in its largest frame.
const BATCH: i64 = 1000;
/// Nothing of deliveries is written any more when it was quiet for so many looks.
const QUIET_LOOKS: u32 = 4;
/// What is written between two looks all the time: on PostgreSQL a hub says that it lives, and the
/// first change of a page after a checkpoint is the whole page. It counts against both contenders.
const QUIET_BYTES_MAX: i64 = 16 << 10;
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

const CREATE: Sql = Sql::each(
    "create table bench_deliveries (subscription integer not null, seq integer not null, \
     state integer not null, attempts integer not null, lease_until integer not null, \
     update_time integer not null, primary key (subscription, seq)) strict, without rowid",
    "create table bench_deliveries (subscription bigint not null, seq bigint not null, \
     state smallint not null, attempts integer not null, lease_until bigint not null, \
     update_time bigint not null, primary key (subscription, seq))",
);
/// Leases of a batch.
const LEASE: Sql = Sql::same(
    "with recursive batch (seq) as (select cast($1 as bigint) union all \
     select seq + 1 from batch where seq < cast($2 as bigint)) \
     insert into bench_deliveries (subscription, seq, state, attempts, lease_until, update_time) \
     select 1, seq, 1, 1, cast($3 as bigint) + 30000000, cast($3 as bigint) from batch",
);
/// Acks of a batch.
const ACK: Sql = Sql::same(
    "update bench_deliveries set state = 2, update_time = $3 \
     where subscription = 1 and seq >= $1 and seq <= $2",
);
/// Where the write-ahead log ends.
const WAL: Sql = Sql::each(
    "select 0",
    "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint",
);

/// Measures what deliveries cost the database.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Events that are delivered in each round, at least.
    #[arg(long, default_value_t = 100_000)]
    events: u64,
}

/// What counts bytes.
enum Meter {
    /// What a process gave the kernel to store.
    Process(String),
    /// The write-ahead log of PostgreSQL.
    Wal(Db),
}

impl Meter {
    async fn read(&self) -> Result<i64> {
        match self {
            Meter::Process(process) => {
                let text = fs::read_to_string(format!("/proc/{process}/io"))?;
                let line = text
                    .lines()
                    .find_map(|line| line.strip_prefix("write_bytes:"));
                Ok(line.ok_or("there is no write_bytes")?.trim().parse()?)
            }
            Meter::Wal(db) => Ok(done(db.query(WAL).one::<(i64,)>().await)?.0),
        }
    }

    /// Its value once next to nothing is written any more.
    async fn quiet(&self) -> Result<i64> {
        let quiet = async {
            let (mut last, mut looks) = (self.read().await?, 0);
            while looks < QUIET_LOOKS {
                sleep(LOOK_INTERVAL).await;
                let now = self.read().await?;
                let quiet = now - last <= QUIET_BYTES_MAX;
                looks = if quiet { looks + 1 } else { 0 };
                last = now;
            }
            Ok(last)
        };
        timeout(PATIENCE, quiet).await?
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    until_interrupted(run(&Arguments::parse())).await
}

async fn run(arguments: &Arguments) -> Result<()> {
    let headings = ["", "Hub, MB", "a row for each delivery, MB", "times less"];
    let mut table = Table::new(&headings);
    let contenders = [Name::HubSqlite, Name::HubPostgres];
    let contenders = arguments.options.start(&contenders).await?;
    for (name, contender) in &contenders.started {
        let Contender::Hub(hub, postgres) = contender else {
            continue;
        };
        let (db, meters) = match postgres {
            Some(postgres) => {
                let db = open(postgres.url().to_owned()).await?;
                (db.clone(), [Meter::Wal(db.clone()), Meter::Wal(db)])
            }
            None => {
                let file = contenders.path().join("rows.db");
                let hub = Meter::Process(hub.server().pid().to_string());
                let own = Meter::Process("self".to_owned());
                (
                    open(format!("sqlite:{}", file.display())).await?,
                    [hub, own],
                )
            }
        };
        let row = beside(arguments, *name, hub, &db, &meters).await?;
        table.row(&row);
        db.close().await;
    }
    drop(contenders);
    let text = format!(
        "{}; {} rounds of {} events; MB (10^6 bytes) for 100,000 events.\n\n{}",
        report::machine(),
        arguments.options.rounds,
        arguments.events,
        table.text()
    );
    arguments.options.setting.publish("delivered_bytes", &text)
}

/// The row of one database: Hub and the other table in turn.
async fn beside(
    arguments: &Arguments,
    name: Name,
    hub: &HubServer,
    db: &Db,
    [of_hub, of_rows]: &[Meter; 2],
) -> Result<[String; 4]> {
    let mut tx = done(db.begin().await)?;
    done(tx.query(CREATE).execute().await)?;
    done(tx.commit().await)?;
    let (mut hubs, mut rows) = (Series::default(), Series::default());
    let mut next = 1;
    for round in 0..arguments.options.rounds {
        let by_hub = deliver(hub, of_hub, arguments.events).await?;
        let count = i64::try_from(arguments.events)?;
        let by_rows = deliver_rows(db, of_rows, next, count).await?;
        next += count;
        eprintln!(
            "round {}, {name}: {by_hub:.2} MB, {by_rows:.2} MB",
            round + 1
        );
        hubs.push(by_hub);
        rows.push(by_rows);
    }
    let ratio = rows.ratio(&hubs).unwrap_or_default();
    let verdict = match ratio >= GOAL {
        true => format!("{ratio:.0} (goal {GOAL}: held)"),
        false => format!("{ratio:.0} (goal {GOAL}: MISSED)"),
    };
    Ok([
        name.to_string(),
        hubs.show(number),
        rows.show(number),
        verdict,
    ])
}

async fn open(url: String) -> Result<Db> {
    let options = storage::Options {
        url,
        connections_max: 2,
        size_bytes_max: 0,
    };
    Ok(Db::open(&options).await?)
}

/// Megabytes for the delivery of 100,000 events by Hub, which has stored them before.
async fn deliver(hub: &HubServer, meter: &Meter, events: u64) -> Result<f64> {
    let mut published = 0;
    while published < events {
        published += hub.publish(WINDOW, PIECE).await?.events;
    }
    let before = meter.quiet().await?;
    let consumer = hub.consumer(WINDOW).await?;
    let mut counts = consumer.counts();
    let all = counts.wait_for(|counts| counts.acked >= published);
    timeout(PATIENCE, all).await??;
    consumer.shutdown().await?;
    let counts = *counts.borrow();
    if counts.received != published {
        return Err(format!("{published} events were published: {counts:?}").into());
    }
    megabytes(before, meter.quiet().await?, published)
}

/// The same by a table: a row that is inserted by the lease and updated by the ack.
async fn deliver_rows(db: &Db, meter: &Meter, first: i64, count: i64) -> Result<f64> {
    let before = meter.quiet().await?;
    let end = first + count;
    let mut from = first;
    while from < end {
        let to = (from + BATCH).min(end) - 1;
        for statement in [LEASE, ACK] {
            let mut tx = done(db.begin().await)?;
            let query = tx.query(statement).bind(from).bind(to);
            let changed = done(query.bind(1_767_225_600_000_000_i64).execute().await)?;
            if i64::try_from(changed)? != to - from + 1 {
                return Err(format!("{changed} rows were changed").into());
            }
            done(tx.commit().await)?;
        }
        from = to + 1;
    }
    megabytes(before, meter.quiet().await?, u64::try_from(count)?)
}

fn done<T>(result: Result<T, Failure>) -> Result<T> {
    Ok(result.map_err(HubError::from)?)
}

fn megabytes(before: i64, after: i64, events: u64) -> Result<f64> {
    match after - before {
        bytes if bytes > 0 => Ok(bytes as f64 / 1e6 / events as f64 * DELIVERED),
        _ => Err("the file system does not count what is written: name another --dir".into()),
    }
}
