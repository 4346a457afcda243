//! Time from before an event is published until its subscriber has it, at a steady rate.
//!
//! `cargo run --release -p hub-benches --bin latency`; `--help` for the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Parser;
use hub_benches::contender::Feed;
use hub_benches::options::{Contender, Contenders, Name, Options};
use hub_benches::report::{self, Table};
use hub_benches::stats::{Series, number, percentile};
use hub_benches::{Result, until_interrupted};

/// Before the first round, each contender runs for so long.
const WARM_UP: Duration = Duration::from_millis(500);
const NAMES: [Name; 4] = [Name::HubSqlite, Name::Redis, Name::Nats, Name::HubPostgres];
/// What the table shows: heading and part of the events.
const PARTS: [(&str, f64); 3] = [("p50 us", 0.5), ("p99 us", 0.99), ("p99.9 us", 0.999)];

/// Measures the way of an event from end to end.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Events in a second.
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
}

/// A series for each of [`PARTS`], by contender.
type Results = BTreeMap<Name, [Series; PARTS.len()]>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    until_interrupted(run(&Arguments::parse())).await
}

async fn run(arguments: &Arguments) -> Result<()> {
    let options = &arguments.options;
    let mut contenders = options.start(&NAMES).await?;
    let results = measure(arguments, &mut contenders).await?;
    drop(contenders);
    let text = format!(
        "{}; {} events/s; {} rounds of {} s.\n\n{}",
        report::machine(),
        arguments.rate,
        options.rounds,
        options.seconds,
        table(&results).text(),
    );
    options.setting.publish("latency", &text)
}

async fn measure(arguments: &Arguments, contenders: &mut Contenders) -> Result<Results> {
    let every = Duration::from_secs_f64(1.0 / arguments.rate.clamp(1.0, 1e6));
    let mut results = Results::new();
    for (_, contender) in &contenders.started {
        turn(contender, Feed::new(every, WARM_UP)).await?;
    }
    for round in 0..arguments.options.rounds {
        for (name, contender) in &contenders.started {
            let feed = Feed::new(every, arguments.options.duration());
            let delays = feed.delays();
            turn(contender, feed).await?;
            let micros = delays().micros;
            let values = PARTS.map(|(_, part)| percentile(&micros, part));
            let [p50, p99, _] = values.map(number);
            eprintln!("round {}, {name}: p50 {p50} us, p99 {p99} us", round + 1);
            let series = results.entry(*name).or_default();
            series
                .iter_mut()
                .zip(values)
                .for_each(|(series, value)| series.push(value));
        }
        // Nobody always comes after the same neighbour.
        contenders.started.reverse();
    }
    Ok(results)
}

async fn turn(contender: &Contender, feed: Feed) -> Result<()> {
    match contender {
        Contender::Hub(hub, _) => hub.latency(feed).await,
        Contender::Redis(redis) => redis.latency(feed).await,
        Contender::Nats(nats) => nats.latency(feed).await,
        Contender::Limit(_) => Ok(()),
    }
}

fn table(results: &Results) -> Table {
    let mut headings = vec!["".to_owned()];
    for (heading, _) in PARTS {
        headings.push(heading.to_owned());
        headings.push("Hub on SQLite is x times".to_owned());
    }
    let mut table = Table::new(&headings);
    let hub = results.get(&Name::HubSqlite);
    for name in NAMES {
        let Some(series) = results.get(&name) else {
            continue;
        };
        let mut row = vec![name.to_string()];
        for (part, series) in series.iter().enumerate() {
            row.push(series.show(number));
            let ratio = hub.and_then(|hub| hub[part].ratio(series));
            row.push(ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")));
        }
        table.row(&row);
    }
    table
}
