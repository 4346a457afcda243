//! Settings of the program: flags over variables over the file.

use std::path::Path;

use tempfile::TempDir;

use crate::support::{Backend, Command, Ended, TestProcess};

fn folder(file: &str) -> TempDir {
    let folder = TempDir::with_prefix("hub-test-").unwrap();
    std::fs::write(folder.path().join("hub.toml"), file).unwrap();
    folder
}

async fn print(folder: &Path, variables: &[(&str, &str)], flags: &[&str]) -> Ended {
    let arguments = [&["config", "print"], flags].concat();
    let ended = TestProcess::run_with(folder, variables, &arguments).await;
    assert!(ended.status.success(), "{}", ended.log);
    ended
}

/// The line of a setting, with its blanks as one.
fn line(ended: &Ended, key: &str) -> String {
    let found = ended
        .output
        .lines()
        .find(|line| line.starts_with(&format!("{key} = ")));
    let words: Vec<&str> = found.expect(key).split_whitespace().collect();
    words.join(" ")
}

#[tokio::test]
async fn a_flag_wins_over_the_variable_and_the_variable_over_the_file() {
    let file =
        "# mine\ndrain_timeout = \"1s\"\nrequest_timeout = \"1s\"\ntail_bytes_max = \"1MiB\"\n";
    let folder = folder(file);
    let variables = [("HUB_DRAIN_TIMEOUT", "2s"), ("HUB_REQUEST_TIMEOUT", "2s")];
    let shown = print(
        folder.path(),
        &variables,
        &["--origin", "--drain-timeout", "3s"],
    )
    .await;
    for (key, expected) in [
        ("drain_timeout", "drain_timeout = \"3s\" # --drain-timeout"),
        (
            "request_timeout",
            "request_timeout = \"2s\" # HUB_REQUEST_TIMEOUT",
        ),
        ("tail_bytes_max", "tail_bytes_max = \"1MiB\" # hub.toml:4:1"),
        (
            "heartbeat_interval",
            "heartbeat_interval = \"10s\" # default",
        ),
    ] {
        assert_eq!(line(&shown, key), expected);
    }
}

#[tokio::test]
async fn what_is_printed_is_a_file_that_means_the_same() {
    let first = folder("insecure = true\nlisten = \"0.0.0.0:1\"\nconnections_max = 5\n");
    let shown = print(first.path(), &[], &[]).await;
    let second = folder(&shown.output);
    assert_eq!(print(second.path(), &[], &[]).await.output, shown.output);
    assert_eq!(line(&shown, "connections_max"), "connections_max = 5");
}

#[tokio::test]
async fn secrets_are_not_printed() {
    let folder = folder("database = \"postgres://hub:file-secret@db/hub\"\n");
    let shown = print(folder.path(), &[], &["--origin"]).await;
    assert!(line(&shown, "database").contains("postgres://hub:REDACTED@db/hub"));
    let variables = [
        ("HUB_DATABASE", "postgres://db/hub?password=variable-secret"),
        ("HUB_SEALING_KEY", "sealing-secret"),
    ];
    let again = print(folder.path(), &variables, &[]).await;
    assert!(line(&again, "sealing_key").contains("REDACTED"));
    for told in [shown.output, shown.log, again.output, again.log] {
        assert!(!told.contains("secret"), "{told}");
    }
}

#[tokio::test]
async fn check_tells_all_problems_with_file_and_line() {
    let file = "drain_timout = \"1s\"\n\nlisten = \"0.0.0.0:7070\"\nheartbeat_interval = \"soon\"\n\
                tls_cert_file = \"cert.pem\"\ndatabase = \"mysql://hub\"\n";
    let folder = folder(file);
    let variables = [
        ("HUB_JSON_BYTES_MAX", "8 MB"),
        ("HUB_DRAIN_TIMOUT", "1s"),
        ("HUB_KEY_CACHE_TTL", "6s"),
    ];
    for arguments in [&["config", "check"][..], &["config", "check", "hub.toml"]] {
        let ended = TestProcess::run_with(folder.path(), &variables, arguments).await;
        assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
        for expected in [
            "hub.toml:1:1: there is no setting `drain_timout`; did you mean `drain_timeout`?",
            "hub.toml:4:22: `heartbeat_interval`: write it as",
            "hub.toml:5:1: --tls-key-file is missing",
            "hub.toml:6:1: the database URL must start with sqlite: or postgres:",
            "HUB_JSON_BYTES_MAX: write it as 16KiB",
            "HUB_DRAIN_TIMOUT: nothing reads it; did you mean HUB_DRAIN_TIMEOUT?",
            "HUB_KEY_CACHE_TTL: write 5s or less",
            "7 problems",
        ] {
            assert!(ended.log.contains(expected), "{expected}\n{}", ended.log);
        }
    }
    let ended = TestProcess::run(folder.path(), &["config", "check", "other.toml"]).await;
    assert!(
        ended.log.contains("cannot read other.toml"),
        "{}",
        ended.log
    );
}

#[tokio::test]
async fn an_address_that_others_reach_is_a_problem_without_tls() {
    let folder = folder("listen = \"0.0.0.0:7070\"\n");
    let ended = TestProcess::run(folder.path(), &["config", "check"]).await;
    assert!(
        ended.log.contains("hub.toml:1:1: --listen 0.0.0.0:7070"),
        "{}",
        ended.log
    );
    std::fs::write(folder.path().join("hub.toml"), "listen = \"127.0.0.1:1\"\n").unwrap();
    let ended = TestProcess::run(folder.path(), &["config", "check"]).await;
    assert!(ended.status.success(), "{}", ended.log);
    assert_eq!(ended.output, "hub.toml: ok\n");
}

#[tokio::test]
async fn no_command_runs_on_a_file_with_problems() {
    let folder = folder("listn = \"127.0.0.1:0\"\ninsecure = 1\n");
    for command in ["serve", "dev", "migrate"] {
        let ended = TestProcess::run(folder.path(), &[command]).await;
        assert_eq!(ended.status.code(), Some(1), "{command}");
        assert!(ended.log.contains("hub.toml:1:1"), "{}", ended.log);
        assert!(
            ended.log.contains("did you mean `listen`?"),
            "{}",
            ended.log
        );
        assert!(ended.log.contains("hub.toml:2:12"), "{}", ended.log);
    }
    assert!(!folder.path().join("hub-data").exists());
}

#[tokio::test]
async fn the_default_file_is_what_an_empty_one_means() {
    let empty = folder("");
    let plain = print(empty.path(), &[], &[]).await.output;
    let default = TestProcess::run(empty.path(), &["config", "default"])
        .await
        .output;
    let commented = folder(&default);
    assert_eq!(print(commented.path(), &[], &[]).await.output, plain);
}

#[tokio::test]
async fn a_server_takes_its_settings_from_the_file_that_is_named() {
    let folder = folder("");
    let file = folder.path().join("elsewhere.toml");
    std::fs::write(
        &file,
        "json_bytes_max = \"1KiB\"\nlog_filter = \"debug,sqlx=warn\"\n",
    )
    .unwrap();
    let file = file.display().to_string();
    let flags = ["--config", file.as_str()];
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &flags).await;
    let key = process.ready["operatorKey"].as_str().unwrap();
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(2000));
    let method = "hub.platform.v1.Platform/CreateTenant";
    let answer = crate::support::post_json(process.addr(), method, key, &large).await;
    assert_eq!(answer.reason(), "MESSAGE_TOO_LARGE", "{}", answer.text());
}
