//! What tests are made of: a hub in this process ([`TestHub`]) or in its own ([`TestProcess`]), on
//! either database.

use std::time::Duration;

mod database;
mod http;
mod hub;
mod panics;
mod process;
mod tenant;

pub use database::{Backend, Database, SEALING_KEY, config};
pub use http::{Answer, frame, post_grpc, post_json, request};
pub use hub::TestHub;
pub use process::{Command, Ended, TestProcess};
pub use tenant::Tenant;

/// What a test function may ask for.
pub trait Given: Sized {
    /// Makes it on this database.
    fn given(backend: Backend) -> impl Future<Output = Self>;
}

impl Given for Backend {
    async fn given(backend: Backend) -> Self {
        backend
    }
}

impl Given for TestHub {
    async fn given(backend: Backend) -> Self {
        TestHub::start(backend).await
    }
}

/// What the function asks for, by its type.
pub async fn given<T: Given>(backend: Backend) -> T {
    T::given(backend).await
}

/// A test that takes longer hangs.
const TEST_TIMEOUT: Duration = Duration::from_secs(300);

/// Fails a test that hangs, so that the others still tell.
pub async fn in_time(test: impl Future<Output = ()>) {
    let ended = tokio::time::timeout(TEST_TIMEOUT, test).await;
    assert!(
        ended.is_ok(),
        "the test did not end within {TEST_TIMEOUT:?}"
    );
}

/// Makes a test on each database of a function that takes a [`TestHub`], or a [`Backend`] to start
/// something else on.
///
/// Tasks of the hub run on threads of their own, so that a panic in one is told from a failed
/// assertion of the test.
#[macro_export]
macro_rules! both_databases {
    ($($(#[$meta:meta])* async fn $name:ident($($argument:tt)+) $body:block)+) => { $(
        $(#[$meta])*
        mod $name {
            use super::*;

            async fn behaviour($($argument)+) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                let given = $crate::support::given($crate::support::Backend::Sqlite).await;
                $crate::support::in_time(Box::pin(behaviour(given))).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                let given = $crate::support::given($crate::support::Backend::Postgres).await;
                $crate::support::in_time(Box::pin(behaviour(given))).await;
            }
        }
    )+ };
}
