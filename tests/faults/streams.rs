//! Readers that take nothing, and readers that get nothing.

use std::time::Duration;

use futures_util::StreamExt;
use http::Method;
use hub_client::proto::hub::event_bus::v1::{
    PublishRequest, StartAt, SubscribeRequest, SubscribeResponse, start_at,
};
use hub_client::{Delivery, Hub, SubscribeOptions};
use tonic::Streaming;

use super::{event, tenant};
use crate::durability::load;
use crate::support::{Backend, Command, TestProcess, request};

const MIB: u64 = 1 << 20;

type Reading = (Hub, Streaming<SubscribeResponse>);

/// Readers of everything, each on a connection of its own; nobody asks them for a frame.
async fn readers(process: &TestProcess, key: &str, count: u64) -> Vec<Reading> {
    let mut readers = Vec::new();
    for _ in 0..count {
        let reader = load::client(process.addr(), key);
        let start = Some(StartAt {
            at: Some(start_at::At::Earliest(true)),
        });
        let request = SubscribeRequest {
            start,
            all_products: true,
            ..Default::default()
        };
        let stream = reader.event_bus().subscribe(request).await.unwrap();
        readers.push((reader, stream.into_inner()));
    }
    readers
}

/// Publishes batches of 64 events, about 1 MiB each.
async fn publish(hub: &Hub, batches: u64) {
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
}

/// Readers that were given up, as the metrics tell.
async fn slow_readers(process: &TestProcess) -> u64 {
    let metrics = request(process.addr(), Method::GET, "/metrics", &[], "").await;
    let counts = metrics
        .text()
        .lines()
        .filter(|line| line.starts_with("hub_slow_readers_total"));
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_take_nothing_cost_little_and_hold_up_nobody() {
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let (hub, key) = tenant(&process).await;
    let _stuck = readers(&process, &key, 20).await;
    let before = process.resident_bytes();
    let batches = 60u64;
    publish(&hub, batches).await;
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
async fn readers_that_take_nothing_lose_their_memory_before_they_read_again() {
    const READERS: u64 = 60;
    const WAVES: u64 = 3;
    let flags = ["--slow-reader-timeout", "3s"];
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &flags).await;
    let (hub, key) = tenant(&process).await;
    publish(&hub, 8).await;
    let before = process.resident_bytes();
    let (mut stuck, mut most) = (Vec::new(), Vec::new());
    // What one wave held, the next one gets: the allocator need not give it back to the system.
    for wave in 1..=WAVES {
        stuck.extend(readers(&process, &key, READERS).await);
        let mut peak = 0;
        while slow_readers(&process).await < wave * READERS {
            tokio::time::sleep(Duration::from_millis(50)).await;
            peak = peak.max(process.resident_bytes().saturating_sub(before) / MIB);
        }
        most.push(peak);
    }
    println!("waves of {READERS} stuck readers: {most:?} MiB");
    assert!(most[0] >= READERS, "{} MiB: they were not stuck", most[0]);
    assert!(
        most[2] < most[0] * 3 / 2,
        "each wave keeps its memory: {most:?} MiB"
    );
    for (_, mut stream) in stuck {
        while let Ok(frame) = stream.message().await {
            assert!(frame.is_some(), "it ended as if all were said");
        }
    }
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
