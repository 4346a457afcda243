//! A hub in a process of its own: the real program, with signals.

use std::env;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use hub_proto::credential::{LENGTH, PREFIX, is_whole};
use serde_json::Value;
use tokio::process::Child;

use super::database::{Backend, Database, SEALING_KEY};

/// A process that is not ready by then has failed.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// A process that has not ended by then hangs.
const END_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The command of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `hub dev --no-traffic`, on SQLite.
    Dev,
    /// `hub serve`.
    Serve,
}

/// A command that ran to its end.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub output: String,
    /// What it wrote to standard error.
    pub log: String,
}

/// A running program on a database of its own. Dropping it kills the process; in what it logged,
/// whatever the test was about, there must be no key.
pub struct TestProcess {
    /// What the ready file says.
    pub ready: Value,
    command: Command,
    flags: Vec<String>,
    child: Child,
    database: Database,
}

impl TestProcess {
    /// Starts `command` with further flags and waits until it is ready.
    pub async fn start(command: Command, backend: Backend, flags: &[&str]) -> Self {
        Self::start_on(command, Database::new(backend).await, flags).await
    }

    /// The same on a given database.
    pub async fn start_on(command: Command, database: Database, flags: &[&str]) -> Self {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        if command == Command::Serve && database.backend() == Backend::Postgres {
            // `serve` does so by itself on SQLite only.
            let arguments = ["migrate", "--database", &database.url];
            let migrated = Self::run(database.folder.path(), &arguments).await;
            assert!(migrated.status.success(), "{}", migrated.log);
        }
        let child = spawn(command, &database, &flags);
        let mut process = TestProcess {
            ready: Value::Null,
            command,
            flags,
            child,
            database,
        };
        process.wait_ready().await;
        process
    }

    /// Runs the program with flags that it refuses: its status, and what it said.
    pub async fn refused(flags: &[&str]) -> (ExitStatus, String) {
        let folder = tempfile::TempDir::with_prefix("hub-test-").unwrap();
        let ended = Self::run(folder.path(), flags).await;
        (ended.status, ended.log)
    }

    /// Runs a command in a folder to its end.
    pub async fn run(folder: &Path, arguments: &[&str]) -> Ended {
        Self::run_with(folder, &[], arguments).await
    }

    /// The same with variables.
    pub async fn run_with(folder: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Ended {
        let mut command = tokio::process::Command::new(program());
        command
            .args(arguments)
            .envs(arguments.iter().find_map(|argument| sealing_key(argument)))
            .envs(variables.iter().copied())
            .current_dir(folder)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let ended = tokio::time::timeout(END_TIMEOUT, command.output()).await;
        let output = ended.expect("it ends by itself").unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended {
            status: output.status,
            output: text(&output.stdout),
            log: text(&output.stderr),
        }
    }

    /// Starts the same again, on the same database; it must have ended.
    pub async fn start_again(&mut self) {
        assert_eq!(logged_keys(&self.log()), 0, "keys are in the log");
        let _ = std::fs::remove_file(self.ready_file());
        self.child = spawn(self.command, &self.database, &self.flags);
        self.wait_ready().await;
    }

    /// Flags of the next start, in place of those before.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    }

    /// What `--database` got.
    pub fn database_url(&self) -> &str {
        &self.database.url
    }

    /// Memory that it has in use, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    /// Id of the process.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.ready["grpc"].as_str().unwrap().parse().unwrap()
    }

    /// Folder of its data.
    pub fn folder(&self) -> &Path {
        self.database.folder.path()
    }

    /// Path of the ready file.
    pub fn ready_file(&self) -> PathBuf {
        self.folder().join("ready.json")
    }

    /// What it wrote to standard output.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.folder().join("out")).unwrap()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder().join("log")).unwrap()
    }

    /// The same, once something of it is there: lines are written together, a moment later.
    pub async fn log_until(&self, said: &str) -> String {
        loop {
            let log = self.log();
            if log.ends_with('\n') && log.contains(said) {
                return log;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Sends a signal, e.g. `TERM`.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().expect("it runs").to_string();
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &id])
            .status()
            .unwrap();
        assert!(sent.success(), "kill -s {name} {id}");
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        match tokio::time::timeout(END_TIMEOUT, self.child.wait()).await {
            Ok(status) => status.unwrap(),
            Err(_) => panic!("the process did not end:\n{}", self.log()),
        }
    }

    /// Ends it without warning.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    async fn wait_ready(&mut self) {
        let ready = tokio::time::timeout(READY_TIMEOUT, async {
            loop {
                if let Ok(text) = std::fs::read(self.ready_file()) {
                    return serde_json::from_slice(&text).unwrap();
                }
                if let Some(status) = self.child.try_wait().unwrap() {
                    panic!("the process ended ({status}):\n{}", self.log());
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        });
        match ready.await {
            Ok(ready) => self.ready = ready,
            Err(_) => panic!("the process is not ready:\n{}", self.log()),
        }
    }
}

impl Drop for TestProcess {
    fn drop(&mut self) {
        let logged = std::fs::read_to_string(self.folder().join("log"));
        let keys = logged.map_or(0, |log| logged_keys(&log));
        // A second panic would hide the first.
        assert!(
            keys == 0 || std::thread::panicking(),
            "{keys} keys are in the log"
        );
    }
}

/// How many whole keys are in a text.
fn logged_keys(log: &str) -> usize {
    let places = log
        .match_indices(PREFIX)
        .map(|(at, _)| log.get(at..at + LENGTH));
    places.flatten().filter(|text| is_whole(text)).count()
}

#[test]
fn keys_in_a_log_are_found_and_their_hints_are_not() {
    let key = hub_api_keys::Plaintext::generate().unwrap();
    let key = key.expose();
    assert_eq!(logged_keys(&format!("a {key}\n{{\"b\":\"{key}\"}}")), 2);
    assert_eq!(
        logged_keys(&format!("{}, {}… and tos_", &key[..39], &key[..8])),
        0
    );
}

fn spawn(command: Command, database: &Database, flags: &[String]) -> Child {
    let folder = database.folder.path();
    let file = |name: &str| File::create(folder.join(name)).unwrap();
    let mut program = tokio::process::Command::new(program());
    match command {
        Command::Dev => program.args(["dev", "--no-traffic"]),
        Command::Serve => program.args(["serve", "--database", &database.url]),
    };
    program
        .args(["--listen", "127.0.0.1:0", "--log-format", "json"])
        .arg("--data-dir")
        .arg(folder)
        .arg("--ready-file")
        .arg(folder.join("ready.json"))
        .args(flags)
        .current_dir(folder)
        .envs(sealing_key(&database.url))
        .stdin(Stdio::null())
        .stdout(file("out"))
        .stderr(file("log"))
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// PostgreSQL needs a sealing key; with SQLite the hub makes its own.
fn sealing_key(url: &str) -> Option<(&'static str, &'static str)> {
    url.starts_with("postgres:")
        .then_some(("HUB_SEALING_KEY", SEALING_KEY))
}

/// `HUB_BIN`, or `hub` where cargo puts programs of the profile of this test.
fn program() -> PathBuf {
    let found = env::var_os("HUB_BIN")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let test = env::current_exe().unwrap();
            test.parent().and_then(Path::parent).unwrap().join("hub")
        });
    assert!(
        found.is_file(),
        "{} is not there: run tests/run, or `cargo build -p hub-server` before",
        found.display()
    );
    found
}
