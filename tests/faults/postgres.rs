//! PostgreSQL whose connections are cut.

use hub_client::proto::hub::event_bus::v1::PublishRequest;
use sqlx::{Connection, PgConnection};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{event, tenant};
use crate::durability::load;
use crate::support::{Backend, Command, TestProcess};

const CUTS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_under_load_lose_nothing() {
    let process = TestProcess::start(Command::Serve, Backend::Postgres, &[]).await;
    let (hub, key) = tenant(&process).await;
    let (_address, seen) = watch::channel(process.addr());
    let stop = CancellationToken::new();
    let work = |name: &str| {
        tokio::spawn(load::publish(
            name.into(),
            key.clone(),
            seen.clone(),
            stop.clone(),
        ))
    };
    let publishers = [work("one"), work("two"), work("three")];
    let mut outsider = PgConnection::connect(process.database_url()).await.unwrap();
    let mut cut = 0;
    for number in 0..CUTS {
        let rows: Vec<(bool,)> = sqlx::query_as(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name = 'hub'",
        )
        .fetch_all(&mut outsider)
        .await
        .unwrap();
        cut += rows.len();
        // Until the hub works again, so that each cut meets work under way.
        let events = vec![event(format!("probe-{number}"), 10)];
        let request = PublishRequest {
            events,
            ..PublishRequest::default()
        };
        while hub.event_bus().publish(request.clone()).await.is_err() {}
    }
    stop.cancel();
    let mut notes = Vec::new();
    for publisher in publishers {
        notes.push(publisher.await.unwrap());
    }
    let acknowledged = load::check(&hub, &notes).await;
    println!("{cut} connections cut, {acknowledged} acknowledged events, each there once");
    assert!(cut >= CUTS && acknowledged > CUTS);
}
