//! Readers that take nothing, and readers that get nothing.

use futures_util::StreamExt;
use hub_client::proto::hub::event_bus::v1::{PublishRequest, StartAt, SubscribeRequest, start_at};
use hub_client::{Delivery, SubscribeOptions};

use super::{event, tenant};
use crate::durability::load;
use crate::support::{Backend, Command, TestProcess};

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_take_nothing_cost_little_and_hold_up_nobody() {
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let (hub, key) = tenant(&process).await;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let reader = load::client(process.addr(), &key);
        let start = Some(StartAt {
            at: Some(start_at::At::Earliest(true)),
        });
        let request = SubscribeRequest {
            start,
            all_products: true,
            ..Default::default()
        };
        let stream = reader
            .event_bus()
            .subscribe(request)
            .await
            .unwrap()
            .into_inner();
        stuck.push((reader, stream));
    }
    let before = process.resident_bytes();
    let batches = 60u64;
    for batch in 0..batches {
        let events = (0..64)
            .map(|at| event(format!("{batch}-{at}"), 15_000))
            .collect();
        let request = PublishRequest {
            events,
            ..PublishRequest::default()
        };
        hub.event_bus().publish(request).await.unwrap();
    }
    let options = SubscribeOptions::default()
        .all_products()
        .earliest()
        .stop_when_caught_up();
    let mut stream = hub.subscribe(options);
    let mut events = 0;
    while let Some(delivery) = stream.next().await {
        if let Delivery::Events(batch) = delivery.unwrap() {
            events += batch.events.len() as u64;
        }
    }
    assert_eq!(events, batches * 64);
    let grown = process.resident_bytes().saturating_sub(before) / MIB;
    println!("20 stuck readers, {batches} MiB published: {grown} MiB more");
    // The newest events are kept in memory up to 64 MiB; allocators and SQLite add to it.
    assert!(grown < 200, "{grown} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_streams_are_cheap() {
    const STREAMS: u64 = 2000;
    const PER_CONNECTION: u64 = 100;
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let (_, key) = tenant(&process).await;
    let mut open = Vec::new();
    let mut before = 0;
    for connection in 0..STREAMS / PER_CONNECTION + 1 {
        let reader = load::client(process.addr(), &key);
        for _ in 0..PER_CONNECTION {
            let request = SubscribeRequest::default();
            let mut stream = reader
                .event_bus()
                .subscribe(request)
                .await
                .unwrap()
                .into_inner();
            // Opened and CaughtUp: from here on it waits.
            stream.message().await.unwrap();
            stream.message().await.unwrap();
            open.push((reader.clone(), stream));
        }
        if connection == 0 {
            before = process.resident_bytes();
        }
    }
    let each = process.resident_bytes().saturating_sub(before) / STREAMS / 1024;
    println!("{STREAMS} idle streams: {each} KiB each");
    assert!(each <= 40, "{each} KiB");
}
