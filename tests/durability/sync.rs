//! A kill keeps the page cache, so it does not show the sync. This does: the system calls of the
//! real program, in order, with a sync between each event's write and its acknowledgement.

use std::process::Stdio;
use std::time::Duration;

use super::load::{self, SCOPES};
use crate::support::{Backend, Command, Tenant, TestProcess};
use hub_client::CloudEvent;
use hub_client::proto::hub::event_bus::v1::PublishRequest;

const EVENTS: usize = 20;
/// Attaching to a process takes a moment; longer means that it is not allowed.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);

/// The mark that the calls of the test carry, so that their bytes are found in the trace.
const MARK: &str = "synced-event-";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_acknowledgement_comes_after_a_sync_of_the_write_ahead_log() {
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let operator = load::client(
        process.addr(),
        process.ready["operatorKey"].as_str().unwrap(),
    );
    let tenant = Tenant::create(&operator).await;
    let admin = load::client(process.addr(), &tenant.admin_key);
    let key = tenant.key(&admin, "psa", &SCOPES).await;
    let hub = load::client(process.addr(), &key);
    let trace = process.folder().join("trace");
    let mut strace = tokio::process::Command::new("strace")
        .args([
            "-f",
            "-y",
            "-s",
            "65536",
            "-e",
            "trace=pwrite64,fsync,fdatasync",
            "-o",
        ])
        .arg(&trace)
        .args(["-p", &process.id().to_string()])
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("strace is installed: run tests/run");
    attached(&mut strace).await;
    let mut synced_before = 0;
    for number in 0..EVENTS {
        let event = CloudEvent {
            id: format!("{MARK}{number:03}"),
            source: "/psa/sync".into(),
            spec_version: "1.0".into(),
            r#type: "ticket.created".into(),
            ..CloudEvent::default()
        };
        let request = PublishRequest {
            events: vec![event],
            ..PublishRequest::default()
        };
        hub.event_bus().publish(request).await.unwrap();
        // strace writes a line when the call returns, so what is in the file now was done before
        // the acknowledgement reached the client.
        let text = std::fs::read_to_string(&trace).unwrap();
        let written = text.find(&format!("{MARK}{number:03}"));
        let written = written.unwrap_or_else(|| panic!("event {number} was not written:\n{text}"));
        let after = &text[written..];
        let synced = after.lines().skip(1).any(is_sync);
        assert!(
            synced,
            "event {number} was acknowledged before a sync:\n{after}"
        );
        let syncs = text.lines().filter(|line| is_sync(line)).count();
        assert!(
            syncs > synced_before,
            "event {number} had no sync of its own"
        );
        synced_before = syncs;
    }
    println!("{EVENTS} events one after the other, {synced_before} syncs of hub.db-wal");
    strace.kill().await.unwrap();
}

/// A sync of the write-ahead log that succeeded.
fn is_sync(line: &str) -> bool {
    (line.contains("fdatasync(") || line.contains("fsync(") || line.contains("sync resumed>"))
        && line.trim_end().ends_with("= 0")
        && (line.contains("hub.db-wal") || line.contains("resumed"))
}

async fn attached(strace: &mut tokio::process::Child) {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let stderr = strace.stderr.take().unwrap();
    let mut lines = BufReader::new(stderr).lines();
    let said = tokio::time::timeout(ATTACH_TIMEOUT, lines.next_line()).await;
    let line = said
        .expect("strace says that it is attached")
        .unwrap()
        .unwrap_or_default();
    assert!(line.contains("attached"), "strace: {line}");
    // Nothing reads it further; a full pipe would stop it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
}
