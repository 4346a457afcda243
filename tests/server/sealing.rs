//! The sealing key: required on PostgreSQL, made beside the file on SQLite, and never another one.

use std::os::unix::fs::PermissionsExt;

use hub_core::clock::Clock;
use hub_server::Config;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::{Backend, Database, SEALING_KEY};

/// Base64 of 32 bytes, as the key of all tests is another one.
const OTHER: &str = "b3RoZXIgb3RoZXIgb3RoZXIgb3RoZXIgb3RoZXIgb2s=";

/// Starts a server and stops it, or says why it does not start.
async fn started(config: Config) -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shutdown = CancellationToken::new();
    let running = hub_server::start(config, listener, Clock::system(), shutdown).await?;
    running.drain().await;
    Ok(())
}

both_databases! {
    async fn a_database_takes_only_the_key_that_it_was_begun_with(backend: Backend) {
        let database = Database::new(backend).await;
        started(database.config()).await.unwrap();
        started(database.config()).await.unwrap();
        let mut config = database.config();
        config.sealing_key = OTHER.parse().ok();
        let refused = started(config).await.unwrap_err();
        assert!(refused.contains("is not the one that this database was begun with"), "{refused}");
        assert!(!refused.contains(OTHER), "{refused}");
        let file = database.folder.path().join("key of the tests");
        std::fs::write(&file, format!("{}\n", SEALING_KEY)).unwrap();
        let mut config = Config::new(&database.url);
        config.sealing_key_file = Some(file);
        started(config).await.unwrap();
    }

    async fn a_key_that_is_none_is_refused_and_not_repeated(backend: Backend) {
        let database = Database::new(backend).await;
        let mut config = database.config();
        config.sealing_key = "not-a-sealing-key".parse().ok();
        let refused = started(config).await.unwrap_err();
        assert!(refused.contains("is not base64 of 32 bytes"), "{refused}");
        assert!(!refused.contains("not-a-sealing-key"), "{refused}");
    }
}

#[tokio::test]
async fn postgres_without_a_key_is_refused_with_a_way_out() {
    let database = Database::new(Backend::Postgres).await;
    let refused = started(Config::new(&database.url)).await.unwrap_err();
    assert!(
        refused.contains("PostgreSQL needs a sealing key"),
        "{refused}"
    );
    assert!(refused.contains("HUB_SEALING_KEY"), "{refused}");
}

#[tokio::test]
async fn sqlite_makes_a_key_that_others_cannot_read_and_misses_it_when_it_is_gone() {
    let database = Database::new(Backend::Sqlite).await;
    started(Config::new(&database.url)).await.unwrap();
    let file = database.folder.path().join("sealing.key");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    started(Config::new(&database.url)).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    let refused = started(Config::new(&database.url)).await.unwrap_err();
    assert!(refused.contains("a file that was missing"), "{refused}");
    assert!(!file.exists(), "a key that does not fit is not left behind");
}
