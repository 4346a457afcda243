//! Asks the other processes, by way of the database, for portions of limits (PostgreSQL).
//!
//! One transaction at a time for this process, for many subjects; whoever waits for the same
//! subject waits for one answer. If the database does not answer in time, requests are let through
//! by what this process knows, and the answer says `degraded`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hub_core::error::{Error, Result};
use hub_core::worker::Turn;
use tokio::time::timeout;

use crate::keys::Keys;
use crate::limits::{Attempt, Limit, Subject, Taken};
use crate::portions::{Ask, Settled, Standings};
use crate::store::standings;

/// Subjects that one transaction settles.
const SUBJECTS_MAX: usize = 64;
/// How often a request asks before it is decided by what is known here.
const ATTEMPTS_MAX: u32 = 100;
/// Transactions that are tried while other processes begin to count the same subjects.
const TRANSACTIONS_MAX: u32 = 8;
/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause between two looks for portions that have ended.
const ROUND: Duration = Duration::from_millis(500);

impl Keys {
    /// Counts `cost` requests against all limits, or denies them; with `dry_run` it only tells.
    pub(crate) async fn take(
        self: &Arc<Self>,
        limits: &[Limit],
        cost: u32,
        dry_run: bool,
    ) -> Taken {
        let clock = &self.core.clock;
        for _ in 0..ATTEMPTS_MAX {
            match self.limiter.take(limits, cost, dry_run, clock.now()) {
                Attempt::Decided(taken) => return taken,
                Attempt::Asks(asks) => {
                    self.begin_settling();
                    for mut ask in asks {
                        // It says nothing: it ends.
                        let _ = ask.changed().await;
                    }
                }
            }
        }
        self.limiter.take_here(limits, cost, dry_run, clock.now())
    }

    /// Sees to it that what waits is settled, whoever of those that wait goes away.
    fn begin_settling(self: &Arc<Self>) {
        let keys = self.clone();
        tokio::spawn(async move {
            // Who comes meanwhile finds everything done, or does the rest.
            let _turn = keys.settling.lock().await;
            keys.settle_waiting().await;
        });
    }

    async fn settle_waiting(&self) {
        while self.settle_next().await {}
    }

    /// One transaction; false if nothing waits for one.
    pub(crate) async fn settle_next(&self) -> bool {
        let mut landing = self.landing(SUBJECTS_MAX);
        if landing.asks.is_empty() {
            return false;
        }
        let settled = timeout(PATIENCE, self.settle(&landing.asks)).await;
        match settled.unwrap_or_else(|_| Err(busy("limits_late"))) {
            Ok(Some(settled)) => landing.land(settled),
            Ok(None) => failed(&busy("limits_contended")),
            Err(error) => {
                failed(&error);
                // Nor are the others that wait: they would fail one transaction after the other.
                drop(self.landing(usize::MAX));
            }
        }
        true
    }

    fn landing(&self, subjects_max: usize) -> Landing<'_> {
        Landing {
            keys: self,
            asks: self.limiter.begin(subjects_max, self.core.clock.now()),
        }
    }

    /// Nothing, if other processes began to count the same subjects each time.
    async fn settle(&self, asks: &[(Subject, Ask)]) -> Result<Option<HashMap<Subject, Settled>>> {
        for _ in 0..TRANSACTIONS_MAX {
            if let Some(settled) = self.try_settle(asks).await? {
                return Ok(Some(settled));
            }
        }
        Ok(None)
    }

    /// Nothing, if another process began to count one of the subjects at the same time.
    async fn try_settle(
        &self,
        asks: &[(Subject, Ask)],
    ) -> Result<Option<HashMap<Subject, Settled>>> {
        let core = &self.core;
        let processes = core.processes.watch().borrow().len() + 1;
        let names: Vec<String> = asks.iter().map(|(subject, _)| subject.name()).collect();
        let mut tx = core.db.begin().await?;
        let mut rows = standings::lock(&mut tx, &names).await?;
        // After the rows are locked: who locked them before counted before.
        let now = core.clock.now();
        let mut settled = HashMap::with_capacity(asks.len());
        let mut changed = Vec::with_capacity(asks.len());
        for ((subject, ask), name) in asks.iter().zip(names) {
            let row = rows.remove(&name);
            let mut all = match &row {
                Some(text) => Standings::read(text).map_err(Error::internal)?,
                None => Standings::default(),
            };
            let told = all.settle(core.processes.id(), ask, processes, now);
            settled.insert(subject.clone(), told);
            changed.push((name, row.is_some(), all.write()));
        }
        if !standings::put(&mut tx, &mut changed, now).await? {
            return Ok(None);
        }
        tx.commit().await?;
        Ok(Some(settled))
    }
}

/// Subjects that are asked about: however that ends, nobody waits for them any more.
struct Landing<'a> {
    keys: &'a Keys,
    asks: Vec<(Subject, Ask)>,
}

impl Landing<'_> {
    fn land(&mut self, mut settled: HashMap<Subject, Settled>) {
        let now = self.keys.core.clock.now();
        for (subject, ask) in self.asks.drain(..) {
            let settled = settled.remove(&subject);
            self.keys.limiter.land(&subject, &ask, settled, now);
        }
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.land(HashMap::new());
    }
}

/// Gives back portions that have ended, until it is stopped; then all.
pub(crate) async fn run(keys: Arc<Keys>, turn: Turn) -> Result<()> {
    loop {
        let more = turn.pause(ROUND).await;
        keys.limiter.give_back(!more, keys.core.clock.now());
        {
            let _turn = keys.settling.lock().await;
            keys.settle_waiting().await;
        }
        if !more {
            return Ok(());
        }
        turn.passed_for(ROUND);
    }
}

fn failed(error: &Error) {
    metrics::counter!("hub_rate_settlements_failed_total").increment(1);
    tracing::warn!("limits are not shared with other processes now: {error}");
}

fn busy(cause: &'static str) -> Error {
    Error::store_busy("The limits could not be settled", cause)
}
