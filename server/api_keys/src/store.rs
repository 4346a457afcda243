//! All statements about keys. Tenant 0, the hub itself, owns the keys that serve all tenants.

use std::collections::BTreeMap;

use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::journal::TenantRef;
use hub_core::storage::{Db, Migrations, Sql, Tx};

pub(crate) mod denials;
pub(crate) mod followers;
pub(crate) mod limits;
pub(crate) mod standings;
pub(crate) mod usage;

use crate::key::{Key, Revocation};
use crate::secret::plaintext::Hash;

/// Keys of a product that are looked through, the newest first.
const OF_PRODUCT_MAX: i64 = 1000;
/// Keys of a family that work at once and are looked at, the newest first: so many rotations in the
/// 30 days of the longest grace are none of people.
const OF_FAMILY_MAX: i64 = 1000;
/// Keys that one statement looks up.
pub const LOOKED_UP_MAX: usize = 32;
/// Greater than every id.
const AFTER_ALL_IDS: &str = "key~";

/// The columns of [`Row`].
macro_rules! columns {
    () => {
        "key_id, tenant_no, tenant_id, product, hash, hint, name, scopes, cidrs, labels, \
         requests_per_minute, expire_time, create_time, update_time, created_by, revoke_time, \
         revoked_by, revoke_reason, revoke_epoch, successor_id, version, family, \
         (select u.use_time from key_uses u where u.key_id = api_keys.key_id) as last_use_time, \
         coalesce((select l.requests_per_minute from tenant_rate_limits l \
           where l.tenant_no = api_keys.tenant_no), 0) as tenant_limit"
    };
}

const INSERT: Sql = Sql::same(
    "insert into api_keys (key_id, tenant_no, tenant_id, product, hash, hint, name, scopes, cidrs,
       labels, requests_per_minute, expire_time, create_time, created_by, family, version)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 1)",
);
// A constant text on both databases; what is not needed repeats the first.
const BY_HASHES: Sql = Sql::same(concat!(
    "select ",
    columns!(),
    " from api_keys where hash in ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
        $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32)"
));
const BY_ID: Sql = Sql::same(concat!(
    "select ",
    columns!(),
    " from api_keys where key_id = $1"
));
const FIND: Sql = Sql::same(concat!(
    "select ",
    columns!(),
    " from api_keys where tenant_no = $1 and key_id = $2"
));
const WORKING_OF_FAMILY: Sql = Sql::same(concat!(
    "select ",
    columns!(),
    " from api_keys where tenant_no = $1 and family = $2
       and revoke_time is null and (expire_time is null or expire_time > $3)
     order by key_id desc limit $4"
));
// A scope of a product is found by its JSON text, `"psa:`; slugs have no character that JSON
// escapes. The states are those of `Key::state`.
const LIST: Sql = Sql::same(concat!(
    "select ",
    columns!(),
    " from api_keys where tenant_no = $1 and key_id < $2
       and ($3 = '' or replace(scopes, $3, '') <> scopes)
       and (($4 and revoke_time is null and (expire_time is null or expire_time > $8)
             and successor_id is null)
         or ($5 and revoke_time is null and (expire_time is null or expire_time > $8)
             and successor_id is not null)
         or ($6 and expire_time is not null
             and ((revoke_time is null and expire_time <= $8) or revoke_time >= expire_time))
         or ($7 and revoke_time is not null
             and (expire_time is null or revoke_time < expire_time)))
     order by key_id desc limit $9"
));
// Those that serve all tenants serve this one too.
const SCOPES_OF_PRODUCT: Sql = Sql::same(
    "select scopes from api_keys where tenant_no in (0, $1) and product = $2
       and revoke_time is null and (expire_time is null or expire_time > $3)
     order by key_id desc limit $4",
);
const REVOKE: Sql = Sql::same(concat!(
    "update api_keys set revoke_time = $3, revoked_by = $4, revoke_reason = $5, revoke_epoch = $6,
       update_time = $3, version = version + 1
     where tenant_no = $1 and key_id = $2 and revoke_time is null returning ",
    columns!()
));
const UPDATE: Sql = Sql::same(concat!(
    "update api_keys set name = $4, scopes = $5, cidrs = $6, labels = $7, expire_time = $8,
       update_time = $9, version = version + 1
     where tenant_no = $1 and key_id = $2 and version = $3 returning ",
    columns!()
));
const ROTATE: Sql = Sql::same(concat!(
    "update api_keys set successor_id = $4, expire_time = $5, update_time = $6,
       version = version + 1
     where tenant_no = $1 and key_id = $2 and version = $3 returning ",
    columns!()
));
// On SQLite the transaction itself is the only writer.
const LOCK_OPERATOR: Sql = Sql::each(
    "select 1",
    "select 1 from (select pg_advisory_xact_lock(hashtext('hub operator key'))) l",
);
const ANY_OPERATOR: Sql = Sql::same(
    "select count(*) from api_keys where tenant_no = 0 and product is null
       and replace(scopes, '\"hub:*\"', '') <> scopes",
);
const OPERATORS: Sql = Sql::same(
    "select key_id from api_keys where tenant_no = 0 and product is null and created_by = $1
       and revoke_time is null and replace(scopes, '\"hub:*\"', '') <> scopes order by key_id",
);

/// The statements of the other files of the store, for the same test.
pub const MORE_STATEMENTS: &[&[Sql]] = &[
    usage::STATEMENTS,
    limits::STATEMENTS,
    denials::STATEMENTS,
    followers::STATEMENTS,
    standings::STATEMENTS,
];

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[
    INSERT,
    BY_HASHES,
    BY_ID,
    FIND,
    WORKING_OF_FAMILY,
    LIST,
    SCOPES_OF_PRODUCT,
    REVOKE,
    UPDATE,
    ROTATE,
    LOCK_OPERATOR,
    ANY_OPERATOR,
    OPERATORS,
];

/// Tables of this domain.
pub fn migrations() -> Migrations {
    Migrations {
        domain: "api_keys",
        sqlite: hub_core::migrations!(
            "../../../migrations/api_keys/sqlite",
            "0001_api_keys",
            "0002_limits",
            "0003_denials",
            "0004_standings",
            "0005_costs",
            "0006_update_time",
            "0007_usage_batches",
            "0008_named_tenants",
            "0009_denied_rights",
            "0010_key_counts",
        ),
        postgres: hub_core::migrations!(
            "../../../migrations/api_keys/postgres",
            "0001_api_keys",
            "0002_limits",
            "0003_denials",
            "0004_standings",
            "0005_costs",
            "0006_update_time",
            "0007_usage_batches",
            "0008_named_tenants",
            "0009_denied_rights",
            "0010_key_counts",
        ),
    }
}

/// Which keys a list shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Slug of a product that one of their scopes is for; empty = any.
    pub product: String,
    /// Those that work.
    pub active: bool,
    /// Those that work and have a successor.
    pub rotating: bool,
    /// Those past their end of validity.
    pub expired: bool,
    /// Those that were revoked.
    pub revoked: bool,
}

hub_core::row! {
    struct Row {
        key_id: String,
        tenant_no: i64,
        tenant_id: String,
        product: Option<String>,
        hash: Vec<u8>,
        hint: String,
        name: String,
        scopes: String,
        cidrs: String,
        labels: String,
        requests_per_minute: i64,
        expire_time: Option<Micros>,
        create_time: Micros,
        update_time: Option<Micros>,
        created_by: String,
        revoke_time: Option<Micros>,
        revoked_by: Option<String>,
        revoke_reason: Option<String>,
        revoke_epoch: Option<i64>,
        successor_id: Option<String>,
        version: i64,
        family: String,
        last_use_time: Option<Micros>,
        tenant_limit: i64,
    }
}

impl Row {
    fn read(self) -> Result<(Key, Hash)> {
        let damaged = |what: &str| Error::internal(format!("{what} of a stored key is damaged"));
        let list = |text: &str| serde_json::from_str::<Vec<String>>(text);
        let labels: BTreeMap<String, String> =
            serde_json::from_str(&self.labels).map_err(|_| damaged("labels"))?;
        let hash = self.hash.try_into().map_err(|_| damaged("hash"))?;
        let tenant = (self.tenant_no != TenantRef::system().number())
            .then(|| TenantRef::new(self.tenant_no, &self.tenant_id));
        let revocation = self.revoke_time.map(|time| Revocation {
            time,
            by: self.revoked_by.unwrap_or_default(),
            reason: self.revoke_reason.unwrap_or_default(),
            epoch: self.revoke_epoch.unwrap_or_default().unsigned_abs(),
        });
        let key = Key {
            key_id: self.key_id,
            tenant,
            product: self.product,
            hint: self.hint,
            name: self.name,
            scopes: list(&self.scopes).map_err(|_| damaged("scopes"))?,
            cidrs: list(&self.cidrs).map_err(|_| damaged("cidrs"))?,
            labels,
            requests_per_minute: u32::try_from(self.requests_per_minute).unwrap_or(u32::MAX),
            tenant_limit: u32::try_from(self.tenant_limit).unwrap_or(u32::MAX),
            family: self.family,
            last_use_time: self.last_use_time,
            expire_time: self.expire_time,
            create_time: self.create_time,
            update_time: self.update_time,
            created_by: self.created_by,
            revocation,
            successor_id: self.successor_id,
            version: self.version,
        };
        Ok((key, hash))
    }

    fn key(self) -> Result<Key> {
        self.read().map(|(key, _)| key)
    }
}

/// Adds a key to a tenant.
pub async fn insert(tx: &mut Tx, tenant: &TenantRef, key: &Key, hash: &Hash) -> Result<()> {
    let json = |value: serde_json::Result<String>| value.map_err(Error::internal);
    tx.query(INSERT)
        .bind(key.key_id.clone())
        .bind(tenant.number())
        .bind(tenant.id().to_owned())
        .bind(key.product.clone())
        .bind(hash.to_vec())
        .bind(key.hint.clone())
        .bind(key.name.clone())
        .bind(json(serde_json::to_string(&key.scopes))?)
        .bind(json(serde_json::to_string(&key.cidrs))?)
        .bind(json(serde_json::to_string(&key.labels))?)
        .bind(i64::from(key.requests_per_minute))
        .bind(key.expire_time)
        .bind(key.create_time)
        .bind(key.created_by.clone())
        .bind(key.family.clone())
        .execute()
        .await?;
    Ok(())
}

/// The keys with these hashes, at most [`LOOKED_UP_MAX`], of any tenant, each with its hash as
/// stored: who presents them is not known before.
pub async fn by_hashes(db: &Db, hashes: &[Hash]) -> Result<Vec<(Key, Hash)>> {
    let Some(first) = hashes.first() else {
        return Ok(Vec::new());
    };
    let mut query = db.query(BY_HASHES);
    for at in 0..LOOKED_UP_MAX {
        query = query.bind(hashes.get(at).unwrap_or(first).to_vec());
    }
    let rows: Vec<Row> = query.all().await?;
    rows.into_iter().map(Row::read).collect()
}

/// The key with this id, of any tenant: only for keys that were admitted.
pub async fn by_id(db: &Db, key_id: &str) -> Result<Option<(Key, Hash)>> {
    let row: Option<Row> = db.query(BY_ID).bind(key_id.to_owned()).optional().await?;
    row.map(Row::read).transpose()
}

/// The same within a transaction.
pub async fn by_id_in(tx: &mut Tx, key_id: &str) -> Result<Option<Key>> {
    let query = tx.query(BY_ID).bind(key_id.to_owned());
    query.optional::<Row>().await?.map(Row::key).transpose()
}

/// The key of a tenant with this id.
pub async fn find(db: &Db, tenant: &TenantRef, key_id: &str) -> Result<Option<Key>> {
    let query = db.query(FIND).bind(tenant.number()).bind(key_id.to_owned());
    query.optional::<Row>().await?.map(Row::key).transpose()
}

/// The same, as a transaction sees it.
pub async fn find_in(tx: &mut Tx, tenant: &TenantRef, key_id: &str) -> Result<Option<Key>> {
    let query = tx.query(FIND).bind(tenant.number()).bind(key_id.to_owned());
    query.optional::<Row>().await?.map(Row::key).transpose()
}

/// The keys of a family that work, as a transaction sees them.
pub async fn working_of_family(
    tx: &mut Tx,
    tenant: &TenantRef,
    family: &str,
    now: Micros,
) -> Result<Vec<Key>> {
    let query = tx.query(WORKING_OF_FAMILY).bind(tenant.number());
    let query = query.bind(family.to_owned()).bind(now).bind(OF_FAMILY_MAX);
    query
        .all::<Row>()
        .await?
        .into_iter()
        .map(Row::key)
        .collect()
}

/// At most `count` keys of a tenant, newest first, after the one named `after`.
pub async fn list(
    db: &Db,
    tenant: &TenantRef,
    filter: &Filter,
    after: Option<&str>,
    now: Micros,
    count: usize,
) -> Result<Vec<Key>> {
    let scope = match filter.product.as_str() {
        "" => String::new(),
        product => format!("\"{product}:"),
    };
    let rows: Vec<Row> = db
        .query(LIST)
        .bind(tenant.number())
        .bind(after.unwrap_or(AFTER_ALL_IDS).to_owned())
        .bind(scope)
        .bind(filter.active)
        .bind(filter.rotating)
        .bind(filter.expired)
        .bind(filter.revoked)
        .bind(now)
        .bind(i64::try_from(count).unwrap_or(i64::MAX))
        .all()
        .await?;
    rows.into_iter().map(Row::key).collect()
}

/// The scopes of each key that speaks for a product and works for a tenant.
pub async fn scopes_of_product(
    db: &Db,
    tenant: &TenantRef,
    product: &str,
    now: Micros,
) -> Result<Vec<Vec<String>>> {
    let query = db.query(SCOPES_OF_PRODUCT).bind(tenant.number());
    let query = query.bind(product.to_owned()).bind(now);
    let rows: Vec<(String,)> = query.bind(OF_PRODUCT_MAX).all().await?;
    let scopes = rows.iter().map(|(scopes,)| serde_json::from_str(scopes));
    let scopes: serde_json::Result<_> = scopes.collect();
    scopes.map_err(|_| Error::internal("scopes of a stored key is damaged"))
}

/// Revokes a key of a tenant that was not revoked yet, and returns it.
pub async fn revoke(
    tx: &mut Tx,
    tenant: &TenantRef,
    key_id: &str,
    revocation: &Revocation,
) -> Result<Option<Key>> {
    let row: Option<Row> = tx
        .query(REVOKE)
        .bind(tenant.number())
        .bind(key_id.to_owned())
        .bind(revocation.time)
        .bind(revocation.by.clone())
        .bind(revocation.reason.clone())
        .bind(revocation.epoch.cast_signed())
        .optional()
        .await?;
    row.map(Row::key).transpose()
}

/// Stores what may be changed of a key, and when, if it is still of the version that `key` has.
pub async fn update(tx: &mut Tx, tenant: &TenantRef, key: &Key) -> Result<Option<Key>> {
    let json = |value: serde_json::Result<String>| value.map_err(Error::internal);
    let row: Option<Row> = tx
        .query(UPDATE)
        .bind(tenant.number())
        .bind(key.key_id.clone())
        .bind(key.version)
        .bind(key.name.clone())
        .bind(json(serde_json::to_string(&key.scopes))?)
        .bind(json(serde_json::to_string(&key.cidrs))?)
        .bind(json(serde_json::to_string(&key.labels))?)
        .bind(key.expire_time)
        .bind(key.update_time)
        .optional()
        .await?;
    row.map(Row::key).transpose()
}

/// Gives a key a successor and an end at `now`, if it is still of the version that `key` has.
pub async fn rotate(
    tx: &mut Tx,
    tenant: &TenantRef,
    key: &Key,
    successor_id: &str,
    expire_time: Option<Micros>,
    now: Micros,
) -> Result<Option<Key>> {
    let row: Option<Row> = tx
        .query(ROTATE)
        .bind(tenant.number())
        .bind(key.key_id.clone())
        .bind(key.version)
        .bind(successor_id.to_owned())
        .bind(expire_time)
        .bind(now)
        .optional()
        .await?;
    row.map(Row::key).transpose()
}

/// Whether an operator's key was ever made; nobody else can make one until `tx` ends.
pub async fn lock_operators(tx: &mut Tx) -> Result<bool> {
    let _: (i32,) = tx.query(LOCK_OPERATOR).one().await?;
    let (count,): (i64,) = tx.query(ANY_OPERATOR).one().await?;
    Ok(count > 0)
}

/// Ids of the operator keys that `created_by` made and that were not revoked.
pub async fn operators_by(tx: &mut Tx, created_by: &str) -> Result<Vec<String>> {
    let query = tx.query(OPERATORS).bind(created_by.to_owned());
    let rows: Vec<(String,)> = query.all().await?;
    Ok(rows.into_iter().map(|(key_id,)| key_id).collect())
}
