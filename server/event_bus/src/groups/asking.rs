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
use hub_proto::hub::event_bus::v1::EventDeliveryState;

use super::Groups;
use crate::forward;
use crate::leasing::{Phase, UnsettledState};
use crate::owners::{Asking, Known, Live, SEQS_MAX, Said, Wanted};
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
    /// The events of which it is asked where they stand.
    #[prost(uint64, repeated, tag = "2")]
    seqs: Vec<u64>,
    /// It is asked how the subscriptions are doing.
    #[prost(bool, tag = "3")]
    live: bool,
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
    /// Of the events that it has come to.
    #[prost(message, repeated, tag = "3")]
    states: Vec<State>,
}

/// Where an event stands. It is queued if it is unsettled and waits for nothing else.
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
    #[prost(uint64, tag = "7")]
    seq: u64,
    /// How it was settled; 0 = as what is stored says.
    #[prost(enumeration = "EventDeliveryState", optional, tag = "8")]
    settled: Option<i32>,
    /// When it was.
    #[prost(int64, optional, tag = "9")]
    time: Option<Micros>,
}

impl State {
    fn of(seq: u64, said: Said) -> State {
        let plain = State {
            seq,
            ..State::default()
        };
        let state = match said {
            Said::Unsettled(state) => state,
            Said::Passed => {
                return State {
                    settled: Some(EventDeliveryState::Unspecified.into()),
                    ..plain
                };
            }
            Said::Settled {
                state,
                attempts,
                error,
                time,
            } => {
                return State {
                    settled: Some(state.into()),
                    attempts,
                    error: Some(error),
                    time,
                    ..plain
                };
            }
        };
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
            ..plain
        }
    }

    fn told(self) -> (u64, Said) {
        let settled = self.settled.map(|_| self.settled());
        let said = match settled {
            Some(EventDeliveryState::Unspecified) => Said::Passed,
            Some(state) => Said::Settled {
                state,
                attempts: self.attempts,
                error: self.error.unwrap_or_default(),
                time: self.time,
            },
            None => Said::Unsettled(UnsettledState {
                phase: match (self.behind, self.due, self.until) {
                    (Some(behind), ..) => Phase::KeyBlocked { behind },
                    (_, Some(due), _) => Phase::RetryWait { due },
                    (.., Some(until)) => Phase::InFlight { until },
                    (None, None, None) => Phase::Queued,
                },
                attempts: self.attempts,
                error: self.error.map(Into::into),
                redelivery: self.redelivery,
            }),
        };
        (self.seq, said)
    }
}

/// Subscriptions under way to be known.
struct Search<'a> {
    asking: &'a Asking<'a>,
    wanted: Wanted<'a>,
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
        wanted: Wanted<'a>,
    ) -> Result<HashMap<String, Known>> {
        let tenant = asking.caller.tenant()?;
        let mut search = Search {
            asking,
            wanted,
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
    fn known_here(&self, tenant: &TenantRef, id: &str, wanted: Wanted<'_>) -> Option<Known> {
        let group = self.find(id)?;
        if group.tenant.number() != tenant.number() {
            return None;
        }
        let seqs = &wanted.seqs[..wanted.seqs.len().min(SEQS_MAX)];
        Some(Known::Told {
            live: match wanted.live {
                true => Box::new(group.live()?),
                false => Box::default(),
            },
            said: group.said(seqs)?,
        })
    }
}

impl<'a> Search<'a> {
    fn look_here(&mut self, groups: &Groups, tenant: &TenantRef) {
        let (wanted, known) = (self.wanted, &mut self.known);
        self.left
            .retain(|id| match groups.known_here(tenant, id, wanted) {
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
                calls.push(call(groups, self.asking.caller, owner, ids, self.wanted).boxed());
            }
        }
        for (owner, ids, told) in future::join_all(calls).await {
            let Some(told) = told else {
                self.asking.missed(&owner);
                self.left.extend(ids);
                continue;
            };
            for one in told.subscriptions {
                let told = Known::Told {
                    live: Box::new(one.live.unwrap_or_default()),
                    said: one.states.into_iter().map(State::told).collect(),
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
    wanted: Wanted<'_>,
) -> Answer<'a> {
    let asked = Asked {
        subscription_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        seqs: wanted.seqs.iter().copied().take(SEQS_MAX).collect(),
        live: wanted.live,
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
        let wanted = Wanted {
            live: asked.live,
            seqs: &asked.seqs,
        };
        let ids = asked.subscription_ids.into_iter().take(IDS_MAX);
        let told = ids.filter_map(|id| match self.groups.known_here(tenant, &id, wanted)? {
            Known::Told { live, said } => Some(One {
                subscription_id: id,
                live: asked.live.then_some(*live),
                states: said
                    .into_iter()
                    .map(|(seq, said)| State::of(seq, said))
                    .collect(),
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
        let mut all = vec![Said::Passed];
        for error in ["", "refused"] {
            for time in [None, Some(0), Some(7)] {
                all.push(Said::Settled {
                    state: EventDeliveryState::Failed,
                    attempts: 3,
                    error: error.to_owned(),
                    time,
                });
            }
        }
        for phase in [
            Phase::Queued,
            Phase::KeyBlocked { behind: 0 },
            Phase::RetryWait { due: 0 },
            Phase::InFlight { until: 7 },
        ] {
            for error in [None, Some("refused".into())] {
                all.push(Said::Unsettled(UnsettledState {
                    phase,
                    attempts: 3,
                    error,
                    redelivery: true,
                }));
            }
        }
        for said in all {
            assert_eq!(State::of(9, said.clone()).told(), (9, said));
        }
    }
}
