//! What a domain gets from the server, and what it hands back.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::cursor::Cursors;
use crate::internal::Internal;
use crate::jobs::Jobs;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::peers::Peers;
use crate::processes::Processes;
use crate::sealing::Sealer;
use crate::services::Services;
use crate::storage::Db;
use crate::tenancy::Tenancy;
use crate::worker::Workers;

/// What every domain works with; cheap to clone.
#[derive(Clone)]
pub struct Core {
    /// The database.
    pub db: Db,
    /// The log of each tenant.
    pub journal: Arc<Journal>,
    /// Work that outlives the call that started it.
    pub jobs: Jobs,
    /// The time.
    pub clock: Clock,
    /// The bounds.
    pub limits: Arc<Limits>,
    /// Makes and checks cursors.
    pub cursors: Arc<Cursors>,
    /// Seals what is stored of secrets.
    pub sealer: Arc<Sealer>,
    /// The tenants.
    pub tenancy: Tenancy,
    /// Blocks of addresses of proxies that are believed, with commas between.
    pub trusted_proxies: Arc<str>,
    /// Where callers reach the server, without a slash at its end.
    pub public_url: Arc<str>,
    /// This process among those on the database.
    pub processes: Arc<Processes>,
    /// Makes and checks the credential by which they call each other.
    pub internal: Internal,
    /// Passes calls on to the others.
    pub peers: Arc<dyn Peers>,
    /// Set once the server is being stopped: streams say Closing and end.
    pub draining: CancellationToken,
}

impl Core {
    /// The supervised workers of this process; they stop before the journal closes.
    pub fn workers(&self) -> &Workers {
        self.journal.workers()
    }
}

/// A domain, ready to be served.
pub struct Module {
    /// Name of the domain and of its feature.
    pub name: &'static str,
    /// Its gRPC services.
    pub services: Services,
    /// Its routes of plain HTTP; the extensions of a request have its `auth::Origin`.
    pub http: axum::Router,
}
