//! The place of an opened stream: at one subscription, or at those of one name of all tenants.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use hub_core::auth::Caller;
use hub_core::error::Result;
use hub_core::module::Core;
use hub_proto::hub::event_bus::v1::{AckBatch, ConsumeOpen};

use crate::acks::{self, Found};
use crate::branch::{Branches, Enter};
use crate::group::Group;
use crate::groups::Groups;
use crate::seat::Seat;

/// A place; it is given up when this is dropped.
pub(super) struct Taken {
    pub(super) seat: Arc<Seat>,
    pub(super) at: At,
    pub(super) credit: (i64, i64),
    pub(super) confirm_acks: bool,
}

/// Where.
pub(super) enum At {
    /// At one subscription of this process.
    One(Arc<Group>),
    /// At those of one name of all tenants.
    All(Box<All>),
}

impl Drop for Taken {
    fn drop(&mut self) {
        match &self.at {
            At::One(group) => group.leave(&self.seat),
            At::All(all) => all.groups.go(&all.product, &all.name, &self.seat),
        }
    }
}

impl Taken {
    /// Newest position, and the settled one; both 0 for all tenants, who have no common one.
    pub(super) fn progress(&self) -> (u64, u64) {
        match &self.at {
            At::One(group) => group.progress(),
            At::All(_) => (0, 0),
        }
    }

    /// Where the leases of a tenant are.
    pub(super) fn find(&self, tenant: i64) -> Found {
        match &self.at {
            At::One(group) if group.tenant.number() == tenant => Found::Here(group.clone()),
            At::One(_) => Found::Foreign,
            At::All(all) => match all.find(tenant) {
                Some(group) => Found::Here(group),
                None => Found::Gone,
            },
        }
    }

    /// Gives turns to other processes, unless it is the turn of those who wait here.
    pub(super) fn give_turns(&mut self) {
        let At::All(all) = &mut self.at else { return };
        let here = self.seat.waiting() > 0;
        while !(here && all.here_next) && all.branches.give_turn(here) {
            all.here_next = true;
        }
    }
}

/// The subscriptions of one name of all tenants: those that are at work here, and branches to those
/// that are at work in other processes.
pub(super) struct All {
    groups: Arc<Groups>,
    product: Arc<str>,
    name: String,
    pub(super) branches: Branches,
    /// Those of this process that have more than was delivered, as far as they said.
    behind: HashSet<u64>,
    /// The consumer was told that everything is settled.
    told: bool,
    /// Others had a turn since one of this process had.
    here_next: bool,
}

impl All {
    /// Takes a place at them.
    pub(super) fn enter(
        core: &Core,
        groups: &Arc<Groups>,
        caller: &Caller,
        open: &ConsumeOpen,
        seat: &Arc<Seat>,
    ) -> Result<All> {
        crate::pull::is_name(&open.subscription)?;
        let product = caller.product()?.clone();
        let enter = Enter {
            name: open.subscription.clone(),
            member: seat.name.clone(),
            confirm_acks: open.confirm_acks,
        };
        groups.enter(&product, &open.subscription, seat);
        Ok(All {
            groups: groups.clone(),
            product,
            name: open.subscription.clone(),
            branches: Branches::new(core, caller, enter, seat),
            behind: HashSet::new(),
            told: false,
            here_next: false,
        })
    }

    fn find(&self, tenant: i64) -> Option<Arc<Group>> {
        self.groups.find_named(tenant, &self.product, &self.name)
    }

    /// One of this process gave events.
    pub(super) fn gave(&mut self, group: &Group) {
        if !group.is_caught_up() {
            self.fell_behind(group);
        }
    }

    /// One of this process was served.
    pub(super) fn had_turn(&mut self) {
        self.here_next = false;
    }

    /// One of this process has more than it may deliver.
    pub(super) fn fell_behind(&mut self, group: &Group) {
        self.behind.insert(group.number);
        self.told = false;
    }

    /// So has one of another process.
    pub(super) fn fell_behind_elsewhere(&mut self) {
        self.told = false;
    }

    /// One of this process has left before it was caught up.
    pub(super) fn has_left(&mut self, group: &Group) {
        self.behind.remove(&group.number);
        self.told = false;
    }

    /// One of this process is caught up, or has left. True if the consumer is to be told that
    /// everything is settled.
    pub(super) fn is_settled(&mut self, group: &Group) -> bool {
        self.behind.remove(&group.number);
        self.caught_up()
    }

    /// True if everything is settled and the consumer does not know.
    pub(super) fn caught_up(&mut self) -> bool {
        let news = self.behind.is_empty() && self.branches.are_caught_up() && !self.told;
        self.told |= news;
        news
    }

    /// Another process let a subscription go.
    pub(super) fn was_left(&self, tenant: i64, subscription_id: &str) {
        self.groups
            .was_left(&self.product, &self.name, tenant, subscription_id);
    }

    /// A branch has ended: what was at work there may be free.
    pub(super) fn has_lost(&self, process_id: &str) {
        self.groups
            .look_again(&self.product, &self.name, process_id);
    }

    /// Passes acks on to the processes that have the leases; returns those that are for this one.
    /// Errors: `FIELD_INVALID`.
    pub(super) fn pass_on(&mut self, batch: AckBatch) -> Result<AckBatch> {
        acks::check(&batch)?;
        if self.branches.is_empty() {
            return Ok(batch);
        }
        let mut known: HashMap<i64, Option<Arc<str>>> = HashMap::new();
        let mut parts = acks::split(batch, |tenant| {
            let find = || match self.find(tenant) {
                Some(_) => None,
                None => self.branches.holder(tenant).cloned(),
            };
            known.entry(tenant).or_insert_with(find).clone()
        });
        let mut here = parts.remove(&None).unwrap_or_default();
        for (process_id, part) in parts {
            let Some(process_id) = process_id else {
                continue;
            };
            // Those of a branch that has ended are void, as the answer from here will say.
            if let Some(part) = self.branches.settle(&process_id, part) {
                here.ack.extend(part.ack);
                here.nack.extend(part.nack);
                here.extend.extend(part.extend);
            }
        }
        Ok(here)
    }
}
