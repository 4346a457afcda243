//! The subscriptions at work in this process, each once; and which process has which.
//!
//! A group is opened by the first who needs it: it takes the ownership of the subscription, goes on
//! where the owner before was, and is closed again when nobody needs it. Streams that serve all
//! tenants are called when a log grows (`hall.rs`).

mod asking;
mod leaving;
mod opening;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hub_core::clock::micros;
use hub_core::error::Result;
use hub_core::journal::TenantRef;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use self::asking::Service;
use self::leaving::Owed;
use crate::group::{Group, Parts};
use crate::hall::{Hall, Halls};
use crate::owners::{Altered, Asking, Known, Owners, Wanted};
use crate::seat::Seat;
use crate::store::positions;
use crate::whereabouts::Whereabouts;

/// Groups that are opened or closed at the same time.
const TURNS: usize = 64;
/// Pauses before a subscription that another process let go is looked at again, if it could not be
/// put to work: the database may not answer, or a third process be about to take it.
const LEFT_PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(2),
];
/// Looks after which the rows of all subscriptions at work are read, whether or not the log of
/// their tenant went on: once a minute.
const LOOKS_PER_ROUND: u32 = 120;
/// How long it is told what became of events that passed retention.
const TOLD: Duration = Duration::from_secs(90 * 24 * 3600);

/// Where a subscription is at work.
#[derive(Debug)]
pub(crate) enum Place {
    /// In this process.
    Here(Arc<Group>),
    /// In another process, which lives.
    Elsewhere(Arc<str>),
}

/// All groups of this process.
pub(crate) struct Groups {
    parts: Parts,
    /// Id of this process, as owner.
    process: String,
    open: Mutex<Open>,
    owed: Mutex<Owed>,
    /// Opening and closing one subscription is done one after the other.
    turns: Vec<tokio::sync::Mutex<()>>,
    hasher: RandomState,
    halls: Halls,
    whereabouts: Whereabouts,
    /// Changes with each that was put to work or let go.
    settled: watch::Sender<()>,
    let_go: CancellationToken,
    /// How often what is open was looked at.
    looks: AtomicU32,
}

#[derive(Default)]
struct Open {
    by_id: HashMap<Arc<str>, Arc<Group>>,
    by_name: HashMap<(i64, Arc<str>, Arc<str>), Arc<Group>>,
}

impl Groups {
    /// None yet. `process` names this process among those of the database.
    pub(crate) fn new(parts: Parts, process: String) -> Arc<Groups> {
        Arc::new(Groups {
            parts,
            process,
            open: Mutex::default(),
            owed: Mutex::default(),
            turns: (0..TURNS).map(|_| tokio::sync::Mutex::default()).collect(),
            hasher: RandomState::new(),
            halls: Halls::default(),
            whereabouts: Whereabouts::default(),
            settled: watch::Sender::new(()),
            let_go: CancellationToken::new(),
            looks: AtomicU32::new(0),
        })
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// What other processes have at work.
    pub(crate) fn whereabouts(&self) -> &Whereabouts {
        &self.whereabouts
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group of a subscription, if it is at work here.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Group>> {
        let found = self.lock().by_id.get(id).cloned();
        found.filter(|group| !group.is_over())
    }

    /// The same by number of the tenant, product and name.
    pub(crate) fn find_named(&self, tenant: i64, product: &str, name: &str) -> Option<Arc<Group>> {
        let key = (tenant, Arc::from(product), Arc::from(name));
        let found = self.lock().by_name.get(&key).cloned();
        found.filter(|group| !group.is_over())
    }

    /// Whether no more can be opened now.
    pub(crate) fn is_full(&self) -> bool {
        self.lock().by_id.len() >= self.parts.core.limits.subscription_groups_max
    }

    fn turn(&self, id: &str) -> &tokio::sync::Mutex<()> {
        &self.turns[self.hasher.hash_one(id) as usize % TURNS]
    }

    fn add(&self, group: &Arc<Group>) {
        let mut open = self.lock();
        let name = (
            group.tenant.number(),
            group.product.clone(),
            group.name.clone(),
        );
        open.by_name.insert(name, group.clone());
        open.by_id.insert(group.id.clone(), group.clone());
        metrics::gauge!("hub_event_bus_groups_open").set(open.by_id.len() as f64);
        // Before the lock is free: a stream that goes in between would have a place after it left,
        // and one that comes would have two.
        for seat in self.halls.seats(&group.product, &group.name) {
            group.join(&seat);
        }
    }

    fn remove(&self, group: &Arc<Group>) {
        let mut open = self.lock();
        let name = (
            group.tenant.number(),
            group.product.clone(),
            group.name.clone(),
        );
        let same = |found: &Arc<Group>| found.number == group.number;
        if open.by_id.get(&group.id).is_some_and(same) {
            open.by_id.remove(&group.id);
        }
        if open.by_name.get(&name).is_some_and(same) {
            open.by_name.remove(&name);
        }
        metrics::gauge!("hub_event_bus_groups_open").set(open.by_id.len() as f64);
        drop(open);
        self.settled.send_replace(());
    }

    /// Its settings were changed on this process.
    pub(crate) async fn settings_changed(&self, id: &str) -> Result<()> {
        match self.find(id) {
            Some(group) => group.read_settings().await,
            None => Ok(()),
        }
    }

    /// Drops what another process took over, reads again what was changed by one, and lets go what
    /// nobody works on. Errors: `STORE_BUSY`.
    pub(crate) async fn look(&self) -> Result<()> {
        let looked = self.look_at_open().await;
        looked.and(self.let_go_of_owed().await)
    }

    /// All that are at work.
    pub(crate) fn open_now(&self) -> Vec<Arc<Group>> {
        self.lock().by_id.values().cloned().collect()
    }

    async fn look_at_open(&self) -> Result<()> {
        let open = self.open_now();
        for group in &open {
            if group.is_over() {
                // Another process may have it. If none has, it is to be free, and what was acked is
                // stored: only the checkpoint knows, and tells who waits for it.
                self.owe_group(group);
                self.remove(group);
                self.look_again_for(group);
            }
        }
        let core = &self.parts.core;
        if !core.db.is_postgres() || !core.processes.is_live() {
            return Ok(());
        }
        let all = self
            .looks
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(LOOKS_PER_ROUND);
        let mut asked = Vec::new();
        for group in open.iter().filter(|group| !group.is_over()) {
            // Asked for before the row is read.
            let (head, changed) = group.may_have_changed();
            if all || changed {
                asked.push((group, head));
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        let ids: Vec<&str> = asked.iter().map(|(group, _)| &*group.id).collect();
        let stored = positions::epochs(&core.db, &ids).await?;
        for (group, head) in asked {
            match stored.get(&*group.id) {
                Some((epoch, version)) if *epoch == group.epoch => {
                    if group.version() < *version {
                        self.settings_changed(&group.id).await?;
                    }
                    group.row_was_read(head);
                }
                _ => {
                    group.lose();
                    self.remove(group);
                }
            }
        }
        Ok(())
    }

    /// Takes a place at the subscriptions of one name of all tenants, those that are at work and
    /// those that will be.
    pub(crate) fn enter(
        self: &Arc<Self>,
        product: &str,
        name: &str,
        seat: &Arc<Seat>,
    ) -> Arc<Hall> {
        let (hall, working) = self.join_all(product, name, seat, false);
        if let Some(left) = working {
            tokio::spawn(Hall::work(hall.clone(), Arc::downgrade(self), left));
        }
        hall
    }

    /// The same for a consumer that is connected to another process: that one puts subscriptions to
    /// work.
    pub(crate) fn visit(self: &Arc<Self>, product: &str, name: &str, seat: &Arc<Seat>) {
        self.join_all(product, name, seat, true);
    }

    fn join_all(
        &self,
        product: &str,
        name: &str,
        seat: &Arc<Seat>,
        visiting: bool,
    ) -> (Arc<Hall>, Option<CancellationToken>) {
        let open = self.lock();
        let entered = self.halls.enter(product, name, seat, visiting);
        for group in open.by_id.values() {
            if &*group.product == product && &*group.name == name {
                group.join(seat);
            }
        }
        entered
    }

    /// Another process let a subscription go: it is put to work here if something is left to do.
    pub(crate) fn was_left(
        self: &Arc<Self>,
        product: &str,
        name: &str,
        tenant: i64,
        subscription_id: &str,
    ) {
        self.whereabouts.forget(subscription_id);
        let Some(hall) = self.halls.find(product, name) else {
            return;
        };
        let (groups, id) = (self.clone(), subscription_id.to_owned());
        tokio::spawn(async move {
            for pause in LEFT_PAUSES {
                match positions::is_behind(&groups.parts.core.db, tenant, &id).await {
                    Ok(true) if hall.takes_up(&groups, tenant).await => return,
                    Ok(false) => return,
                    Ok(true) => {}
                    Err(error) => tracing::debug!("a position could not be read: {error}"),
                }
                tokio::time::sleep(pause).await;
                groups.whereabouts.forget(&id);
            }
        });
    }

    /// What a process had may be free.
    pub(crate) fn has_lost(&self, process_id: &str) {
        self.whereabouts.forget_owner(process_id);
    }

    /// A group ended with work left to do: streams of its tenant open it again; those of all
    /// tenants would when its log grows.
    pub(super) fn look_again_for(&self, group: &Group) {
        if let Some(hall) = self.halls.find(&group.product, &group.name) {
            hall.look_again();
        }
    }

    /// Gives the place up again.
    pub(crate) fn go(&self, product: &str, name: &str, seat: &Arc<Seat>) {
        let open = self.lock();
        self.halls.go(product, name, seat);
        for group in open.by_id.values() {
            if &*group.product == product && &*group.name == name {
                group.leave(seat);
            }
        }
    }

    /// Forgets what became of events that passed retention long ago. Errors: `STORE_BUSY`.
    pub(crate) async fn forget(&self) -> Result<()> {
        let core = &self.parts.core;
        let before = core.clock.now() - micros(TOLD);
        while positions::forget(&core.db, before).await? {
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

impl Owners for Groups {
    fn close<'a>(&'a self, _: &'a TenantRef, id: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(Groups::close(self, id))
    }

    fn changed<'a>(&'a self, _: &'a TenantRef, id: &'a str, what: Altered) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if what == Altered::Settings {
                let Err(error) = self.settings_changed(id).await else {
                    return;
                };
                // It must not go on with those of before.
                tracing::debug!("the settings of a subscription could not be read: {error}");
            }
            let group = self.find(id);
            if let Err(error) = Groups::close(self, id).await {
                tracing::debug!("what was known of {id} is not stored: {error}");
            }
            if let Some(group) = group {
                self.look_again_for(&group);
            }
        })
    }

    fn live<'a>(
        &'a self,
        asking: &'a Asking<'a>,
        ids: &'a [&'a str],
        wanted: Wanted<'a>,
    ) -> BoxFuture<'a, Result<HashMap<String, Known>>> {
        Box::pin(self.ask(asking, ids, wanted))
    }
}
