//! A connection over which nothing comes any more, and nobody is told: a cable that was pulled.

use std::time::{Duration, Instant};

use http::Method;
use hub_client::proto::hub::event_bus::v1::SubscribeRequest;

use super::tenant;
use crate::durability::load;
use crate::history::proxy::Proxy;
use crate::support::{Backend, Command, TestProcess, request};

/// What takes longer has failed. How long it took is printed: at most 25 s are wanted.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Streams at work, as the metrics tell.
async fn streams(process: &TestProcess) -> u64 {
    let metrics = request(process.addr(), Method::GET, "/metrics", &[], "").await;
    let text = metrics.text().to_owned();
    let lines = text.lines().filter(|line| {
        line.starts_with("hub_calls_open") && line.contains("grpc_method=\"Subscribe\"")
    });
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_connection_is_noticed_by_both_sides() {
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let (_, key) = tenant(&process).await;
    let proxy = Proxy::start(process.addr()).await;
    let hub = load::client(proxy.address, &key);
    let opened = hub.event_bus().subscribe(SubscribeRequest::default()).await;
    let mut stream = opened.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    assert_eq!(streams(&process).await, 1);
    proxy.silence();
    let began = Instant::now();
    let client = async {
        while let Ok(Some(_)) = stream.message().await {}
        began.elapsed()
    };
    let server = async {
        while streams(&process).await > 0 {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        began.elapsed()
    };
    let both = async { tokio::join!(client, server) };
    let noticed = tokio::time::timeout(PATIENCE, both).await;
    let (client, server) = noticed.expect("both notice it");
    println!("noticed by the client after {client:.1?}, by the hub after {server:.1?}");
}
