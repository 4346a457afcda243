//! Hints between the processes on one PostgreSQL: "this log has grown to here".
//!
//! A hint is sent after the commit, by a connection of its own, for all logs together and at most
//! once per `Limits::notify_interval`. Nothing depends on it: a hint that is lost, late or off
//! costs the time until the heads are looked at anyway (`follow.rs`).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::PgPool;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::Notify;

use super::Journal;
use crate::error::Result;
use crate::storage::Db;
use crate::worker::Turn;

const CHANNEL: &str = "hub_heads";
/// Parameters: the channel, the text.
pub(super) const NOTIFY: &str = "select pg_notify($1, $2)";
/// PostgreSQL takes less than 8000 bytes.
const TEXT_BYTES_MAX: usize = 7_900;
/// Logs in memory that wait for the next hint; with more, the hint says "look at all".
const WAITING_MAX: usize = 1_000;
/// Says "look at all heads".
const ALL: &str = "*";
/// After so long without anything to do, a worker says that it lives.
const IDLE: Duration = Duration::from_secs(10);
/// Pause after the connection failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What waits to be told to the others.
pub(super) struct Hints {
    /// Tells own hints from those of others.
    process: String,
    /// One connection that tells, one that listens.
    pool: PgPool,
    grown: Mutex<Heads>,
    ready: Notify,
    interval: Duration,
}

/// Heads by tenant.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heads {
    by_tenant: BTreeMap<i64, u64>,
    all: bool,
}

impl Hints {
    /// `None` on SQLite, which has one process only, and if hints are off.
    pub(super) fn new(db: &Db, interval: Duration) -> Option<Hints> {
        let pool = db.postgres().filter(|_| !interval.is_zero())?;
        let connect = pool.connect_options().as_ref().clone();
        // A NOTIFY is a commit of its own; nothing is lost with it, so nobody waits for its sync.
        let connect = connect.application_name("hub hints");
        let connect = connect.options([("synchronous_commit", "off")]);
        Some(Hints {
            process: uuid::Uuid::new_v4().simple().to_string(),
            pool: PgPoolOptions::new()
                .max_connections(2)
                .connect_lazy_with(connect),
            grown: Mutex::default(),
            ready: Notify::new(),
            interval,
        })
    }

    /// A log has grown by a commit of this process.
    pub(super) fn grown(&self, tenant_no: i64, head: u64) {
        self.waiting().add(tenant_no, head);
        self.ready.notify_one();
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Heads> {
        self.grown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self) -> Result<(), sqlx::Error> {
        let heads = std::mem::take(&mut *self.waiting());
        if heads == Heads::default() {
            return Ok(());
        }
        sqlx::query(NOTIFY)
            .bind(CHANNEL)
            .bind(heads.text(&self.process))
            .execute(&self.pool)
            .await?;
        metrics::counter!("hub_journal_hints_sent_total").increment(1);
        Ok(())
    }
}

impl Heads {
    fn add(&mut self, tenant_no: i64, head: u64) {
        if self.all {
            return;
        }
        let known = self.by_tenant.entry(tenant_no).or_default();
        *known = head.max(*known);
        if self.by_tenant.len() > WAITING_MAX {
            *self = Heads {
                by_tenant: BTreeMap::new(),
                all: true,
            };
        }
    }

    fn text(&self, process: &str) -> String {
        let mut text = process.to_owned();
        for (tenant_no, head) in &self.by_tenant {
            // Writing to a String cannot fail.
            let _ = write!(text, " {tenant_no}:{head}");
        }
        if self.all || text.len() > TEXT_BYTES_MAX {
            return format!("{process} {ALL}");
        }
        text
    }

    /// Adds what another process told; what is not understood, of a later version say, means all.
    fn read(&mut self, text: &str, own: &str) {
        let mut words = text.split(' ');
        if words.next() == Some(own) {
            return;
        }
        for word in words {
            let pair = word.split_once(':');
            let pair = pair.and_then(|(no, head)| Some((no.parse().ok()?, head.parse().ok()?)));
            match pair {
                Some((tenant_no, head)) => self.add(tenant_no, head),
                None => self.all = true,
            }
        }
    }
}

/// Tells the others until it is stopped.
pub(super) async fn tell(hints: Arc<Hints>, turn: Turn) -> Result<()> {
    loop {
        tokio::select! {
            () = hints.ready.notified() => {}
            again = turn.pause(IDLE) => match again {
                true => {}
                false => return Ok(()),
            },
        }
        let mut pause = hints.interval;
        if let Err(error) = hints.send().await {
            tracing::debug!("a hint to the other processes was not sent: {error}");
            pause = RETRY_PAUSE;
        }
        turn.passed_for(IDLE);
        if !turn.pause(pause).await {
            return Ok(());
        }
    }
}

/// Listens to the others until it is stopped.
pub(super) async fn listen(journal: Weak<Journal>, hints: Arc<Hints>, turn: Turn) -> Result<()> {
    loop {
        if let Err(error) = listen_once(&journal, &hints, &turn).await {
            tracing::warn!("no hints from the other processes, heads are polled: {error}");
        }
        turn.passed_for(RETRY_PAUSE);
        if turn.stopped().is_cancelled() || !turn.pause(RETRY_PAUSE).await {
            return Ok(());
        }
    }
}

/// Listens until the connection is lost, or until it is to stop.
async fn listen_once(
    journal: &Weak<Journal>,
    hints: &Hints,
    turn: &Turn,
) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(&hints.pool).await?;
    listener.listen(CHANNEL).await?;
    // What was told before is known by looking.
    let mut heads = Heads {
        all: true,
        ..Heads::default()
    };
    loop {
        let Some(journal) = journal.upgrade() else {
            return Ok(());
        };
        if let Err(error) = journal.hinted(&heads.by_tenant, heads.all).await {
            tracing::debug!("the heads could not be read; they are polled: {error}");
        }
        drop(journal);
        turn.passed_for(IDLE);
        heads = Heads::default();
        tokio::select! {
            told = listener.try_recv() => match told? {
                Some(told) => heads.read(told.payload(), &hints.process),
                None => heads.all = true,
            },
            again = turn.pause(IDLE) => if !again { return Ok(()) },
        }
        // What came meanwhile is one look.
        while let Some(told) = listener.try_recv().now_or_never() {
            match told? {
                Some(told) => heads.read(told.payload(), &hints.process),
                None => heads.all = true,
            }
        }
        let told = heads.by_tenant.len() as u64;
        metrics::counter!("hub_journal_hints_received_total").increment(told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(pairs: &[(i64, u64)]) -> Heads {
        let mut heads = Heads::default();
        pairs.iter().for_each(|(no, head)| heads.add(*no, *head));
        heads
    }

    #[test]
    fn a_hint_tells_each_log_once_with_its_highest_head() {
        let told = heads(&[(7, 3), (0, 12), (7, 9), (7, 4)]);
        assert_eq!(told.text("one"), "one 0:12 7:9");
        let mut read = heads(&[(7, 2)]);
        read.read("one 0:12 7:9", "other");
        assert_eq!(read, told);
        read.read("other 8:1 *", "other");
        assert_eq!(read, told, "one's own hint is no news");
    }

    #[test]
    fn what_is_too_long_or_not_understood_means_all_logs() {
        let long: Vec<_> = (0..900).map(|no| (i64::MAX - no, u64::MAX >> 1)).collect();
        assert_eq!(heads(&long).text("one"), "one *");
        let many: Vec<_> = (0..2_000).map(|no| (no, 1)).collect();
        assert!(heads(&many).all && heads(&many).by_tenant.is_empty());
        for text in [
            "one *",
            "one later:version",
            "one 7:9 x",
            "one 7:-1",
            "one ",
        ] {
            let mut read = Heads::default();
            read.read(text, "other");
            assert!(read.all, "{text}");
        }
    }
}
