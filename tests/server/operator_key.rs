//! `hub operator-key --new`: a lost operator key is replaced without any key.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::support::{Backend, Command, Database, Ended, TestProcess, post_json};

const WHO_AM_I: &str = "hub.api_keys.v1.ApiKeys/WhoAmI";
const CREATE: &str = "hub.api_keys.v1.ApiKeys/CreateApiKey";

async fn replace(process: &TestProcess, flags: &[&str]) -> Ended {
    let folder = process.folder().display().to_string();
    let arguments = [
        &[
            "operator-key",
            "--new",
            "--database",
            process.database_url(),
            "--data-dir",
            &folder,
        ],
        flags,
    ];
    TestProcess::run(process.folder(), &arguments.concat()).await
}

async fn stop(process: &mut TestProcess) {
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(0));
}

async fn reason(process: &TestProcess, key: &str) -> String {
    post_json(process.addr(), WHO_AM_I, key, "{}")
        .await
        .reason()
}

both_databases! {
    async fn a_lost_operator_key_is_replaced(backend: Backend) {
        let mut process = TestProcess::start(Command::Serve, backend, &[]).await;
        let lost = process.ready["operatorKey"].as_str().unwrap().to_owned();
        // A key that a person made with it.
        let body = r#"{"apiKey":{"name":"ci","scopes":["hub:*"],"allTenants":true}}"#;
        let made = post_json(process.addr(), CREATE, &lost, body).await.json();
        let of_people = made["plaintext"].as_str().unwrap().to_owned();
        stop(&mut process).await;

        let replaced = replace(&process, &[]).await;
        assert!(replaced.status.success(), "{}", replaced.log);
        let key = replaced.output.trim();
        assert!(key.starts_with("tos_") && key.lines().count() == 1, "{}", replaced.output);
        assert!(!replaced.log.contains(key), "{}", replaced.log);
        assert!(replaced.log.contains("Revoked: key_"), "{}", replaced.log);

        process.start_again().await;
        assert_eq!(process.ready.get("operatorKey"), None);
        assert_eq!(reason(&process, &lost).await, "KEY_REVOKED");
        assert_eq!(reason(&process, &of_people).await, "");
        let who = post_json(process.addr(), WHO_AM_I, key, "{}").await.json();
        assert_eq!(who["apiKey"]["allTenants"], true);
        assert_eq!(who["apiKey"]["scopes"], serde_json::json!(["hub:*"]));
        assert_eq!(who["apiKey"]["createdBy"], "hub");
        for secret in [key, &lost] {
            assert!(!process.log().contains(secret), "a key is in the log");
        }
    }

    async fn old_operator_keys_can_be_kept(backend: Backend) {
        let mut process = TestProcess::start(Command::Serve, backend, &[]).await;
        let old = process.ready["operatorKey"].as_str().unwrap().to_owned();
        stop(&mut process).await;
        let made = replace(&process, &["--keep-old"]).await;
        assert!(made.status.success(), "{}", made.log);
        assert!(!made.log.contains("Revoked"), "{}", made.log);
        // The next one replaces both.
        let again = replace(&process, &[]).await;
        assert_eq!(again.log.matches("key_").count(), 3, "{}", again.log);
        process.start_again().await;
        for key in [old.as_str(), made.output.trim()] {
            assert_eq!(reason(&process, key).await, "KEY_REVOKED");
        }
        assert_eq!(reason(&process, again.output.trim()).await, "");
    }
}

#[tokio::test]
async fn the_new_key_is_in_the_file_of_the_old_one_and_nobody_else_can_read_it() {
    let mut process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    stop(&mut process).await;
    let replaced = replace(&process, &[]).await;
    let file = process.folder().join("operator.key");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), replaced.output);
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[tokio::test]
async fn a_server_that_holds_the_sqlite_file_has_to_be_stopped_before() {
    let process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    let refused = replace(&process, &[]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        refused.log.contains("another hub process uses"),
        "{}",
        refused.log
    );
    assert_eq!(refused.output, "");
}

#[tokio::test]
async fn on_postgres_it_works_beside_servers_that_run() {
    let flags = ["--key-cache-ttl", "0s"];
    let process = TestProcess::start(Command::Serve, Backend::Postgres, &flags).await;
    let lost = process.ready["operatorKey"].as_str().unwrap().to_owned();
    assert_eq!(reason(&process, &lost).await, "");
    let replaced = replace(&process, &[]).await;
    assert!(replaced.status.success(), "{}", replaced.log);
    assert_eq!(reason(&process, &lost).await, "KEY_REVOKED");
    assert_eq!(reason(&process, replaced.output.trim()).await, "");
}

#[tokio::test]
async fn a_database_without_tables_is_not_begun_by_it_on_postgres() {
    let database = Database::new(Backend::Postgres).await;
    let arguments = ["operator-key", "--new", "--database", &database.url];
    let refused = TestProcess::run(database.folder.path(), &arguments).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.log.contains("hub migrate"), "{}", refused.log);
}

#[tokio::test]
async fn without_new_nothing_is_made() {
    let (status, told) = TestProcess::refused(&["operator-key"]).await;
    assert_eq!(status.code(), Some(2), "{told}");
    assert!(told.contains("--new"), "{told}");
}

/// The audit log has who replaced which key, and no secret.
#[tokio::test]
async fn the_change_is_audited_without_the_secret() {
    let mut process = TestProcess::start(Command::Serve, Backend::Sqlite, &[]).await;
    stop(&mut process).await;
    let replaced = replace(&process, &[]).await;
    let path = process.database_url().to_owned();
    let mut connection = <sqlx::SqliteConnection as sqlx::Connection>::connect(&path)
        .await
        .unwrap();
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("select actor, resource, changes from audit_entries where action = $1")
            .bind("hub operator-key --new")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    assert_eq!(rows.len(), 2, "{rows:?}");
    for (actor, resource, changes) in rows {
        assert_eq!(actor, "hub");
        assert!(replaced.log.contains(&resource), "{resource}");
        assert!(!changes.contains("tos_"), "{changes}");
        let _: Value = serde_json::from_str(&changes).unwrap();
    }
}
