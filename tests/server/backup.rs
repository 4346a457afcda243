//! `hub backup` and `hub restore`, as an operator would need them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use hub_client::proto::hub::event_bus::v1::PublishRequest;
use hub_client::{CloudEvent, Data, Delivery, Hub, SubscribeOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::durability::load::{self, Notes, SCOPES};
use crate::support::{Backend, Command, Database, Ended, Tenant, TestProcess};

/// Batches before the backup.
const BATCHES: usize = 20;
/// Publishers that go on while the backup is taken.
const PUBLISHERS: usize = 3;

async fn hub(process: &TestProcess, arguments: &[&str]) -> Ended {
    let database = ["--database", process.database_url()];
    TestProcess::run(process.folder(), &[arguments, &database].concat()).await
}

fn event(id: String) -> CloudEvent {
    CloudEvent {
        id,
        source: "/psa/drill".into(),
        spec_version: "1.0".into(),
        r#type: "ticket.created".into(),
        data: Some(Data::TextData("y".repeat(500))),
        ..CloudEvent::default()
    }
}

/// Publishes batches, and notes what was acknowledged.
async fn publish(hub: &Hub, name: &str, batches: usize) -> Notes {
    let mut notes = Notes::new();
    for batch in 0..batches {
        let ids: Vec<String> = (0..5).map(|at| format!("{name}-{batch}-{at}")).collect();
        let results = publish_once(hub, &ids).await;
        notes.push(
            ids.into_iter()
                .zip(results.into_iter().map(|(seq, _)| seq))
                .collect(),
        );
    }
    notes
}

/// Sequence of each, and whether it was there already.
async fn publish_once(hub: &Hub, ids: &[String]) -> Vec<(u64, bool)> {
    let request = PublishRequest {
        events: ids.iter().cloned().map(event).collect(),
        ..PublishRequest::default()
    };
    let answer = hub.event_bus().publish(request).await.unwrap().into_inner();
    let told = |result: hub_client::proto::hub::event_bus::v1::PublishResult| {
        (result.sequence, result.duplicate)
    };
    answer.results.into_iter().map(told).collect()
}

/// The cursor at the end of the log.
async fn end(hub: &Hub) -> String {
    let options = SubscribeOptions::default()
        .all_products()
        .earliest()
        .stop_when_caught_up();
    let mut stream = hub.subscribe(options);
    let mut cursor = String::new();
    while let Some(delivery) = stream.next().await {
        if let Delivery::Events(batch) = delivery.unwrap() {
            cursor = batch.cursor;
        }
    }
    cursor
}

/// What a reader gets that goes on after a cursor: events, or the reason why it may not.
async fn after(hub: &Hub, cursor: &str) -> Result<usize, String> {
    let options = SubscribeOptions::default()
        .all_products()
        .after(cursor)
        .stop_when_caught_up();
    let mut stream = hub.subscribe(options);
    let mut events = 0;
    while let Some(delivery) = stream.next().await {
        match delivery {
            Ok(Delivery::Events(batch)) => events += batch.events.len(),
            Ok(_) => {}
            Err(error) => return Err(error.reason().unwrap_or_default().to_owned()),
        }
    }
    Ok(events)
}

/// Publishers that go on until they are told to stop.
struct Load {
    stop: CancellationToken,
    _address: watch::Sender<std::net::SocketAddr>,
    publishers: Vec<tokio::task::JoinHandle<Notes>>,
}

impl Load {
    fn start(process: &TestProcess, key: &str) -> Load {
        let (address, seen) = watch::channel(process.addr());
        let stop = CancellationToken::new();
        let publisher = |number| {
            let name = format!("load-{number}");
            let work = load::publish(name, key.to_owned(), seen.clone(), stop.clone());
            tokio::spawn(work)
        };
        Load {
            publishers: (0..PUBLISHERS).map(publisher).collect(),
            stop: stop.clone(),
            _address: address,
        }
    }

    async fn end(self) -> Vec<Notes> {
        self.stop.cancel();
        let mut all = Vec::new();
        for publisher in self.publishers {
            all.push(publisher.await.unwrap());
        }
        all
    }
}

/// A key of a new tenant that publishes as PSA and reads everything.
async fn product(process: &TestProcess) -> String {
    let operator = process.ready["operatorKey"].as_str().unwrap();
    let tenant = Tenant::create(&load::client(process.addr(), operator)).await;
    let admin = load::client(process.addr(), &tenant.admin_key);
    tenant.key(&admin, "psa", &SCOPES).await
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The disk has eaten the database; what is derived from it is still there.
fn destroy(process: &TestProcess) {
    let database = process.folder().join("hub.db");
    std::fs::write(&database, "eaten by the disk").unwrap();
    assert!(
        process.folder().join("hub-index.db").exists(),
        "the drill needs a stale index"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_before_a_backup_under_load_is_there_after_the_restore() {
    let flags = ["--identities-recent-max", "50"];
    let mut process = TestProcess::start(Command::Serve, Backend::Sqlite, &flags).await;
    let key = product(&process).await;
    let client = load::client(process.addr(), &key);
    let before = publish(&client, "before", BATCHES).await;
    let kept = end(&client).await;

    let load = Load::start(&process, &key);
    let file = process.folder().join("elsewhere.db").display().to_string();
    let backup = hub(&process, &["backup", &file]).await;
    assert!(backup.status.success(), "{}", backup.log);
    assert!(
        backup.output.contains("events of 1 tenants"),
        "{}",
        backup.output
    );
    let after_backup = publish(&client, "after", BATCHES).await;
    let load = load.end().await;
    let lost = end(&client).await;
    process.kill().await;
    destroy(&process);

    let refused = hub(&process, &["restore", &file]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.log.contains("--replace"), "{}", refused.log);
    let restored = hub(&process, &["restore", "--replace", &file]).await;
    assert!(restored.status.success(), "{}", restored.log);
    assert!(!process.folder().join("hub-index.db").exists());
    assert_eq!(mode(&process.folder().join("hub.db")), 0o600);

    process.start_again().await;
    let client = load::client(process.addr(), &key);
    let log = load::read(&client).await;
    assert_eq!(load::check(&client, &[before]).await, BATCHES * 5);
    // The rest is a beginning of what was acknowledged, at its sequences, and nothing else.
    let there: std::collections::HashMap<&str, u64> =
        log.iter().map(|(seq, id)| (id.as_str(), *seq)).collect();
    let head = log.len() as u64;
    for (id, seq) in load.iter().chain([&after_backup]).flatten().flatten() {
        let expected = (*seq <= head).then_some(seq);
        assert_eq!(there.get(id.as_str()), expected, "{id} at {seq} of {head}");
    }
    let gone = |id: &&(String, u64)| !there.contains_key(id.0.as_str());
    let gone: Vec<String> = after_backup
        .iter()
        .flatten()
        .filter(gone)
        .map(|(id, _)| id.clone())
        .collect();
    assert_eq!(
        gone.len(),
        BATCHES * 5,
        "what came after the backup is not in it"
    );

    assert_eq!(after(&client, &lost).await, Err("LOG_REWOUND".to_owned()));
    assert_eq!(after(&client, &kept).await, Ok(log.len() - BATCHES * 5));
    // What was lost is taken again, as new: no index from before remembers it.
    let again = publish_once(&client, &gone).await;
    assert!(again.iter().all(|(_, duplicate)| !duplicate), "{again:?}");
    assert_eq!(after(&client, &lost).await, Err("LOG_REWOUND".to_owned()));
    // What is in the backup is remembered.
    let known = ["before-0-0".to_owned()];
    assert_eq!(publish_once(&client, &known).await, [(1, true)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_put_in_place_on_another_machine() {
    let mut process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let key = product(&process).await;
    let notes = publish(&load::client(process.addr(), &key), "n", 3).await;
    process.signal("TERM");
    process.ended().await;
    let file = process.folder().join("elsewhere.db").display().to_string();
    // Without a hub that runs.
    let backup = hub(&process, &["backup", &file]).await;
    assert!(backup.status.success(), "{}", backup.log);
    assert_eq!(mode(Path::new(&file)), 0o600);
    let sealing_key = PathBuf::from(format!("{file}.sealing.key"));
    assert_eq!(mode(&sealing_key), 0o600);

    let there = Database::new(Backend::Sqlite).await;
    let arguments = ["restore", file.as_str(), "--database", there.url.as_str()];
    let restored = TestProcess::run(there.folder.path(), &arguments).await;
    assert!(restored.status.success(), "{}", restored.log);
    assert!(
        restored.output.contains("15 events of 1 tenants"),
        "{}",
        restored.output
    );
    assert_eq!(mode(&there.folder.path().join("hub.db")), 0o600);
    let other = TestProcess::start_on(Command::Serve, there, &[]).await;
    assert_eq!(other.ready.get("operatorKey"), None);
    assert_eq!(
        load::check(&load::client(other.addr(), &key), &[notes]).await,
        15
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_killed_can_be_backed_up_as_it_is() {
    let mut process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let key = product(&process).await;
    let notes = publish(&load::client(process.addr(), &key), "n", 3).await;
    process.kill().await;
    let file = process.folder().join("elsewhere.db").display().to_string();
    let backup = hub(&process, &["backup", &file]).await;
    assert!(backup.status.success(), "{}", backup.log);
    let restored = hub(&process, &["restore", "--replace", &file]).await;
    assert!(restored.status.success(), "{}", restored.log);
    process.start_again().await;
    assert_eq!(
        load::check(&load::client(process.addr(), &key), &[notes]).await,
        15
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restore_replaces_is_set_aside_and_can_be_put_back() {
    let mut process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let key = product(&process).await;
    let first = publish(&load::client(process.addr(), &key), "first", 2).await;
    let file = process.folder().join("elsewhere.db").display().to_string();
    assert!(hub(&process, &["backup", &file]).await.status.success());
    let second = publish(&load::client(process.addr(), &key), "second", 2).await;
    // Killed, so that a part of it is in the write-ahead log only.
    process.kill().await;
    let restored = hub(&process, &["restore", "--replace", &file]).await;
    let aside = restored
        .output
        .lines()
        .find_map(|line| line.strip_prefix("what was there is now "))
        .expect("told")
        .to_owned();
    process.start_again().await;
    let client = load::client(process.addr(), &key);
    assert_eq!(load::check(&client, std::slice::from_ref(&first)).await, 10);
    assert_eq!(load::read(&client).await.len(), 10);
    process.kill().await;
    // Back to what was there: a backup of it, restored.
    let old = format!("sqlite:{aside}");
    let again = process.folder().join("again.db").display().to_string();
    let arguments = ["backup", again.as_str(), "--database", old.as_str()];
    let backup = TestProcess::run(process.folder(), &arguments).await;
    assert!(backup.status.success(), "{}", backup.log);
    let restored = hub(&process, &["restore", "--replace", &again]).await;
    assert!(restored.status.success(), "{}", restored.log);
    process.start_again().await;
    assert_eq!(
        load::check(&load::client(process.addr(), &key), &[first, second]).await,
        20
    );
}

#[tokio::test]
async fn a_restore_refuses_what_is_no_backup_and_leaves_everything_as_it_is() {
    let mut process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let file = process.folder().join("elsewhere.db");
    let name = file.display().to_string();
    assert!(hub(&process, &["backup", &name]).await.status.success());
    let running = hub(&process, &["restore", "--replace", &name]).await;
    assert!(
        running.log.contains("another hub process uses"),
        "{}",
        running.log
    );
    process.signal("TERM");
    process.ended().await;
    let whole = std::fs::read(&file).unwrap();
    let database = std::fs::read(process.folder().join("hub.db")).unwrap();

    let mut torn = whole.clone();
    torn.truncate(whole.len() / 2);
    let mut flipped = whole.clone();
    // From the head of a page on; the middle of one may be unused.
    let page = whole.len() / 2 / 8192 * 8192;
    for byte in &mut flipped[page..page + 3000] {
        *byte ^= 0x5a;
    }
    for (what, content) in [
        ("torn", torn),
        ("flipped", flipped),
        ("text", b"a text".to_vec()),
    ] {
        std::fs::write(&file, content).unwrap();
        let refused = hub(&process, &["restore", "--replace", &name]).await;
        assert_eq!(refused.status.code(), Some(1), "{what}: {}", refused.output);
        assert!(
            refused.log.contains("elsewhere.db"),
            "{what}: {}",
            refused.log
        );
    }
    std::fs::write(&file, b"").unwrap();
    let refused = hub(&process, &["restore", "--replace", &name]).await;
    assert!(
        refused.log.contains("no database of a hub"),
        "{}",
        refused.log
    );
    std::fs::write(&file, &whole).unwrap();
    std::fs::write(process.folder().join("elsewhere.db-wal"), "more").unwrap();
    let refused = hub(&process, &["restore", "--replace", &name]).await;
    assert!(
        refused.log.contains("is not all of the database"),
        "{}",
        refused.log
    );
    let refused = hub(&process, &["restore", "nowhere.db"]).await;
    assert!(
        refused.log.contains("there is no file nowhere.db"),
        "{}",
        refused.log
    );
    assert_eq!(
        std::fs::read(process.folder().join("hub.db")).unwrap(),
        database
    );
}

#[tokio::test]
async fn a_backup_overwrites_nothing() {
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let file = process.folder().join("elsewhere.db");
    std::fs::write(&file, "precious").unwrap();
    let refused = hub(&process, &["backup", &file.display().to_string()]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.log.contains("is there already"), "{}", refused.log);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    let refused = hub(&process, &["backup", "no/such/folder/file.db"]).await;
    assert!(refused.log.contains("no/such/folder"), "{}", refused.log);
}

#[tokio::test]
async fn postgres_is_backed_up_by_its_own_tools() {
    let folder = tempfile::TempDir::with_prefix("hub-test-").unwrap();
    for command in ["backup", "restore"] {
        let arguments = [command, "file.db", "--database", "postgres://db/hub"];
        let refused = TestProcess::run(folder.path(), &arguments).await;
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            refused.log.contains("docs/operations.md"),
            "{}",
            refused.log
        );
    }
}
