//! Random keys that every server of one database shares.

use crate::error::{Error, Result};
use crate::storage::{Db, Sql};

const FIND: Sql = Sql::same("select value from secrets where name = $1");
const INSERT: Sql =
    Sql::same("insert into secrets (name, value) values ($1, $2) on conflict (name) do nothing");

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[FIND, INSERT];

/// The key of this name, made by whoever asks first.
pub async fn load(db: &Db, name: &str) -> Result<[u8; 32]> {
    let mut fresh = [0; 32];
    getrandom::fill(&mut fresh).map_err(Error::internal)?;
    let value = keep(db, name, fresh.to_vec()).await?;
    value
        .try_into()
        .map_err(|_| Error::internal("a stored key has a wrong length"))
}

/// The value of this name: what is stored, or `fresh`, which is stored then.
pub async fn keep(db: &Db, name: &str, fresh: Vec<u8>) -> Result<Vec<u8>> {
    let mut tx = db.begin().await?;
    tx.query(INSERT)
        .bind(name.to_owned())
        .bind(fresh)
        .execute()
        .await?;
    let (value,): (Vec<u8>,) = tx.query(FIND).bind(name.to_owned()).one().await?;
    tx.commit().await?;
    Ok(value)
}
