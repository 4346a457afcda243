//! The event bus: one durable, ordered log of CloudEvents per tenant, with routing between
//! products. The log itself is the journal of `hub-core`; this is the service around it.
//!
//! Invariants:
//! - Everything that can be refused is refused before the journal's queue.
//! - Whether an event flows to a product is decided in `routing`, nowhere else.
//! - A stream is never silent for longer than the heartbeat interval, and never skips silently.
//! - Events are encoded once; all readers share the bytes.

mod acks;
mod batch;
mod branch;
mod catalogue;
mod checkpoint;
mod consume;
pub mod default_subscriptions;
mod erase;
mod error;
pub mod event;
pub mod event_types;
mod explain;
pub mod filter;
mod forward;
mod group;
mod groups;
mod grpc;
mod hall;
mod lag;
mod lease_id;
pub mod leasing;
mod log;
mod log_entry;
mod log_exceptions;
mod log_list;
mod log_walk;
mod matching;
mod own_subscriptions;
pub mod owners;
pub mod publish;
mod publish_stream;
mod pull;
mod redelivery;
mod refusals;
mod retention;
mod routes;
pub mod routing;
mod schema;
mod seat;
mod seek;
mod standing;
mod start;
mod store;
mod subscribe;
mod subscription_status;
pub mod subscriptions;
mod visibility;
mod whereabouts;

use std::sync::Arc;
use std::time::Duration;

use hub_core::auth::Authenticator;
use hub_core::clock::{Micros, micros};
use hub_core::module::{Core, Module};
use hub_core::services::Services;
use hub_proto::server::event_bus_server::EventBusServer;

use checkpoint::Checkpoints;
use event_types::Catalogues;
use group::Parts;
use groups::Groups;
use lag::Lag;
use owners::Owners;
use routing::Configurations;
pub use store::{STATEMENTS, migrations};
use subscriptions::Subscriptions;

/// The service, ready to be served. `authenticator` is asked again while streams run.
pub fn module(core: &Core, authenticator: Arc<dyn Authenticator>) -> Module {
    let catalogues = Arc::new(Catalogues::new(core));
    let configurations = Configurations::new(core, catalogues.clone());
    let groups = begin_delivery(core, &configurations);
    let redelivery = redelivery::Redelivery::new(&groups);
    core.jobs
        .register(redelivery::KIND, Arc::new(redelivery.clone()));
    let branches = branch::Service {
        core: core.clone(),
        authenticator: authenticator.clone(),
        groups: groups.clone(),
    };
    let passing = redelivery::Service {
        groups: groups.clone(),
    };
    let asked = groups::Service {
        groups: groups.clone(),
    };
    let owners: Arc<dyn Owners> = groups.clone();
    let refused = refusals::router(configurations.clone());
    let service = grpc::Service {
        core: core.clone(),
        authenticator,
        subscriptions: Subscriptions::new(core, configurations.clone(), owners),
        configurations,
        catalogues,
        redelivery: redelivery.clone(),
        groups,
    };
    begin_workers(core);
    let server = EventBusServer::new(service)
        .max_decoding_message_size(core.limits.message_bytes_max)
        .max_encoding_message_size(usize::MAX);
    let between = branches.router().merge(passing.router());
    let between = between.merge(asked.router()).merge(refused);
    Module {
        name: "event_bus",
        services: Services::default().with(server).routed(between),
        http: axum::Router::new(),
    }
}

/// How often it is looked which subscriptions other processes took over or changed.
const OWNERSHIP_INTERVAL: Duration = Duration::from_millis(500);
/// How often it is forgotten what became of events of long ago.
const FORGET_INTERVAL: Duration = Duration::from_secs(3600);

/// Durable subscriptions at work.
fn begin_delivery(core: &Core, configurations: &Configurations) -> Arc<Groups> {
    let checkpoints = Checkpoints::new(core);
    let parts = Parts {
        core: core.clone(),
        configurations: configurations.clone(),
        checkpoints: checkpoints.clone(),
    };
    let groups = Groups::new(parts, core.processes.id().to_string());
    let workers = core.workers();
    workers.spawn("checkpoints", move |turn| checkpoints.clone().run(turn));
    let looking = groups.clone();
    workers.every("subscription-owners", OWNERSHIP_INTERVAL, move || {
        let groups = looking.clone();
        async move { groups.look().await }
    });
    let forgetting = groups.clone();
    workers.every("settled-events", FORGET_INTERVAL, move || {
        let groups = forgetting.clone();
        async move { groups.forget().await }
    });
    let (measuring, lag) = (groups.clone(), Arc::new(Lag::default()));
    workers.every("subscription-lag", lag::INTERVAL, move || {
        let (groups, lag) = (measuring.clone(), lag.clone());
        async move { lag.measure(&groups).await }
    });
    let (draining, releasing) = (core.draining.clone(), groups.clone());
    tokio::spawn(async move {
        draining.cancelled().await;
        releasing.release().await;
    });
    groups
}

/// What goes on behind the calls.
fn begin_workers(core: &Core) {
    let workers = core.journal.workers();
    let removing = core.clone();
    workers.every("retention", retention::INTERVAL, move || {
        let core = removing.clone();
        async move { retention::pass(&core).await }
    });
    let making = core.clone();
    workers.spawn("default-subscriptions", move |turn| {
        default_subscriptions::run(making.clone(), turn)
    });
    let sweeping = core.clone();
    let interval = subscriptions::SWEEP_INTERVAL;
    workers.every("deleted-subscriptions", interval, move || {
        let core = sweeping.clone();
        async move { subscriptions::sweep(&core).await }
    });
}

/// A stream speaks a little before the promised time, so that a slow network does not break it.
fn beat(core: &Core) -> Duration {
    core.limits.heartbeat_interval * 8 / 10
}

/// When a stream speaks that last spoke at `spoke_at`, whatever becomes of the machine's clock.
fn beat_at(core: &Core, spoke_at: Micros, now: Micros) -> Micros {
    spoke_at.min(now) + micros(beat(core))
}

/// How long a stream lives: the limit, and up to as much again, so that streams which began
/// together do not end together.
fn stream_age(core: &Core) -> Duration {
    let age = core.limits.stream_age_max;
    let random = random_fraction();
    age + age.mul_f64(random)
}

/// A number from 0 to 1.
fn random_fraction() -> f64 {
    let spread = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8);
    spread as f64 / u64::MAX as f64
}
