//! Streams that serve the subscription of one name of every tenant.
//!
//! Nobody asks for each tenant: a subscription is put to work when the log of its tenant has grown,
//! and goes when everything is settled. What is not told (by another process, in between) is found
//! by a look at all of them now and then, by one statement.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use hub_core::error::Result;
use hub_core::journal::TenantRef;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::groups::{Groups, Place};
use crate::seat::Seat;
use crate::store::positions;
use crate::subscriptions;

/// Subscriptions that are put to work at the same time.
const AT_ONCE: usize = 16;
/// Time between two looks at all of them.
const LOOK: Duration = Duration::from_secs(30);
/// The same after one of them could not be put to work, or the database did not answer.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Pause while too many are at work, or the database does not answer.
const PAUSE: Duration = Duration::from_millis(200);

/// The streams of one product and name.
#[derive(Debug)]
pub(crate) struct Hall {
    product: Arc<str>,
    name: Arc<str>,
    seats: Mutex<Vec<Placed>>,
    again: Notify,
    /// Number of the last look that was asked for.
    asked: AtomicU64,
    /// All subscriptions were found that this look was asked for.
    looked: AtomicU64,
    /// One could not be put to work since the last look.
    failed: AtomicBool,
    /// Ends the work of the present worker: none unless a consumer is connected to this process.
    working: Mutex<CancellationToken>,
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

    /// Adds a stream. If it is the first of a consumer here, [`Hall::work`] has to begin, until
    /// the token is cancelled.
    pub(crate) fn enter(
        &self,
        product: &str,
        name: &str,
        seat: &Arc<Seat>,
        visiting: bool,
    ) -> (Arc<Hall>, Option<CancellationToken>) {
        let (product, name): (Arc<str>, Arc<str>) = (product.into(), name.into());
        let mut halls = self.lock();
        let hall = halls
            .entry((product.clone(), name.clone()))
            .or_insert_with(|| {
                Arc::new(Hall {
                    product,
                    name,
                    seats: Mutex::default(),
                    again: Notify::new(),
                    asked: AtomicU64::new(0),
                    looked: AtomicU64::new(0),
                    failed: AtomicBool::new(false),
                    working: Mutex::default(),
                })
            });
        let mut seats = hall.lock();
        let first = !visiting && seats.iter().all(|placed| placed.visiting);
        seats.push(Placed {
            seat: seat.clone(),
            visiting,
        });
        let working = first.then(|| {
            hall.asked.fetch_add(1, Ordering::AcqRel);
            hall.begin()
        });
        drop(seats);
        (hall.clone(), working)
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
            hall.working().cancel();
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

    fn working(&self) -> MutexGuard<'_, CancellationToken> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A token of its own for each worker: one that ends may still be about to see it when the next
    /// one begins.
    fn begin(&self) -> CancellationToken {
        let token = CancellationToken::new();
        *self.working() = token.clone();
        token
    }

    /// Puts subscriptions to work until nobody is there any more, who cancels `left`.
    pub(crate) async fn work(hall: Arc<Hall>, groups: Weak<Groups>, left: CancellationToken) {
        let Some(found) = groups.upgrade() else {
            return;
        };
        let draining = found.parts().core.draining.clone();
        let mut peers = found.parts().core.processes.watch();
        // From before the first look: what grows in between is not missed.
        let growth = loop {
            match found.parts().core.journal.growth().await {
                Ok(growth) => break growth,
                Err(error) => tracing::debug!("the ends of the logs could not be read: {error}"),
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = left.cancelled() => return,
                () = draining.cancelled() => return,
            }
        };
        drop(found);
        loop {
            let Some(found) = groups.upgrade() else {
                return;
            };
            let asked = hall.asked.load(Ordering::Acquire);
            let looked = hall.look(&found).await;
            drop(found);
            if let Err(error) = looked {
                tracing::debug!("the subscriptions of all tenants could not be read: {error}");
                hall.failed.store(true, Ordering::Release);
            }
            if !hall.failed.load(Ordering::Acquire) {
                hall.has_found_all(asked);
            }
            let next_look = tokio::time::sleep(hall.pause());
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
                    () = left.cancelled() => return,
                    () = draining.cancelled() => return,
                };
                let Some(found) = groups.upgrade() else {
                    return;
                };
                let (hall, found) = (&hall, &found);
                stream::iter(grown)
                    .for_each_concurrent(AT_ONCE, |number| hall.has_grown(found, number))
                    .await;
                if hall.failed.load(Ordering::Acquire) {
                    let soon = Instant::now() + hall.pause();
                    next_look.as_mut().reset(soon);
                }
            }
        }
    }

    /// Until the next look, if nothing happens before.
    fn pause(&self) -> Duration {
        match self.failed.swap(false, Ordering::AcqRel) {
            true => LOOK_AGAIN,
            false => LOOK,
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
                .for_each_concurrent(AT_ONCE, |tenant| self.put_to_work(groups, tenant, true))
                .await;
        }
    }

    /// Looks at all tenants soon: subscriptions may be free that were not. Returns the number of
    /// that look.
    pub(crate) fn look_again(&self) -> u64 {
        let number = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.again.notify_one();
        number
    }

    /// Number of the last look that was asked for.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Acquire)
    }

    /// Whether a look has put everything to work that had something left to do.
    pub(crate) fn has_looked(&self, number: u64) -> bool {
        self.looked.load(Ordering::Acquire) >= number
    }

    fn has_found_all(&self, number: u64) {
        if self.looked.fetch_max(number, Ordering::AcqRel) < number {
            for placed in self.lock().iter().filter(|placed| !placed.visiting) {
                placed.seat.stir();
            }
        }
    }

    /// Puts the subscription of a tenant to work that another process let go; true if it is at work
    /// here then.
    pub(crate) async fn takes_up(&self, groups: &Arc<Groups>, number: i64) -> bool {
        self.has_grown(groups, number).await;
        let found = groups.find_named(number, &self.product, &self.name);
        found.is_some()
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
            Ok(tenant) => self.put_to_work(groups, &tenant, false).await,
            Err(error) => {
                tracing::debug!("a tenant could not be read: {error}");
                self.failed.store(true, Ordering::Release);
            }
        }
    }

    /// Anew: whatever was known of where it is. Who has let it go tells only those who have a
    /// branch to it.
    async fn put_to_work(&self, groups: &Arc<Groups>, tenant: &TenantRef, anew: bool) {
        while groups.is_full() && self.lock().iter().any(|placed| !placed.visiting) {
            tokio::time::sleep(PAUSE).await;
        }
        if let Err(error) = self.open(groups, tenant, anew).await {
            tracing::debug!("a subscription was not put to work: {error}");
            self.failed.store(true, Ordering::Release);
        }
    }

    async fn open(&self, groups: &Arc<Groups>, tenant: &TenantRef, anew: bool) -> Result<()> {
        let parts = groups.parts();
        let present = parts.configurations.current(tenant).await?;
        if !present.is_active(&self.product) {
            return Ok(());
        }
        let (core, product) = (&parts.core, Some(&*self.product));
        let found =
            subscriptions::resolve(core, &parts.configurations, tenant, product, &self.name).await;
        match found {
            Ok(settings) => {
                if anew {
                    groups.whereabouts().forget(&settings.id);
                }
                if let Place::Elsewhere(owner) = groups.open(tenant, settings).await?
                    && !core.processes.watch().borrow().contains_key(&owner)
                {
                    // No branch tells of it yet.
                    self.failed.store(true, Ordering::Release);
                }
                Ok(())
            }
            // Not every tenant has one of this name.
            Err(error) if error.reason() == "SUBSCRIPTION_NOT_FOUND" => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_ends_with_the_last_consumer_whoever_comes_meanwhile() {
        let (halls, one, two) = (Halls::default(), Seat::new("", true), Seat::new("", true));
        let visitor = Seat::new("", true);
        let enter = |seat, visiting| halls.enter("psa", "psa", seat, visiting).1;
        assert!(enter(&visitor, true).is_none());
        let first = enter(&one, false).unwrap();
        assert!(enter(&two, false).is_none());
        halls.go("psa", "psa", &one);
        assert!(!first.is_cancelled());
        halls.go("psa", "psa", &two);
        // Before the first has seen that it is to end.
        let second = enter(&one, false).unwrap();
        assert!(first.is_cancelled() && !second.is_cancelled());
        halls.go("psa", "psa", &one);
        assert!(second.is_cancelled());
    }
}
