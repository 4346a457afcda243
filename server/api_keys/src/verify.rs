//! VerifyApiKey: one request to a product, decided from memory and counted if it is allowed.
//!
//! Invariants:
//! - The order is that of the contract: form, known, the steps of `decision.rs`, then the limits.
//!   Nothing is counted unless all before passed.
//! - A key that the caller may not verify is, for the caller, one that does not exist.
//! - Without the database, keys that were looked up are decided for as long as they are believed.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use hub_core::auth::{Caller, Origin};
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::id;
use hub_core::journal::TenantRef;
use hub_proto::credential::{Fault, NOT_WHOLE};
use metrics::Counter;

use crate::cache::Known;
use crate::decision::{self, Asked, Snapshot};
use crate::denials::Denial;
use crate::error;
use crate::key::{End, Record};
use crate::keys::Keys;
use crate::limits::{Denied, Left};
use crate::secret::Plaintext;
use crate::usage::ALLOWED;

/// How long a verifier may use a decision again while it watches the keys.
const CACHED_FOR: Duration = Duration::from_secs(5);
/// Seconds that are told to wait at most.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// A request to decide about.
pub(crate) struct Question {
    /// The key as presented.
    pub key: String,
    pub asked: Asked,
    /// Requests to count.
    pub cost: u32,
    /// Nothing is counted.
    pub dry_run: bool,
}

/// The decision.
pub(crate) struct Verdict {
    /// The key, if it is known to the caller.
    pub record: Option<Arc<Known>>,
    /// Why not; none = allowed.
    pub refusal: Option<Error>,
    /// Status that the product answers with.
    pub http_status: u32,
    /// The limit with the least left.
    pub left: Option<Left>,
    /// When a request that was too many fits again; none if it never does.
    pub retry_after: Option<Duration>,
    pub cache_for: Duration,
    pub epoch: u64,
    pub degraded: bool,
    pub call_id: String,
}

impl Keys {
    /// Decides about a request. Errors: `PRODUCT_NOT_FOUND`, `STORE_BUSY`.
    pub(crate) async fn verify(
        self: &Arc<Self>,
        caller: &Caller,
        question: &Question,
    ) -> Result<Verdict> {
        // Before anything is looked at: what is told has all changes up to here.
        let mut verdict = self.undecided(&caller.origin);
        match self.look_up(caller, &question.key).await? {
            Ok(record) => self.judge(caller, &record, question, &mut verdict).await?,
            Err(refusal) => {
                verdict.http_status = 401;
                verdict.refusal = Some(refusal);
            }
        }
        note(&verdict);
        Ok(verdict)
    }

    /// A request without one key that could be looked up.
    pub(crate) fn refused_unseen(&self, refusal: Error, origin: Origin) -> Verdict {
        let verdict = Verdict {
            http_status: 401,
            refusal: Some(refusal),
            ..self.undecided(&origin)
        };
        note(&verdict);
        verdict
    }

    fn undecided(&self, origin: &Origin) -> Verdict {
        Verdict {
            record: None,
            refusal: None,
            http_status: 200,
            left: None,
            retry_after: None,
            cache_for: Duration::ZERO,
            epoch: *self.epoch.borrow(),
            degraded: false,
            call_id: call_id(origin),
        }
    }

    /// The key that is presented, or why it is refused before anything of it is looked at.
    async fn look_up(&self, caller: &Caller, key: &str) -> Result<Result<Arc<Known>>> {
        if key.is_empty() {
            return Ok(Err(error::no_key(Fault::Missing)));
        }
        let Some(plaintext) = Plaintext::parse(key) else {
            return Ok(Err(error::no_key(NOT_WHOLE)));
        };
        let record = self.lookup.find(&plaintext.hash()).await?;
        let record = record.filter(|record| may_verify(caller, record));
        Ok(record.ok_or_else(error::not_recognized))
    }

    /// Everything that is decided of a key that is known.
    async fn judge(
        self: &Arc<Self>,
        caller: &Caller,
        record: &Arc<Known>,
        question: &Question,
        verdict: &mut Verdict,
    ) -> Result<()> {
        let now = self.core.clock.now();
        let tenant = record.caller.tenant.as_ref().or(caller.tenant.as_ref());
        let (products, usable) = self.core.tenancy.usable(tenant).await?;
        let product = products.require(&question.asked.product)?;
        let snapshot = Snapshot {
            record,
            product,
            products: &products,
            is_active: usable.is_none_or(|tenant| tenant.is_active(product.number)),
            now,
        };
        let decided = decision::decide(snapshot, &question.asked);
        let limits = self.limits(record, tenant).await;
        let dry_run = question.dry_run || decided.is_err();
        let taken = self.take(&limits, question.cost, dry_run).await;
        verdict.record = Some(record.clone());
        verdict.cache_for = cache_for(record, now);
        match (decided, taken.denied, &taken.left) {
            (Err(refusal), ..) => {
                verdict.http_status = 403;
                verdict.refusal = Some(refusal);
            }
            (Ok(()), Some(denied), Some(left)) => {
                verdict.http_status = product.rate_limited_status;
                verdict.cache_for = Duration::ZERO;
                let refusal = match denied {
                    Denied::For(wait) => {
                        let wait = wait.min(WAIT_MAX);
                        verdict.retry_after = Some(wait);
                        error::rate_limited(left, wait)
                    }
                    // However long it waits: it is told no time.
                    Denied::Never(limit) => error::over_limit(&limit, question.cost),
                };
                verdict.refusal = Some(refusal);
            }
            _ => verdict.degraded = taken.degraded,
        }
        verdict.left = taken.left;
        if !question.dry_run && question.cost > 0 {
            let outcome = verdict.refusal.as_ref().map_or(ALLOWED, Error::reason);
            self.usage.count(record, outcome, question.cost, now);
        }
        match &verdict.refusal {
            None if question.dry_run => {}
            None => self.usage.used(record, now),
            // Of a dry run too: it is asked in order to know why.
            Some(refusal) => {
                let denial = denial(question, refusal, &verdict.call_id, now);
                let named_tenant = caller.tenant.as_ref().map_or("", TenantRef::id);
                let named_tenant = named_tenant.to_owned();
                let denial = Denial {
                    named_tenant,
                    ..denial
                };
                self.denials.note(&record.caller, denial);
            }
        }
        Ok(())
    }
}

fn note(verdict: &Verdict) {
    // To find a counter by its name and label takes as long as much of the decision.
    static ALLOWED: LazyLock<Counter> = LazyLock::new(|| decisions("OK"));
    match &verdict.refusal {
        None => ALLOWED.increment(1),
        Some(refusal) => decisions(refusal.reason()).increment(1),
    }
}

fn decisions(outcome: &'static str) -> Counter {
    metrics::counter!("hub_key_decisions_total", "outcome" => outcome)
}

/// A key of a tenant verifies those of its tenant; one of no tenant all, or, if the call names a
/// tenant, those of that tenant and those of no tenant.
pub(crate) fn may_verify(caller: &Caller, record: &Record) -> bool {
    match (&caller.tenant, &record.caller.tenant) {
        (None, _) => true,
        (Some(asking), Some(of)) => asking == of,
        (Some(_), None) => caller.all_tenants,
    }
}

/// What is kept of a refusal.
fn denial(question: &Question, refusal: &Error, call_id: &str, now: Micros) -> Denial {
    let asked = &question.asked;
    let (_, action) = asked.scope.split_once(':').unwrap_or_default();
    let path = asked.path.split(['?', '#']).next();
    Denial {
        call_id: call_id.to_owned(),
        time: now,
        reason: refusal.reason().to_owned(),
        product: asked.product.clone(),
        action: action.to_owned(),
        host: asked.host.clone(),
        // Without its query, in which people put what is secret.
        path: path.unwrap_or_default().to_owned(),
        client_ip: asked.client.map(|ip| ip.to_string()).unwrap_or_default(),
        cost: question.cost,
        ..Denial::default()
    }
}

/// As long as nothing but a change, which is pushed, could make another decision.
fn cache_for(record: &Record, now: Micros) -> Duration {
    match record.end {
        Some(End::Expires(at)) if at > now => {
            CACHED_FOR.min(Duration::from_micros((at - now).unsigned_abs()))
        }
        _ => CACHED_FOR,
    }
}

/// The call itself names the decision; outside of a call it gets a name of its own.
fn call_id(origin: &Origin) -> String {
    match &*origin.call_id {
        "" => id::new("req"),
        known => known.to_owned(),
    }
}
