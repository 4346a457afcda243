//! Events published in a second with 1 and 10 subscribers, until all of them have everything.
//!
//! `cargo run --release -p hub-benches --bin fanout`; `--help` for the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Parser;
use hub_benches::options::{Contenders, Name, Options};
use hub_benches::report::{self, Table};
use hub_benches::round::Run;
use hub_benches::stats::{Series, number, rate};
use hub_benches::{Result, until_interrupted};

/// Before the first round, each contender runs for so long.
const WARM_UP: Duration = Duration::from_millis(500);
const NAMES: [Name; 4] = [Name::HubSqlite, Name::Redis, Name::Nats, Name::HubPostgres];

/// Measures publishing to several subscribers.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Subscribers, each on a connection of its own.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10])]
    subscribers: Vec<usize>,
    /// Events in flight.
    #[arg(long, default_value_t = 1024)]
    window: usize,
}

/// What has a row for each number of subscribers: a contender, and whether its readers are light.
type Row = (Name, bool);
const ROWS: [Row; 6] = [
    (Name::HubSqlite, false),
    (Name::HubSqlite, true),
    (Name::Redis, false),
    (Name::Nats, false),
    (Name::HubPostgres, false),
    (Name::HubPostgres, true),
];

/// Runs by row and number of subscribers.
type Runs = BTreeMap<(Row, usize), Vec<Run>>;

/// One thread of clients could be the bottleneck: there are ten readers.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    until_interrupted(run(&Arguments::parse())).await
}

async fn run(arguments: &Arguments) -> Result<()> {
    let options = &arguments.options;
    let mut contenders = options.start(&NAMES).await?;
    let runs = measure(arguments, &mut contenders).await?;
    drop(contenders);
    let text = format!(
        "{}; W={}; {} rounds of {} s.\n\n{}",
        report::machine(),
        arguments.window,
        options.rounds,
        options.seconds,
        table(arguments, &runs).text(),
    );
    options.setting.publish("fanout", &text)
}

async fn measure(arguments: &Arguments, contenders: &mut Contenders) -> Result<Runs> {
    let mut runs = Runs::new();
    for (_, contender) in &mut contenders.started {
        contender
            .fanout(1, false, arguments.window, WARM_UP)
            .await?;
    }
    let duration = arguments.options.duration();
    for round in 0..arguments.options.rounds {
        for readers in &arguments.subscribers {
            for (name, contender) in &mut contenders.started {
                for light in [false, true] {
                    let run = contender.fanout(*readers, light, arguments.window, duration);
                    let Some(run) = run.await? else { continue };
                    let (title, shown) = (title((*name, light)), rate(run.rate()));
                    eprintln!(
                        "round {}, {readers} subscribers, {title}: {shown}/s",
                        round + 1
                    );
                    runs.entry(((*name, light), *readers))
                        .or_default()
                        .push(run);
                }
            }
        }
        // Nobody always comes after the same neighbour.
        contenders.started.reverse();
    }
    Ok(runs)
}

fn title((name, light): Row) -> String {
    match light {
        true => format!("{name}, light client"),
        false => name.to_string(),
    }
}

fn series(runs: &Runs, row: Row, readers: usize, value: impl Fn(&Run) -> f64) -> Series {
    let mut series = Series::default();
    let runs = runs.get(&(row, readers));
    runs.into_iter()
        .flatten()
        .for_each(|run| series.push(value(run)));
    series
}

fn table(arguments: &Arguments, runs: &Runs) -> Table {
    let mut table = Table::new(&[
        "",
        "subscribers",
        "events published/s",
        "x Redis",
        "x NATS",
        "server CPU us/event",
        "client CPU us/event",
    ]);
    for readers in &arguments.subscribers {
        for row in ROWS {
            let rates = series(runs, row, *readers, Run::rate);
            let beside = |peer| {
                let ratio = rates.ratio(&series(runs, (peer, false), *readers, Run::rate));
                ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.1}"))
            };
            let cost = |value: &dyn Fn(&Run) -> f64| {
                let median = series(runs, row, *readers, value).median();
                median.map_or("-".to_owned(), number)
            };
            table.row(&[
                title(row),
                readers.to_string(),
                rates.show(rate),
                beside(Name::Redis),
                beside(Name::Nats),
                cost(&|run| run.micros_per_event(run.server_cpu)),
                cost(&|run| run.micros_per_event(run.client_cpu)),
            ]);
        }
    }
    table
}
