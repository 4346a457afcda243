//! Clients that send garbage, or go away in the middle.

use std::time::Duration;

use hub_client::proto::hub::api_keys::v1::WhoAmIRequest;
use hub_client::proto::hub::event_bus::v1::PublishStreamRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{event, tenant};
use crate::durability::load;
use crate::support::{Backend, Command, TestProcess};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_bytes_are_closed_cleanly_and_others_are_served() {
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let (hub, _) = tenant(&process).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for round in 0..100usize {
        let mut stream = TcpStream::connect(process.addr()).await.unwrap();
        let mut garbage = Vec::new();
        if round % 2 == 0 {
            garbage.extend_from_slice(preface);
        }
        while garbage.len() < 64 + 97 * round {
            garbage.extend_from_slice(uuid::Uuid::new_v4().as_bytes());
        }
        // The hub may close before all is written.
        let _ = stream.write_all(&garbage).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let closed = tokio::time::timeout(Duration::from_secs(10), read).await;
        assert!(closed.is_ok(), "round {round}: the connection stays open");
    }
    hub.api_keys().who_am_i(WhoAmIRequest {}).await.unwrap();
    assert!(!process.log().contains("panicked"), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_that_die_mid_stream_leave_whole_batches() {
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let (hub, key) = tenant(&process).await;
    let mut notes = Vec::new();
    for number in 0..20u64 {
        let dying = load::client(process.addr(), &key);
        let (send, frames) = tokio::sync::mpsc::channel(8);
        let receive = tokio_stream::wrappers::ReceiverStream::new(frames);
        let mut answers = dying
            .event_bus()
            .publish_stream(receive)
            .await
            .unwrap()
            .into_inner();
        for frame in 1..=10 {
            let events = (0..5)
                .map(|at| event(format!("{number}-{frame}-{at}"), 3000))
                .collect();
            let request = PublishStreamRequest {
                frame,
                events,
                ..Default::default()
            };
            send.send(request).await.unwrap();
        }
        // Opened, the window, and an acknowledgement or none; then it is gone.
        for _ in 0..2 + number % 2 {
            let frame = answers.message().await.unwrap().unwrap().frame;
            use hub_client::proto::hub::event_bus::v1::publish_stream_response::Frame;
            if let Some(Frame::Ack(ack)) = frame {
                let ids = (1..=ack.acked_through)
                    .flat_map(|frame| (0..5).map(move |at| format!("{number}-{frame}-{at}")));
                let told = ids.zip(ack.results.into_iter().map(|result| result.sequence));
                let told: Vec<_> = told.collect();
                notes.push(told.chunks(5).map(<[_]>::to_vec).collect());
            }
        }
        drop((send, answers, dying));
    }
    assert!(!notes.is_empty());
    load::check(&hub, &notes).await;
}
