//! The place of an opened stream: at one subscription, or at those of one name of all tenants.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use hub_core::auth::Caller;
use hub_core::error::Result;
use hub_core::module::Core;
use hub_proto::hub::event_bus::v1::{AckBatch, ConsumeOpen};

use crate::acks::{self, Found};
use crate::branch::{Branches, Enter, Left};
use crate::group::Group;
use crate::groups::Groups;
use crate::hall::Hall;
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
                None => Found::Moving,
            },
        }
    }

    /// The name that those of all tenants have; empty for one.
    pub(super) fn name(&self) -> &str {
        match &self.at {
            At::One(_) => "",
            At::All(all) => &all.name,
        }
    }

    /// Whether everything of all tenants that has something to do was found.
    pub(super) fn is_sure(&self) -> bool {
        match &self.at {
            At::One(_) => false,
            At::All(all) => all.hall.has_looked(all.doubt),
        }
    }

    /// Whether everything of all tenants is settled, and the consumer does not know.
    pub(super) fn all_caught_up(&mut self) -> bool {
        match &mut self.at {
            At::One(_) => false,
            At::All(all) => all.caught_up(),
        }
    }

    /// Whether other processes have not yet said what became of acks.
    pub(super) fn owes_answers(&self) -> bool {
        match &self.at {
            At::One(_) => false,
            At::All(all) => all.branches.owe_answers(),
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
    hall: Arc<Hall>,
    /// A subscription may be at work nowhere until this look has found it.
    doubt: u64,
    /// The branches are to say again how they are, once that is so: it may be at work there.
    ask_again: bool,
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
        let hall = groups.enter(&product, &open.subscription, seat);
        Ok(All {
            doubt: hall.asked(),
            hall,
            ask_again: true,
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
        self.doubts();
    }

    /// One of this process is caught up, or has left so.
    pub(super) fn is_settled(&mut self, group: &Group) {
        self.behind.remove(&group.number);
    }

    /// A subscription moves: until it was looked for, it may be at work nowhere.
    fn doubts(&mut self) {
        self.doubt = self.hall.look_again();
        (self.ask_again, self.told) = (true, false);
    }

    /// True if everything is settled and the consumer does not know.
    pub(super) fn caught_up(&mut self) -> bool {
        if self.told || !self.behind.is_empty() || !self.hall.has_looked(self.doubt) {
            return false;
        }
        if std::mem::take(&mut self.ask_again) {
            self.branches.ask_again();
        }
        self.told = self.branches.are_caught_up();
        self.told
    }

    /// Another process let a subscription go.
    pub(super) fn was_left(&mut self, left: &Left) {
        let (tenant, id) = (left.tenant, &left.subscription_id);
        // Else it is one that is not known.
        if !id.is_empty() {
            self.groups.was_left(&self.product, &self.name, tenant, id);
        }
        if left.behind {
            self.doubts();
        }
    }

    /// A process has gone, or a branch to it has ended: what was at work there may be free.
    pub(super) fn has_lost(&mut self, process_id: &str) {
        self.groups.has_lost(process_id);
        self.doubts();
    }

    /// Passes acks on to the processes that have the leases, and sorts the others.
    /// Errors: `FIELD_INVALID`.
    pub(super) fn pass_on(&mut self, batch: AckBatch) -> Result<Sorted> {
        acks::check(&batch)?;
        let tenants = acks::tenants(&batch).into_iter();
        let elsewhere = tenants.filter(|tenant| self.find(*tenant).is_none());
        let elsewhere: HashMap<i64, Option<Arc<str>>> = elsewhere
            .map(|tenant| (tenant, self.branches.holder(tenant).cloned()))
            .collect();
        if elsewhere.is_empty() {
            let nowhere = AckBatch::default();
            return Ok(Sorted {
                here: batch,
                nowhere,
            });
        }
        let mut parts = acks::split(batch, |tenant| elsewhere.get(&tenant).cloned());
        let here = parts.remove(&None).unwrap_or_default();
        let mut nowhere = AckBatch::default();
        for (holder, part) in parts {
            // Those of a branch that has ended are nowhere, too.
            let left = match holder.flatten() {
                Some(process_id) => self.branches.settle(&process_id, part),
                None => Some(part),
            };
            if let Some(part) = left {
                acks::append(&mut nowhere, part);
            }
        }
        Ok(Sorted { here, nowhere })
    }
}

/// Acks that were not passed on.
pub(super) struct Sorted {
    /// Of subscriptions that are at work here.
    pub(super) here: AckBatch,
    /// Of those that were, or that another process let go: they may be at work anywhere now.
    pub(super) nowhere: AckBatch,
}
