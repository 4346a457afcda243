//! How subscriptions at work are doing, wherever they are: what another process has at work it is
//! asked for, each process once and all at the same time.
//!
//! A subscription may move while it is asked for. Who is asked and does not have it says nothing of
//! it; then it is looked again who has it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::FutureExt;
use futures_util::future::{self, BoxFuture};
use hub_core::auth::Caller;
use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::journal::TenantRef;

use super::Groups;
use crate::forward;
use crate::leasing::{Phase, UnsettledState};
use crate::owners::{Asking, Known, Live};
use crate::store::progress;

/// Path of the call; of no contract, as that of a branch.
const PATH: &str = "/hub.internal.v1.AtWork/Ask";

/// How long another process may take to answer: it only looks into its memory.
const PATIENCE: Duration = Duration::from_secs(1);
/// Subscriptions that one call asks for.
const IDS_MAX: usize = 100;
/// How often those are asked who have what moved meanwhile.
const ROUNDS_MAX: usize = 2;

/// What is asked of another process.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Asked {
    #[prost(string, repeated, tag = "1")]
    subscription_ids: Vec<String>,
    /// The event of which it is asked where it stands.
    #[prost(uint64, optional, tag = "2")]
    seq: Option<u64>,
}

/// What it has at work of that.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Told {
    #[prost(message, repeated, tag = "1")]
    subscriptions: Vec<One>,
}

/// One subscription.
#[derive(Clone, PartialEq, prost::Message)]
struct One {
    #[prost(string, tag = "1")]
    subscription_id: String,
    #[prost(message, optional, tag = "2")]
    live: Option<Live>,
    /// Only if the event is not settled.
    #[prost(message, optional, tag = "3")]
    state: Option<State>,
}

/// Where an event stands. It is queued if it waits for nothing else.
#[derive(Clone, PartialEq, prost::Message)]
struct State {
    #[prost(uint64, optional, tag = "1")]
    behind: Option<u64>,
    /// When its retry is due.
    #[prost(int64, optional, tag = "2")]
    due: Option<Micros>,
    /// When its lease ends.
    #[prost(int64, optional, tag = "3")]
    until: Option<Micros>,
    #[prost(uint32, tag = "4")]
    attempts: u32,
    #[prost(string, optional, tag = "5")]
    error: Option<String>,
    #[prost(bool, tag = "6")]
    redelivery: bool,
}

impl State {
    fn of(state: UnsettledState) -> State {
        let (mut behind, mut due, mut until) = (None, None, None);
        match state.phase {
            Phase::Queued => {}
            Phase::KeyBlocked { behind: seq } => behind = Some(seq),
            Phase::RetryWait { due: time } => due = Some(time),
            Phase::InFlight { until: time } => until = Some(time),
        }
        State {
            behind,
            due,
            until,
            attempts: state.attempts,
            error: state.error.as_deref().map(str::to_owned),
            redelivery: state.redelivery,
        }
    }

    fn told(self) -> UnsettledState {
        let phase = match (self.behind, self.due, self.until) {
            (Some(behind), ..) => Phase::KeyBlocked { behind },
            (_, Some(due), _) => Phase::RetryWait { due },
            (.., Some(until)) => Phase::InFlight { until },
            (None, None, None) => Phase::Queued,
        };
        UnsettledState {
            phase,
            attempts: self.attempts,
            error: self.error.map(Into::into),
            redelivery: self.redelivery,
        }
    }
}

/// Subscriptions under way to be known.
struct Search<'a> {
    asking: &'a Asking<'a>,
    seq: Option<u64>,
    /// Those of which nothing is known yet.
    left: Vec<&'a str>,
    /// Who said that it does not have a subscription.
    denied: HashMap<&'a str, Arc<str>>,
    known: HashMap<String, Known>,
}

/// A process, what it is asked for, and what it says.
type Answer<'a> = (Arc<str>, Vec<&'a str>, Option<Told>);

impl Groups {
    /// Asks those who have subscriptions of the caller's tenant at work. Errors: `STORE_BUSY`.
    pub(super) async fn ask<'a>(
        &'a self,
        asking: &'a Asking<'a>,
        ids: &'a [&'a str],
        seq: Option<u64>,
    ) -> Result<HashMap<String, Known>> {
        let tenant = asking.caller.tenant()?;
        let mut search = Search {
            asking,
            seq,
            left: ids.to_vec(),
            denied: HashMap::new(),
            known: HashMap::new(),
        };
        search.look_here(self, tenant);
        if !self.parts.core.db.is_postgres() {
            // There are no other processes.
            return Ok(search.known);
        }
        for round in 0..=ROUNDS_MAX {
            let owners = search.owners(self, tenant).await?;
            if owners.is_empty() || round == ROUNDS_MAX {
                // It moves faster than one can ask.
                let moving = owners.into_values().flatten();
                let silent = moving.map(|id| (id.to_owned(), Known::Silent));
                search.known.extend(silent);
                break;
            }
            search.ask(self, owners).await;
        }
        Ok(search.known)
    }

    /// What is known here of a subscription of a tenant, if it is at work here.
    fn known_here(&self, tenant: &TenantRef, id: &str, seq: Option<u64>) -> Option<Known> {
        let group = self.find(id)?;
        if group.tenant.number() != tenant.number() {
            return None;
        }
        Some(Known::Told {
            live: Box::new(group.live()?),
            state: seq.and_then(|seq| group.state_of(seq)),
        })
    }
}

impl<'a> Search<'a> {
    fn look_here(&mut self, groups: &Groups, tenant: &TenantRef) {
        let (seq, known) = (self.seq, &mut self.known);
        self.left
            .retain(|id| match groups.known_here(tenant, id, seq) {
                Some(told) => {
                    known.insert((*id).to_owned(), told);
                    false
                }
                None => true,
            });
    }

    /// Who is to be asked, and for what. What is at work nowhere is left no more.
    async fn owners(
        &mut self,
        groups: &Groups,
        tenant: &TenantRef,
    ) -> Result<HashMap<Arc<str>, Vec<&'a str>>> {
        let core = &groups.parts.core;
        let mut asked: HashMap<Arc<str>, Vec<&'a str>> = HashMap::new();
        if self.left.is_empty() {
            return Ok(asked);
        }
        let owners = progress::owners(&core.db, tenant, &self.left).await?;
        if owners.values().any(|owner| *owner == groups.process) {
            // It may have come here since.
            self.look_here(groups, tenant);
        }
        let mut lives: HashMap<&str, bool> = HashMap::new();
        for id in std::mem::take(&mut self.left) {
            let Some(owner) = owners.get(id).filter(|owner| **owner != groups.process) else {
                continue;
            };
            if self
                .denied
                .get(id)
                .is_some_and(|denied| **denied == **owner)
            {
                continue;
            }
            let is_live = match lives.get(owner.as_str()) {
                Some(is_live) => *is_live,
                None => core.processes.find(owner).await?.is_some(),
            };
            lives.insert(owner, is_live);
            if is_live && self.asking.has_missed(owner) {
                self.known.insert(id.to_owned(), Known::Silent);
            } else if is_live {
                asked.entry(owner.as_str().into()).or_default().push(id);
            }
        }
        Ok(asked)
    }

    /// Asks all of them at the same time. What they do not tell of is left.
    async fn ask(&mut self, groups: &Groups, owners: HashMap<Arc<str>, Vec<&'a str>>) {
        let mut calls: Vec<BoxFuture<'_, Answer<'a>>> = Vec::new();
        for (owner, ids) in &owners {
            for ids in ids.chunks(IDS_MAX) {
                calls.push(call(groups, self.asking.caller, owner, ids, self.seq).boxed());
            }
        }
        for (owner, ids, told) in future::join_all(calls).await {
            let Some(told) = told else {
                self.asking.missed(&owner);
                self.left.extend(ids);
                continue;
            };
            for one in told.subscriptions {
                let Some(live) = one.live else { continue };
                let told = Known::Told {
                    live: Box::new(live),
                    state: one.state.map(State::told),
                };
                self.known.insert(one.subscription_id, told);
            }
            for id in ids {
                if !self.known.contains_key(id) {
                    self.denied.insert(id, owner.clone());
                    self.left.push(id);
                }
            }
        }
    }
}

/// Nothing is told if it does not answer in time.
async fn call<'a>(
    groups: &Groups,
    caller: &Caller,
    owner: &Arc<str>,
    ids: &[&'a str],
    seq: Option<u64>,
) -> Answer<'a> {
    let asked = Asked {
        subscription_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        seq,
    };
    let calling = forward::unary::<_, Told>(&groups.parts.core, owner, caller, PATH, asked);
    let told = match tokio::time::timeout(PATIENCE, calling).await {
        Ok(Ok(told)) => Some(told),
        Ok(Err(failed)) => {
            tracing::debug!(%owner, "it is not known how subscriptions are doing: {failed:?}");
            None
        }
        Err(_) => {
            tracing::debug!(%owner, "a process does not say how its subscriptions are doing");
            None
        }
    };
    (owner.clone(), ids.to_vec(), told)
}

/// Answers those calls.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) groups: Arc<Groups>,
}

impl Service {
    /// Its route.
    pub(crate) fn router(self) -> Router {
        forward::serve(PATH, move |caller: Caller, asked| {
            let service = self.clone();
            async move { Ok(service.tell(caller.tenant()?, asked)) }
        })
    }

    /// What is at work here of what is asked for.
    fn tell(&self, tenant: &TenantRef, asked: Asked) -> Told {
        let ids = asked.subscription_ids.into_iter().take(IDS_MAX);
        let told = ids.filter_map(|id| match self.groups.known_here(tenant, &id, asked.seq)? {
            Known::Told { live, state } => Some(One {
                subscription_id: id,
                live: Some(*live),
                state: state.map(State::of),
            }),
            Known::Silent => None,
        });
        Told {
            subscriptions: told.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_an_event_stands_is_told_as_it_is() {
        for phase in [
            Phase::Queued,
            Phase::KeyBlocked { behind: 0 },
            Phase::RetryWait { due: 0 },
            Phase::InFlight { until: 7 },
        ] {
            for error in [None, Some("refused".into())] {
                let state = UnsettledState {
                    phase,
                    attempts: 3,
                    error,
                    redelivery: true,
                };
                assert_eq!(State::of(state.clone()).told(), state);
            }
        }
    }
}
