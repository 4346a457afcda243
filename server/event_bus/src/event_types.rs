//! Event types: the catalogue of each tenant, shown and changed.
//!
//! A change is stored with the routing epoch that it begins, in the transaction that raises the
//! epoch: it applies to events recorded from then on, and what was routed before stays as it was.

use std::collections::HashSet;
use std::sync::Arc;

use hub_core::audit::{self, Changes};
use hub_core::auth::Caller;
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::hub_event::HubEvent;
use hub_core::journal::{self, Append, Log, NewEvent, Outcome, TenantRef};
use hub_core::module::Core;
use hub_core::page::{self, List};
use hub_core::storage::Db;
use hub_core::tenancy::Versioned;

pub use crate::catalogue::{ALL, Catalogue, EventType};
use crate::schema::{SCHEMA_BYTES_MAX, Schemas};
use crate::store::event_types as store;
use crate::{error, event};

/// Memory of the catalogues of tenants that have entries of their own.
const CATALOGUES_BYTES_MAX: usize = 32 << 20;
/// Entries of its own that a tenant may have.
const TYPES_MAX: u64 = 1000;
/// Bytes of all schemas of a tenant, those just replaced included.
const SCHEMAS_BYTES_MAX: u64 = 4 << 20;

/// Full name of the RPC, for the audit log.
const PUT: &str = "hub.event_bus.v1.EventBus/PutEventType";
/// Where the events about the catalogue come from.
const SOURCE: &str = "/hub/event-types";

/// Loads catalogues, and has the compiled schemas.
pub struct Catalogues {
    db: Db,
    /// By the epoch asked for: what was in force then.
    by_epoch: Versioned<Catalogue>,
    /// By the epoch of the last change.
    by_change: Versioned<Catalogue>,
    schemas: Schemas,
}

impl Catalogues {
    /// Over a database.
    pub fn new(core: &Core) -> Self {
        let weigh = |catalogue: &Arc<Catalogue>| catalogue.bytes();
        Catalogues {
            db: core.db.clone(),
            by_epoch: Versioned::new(CATALOGUES_BYTES_MAX / 2, weigh),
            by_change: Versioned::new(CATALOGUES_BYTES_MAX / 2, weigh),
            schemas: Schemas::default(),
        }
    }

    /// The catalogue of a tenant at an epoch; tenants without entries of their own share one.
    /// Errors: `STORE_BUSY`.
    pub async fn at(&self, tenant: &TenantRef, epoch: u64) -> Result<Arc<Catalogue>> {
        let changed = || async {
            let Some(change) = store::latest(&self.db, tenant, epoch).await? else {
                return Ok(Catalogue::built_in());
            };
            let load = || async {
                let own = store::at(&self.db, tenant, change).await?;
                Ok(Catalogue::with(own))
            };
            self.by_change.get(tenant, change, load).await
        };
        self.by_epoch.get(tenant, epoch, changed).await
    }

    /// The schemas of all tenants.
    pub fn schemas(&self) -> &Schemas {
        &self.schemas
    }
}

/// Which entries are listed; empty texts mean any.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Slug of a product that may publish the type.
    pub source: String,
    /// Slug of a product that it goes to.
    pub destination: String,
}

/// A page of the catalogue.
pub struct Page {
    /// By type.
    pub entries: Vec<Arc<EventType>>,
    /// Empty on the last page.
    pub next_page_token: String,
}

/// The catalogue of the caller's tenant. `size_of` is what an entry takes of the answer.
///
/// Errors: `TENANT_REQUIRED`, `PRODUCT_NOT_FOUND`, `PAGE_TOKEN_INVALID`, `FIELD_INVALID`.
pub async fn list(
    core: &Core,
    catalogues: &Catalogues,
    caller: &Caller,
    filter: &Filter,
    (page_size, token): (i32, &str),
    size_of: impl Fn(&EventType) -> usize,
) -> Result<Page> {
    let tenant = caller.tenant()?;
    let size = page::size(page_size)?;
    let products = core.tenancy.products().await?;
    for slug in [&filter.source, &filter.destination] {
        if !slug.is_empty() {
            products.require(slug)?;
        }
    }
    let now = core.clock.now();
    let bound = format!("{}>{}", filter.source, filter.destination);
    let list = List {
        name: "ListEventTypes",
        tenant,
        filter: bound.as_bytes(),
    };
    let after = core
        .cursors
        .read_page(list, now, token)?
        .unwrap_or_default();
    let epoch = core.journal.routing_epoch(tenant).await?;
    let catalogue = catalogues.at(tenant, epoch).await?;
    let matching = catalogue.after(&after).filter(|entry| {
        (filter.source.is_empty() || entry.may_publish(&filter.source))
            && (filter.destination.is_empty() || entry.goes_to(&filter.destination))
    });
    // One more than asked for tells whether more follows.
    let mut entries: Vec<Arc<EventType>> = matching.take(size + 1).cloned().collect();
    let bytes_max = core.limits.page_bytes_max;
    let more = page::cut(&mut entries, size, bytes_max, |entry| size_of(entry));
    let last = entries.last().filter(|_| more);
    let next_page_token = last.map_or_else(String::new, |last| {
        core.cursors.write_page(list, now, &last.name)
    });
    Ok(Page {
        entries,
        next_page_token,
    })
}

/// Adds or replaces an entry of the tenant's own. An `etag` that is set must be that of the entry
/// in force, which may be one of the hub's.
///
/// Errors: `TENANT_REQUIRED`, `FIELD_INVALID`, `PRODUCT_NOT_FOUND`, `SCHEMA_INVALID`,
/// `ETAG_MISMATCH`, `QUOTA_EXCEEDED`.
pub async fn put(
    core: &Core,
    catalogues: &Catalogues,
    caller: &Caller,
    mut entry: EventType,
    etag: &str,
) -> Result<EventType> {
    let tenant = caller.tenant()?;
    check(core, &mut entry).await?;
    check_schema(catalogues.schemas(), &entry).await?;
    // Before the transaction: both may take a connection of their own.
    let log = core.journal.log(tenant).await?;
    let oldest = oldest_epoch(core, &log).await?;
    let now = core.clock.now();
    let mut tx = core.db.begin().await?;
    let bumped = journal::bump(&mut tx, tenant).await?;
    let own = store::find(&mut tx, tenant, &entry.name).await?;
    let replaced = own.as_ref().map(|own| own.epoch);
    let built_in = || {
        Catalogue::built_in()
            .find(&entry.name)
            .map(|found| (**found).clone())
    };
    let before = own.or_else(built_in);
    if let Some(before) = before.as_ref().filter(|before| before.says_as(&entry)) {
        // A repetition, of a call or of what the hub says: nothing changes.
        return Ok(before.clone());
    }
    let current = before.as_ref().map_or_else(String::new, EventType::etag);
    if !etag.is_empty() && etag != current {
        return Err(Error::etag_mismatch(current));
    }
    let (types, bytes) = store::size_beside(&mut tx, tenant, &entry.name).await?;
    if types >= TYPES_MAX {
        return Err(error::catalogue_full("event types", TYPES_MAX));
    }
    if bytes + entry.json_schema.len() as u64 > SCHEMAS_BYTES_MAX {
        return Err(error::catalogue_full("bytes of schemas", SCHEMAS_BYTES_MAX));
    }
    entry.epoch = bumped.epoch;
    let made = (now, &*caller.key_id);
    store::put(&mut tx, tenant, &entry, replaced, oldest, made).await?;
    let change = audit::Change {
        caller,
        action: PUT,
        resource: &entry.name,
        changes: changes(&before.unwrap_or_default(), &entry),
        time: now,
    };
    audit::record(&mut tx, tenant, change).await?;
    let append = Append {
        events: vec![changed(&log, &entry, &caller.key_id, now)],
        log,
        independent: false,
        row: None,
    };
    let appended = core.journal.commit(tx, vec![append]).await?;
    let mut outcomes = appended.iter().flat_map(|one| &one.outcomes);
    if !outcomes.all(|outcome| matches!(outcome, Outcome::Stored { .. })) {
        return Err(Error::internal("the event of a change was not new"));
    }
    Ok(entry)
}

/// The fields by themselves. No sources means any product.
async fn check(core: &Core, entry: &mut EventType) -> Result<()> {
    event::check_type(&entry.name).map_err(|problem| Error::field("event_type.type", problem))?;
    let products = core.tenancy.products().await?;
    for slugs in [&mut entry.sources, &mut entry.destinations] {
        let mut seen = HashSet::new();
        slugs.retain(|slug| seen.insert(slug.clone()));
        for slug in slugs.iter().filter(|slug| *slug != ALL) {
            products.require(slug)?;
        }
    }
    if entry.sources.is_empty() {
        entry.sources.push(ALL.to_owned());
    }
    Ok(())
}

/// The schema must be one, and the example must match it.
async fn check_schema(schemas: &Schemas, entry: &EventType) -> Result<()> {
    if entry.json_schema.is_empty() {
        return Ok(());
    }
    debug_assert!(entry.json_schema.len() <= SCHEMA_BYTES_MAX);
    let compiled = schemas.get(&entry.json_schema).await?;
    let schema = compiled.map_err(|problem| error::schema_invalid("json_schema", &problem))?;
    if entry.example.is_empty() {
        return Ok(());
    }
    match schema.check(entry.example.as_bytes()) {
        Ok(()) => Ok(()),
        Err(violations) => {
            let first = violations.first().cloned().unwrap_or_default();
            Err(error::schema_invalid("example", &first))
        }
    }
}

/// The epoch of the oldest event that is kept.
async fn oldest_epoch(core: &Core, log: &Log) -> Result<u64> {
    let Some((first, _)) = core.journal.earliest(log).await? else {
        return Ok(0);
    };
    let segment = core.journal.segment_at(log, first).await?;
    Ok(segment.map_or(0, |segment| segment.routing_epoch()))
}

fn changes(before: &EventType, after: &EventType) -> Changes {
    let list = |slugs: &[String]| slugs.join(" ");
    Changes::new()
        .field("purpose", &before.purpose, &after.purpose)
        .field("sources", list(&before.sources), list(&after.sources))
        .field(
            "destinations",
            list(&before.destinations),
            list(&after.destinations),
        )
        .field("json_schema", &before.json_schema, &after.json_schema)
        .field("example", &before.example, &after.example)
        .field("deprecated", before.deprecated, after.deprecated)
}

fn changed(log: &Log, entry: &EventType, actor: &str, time: Micros) -> NewEvent {
    let tenant = log.tenant();
    let json = serde_json::json!({
        "type": entry.name,
        "sources": entry.sources,
        "destinations": entry.destinations,
        "deprecated": entry.deprecated,
        "hasSchema": !entry.json_schema.is_empty(),
    });
    HubEvent {
        log: tenant,
        source: SOURCE,
        kind: "event_type.updated",
        id: format!("{}.{}", entry.name, entry.epoch),
        subject: &entry.name,
        tenant_id: tenant.id(),
        actor,
        time,
        json: json.to_string(),
    }
    .encode()
}
