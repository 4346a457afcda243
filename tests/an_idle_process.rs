//! What an idle process asks of PostgreSQL. It waits for minutes, so its name puts it before all
//! others: they run meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hub_client::CloudEvent;
use hub_client::proto::hub::event_bus::v1::PublishRequest;
use sqlx::{Connection, PgConnection};

use crate::durability::load::{self, SCOPES};
use crate::durability::postgres::Server;
use crate::event_bus::Product;
use crate::event_bus::consumer::{ids_of, open};
use crate::support::{Command, Database, Tenant, TestProcess};

const STATEMENTS_PER_SECOND_MAX: f64 = 2.0;
/// Some workers look once in a minute.
const MEASURED: Duration = Duration::from_secs(60);
/// The same with a consumer, of whose work the first seconds tell.
const MEASURED_CONNECTED: Duration = Duration::from_secs(40);
/// A process that is called looks every 2 s at what became of its keys, and its consumer begins.
const KEYS_IN_USE_PER_SECOND: f64 = 1.0;
/// What takes longer has failed: default subscriptions are looked for once in a minute.
const PATIENCE: Duration = Duration::from_secs(150);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Nothing happens for so long after what was left to do.
const QUIET: Duration = Duration::from_secs(3);

/// The server writes down each statement that is run.
async fn log_statements(server: &Server) {
    let mut connection = PgConnection::connect(&server.url).await.unwrap();
    for statement in [
        "alter system set log_statement = 'all'",
        "alter system set log_line_prefix = '[%a] '",
        "select pg_reload_conf()",
    ] {
        sqlx::raw_sql(statement)
            .execute(&mut connection)
            .await
            .unwrap();
    }
}

/// How often each statement was run, by its first words.
fn counted(log: &str) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for line in log.lines() {
        let run = line
            .split_once("LOG:  execute ")
            .or_else(|| line.split_once("LOG:  statement"));
        let Some((program, run)) = run else { continue };
        let text = run.split_once(": ").map_or(run, |(_, text)| text);
        let text: String = text.chars().take(60).collect();
        *counted.entry(format!("{program}{text}")).or_default() += 1;
    }
    counted
}

/// The log of the tenant is listed, its default subscriptions are made, and nothing was done since
/// beside what a process does all the time.
async fn settled(server: &Server) {
    let (mut done, mut since) = (0, Instant::now());
    loop {
        let log = server.log();
        let listed = log.contains("update listing_covered");
        let made = log.contains("insert into subscriptions");
        let counted = counted(&log);
        let other = counted
            .iter()
            .filter(|(text, _)| !text.contains("hub beat"));
        let other: usize = other.map(|(_, count)| count).sum();
        if other != done {
            (done, since) = (other, Instant::now());
        }
        if listed && made && since.elapsed() > QUIET {
            return;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Statements per second from now on.
async fn per_second(server: &Server, length: Duration) -> f64 {
    let (before, began) = (server.log().len(), Instant::now());
    tokio::time::sleep(length).await;
    let log = server.log().split_off(before);
    let counted = counted(&log);
    let count: usize = counted.values().sum();
    let per_second = count as f64 / began.elapsed().as_secs_f64();
    println!("{per_second:.2} statements a second\n{counted:#?}");
    assert!(count > 10, "statements are counted");
    per_second
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_at_most_two_statements_a_second() {
    let server = Server::start();
    log_statements(&server).await;
    let database = Database::at(server.url.clone());
    let process = TestProcess::start_on(Command::Serve, database, &[]).await;
    // It has served, so it knows tenants, keys and logs.
    let operator_key = process.ready["operatorKey"].as_str().unwrap();
    let tenant = Tenant::create(&load::client(process.addr(), operator_key)).await;
    let admin = load::client(process.addr(), &tenant.admin_key);
    let key = tenant.key(&admin, "psa", &SCOPES).await;
    let request = |id: &str| PublishRequest {
        events: vec![CloudEvent {
            id: id.into(),
            source: "/psa".into(),
            spec_version: "1.0".into(),
            r#type: "ticket.created".into(),
            ..CloudEvent::default()
        }],
        ..PublishRequest::default()
    };
    let psa = load::client(process.addr(), &key);
    psa.event_bus().publish(request("1")).await.unwrap();
    let quiet = tokio::time::timeout(PATIENCE, settled(&server)).await;
    assert!(
        quiet.is_ok(),
        "it is never quiet: {:#?}",
        counted(&server.log())
    );
    let idle = per_second(&server, MEASURED).await;
    assert!(idle <= STATEMENTS_PER_SECOND_MAX);
    let portal = tenant.key(&admin, "portal", &SCOPES).await;
    let consumer = Product {
        bus: load::client(process.addr(), &portal).event_bus(),
        key: portal,
    };
    // A consumer is connected that has done all that there was.
    let mut consumer = consumer.consume(open("portal", 10)).await;
    let events = consumer.events(1).await;
    consumer.ack(&events).await;
    // What the ack and the new key bring about comes with it.
    let connected = per_second(&server, MEASURED_CONNECTED).await;
    assert!(connected <= STATEMENTS_PER_SECOND_MAX + KEYS_IN_USE_PER_SECOND);
    // It is still there, and is given the next event.
    psa.event_bus().publish(request("2")).await.unwrap();
    assert_eq!(ids_of(&consumer.events(1).await), ["2"]);
}
