//! Acks as they come in: to which lease of which subscription, and what became of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_proto::hub::event_bus::v1::{AckBatch, AckOutcome, AckResult};

use crate::group::{Group, Settling};
use crate::lease_id;
use crate::leasing::LeaseId;

/// Acks, nacks and extends of one batch together.
const BATCH_MAX: usize = 1000;

/// What one entry of a batch asks for.
type Asked = (String, Settling);

/// What became of a batch.
#[derive(Debug)]
pub(crate) struct Settled {
    /// In the order ack, nack, extend.
    pub(crate) results: Vec<AckResult>,
    /// The groups that were changed, and the generation to wait for.
    pub(crate) changed: Vec<(Arc<Group>, u64)>,
}

impl Settled {
    /// Waits until all of it is on disk. What never will be has to be sent again.
    pub(crate) async fn saved(mut self) -> Vec<AckResult> {
        for (group, generation) in &self.changed {
            if group.saved(*generation).await.is_ok() {
                continue;
            }
            let of_group = |text: &str| {
                let lease = lease_id::read(text);
                lease.is_some_and(|(tenant, _)| tenant == group.tenant.number())
            };
            for result in &mut self.results {
                if result.outcome() == AckOutcome::Ok && of_group(&result.lease_id) {
                    result.set_outcome(AckOutcome::Retry);
                }
            }
        }
        self.results
    }
}

/// In microseconds; what the contract allows fits.
pub(crate) fn length(duration: &prost_types::Duration) -> Micros {
    let seconds = duration.seconds.saturating_mul(1_000_000);
    seconds.saturating_add(i64::from(duration.nanos) / 1000)
}

/// Errors with `FIELD_INVALID` if a batch is too large.
pub(crate) fn check(batch: &AckBatch) -> Result<()> {
    let AckBatch { ack, nack, extend } = batch;
    if ack.len() + nack.len() + extend.len() > BATCH_MAX {
        return Err(Error::field("acks", "are more than 1000 together"));
    }
    Ok(())
}

/// The leases of a batch in its order: ack, nack, extend.
fn names(batch: &AckBatch) -> impl Iterator<Item = &String> {
    let nacks = batch.nack.iter().map(|nack| &nack.lease_id);
    let extends = batch.extend.iter().map(|extend| &extend.lease_id);
    batch.ack.iter().chain(nacks).chain(extends)
}

/// The same, to keep.
pub(crate) fn leases(batch: &AckBatch) -> Vec<String> {
    names(batch).cloned().collect()
}

/// Whether there is nothing in a batch.
pub(crate) fn is_empty(batch: &AckBatch) -> bool {
    names(batch).next().is_none()
}

/// Numbers of the tenants whose leases are in a batch, each once.
pub(crate) fn tenants(batch: &AckBatch) -> Vec<i64> {
    let tenants = names(batch).filter_map(|lease| Some(lease_id::read(lease)?.0));
    let tenants: BTreeSet<i64> = tenants.collect();
    tenants.into_iter().collect()
}

/// Adds what is in another batch.
pub(crate) fn append(batch: &mut AckBatch, other: AckBatch) {
    batch.ack.extend(other.ack);
    batch.nack.extend(other.nack);
    batch.extend.extend(other.extend);
}

/// The parts of a batch by where their leases are; the order within each stays.
pub(crate) fn split<P: Ord>(
    batch: AckBatch,
    mut place: impl FnMut(i64) -> Option<P>,
) -> BTreeMap<Option<P>, AckBatch> {
    let mut parts: BTreeMap<Option<P>, AckBatch> = BTreeMap::new();
    let mut place = |lease: &str| place(lease_id::read(lease)?.0);
    for lease in batch.ack {
        parts.entry(place(&lease)).or_default().ack.push(lease);
    }
    for nack in batch.nack {
        let part = parts.entry(place(&nack.lease_id)).or_default();
        part.nack.push(nack);
    }
    for extend in batch.extend {
        let part = parts.entry(place(&extend.lease_id)).or_default();
        part.extend.push(extend);
    }
    parts
}

/// The same outcome for all.
pub(crate) fn all(leases: Vec<String>, outcome: AckOutcome) -> Vec<AckResult> {
    let leases = leases.into_iter();
    leases.map(|lease| result(lease, outcome)).collect()
}

/// What a client hears that asked for no confirmation.
pub(crate) fn refused(mut results: Vec<AckResult>) -> Vec<AckResult> {
    results.retain(|result| result.outcome() != AckOutcome::Ok);
    results
}

/// The entries of a batch in their order. Errors: `FIELD_INVALID`.
pub(crate) fn read(batch: AckBatch) -> Result<Vec<Asked>> {
    check(&batch)?;
    let AckBatch { ack, nack, extend } = batch;
    let acks = ack.into_iter().map(|lease| (lease, Settling::Ack));
    let nacks = nack.into_iter().map(|nack| {
        let settling = Settling::Nack {
            action: nack.action(),
            after: nack.retry_after.as_ref().map(length),
            error: nack.error,
        };
        (nack.lease_id, settling)
    });
    let extends = extend.into_iter().map(|extend| {
        let duration = extend.duration.as_ref().map_or(0, length);
        (extend.lease_id, Settling::Extend(duration))
    });
    Ok(acks.chain(nacks).chain(extends).collect())
}

/// Applies a batch. `find` gives the group of a tenant, if its subscription is at work here.
pub(crate) fn settle(asked: Vec<Asked>, find: impl Fn(i64) -> Found) -> Settled {
    let mut settled = Settled {
        results: Vec::with_capacity(asked.len()),
        changed: Vec::new(),
    };
    let mut run: Option<(i64, Vec<(LeaseId, Settling)>)> = None;
    let mut names = Vec::new();
    for (text, settling) in asked {
        let Some((tenant, id)) = lease_id::read(&text) else {
            flush(&mut run, &mut names, &find, &mut settled);
            settled.results.push(result(text, AckOutcome::Unknown));
            continue;
        };
        if run.as_ref().is_some_and(|(other, _)| *other != tenant) {
            flush(&mut run, &mut names, &find, &mut settled);
        }
        let (_, ids) = run.get_or_insert_with(|| (tenant, Vec::new()));
        ids.push((id, settling));
        names.push(text);
    }
    flush(&mut run, &mut names, &find, &mut settled);
    settled
}

/// Where the leases of a tenant are.
#[derive(Clone)]
pub(crate) enum Found {
    /// At work here.
    Here(Arc<Group>),
    /// At work here no more; who has it next knows which of them were settled.
    Moving,
    /// There is no such subscription: its leases are over.
    Gone,
    /// Not of this caller.
    Foreign,
}

/// Entries of one tenant in a row are applied under one lock.
fn flush(
    run: &mut Option<(i64, Vec<(LeaseId, Settling)>)>,
    names: &mut Vec<String>,
    find: &impl Fn(i64) -> Found,
    settled: &mut Settled,
) {
    let Some((tenant, ids)) = run.take() else {
        return;
    };
    let outcomes = match find(tenant) {
        Found::Here(group) => {
            let (outcomes, generation) = group.settle(ids);
            let before = settled.changed.iter_mut();
            match before
                .into_iter()
                .find(|(other, _)| other.number == group.number)
            {
                Some((_, before)) => *before = generation,
                None => settled.changed.push((group, generation)),
            }
            outcomes
        }
        Found::Moving => vec![AckOutcome::Retry; ids.len()],
        Found::Gone => vec![AckOutcome::LeaseExpired; ids.len()],
        Found::Foreign => vec![AckOutcome::Unknown; ids.len()],
    };
    let results = names.drain(..).zip(outcomes);
    settled
        .results
        .extend(results.map(|(name, outcome)| result(name, outcome)));
}

fn result(lease_id: String, outcome: AckOutcome) -> AckResult {
    AckResult {
        lease_id,
        outcome: outcome.into(),
    }
}
