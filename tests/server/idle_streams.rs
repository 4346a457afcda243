//! Many subscribers that wait for events.

use hub_client::Hub;
use hub_proto::hub::event_bus::v1::subscribe_response::Frame;
use hub_proto::hub::event_bus::v1::{SubscribeRequest, SubscribeResponse};
use tonic::Streaming;

use crate::server::program::portal_key;
use crate::support::{Backend, Command, TestProcess};

const STREAMS: usize = 10_000;
/// Below the limit of streams on one connection.
const STREAMS_PER_CONNECTION: usize = 500;
const BYTES_PER_STREAM_MAX: usize = 40 << 10;

/// Opens streams on connections of their own, and waits until each is caught up.
async fn open(url: &str, key: &str, count: usize) -> Vec<Streaming<SubscribeResponse>> {
    let mut open = Vec::with_capacity(count);
    for _ in 0..count.div_ceil(STREAMS_PER_CONNECTION) {
        let hub = Hub::builder(url).api_key(key).connect_lazy().unwrap();
        for _ in 0..STREAMS_PER_CONNECTION {
            let mut client = hub.event_bus();
            let mut stream = client
                .subscribe(SubscribeRequest::default())
                .await
                .unwrap()
                .into_inner();
            while !matches!(
                stream.message().await.unwrap().unwrap().frame,
                Some(Frame::CaughtUp(_))
            ) {}
            open.push(stream);
        }
    }
    open
}

/// Memory that the process has in use.
fn resident(process: &TestProcess) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

// The streams wait for the log in memory, whatever the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_take_at_most_40_kib_each() {
    let flags = ["--log-filter", "warn"];
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &flags).await;
    let (url, key) = (
        process.ready["http"].as_str().unwrap(),
        portal_key(&process).await,
    );
    let warm = open(url, &key, STREAMS_PER_CONNECTION).await;
    let before = resident(&process);
    let streams = open(url, &key, STREAMS).await;
    let each = (resident(&process) - before) / STREAMS;
    assert!(each <= BYTES_PER_STREAM_MAX, "{each} bytes per stream");
    drop((warm, streams));
}
