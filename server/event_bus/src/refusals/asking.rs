//! What all processes refused of late: each remembers its own, and is asked for them by who looks
//! for an event, all at the same time.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::future;
use hub_core::auth::Caller;
use hub_core::clock::Micros;
use hub_core::error::Result;
use hub_core::module::Core;

use super::{OF_TENANT_MAX, Refusal, Why};
use crate::forward;
use crate::routing::Configurations;

/// Path of the call; of no contract, as that of a branch.
const PATH: &str = "/hub.internal.v1.Refusals/List";
/// How long another process may take to answer: it only looks into its memory.
const PATIENCE: Duration = Duration::from_secs(1);
/// Processes that one call asks; more count as silent.
const ASKED_MAX: usize = 64;

/// What is asked of another process: what it refused of the caller's tenant.
#[derive(Clone, PartialEq, prost::Message)]
struct Asked {
    #[prost(int64, tag = "1")]
    from: Micros,
    #[prost(int64, tag = "2")]
    to: Micros,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Told {
    /// The newest first.
    #[prost(message, repeated, tag = "1")]
    refusals: Vec<One>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct One {
    #[prost(string, tag = "1")]
    product: String,
    #[prost(string, tag = "2")]
    kind: String,
    #[prost(string, tag = "3")]
    subject: String,
    #[prost(int64, tag = "4")]
    time: Micros,
    /// If it was refused.
    #[prost(string, tag = "5")]
    reason: String,
    #[prost(string, tag = "6")]
    message: String,
    /// The first event, if its source and id were used before.
    #[prost(uint64, optional, tag = "7")]
    first: Option<u64>,
    #[prost(bool, tag = "8")]
    same: bool,
}

/// What the processes say.
pub(crate) struct Heard {
    /// The newest first.
    pub(crate) refusals: Vec<Refusal>,
    /// Processes that did not answer.
    pub(crate) silent: usize,
}

/// What was refused of the caller's tenant within a time, at all processes.
pub(crate) async fn all(
    core: &Core,
    configurations: &Configurations,
    caller: &Caller,
    (from, to): (Micros, Micros),
) -> Result<Heard> {
    let tenant = caller.tenant()?;
    let mut refusals = configurations.refusals().between(tenant, from, to);
    let peers = core.processes.watch().borrow().clone();
    let asked = peers.keys().take(ASKED_MAX).map(async |process_id| {
        let calling = ask(core, caller, process_id, Asked { from, to });
        tokio::time::timeout(PATIENCE, calling).await.ok().flatten()
    });
    let answers = future::join_all(asked).await;
    let mut silent = peers.len() - answers.len();
    for told in answers {
        let Some(told) = told else {
            silent += 1;
            continue;
        };
        let told = told.refusals.into_iter().take(OF_TENANT_MAX);
        refusals.extend(told.map(|one| one.read(tenant.number())));
    }
    refusals.sort_by_key(|refusal| Reverse(refusal.time));
    Ok(Heard { refusals, silent })
}

async fn ask(core: &Core, caller: &Caller, process_id: &Arc<str>, asked: Asked) -> Option<Told> {
    let answered = forward::unary::<_, Told>(core, process_id, caller, PATH, asked).await;
    let note = |failed: &_| {
        tracing::debug!(%process_id, "it is not known what a process refused: {failed:?}");
    };
    answered.inspect_err(note).ok()
}

/// Answers those calls.
pub(crate) fn router(configurations: Configurations) -> Router {
    forward::serve(PATH, move |caller: Caller, asked: Asked| {
        let configurations = configurations.clone();
        async move {
            let refusals = configurations.refusals();
            let mine = refusals.between(caller.tenant()?, asked.from, asked.to);
            Ok(Told {
                refusals: mine.into_iter().map(One::of).collect(),
            })
        }
    })
}

impl One {
    fn of(refusal: Refusal) -> One {
        let plain = One {
            product: refusal.product,
            kind: refusal.kind,
            subject: refusal.subject,
            time: refusal.time,
            ..One::default()
        };
        match refusal.why {
            Why::Refused { reason, message } => One {
                reason,
                message,
                ..plain
            },
            Why::Repeated { seq, same } => One {
                first: Some(seq),
                same,
                ..plain
            },
        }
    }

    fn read(self, tenant_no: i64) -> Refusal {
        Refusal {
            tenant_no,
            product: self.product,
            kind: self.kind,
            subject: self.subject,
            time: self.time,
            why: match self.first {
                Some(seq) => Why::Repeated {
                    seq,
                    same: self.same,
                },
                None => Why::Refused {
                    reason: self.reason,
                    message: self.message,
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_as_it_is() {
        let refused = Why::Refused {
            reason: "EVENT_INVALID".to_owned(),
            message: "source is required".to_owned(),
        };
        let repeated = |same| Why::Repeated { seq: 0, same };
        for why in [refused, repeated(true), repeated(false)] {
            let refusal = Refusal {
                tenant_no: 7,
                product: "psa".to_owned(),
                kind: "ticket.created".to_owned(),
                subject: "ticket/42".to_owned(),
                time: 5,
                why,
            };
            assert_eq!(One::of(refusal.clone()).read(7), refusal);
        }
    }
}
