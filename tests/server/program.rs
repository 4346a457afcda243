//! The program `hub`: its commands, files and signals.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hub_client::Hub;
use hub_proto::hub::event_bus::v1::SubscribeRequest;
use hub_proto::hub::event_bus::v1::subscribe_response::Frame;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Backend, Command, TestProcess, post_json};

/// Begins a call whose body never comes to its end.
pub async fn begin_post(addr: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = "POST /hub.api_keys.v1.ApiKeys/WhoAmI HTTP/1.1\r\nhost: hub\r\n\
                content-type: application/json\r\nexpect: 100-continue\r\n\
                content-length: 9\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server asks for the body once the call is at work.
    let mut answer = [0; 25];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut answer)
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{").await.unwrap();
    stream
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

async fn scopes(process: &TestProcess, key: &Value) -> Value {
    let method = "hub.api_keys.v1.ApiKeys/WhoAmI";
    let answer = post_json(process.addr(), method, key.as_str().unwrap(), "{}").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[tokio::test]
async fn dev_tells_its_keys_in_files_that_others_cannot_read_and_keeps_them() {
    let mut process = TestProcess::start(Command::Dev, Backend::Sqlite, &[]).await;
    let first = process.ready.clone();
    assert_eq!(first["http"], format!("http://{}", process.addr()));
    assert_eq!(
        scopes(&process, &first["operatorKey"]).await["apiKey"]["allTenants"],
        true
    );
    let admin = scopes(&process, &first["adminKey"]).await;
    assert_eq!(admin["tenantId"], first["tenantId"]);
    let products = first["productKeys"].as_object().unwrap();
    assert_eq!(products.len(), 12);
    for (product, key) in products {
        assert_eq!(scopes(&process, key).await["apiKey"]["product"], **product);
    }
    for file in ["ready.json", "dev.json", "operator.key"] {
        assert_eq!(mode(&process.folder().join(file)), 0o600, "{file}");
    }
    assert!(
        process
            .output()
            .contains(first["adminKey"].as_str().unwrap())
    );
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(0));
    process.start_again().await;
    for name in ["operatorKey", "tenantId", "adminKey", "productKeys"] {
        assert_eq!(process.ready[name], first[name], "{name}");
    }
    scopes(&process, &first["adminKey"]).await;
}

#[tokio::test]
async fn dev_goes_on_where_a_first_start_was_killed() {
    let mut process = TestProcess::start(Command::Dev, Backend::Sqlite, &[]).await;
    let first = process.ready.clone();
    process.kill().await;
    let file = process.folder().join("dev.json");
    let mut demo: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    demo["adminKey"] = "".into();
    demo["productKeys"] = serde_json::json!({});
    std::fs::write(&file, demo.to_string()).unwrap();
    process.start_again().await;
    assert_eq!(process.ready["operatorKey"], first["operatorKey"]);
    assert_ne!(process.ready["tenantId"], first["tenantId"]);
    scopes(&process, &process.ready["productKeys"]["psa"]).await;
}

both_databases! {
    async fn serve_shows_the_operator_key_once(backend: Backend) {
        let mut process = TestProcess::start(Command::Serve, backend, &[]).await;
        let key = process.ready["operatorKey"].clone();
        let text = key.as_str().unwrap();
        assert!(process.output().contains(text));
        let log = process.log_until("listening").await;
        assert!(!log.contains(text), "the key is in the log");
        let file = process.folder().join("operator.key");
        assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), text);
        assert_eq!(mode(&file), 0o600);
        process.signal("INT");
        assert_eq!(process.ended().await.code(), Some(0));
        process.start_again().await;
        assert_eq!(process.ready.get("operatorKey"), None);
        assert!(!process.output().contains("tos_"));
        scopes(&process, &key).await;
    }

    async fn a_signal_ends_streams_with_closing_and_the_process_with_0(backend: Backend) {
        let mut process = TestProcess::start(Command::Serve, backend, &[]).await;
        let (url, key) = (process.ready["http"].as_str().unwrap(), portal_key(&process).await);
        let mut client = Hub::builder(url).api_key(key).connect_lazy().unwrap().event_bus();
        let mut frames = client.subscribe(SubscribeRequest::default()).await.unwrap().into_inner();
        let mut last = frames.message().await.unwrap();
        process.signal("TERM");
        while let Some(frame) = frames.message().await.unwrap() {
            last = Some(frame);
        }
        let last = last.and_then(|frame| frame.frame);
        assert!(matches!(last, Some(Frame::Closing(_))), "{last:?}");
        assert_eq!(process.ended().await.code(), Some(0));
    }
}

/// A key of a new tenant that reads events as the product `portal`.
async fn portal_key(process: &TestProcess) -> String {
    let operator = process.ready["operatorKey"].as_str().unwrap();
    let method = "hub.platform.v1.Platform/CreateTenant";
    let tenant = post_json(process.addr(), method, operator, r#"{"name":"Acme"}"#)
        .await
        .json();
    let admin = tenant["adminKey"].as_str().unwrap();
    let body = r#"{"apiKey":{"name":"portal","product":"portal","scopes":["hub:events.read"]}}"#;
    let method = "hub.api_keys.v1.ApiKeys/CreateApiKey";
    let created = post_json(process.addr(), method, admin, body).await.json();
    created["plaintext"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_second_signal_ends_the_process_at_once() {
    let mut process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let stuck = begin_post(process.addr()).await;
    let begun = Instant::now();
    process.signal("TERM");
    while TcpStream::connect(process.addr()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(128 + 15));
    assert!(
        begun.elapsed() < Duration::from_secs(9),
        "it waited for the drain timeout"
    );
    drop(stuck);
}

#[tokio::test]
async fn a_caller_that_is_stuck_does_not_hold_the_process_past_the_drain_timeout() {
    let flags = ["--drain-timeout", "300ms"];
    let mut process = TestProcess::start(Command::Serve, Backend::Sqlite, &flags).await;
    let stuck = begin_post(process.addr()).await;
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(0));
    drop(stuck);
}

#[tokio::test]
async fn a_second_process_on_the_same_file_is_refused() {
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let data = process.folder().display().to_string();
    let (status, told) = TestProcess::refused(&["serve", "--data-dir", &data]).await;
    assert_eq!(status.code(), Some(1), "{told}");
    assert!(told.contains("another hub process uses"), "{told}");
}

#[tokio::test]
async fn an_address_that_others_reach_needs_a_flag() {
    let (status, told) = TestProcess::refused(&["serve", "--listen", "0.0.0.0:0"]).await;
    assert_eq!(status.code(), Some(1), "{told}");
    assert!(told.contains("--insecure"), "{told}");
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &["--insecure"]).await;
    assert!(process.addr().ip().is_loopback());
}

#[tokio::test]
async fn an_address_that_names_no_machine_cannot_be_told_to_other_processes() {
    let shared = [
        "--listen",
        "0.0.0.0:0",
        "--insecure",
        "--database",
        "postgres://127.0.0.1:1/h",
    ];
    for command in [&["serve"][..], &["config", "check"]] {
        let (status, told) = TestProcess::refused(&[command, &shared].concat()).await;
        assert_eq!(status.code(), Some(1), "{told}");
        assert!(told.contains("Give --advertise http://HOST:"), "{told}");
        let wrong = ["--advertise", "127.0.0.1:7070"];
        let (status, told) = TestProcess::refused(&[command, &shared, &wrong].concat()).await;
        assert_eq!(status.code(), Some(2), "{told}");
        assert!(told.contains("write http://HOST:PORT"), "{told}");
    }
}

#[tokio::test]
async fn a_wrong_flag_is_told() {
    let (status, told) = TestProcess::refused(&["serve", "--drain-timeout", "soon"]).await;
    assert_eq!(status.code(), Some(2), "{told}");
    assert!(told.contains("write it as"), "{told}");
    let (status, told) = TestProcess::refused(&["serve", "--database", "mysql://x"]).await;
    assert_eq!(status.code(), Some(1), "{told}");
    assert!(told.contains("sqlite: or postgres:"), "{told}");
}
