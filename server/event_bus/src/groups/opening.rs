//! How a subscription is put to work: in this process, unless another one has it.

use std::collections::HashMap;
use std::sync::Arc;

use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::peers::moving;
use hub_proto::hub::event_bus::v1::EventDeliveryState;

use super::{Groups, Place};
use crate::group::{self, Group};
use crate::leasing::{self, Key, Leasing, Position};
use crate::store::positions::{self, Acquired};
use crate::store::seeks;
use crate::subscriptions::{self, Settings};

impl Groups {
    /// The subscription of this id or name. Errors: `SUBSCRIPTION_NOT_FOUND`, `STORE_BUSY`.
    pub(crate) async fn resolve(
        &self,
        tenant: &TenantRef,
        product: Option<&str>,
        subscription: &str,
    ) -> Result<Settings> {
        let (core, configurations) = (&self.parts.core, &self.parts.configurations);
        subscriptions::resolve(core, configurations, tenant, product, subscription).await
    }

    /// Puts a subscription to work, here unless another process has it.
    ///
    /// Errors: `STORE_BUSY`, `SERVER_DRAINING`.
    pub(crate) async fn open(
        self: &Arc<Self>,
        tenant: &TenantRef,
        settings: Settings,
    ) -> Result<Place> {
        if let Some(place) = self.known(&settings.id) {
            return Ok(place);
        }
        let _turn = self.turn(&settings.id).lock().await;
        if let Some(place) = self.known(&settings.id) {
            return Ok(place);
        }
        let core = &self.parts.core;
        if core.draining.is_cancelled() {
            return Err(Error::draining());
        }
        let Some(term) = core.processes.term() else {
            // The others would take from it what it takes now.
            return Err(moving("not_live"));
        };
        // What was acked while it was at work here before is stored, as long as it can be.
        self.close_in_turn(&settings.id).await?;
        if self.is_full() {
            return Err(Error::store_busy(
                "Too many subscriptions are at work",
                "groups_full",
            ));
        }
        let log = core.journal.log(tenant).await?;
        core.journal.refresh(&log).await?;
        let Some(acquired) = self.acquire(tenant, &settings).await? else {
            return match self.other_owner(&settings.id).await? {
                Some(owner) => Ok(Place::Elsewhere(owner)),
                // It was let go at this moment, unless it is gone.
                None => {
                    self.resolve(tenant, None, &settings.id).await?;
                    Err(moving("moved"))
                }
            };
        };
        let leasing = self.restore(&settings, &acquired).await?;
        let owns = (acquired.epoch, term);
        let group = Group::new(self.parts.clone(), log, settings, leasing, owns);
        self.add(&group);
        self.owe_no_more(&group.id);
        tokio::spawn(group.clone().drive(Arc::downgrade(self)));
        Ok(Place::Here(group))
    }

    /// Where a subscription is, as far as that is known without asking.
    fn known(&self, id: &str) -> Option<Place> {
        if let Some(group) = self.find(id) {
            return Some(Place::Here(group));
        }
        let owner = self.whereabouts.find(id, &self.parts.core.processes)?;
        Some(Place::Elsewhere(owner))
    }

    async fn acquire(&self, tenant: &TenantRef, settings: &Settings) -> Result<Option<Acquired>> {
        let (core, id) = (&self.parts.core, &*settings.id);
        let now = core.clock.now();
        let mut tx = core.db.begin().await?;
        let acquired = positions::acquire(&mut tx, tenant, id, &self.process, now).await?;
        if let Some(acquired) = &acquired {
            positions::used(&mut tx, id, now).await?;
            self.owe(id, acquired.epoch, &settings.product, &settings.name);
            tx.commit().await?;
        }
        Ok(acquired)
    }

    /// What the owner before has left.
    async fn restore(&self, settings: &Settings, acquired: &Acquired) -> Result<Leasing> {
        let core = &self.parts.core;
        let failed = EventDeliveryState::Failed.into();
        let held = positions::held(&core.db, &settings.id, failed).await?;
        let held: Vec<_> = held.into_iter().map(|(key, seq)| (Key(key), seq)).collect();
        let unsettled = leasing::unpack(&acquired.unsettled).map_err(Error::internal)?;
        let position = Position {
            floor: acquired.floor,
            cursor: acquired.cursor,
            replay_until: acquired.replay_until,
        };
        let rules = group::rules(settings, core);
        let ahead = seeks::exceptions_after(&core.db, &settings.id, position.cursor).await?;
        let ahead = ahead.into_iter().map(|one| one.seq).collect();
        let mut leasing = Leasing::new(rules, acquired.epoch, position, &unsettled, &held);
        leasing.know_ahead(ahead);
        Ok(leasing)
    }

    /// The live process, not this one, that has a subscription. Errors: `STORE_BUSY`.
    async fn other_owner(&self, id: &str) -> Result<Option<Arc<str>>> {
        let core = &self.parts.core;
        let owner = positions::owner(&core.db, id).await?;
        let Some(owner) = owner.filter(|owner| *owner != self.process) else {
            return Ok(None);
        };
        if core.processes.find(&owner).await?.is_none() {
            return Ok(None);
        }
        self.whereabouts.note(id, &owner);
        Ok(Some(owner.into()))
    }

    /// The other live processes that have the subscriptions of a name of these tenants, apart from
    /// those that are at work here. Errors: `STORE_BUSY`.
    pub(crate) async fn owners(
        &self,
        product: &str,
        name: &str,
        mut tenants: Vec<i64>,
    ) -> Result<HashMap<i64, Arc<str>>> {
        let core = &self.parts.core;
        tenants.retain(|tenant| self.find_named(*tenant, product, name).is_none());
        if tenants.is_empty() || !core.db.is_postgres() {
            return Ok(HashMap::new());
        }
        let mut others = HashMap::new();
        for (tenant, owner) in positions::owners(&core.db, product, name, &tenants).await? {
            // What a dead one had is nowhere.
            if owner != self.process && core.processes.find(&owner).await?.is_some() {
                others.insert(tenant, owner.into());
            }
        }
        Ok(others)
    }

    /// Puts a subscription to work and takes a place at it, if that is in this process. A call that
    /// another process passed on does not go by what was known before.
    ///
    /// Errors: `STORE_BUSY`, `SERVER_DRAINING`.
    pub(crate) async fn reach(
        self: &Arc<Self>,
        tenant: &TenantRef,
        settings: &Settings,
        forwarded: bool,
        mut takes_place: impl FnMut(&Arc<Group>) -> bool + Send,
    ) -> Result<Place> {
        if forwarded {
            self.whereabouts.forget(&settings.id);
        }
        loop {
            match self.open(tenant, settings.clone()).await? {
                // One that ends at this moment is opened again.
                Place::Here(group) if !takes_place(&group) => tokio::task::yield_now().await,
                place => return Ok(place),
            }
        }
    }

    /// Puts the subscription of a name to work that a tenant has, unless another process has it.
    /// None if the tenant has none. Errors: `STORE_BUSY`, `SERVER_DRAINING`.
    pub(crate) async fn open_named(
        self: &Arc<Self>,
        product: &str,
        name: &str,
        tenant: i64,
    ) -> Result<Option<Place>> {
        if let Some(group) = self.find_named(tenant, product, name) {
            return Ok(Some(Place::Here(group)));
        }
        let opened = async {
            let tenant = self.parts.core.tenancy.by_number(tenant).await?;
            let settings = self.resolve(&tenant, Some(product), name).await?;
            self.open(&tenant, settings).await
        };
        match opened.await {
            Ok(place) => Ok(Some(place)),
            // A lease of nobody.
            Err(error) if error.code() == tonic::Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
