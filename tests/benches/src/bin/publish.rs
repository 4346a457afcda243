//! Events published, synced and acknowledged in a second, with 1, 64 and 1024 in flight.
//!
//! `cargo run --release -p hub-benches --bin publish`; `--help` for the rest.

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

/// Measures publishing.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Events in flight.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 1024])]
    windows: Vec<usize>,
}

/// Runs by contender and window.
type Runs = BTreeMap<(Name, usize), Vec<Run>>;

/// What is expected of Hub beside Redis on the two databases, by window.
fn floor(name: Name, window: usize) -> Option<f64> {
    match (name, window) {
        (Name::HubSqlite, 1) => Some(0.6),
        (Name::HubSqlite, 64) => Some(0.9),
        (Name::HubSqlite, 1024) => Some(2.0),
        (Name::HubPostgres, 1) => Some(0.5),
        (Name::HubPostgres, 64) => Some(0.6),
        (Name::HubPostgres, 1024) => Some(0.9),
        _ => None,
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    until_interrupted(run(&Arguments::parse())).await
}

async fn run(arguments: &Arguments) -> Result<()> {
    let options = &arguments.options;
    let mut contenders = options.start(&Name::ALL).await?;
    let runs = measure(arguments, &mut contenders).await?;
    drop(contenders);
    let text = format!(
        "{}; {} rounds of {} s.\n\n{}\n{}\nPer event and commit (medians):\n\n{}",
        report::machine(),
        options.rounds,
        options.seconds,
        rates(arguments, &runs).text(),
        ratios(arguments, &runs).text(),
        costs(arguments, &runs).text(),
    );
    options.setting.publish("publish", &text)
}

async fn measure(arguments: &Arguments, contenders: &mut Contenders) -> Result<Runs> {
    let mut runs = Runs::new();
    for (_, contender) in &mut contenders.started {
        for window in &arguments.windows {
            contender.publish(*window, WARM_UP).await?;
        }
    }
    for round in 0..arguments.options.rounds {
        for window in &arguments.windows {
            for (name, contender) in &mut contenders.started {
                let run = contender
                    .publish(*window, arguments.options.duration())
                    .await?;
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

fn rates(arguments: &Arguments, runs: &Runs) -> Table {
    let mut headings = vec!["events/s".to_owned()];
    headings.extend(arguments.windows.iter().map(|window| format!("W={window}")));
    let mut table = Table::new(&headings);
    for name in Name::ALL {
        let mut row = vec![name.to_string()];
        for window in &arguments.windows {
            row.push(series(runs, name, *window, Run::rate).show(rate));
        }
        table.row(&row);
    }
    table
}

fn ratios(arguments: &Arguments, runs: &Runs) -> Table {
    let mut headings = vec!["ratio of medians".to_owned()];
    headings.extend(arguments.windows.iter().map(|window| format!("W={window}")));
    let mut table = Table::new(&headings);
    for hub in [Name::HubSqlite, Name::HubPostgres] {
        for peer in [Name::Redis, Name::Nats, Name::Limit] {
            let mut row = vec![format!("{hub} : {peer}")];
            for window in &arguments.windows {
                let peers = series(runs, peer, *window, Run::rate);
                let ratio = series(runs, hub, *window, Run::rate).ratio(&peers);
                let floor = floor(hub, *window).filter(|_| peer == Name::Redis);
                row.push(verdict(ratio, floor));
            }
            table.row(&row);
        }
    }
    table
}

/// e.g. `0.71 (floor 0.60: held)`.
fn verdict(ratio: Option<f64>, floor: Option<f64>) -> String {
    let Some(ratio) = ratio else {
        return "-".to_owned();
    };
    match floor {
        None => format!("{ratio:.2}"),
        Some(floor) if ratio >= floor => format!("{ratio:.2} (floor {floor:.2}: held)"),
        Some(floor) => format!("{ratio:.2} (floor {floor:.2}: MISSED)"),
    }
}

fn costs(arguments: &Arguments, runs: &Runs) -> Table {
    let mut table = Table::new(&[
        "",
        "server CPU us/event",
        "client CPU us/event",
        "commits/s",
        "events/commit",
        "us/commit",
        "time in commits",
    ]);
    for window in &arguments.windows {
        for name in [Name::HubSqlite, Name::HubPostgres, Name::Redis, Name::Nats] {
            let show = |value: &dyn Fn(&Run) -> f64, unit: fn(f64) -> String| {
                let median = series(runs, name, *window, value).median();
                median
                    .filter(|median| *median > 0.0)
                    .map_or("-".to_owned(), unit)
            };
            let seconds = |run: &Run| run.elapsed.as_secs_f64();
            let commit_seconds = |run: &Run| run.commit_time.as_secs_f64();
            let commits = |run: &Run| run.commits.max(1.0);
            table.row(&[
                format!("W={window}, {name}"),
                show(&|run| run.micros_per_event(run.server_cpu), number),
                show(&|run| run.micros_per_event(run.client_cpu), number),
                show(&|run| run.commits / seconds(run), rate),
                show(
                    &|run| match run.commits {
                        0.0 => 0.0,
                        commits => run.events as f64 / commits,
                    },
                    number,
                ),
                show(&|run| commit_seconds(run) / commits(run) * 1e6, number),
                show(&|run| commit_seconds(run) / seconds(run) * 100.0, |part| {
                    format!("{part:.0} %")
                }),
            ]);
        }
    }
    table
}
