//! Safe retry of a call by its `request_id`: done once, answered the same for 24 h.
//!
//! The mark is written in the transaction of the effect, so one is never without the other. It
//! holds the ids of what was made; the answer is built from them again. Secrets are not in it.

use prost::Message;
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::auth::Caller;
use crate::clock::{Micros, timestamp};
use crate::error::{CORE, Error, Result};
use crate::storage::{Sql, Tx};

/// How long a mark is kept, in microseconds: 24 h.
pub const KEPT: Micros = 24 * 3600 * 1_000_000;

/// Old marks that one call removes.
const SWEPT_MAX: i64 = 100;

// An old mark is taken over. Of two calls at once the second waits for the first to end.
const CLAIM: Sql = Sql::same(
    "insert into replays (key_id, method, request_id, request_hash, answer, create_time)
     values ($1, $2, $3, $4, '', $5)
     on conflict (key_id, method, request_id) do update
     set request_hash = excluded.request_hash, answer = '', create_time = excluded.create_time
     where replays.create_time <= $6",
);
const FIND: Sql = Sql::same(
    "select request_hash, answer, create_time from replays
     where key_id = $1 and method = $2 and request_id = $3",
);
const ANSWER: Sql = Sql::same(
    "update replays set answer = $4 where key_id = $1 and method = $2 and request_id = $3",
);
const SWEEP: Sql = Sql::each(
    "delete from replays where (key_id, method, request_id) in (
         select key_id, method, request_id from replays where create_time <= $1
         order by create_time limit $2)",
    "delete from replays where (key_id, method, request_id) in (
         select key_id, method, request_id from replays where create_time <= $1
         order by create_time limit $2 for update skip locked)",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[CLAIM, FIND, ANSWER, SWEEP];

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
    /// It was done; this is what [`Call::finish`] stored. Drop the transaction.
    Again(String),
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
    pub async fn begin(&self, tx: &mut Tx, now: Micros) -> Result<Begun> {
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
            tx.query(SWEEP)
                .bind(now - KEPT)
                .bind(SWEPT_MAX)
                .execute()
                .await?;
            return Ok(Begun::First);
        }
        let (hash, answer, first_used): (Vec<u8>, String, Micros) = tx
            .query(FIND)
            .bind(self.key_id.clone())
            .bind(self.method)
            .bind(self.request_id.clone())
            .one()
            .await?;
        if hash == self.request_hash {
            Ok(Begun::Again(answer))
        } else {
            Err(reused(&self.request_id, first_used))
        }
    }

    /// Stores what the answer is built from: ids, never a secret.
    pub async fn finish(&self, tx: &mut Tx, answer: &str) -> Result<()> {
        tx.query(ANSWER)
            .bind(self.key_id.clone())
            .bind(self.method)
            .bind(self.request_id.clone())
            .bind(answer.to_owned())
            .execute()
            .await?;
        Ok(())
    }
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
