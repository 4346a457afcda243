//! Clients of all kinds, which write down what they do and what they are told.

mod consumer;
mod event;
mod habits;
mod publisher;
mod pull;
mod redeliverer;
mod stream;
mod subscriber;

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hub_client::Hub;
use tokio::sync::watch;

pub use consumer::consume;
pub use event::seen;
pub use habits::duration;
pub use publisher::publish;
pub use pull::pull;
pub use redeliverer::redeliver;
pub use stream::publish_stream;
pub use subscriber::{Habit, filter, subscribe};

use super::tracks::Folder;
use crate::journal::random::Random;

/// Longest silence of a stream, told to the hub.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// A stream that is silent for so long is given up.
pub const SILENCE: Duration = Duration::from_millis(2500);
/// A call that takes longer is given up, and its outcome unknown.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two attempts.
pub const RETRY_PAUSE: Duration = Duration::from_millis(80);

/// What clients are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everything, while faults happen.
    Load,
    /// Publish no more; work off what there is. No faults any more.
    Calm,
    /// End.
    Over,
}

/// What the clients of a run share.
pub struct Site {
    pub folder: Folder,
    pub seed: u64,
    pub phase: watch::Sender<Phase>,
    /// The end of each tenant's log, once nothing is published any more.
    pub ends: Vec<watch::Sender<Option<u64>>>,
    /// A cursor that came with an acknowledgement, with its sequence, by tenant.
    acked: Vec<Mutex<Option<(String, u64)>>>,
    /// Where each process is reached.
    proxies: Vec<SocketAddr>,
}

impl Site {
    pub fn new(folder: Folder, seed: u64, proxies: Vec<SocketAddr>, tenants: usize) -> Site {
        Site {
            folder,
            seed,
            phase: watch::Sender::new(Phase::Load),
            ends: (0..tenants).map(|_| watch::Sender::new(None)).collect(),
            acked: (0..tenants).map(|_| Mutex::default()).collect(),
            proxies,
        }
    }

    /// A connection of its own to some process, and which it is.
    pub fn connect(&self, random: &mut Random, key: &str) -> (Hub, usize) {
        let process = random.below(self.proxies.len());
        let hub = Hub::builder(format!("http://{}", self.proxies[process]))
            .api_key(key)
            .timeout(CALL_TIMEOUT)
            .connect_lazy();
        (hub.unwrap(), process)
    }

    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// The choices of a client.
    pub fn random(&self, client: &str) -> Random {
        Random::new(self.seed, super::filter::digest(client))
    }

    fn set_acked(&self, tenant: usize, cursor: String, sequence: u64) {
        let mut acked = self.acked[tenant]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *acked = Some((cursor, sequence));
    }

    fn acked(&self, tenant: usize) -> Option<(String, u64)> {
        let acked = self.acked[tenant]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        acked.clone()
    }
}

/// A client of a tenant.
#[derive(Debug, Clone)]
pub struct Identity {
    /// e.g. `publisher-0-psa-1`.
    pub name: String,
    pub tenant: usize,
    /// Slug of the product of the key.
    pub product: String,
    pub key: String,
}
