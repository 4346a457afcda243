//! The rules by which keys are made and shown.

use std::collections::BTreeMap;
use std::sync::Arc;

use hub_core::auth::{self, Caller};
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::hub_event::HubEvent;
use hub_core::journal::{Append, Log, NewEvent, Outcome, TenantRef, lock_head};
use hub_core::module::Core;
use hub_core::page::{self, List};
use hub_core::replay::{Begun, Done, Retry};
use hub_core::storage::Tx;
use hub_core::worker::Turn;
use hub_core::{audit, id};
use tokio::sync::watch;

use crate::addresses::Cidr;
use crate::cache::Cache;
use crate::change;
use crate::denials::Denials;
use crate::error;
use crate::follow;
use crate::key::Key;
use crate::limits::Limiter;
use crate::lookup::Lookup;
use crate::rollup;
use crate::scopes::{self, Rights};
use crate::secret::Plaintext;
use crate::settlement;
use crate::store::{self, Filter};
use crate::sweep;
use crate::tenant_limits::TenantLimits;
use crate::usage::{BATCH_INTERVAL, Usage};

/// Where the events about keys come from.
pub(crate) const SOURCE: &str = "/hub/api-keys";

/// The last moment that a protobuf timestamp can say: the end of the year 9999.
const TIME_MAX: Micros = 253_402_300_799_999_999;

/// The RPC that makes keys, as its policy names it.
pub(crate) const CREATE: &str = "hub.api_keys.v1.ApiKeys/CreateApiKey";

/// The keys of a database.
pub struct Keys {
    pub(crate) core: Core,
    pub(crate) cache: Arc<Cache>,
    pub(crate) lookup: Lookup,
    pub(crate) limiter: Limiter,
    pub(crate) tenant_limits: TenantLimits,
    /// Held by whoever asks the other processes for portions of limits.
    pub(crate) settling: tokio::sync::Mutex<()>,
    pub(crate) usage: Usage,
    pub(crate) denials: Denials,
    /// Changes up to this sequence of the system log are known.
    pub(crate) epoch: watch::Sender<u64>,
}

/// What a caller says of a key to be made.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// Display name.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Slug of the product that it speaks for; empty = none.
    pub product: String,
    /// Blocks of addresses that it may be used from; empty = any.
    pub cidrs: Vec<String>,
    /// End of validity.
    pub expire_time: Option<Micros>,
    /// The owner's own marks.
    pub labels: BTreeMap<String, String>,
    /// It serves all tenants.
    pub all_tenants: bool,
}

impl NewKey {
    fn rights(&self) -> Rights<'_> {
        Rights {
            scopes: &self.scopes,
            product: (!self.product.is_empty()).then_some(self.product.as_str()),
            all_tenants: self.all_tenants,
        }
    }
}

/// A key that was just made.
#[derive(Debug)]
pub struct Created {
    /// The key.
    pub key: Key,
    /// Its secret, which nobody can show again.
    pub plaintext: Plaintext,
}

/// A page of keys.
#[derive(Debug)]
pub struct Page {
    /// The keys, newest first.
    pub keys: Vec<Key>,
    /// Empty on the last page.
    pub next_page_token: String,
}

impl Keys {
    pub(crate) fn new(core: &Core) -> Self {
        let cache = Cache::new(core.limits.key_cache_max, core.limits.key_cache_ttl);
        let cache = Arc::new(cache);
        Keys {
            lookup: Lookup::new(&core.db, &core.clock, &cache),
            core: core.clone(),
            cache,
            limiter: Limiter::new(core.db.is_postgres()),
            tenant_limits: TenantLimits::default(),
            settling: tokio::sync::Mutex::default(),
            usage: Usage::default(),
            denials: Denials::default(),
            epoch: watch::Sender::new(0),
        }
    }

    /// Begins the work in the background of a process that serves.
    pub fn work(self: &Arc<Self>) {
        let (workers, keys) = (self.core.workers(), self.clone());
        workers.spawn("keys-follow", move |turn| follow::run(keys.clone(), turn));
        let keys = self.clone();
        workers.spawn("keys-usage", move |turn| keys.clone().write_usage(turn));
        let keys = self.clone();
        workers.spawn("keys-sweep", move |turn| sweep::run(keys.clone(), turn));
        let keys = self.clone();
        workers.spawn("keys-rollup", move |turn| rollup::run(keys.clone(), turn));
        if self.core.db.is_postgres() {
            let keys = self.clone();
            workers.spawn("keys-limits", move |turn| {
                settlement::run(keys.clone(), turn)
            });
        }
    }

    /// Writes what was counted, until it is stopped; then once more.
    async fn write_usage(self: Arc<Self>, turn: Turn) -> Result<()> {
        loop {
            // First of all, so that what failed is tried again as soon as the worker is restarted.
            self.write_counts().await?;
            self.limiter.sweep(self.core.clock.now());
            turn.passed_for(BATCH_INTERVAL);
            if !turn.pause(BATCH_INTERVAL).await {
                return self.write_counts().await;
            }
        }
    }

    /// One that fails does not keep the other from being written.
    pub(crate) async fn write_counts(&self) -> Result<()> {
        let usage = self.usage.write(&self.core.db, self.core.clock.now()).await;
        let denials = self.denials.write(&self.core.db).await;
        usage.and(denials)
    }

    /// Makes a key.
    ///
    /// Errors: `SCOPE_INVALID`, `SCOPE_ESCALATION`, `PRODUCT_NOT_FOUND`, `FIELD_INVALID`,
    /// `OPERATOR_ONLY`, `TENANT_REQUIRED`, `REQUEST_ID_REUSED`.
    pub async fn create(
        &self,
        caller: &Caller,
        new: NewKey,
        retry: Option<Retry<'_, Key>>,
    ) -> Result<Done<Created>> {
        let now = self.core.clock.now();
        let tenant = tenant_of_new(caller, new.all_tenants)?;
        let products = self.core.tenancy.products().await?;
        scopes::check_form(&new.scopes, &products)?;
        let rights = new.rights();
        rights
            .product
            .map(|slug| products.require(slug))
            .transpose()?;
        scopes::check_within(caller, rights)?;
        check_cidrs(&new.cidrs)?;
        let log = self.system_log().await?;
        let mut tx = self.core.db.begin().await?;
        if let Some(Retry { call, .. }) = &retry
            && let Begun::Again(answer) = call.begin(&mut tx, &self.core.sealer, now).await?
        {
            return Ok(Done::Again(answer));
        }
        // Not of a retry: the key that it made may have expired since.
        check_expire_time(new.expire_time, now)?;
        // Before the audit log, as whoever revokes a key does.
        lock_head(&mut tx, &TenantRef::system()).await?;
        let calling = self.calling(&mut tx, caller).await?;
        calling.check_within(new.rights())?;
        calling.check_reach(new.expire_time, &new.cidrs)?;
        let made = self
            .insert(&mut tx, &tenant, new, &caller.key_id, now)
            .await?;
        if let Some(Retry { call, message }) = &retry {
            let (message, secret) = (message(&made.key), made.plaintext.expose());
            let sealer = &self.core.sealer;
            call.finish(&mut tx, sealer, message, Some(secret)).await?;
        }
        let change = audit::Change {
            caller,
            action: CREATE,
            resource: &made.key.key_id,
            changes: made.key.as_changes(),
            time: now,
        };
        audit::record(&mut tx, &tenant, change).await?;
        self.commit(tx, log, made.event).await?;
        self.lookup.made();
        Ok(Done::First(Created {
            key: made.key,
            plaintext: made.plaintext,
        }))
    }

    /// Makes a key as part of `tx`; nothing about it is checked any more.
    pub(crate) async fn insert(
        &self,
        tx: &mut Tx,
        tenant: &TenantRef,
        new: NewKey,
        created_by: &str,
        now: Micros,
    ) -> Result<Made> {
        let plaintext = Plaintext::generate()?;
        let key_id = id::new("key");
        let serves_one = *tenant != TenantRef::system();
        let key = Key {
            key_id: key_id.clone(),
            tenant: serves_one.then(|| tenant.clone()),
            product: (!new.product.is_empty()).then_some(new.product),
            hint: plaintext.hint(),
            name: new.name,
            scopes: distinct(new.scopes),
            cidrs: distinct(new.cidrs),
            labels: new.labels,
            requests_per_minute: 0,
            tenant_limit: 0,
            family: key_id,
            last_use_time: None,
            expire_time: new.expire_time,
            create_time: now,
            update_time: None,
            created_by: created_by.to_owned(),
            revocation: None,
            successor_id: None,
            version: 1,
        };
        self.insert_key(tx, tenant, key, plaintext).await
    }

    /// The same for a key that is complete.
    pub(crate) async fn insert_key(
        &self,
        tx: &mut Tx,
        tenant: &TenantRef,
        key: Key,
        plaintext: Plaintext,
    ) -> Result<Made> {
        store::insert(tx, tenant, &key, &plaintext.hash()).await?;
        let (by, now) = (&key.created_by, key.create_time);
        let event = key_event(&key, change::CREATED, by, now, "");
        Ok(Made {
            key,
            plaintext,
            event,
        })
    }

    /// The log of the hub itself. Asked for before a transaction begins: to look it up may take a
    /// connection, and one that holds a connection must not wait for another.
    pub(crate) async fn system_log(&self) -> Result<Arc<Log>> {
        self.core.journal.log(&TenantRef::system()).await
    }

    /// Ends `tx` with an event in the system log, and returns its sequence.
    pub(crate) async fn commit(&self, tx: Tx, log: Arc<Log>, event: NewEvent) -> Result<u64> {
        let append = Append {
            log,
            events: vec![event],
            independent: false,
            row: None,
        };
        let appended = self.core.journal.commit(tx, vec![append]).await?;
        match appended.first().and_then(|one| one.outcomes.first()) {
            Some(Outcome::Stored { seq }) => Ok(*seq),
            other => Err(Error::internal(format!(
                "the event of a key was not new: {other:?}"
            ))),
        }
    }

    /// A key of the caller's tenant; without tenant, one of those that serve all tenants.
    ///
    /// Errors: `KEY_NOT_FOUND`.
    pub async fn get(&self, caller: &Caller, key_id: &str) -> Result<Key> {
        let key = store::find(&self.core.db, &tenant_of(caller), key_id).await?;
        key.ok_or_else(|| error::not_found(key_id))
    }

    /// The calling key itself.
    pub async fn own(&self, caller: &Caller) -> Result<Key> {
        let key = store::by_id(&self.core.db, &caller.key_id).await?;
        key.map(|(key, _)| key).ok_or_else(error::not_recognized)
    }

    /// Keys of the caller's tenant, newest first; without tenant, those that serve all tenants.
    ///
    /// Errors: `PAGE_TOKEN_INVALID`, `FIELD_INVALID`.
    pub async fn list(
        &self,
        caller: &Caller,
        filter: Filter,
        page_size: i32,
        page_token: &str,
        encoded_len: impl Fn(&Key) -> usize,
    ) -> Result<Page> {
        let (now, tenant) = (self.core.clock.now(), tenant_of(caller));
        let size = page::size(page_size)?;
        let states = [
            filter.active,
            filter.rotating,
            filter.expired,
            filter.revoked,
        ];
        let bound = format!("{}\n{states:?}", filter.product);
        let list = List {
            name: "ListApiKeys",
            tenant: &tenant,
            filter: bound.as_bytes(),
        };
        let after = self.core.cursors.read_page(list, now, page_token)?;
        let (db, after) = (&self.core.db, after.as_deref());
        // One more than asked for, to know whether there is a next page.
        let mut keys = store::list(db, &tenant, &filter, after, now, size + 1).await?;
        let fitting = fitting(&keys, self.core.limits.page_bytes_max, encoded_len).min(size);
        let more = keys.len() > fitting;
        keys.truncate(fitting);
        let next_page_token = match keys.last().filter(|_| more) {
            Some(last) => self.core.cursors.write_page(list, now, &last.key_id),
            None => String::new(),
        };
        Ok(Page {
            keys,
            next_page_token,
        })
    }
}

/// A key that `tx` made, with its secret and the event that tells of it.
pub(crate) struct Made {
    pub key: Key,
    pub plaintext: Plaintext,
    pub event: NewEvent,
}

/// How many keys fit into a page of `bytes_max`; at least one, or a list would never end.
fn fitting(keys: &[Key], bytes_max: usize, encoded_len: impl Fn(&Key) -> usize) -> usize {
    let mut bytes = 0;
    let fit = keys.iter().take_while(|key| {
        bytes += encoded_len(key);
        bytes <= bytes_max
    });
    fit.count().max(1)
}

/// Whose keys a call is about. The hub itself owns those that serve all tenants.
pub(crate) fn tenant_of(caller: &Caller) -> TenantRef {
    caller.tenant.clone().unwrap_or_else(TenantRef::system)
}

fn tenant_of_new(caller: &Caller, all_tenants: bool) -> Result<TenantRef> {
    if !all_tenants {
        return caller.tenant().cloned();
    }
    if !caller.is_operator() {
        return Err(auth::operator_only(&format!("{CREATE} with all_tenants")));
    }
    if caller.tenant.is_some() {
        let problem = "contradicts the tenant that the call names; leave one of them out";
        return Err(Error::field("api_key.all_tenants", problem));
    }
    Ok(TenantRef::system())
}

pub(crate) fn check_expire_time(expire_time: Option<Micros>, now: Micros) -> Result<()> {
    if expire_time.is_some_and(|at| at <= now) {
        return Err(Error::field(
            "api_key.expire_time",
            "must lie in the future",
        ));
    }
    if expire_time.is_some_and(|at| at > TIME_MAX) {
        return Err(Error::field(
            "api_key.expire_time",
            "must lie before the year 10000",
        ));
    }
    Ok(())
}

pub(crate) fn check_cidrs(cidrs: &[String]) -> Result<()> {
    for (at, block) in cidrs.iter().enumerate() {
        if let Err(problem) = Cidr::parse(block) {
            return Err(Error::field(
                format!("api_key.allowed_cidrs[{at}]"),
                problem,
            ));
        }
    }
    Ok(())
}

/// Each once, in the order given.
pub(crate) fn distinct(mut texts: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    texts.retain(|text| seen.insert(text.clone()));
    texts
}

/// What the system log tells of a key. The version makes each change an event of its own.
pub(crate) fn key_event(
    key: &Key,
    kind: &'static str,
    actor: &str,
    time: Micros,
    reason: &str,
) -> NewEvent {
    let tenant_id = key.tenant.as_ref().map_or("", TenantRef::id);
    let json = serde_json::json!({
        "keyId": key.key_id,
        "tenantId": tenant_id,
        "product": key.product.as_deref().unwrap_or_default(),
        "name": key.name,
        "scopes": key.scopes,
        "reason": reason,
    });
    HubEvent {
        log: &TenantRef::system(),
        source: SOURCE,
        kind,
        id: format!("{}.{}", key.key_id, key.version),
        subject: &key.key_id,
        tenant_id,
        actor,
        time,
        json: json.to_string(),
    }
    .encode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::tests::key;

    #[test]
    fn a_page_is_cut_at_its_bytes_but_never_empty() {
        let keys = vec![key(); 5];
        assert_eq!(fitting(&keys, 100, |_| 30), 3);
        assert_eq!(fitting(&keys, 100, |_| 101), 1);
        assert_eq!(fitting(&keys, 1000, |_| 30), 5);
    }
}
