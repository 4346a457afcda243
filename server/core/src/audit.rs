//! The audit log of each tenant: who changed what through the API, written in the transaction of
//! the change and never edited.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::auth::Caller;
use crate::clock::Micros;
use crate::error::{Error, Result};
use crate::journal::TenantRef;
use crate::storage::{Db, Sql, Tx};

/// Longest value that is kept, in bytes; the rest is cut.
const VALUE_BYTES_MAX: usize = 1024;

const NEXT: Sql = Sql::same(
    "insert into audit_heads (tenant_no, sequence) values ($1, 1)
     on conflict (tenant_no) do update set sequence = audit_heads.sequence + 1
     returning sequence",
);
const INSERT: Sql = Sql::same(
    "insert into audit_entries (tenant_no, sequence, time, actor, action, resource, changes,
        call_id, client_ip)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
);

/// Entries before a sequence, newest first; `$condition` uses the index by which they are found.
macro_rules! list {
    ($condition:literal) => {
        Sql::same(concat!(
            "select sequence, time, actor, action, resource, changes, call_id, client_ip
             from audit_entries where tenant_no = $1 and sequence < $2
                and time >= $3 and time < $4 ",
            $condition,
            " order by sequence desc limit $5"
        ))
    };
}

const LIST: Sql = list!("");
const LIST_OF_ACTOR: Sql = list!("and actor = $6");
const LIST_OF_RESOURCE: Sql = list!("and resource = $6");
const LIST_OF_BOTH: Sql = list!("and resource = $6 and actor = $7");

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[
    NEXT,
    INSERT,
    LIST,
    LIST_OF_ACTOR,
    LIST_OF_RESOURCE,
    LIST_OF_BOTH,
];

/// What changed, by field path. Never give it a secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes(BTreeMap<String, String>);

impl Changes {
    /// None yet.
    pub fn new() -> Self {
        Changes::default()
    }

    /// A field that had one value and now has another; left out if they are the same. A thing that
    /// is new had empty values.
    #[must_use]
    pub fn field(mut self, path: &str, old: impl Display, new: impl Display) -> Self {
        let (old, new) = (old.to_string(), new.to_string());
        // Before they are cut: long values may differ at their end only.
        if old != new {
            let change = format!("{} -> {}", cut(old), cut(new));
            self.0.insert(path.to_owned(), change);
        }
        self
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Shortens on a character boundary, and shows that it did.
fn cut(mut text: String) -> String {
    if text.len() > VALUE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(VALUE_BYTES_MAX));
        text.push('…');
    }
    text
}

/// A change about to be recorded.
#[derive(Debug, Clone)]
pub struct Change<'a> {
    /// Who makes it, and by which call.
    pub caller: &'a Caller,
    /// Full method, e.g. `hub.api_keys.v1.ApiKeys/RevokeApiKey`.
    pub action: &'a str,
    /// Id of the resource.
    pub resource: &'a str,
    /// What changes.
    pub changes: Changes,
    /// When.
    pub time: Micros,
}

/// A change as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Position in the tenant's audit log: dense, from 1.
    pub sequence: u64,
    /// When.
    pub time: Micros,
    /// Key that did it.
    pub actor: String,
    /// Full method.
    pub action: String,
    /// Id of the resource.
    pub resource: String,
    /// By field path: `old -> new`.
    pub changes: BTreeMap<String, String>,
    /// Id of the call, `req_…`.
    pub call_id: String,
    /// Address of the caller; empty if it is not known.
    pub client_ip: String,
}

/// Which entries a list shows; empty texts mean any.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Key that did it.
    pub actor: String,
    /// Id of the resource.
    pub resource: String,
    /// Not before.
    pub since: Option<Micros>,
    /// Before.
    pub until: Option<Micros>,
}

/// Records a change of what a tenant has, as part of `tx`, and returns its sequence. The hub's own
/// log has what no tenant owns.
///
/// Call it once all logs that `tx` will append to are locked ([`crate::journal::lock_head`] or
/// [`crate::journal::bump`]): who locks them in another order could wait in a circle.
pub async fn record(tx: &mut Tx, tenant: &TenantRef, change: Change<'_>) -> Result<u64> {
    let (sequence,): (i64,) = tx.query(NEXT).bind(tenant.number()).one().await?;
    let origin = &change.caller.origin;
    let changes = serde_json::to_string(&change.changes.0).map_err(Error::internal)?;
    let client_ip = origin.client_ip.map(|address| address.to_string());
    tx.query(INSERT)
        .bind(tenant.number())
        .bind(sequence)
        .bind(change.time)
        .bind(change.caller.key_id.to_string())
        .bind(change.action.to_owned())
        .bind(change.resource.to_owned())
        .bind(changes)
        .bind(origin.call_id.to_string())
        .bind(client_ip.unwrap_or_default())
        .execute()
        .await?;
    Ok(sequence.unsigned_abs())
}

type Row = (i64, Micros, String, String, String, String, String, String);

/// At most `count` entries of a tenant, newest first, before the one numbered `before`.
pub async fn list(
    db: &Db,
    tenant: &TenantRef,
    filter: &Filter,
    before: Option<u64>,
    count: usize,
) -> Result<Vec<Entry>> {
    let by = [&filter.resource, &filter.actor].map(|text| !text.is_empty());
    let statement = match by {
        [false, false] => LIST,
        [false, true] => LIST_OF_ACTOR,
        [true, false] => LIST_OF_RESOURCE,
        [true, true] => LIST_OF_BOTH,
    };
    let mut query = db
        .query(statement)
        .bind(tenant.number())
        .bind(before.map_or(i64::MAX, u64::cast_signed))
        .bind(filter.since.unwrap_or(Micros::MIN))
        .bind(filter.until.unwrap_or(Micros::MAX))
        .bind(i64::try_from(count).unwrap_or(i64::MAX));
    for (text, named) in [&filter.resource, &filter.actor].into_iter().zip(by) {
        if named {
            query = query.bind(text.clone());
        }
    }
    let rows: Vec<Row> = query.all().await?;
    rows.into_iter().map(entry).collect()
}

fn entry(row: Row) -> Result<Entry> {
    let (sequence, time, actor, action, resource, changes, call_id, client_ip) = row;
    Ok(Entry {
        sequence: sequence.unsigned_abs(),
        time,
        actor,
        action,
        resource,
        changes: serde_json::from_str(&changes)
            .map_err(|_| Error::internal("the changes of an audit entry are damaged"))?,
        call_id,
        client_ip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_a_change_and_long_values_are_cut() {
        let long = "ä".repeat(2000);
        let changes = Changes::new()
            .field("name", "Acme", "Acme Ltd")
            .field("retention", 5, 5)
            .field("reason", "", &long);
        assert_eq!(changes.0["name"], "Acme -> Acme Ltd");
        assert!(!changes.0.contains_key("retention"));
        assert!(changes.0["reason"].len() <= VALUE_BYTES_MAX + 8);
        assert!(changes.0["reason"].ends_with('…'));
        assert!(Changes::new().field("a", 1, 1).is_empty());
        let longer = format!("{long}!");
        assert!(!Changes::new().field("a", &long, &longer).is_empty());
    }
}
