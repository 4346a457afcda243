//! Events published, delivered to one durable consumer and acked in a second, with 1, 64 and 1024
//! in flight.
//!
//! `cargo run --release -p hub-benches --bin consume`; `--help` for the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Parser;
use hub_benches::options::{Contenders, Name, Options};
use hub_benches::report::{self, Table};
use hub_benches::round::Run;
use hub_benches::stats::{Series, number, rate};
use hub_benches::{Result, until_interrupted};

/// Before the first round, each contender runs for so long with each window.
const WARM_UP: Duration = Duration::from_millis(500);
const NAMES: [Name; 4] = [Name::HubSqlite, Name::Redis, Name::Nats, Name::HubPostgres];
/// The window for which something is expected of Hub on SQLite, and what: times each peer.
const GOAL: (usize, f64) = (1024, 4.0);

/// Measures publishing to a durable consumer.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Events in flight, and handled at once.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 1024])]
    windows: Vec<usize>,
}

/// Runs by contender and window.
type Runs = BTreeMap<(Name, usize), Vec<Run>>;

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
        "{}; {} rounds of {} s.\n\n{}",
        report::machine(),
        options.rounds,
        options.seconds,
        table(arguments, &runs).text(),
    );
    options.setting.publish("consume", &text)
}

async fn measure(arguments: &Arguments, contenders: &mut Contenders) -> Result<Runs> {
    let mut runs = Runs::new();
    for (_, contender) in &mut contenders.started {
        for window in &arguments.windows {
            contender.consume(*window, WARM_UP).await?;
        }
    }
    let duration = arguments.options.duration();
    for round in 0..arguments.options.rounds {
        for window in &arguments.windows {
            for (name, contender) in &mut contenders.started {
                let Some(run) = contender.consume(*window, duration).await? else {
                    continue;
                };
                let shown = rate(run.rate());
                eprintln!("round {}, W={window}, {name}: {shown}/s", round + 1);
                runs.entry((*name, *window)).or_default().push(run);
            }
        }
        // Nobody always comes after the same neighbour.
        contenders.started.reverse();
    }
    Ok(runs)
}

fn series(runs: &Runs, name: Name, window: usize, value: impl Fn(&Run) -> f64) -> Series {
    let mut series = Series::default();
    let runs = runs.get(&(name, window));
    runs.into_iter()
        .flatten()
        .for_each(|run| series.push(value(run)));
    series
}

fn table(arguments: &Arguments, runs: &Runs) -> Table {
    let mut table = Table::new(&[
        "",
        "W",
        "events acked/s",
        "x Redis",
        "x NATS",
        "server CPU us/event",
        "client CPU us/event",
    ]);
    for window in &arguments.windows {
        for name in NAMES {
            let rates = series(runs, name, *window, Run::rate);
            let beside = |peer| {
                let ratio = rates.ratio(&series(runs, peer, *window, Run::rate));
                verdict(ratio, (name, *window))
            };
            let cost = |value: &dyn Fn(&Run) -> f64| {
                let median = series(runs, name, *window, value).median();
                median.map_or("-".to_owned(), number)
            };
            table.row(&[
                name.to_string(),
                window.to_string(),
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

/// e.g. `4.2 (goal 4: held)`.
fn verdict(ratio: Option<f64>, row: (Name, usize)) -> String {
    let Some(ratio) = ratio else {
        return "-".to_owned();
    };
    let (window, goal) = GOAL;
    match row == (Name::HubSqlite, window) {
        false => format!("{ratio:.1}"),
        true if ratio >= goal => format!("{ratio:.1} (goal {goal}: held)"),
        true => format!("{ratio:.1} (goal {goal}: MISSED)"),
    }
}
