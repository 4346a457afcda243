//! What the benchmark programs share: servers that they start themselves, clients of the peers,
//! statistics and the tables of `docs/benchmarks.md`.
//!
//! Every server listens on loopback, keeps its data in a temporary directory and syncs before it
//! acknowledges. Contenders are measured in turn, round after round.

pub mod backend;
pub mod contender;
pub mod disk;
pub mod echo;
pub mod hub;
mod hub_reader;
pub mod large_log;
pub mod nats;
mod nats_connection;
pub mod options;
pub mod postgres;
pub mod process;
pub mod redis;
mod redis_connection;
pub mod report;
pub mod round;
pub mod scratch;
pub mod server;
pub mod stats;

/// Any failure, told to a person.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// Result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Bytes of the payload of an event.
pub const PAYLOAD_BYTES: usize = 256;
/// Type of all events.
pub const EVENT_TYPE: &str = "ticket.created";
/// How long a server may take to start, or a run to bring its last event.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Runs a program to its end, or until a person interrupts it: then the servers that it started are
/// ended as well.
pub async fn until_interrupted(program: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::select! {
        done = program => done,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    }
}
