//! SQLite without space, and SQLite under somebody else's lock.

use std::time::Duration;

use hub_client::Error;
use hub_client::proto::hub::event_bus::v1::PublishRequest;
use sqlx::{Connection, SqliteConnection};

use super::{event, tenant};
use crate::durability::load;
use crate::support::{Backend, Command, TestProcess};

async fn publish(hub: &hub_client::Hub, id: String, bytes: usize) -> Result<u64, Error> {
    let request = PublishRequest {
        events: vec![event(id, bytes)],
        ..PublishRequest::default()
    };
    let answer = hub.event_bus().publish(request).await?.into_inner();
    Ok(answer.results[0].sequence)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_nothing_acknowledged_is_lost() {
    let flags = ["--database-bytes-max", "2000000"];
    let mut process = TestProcess::start(Command::Serve, Backend::Sqlite, &flags).await;
    let (hub, key) = tenant(&process).await;
    let mut notes = Vec::new();
    let refusal = loop {
        let id = format!("full-{}", notes.len());
        match publish(&hub, id.clone(), 50_000).await {
            Ok(sequence) => notes.push(vec![(id, sequence)]),
            Err(error) => break error,
        }
        assert!(
            notes.len() < 100,
            "2 MB took {} events of 50 KB",
            notes.len()
        );
    };
    assert_eq!(refusal.reason(), Some("STORE_BUSY"));
    assert_eq!(refusal.metadata()["cause"], "disk_full");
    assert!(refusal.retry_after().is_some());
    // It goes on refusing, and goes on serving what it has.
    assert!(publish(&hub, "full-again".into(), 50_000).await.is_err());
    assert_eq!(load::check(&hub, &[notes.clone()]).await, notes.len());
    process.signal("TERM");
    process.ended().await;
    process.set_flags(&[]);
    process.start_again().await;
    let hub = load::client(process.addr(), &key);
    let id = format!("full-{}", notes.len());
    let sequence = publish(&hub, id.clone(), 50_000).await.unwrap();
    notes.push(vec![(id, sequence)]);
    assert_eq!(load::check(&hub, &[notes.clone()]).await, notes.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_file_is_told_and_works_again_once_it_is_free() {
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let (hub, key) = tenant(&process).await;
    let patient = hub_client::Hub::builder(format!("http://{}", process.addr()))
        .api_key(&key)
        .timeout(Duration::from_secs(20))
        .connect_lazy()
        .unwrap();
    let mut outsider = SqliteConnection::connect(process.database_url())
        .await
        .unwrap();
    sqlx::raw_sql("begin immediate")
        .execute(&mut outsider)
        .await
        .unwrap();
    let refusal = publish(&patient, "locked".into(), 10).await.unwrap_err();
    assert_eq!(refusal.reason(), Some("STORE_BUSY"));
    assert_eq!(refusal.metadata()["cause"], "locked");
    sqlx::raw_sql("rollback")
        .execute(&mut outsider)
        .await
        .unwrap();
    let sequence = publish(&hub, "locked".into(), 10).await.unwrap();
    assert_eq!(
        load::check(&hub, &[vec![vec![("locked".into(), sequence)]]]).await,
        1
    );
}
