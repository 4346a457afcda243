//! Streams that serve the subscription of one name of every tenant.
//!
//! Nobody asks for each tenant: a subscription is put to work when the log of its tenant has grown,
//! and goes when everything is settled. What is not told (by another process, in between) is found
//! by a look at all of them now and then, by one statement.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use hub_core::error::Result;
use hub_core::journal::TenantRef;
use tokio::sync::Notify;

use crate::groups::Groups;
use crate::seat::Seat;
use crate::store::positions;
use crate::subscriptions;

/// Subscriptions that are put to work at the same time.
const AT_ONCE: usize = 16;
/// Time between two looks at all of them.
const LOOK: Duration = Duration::from_secs(30);
/// Pause while too many are at work, or the database does not answer.
const PAUSE: Duration = Duration::from_millis(200);

/// The streams of one product and name.
#[derive(Debug)]
pub(crate) struct Hall {
    product: Arc<str>,
    name: Arc<str>,
    seats: Mutex<Vec<Placed>>,
    left: Notify,
    again: Notify,
}

/// A stream in a hall.
#[derive(Debug)]
struct Placed {
    seat: Arc<Seat>,
    /// Its consumer is connected to another process, which puts subscriptions to work.
    visiting: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Halls {
    by_name: Mutex<ByName>,
}

type ByName = HashMap<(Arc<str>, Arc<str>), Arc<Hall>>;

impl Halls {
    fn lock(&self) -> MutexGuard<'_, ByName> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a stream; true if it is the first of a consumer here, so that [`Hall::work`] has to
    /// begin.
    pub(crate) fn enter(
        &self,
        product: &str,
        name: &str,
        seat: &Arc<Seat>,
        visiting: bool,
    ) -> (Arc<Hall>, bool) {
        let (product, name): (Arc<str>, Arc<str>) = (product.into(), name.into());
        let mut halls = self.lock();
        let hall = halls
            .entry((product.clone(), name.clone()))
            .or_insert_with(|| {
                Arc::new(Hall {
                    product,
                    name,
                    seats: Mutex::default(),
                    left: Notify::new(),
                    again: Notify::new(),
                })
            });
        let mut seats = hall.lock();
        let first = !visiting && seats.iter().all(|placed| placed.visiting);
        seats.push(Placed {
            seat: seat.clone(),
            visiting,
        });
        drop(seats);
        (hall.clone(), first)
    }

    /// Removes a stream.
    pub(crate) fn go(&self, product: &str, name: &str, seat: &Seat) {
        let key = (Arc::from(product), Arc::from(name));
        let mut halls = self.lock();
        let Some(hall) = halls.get(&key).cloned() else {
            return;
        };
        let mut seats = hall.lock();
        let worked = seats.iter().any(|placed| !placed.visiting);
        seats.retain(|placed| placed.seat.member != seat.member);
        if worked && seats.iter().all(|placed| placed.visiting) {
            hall.left.notify_one();
        }
        if seats.is_empty() {
            halls.remove(&key);
        }
    }

    /// Those of a product and name.
    pub(crate) fn find(&self, product: &str, name: &str) -> Option<Arc<Hall>> {
        let key = (Arc::from(product), Arc::from(name));
        self.lock().get(&key).cloned()
    }

    /// Who serves this product and name of all tenants.
    pub(crate) fn seats(&self, product: &Arc<str>, name: &Arc<str>) -> Vec<Arc<Seat>> {
        let halls = self.lock();
        let hall = halls.get(&(product.clone(), name.clone()));
        let seats = hall.map(|hall| {
            let seats = hall.lock();
            seats.iter().map(|placed| placed.seat.clone()).collect()
        });
        seats.unwrap_or_default()
    }
}

impl Hall {
    fn lock(&self) -> MutexGuard<'_, Vec<Placed>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts subscriptions to work for as long as somebody is there.
    pub(crate) async fn work(hall: Arc<Hall>, groups: Weak<Groups>) {
        let Some(found) = groups.upgrade() else {
            return;
        };
        // From before the first look: what grows in between is not missed.
        let growth = found.parts().core.journal.growth();
        let draining = found.parts().core.draining.clone();
        let mut peers = found.parts().core.processes.watch();
        drop(found);
        loop {
            let Some(found) = groups.upgrade() else {
                return;
            };
            if let Err(error) = hall.look(&found).await {
                tracing::debug!("the subscriptions of all tenants could not be read: {error}");
            }
            drop(found);
            let next_look = tokio::time::sleep(LOOK);
            tokio::pin!(next_look);
            loop {
                let grown = tokio::select! {
                    grown = growth.next() => grown,
                    () = &mut next_look => break,
                    () = hall.again.notified() => break,
                    // What a process had that is gone is free.
                    changed = peers.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    () = hall.left.notified() => return,
                    () = draining.cancelled() => return,
                };
                let Some(found) = groups.upgrade() else {
                    return;
                };
                let (hall, found) = (&hall, &found);
                stream::iter(grown)
                    .for_each_concurrent(AT_ONCE, |number| hall.has_grown(found, number))
                    .await;
            }
        }
    }

    /// Looks at all tenants.
    async fn look(&self, groups: &Arc<Groups>) -> Result<()> {
        let (mut after, db) = (0, &groups.parts().core.db);
        loop {
            let tenants = positions::behind(db, after, &self.product, &self.name).await?;
            let Some(last) = tenants.last() else {
                return Ok(());
            };
            after = last.number();
            stream::iter(&tenants)
                .for_each_concurrent(AT_ONCE, |tenant| self.put_to_work(groups, tenant))
                .await;
        }
    }

    /// Looks at all tenants soon: subscriptions may be free that were not.
    pub(crate) fn look_again(&self) {
        self.again.notify_one();
    }

    /// Puts the subscription of a tenant to work, whose log has grown.
    pub(crate) async fn has_grown(&self, groups: &Arc<Groups>, number: i64) {
        if groups
            .find_named(number, &self.product, &self.name)
            .is_some()
        {
            return;
        }
        // One that is new is found by its number once; then its log is known.
        match groups.parts().core.tenancy.by_number(number).await {
            Ok(tenant) => self.put_to_work(groups, &tenant).await,
            Err(error) => tracing::debug!("a tenant could not be read: {error}"),
        }
    }

    async fn put_to_work(&self, groups: &Arc<Groups>, tenant: &TenantRef) {
        while groups.is_full() && self.lock().iter().any(|placed| !placed.visiting) {
            tokio::time::sleep(PAUSE).await;
        }
        if let Err(error) = self.open(groups, tenant).await {
            tracing::debug!("a subscription was not put to work: {error}");
        }
    }

    async fn open(&self, groups: &Arc<Groups>, tenant: &TenantRef) -> Result<()> {
        let parts = groups.parts();
        let present = parts.configurations.current(tenant).await?;
        if !present.is_active(&self.product) {
            return Ok(());
        }
        let (core, product) = (&parts.core, Some(&*self.product));
        let found =
            subscriptions::resolve(core, &parts.configurations, tenant, product, &self.name).await;
        match found {
            Ok(settings) => groups.open(tenant, settings).await.map(|_| ()),
            // Not every tenant has one of this name.
            Err(error) if error.reason() == "SUBSCRIPTION_NOT_FOUND" => Ok(()),
            Err(error) => Err(error),
        }
    }
}
