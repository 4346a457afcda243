//! Safe retry of a call by its `request_id`: done once, answered the same for 24 h, by every
//! process.
//!
//! The answer is stored in the transaction of the effect, so one is never without the other. A
//! secret in it is stored sealed, apart from the rest, and for 10 minutes only: later retries get
//! the answer without it.

use std::fmt;
use std::time::Duration;

use prost::Message;
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::auth::Caller;
use crate::clock::{Clock, Micros, timestamp};
use crate::error::{CORE, Error, Result};
use crate::sealing::Sealer;
use crate::storage::{Db, Sql, Tx};
use crate::worker::Workers;

/// How long an answer is kept, in microseconds: 24 h.
pub const KEPT: Micros = 24 * 3600 * 1_000_000;

/// How long the secret of an answer is kept, in microseconds: 10 min.
pub const SECRET_KEPT: Micros = 10 * 60 * 1_000_000;

/// By how much the first call may seem to come later than its retry, in microseconds: the clocks of
/// processes differ, and each reads its own before it waits for the other.
const CLOCK_DIFFERENCE: Micros = 60 * 1_000_000;

/// How often old answers and secrets are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// Rows that one statement of a sweep touches.
const SWEPT_MAX: i64 = 500;

// An old answer is taken over. Of two calls at once the second waits for the first to end.
const CLAIM: Sql = Sql::each(
    "insert into replays (key_id, method, request_id, request_hash, answer, create_time)
     values ($1, $2, $3, $4, x'', $5)
     on conflict (key_id, method, request_id) do update
     set request_hash = excluded.request_hash, answer = x'', secret = null,
         create_time = excluded.create_time
     where replays.create_time <= $6",
    "insert into replays (key_id, method, request_id, request_hash, answer, create_time)
     values ($1, $2, $3, $4, '', $5)
     on conflict (key_id, method, request_id) do update
     set request_hash = excluded.request_hash, answer = '', secret = null,
         create_time = excluded.create_time
     where replays.create_time <= $6",
);
const FIND: Sql = Sql::same(
    "select request_hash, answer, secret, create_time from replays
     where key_id = $1 and method = $2 and request_id = $3",
);
const ANSWER: Sql = Sql::same(
    "update replays set answer = $4, secret = $5
     where key_id = $1 and method = $2 and request_id = $3",
);
const REDACT: Sql = Sql::each(
    "update replays set secret = null where (key_id, method, request_id) in (
         select key_id, method, request_id from replays
         where secret is not null and create_time <= $1 order by create_time limit $2)",
    "update replays set secret = null where (key_id, method, request_id) in (
         select key_id, method, request_id from replays
         where secret is not null and create_time <= $1 order by create_time limit $2
         for update skip locked)",
);
const SWEEP: Sql = Sql::each(
    "delete from replays where (key_id, method, request_id) in (
         select key_id, method, request_id from replays where create_time <= $1
         order by create_time limit $2)",
    "delete from replays where (key_id, method, request_id) in (
         select key_id, method, request_id from replays where create_time <= $1
         order by create_time limit $2 for update skip locked)",
);

// Whether the two before have something to do: to find that out is all that an idle hub does.
const DUE: Sql = Sql::same(
    "select (select count(*) from (
            select 1 from replays where secret is not null and create_time <= $1 limit 1) s),
        (select count(*) from (select 1 from replays where create_time <= $2 limit 1) s)",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[CLAIM, FIND, ANSWER, REDACT, SWEEP, DUE];

/// A call that may be a retry.
#[derive(Debug, Clone)]
pub struct Call {
    key_id: String,
    method: &'static str,
    request_id: String,
    request_hash: [u8; 32],
}

/// What is known of a [`Call`].
#[derive(Debug, PartialEq, Eq)]
pub enum Begun {
    /// It comes for the first time: do the work, then [`Call::finish`].
    First,
    /// It was done; this was answered. Drop the transaction.
    Again(Answer),
}

/// What was answered before.
#[derive(PartialEq, Eq)]
pub struct Answer {
    /// The encoded message without its secret.
    pub message: Vec<u8>,
    /// Its secret; none if it has none, or 10 minutes later.
    pub secret: Option<String>,
}

impl Answer {
    /// The message, decoded.
    pub fn decode<M: Message + Default>(&self) -> Result<M> {
        M::decode(self.message.as_slice()).map_err(Error::internal)
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({} bytes)", self.message.len())
    }
}

/// What a call did: now, or when it came before.
#[derive(Debug)]
pub enum Done<T> {
    /// Just now.
    First(T),
    /// Before; answer this.
    Again(Answer),
}

impl<T> Done<T> {
    /// What was done just now.
    pub fn first(self) -> Option<T> {
        match self {
            Done::First(done) => Some(done),
            Done::Again(_) => None,
        }
    }
}

/// A call that may be a retry, and how its answer is written: encoded, without its secret.
pub struct Retry<'a, T: ?Sized> {
    /// The call.
    pub call: Call,
    /// Writes the answer that tells of what was made.
    pub message: &'a (dyn Fn(&T) -> Vec<u8> + Send + Sync),
}

impl Call {
    /// `None` without `request_id`. `request` is the message with its `request_id` cleared; the
    /// named tenant is part of it as well.
    pub fn new(
        caller: &Caller,
        method: &'static str,
        request_id: &str,
        request: &impl Message,
    ) -> Option<Self> {
        if request_id.is_empty() {
            return None;
        }
        let tenant = caller.tenant.as_ref().map_or(0, |tenant| tenant.number());
        let mut hash = Sha256::new();
        hash.update(tenant.to_be_bytes());
        // Maps are sorted, so equal requests are equal bytes.
        hash.update(request.encode_to_vec());
        Some(Call {
            key_id: caller.key_id.to_string(),
            method,
            request_id: request_id.to_ascii_lowercase(),
            request_hash: hash.finalize().into(),
        })
    }

    /// Marks the call as done by `tx`, or finds that it was. Errors: `REQUEST_ID_REUSED`.
    pub async fn begin(&self, tx: &mut Tx, sealer: &Sealer, now: Micros) -> Result<Begun> {
        let claimed = tx
            .query(CLAIM)
            .bind(self.key_id.clone())
            .bind(self.method)
            .bind(self.request_id.clone())
            .bind(self.request_hash.to_vec())
            .bind(now)
            .bind(now - KEPT)
            .execute()
            .await?;
        if claimed > 0 {
            return Ok(Begun::First);
        }
        type Row = (Vec<u8>, Vec<u8>, Option<Vec<u8>>, Micros);
        let (hash, message, sealed, first_used): Row = tx
            .query(FIND)
            .bind(self.key_id.clone())
            .bind(self.method)
            .bind(self.request_id.clone())
            .one()
            .await?;
        if hash != self.request_hash {
            return Err(reused(&self.request_id, first_used));
        }
        // The worker may be late: what is too old is not shown, also if it is still there.
        let shown = (-CLOCK_DIFFERENCE..SECRET_KEPT).contains(&(now - first_used));
        let secret = match sealed.filter(|_| shown) {
            Some(sealed) => Some(self.open(sealer, &sealed)?),
            None => None,
        };
        Ok(Begun::Again(Answer { message, secret }))
    }

    /// Stores the answer: the encoded message without its secret, and the secret by itself.
    pub async fn finish(
        &self,
        tx: &mut Tx,
        sealer: &Sealer,
        message: Vec<u8>,
        secret: Option<&str>,
    ) -> Result<()> {
        let seal = |secret: &str| sealer.seal(&self.context(), secret.as_bytes());
        tx.query(ANSWER)
            .bind(self.key_id.clone())
            .bind(self.method)
            .bind(self.request_id.clone())
            .bind(message)
            .bind(secret.map(seal).transpose()?)
            .execute()
            .await?;
        Ok(())
    }

    fn open(&self, sealer: &Sealer, sealed: &[u8]) -> Result<String> {
        let secret = sealer.open(&self.context(), sealed);
        let secret = secret.and_then(|secret| String::from_utf8(secret).ok());
        secret.ok_or_else(|| Error::internal("the secret of a stored answer does not open"))
    }

    /// What the secret is bound to.
    fn context(&self) -> Vec<u8> {
        format!(
            "replay\n{}\n{}\n{}",
            self.key_id, self.method, self.request_id
        )
        .into_bytes()
    }
}

/// Removes secrets after 10 minutes and answers after 24 h, as long as the workers run.
pub fn work(workers: &Workers, db: &Db, clock: &Clock) {
    let (db, clock) = (db.clone(), clock.clone());
    workers.every("replay-sweep", SWEEP_INTERVAL, move || {
        let (db, clock) = (db.clone(), clock.clone());
        async move { sweep(&db, clock.now()).await }
    });
}

async fn sweep(db: &Db, now: Micros) -> Result<()> {
    let due = db.query(DUE).bind(now - SECRET_KEPT).bind(now - KEPT);
    let (secrets, answers): (i64, i64) = due.one().await?;
    let sweeps = [(secrets, REDACT, SECRET_KEPT), (answers, SWEEP, KEPT)];
    for (_, sql, kept) in sweeps.into_iter().filter(|(due, _, _)| *due > 0) {
        loop {
            // Short transactions: on SQLite each holds the only writer.
            let mut tx = db.begin().await?;
            let touched = tx
                .query(sql)
                .bind(now - kept)
                .bind(SWEPT_MAX)
                .execute()
                .await?;
            tx.commit().await?;
            if touched < SWEPT_MAX.unsigned_abs() {
                break;
            }
        }
    }
    Ok(())
}

/// `REQUEST_ID_REUSED`.
fn reused(request_id: &str, first_used: Micros) -> Error {
    let first_used = timestamp(first_used);
    let message = format!(
        "The request_id {request_id} was used at {first_used} with another request. Use a new UUID."
    );
    Error::new(Code::AlreadyExists, CORE, "REQUEST_ID_REUSED", message)
        .with("requestId", request_id)
        .with("firstUsedAt", first_used)
}
