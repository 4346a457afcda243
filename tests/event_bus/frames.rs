//! The frames of a Subscribe stream: how they are cut, and what they promise.

use hub_client::start_at::At;
use hub_proto::hub::event_bus::v1::subscribe_response::Frame;
use hub_proto::hub::event_bus::v1::{EventBatch, PublishRequest, SubscribeRequest};
use prost::Message;

use super::{
    HEARTBEAT, Product, batch, earliest, from, ids, large_ticket, numbered, of_types, sequences,
    ticket,
};
use crate::support::{Backend, TestHub};

const MIB: usize = 1 << 20;
/// Largest frame of the contract.
const FRAME_BYTES_MAX: usize = 5 * MIB;

/// The batches up to the end of the log.
async fn batches(product: &Product) -> Vec<EventBatch> {
    let request = SubscribeRequest {
        stop_when_caught_up: true,
        ..from(earliest())
    };
    let mut reader = product.subscribe(request).await;
    let mut batches = Vec::new();
    while let Some(frame) = reader.try_next().await.unwrap() {
        if let Frame::Events(batch) = frame {
            batches.push(batch);
        }
    }
    batches
}

both_databases! {
    async fn a_batch_is_in_one_frame_and_no_frame_is_too_large(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let mut batch_of = std::collections::HashMap::new();
        let sizes = [
            (1, 10),
            (10, 100_000),
            (1000, 1000),
            (3, 1_000_000),
            (1, 10),
            (4, 1_040_000),
            (50, 20_000),
        ];
        for (number, (count, bytes)) in sizes.into_iter().enumerate() {
            let events: Vec<_> = numbered(&number.to_string(), count)
                .iter()
                .map(|id| large_ticket(id, bytes))
                .collect();
            for event in &events {
                batch_of.insert(event.id.clone(), number);
            }
            psa.publish(events).await;
        }
        let mut home = std::collections::HashMap::new();
        let mut seen = 0;
        for (frame, batch) in batches(&portal).await.iter().enumerate() {
            assert!(batch.events.len() <= 1000, "{} events", batch.events.len());
            assert!(batch.encoded_len() <= FRAME_BYTES_MAX, "{} bytes", batch.encoded_len());
            let expected: Vec<u64> = (seen + 1..=seen + batch.events.len() as u64).collect();
            assert_eq!(sequences(&batch.events), expected);
            seen += batch.events.len() as u64;
            for id in ids(&batch.events) {
                let batch = batch_of[&id];
                assert_eq!(*home.entry(batch).or_insert(frame), frame, "batch {batch} is split");
            }
        }
        assert_eq!(seen as usize, batch_of.len());
    }

    async fn frames_aim_at_a_mebibyte(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        for part in 0..8 {
            let events: Vec<_> = numbered(&part.to_string(), 100)
                .iter()
                .map(|id| large_ticket(id, 10_000))
                .collect();
            let request = PublishRequest { independent: true, ..batch(events) };
            psa.send(request).await.unwrap();
        }
        let batches = batches(&portal).await;
        assert!(batches.iter().all(|batch| batch.encoded_len() < MIB + MIB / 4));
        assert!(batches.len() < 60, "{} frames for 8 MiB", batches.len());
    }

    async fn a_thousand_events_are_the_most_in_a_frame(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        for part in 0..3 {
            let ids = numbered(&part.to_string(), 1000);
            let events = ids.iter().map(|id| ticket(id)).collect();
            psa.send(PublishRequest { independent: part > 0, ..batch(events) }).await.unwrap();
        }
        let batches = batches(&portal).await;
        assert!(batches.iter().all(|batch| batch.events.len() <= 1000));
        assert_eq!(batches.iter().map(|batch| batch.events.len()).sum::<usize>(), 3000);
    }

    async fn progress_moves_on_under_a_quiet_filter_and_is_never_late(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let quiet = SubscribeRequest { filter: Some(of_types(&["never.*"])), ..Default::default() };
        let mut reader = portal.subscribe(quiet.clone()).await;
        reader.caught_up().await;
        for round in 1..=3u64 {
            psa.publish(vec![ticket(&format!("a {round}")), ticket(&format!("b {round}"))]).await;
            hub.clock.advance(HEARTBEAT);
            let progress = loop {
                match reader.next().await {
                    Frame::Progress(progress) if progress.sequence == 2 * round => break progress,
                    // Made before the reader came to the end, or told that it came there.
                    Frame::Progress(_) | Frame::CaughtUp(_) => hub.clock.advance(HEARTBEAT),
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!(progress.head_sequence, 2 * round);
            let time = progress.server_time.unwrap();
            assert!(time.seconds * 1_000_000 <= hub.clock.now());
            // It resumes there, with the same filter.
            let start = from(At::Cursor(progress.cursor)).start;
            let request = SubscribeRequest { start, stop_when_caught_up: true, ..quiet.clone() };
            assert_eq!(portal.subscribe(request).await.rest().await.0, []);
        }
    }

    async fn an_idle_stream_speaks_before_each_interval_is_over(backend: Backend) {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let portal = Product::new(&hub, "portal").await;
        let mut reader = portal.subscribe(SubscribeRequest::default()).await;
        reader.caught_up().await;
        for _ in 0..5 {
            hub.clock.advance(HEARTBEAT);
            assert!(matches!(reader.next().await, Frame::Progress(_)));
        }
    }

    async fn caught_up_is_said_again_after_falling_behind(hub: TestHub) {
        let (psa, portal) = (Product::new(&hub, "psa").await, Product::new(&hub, "portal").await);
        let mut reader = portal.subscribe(SubscribeRequest::default()).await;
        assert_eq!(reader.caught_up().await, 0);
        // Too much for one frame: there is more behind it.
        for part in 0..3u64 {
            let events = numbered(&part.to_string(), 200);
            let events = events.iter().map(|id| large_ticket(id, 15_000)).collect();
            let request = PublishRequest { independent: true, ..batch(events) };
            psa.send(request).await.unwrap();
            let last = 200 * (part + 1);
            while reader.caught_up().await < last {}
        }
    }

    async fn readers_join_the_database_and_the_tail_without_gap_or_repeat(backend: Backend) {
        let hub = TestHub::options(backend)
            .limits(|limits| {
                limits.tail_bytes_max = 64 << 10;
                limits.page_bytes_max = 16 << 10;
            })
            .start()
            .await;
        let psa = Product::new(&hub, "psa").await;
        let portal = std::sync::Arc::new(Product::new(&hub, "portal").await);
        const BATCHES: usize = 150;
        const EACH: usize = 20;
        let mut readers = tokio::task::JoinSet::new();
        for number in 0..BATCHES {
            let events = numbered(&number.to_string(), EACH);
            psa.publish(events.iter().map(|id| large_ticket(id, 300)).collect()).await;
            // Readers come while it goes on: at the start, in the middle, at the end.
            if number % 10 == 0 {
                let portal = portal.clone();
                let after = (number * EACH / (1 + readers.len() % 3)) as u64;
                readers.spawn(async move {
                    let mut reader = portal.subscribe(from(At::AfterSequence(after))).await;
                    let events = reader.events(BATCHES * EACH - after as usize).await;
                    (after, sequences(&events))
                });
            }
        }
        while let Some(reading) = readers.join_next().await {
            let (after, seen) = reading.unwrap();
            assert_eq!(seen, (after + 1..=(BATCHES * EACH) as u64).collect::<Vec<u64>>());
        }
    }
}
